"""What the members of a team share: the context of the task."""

from __future__ import annotations

import asyncio
import operator
import sys
from collections.abc import Callable
from typing import Any

import pytest

from aworld.agents.llm_agent import Agent
from aworld.core import event as ev
from aworld.core.agent.flow import Unit
from aworld.core.agent.swarm import Loop, Map, Swarm, TeamSwarm
from aworld.core.context.base import Context
from aworld.core.model import ModelRequest
from aworld.core.task import TaskResponse
from aworld.core.tool.func_to_tool import tool
from aworld.models import ScriptedModel
from aworld.models.doubles import Said, call
from tests.runners.scenes import Gate, scripted
from tests.swarms.stage import asks, assert_whole, echo, outcome, ran, revived, says, stepped, streamed, yields


@tool(inline=True, idempotent=True)
def note(context: Context, key: str, value: list[str]) -> str:
    """Keep something."""
    context.set(key, value)
    return "kept"


@tool
def note_in_thread(context: Context, key: str, value: list[str]) -> str:
    """Keep something, in a thread."""
    context.set(key, value)
    return "kept"


def writer(name: str, key: str = "k", waits: int = 0, *, tool: Any = note) -> Agent:
    """An agent that writes its name to a key."""

    async def think(request: ModelRequest) -> Said:
        await yields(waits)
        if request.messages[-1].role == "user":
            return asks(tool.name, f"{name}-1", key=key, value=[name])
        return name

    return says(name, think, tools=[tool])


def merged(one: list[str], other: list[str]) -> list[str]:
    return sorted(one + other)


async def run(unit: Unit, input: Any = "Q", **task: Any) -> TaskResponse:
    async with asyncio.timeout(5):
        response, _ = await ran(unit, input, **task)
    assert_whole(response.record, complete=response.success)
    return response


def assert_conflict(response: TaskResponse, *names: str, key: str = "k") -> None:
    assert response.status == "failed"
    assert all(repr(name) in response.msg for name in (*names, key)), response.msg


async def test_two_at_once_may_not_set_the_same_key() -> None:
    assert_conflict(await run(Swarm([writer("a"), writer("b")], echo("z"))), "a", "b")
    assert_conflict(await stepped(Swarm([writer("a"), writer("b")], echo("z"))), "a", "b")


async def test_two_at_once_may_set_different_keys() -> None:
    response = await run(Swarm([writer("a", "one"), writer("b", "two")]))
    assert dict(response.context or {}) == {"one": ["a"], "two": ["b"]}


async def test_a_declared_function_joins_what_is_set_at_once() -> None:
    response = await run(Swarm([writer("a"), writer("b", waits=3), writer("c", waits=9)], state={"k": operator.add}))
    assert response.record.state == {"k": ["a", "b", "c"]}


async def test_one_after_the_other_may_set_a_key_again() -> None:
    response = await run(Swarm(writer("a"), writer("b"), writer("c")))
    assert response.record.state == {"k": ["c"]}
    looped = await run(Loop(writer("a"), until=lambda _, __: False, max_rounds=3))
    assert looped.record.state == {"k": ["a"]}
    joined = await run(Swarm([writer("a"), writer("b")], writer("c"), state={"k": operator.add}))
    assert joined.record.state == {"k": ["c"]}


@pytest.mark.parametrize("drive", [run, stepped], ids=["run", "step"])
@pytest.mark.parametrize("waits", [0, 30], ids=["overlapping", "not overlapping"])
async def test_what_is_at_once_is_a_matter_of_the_graph_and_not_of_timing(
    waits: int, drive: Callable[..., Any]
) -> None:
    def branches(**options: Any) -> Swarm:
        return Swarm([(writer("a"), echo("a2")), (echo("b", tools=[]), writer("b2", waits=waits))], **options)

    assert_conflict(await drive(branches()), "a", "b2")
    joined = await drive(branches(state={"k": merged}))
    assert joined.record.state == {"k": ["a", "b2"]}


@pytest.mark.parametrize("most", [None, 1, 2])
async def test_all_inputs_of_a_map_are_at_once(most: int | None) -> None:
    def collected(**options: Any) -> Unit:
        def think(request: ModelRequest) -> Said:
            if request.messages[-1].role == "user":
                return asks("note", request.messages[-1].text, key="k", value=[request.messages[-1].text])
            return "kept"

        return Swarm(Map(says("m", think, tools=[note]), over=lambda _: list("1234"), max_parallel=most), **options)

    joined = await run(collected(state={"k": operator.add}))
    assert sorted(joined.record.state["k"]) == list("1234")
    assert_conflict(await run(collected()), "m")


async def test_what_a_member_writes_twice_does_not_wipe_out_the_others() -> None:
    twice = says(
        "a",
        lambda r: asks("note", f"a{r.turn}", key="k", value=[f"a{r.turn}"]) if r.turn < 2 else "a",
        tools=[note],
    )
    response = await run(Swarm([twice, writer("b")], state={"k": operator.add}))
    assert "b" in response.record.state["k"]


