"""Readers of runs: many, late, in other processes; what they see is a fold of the log."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aworld.config import RunConfig
from aworld.core import event as ev
from aworld.core.message import Message
from aworld.core.output import (
    AnyOutput,
    MessageOutput,
    OutputFold,
    ReasoningOutput,
    RetryOutput,
    RunFinished,
    StepStarted,
    TextOutput,
    ToolNoteOutput,
)
from aworld.core.task import Task
from aworld.models.doubles import Said, call
from aworld.runner import Runners
from aworld.trajectory import Query, TrajectoryStore, open_store
from tests.runners.scenes import Gate, add, adder, scripted, thinking
from tests.runners.test_properties import tool_calls

PUSHED = (StepStarted, TextOutput, ReasoningOutput, RetryOutput, ToolNoteOutput, RunFinished)
"""Outputs that are not of the log, and the end, which carries the response."""


def of_the_log(outputs: list[AnyOutput]) -> list[AnyOutput]:
    return [output for output in outputs if not isinstance(output, PUSHED)]


def folded(events: list[ev.Event], id: str) -> list[AnyOutput]:
    fold = OutputFold(id)
    return of_the_log([output for event in events for output in fold.take(event)])


async def read(outputs: Any) -> list[AnyOutput]:
    async with asyncio.timeout(20):
        return [output async for output in outputs]


async def test_two_readers_of_one_stream_see_the_same_and_a_late_one_too(store: TrajectoryStore) -> None:
    gate = Gate()

    async def think(request: Any) -> Said:
        await gate.pass_through()
        return call("add", a=request.turn, b=1) if request.turn < 2 else "done"

    stream = Runners.streamed_run_task(Task("x", thinking(think, tools=[add])), RunConfig(store=store))
    readers = [asyncio.create_task(read(stream.stream_events())) for _ in range(2)]
    await gate.until(1)
    gate.open.set()
    first, second = await asyncio.gather(*readers)
    late = await read(stream.stream_events())
    assert of_the_log(first) == of_the_log(second) == of_the_log(late)
    assert [sum(isinstance(o, RunFinished) for o in seen) for seen in (first, second, late)] == [1, 1, 1]
    response = await stream.response()
    assert folded(response.record.events, response.id) == of_the_log(first)
    assert [o.seq for o in of_the_log(first)] == sorted(o.seq or 0 for o in of_the_log(first))


async def test_who_listens_from_the_beginning_is_not_sent_to_the_file(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/runs.db")
    reads: list[str] = []
    read_file = store.read

    async def counted(id: str, **options: Any) -> list[ev.Event]:
        reads.append(id)
        return await read_file(id, **options)

    async def think(request: Any) -> Said:
        while store.hub.topics["one"].notes is None:  # noqa: ASYNC110 - the watcher of the file rings no bell
            await asyncio.sleep(0.01)
        return "done"

    store.read = counted
    stream = Runners.streamed_run_task(Task("x", thinking(think), id="one"), RunConfig(store=store))
    outputs = await read(stream.stream_events())
    assert isinstance(outputs[-1], RunFinished)
    assert reads == []
    await store.close()


async def test_a_result_is_seen_before_the_model_speaks_again(store: TrajectoryStore) -> None:
    agent = scripted(call("add", a=1, b=2), call("add", a=3, b=4), "done and done", tools=[add])
    steps: list[int] = []
    for output in await read(Runners.streaming_run("x", agent, run_conf=RunConfig(store=store))):
        step = getattr(output, "step", None)
        steps += [] if step is None else [step]
    assert steps == sorted(steps)
    assert set(steps) == {0, 1, 2}


async def test_a_run_is_followed_by_its_id_from_a_cursor(store: TrajectoryStore) -> None:
    response = await Runners.run("1 + 2?", adder(), run_conf=RunConfig(store=store))
    whole = await read(Runners.follow(response.id, store=store))
    assert isinstance(whole[-1], RunFinished)
    assert whole[-1].response.answer == "It is 3."
    assert any(isinstance(output, StepStarted) for output in whole)  # nobody pushed them to a late reader
    cursor = whole[3].seq
    assert cursor is not None
    rest = await read(Runners.follow(response.id, store=store, after=cursor))
    assert rest[:-1] == [output for output in whole[:-1] if (output.seq or 0) > cursor]


async def test_the_second_turn_of_a_conversation_is_followed_to_its_own_end(store: TrajectoryStore) -> None:
    conf = RunConfig(store=store)
    first = await Runners.run("Hello", scripted("Good day."), run_conf=conf)
    second = await Runners.run("Again", scripted("Good day again."), after=first, run_conf=conf)
    outputs = await read(Runners.follow(second.id, store=store))
    assert [output.message.content for output in outputs if isinstance(output, MessageOutput)] == ["Good day again."]
    assert isinstance(outputs[-1], RunFinished)
    assert outputs[-1].response.answer == "Good day again."


async def test_many_runs_forks_and_resumed_ones_stream_by_a_query(store: TrajectoryStore) -> None:
    seen: list[AnyOutput] = []
    all_there = asyncio.Event()

    async def watch() -> None:
        async for output in Runners.follow(Query(group="g"), store=store):
            seen.append(output)
            if sum(isinstance(o, RunFinished) for o in seen) == 7:
                all_there.set()

    watching = asyncio.create_task(watch())
    conf = RunConfig(store=store)
    tasks = [Task("x", adder(), group_id="g") for _ in range(4)]
    await Runners.run_task(tasks, conf)
    await Runners.fork(tasks[0].id, adder(), at=1, n=2, store=store)
    stepped = Task("x", adder(), group_id="g")
    await Runners.step(stepped, conf)
    await Runners.resume(stepped.id, adder(), store=store)
    async with asyncio.timeout(10):
        await all_there.wait()
    watching.cancel()
    assert {type(output) for output in seen} >= {MessageOutput, RunFinished}
    for id in {output.trajectory_id for output in seen}:
        own = of_the_log([output for output in seen if output.trajectory_id == id])
        assert own == folded(await store.read(id), id)


_RUN = """
import asyncio, sys
from aworld.config import RunConfig
from aworld.runner import Runners
from tests.runners.scenes import adder
asyncio.run(Runners.run("1 + 2?", adder(), id="elsewhere", run_conf=RunConfig(store=sys.argv[1])))
"""


async def test_a_run_of_another_process_is_followed(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/runs.db")
    reader = asyncio.create_task(read(Runners.follow("elsewhere", store=store)))
    await asyncio.sleep(0)
    other = await asyncio.create_subprocess_exec(sys.executable, "-c", _RUN, store.url, cwd=Path(__file__).parents[2])
    assert await other.wait() == 0
    outputs = await reader
    assert of_the_log(outputs) == folded(await store.read("elsewhere"), "elsewhere")
    assert isinstance(outputs[-1], RunFinished)
    await store.close()


@settings(max_examples=40, deadline=None)
@given(script=st.lists(st.lists(tool_calls(), min_size=1, max_size=3).map(tuple), max_size=3))
async def test_what_a_live_reader_saw_is_the_fold_of_the_stored_log(script: list[Any]) -> None:
    replies = [Message("assistant", tool_calls=calls) for calls in script]
    store = open_store("memory:")
    stream = Runners.streamed_run_task(Task("x", scripted(*replies, "done")), RunConfig(store=store))
    outputs = await read(stream.stream_events())
    response = await stream.response()
    assert of_the_log(outputs) == folded(await store.read(response.id), response.id)
    assert isinstance(outputs[-1], RunFinished)


@pytest.mark.parametrize("id", ["", "nobody"])
async def test_following_nobody_can_be_left(id: str, store: TrajectoryStore) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(read(Runners.follow(id, store=store)), 0.05)
