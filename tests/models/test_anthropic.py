"""Anthropic's Messages API against a server that speaks the protocol."""

from __future__ import annotations

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
    ModelRequest,
    OutputSchema,
    ReasoningDelta,
    TextDelta,
    ToolSchema,
)
from aworld.models.anthropic import AnthropicModel
from aworld.models.call import call_model

from .provider import EVENTS, Provider, answer, broken, chunked, event, joined, raw, status, stream

HI = ModelRequest(messages=(Message("user", "hi"),))
THINKING = {"type": "thinking", "thinking": "Add them.", "signature": "sig=="}
USE = {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 1}}


def reply(*content: dict[str, Any], **more: Any) -> dict[str, Any]:
    usage = {"input_tokens": 10, "output_tokens": 5}
    return {"type": "message", "id": "msg_1", "model": "claude-x", "content": content, "usage": usage, **more}


async def test_the_conversation_in_anthropics_words() -> None:
    messages = (
        Message("system", "Be brief."),
        Message(
            "user",
            (
                Text("Look:"),
                Image("data:image/png;base64,AAAA"),
                Image("https://x.example/a.jpg"),
                File("data:application/pdf;base64,BBBB", "a.pdf"),
                File("data:text/plain;base64,aGVsbG8=", "a.txt"),
                File("https://x.example/a.pdf"),
                File(file_id="file_1"),
            ),
        ),
        Message("assistant", "I'll add.", (ToolCall("t1", "add", '{"a":  1}'), ToolCall("t2", "add", "not JSON"))),
        Message("tool", "2", tool_call_id="t1", name="add"),
        Message("tool", "bad arguments", tool_call_id="t2", name="add", is_error=True),
        Message("user", "And now?"),
        Message("assistant", ""),
    )
    tool = ToolSchema("add", "Adds.", {"type": "object", "properties": {}})
    async with Provider(answer(reply({"type": "text", "text": "ok"}, stop_reason="end_turn"))) as provider:
        model = AnthropicModel(provider.config(llm_api_key="sk-ant", llm_stop=["x"], llm_reasoning_effort="low"))
        await model.generate(ModelRequest(messages=messages, tools=(tool,)))
        asked = provider.requests[0]
    assert asked.target == "/v1/messages"
    assert (asked.headers["x-api-key"], asked.headers["anthropic-version"]) == ("sk-ant", "2023-06-01")
    assert asked.json == {
        "model": "m",
        "max_tokens": 8192,
        "stop_sequences": ["x"],
        "output_config": {"effort": "low"},
        "system": "Be brief.",
        "tools": [{"name": "add", "description": "Adds.", "input_schema": tool.parameters}],
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Look:"},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
                    {"type": "image", "source": {"type": "url", "url": "https://x.example/a.jpg"}},
                    {
                        "type": "document",
                        "source": {"type": "base64", "media_type": "application/pdf", "data": "BBBB"},
                        "title": "a.pdf",
                    },
                    {
                        "type": "document",
                        "source": {"type": "text", "media_type": "text/plain", "data": "hello"},
                        "title": "a.txt",
                    },
                    {"type": "document", "source": {"type": "url", "url": "https://x.example/a.pdf"}},
                    {"type": "document", "source": {"type": "file", "file_id": "file_1"}},
                ],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "I'll add."},
                    {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 1}},
                    {"type": "tool_use", "id": "t2", "name": "add", "input": {"arguments": "not JSON"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": "2"},
                    {"type": "tool_result", "tool_use_id": "t2", "content": "bad arguments", "is_error": True},
                    {"type": "text", "text": "And now?"},
                ],
            },
        ],
    }
    assert b'"input":{"a":  1}' in asked.body  # the arguments as the model wrote them


async def test_a_whole_reply_and_its_round_trip() -> None:
    text = {"type": "text", "text": "Let me see."}
    usage = {
        "input_tokens": 10,
        "output_tokens": 5,
        "cache_read_input_tokens": 100,
        "cache_creation_input_tokens": 20,
    }
    whole = reply(THINKING, text, USE, stop_reason="tool_use")
    whole["usage"] = usage
    async with Provider(answer(whole), answer(reply(text, stop_reason="end_turn"))) as provider:
        model = AnthropicModel(provider.config())
        got = await model.generate(HI)
        # As the log would give it back.
        kept = msgspec.json.decode(msgspec.json.encode(got.message), type=Message)
        result = Message("tool", "1", tool_call_id="t1")
        plain = await model.generate(ModelRequest(messages=(*HI.messages, kept, result)))
        sent = provider.requests[1].json["messages"]
    assert got.message.content == "Let me see."
    assert got.message.reasoning == "Add them."
    assert got.message.tool_calls == (ToolCall("t1", "add", '{"a": 1}'),)
    assert (got.finish_reason, got.model, got.response_id) == ("tool_use", "claude-x", "msg_1")
    assert got.usage == Usage(130, 5, 135, cached_tokens=100, cache_write_tokens=20)
    assert sent[1] == {"role": "assistant", "content": [THINKING, text, USE]}
    assert plain.message == Message("assistant", "Let me see.")  # nothing kept where nothing must come back
    # A conversation that goes on with another provider stays valid there.
    assert set(chat_format(got.message)) == {"role", "content", "tool_calls", "reasoning_content"}


def deltas_of(*blocks: tuple[dict[str, Any], list[dict[str, Any]]]) -> list[bytes]:
    out: list[bytes] = []
    for index, (start, pieces) in enumerate(blocks):
        out.append(event({"type": "content_block_start", "index": index, "content_block": start}))
        out += [event({"type": "content_block_delta", "index": index, "delta": piece}) for piece in pieces]
        out.append(event({"type": "content_block_stop", "index": index}))
    return out


