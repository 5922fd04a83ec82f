"""OpenAI-compatible chat completions against a server that speaks the protocol."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest

from aworld.config.conf import ModelConfig
from aworld.config.errors import ConfigError
from aworld.core.exceptions import ModelError
from aworld.core.message import Audio, File, Image, Message, Text, ToolCall, Usage, chat_format
from aworld.core.model import (
    Delta,
    ModelReply,
    ModelRequest,
    OutputSchema,
    ReasoningDelta,
    TextDelta,
    ToolSchema,
)
from aworld.models.call import call_model
from aworld.models.openai import AzureModel, OpenAIModel

from .provider import DONE, EVENTS, Connection, Provider, answer, chat, chunked, event, joined, piece, stream

ADD = ToolSchema("add", "Adds.", {"type": "object", "properties": {"a": {"type": "integer"}}})
HI = ModelRequest(messages=(Message("user", "hi"),))


async def drained(model: OpenAIModel, request: ModelRequest) -> tuple[list[Delta], ModelReply]:
    deltas: list[Delta] = []
    reply = await model.stream(request, deltas.append)
    return deltas, reply


async def test_what_is_sent_is_the_encoding_of_the_messages() -> None:
    messages = (
        Message("system", "Be brief."),
        Message("user", (Text("Look:"), Image("data:image/png;base64,AA==", "low"), Audio("AA==", "mp3"))),
        Message("user", (File("data:application/pdf;base64,AA==", "a.pdf"),)),
        Message("assistant", None, (ToolCall("c1", "add", '{"a": 1}'),), reasoning="Hm."),
        Message("tool", "1", tool_call_id="c1", name="add"),
    )
    async with Provider(answer(chat())) as provider:
        model = OpenAIModel(provider.config(llm_api_key="sk-secret", llm_temperature=0.5, params={"top_k": 3}))
        await model.generate(ModelRequest(messages=messages, tools=(ADD,), params={"temperature": 0.1}))
        asked = provider.requests[0]
    assert asked.target == "/v1/chat/completions"
    assert asked.headers["authorization"] == "Bearer sk-secret"
    assert asked.headers["content-type"] == "application/json"
    assert msgspec.json.encode([chat_format(m) for m in messages]) in asked.body
    function = {"name": "add", "description": "Adds.", "parameters": ADD.parameters}
    assert asked.json["tools"] == [{"type": "function", "function": function}]
    assert {k: asked.json[k] for k in ("model", "temperature", "top_k")} == {
        "model": "m",
        "temperature": 0.1,
        "top_k": 3,
    }
    assert model.params == {"temperature": 0.5, "top_k": 3}


async def test_a_whole_reply() -> None:
    body = chat("The sum is 3.", message={"reasoning_content": "1+2"})
    body["usage"] = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 2},
        "cost": 0.25,
    }
    async with Provider(answer(body)) as provider:
        reply = await OpenAIModel(provider.config()).generate(HI)
    assert reply.message == Message("assistant", "The sum is 3.", reasoning="1+2")
    assert (reply.finish_reason, reply.model, reply.response_id) == ("stop", "m-2", "c1")
    assert reply.usage == Usage(10, 5, 15, cached_tokens=4, reasoning_tokens=2, cost=0.25)
    assert reply.tokens is None
    assert reply.first_token is None


async def test_what_is_not_said_is_none() -> None:
    async with Provider(answer(chat())) as provider:
        model = OpenAIModel(provider.config(llm_input_price=1.0, llm_output_price=2.0))
        reply = await model.generate(HI)
    assert reply.usage is None
    assert reply.message.reasoning is None
    assert reply.message.opaque is None


async def test_cost_from_the_configured_prices() -> None:
    body = {**chat(), "usage": {"prompt_tokens": 1_000_000, "completion_tokens": 500_000}}
    async with Provider(answer(body), answer(body)) as provider:
        priced = (await call_model(OpenAIModel(provider.config(llm_input_price=2.0, llm_output_price=8.0)), HI)).reply
        half = (await call_model(OpenAIModel(provider.config(llm_input_price=2.0)), HI)).reply
    assert priced.usage is not None
    assert priced.usage.cost == 6.0
    assert half.usage is not None
    assert half.usage.cost is None


CALLS: list[tuple[Any, tuple[ToolCall, ...]]] = [
    (
        [{"id": "a", "type": "function", "function": {"name": "add", "arguments": '{"a":  1}'}}],
        (ToolCall("a", "add", '{"a":  1}'),),
    ),
    ([{"id": "a", "function": {"name": "add", "arguments": {"a": 1}}}], (ToolCall("a", "add", '{"a":1}'),)),
    ([{"id": "a", "function": {"name": "now", "arguments": None}}], (ToolCall("a", "now", "{}"),)),
    (
        [{"function": {"name": "x", "arguments": "{"}}, {"id": "", "function": {"name": "y", "arguments": "{}"}}],
        (ToolCall("call_0", "x", "{"), ToolCall("call_1", "y", "{}")),
    ),
]


@pytest.mark.parametrize(("sent", "read"), CALLS)
async def test_tool_calls_in_each_of_their_forms(sent: Any, read: tuple[ToolCall, ...]) -> None:
    async with Provider(answer(chat(None, message={"tool_calls": sent}, finish_reason="tool_calls"))) as provider:
        reply = await OpenAIModel(provider.config()).generate(HI)
    assert reply.message == Message("assistant", None, read)
    assert reply.finish_reason == "tool_calls"


async def test_the_deprecated_function_call() -> None:
    message = {"function_call": {"name": "add", "arguments": "{}"}}
    async with Provider(answer(chat(None, message=message))) as provider:
        reply = await OpenAIModel(provider.config()).generate(HI)
    assert reply.message.tool_calls == (ToolCall("call_0", "add", "{}"),)


async def test_made_ids_are_unique_within_the_conversation() -> None:
    before = Message("assistant", None, (ToolCall("call_0", "x", "{}"), ToolCall("call_1", "x", "{}")))
    body = chat(None, message={"tool_calls": [{"function": {"name": "x"}}]})
    async with Provider(answer(body)) as provider:
        reply = await OpenAIModel(provider.config()).generate(ModelRequest(messages=(before,)))
    assert reply.message.tool_calls[0].id == "call_2"


async def test_contents_in_parts_refusals_and_unknown_finish_reasons() -> None:
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}
    parts = {"content": [thinking, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    steps = [
        answer(chat(None, message=parts)),
        answer(chat(None, message={"refusal": "I will not."})),
        answer(chat("x", finish_reason="eaten_by_a_grue")),
    ]
    async with Provider(*steps) as provider:
        model = OpenAIModel(provider.config())
        in_parts, refused, odd = [await model.generate(HI) for _ in range(3)]
    assert in_parts.message == Message("assistant", "ab", reasoning="Hm.")
    assert refused.message.content == "I will not."
    assert odd.finish_reason == "eaten_by_a_grue"


async def test_token_ids_and_logprobs_are_captured() -> None:
    body = chat("hi", token_ids=[7, 8, 2], logprobs={"content": [{"token": "h", "logprob": -0.5}, {"logprob": -1.0}]})
    body["prompt_token_ids"] = [1, 2, 3]
    chunks = [
        event({"id": "c", "prompt_token_ids": [1, 2], "choices": [{"index": 0, "delta": {"role": "assistant"}}]}),
        event(
            {"choices": [{"delta": {"content": "h"}, "token_ids": [7], "logprobs": {"content": [{"logprob": -0.5}]}}]}
        ),
        event({"choices": [{"delta": {"content": "i"}, "token_ids": [8, 2], "finish_reason": "stop"}]}),
        DONE,
    ]
    async with Provider(answer(body), stream(chunks)) as provider:
        model = OpenAIModel(provider.config(llm_capture_tokens=True))
        whole = await model.generate(HI)
        _, streamed = await drained(model, HI)
        asked = provider.requests[0].json
    assert (asked["return_token_ids"], asked["logprobs"], asked["top_logprobs"]) == (True, True, 0)
    assert whole.tokens is not None
    assert (whole.tokens.prompt_ids, whole.tokens.completion_ids) == ((1, 2, 3), (7, 8, 2))
    assert whole.tokens.logprobs == (-0.5, -1.0)
    assert whole.tokens.level == "tokens"
    assert streamed.tokens is not None
    assert (streamed.tokens.prompt_ids, streamed.tokens.completion_ids) == ((1, 2), (7, 8, 2))
    assert streamed.tokens.logprobs == (-0.5,)


async def test_logprobs_alone() -> None:
    async with Provider(answer(chat("hi", logprobs={"content": [{"logprob": -0.5}]}))) as provider:
        reply = await OpenAIModel(provider.config()).generate(HI)
    assert reply.tokens is not None
    assert (reply.tokens.prompt_ids, reply.tokens.completion_ids, reply.tokens.level) == (None, None, "logprobs")


async def test_a_streamed_reply() -> None:
    chunks = [
        b": open\n\n",
        piece(role="assistant", content=""),
        piece(reasoning_content="Let me "),
        piece(reasoning="see."),
        piece(content="Hel") + piece(content="lo"),
        piece("stop"),
        event({"id": "c1", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}),
        DONE,
    ]
    async with Provider(stream(chunks), stream(chunks)) as provider:
        model = OpenAIModel(provider.config())
        deltas, reply = await drained(model, HI)
        await drained(model, HI)
        asked = provider.requests[0].json
        connections = provider.connections
    assert (asked["stream"], asked["stream_options"]) == (True, {"include_usage": True})
    assert joined(deltas) == [ReasoningDelta("Let me see."), TextDelta("Hello")]
    assert reply.message == Message("assistant", "Hello", reasoning="Let me see.")
    assert reply.usage == Usage(3, 2, 5)
    assert (reply.finish_reason, reply.model, reply.response_id) == ("stop", "m-2", "c1")
    assert reply.first_token is not None
    assert connections == 1  # a stream that was read to its end leaves the connection usable


async def test_a_stream_whose_end_comes_late_leaves_the_connection_usable() -> None:
    async def late(connection: Connection) -> None:
        await connection.send(EVENTS + chunked(piece("stop", content="x")) + chunked(DONE))
        await asyncio.sleep(0.01)  # the client has read the last event by now
        await connection.send(b"0\r\n\r\n")

    async with Provider(late, answer(chat())) as provider:
        model = OpenAIModel(provider.config())
        await drained(model, HI)
        await model.generate(HI)
        assert provider.connections == 1


async def test_streamed_tool_calls_are_joined() -> None:
    def call(index: int | None, id: str | None, name: str | None, arguments: str) -> dict[str, Any]:
        return {"index": index, "id": id, "function": {"name": name, "arguments": arguments}}

    parallel = [
        piece(role="assistant", content=None),
        piece(tool_calls=[call(0, "a", "add", "")]),
        piece(tool_calls=[call(0, None, None, '{"a":')]),
        piece(tool_calls=[call(1, "b", "mul", "{}"), call(0, None, None, "1}")]),
        piece("tool_calls"),
        DONE,
    ]
    without_index = [
        piece(tool_calls=[call(None, "a", "add", '{"a"')]),
        piece(tool_calls=[call(None, None, None, ":1}")]),
        piece(tool_calls=[call(None, "b", "mul", "{}")], finish_reason="tool_calls"),
        DONE,
    ]
    same_index = [
        piece(tool_calls=[call(0, "a", "add", '{"a":1}')]),
        piece(tool_calls=[call(0, "b", "mul", "{}")]),
        DONE,
    ]
    async with Provider(stream(parallel), stream(without_index), stream(same_index)) as provider:
        model = OpenAIModel(provider.config())
        replies = [(await drained(model, HI))[1] for _ in range(3)]
    for reply in replies:
        assert reply.message == Message(
            "assistant", None, (ToolCall("a", "add", '{"a":1}'), ToolCall("b", "mul", "{}"))
        )


async def test_a_server_that_does_not_stream_answers_whole() -> None:
    async with Provider(answer(chat("all at once"))) as provider:
        deltas, reply = await drained(OpenAIModel(provider.config()), HI)
    assert deltas == [TextDelta("all at once")]
    assert reply.message.content == "all at once"


async def test_what_a_provider_wants_back_goes_back_to_it_and_to_nobody_else() -> None:
    details = [{"type": "reasoning.text", "text": "Hm", "index": 0}, {"type": "reasoning.encrypted", "data": "xx"}]
    extra = {"google": {"thought_signature": "s"}}
    calls = [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}, "extra_content": extra}]
    whole = chat("ok", message={"reasoning_details": details, "tool_calls": calls})
    chunks = [
        piece(reasoning_details=[{"type": "reasoning.text", "text": "H", "index": 0}]),
        piece(reasoning_details=[{"type": "reasoning.text", "text": "m", "index": 0}, details[1]]),
        piece("stop", content="ok", tool_calls=calls),
        DONE,
    ]
    async with Provider(answer(whole), stream(chunks), answer(chat())) as provider:
        model = OpenAIModel(provider.config())
        reply = await model.generate(HI)
        _, streamed = await drained(model, HI)
        await model.generate(ModelRequest(messages=(*HI.messages, reply.message)))
        sent = provider.requests[2].json["messages"][1]
    assert streamed.message.opaque == reply.message.opaque
    assert (sent["reasoning_details"], sent["tool_calls"]) == (details, calls)
    official = OpenAIModel(ModelConfig(llm_model_name="m")).body(ModelRequest(messages=(reply.message,)))
    plain = {key: value for key, value in calls[0].items() if key != "extra_content"}
    assert official["messages"] == [{"role": "assistant", "content": "ok", "tool_calls": [plain]}]
    foreign = Message("assistant", "x", opaque={"anthropic": {"content": []}})
    assert chat_format(foreign) == {"role": "assistant", "content": "x"}


async def test_structured_output() -> None:
    closed = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    opened = {"type": "object", "properties": {"a": {"type": "integer"}}}
    async with Provider(answer(chat()), answer(chat())) as provider:
        model = OpenAIModel(provider.config())
        for schema in (closed, opened):
            await model.generate(ModelRequest(messages=HI.messages, output=OutputSchema("Sum", schema)))
        first, second = [exchange.json["response_format"] for exchange in provider.requests]
    assert first == {"type": "json_schema", "json_schema": {"name": "Sum", "schema": closed, "strict": True}}
    assert second == {"type": "json_schema", "json_schema": {"name": "Sum", "schema": opened}}


def test_settings_in_the_words_of_the_api() -> None:
    settings: dict[str, Any] = {
        "llm_model_name": "m",
        "llm_max_tokens": 9,
        "llm_seed": 1,
        "llm_stop": ["x"],
        "llm_top_p": 0.5,
        "llm_reasoning_effort": "low",
    }
    known = {"seed": 1, "stop": ["x"], "top_p": 0.5, "reasoning_effort": "low"}
    assert OpenAIModel(ModelConfig(**settings)).params == {**known, "max_tokens": 9}
    local = OpenAIModel(ModelConfig(**settings, llm_base_url="http://127.0.0.1:1/v1"))
    assert local.params == {**known, "max_tokens": 9}


async def test_azure_addresses_and_header() -> None:
    async with Provider(answer(chat()), answer(chat())) as provider:
        root = provider.base_url.removesuffix("/v1")
        await AzureModel(provider.config(llm_base_url=root, llm_api_key="azure-key")).generate(HI)
        await AzureModel(provider.config(llm_base_url=f"{root}/openai/v1/")).generate(HI)
        old, new = provider.requests
    assert old.target == "/openai/deployments/m/chat/completions?api-version=2024-10-21"
    assert old.headers["api-key"] == "azure-key"
    assert "authorization" not in old.headers
    assert new.target == "/openai/v1/chat/completions"
    with pytest.raises(ConfigError, match="AZURE_OPENAI_ENDPOINT"):
        AzureModel(ModelConfig(llm_model_name="m"))


async def test_a_request_that_json_cannot_say() -> None:
    model = OpenAIModel(ModelConfig(llm_model_name="m"))
    with pytest.raises(ModelError, match="cannot be written as JSON") as caught:
        await model.generate(ModelRequest(messages=(Message("user", "\ud800"),)))
    assert not caught.value.retryable


async def test_a_large_request_and_a_reply_of_10_mb() -> None:
    text = "x" * 10_000_000
    async with Provider(answer(chat(text))) as provider:
        reply = await OpenAIModel(provider.config()).generate(ModelRequest(messages=(Message("user", text),)))
        sent = provider.requests[0].body
    assert reply.message.content == text
    assert json.loads(sent)["messages"][0]["content"] == text


def test_parameters_never_take_the_place_of_the_messages() -> None:
    model = OpenAIModel(ModelConfig(llm_model_name="m"))
    body = model.body(ModelRequest((Message("user", "hi"),), params={"messages": [], "seed": 1}))
    assert (body["messages"], body["seed"]) == ([{"role": "user", "content": "hi"}], 1)
