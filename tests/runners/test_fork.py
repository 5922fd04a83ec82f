"""Forks share a prefix and go their own way; a replay finds the first difference."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aworld.agents.llm_agent import Agent
from aworld.config import RunConfig
from aworld.core import event as ev
from aworld.core.agent.base import BaseAgent
from aworld.core.common import ActionModel, Observation
from aworld.core.exceptions import ModelError, TaskError
from aworld.core.message import Message
from aworld.core.model import ModelRequest
from aworld.core.task import Task, TaskResponse
from aworld.core.tool.func_to_tool import tool
from aworld.core.tool.wrappers import approval_required
from aworld.core.trajectory import Trajectory
from aworld.models import FunctionModel, Retry
from aworld.models.doubles import call
from aworld.runner import Runners
from aworld.trajectory import MemoryStore, TrajectoryStore
from tests.runners.scenes import Gate, add, adder, scripted, search, thinking


def counting() -> Agent:
    """Adds twice and says how much it was asked."""

    def think(request: ModelRequest) -> Any:
        if request.turn < 2:
            return call("add", a=request.turn, b=10)
        return " | ".join(message.text for message in request.messages if message.role != "assistant")

    return thinking(think, tools=[add], name="counter", system_prompt="Count.")


def shared(record: Trajectory) -> int:
    fork = record.started.forked_from if record.started else None
    assert fork is not None
    return fork.seq


@pytest.mark.parametrize("at", [0, 1, 2, None])
async def test_a_fork_shares_the_steps_before_and_takes_the_rest_anew(at: int | None, store: TrajectoryStore) -> None:
    first = await Runners.run("x", counting(), run_conf=RunConfig(store=store))
    forked = await Runners.fork(first.id, counting(), at=at, store=store)
    assert forked.id != first.id
    assert forked.answer == first.answer
    assert forked.record.events[: shared(forked.record)] == first.record.events[: shared(forked.record)]
    assert len([seq for seq in forked.record.calls if forked.record.calls[seq].seq > shared(forked.record)]) == (
        0 if at is None else 3 - at
    )
    stored = Trajectory.of(forked.id, await store.read(forked.id))
    assert stored.events == forked.record.events
    assert await store.read(first.id) == first.record.events


async def test_forks_are_independent(store: TrajectoryStore) -> None:
    numbers = iter(range(100))
    agent = thinking(lambda request: call("add", a=1, b=1) if request.turn == 0 else f"{next(numbers)}", tools=[add])
    first = await Runners.run("x", agent, run_conf=RunConfig(store=store), group_id="g")
    forks = await Runners.fork(first, agent, at=1, n=5)
    assert sorted(str(fork.answer) for fork in forks) == ["1", "2", "3", "4", "5"]
    assert len({fork.id for fork in forks}) == 5
    assert {fork.record.task.group_id for fork in forks} == {"g"}
    await forks[0].reward(1.0)
    assert [fork.record.score for fork in forks] == [1.0, None, None, None, None]
    assert first.record.score is None


async def test_a_fork_of_a_finished_run_with_an_observation_goes_on_with_the_conversation() -> None:
    first = await Runners.run("What is 1 + 2?", counting())
    forked = await Runners.fork(first, thinking(lambda r: f"{len(r.messages)} {r.messages[-1].text}", name="counter"),
                                observation="And 2 + 2?")  # fmt: skip
    assert forked.success, forked.msg
    assert forked.answer == "8 And 2 + 2?"


async def test_a_conversation_of_several_rounds(store: TrajectoryStore) -> None:
    agent = thinking(lambda request: f"{sum(m.role == 'user' for m in request.messages)} questions")
    response = await Runners.run("one", agent, run_conf=RunConfig(store=store))
    for number in (2, 3, 4):
        response = await Runners.fork(response, agent, observation="another")
        assert response.answer == f"{number} questions"
        assert [event.seq for event in response.record.events] == list(range(len(response.record.events)))


async def test_a_fork_of_a_fork(store: TrajectoryStore) -> None:
    first = await Runners.run("x", counting(), run_conf=RunConfig(store=store))
    second = await Runners.fork(first.id, counting(), at=2, store=store)
    for at in (0, 1, 2):
        third = await Runners.fork(second.id, counting(), at=at, store=store)
        assert third.answer == first.answer
        assert third.record.next_step == 3
        stored = Trajectory.of(third.id, await store.read(third.id))
        assert stored.events == third.record.events


async def test_a_failed_run_is_forked_to_go_on() -> None:
    first = await Runners.run("x", scripted(call("add", a=1, b=2), RuntimeError("down")))
    forked = await Runners.fork(first, thinking(lambda request: request.messages[-1].text, tools=[add]))
    assert forked.answer == "3"


async def test_a_fork_with_something_said_first() -> None:
    first = await Runners.run("x", counting())
    forked = await Runners.fork(first, counting(), at=2, observation="Hurry.")
    assert forked.answer == "Count. | x | 10 | 11 | Hurry."
    assert first.answer == "Count. | x | 10 | 11"


async def test_a_forked_task_is_stepped_and_streamed() -> None:
    first = await Runners.run("x", counting())
    task = await Runners.forked_task(first, counting(), at=1)
    over, observation, _ = await Runners.step(task)
    assert not over
    assert observation.results[0].content == "11"
    over, _, response = await Runners.step(task)
    assert over
    assert response.answer == first.answer
    outputs = [o async for o in Runners.streaming_run_task(await Runners.forked_task(first, counting(), at=1))]
    assert [output.step for output in outputs][:2] == [1, 1]


async def test_a_step_that_is_not_there_is_refused() -> None:
    first = await Runners.run("x", counting())
    for at in (-1, 4):
        with pytest.raises(TaskError, match=r"has 3 steps|at=-1; give a whole number"):
            await Runners.fork(first, counting(), at=at)
    with pytest.raises(TaskError, match="'counter': pass agent="):
        await Runners.fork(first)


async def test_a_fork_while_the_run_waits_for_a_tool() -> None:
    gate = Gate()

    @tool(name="add")
    async def wait(a: int, b: int) -> int:
        """Add, later."""
        await gate.pass_through()
        return a + b

    store = MemoryStore()
    agent = scripted(call("add", a=1, b=2), "done", tools=[wait])
    running = asyncio.create_task(Runners.run("x", agent, id="run", run_conf=RunConfig(store=store)))
    await gate.until(1)
    forked = await Runners.fork("run", adder("agent"), at=0, store=store)
    assert forked.answer == "It is 3."
    gate.open.set()
    assert (await running).answer == "done"


# Replay


async def assert_same(response: TaskResponse, agent: BaseAgent | None = None, **given: Any) -> None:
    for actor in (None, agent) if agent is not None else (None,):
        report = await Runners.replay(response, actor, **given)
        assert report.same, str(report.difference)
        assert report.steps == response.record.next_step


async def test_a_replay_asks_no_model_and_runs_no_tool() -> None:
    asked: list[str] = []

    @tool(inline=True)
    def note(text: str) -> str:
        """Note."""
        asked.append(text)
        return text

    def think(request: ModelRequest) -> Any:
        asked.append("model")
        return call("note", text="tool") if request.turn == 0 else "done"

    agent = thinking(think, tools=[note])
    response = await Runners.run("x", agent)
    asked.clear()
    await assert_same(response, agent)
    assert asked == []


async def test_replays_of_runs_of_every_kind() -> None:
    parallel = scripted([call("add", a=1, b=2), call("nothing"), call("search", query="x")], "done", system_prompt="S")
    corrected = scripted("no", '{"result": 3}', output_type=int, name="int")
    given_up = scripted("no", "no", "no", output_type=int, name="int")
    failed = scripted(call("add", a=1, b=2), ModelError("down", status=500))
    for agent in (adder(), parallel, corrected, given_up, failed, scripted("a", tools=())):
        await assert_same(await Runners.run("x", agent), agent)


async def test_a_replay_of_a_run_that_failed_after_retries() -> None:
    def fail(_: ModelRequest) -> str:
        raise ModelError("overloaded", status=503, retryable=True)

    agent = Agent("a", model=FunctionModel(fail, retry=Retry(tries=2, wait=0.001)))
    response = await Runners.run("x", agent)
    assert response.status == "failed"
    assert len(response.record.calls[0].attempts) == 3
    await assert_same(response, agent)


async def test_a_replay_of_a_stepped_run_with_human_input() -> None:
    agent = scripted([call("add", a=1, b=2), call("add", a=3, b=4)], call("add", a=1, b=1), "done")
    task = Task("x", agent)
    await Runners.step(task, observation="first")
    await Runners.step(task, tool_results={"call_0_0": "drei"}, observation="Go on.")
    _, _, response = await Runners.step(task, tool_results={"call_1_0": "zwei"})
    assert response.success
    response.step = None
    await assert_same(response, agent)


async def test_a_replay_of_a_limited_run() -> None:
    agent = scripted(*[call("add", a=n, b=1) for n in range(5)])
    await assert_same(await Runners.run("x", agent, conf={"max_steps": 3}), agent)


async def test_a_replay_of_cancelled_and_late_runs(store: TrajectoryStore) -> None:
    gate = Gate()

    @tool
    async def wait() -> str:
        """Wait."""
        await gate.pass_through()
        return ""

    agent = scripted(call("add", a=1, b=2), [call("add", a=2, b=2), call("wait"), call("wait")], tools=[add, wait])
    running = asyncio.create_task(Runners.run("x", agent, id="run", run_conf=RunConfig(store=store)))
    await gate.until(2)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    for actor in (None, agent):
        report = await Runners.replay("run", actor, store=store)
        assert report.same, str(report.difference)
        assert report.steps == 2
    await assert_same(await Runners.run("x", agent, timeout=0.05), agent)


async def test_a_replay_of_a_run_that_a_person_approved() -> None:
    agent = scripted(
        [call("add", a=1, b=2), call("search", query="x")], "done", tools=[add, *approval_required(search)]
    )
    waiting = await Runners.run("x", agent)
    await assert_same(waiting, agent)
    (question,) = waiting.record.questions
    response = await Runners.resume(waiting, agent, answers={question: "yes"})
    assert response.success
    await assert_same(response, agent)


async def test_a_replay_of_forks(store: TrajectoryStore) -> None:
    first = await Runners.run("x", counting(), run_conf=RunConfig(store=store))
    for at in (0, 1, 2, None):
        await assert_same(await Runners.fork(first, counting(), at=at), counting())
    await assert_same(await Runners.fork(first, counting(), at=1, observation="Hurry."), counting())


async def test_a_replay_of_a_rule_based_agent() -> None:
    class Rules(BaseAgent):
        async def policy(self, observation: Observation) -> ActionModel:
            if observation.results:
                return ActionModel(content=observation.results[0].content)
            return ActionModel("add", {"a": 1, "b": 2})

    agent = Rules("rules", tools=[add])
    await assert_same(await Runners.run("x", agent), agent)


async def test_the_first_difference_of_a_changed_prompt() -> None:
    response = await Runners.run("x", adder())
    changed = scripted(call("add", a=1, b=2), "It is 3.", name="adder", system_prompt="You multiply.")
    report = await Runners.replay(response, changed)
    assert not report.same
    assert report.difference is not None
    assert report.difference.seq == 2
    assert report.difference.recorded["content"] == "You add."
    assert report.difference.replayed["content"] == "You multiply."
    assert "message 0" in str(report.difference)


async def test_the_first_difference_of_changed_tools() -> None:
    response = await Runners.run("x", adder())
    changed = scripted(name="adder", system_prompt="You add.", tools=[add])
    report = await Runners.replay(response, changed)
    assert report.difference is not None
    assert report.difference.what.startswith("toolset")


async def test_the_first_difference_of_another_way_to_read_the_answer() -> None:
    response = await Runners.run("x", scripted('{"result": 3}', tools=()))
    report = await Runners.replay(response, scripted(tools=(), output_type=int))
    assert report.difference is not None
    assert (report.difference.recorded, report.difference.replayed) == ('{"result": 3}', 3)


async def test_a_log_that_was_tampered_with_is_found(store: TrajectoryStore) -> None:
    import msgspec

    record = (await Runners.run("x", adder())).record
    for number, event in enumerate(record.events):
        if isinstance(event, ev.MessageAdded) and event.origin == "tool":
            message = Message("tool", "4", tool_call_id="call_0_0", name="add")
            forged = msgspec.structs.replace(event, message=message)
            events = [*record.events[:number], forged, *record.events[number + 1 :]]
            report = await Runners.replay(Trajectory.of(record.id, events))
            assert report.same  # another result is another recording, not a contradiction
        if isinstance(event, ev.MessageAdded) and event.origin == "input":
            forged = msgspec.structs.replace(event, parent=None)
            events = [*record.events[:number], forged, *record.events[number + 1 :]]
            report = await Runners.replay(Trajectory.of(record.id, events))
            assert not report.same


async def test_a_record_without_a_beginning_cannot_be_replayed() -> None:
    with pytest.raises(TaskError, match="no beginning"):
        await Runners.replay(Trajectory("empty"))
