"""Invariants of the loop, for conversations that nobody thought of."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from aworld.agents.llm_agent import Agent
from aworld.config import RunConfig
from aworld.core import event as ev
from aworld.core.message import Message, ToolCall
from aworld.core.rows import rows
from aworld.core.task import Task
from aworld.core.tool.func_to_tool import tool
from aworld.core.trajectory import Trajectory
from aworld.models import ScriptedModel
from aworld.models.doubles import Said
from aworld.runner import Runners
from aworld.trajectory import MemoryStore
from tests.runners.scenes import add, assert_sound, facts
from tests.runners.test_resume import CuttingStore


@tool(idempotent=True)
async def echo(text: str) -> str:
    """Say it again, a little later."""
    for _ in range(len(text) % 4):
        await asyncio.sleep(0)
    return text


@tool(inline=True)
def fail(text: str) -> str:
    """Fail."""
    raise ValueError(text)


texts = st.text(max_size=8).filter(lambda text: text.isprintable())
bad_calls = st.sampled_from([("add", "{"), ("add", "[]"), ("nobody", "{}"), ("echo", '{"test": 1}'), ("", "")])
ids = st.sampled_from(["", "a", "b", "call_0", "a-1"])


@st.composite
def tool_calls(draw: st.DrawFn) -> ToolCall:
    """A call of a tool: right, failing or malformed, with an id that may be missing or used twice."""
    kind = draw(st.sampled_from(["add", "echo", "fail", "bad"]))
    number = draw(st.integers(0, 9))
    match kind:
        case "add":
            name, arguments = "add", f'{{"a": {number}, "b": {draw(st.integers(-9, 9))}}}'
        case "echo":
            name, arguments = "echo", f'{{"text": "{"x" * number}"}}'
        case "fail":
            name, arguments = "fail", '{"text": "no"}'
        case _:
            name, arguments = draw(bad_calls)
    return ToolCall(draw(ids), name, arguments)


@st.composite
def scripts(draw: st.DrawFn) -> list[Said]:
    """What a model says in a run: turns with tool calls, then a text."""
    said: list[Said] = []
    for _ in range(draw(st.integers(0, 5))):
        called = draw(st.lists(tool_calls(), min_size=1, max_size=5))
        said.append(Message("assistant", draw(st.none() | texts), tool_calls=tuple(called)))
    return [*said, draw(texts)]


def agent_of(script: list[Said]) -> Agent:
    return Agent("agent", model=ScriptedModel(script), tools=[add, echo, fail], system_prompt="Hm.")


async def recorded(agent: Agent) -> tuple[Trajectory, list[int]]:
    store = CuttingStore()
    response = await Runners.run("go", agent, id="run", run_conf=RunConfig(store=store))
    assert response.success, response.msg
    return response.record, store.ends


@settings(max_examples=60, deadline=None)
@given(scripts())
def test_every_conversation_gives_a_sound_log(script: list[Said]) -> None:
    record, _ = asyncio.run(recorded(agent_of(script)))
    assert_sound(record)
    assert record.answer == script[-1]
    assert len(record.calls) == len(script)


@settings(max_examples=60, deadline=None)
@given(scripts(), st.data())
def test_a_run_that_was_killed_anywhere_ends_with_the_same_answer(script: list[Said], data: st.DataObject) -> None:
    async def main() -> None:
        agent = agent_of(script)
        whole, ends = await recorded(agent)
        cut = data.draw(st.sampled_from(ends))
        store = MemoryStore()
        await store.append("run", whole.events[:cut])
        response = await Runners.resume("run", agent, store=store)
        assert response.answer == whole.answer
        assert_sound(response.record)
        assert response.record.events[:cut] == whole.events[:cut]
        assert await store.read("run") == response.record.events
        known = [result.error for result in returned(response.record) if result.error == "interrupted"]
        if not known:
            assert content(response.record) == content(whole)

    asyncio.run(main())


def returned(record: Trajectory) -> list[ev.ToolReturned]:
    return [event for event in record.events if isinstance(event, ev.ToolReturned)]


def content(record: Trajectory) -> list[Any]:
    """What the rows say, times aside."""
    return [(row["state"], row["action"], [seen["content"] for seen in row["observation"]]) for row in rows(record)]


@settings(max_examples=40, deadline=None)
@given(scripts(), st.data())
def test_a_run_killed_twice_ends_too(script: list[Said], data: st.DataObject) -> None:
    async def main() -> None:
        agent = agent_of(script)
        whole, ends = await recorded(agent)
        first = data.draw(st.sampled_from(ends))
        again = CuttingStore()
        await again.append("run", whole.events[:first])
        second = (await Runners.resume("run", agent, store=again)).record
        cut = data.draw(st.sampled_from(again.ends))
        store = MemoryStore()
        await store.append("run", second.events[:cut])
        response = await Runners.resume("run", agent, store=store)
        assert response.answer == whole.answer
        assert_sound(response.record)

    asyncio.run(main())


@settings(max_examples=40, deadline=None)
@given(scripts())
def test_stepping_and_running_write_the_same_log(script: list[Said]) -> None:
    async def main() -> None:
        agent = agent_of(script)
        whole, _ = await recorded(agent)
        task, over, steps = Task("go", agent), False, 0
        while not over:
            over, _, response = await Runners.step(task)
            steps += 1
            assert [row["meta"]["step"] for row in response.trajectory] == [steps - 1]
        assert in_order(task.driver.record) == in_order(whole)
        assert steps == len(script)

    asyncio.run(main())


def in_order(record: Trajectory) -> list[dict[str, Any]]:
    """The facts; answers of one turn, which come in any order, by their number."""
    kept = facts(record)
    for event in kept:
        event.pop("seq")
    return sorted(kept, key=lambda event: (event["kind"], str(event)))


@settings(max_examples=40, deadline=None)
@given(scripts(), st.data())
def test_forks_at_every_step_end_with_the_same_answer_and_replay(script: list[Said], data: st.DataObject) -> None:
    async def main() -> None:
        agent = agent_of(script)
        store = MemoryStore()
        first = await Runners.run("go", agent, run_conf=RunConfig(store=store))
        at = data.draw(st.integers(0, len(script)))
        forked = await Runners.fork(first.id, agent, at=at, store=store)
        assert forked.answer == first.answer
        assert content(forked.record) == content(first.record)
        for response in (first, forked):
            for actor in (None, agent):
                report = await Runners.replay(response, actor)
                assert report.same, str(report.difference)
                assert content(report.record) == content(first.record)

    asyncio.run(main())


@settings(max_examples=40, deadline=None)
@given(scripts(), st.data())
def test_a_fold_of_any_prefix_of_a_real_run_is_valid(script: list[Said], data: st.DataObject) -> None:
    async def main() -> None:
        whole, _ = await recorded(agent_of(script))
        cut = data.draw(st.integers(0, len(whole.events)))
        prefix = Trajectory.of("run", whole.events[:cut])
        rows(prefix)
        assert prefix.status == ("finished" if cut == len(whole.events) else "running")
        for event in whole.events[cut:]:
            prefix.apply(event)
        assert rows(prefix) == rows(whole)

    asyncio.run(main())
