"""The models that never touch the network, and `call_model` over them."""

from __future__ import annotations

import asyncio

import pytest

from aworld.core.exceptions import ModelError
from aworld.core.message import Message, ToolCall, Usage
from aworld.core.model import Delta, Model, ModelReply, ModelRequest, ReasoningDelta, TextDelta
from aworld.models.call import CallFailed, Retry, call_model
from aworld.models.doubles import FunctionModel, ScriptedModel, call


def asked(turn: int = 0) -> ModelRequest:
    return ModelRequest(messages=(Message("user", "hi"),), turn=turn)


async def test_a_script_is_said_in_order() -> None:
    own = ModelReply(Message("assistant", "whole"), "length", Usage(1, 2, 3))
    model = ScriptedModel([call("add", a=1), [call("x"), call("y", b="z")], Message("assistant", "m"), "bye", own])
    said = [await model.generate(asked(turn)) for turn in range(5)]
    assert said[0].message.tool_calls == (ToolCall("call_0_0", "add", '{"a":1}'),)
    assert said[1].message.tool_calls == (ToolCall("call_1_0", "x", "{}"), ToolCall("call_1_1", "y", '{"b":"z"}'))
    assert [reply.finish_reason for reply in said] == ["tool_calls", "tool_calls", "stop", "stop", "length"]
    assert [reply.message.content for reply in said[2:]] == ["m", "bye", "whole"]
    assert said[4] == own
    assert said[0].usage == Usage(1, 3, 4, cost=0.0, estimated=True)
    # Stateless: the same turn says the same, whatever was asked before.
    assert await model.generate(asked(1)) == said[1]


async def test_a_missing_reply_is_an_error_and_unused_ones_are_counted() -> None:
    model = ScriptedModel(["one", "two"], name="actor")
    with pytest.raises(CallFailed, match="'actor' has 2 replies, but reply number 3"):
        await call_model(model, asked(2))
    assert [model.unused(turns) for turns in (0, 1, 2, 3)] == [2, 1, 0, 0]


async def test_scripted_errors_are_raised() -> None:
    model = ScriptedModel([ModelError("down", status=503, retryable=True), KeyError("odd")])
    with pytest.raises(CallFailed, match="down") as caught:
        await call_model(model, asked())
    assert caught.value.status == 503
    assert len(caught.value.outcome.attempts) == 1  # a double is asked once
    with pytest.raises(KeyError):
        await call_model(model, asked(1))


async def test_functions_plain_and_async() -> None:
    def plain(request: ModelRequest) -> str:
        return f"{request.messages[-1].text} {request.turn}"

    async def slow(request: ModelRequest) -> list[ToolCall]:
        await asyncio.sleep(0)
        return [call("f", n=request.turn), ToolCall("own", "g", "{}")]

    assert (await FunctionModel(plain).generate(asked(3))).message.content == "hi 3"
    assert (await FunctionModel(slow).generate(asked(3))).message.tool_calls == (
        ToolCall("call_3_0", "f", '{"n":3}'),
        ToolCall("own", "g", "{}"),
    )
    assert (FunctionModel(plain).name, FunctionModel(plain, "p").name) == ("plain", "p")


async def test_a_function_that_raises_is_a_model_error() -> None:
    def broken(request: ModelRequest) -> str:
        raise ZeroDivisionError("by zero")

    with pytest.raises(CallFailed, match="broken raised ZeroDivisionError: by zero") as caught:
        await call_model(FunctionModel(broken), asked())
    assert isinstance(caught.value.__cause__, ModelError)
    assert isinstance(caught.value.__cause__.__cause__, ZeroDivisionError)


async def test_a_function_may_have_retries() -> None:
    seen: list[int] = []

    def flaky(request: ModelRequest) -> str:
        seen.append(request.turn)
        if len(seen) < 3:
            raise ModelError("not yet", retryable=True)
        return "now"

    outcome = await call_model(FunctionModel(flaky, retry=Retry(tries=5, wait=0.0)), asked())
    assert outcome.reply.message.content == "now"
    assert [attempt.error for attempt in outcome.attempts] == ["not yet", "not yet"]


async def test_waits_double_up_to_the_limit_and_vary() -> None:
    waits: list[float] = []
    down = ModelError("down", retryable=True)
    model = FunctionModel(lambda _: down, retry=Retry(tries=40, wait=0.0005, wait_max=0.002))
    with pytest.raises(CallFailed) as caught:
        await call_model(model, asked(), on_retry=lambda _, wait: waits.append(wait))
    assert len(waits) == 40
    assert [attempt.waited for attempt in caught.value.outcome.attempts] == [*waits, 0.0]
    assert all(wait <= min(0.002, 0.0005 * 2**n) for n, wait in enumerate(waits))
    assert len(set(waits)) > 30
    assert max(waits) > 0.001


@pytest.mark.parametrize("kind", ["scripted", "function"])
async def test_doubles_stream_in_pieces(kind: str) -> None:
    message = Message("assistant", "a text that is longer than a piece", (call("f"),), reasoning="thinking about it")
    model: Model = ScriptedModel([message]) if kind == "scripted" else FunctionModel(lambda _: message)
    deltas: list[Delta] = []
    outcome = await call_model(model, asked(), on_delta=deltas.append)
    assert outcome.reply == await model.generate(asked())
    assert "".join(d.text for d in deltas if isinstance(d, TextDelta)) == message.content
    assert "".join(d.text for d in deltas if isinstance(d, ReasoningDelta)) == message.reasoning
    assert len(deltas) > 3


def test_they_are_models() -> None:
    assert isinstance(ScriptedModel([]), Model)
    assert isinstance(FunctionModel(lambda _: "x"), Model)
