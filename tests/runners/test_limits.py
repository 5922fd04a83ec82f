"""Limits, time-outs and cancellation: they end a run in time, and everything done is kept."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from aworld.agents.llm_agent import Agent
from aworld.config import AgentConfig, RunConfig, TaskConfig
from aworld.core import event as ev
from aworld.core.context.base import RunScope
from aworld.core.message import Message, Usage
from aworld.core.model import ModelReply, ModelRequest
from aworld.core.output import RunFinished, ToolResultOutput
from aworld.core.task import Task
from aworld.core.tool import base, threads
from aworld.core.tool.func_to_tool import tool
from aworld.core.trajectory import Trajectory
from aworld.models.doubles import FunctionModel, call
from aworld.models.prices import Price
from aworld.runner import Runners
from aworld.runners import journal
from aworld.server import ModelServer
from aworld.trajectory import MemoryStore, TrajectoryStore
from tests.runners.scenes import Gate, RecordingServer, add, adder, assert_sound, looping, scripted, thinking


async def test_an_endless_tool_loop_ends_at_the_limit_with_everything_kept() -> None:
    response = await Runners.run("x", looping(), conf=TaskConfig(max_steps=25))
    assert response.status == "limit_reached"
    assert "max_steps=25 reached" in response.msg
    assert len(response.trajectory) == 25
    assert [row["observation"][0]["content"] for row in response.trajectory] == [str(n + 1) for n in range(25)]
    assert_sound(response.record)


async def test_a_run_without_a_limit_ends_at_a_hundred_steps() -> None:
    response = await Runners.run("x", looping())
    assert (response.status, len(response.record.calls)) == ("limit_reached", 100)


async def test_an_answer_in_the_last_step_is_an_answer() -> None:
    response = await Runners.run("x", scripted(call("add", a=1, b=2), "done"), conf={"max_steps": 2})
    assert response.success


def spending(usage: Usage | None) -> Agent:
    """Spends `usage` in every step."""

    def spend(request: ModelRequest) -> ModelReply:
        return ModelReply(Message("assistant", tool_calls=(call("add", a=request.turn, b=1),)), usage=usage)

    return thinking(spend, tools=[add], name="spender")


async def test_max_tokens_ends_the_run_after_the_call_that_passes_it() -> None:
    response = await Runners.run("x", spending(Usage(80, 20, 100)), conf={"max_tokens": 250})
    assert (response.status, len(response.trajectory)) == ("limit_reached", 3)
    assert "max_tokens=250 reached: 300 tokens used" in response.msg
    assert response.usage.total_tokens == 300


async def test_tokens_are_summed_where_no_total_is_reported() -> None:
    response = await Runners.run("x", spending(Usage(80, 20)), conf={"max_tokens": 150})
    assert (response.status, len(response.trajectory)) == ("limit_reached", 2)


async def test_a_limit_that_cannot_be_watched_is_no_limit_reached(store: TrajectoryStore) -> None:
    conf = RunConfig(store=store)
    response = await Runners.run("x", spending(None), id="run", conf={"max_tokens": 150}, run_conf=conf)
    assert (response.status, len(response.trajectory)) == ("usage_unknown", 1)
    assert "reported no usage for step 0: leave max_tokens out, or ask a server that reports usage" in response.msg
    again = await Runners.resume_all(store, [spending(None)])
    assert (again.finished, again.failed, again.left) == (0, 0, 1)
    assert "reported no usage" in again.errors["run"]
    resumed = await Runners.resume("run", spending(None), store=store, conf={"max_steps": 3})  # without the limit
    assert (resumed.status, len(resumed.trajectory)) == ("limit_reached", 3)


async def test_max_cost_as_reported() -> None:
    response = await Runners.run("x", spending(Usage(80, 20, 100, cost=0.25)), conf={"max_cost": 0.6})
    assert (response.status, len(response.trajectory)) == ("limit_reached", 3)
    assert "max_cost=0.6 reached" in response.msg
    assert response.usage.cost == 0.75


async def test_an_unknown_cost_is_not_zero() -> None:
    class Unpriced(FunctionModel):
        price: Any = Price(reported=True)  # which it does not do

    def spend(_: ModelRequest) -> ModelReply:
        return ModelReply(Message("assistant", tool_calls=(call("add", a=1, b=1),)), usage=Usage(80, 20, 100))

    agent = Agent("a", model=Unpriced(spend), tools=[add])
    response = await Runners.run("x", agent, conf={"max_cost": 0.6})
    assert (response.status, len(response.trajectory)) == ("usage_unknown", 1)
    assert "llm_input_price" in response.msg


async def test_max_cost_from_configured_prices() -> None:
    def spend(request: ModelRequest) -> ModelReply:
        calls = (call("add", a=request.turn, b=1),)
        return ModelReply(Message("assistant", tool_calls=calls), usage=Usage(1_000, 100, 1_100))

    async with RecordingServer(FunctionModel(spend)) as server:
        conf = AgentConfig(
            llm_base_url=server.base_url, llm_model_name="m", llm_input_price=100.0, llm_output_price=1_000.0
        )
        response = await Runners.run("x", Agent("a", conf, tools=[add]), conf={"max_cost": 0.5})
    assert (response.status, len(response.trajectory)) == ("limit_reached", 3)
    assert response.usage.cost == pytest.approx(0.6)


async def test_the_deadline_passes_while_the_model_thinks() -> None:
    async def slow(request: ModelRequest) -> Any:
        if request.turn == 0:
            return call("add", a=1, b=2)
        await asyncio.Event().wait()
        return ""

    response = await Runners.run("x", thinking(slow, tools=[add]), timeout=0.05)
    assert response.status == "timeout"
    assert "timeout=0.05 s passed" in response.msg
    assert response.trajectory[0]["observation"][0]["content"] == "3"
    assert_sound(response.record)


async def test_the_deadline_passes_while_a_server_is_silent() -> None:
    let_go = asyncio.Event()

    async def silent(_: ModelRequest) -> str:
        await let_go.wait()
        return ""

    async with ModelServer(FunctionModel(silent)) as server:
        agent = Agent("a", AgentConfig(llm_base_url=server.base_url, llm_model_name="m"))
        response = await Runners.run("x", agent, timeout=0.1)
        let_go.set()
    assert response.status == "timeout"
    assert response.time_cost < 1


async def test_a_server_stops_at_once_though_an_answer_is_under_way() -> None:
    let_go = asyncio.Event()

    async def silent(_: ModelRequest) -> str:
        await let_go.wait()
        return ""

    server = ModelServer(FunctionModel(silent))
    await server.start()
    agent = Agent("a", AgentConfig(llm_base_url=server.base_url, llm_model_name="m"))
    assert (await Runners.run("x", agent, timeout=0.1)).status == "timeout"
    try:
        async with asyncio.timeout(1):
            await server.stop()
    finally:
        let_go.set()
        await server.stop()


@tool
async def hang() -> str:
    """Never answers."""
    await asyncio.Event().wait()
    return ""


async def test_the_deadline_passes_while_tools_run() -> None:
    agent = scripted([call("add", a=1, b=2), call("hang"), call("hang")], tools=[add, hang])
    response = await Runners.run("x", agent, timeout=0.05)
    assert response.status == "timeout"
    done, *cut = response.trajectory[0]["observation"]
    assert done["content"] == "3"
    assert [result["error"] for result in cut] == ["interrupted", "interrupted"]
    assert "may or may not have taken effect" in cut[0]["content"]
    assert_sound(response.record)


async def test_a_deadline_counts_the_steps_together() -> None:
    task = Task("x", scripted(call("hang"), "done", tools=[hang]), timeout=0.05)
    over, _, response = await Runners.step(task)
    assert over
    assert response.status == "timeout"


async def test_a_tool_that_hangs_is_stopped_and_the_model_is_told() -> None:
    agent = scripted(call("hang"), "It hangs.", tools=[hang])
    response = await Runners.run("x", agent, conf={"tool_timeout": 0.05})
    assert response.answer == "It hangs."
    (seen,) = response.trajectory[0]["observation"]
    assert seen["error"] == "No answer within 0.05 s; it was stopped."
    assert "No answer within 0.05 s" in seen["content"]
    assert seen["duration"] == pytest.approx(0.05, abs=0.2)


async def test_a_tool_may_have_a_time_limit_of_its_own() -> None:
    @tool(timeout=0.05)
    async def slow() -> str:
        """Slow."""
        await asyncio.Event().wait()
        return ""

    response = await Runners.run("x", scripted(call("slow"), "done", tools=[slow]))
    assert response.trajectory[0]["observation"][0]["error"] == "No answer within 0.05 s; it was stopped."


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Lets blocked threads go when the test is over."""
    event = threading.Event()
    yield event
    event.set()