START = event({"type": "message_start", "message": reply(stop_reason=None)})
END = [
    event({"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 25}}),
    b"event: message_stop\n" + event({"type": "message_stop"}),
]


async def test_a_streamed_reply() -> None:
    thinking = [
        {"type": "thinking_delta", "thinking": "Add "},
        {"type": "thinking_delta", "thinking": "them."},
        {"type": "signature_delta", "signature": "sig=="},
    ]
    chunks = [
        START,
        event({"type": "ping"}),
        *deltas_of(
            ({"type": "thinking", "thinking": "", "signature": ""}, thinking),
            ({"type": "redacted_thinking", "data": "xx"}, []),
            (
                {"type": "text", "text": ""},
                [{"type": "text_delta", "text": "Let "}, {"type": "text_delta", "text": "me."}],
            ),
            (
                {"type": "tool_use", "id": "t1", "name": "add", "input": {}},
                [{"type": "input_json_delta", "partial_json": p} for p in ("", '{"a"', ": 1}")],
            ),
            ({"type": "tool_use", "id": "t2", "name": "now", "input": {}}, []),
        ),
        *END,
    ]
    async with Provider(stream(chunks), stream(chunks)) as provider:
        model = AnthropicModel(provider.config())
        deltas: list[Delta] = []
        outcome = await call_model(model, HI, on_delta=deltas.append)
        await call_model(model, HI, on_delta=deltas.append)
        assert provider.connections == 1
        assert provider.requests[0].json["stream"] is True
    got = outcome.reply
    assert joined(deltas)[:2] == [ReasoningDelta("Add them."), TextDelta("Let me.")]
    assert got.message.tool_calls == (ToolCall("t1", "add", '{"a": 1}'), ToolCall("t2", "now", "{}"))
    assert got.message.reasoning == "Add them."
    assert got.message.opaque is not None
    assert got.message.opaque["anthropic"]["content"] == [
        THINKING,
        {"type": "redacted_thinking", "data": "xx"},
        {"type": "text", "text": "Let me."},
        USE,
        {"type": "tool_use", "id": "t2", "name": "now", "input": {}},
    ]
    assert got.usage == Usage(10, 25, 35)
    assert got.finish_reason == "tool_use"
    assert got.first_token is not None
    json.dumps(got.message.opaque)


FAULTS = {
    "overloaded": (status(529, {"error": {"type": "overloaded_error", "message": "Overloaded"}}), 529),
    "overloaded in mid-stream": (
        stream([START, event({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})]),
        529,
    ),
    "cut in mid-stream": (broken(EVENTS + chunked(START)), None),
    "ends without an end": (stream([START]), None),
    "not an event": (stream([event(b"{}")]), None),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_streams_that_break_are_asked_for_again(name: str) -> None:
    step, code = FAULTS[name]
    good = [START, *deltas_of(({"type": "text", "text": ""}, [{"type": "text_delta", "text": "ok"}])), *END]
    async with Provider(step, stream(good)) as provider:
        outcome = await call_model(AnthropicModel(provider.config()), HI, on_delta=lambda _: None)
    assert [attempt.status for attempt in outcome.attempts] == [code]
    assert outcome.reply.message.content == "ok"


@pytest.mark.parametrize("body", [b"{", b'{"content": [{"type": "tool_use"}]}', b'{"content": []}', b"<html>"])
async def test_a_reply_that_is_none_is_asked_for_again(body: bytes) -> None:
    async with Provider(raw(body), answer(reply({"type": "text", "text": "ok"}))) as provider:
        outcome = await call_model(AnthropicModel(provider.config()), HI)
    assert len(outcome.attempts) == 1


async def test_structured_output_closes_objects_and_drops_what_the_grammar_does_not_know() -> None:
    schema = {
        "type": "object",
        "properties": {
            "minimum": {"type": "integer", "minimum": 3},
            "list": {"type": "array", "items": {"$ref": "#/$defs/Item"}, "maxItems": 2},
        },
        "required": ["minimum"],
        "$defs": {"Item": {"type": "object", "properties": {"kind": {"enum": ["a", "b"]}}}},
    }
    async with Provider(answer(reply({"type": "text", "text": "{}"}))) as provider:
        model = AnthropicModel(provider.config(llm_reasoning_effort="high"))
        await model.generate(ModelRequest(messages=HI.messages, output=OutputSchema("Out", schema)))
        sent = provider.requests[0].json["output_config"]
    assert sent["effort"] == "high"
    assert sent["format"] == {
        "type": "json_schema",
        "schema": {
            "type": "object",
            "properties": {
                "minimum": {"type": "integer"},
                "list": {"type": "array", "items": {"$ref": "#/$defs/Item"}},
            },
            "required": ["minimum"],
            "$defs": {
                "Item": {
                    "type": "object",
                    "properties": {"kind": {"enum": ["a", "b"]}},
                    "additionalProperties": False,
                }
            },
            "additionalProperties": False,
        },
    }


async def test_what_the_api_cannot_take_is_said() -> None:
    model = AnthropicModel(ModelConfig(llm_model_name="m"))
    with pytest.raises(ModelError, match="no audio"):
        await model.generate(ModelRequest(messages=(Message("user", (Audio("AA=="),)),)))
    with pytest.raises(ConfigError, match="llm_seed"):
        AnthropicModel(ModelConfig(llm_model_name="m", llm_seed=1))
