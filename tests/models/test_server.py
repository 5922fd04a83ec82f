"""The OpenAI-compatible server around a model, asked by our own client and by hand."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from aworld.config.conf import ModelConfig
from aworld.core.exceptions import ModelError
from aworld.core.message import Audio, File, Image, Message, Text, Tokens, ToolCall, Usage
from aworld.core.model import Delta, ModelReply, ModelRequest, OutputSchema, TextDelta, ToolSchema
from aworld.models import CallFailed, FunctionModel, OpenAIModel, ScriptedModel, call_model
from aworld.models.doubles import call
from aworld.server import ModelServer

REQUEST = ModelRequest(
    messages=(
        Message("system", "Be brief."),
        Message(
            "user", (Text("Look:"), Image("https://x.example/a.png", "low"), Audio("AA==", "mp3"), File("data:,x"))
        ),
        Message("assistant", None, (ToolCall("c1", "add", '{"a":  1}'),), reasoning="Hm."),
        Message("tool", "1", tool_call_id="c1"),
    ),
    tools=(ToolSchema("add", "Adds.", {"type": "object", "properties": {}}),),
    params={"temperature": 0.5, "return_token_ids": True, "logprobs": True},
    output=OutputSchema("Out", {"type": "object"}),
)
REPLY = ModelReply(
    Message("assistant", "The sum is 3.", (call("add", a=3),), reasoning="1+2"),
    "tool_calls",
    Usage(10, 5, 15, cached_tokens=4, reasoning_tokens=2),
    Tokens((1, 2), (3, 4), (-0.5, -0.25)),
    "policy-7",
)


def client(server: ModelServer, **settings: Any) -> OpenAIModel:
    return OpenAIModel(ModelConfig(llm_base_url=server.base_url, llm_model_name="m", llm_retry_wait=0.001, **settings))


@pytest.mark.parametrize("streamed", [False, True])
async def test_nothing_is_lost_on_the_way(streamed: bool) -> None:
    asked: list[ModelRequest] = []

    def policy(request: ModelRequest) -> ModelReply:
        asked.append(request)
        return REPLY

    deltas: list[Delta] = []
    async with ModelServer(FunctionModel(policy)) as server:
        outcome = await call_model(client(server), REQUEST, on_delta=deltas.append if streamed else None)
        assert server.requests == 1
    (seen,) = asked
    assert seen.messages == REQUEST.messages
    assert seen.tools == REQUEST.tools
    assert seen.output == REQUEST.output
    assert seen.turn == 1
    assert {k: seen.params[k] for k in REQUEST.params} == REQUEST.params
    got = outcome.reply
    assert got.message == Message(
        "assistant", "The sum is 3.", (ToolCall("call_1_0", "add", '{"a":3}'),), reasoning="1+2"
    )
    assert (got.finish_reason, got.usage, got.tokens) == (REPLY.finish_reason, REPLY.usage, REPLY.tokens)
    assert ("".join(d.text for d in deltas if isinstance(d, TextDelta)) == "The sum is 3.") is streamed


async def test_a_script_over_http() -> None:
    async with ModelServer(ScriptedModel([call("add", a=1), "done"])) as server:
        model = client(server)
        first = (await call_model(model, ModelRequest(messages=(Message("user", "hi"),)))).reply
        second = (await call_model(model, ModelRequest(messages=(Message("user", "hi"), first.message)))).reply
        assert first.message.tool_calls == (ToolCall("call_0_0", "add", '{"a":1}'),)
        assert second.message.content == "done"
        assert second.tokens is None
        with pytest.raises(CallFailed, match="has 2 replies") as caught:
            await call_model(model, ModelRequest(messages=(first.message, first.message)))
    assert len(caught.value.outcome.attempts) == 1  # another try would not help, and the status says so


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_models_errors_keep_status_and_wait(streamed: bool) -> None:
    model = FunctionModel(lambda _: ModelError("busy", status=429, retryable=True, retry_after=0.5))
    async with ModelServer(model) as server:
        with pytest.raises(CallFailed, match="busy") as caught:
            await call_model(
                client(server, llm_max_retries=0),
                ModelRequest(messages=(Message("user", "hi"),)),
                on_delta=(lambda _: None) if streamed else None,
            )
    assert (caught.value.status, caught.value.retry_after) == (429, 0.5)


BAD = [
    (b"{", "Not a chat-completions request"),
    (b"\xff", "Not a chat-completions request"),
    (b'{"messages": 5}', "Expected `array`"),
    (b'{"messages": [{"role": "king"}]}', "king"),
    (b'{"messages": [{"role": "user", "content": [{"type": "smell"}]}]}', "a part is text, image_url"),
    (b'{"messages": [{"role": "assistant", "tool_calls": 7}]}', "Not a chat-completions request"),
    (b'{"messages": [{"role": "assistant", "tool_calls": [{"id": 1}]}]}', "function"),
    (b'{"messages": ' + b"[" * 100_000, "Not a chat-completions request"),
    (b'{"messages": [], "response_format": {"type": "json_schema"}}', "Expected `object`"),
]


@pytest.mark.parametrize(("body", "text"), BAD)
async def test_bad_requests_are_answered_with_what_is_wrong(body: bytes, text: str) -> None:
    async with ModelServer(ScriptedModel(["hi"])) as server, aiohttp.ClientSession() as session:
        async with session.post(f"{server.base_url}/chat/completions", data=body) as response:
            answer = await response.json()
        assert response.status == 400
        assert answer["error"]["type"] == "invalid_request_error"
        assert text in answer["error"]["message"]
        async with session.get(f"{server.base_url}/models") as response:
            assert [model["id"] for model in (await response.json())["data"]] == ["scripted"]
