"""Reading a run while it goes on."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from aworld.agents.llm_agent import Agent
from aworld.config import RunConfig
from aworld.core.exceptions import ConfigError
from aworld.core.message import Message
from aworld.core.model import ModelRequest
from aworld.core.output import (
    AnyOutput,
    ReasoningOutput,
    RetryOutput,
    RunFinished,
    StepFinished,
    StepStarted,
    TextOutput,
    ToolCallOutput,
    ToolResultOutput,
)
from aworld.core.task import Task
from aworld.core.tool.func_to_tool import tool
from aworld.models import FunctionModel, Retry
from aworld.models.doubles import call
from aworld.runner import Runners
from aworld.trajectory import TrajectoryStore
from tests.runners.scenes import Gate, RecordingServer, add, adder, assert_sound, scripted, server_of, thinking


def types(outputs: list[AnyOutput]) -> list[str]:
    return [str(output.__struct_config__.tag) for output in outputs]


def ends(outputs: list[AnyOutput]) -> int:
    return sum(isinstance(output, RunFinished) for output in outputs)


async def test_outputs_come_in_the_order_in_which_things_happen() -> None:
    agent = scripted(Message("assistant", tool_calls=(call("add", a=1, b=2),), reasoning="Sum."), "It is 3.")
    outputs = [output async for output in Runners.streaming_run_task(Task("1 + 2?", agent))]

    assert types(outputs) == [
        "step_started", "reasoning", "message", "tool_call", "tool_result", "step_finished",
        "step_started", "text", "message", "step_finished", "finished",
    ]  # fmt: skip
    assert [output.step for output in outputs] == [0] * 6 + [1] * 5
    assert {output.agent for output in outputs} == {"agent"}
    last = outputs[-1]
    assert isinstance(last, RunFinished)
    assert last.response.answer == "It is 3."
    assert {output.trajectory_id for output in outputs} == {last.response.id}
    assert_sound(last.response.record)


async def test_the_pieces_are_the_answer() -> None:
    text = "a long answer that comes in many pieces, " * 10
    outputs = [output async for output in Runners.streaming_run("x", scripted(text))]
    pieces = [output.text for output in outputs if isinstance(output, TextOutput)]
    assert len(pieces) > 10
    assert "".join(pieces) == text


async def test_pieces_come_over_http_before_the_answer_is_complete() -> None:
    async with server_of(call("add", a=1, b=2), "It is three, I think.") as server:
        outputs = [output async for output in Runners.streaming_run("1 + 2?", server.agent())]
        last = outputs[-1]
        assert isinstance(last, RunFinished)
        server.assert_exact(last.response.record)
    assert "".join(o.text for o in outputs if isinstance(o, TextOutput)) == last.response.answer


async def test_a_tool_call_is_told_before_the_tool_runs() -> None:
    gate = Gate()

    @tool
    async def wait() -> str:
        """Wait."""
        await gate.pass_through()
        return "ok"

    stream = Runners.streamed_run_task(Task("x", scripted(call("wait"), "done", tools=[wait])))
    outputs: list[AnyOutput] = []
    async for output in stream.stream_events():
        outputs.append(output)
        if isinstance(output, ToolCallOutput):
            assert gate.arrived == 0 or not gate.open.is_set()
            await gate.until(1)
            gate.open.set()
    assert ends(outputs) == 1


async def test_a_step_is_durable_when_it_is_finished(store: TrajectoryStore) -> None:
    task = Task("1 + 2?", adder())
    async for output in Runners.streaming_run_task(task, RunConfig(store=store)):
        if isinstance(output, StepFinished):
            (summary,) = await store.query()
            assert summary.steps > output.step


async def test_a_slow_reader_slows_nobody() -> None:
    task = Task("x", scripted(*[call("add", a=n, b=0) for n in range(20)], "done"))
    stream = Runners.streamed_run_task(task)
    seen: list[AnyOutput] = []
    async for output in stream.stream_events():
        if not seen:  # the reader stands still until the run is over
            assert (await stream.response()).answer == "done"
        seen.append(output)
    assert ends(seen) == 1
    assert sum(isinstance(output, ToolResultOutput) for output in seen) == 20


@pytest.mark.parametrize("agent", [scripted("one"), scripted(RuntimeError("no")), scripted(), scripted("a", "b")])
async def test_a_stream_ends_with_one_end_whatever_the_status(agent: Agent) -> None:
    outputs = [output async for output in Runners.streaming_run("x", agent)]
    assert ends(outputs) == 1
    assert isinstance(outputs[-1], RunFinished)
    assert_sound(outputs[-1].response.record)


async def test_misuse_is_raised_by_the_stream() -> None:
    with pytest.raises(ConfigError, match="LLM_MODEL_NAME"):
        async for _ in Runners.streaming_run("x", Agent("a")):
            pass


def waiting_agent(gate: Gate) -> Agent:
    async def wait(request: ModelRequest) -> Any:
        if request.turn == 0:
            return call("add", a=1, b=2)
        await gate.pass_through()
        return "done"

    return thinking(wait, tools=[add])


async def test_leaving_the_loop_early_cancels_the_run(store: TrajectoryStore) -> None:
    gate = Gate()
    task = Task("x", waiting_agent(gate))
    async for output in Runners.streamed_run_task(task, RunConfig(store=store)).stream_events():
        if isinstance(output, StepStarted) and output.step == 1:
            await gate.until(1)
            break
    gc.collect()
    async with asyncio.timeout(1):
        while (await store.query())[0].status != "cancelled":  # noqa: ASYNC110 - the log is what is asked for
            await asyncio.sleep(0)
    assert gate.inside == 0
    assert (await store.query())[0].steps == 1


async def test_the_response_of_a_stream_that_was_left_is_there() -> None:
    gate = Gate()
    stream = Runners.streamed_run_task(Task("x", waiting_agent(gate)))
    events = stream.stream_events()
    async for _ in events:
        break
    await gate.until(1)
    await stream.cancel()
    response = await stream.response()
    assert response.status == "cancelled"
    assert len(response.trajectory) == 1


async def test_a_run_may_be_told_to_go_on_without_its_reader(store: TrajectoryStore) -> None:
    gate = Gate()
    stream = Runners.streamed_run_task(Task("x", waiting_agent(gate)), RunConfig(store=store), keep_running=True)
    async for _ in stream.stream_events():
        break
    gate.open.set()
    assert (await stream.response()).answer == "done"
    assert (await store.query())[0].status == "finished"


async def test_cancelling_a_stream_ends_the_loop_with_the_end() -> None:
    gate = Gate()
    stream = Runners.streamed_run_task(Task("x", waiting_agent(gate)))
    outputs: list[AnyOutput] = []

    async def read() -> None:
        outputs.extend([output async for output in stream.stream_events()])

    reader = asyncio.create_task(read())
    await gate.until(1)
    await stream.cancel()
    await reader
    assert isinstance(outputs[-1], RunFinished)
    assert ends(outputs) == 1
    assert outputs[-1].response.status == "cancelled"


async def test_a_retry_voids_the_text_before_it() -> None:
    tries = iter([True, False])

    def sometimes(_: ModelRequest) -> str:
        from aworld.core.exceptions import ModelError

        if next(tries):
            raise ModelError("overloaded", status=503, retryable=True)
        return "fine"

    agent = Agent("a", model=FunctionModel(sometimes, retry=Retry(tries=2, wait=0.001)))
    outputs = [output async for output in Runners.streaming_run("x", agent)]
    assert types(outputs) == ["step_started", "retry", "text", "message", "step_finished", "finished"]
    assert isinstance(outputs[1], RetryOutput)
    assert outputs[1].error == "overloaded"


async def test_reasoning_is_streamed_apart_from_text() -> None:
    agent = scripted(Message("assistant", "42", reasoning="Deep thought."))
    outputs = [output async for output in Runners.streaming_run("x", agent)]
    assert "".join(o.text for o in outputs if isinstance(o, ReasoningOutput)) == "Deep thought."


async def test_many_streams_at_once() -> None:
    async with RecordingServer(FunctionModel(lambda request: request.messages[-1].text, "echo")) as server:

        async def read(number: int) -> str:
            text = ""
            async for output in Runners.streaming_run(f"message {number}", server.agent()):
                text += output.text if isinstance(output, TextOutput) else ""
            return text

        assert await asyncio.gather(*(read(n) for n in range(50))) == [f"message {n}" for n in range(50)]