async def test_a_synchronous_tool_that_hangs_is_left_behind(release: threading.Event) -> None:
    @tool
    def block() -> str:
        """Blocks its thread."""
        release.wait()
        return "late"

    agent = scripted([call("block"), call("add", a=1, b=2)], "done", tools=[block, add])
    response = await Runners.run("x", agent, conf={"tool_timeout": 0.05})
    assert response.answer == "done"
    assert [result["error"] is None for result in response.trajectory[0]["observation"]] == [False, True]


class Stubborn:
    """A tool that goes on when it is cancelled, until the test is over."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.let_go = asyncio.Event()

    async def stay(self) -> str:
        """Stays."""
        self.begun.set()
        while not self.let_go.is_set():
            try:
                await self.let_go.wait()
            except asyncio.CancelledError:
                continue
        return "late"


async def test_a_run_ends_within_a_second_when_a_tool_ignores_its_cancellation(store: TrajectoryStore) -> None:
    stubborn = Stubborn()
    agent = scripted([call("add", a=1, b=2), call("stay")], tools=[add, stubborn.stay])
    running = asyncio.create_task(Runners.run("x", agent, run_conf=RunConfig(store=store)))
    await stubborn.begun.wait()
    began = time.perf_counter()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert time.perf_counter() - began < 1
    stubborn.let_go.set()
    (summary,) = await store.query()
    assert summary.status == "cancelled"


async def test_a_tool_that_ignores_its_time_limit_does_not_hold_up_the_run() -> None:
    stubborn = Stubborn()
    agent = scripted(call("stay"), "done", tools=[stubborn.stay])
    began = time.perf_counter()
    response = await Runners.run("x", agent, conf={"tool_timeout": 0.05})
    assert time.perf_counter() - began < 1
    stubborn.let_go.set()
    assert response.answer == "done"


async def test_a_run_ends_within_a_second_while_a_synchronous_tool_blocks(
    store: TrajectoryStore, release: threading.Event
) -> None:
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    @tool
    def block() -> str:
        """Blocks its thread."""
        loop.call_soon_threadsafe(begun.set)
        release.wait()
        return "late"

    agent = scripted(call("block"), tools=[block])
    running = asyncio.create_task(Runners.run("x", agent, run_conf=RunConfig(store=store)))
    await begun.wait()
    began = time.perf_counter()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert time.perf_counter() - began < 1
    (summary,) = await store.query()
    assert summary.status == "cancelled"


async def test_a_cancelled_run_is_in_the_log_with_all_that_was_done(store: TrajectoryStore) -> None:
    gate = Gate()

    @tool
    async def wait() -> str:
        """Wait."""
        await gate.pass_through()
        return ""

    agent = scripted(call("add", a=1, b=2), [call("add", a=2, b=2), call("wait")], tools=[add, wait])
    running = asyncio.create_task(Runners.run("x", agent, id="run", run_conf=RunConfig(store=store)))
    await gate.until(1)
    for _ in range(10):  # the turns of the loop in which the other call is closed
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    record = Trajectory.of("run", await store.read("run"))
    assert record.status == "cancelled"
    assert record.error == "The run was cancelled by its caller."
    assert_sound(record)
    results = [result for step in record.steps() for result in step.results.values()]
    assert sorted((result.call_id, result.error) for result in results) == [
        ("call_0_0", None), ("call_1_0", None), ("call_1_1", "interrupted"),
    ]  # fmt: skip


async def test_a_run_cancelled_while_it_closes_lets_go_of_all_that_it_held(store: TrajectoryStore) -> None:
    gate = Gate()
    let_go: list[str] = []

    class Held:
        """A toolset that is slow to let go."""

        def __init__(self, name: str) -> None:
            self.name = name

        def for_run(self, scope: RunScope) -> Held:
            return Held(self.name)

        async def list_tools(self) -> list[Any]:
            return []

        async def end_run(self) -> None:
            await gate.pass_through()
            let_go.append(self.name)

    agent = scripted("done", tools=[Held("a"), Held("b")])
    running = asyncio.create_task(Runners.run("x", agent, id="run", run_conf=RunConfig(store=store)))
    await gate.until(1)
    for _ in range(2):
        running.cancel()
        await asyncio.sleep(0)
    gate.open.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert let_go == ["b", "a"]
    assert Trajectory.of("run", await store.read("run")).status == "finished"


async def test_limits_hold_across_a_resume(store: TrajectoryStore) -> None:
    whole = (await Runners.run("x", looping(), id="run", conf={"max_steps": 3})).record
    await store.append("run", whole.events[:20])
    response = await Runners.resume("run", looping(), store=store)
    assert (response.status, len(response.record.calls)) == ("limit_reached", 3)


async def test_a_forked_run_may_go_on_beyond_the_limit() -> None:
    first = await Runners.run("x", looping(), conf={"max_steps": 3})
    forked = await Runners.fork(first, looping(), conf=TaskConfig(max_steps=5))
    assert (forked.status, len(forked.record.calls)) == ("limit_reached", 5)
    assert_sound_fork(forked.record.events)


def assert_sound_fork(events: list[Any]) -> None:
    assert [event.seq for event in events] == list(range(len(events)))


async def test_a_wall_clock_that_is_set_back_changes_no_duration(
    monkeypatch: pytest.MonkeyPatch, store: TrajectoryStore
) -> None:
    ticking, back = time.time, 0.0

    async def think(request: ModelRequest) -> Any:
        nonlocal back
        back += 3600.0  # in the middle of the call
        return call("wait") if request.turn < 3 else "done"

    @tool(inline=True)
    def wait() -> str:
        "Wait."
        nonlocal back
        back += 3600.0
        return "waited"

    monkeypatch.setattr(time, "time", lambda: ticking() - back)
    began = ticking()
    response = await Runners.run("x", thinking(think, tools=[wait]), run_conf=RunConfig(store=store))
    await response.reward(1.0)
    assert response.success
    times = [event.at for event in response.record.events]
    assert times == sorted(times)
    assert began - 0.001 <= times[0]
    assert times[-1] <= ticking() + 0.001
    for row in response.trajectory:
        assert 0 <= row["model"]["latency"] < 10
        assert all(0 <= result["duration"] < 10 for result in row["observation"])
    (summary,) = await store.query()
    assert summary.started_at <= summary.updated_at <= ticking() + 0.001
    assert summary.duration is not None
    assert 0 <= summary.duration < 10


async def test_a_wall_clock_that_is_set_back_changes_no_latency_of_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    ticking, back = time.time, 0.0

    def clock() -> float:
        nonlocal back
        back += 60.0  # each look at it
        return ticking() - back

    monkeypatch.setattr(time, "time", clock)
    async with ModelServer(FunctionModel(lambda _: "one two three")) as server:
        agent = Agent("agent", conf=AgentConfig(llm_model_name="m", llm_api_key="k", llm_base_url=server.base_url))
        outputs = [output async for output in Runners.streaming_run("x", agent)]
    last = outputs[-1]
    assert isinstance(last, RunFinished)
    (row,) = last.response.trajectory
    assert 0 < row["model"]["first_token_latency"] <= row["model"]["latency"] < 10


async def test_a_run_goes_on_where_it_is_earlier(monkeypatch: pytest.MonkeyPatch, store: TrajectoryStore) -> None:
    task = Task("x", scripted(call("add", a=1, b=2), "done"), id="run")
    await Runners.step(task, RunConfig(store=store))
    left = (await store.read("run"))[-1].at
    monkeypatch.setattr(ev, "now", lambda: left - 3600.0)
    monkeypatch.setattr(journal, "now", lambda: left - 3600.0)  # another machine
    response = await Runners.resume("run", scripted(call("add", a=1, b=2), "done"), store=store)
    assert response.success
    (summary,) = await store.query()
    assert summary.started_at <= left <= summary.updated_at


async def test_a_tool_timeout_counts_from_when_the_tool_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "THREADS", threads.DaemonThreads(bound=2))

    @tool
    def work() -> str:
        "Works."
        time.sleep(0.05)
        return "worked"

    agent = scripted(call("work"), "done", tools=[work])
    tasks = [Task("x", agent, conf=TaskConfig(tool_timeout=0.5)) for _ in range(40)]  # a second of work for two threads
    responses = await Runners.run_task(tasks)
    rows = [response.trajectory[0]["observation"][0] for response in responses.values()]
    assert {row["content"] for row in rows} == {"worked"}
    assert all(0.05 <= row["duration"] < 0.5 for row in rows)


async def test_a_call_that_never_began_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "THREADS", threads.DaemonThreads(bound=1))
    monkeypatch.setattr(base, "QUEUE", 0.3)
    release, ran = threading.Event(), list[str]()

    @tool
    def hold() -> str:
        "Holds the only thread."
        release.wait(30)
        return "held"

    @tool(timeout=0.1)
    def work() -> str:
        "Works."
        ran.append("work")
        return "worked"

    async def think(request: ModelRequest) -> Any:
        if request.turn == 0:
            return [call("hold"), call("work")]
        return "done"

    agent = thinking(think, tools=[hold, work])
    outputs: list[Any] = []
    async for output in Runners.streamed_run_task(Task("x", agent)).stream_events():
        outputs.append(output)
        if isinstance(output, ToolResultOutput) and output.result.name == "work":
            assert output.result.error == "It did not run: no thread was free within 0 s."
            assert output.result.duration is None
            release.set()
    assert isinstance(outputs[-1], RunFinished)
    assert outputs[-1].response.success
    assert ran == []


async def test_of_a_cancelled_run_the_log_says_what_had_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "THREADS", threads.DaemonThreads(bound=1))
    loop, begun, release, ran = asyncio.get_running_loop(), asyncio.Event(), threading.Event(), list[str]()

    @tool
    def hold() -> str:
        "Holds the only thread."
        ran.append("hold")
        loop.call_soon_threadsafe(begun.set)
        release.wait(30)
        return "held"

    @tool
    def work() -> str:
        "Works."
        ran.append("work")
        return "worked"

    store = MemoryStore()
    agent = scripted([call("hold"), call("work")], "done", tools=[hold, work])
    running = asyncio.create_task(Runners.run("x", agent, id="run", run_conf=RunConfig(store=store)))
    await begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    release.set()
    record = Trajectory.of("run", await store.read("run"))
    closed = {event.name: event for event in record if isinstance(event, ev.ToolReturned)}
    texts = {name: record.messages[event.result].message.text for name, event in closed.items()}
    assert texts["hold"].endswith("It may or may not have taken effect.")
    assert texts["work"].endswith("It had not begun, and did not run.")
    assert ran == ["hold"]
    assert_sound(record)


async def test_a_duration_is_the_tools_own_time_however_many_wait() -> None:
    tasks = [Task("x", adder()) for _ in range(2000)]
    stepped = await asyncio.gather(*(Runners.step(task) for task in tasks))
    durations = [response.trajectory[0]["observation"][0]["duration"] for _, _, response in stepped]
    assert statistics.median(durations) < 0.005
