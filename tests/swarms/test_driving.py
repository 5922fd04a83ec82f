"""The ways to drive a swarm: steps, forks, replays, and large ones."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import pytest

from aworld.agents.llm_agent import Agent
from aworld.core.agent.flow import Unit
from aworld.core.agent.swarm import HandoffSwarm, Loop, Map, Swarm, TeamSwarm
from aworld.core.model import ModelRequest
from aworld.core.task import Task
from aworld.models import FunctionModel, ScriptedModel
from aworld.models.doubles import Said, call
from aworld.runner import Runners
from aworld.trajectory import MemoryStore
from tests.runners.scenes import add, scripted
from tests.swarms.stage import Cuts, echo, fails, outcome, ran, revived, says, stepped, streamed, yields


def slow(name: str, waits: int) -> Agent:
    async def think(request: ModelRequest) -> Said:
        await yields(waits)
        return f"{name}({request.messages[-1].text})"

    return says(name, think)


def parallel() -> Unit:
    """Members that end in another order than they began in."""
    return Swarm(echo("a"), [slow("b", 9), (slow("c", 1), slow("d", 1)), slow("e", 3)], echo("f"))


def team() -> Unit:
    lead = Agent(
        "lead",
        model=ScriptedModel(
            [[call("b", input="x"), call("add", a=1, b=2), call("pair", input="y")], call("b", input="z"), "done"]
        ),
        tools=[add],
        system_prompt="Lead.",
    )
    return TeamSwarm(lead, slow("b", 9), Swarm([slow("c", 5), slow("d", 1)], echo("e"), name="pair"))


def handoff() -> Unit:
    a = Agent("a", model=ScriptedModel([call("handoff_to_b", message="please"), "bye"]), system_prompt="A")
    b = Agent("b", model=ScriptedModel([[call("add", a=1, b=1), call("handoff_to_a", message="back")]]), tools=[add])
    return HandoffSwarm((a, b), (b, a))


def looped_map() -> Unit:
    mapped = Map(slow("m", 2), over=lambda text: ["1", "2", "3"], max_parallel=2, reduce=" ".join)
    return Loop((mapped, echo("z")), until=lambda _, output: False, max_rounds=2)


UNITS: list[Callable[[], Unit]] = [parallel, team, handoff, looped_map]


@pytest.mark.parametrize("make", UNITS)
async def test_stepping_to_the_end_is_running(make: Callable[[], Unit]) -> None:
    whole, _ = await ran(make())
    assert whole.success, whole.msg
    assert outcome(await stepped(make())) == outcome(whole)


@pytest.mark.parametrize("make", UNITS)
async def test_a_step_is_one_turn_of_one_agent(make: Callable[[], Unit]) -> None:
    task = Task("Q", swarm=make())
    over, rows = False, 0
    while not over:
        over, _, response = await Runners.step(task)
        rows += 1
        assert len(response.trajectory) == 1
        assert response.trajectory[0]["meta"]["step"] == rows - 1
        assert len(response.record.calls) == rows


@pytest.mark.parametrize("make", UNITS)
async def test_another_process_may_take_the_next_step(make: Callable[[], Unit]) -> None:
    whole, _ = await ran(make())
    store, over, task = MemoryStore(), False, Task("Q", swarm=make())
    while not over:
        over, _, response = await Runners.step(task, {"store": store})
        response.step = None
        task = Task("Q", swarm=make(), id=task.id)
    assert outcome(response) == outcome(whole)  # pyright: ignore[reportPossiblyUnboundVariable]


@pytest.mark.parametrize("make", UNITS)
async def test_a_fork_at_any_step_says_the_same(make: Callable[[], Unit]) -> None:
    whole, _ = await ran(make())
    for at in range(len(whole.record.calls) + 1):
        fork = await Runners.fork(whole, swarm=make(), at=at)
        assert outcome(fork) == outcome(whole)
        assert sorted(row["meta"]["step"] for row in fork.trajectory) == list(range(len(whole.record.calls)))
        assert fork.record.complete


@pytest.mark.parametrize("make", UNITS)
async def test_a_replay_with_and_without_the_agents_finds_no_difference(make: Callable[[], Unit]) -> None:
    whole, _ = await ran(make())
    with_agents = await Runners.replay(whole, swarm=make())
    assert (with_agents.difference, with_agents.steps) == (None, len(whole.record.calls))
    without = await Runners.replay(whole)
    assert (without.difference, without.steps) == (None, len(whole.record.calls))


async def test_a_replay_of_a_run_that_failed_finds_no_difference() -> None:
    def failing() -> Unit:
        return Swarm(echo("a"), [slow("b", 20), (slow("c", 1), fails("d")), slow("e", 1)], echo("f"))

    whole, _ = await ran(failing())
    assert whole.status == "failed"
    assert (await Runners.replay(whole, swarm=failing())).difference is None
    assert (await Runners.replay(whole)).difference is None


async def test_a_replay_of_a_run_that_was_cut_short_finds_no_difference() -> None:
    def limited() -> Unit:
        return Swarm(echo("a"), [slow("b", 9), (slow("c", 1), slow("d", 1)), slow("e", 3)], echo("f"))

    for most in range(1, 6):
        whole, _ = await ran(limited(), conf={"max_steps": most})
        assert whole.status == "limit_reached"
        assert (await Runners.replay(whole, swarm=limited())).difference is None
        assert (await Runners.replay(whole)).difference is None

    async def never(request: ModelRequest) -> Said:
        await asyncio.Event().wait()
        return ""

    late, _ = await ran(Swarm(echo("a"), [says("b", never), slow("c", 1)], echo("d")), timeout=0.05)
    assert late.status == "timeout"
    assert (await Runners.replay(late)).difference is None


async def test_a_replay_of_a_run_that_was_killed_and_resumed_finds_no_difference() -> None:
    for make in UNITS:
        whole, ends, _ = await streamed(make())
        for cut in ends:
            again, _ = await revived(make(), whole.record, cut)
            assert (await Runners.replay(again, swarm=make())).difference is None
            assert (await Runners.replay(again)).difference is None


async def test_a_replay_tells_which_member_changed() -> None:
    def pair(prompt: str) -> Swarm:
        return Swarm([echo("a"), echo("b", system_prompt=prompt)], echo("c"), name="three")

    whole, _ = await ran(pair("Be kind."))
    report = await Runners.replay(whole, swarm=pair("Be rude."))
    assert report.difference is not None
    assert "Be rude." in str(report.difference)


async def test_parallel_runs_of_one_scripted_agent_take_its_replies_one_by_one() -> None:
    def mapped() -> Unit:
        return Map(scripted("one", "two", "three", name="m"), times=3)

    whole, _ = await ran(mapped())
    assert whole.answer == ["one", "two", "three"], whole.msg
    assert outcome(await stepped(mapped())) == outcome(whole)


async def test_a_stream_and_a_run_write_the_same() -> None:
    whole, _ = await ran(parallel())
    read, _, _ = await streamed(parallel())
    assert outcome(read) == outcome(whole)


def work(make: Callable[[int], Unit], size: int, drive: Callable[[Unit], Any]) -> int:
    """Function calls, of Python and of C, that a swarm of this size takes."""
    unit, count = make(size), 0

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    async def main() -> None:
        sys.setprofile(profile)
        try:
            response = await drive(unit)
        finally:
            sys.setprofile(None)
        assert response.success, response.msg

    asyncio.run(main())
    return count


def plain(name: str) -> Agent:
    return Agent(name, model=FunctionModel(lambda _: "x", "f"))


def chain(size: int) -> Unit:
    return Swarm(*[plain(f"a{n}") for n in range(size)])


def wide(size: int) -> Unit:
    return Swarm(plain("a"), [plain(f"b{n}") for n in range(size)], plain("z"))


def ladder(size: int) -> Unit:
    """A graph of many edges: each waits for the two before it."""
    agents = [plain(f"a{n}") for n in range(size)]
    return Swarm(*[(agents[n], agents[n + d]) for n in range(size) for d in (1, 2) if n + d < size])


def mapped(size: int) -> Unit:
    async def think(request: ModelRequest) -> Said:
        await yields(len(request.messages[-1].text) + int(request.messages[-1].text) % 7)
        return "x"

    return Map(says("m", think), over=lambda _: list(range(size)))


def mapped_chains(size: int) -> Unit:
    return Map(Swarm(plain("a"), plain("b")), over=lambda _: list(range(size)), max_parallel=50)


def one_agent(size: int) -> Unit:
    return Swarm(*[plain("a")] * size)


_OPEN: dict[str, Any] = {"conf": {"max_steps": None}}


async def driven(unit: Unit) -> Any:
    return await Runners.run("Q", swarm=unit, **_OPEN)


@pytest.mark.parametrize("make", [chain, wide, ladder, mapped, mapped_chains, one_agent])
def test_the_work_of_a_large_swarm_grows_linearly(make: Callable[[int], Unit]) -> None:
    small, large = work(make, 100, driven), work(make, 400, driven)
    assert large < 4.6 * small, (small, large)


async def test_a_thousand_nodes_and_a_thousand_inputs() -> None:
    for make in (chain, ladder, mapped):
        response = await driven(make(1000))
        assert response.success
        assert len(response.record.calls) == 1000


@pytest.mark.parametrize("make", [wide, mapped_chains])
def test_taking_a_large_swarm_up_again_grows_linearly(make: Callable[[int], Unit]) -> None:
    def resumed(size: int) -> int:
        async def killed() -> tuple[Any, int]:
            store = Cuts()
            response = await Runners.run("Q", swarm=make(size), run_conf={"store": store}, **_OPEN)
            events = response.record.events
            return response, len(events) - 3

        response, cut = asyncio.run(killed())
        store = Cuts()
        store.append(response.id, response.record.events[:cut])
        return work(make, size, lambda unit: Runners.resume(response.id, swarm=unit, store=store))

    small, large = resumed(100), resumed(400)
    assert large < 4.6 * small, (small, large)