async def test_members_called_in_one_turn_are_at_once_and_in_two_turns_are_not() -> None:
    def team(*replies: Said) -> TeamSwarm:
        return TeamSwarm(Agent("lead", model=ScriptedModel(replies)), writer("a"), writer("b"))

    at_once = await run(team([call("a", input="x"), call("b", input="y")], "done"))
    assert_conflict(at_once, "a", "b")
    in_turn = await run(team(call("a", input="x"), call("b", input="y"), "done"))
    assert in_turn.record.state == {"k": ["b"]}


async def test_a_leader_may_set_what_its_members_set() -> None:
    lead = Agent(
        "lead",
        model=ScriptedModel([[call("note", key="k", value=["lead"]), call("a", input="x")], "done"]),
        tools=[note],
    )
    response = await run(TeamSwarm(lead, writer("a")))
    assert response.success


async def test_a_conflict_ends_the_run_at_once() -> None:
    gate = Gate()

    async def stuck(request: ModelRequest) -> Said:
        await gate.pass_through()
        return "never"

    response = await run(Swarm([says("stuck", stuck), writer("a"), writer("b")]))
    assert_conflict(response, "a", "b")


async def test_a_function_that_joins_and_raises_fails_the_run() -> None:
    def refuse(before: Any, now: Any) -> Any:
        raise KeyError("no")

    response = await run(Swarm([writer("a"), writer("b")], echo("z"), state={"k": refuse}))
    assert response.success  # the tool of the later one failed, and its agent was told
    assert "KeyError" in str([row["observation"] for row in response.trajectory])


async def test_writes_from_threads_are_all_kept() -> None:
    names = [f"w{n}" for n in range(20)]
    writers = [writer(name, name, tool=note_in_thread) for name in names]
    response = await run(Swarm(writers))
    assert response.record.state == {name: [name] for name in names}
    written = [event for event in response.record.events if isinstance(event, ev.StateSet)]
    assert len(written) == 20


async def test_threads_that_write_at_every_moment_do_not_break_the_log() -> None:
    @tool
    def count(context: Context, name: str) -> str:
        """Write often."""
        for number in range(200):
            context.set(name, number)
        return "kept"

    def counter(name: str) -> Agent:
        return scripted(call("count", name=name), "done", name=name, tools=[count])

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        response = await run(Swarm([counter(f"w{n}") for n in range(8)]))
    finally:
        sys.setswitchinterval(before)
    assert response.record.state == {f"w{n}": 199 for n in range(8)}


async def test_a_call_that_was_given_up_writes_nothing_any_more() -> None:
    released, written = asyncio.Event(), asyncio.Event()
    errors: list[BaseException] = []

    @tool
    async def stubborn(context: Context) -> str:
        """Do not stop when told to."""
        try:
            await asyncio.Event().wait()
        finally:
            try:
                context.set("late", [1])
            except Exception as error:  # noqa: BLE001 - looked at below
                errors.append(error)
            written.set()
        return "never"

    async def failing(request: ModelRequest) -> Said:
        await released.wait()
        raise ValueError("boom")

    slow = scripted(call("stubborn"), "never", name="slow", tools=[stubborn])

    @tool(inline=True)
    def release() -> str:
        """Let the other fail."""
        released.set()
        return "now"

    response = await run(Swarm([slow, says("bad", failing), scripted(call("release"), "x", name="x", tools=[release])]))
    await written.wait()
    assert response.status == "failed"
    assert response.record.state == {}
    assert isinstance(response.record.events[-1], ev.Finished)
    assert len(errors) == 1


async def test_state_is_the_same_after_a_kill() -> None:
    def swarm() -> Swarm:
        return Swarm(
            [writer("a"), (echo("b1"), writer("b")), writer("c", "other")],
            writer("z"),
            state={"k": merged},
        )

    whole, ends, _ = await streamed(swarm())
    assert whole.record.state == {"k": ["z"], "other": ["c"]}
    for cut in ends:
        again, _ = await revived(swarm(), whole.record, cut)
        assert again.record.state == whole.record.state
        assert outcome(again) == outcome(whole)


async def test_a_conflict_is_one_after_a_kill() -> None:
    def swarm() -> Swarm:
        return Swarm([writer("a"), (echo("b1"), echo("b2"), writer("b", waits=5))], echo("z"))

    whole, ends, _ = await streamed(swarm())
    assert_conflict(whole, "a", "b")
    for cut in ends:
        again, _ = await revived(swarm(), whole.record, cut)
        assert_conflict(again, "a", "b")


async def test_conditions_see_the_state_as_it_was_after_a_kill() -> None:
    def swarm() -> Unit:
        return Loop(Swarm(writer("a"), echo("b")), until=lambda state, _: state.get("k") == ["a"])

    whole, ends, _ = await streamed(swarm())
    for cut in ends:
        again, _ = await revived(swarm(), whole.record, cut)
        assert outcome(again) == outcome(whole)
