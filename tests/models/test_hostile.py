"""A provider that means harm: whatever it sends, a call ends in time, with a reply that can be written or an error in
words."""

from __future__ import annotations

import asyncio
import base64
import copy
import gzip
import json
import re
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any, cast

import msgspec
import pytest

from aworld.agents.llm_agent import Agent
from aworld.config.conf import AgentConfig
from aworld.core.exceptions import ConfigError
from aworld.core.message import Message, Usage
from aworld.core.model import ModelReply, ModelRequest
from aworld.core.output import RunFinished
from aworld.models import CallFailed, call_model, http
from aworld.models.anthropic import AnthropicModel
from aworld.models.gemini import GeminiModel
from aworld.models.openai import OpenAIModel
from aworld.models.openai_responses import ResponsesModel
from aworld.runner import Runners

from .provider import EVENTS, Connection, Provider, Step, chunked, event, head, raw, stalled, stream

HI = ModelRequest(messages=(Message("user", "hi"),))
Model = OpenAIModel | AnthropicModel | ResponsesModel | GeminiModel
DEEP: Any = "@deep@"
ODD: list[Any] = [
    None,
    True,
    5,
    -1,
    3.5,
    "x",
    "",
    "\ud800",
    "\x00",
    [],
    [None],
    [5],
    ["x"],
    [[]],
    [{}],
    {},
    {"a": 5},
    {"type": 5},
    10**40,
    DEEP,
]

CALL = {"id": "c", "index": 0, "type": "function", "function": {"name": "add", "arguments": "{}"}, "extra_content": {}}
SAID = {
    "role": "assistant",
    "content": "x",
    "reasoning_content": "y",
    "refusal": None,
    "tool_calls": [CALL],
    "reasoning_details": [{"type": "t", "index": 0, "text": "z"}],
}
COMPLETION: dict[str, Any] = {
    "id": "c1",
    "model": "m",
    "choices": [
        {
            "index": 0,
            "finish_reason": "stop",
            "message": SAID,
            "token_ids": [1],
            "prompt_token_ids": [2],
            "logprobs": {"content": [{"logprob": -0.5}]},
        }
    ],
    "usage": {
        "prompt_tokens": 1,
        "completion_tokens": 2,
        "total_tokens": 3,
        "cost": 0.5,
        "prompt_tokens_details": {"cached_tokens": 1},
        "completion_tokens_details": {"reasoning_tokens": 1},
    },
    "error": None,
}
CHUNK = {**COMPLETION, "choices": [{"delta" if k == "message" else k: v for k, v in COMPLETION["choices"][0].items()}]}
USAGE = {"input_tokens": 1, "output_tokens": 2, "cache_read_input_tokens": 0}
MESSAGE: dict[str, Any] = {
    "type": "message",
    "id": "m",
    "model": "c",
    "stop_reason": "end_turn",
    "usage": USAGE,
    "content": [
        {"type": "thinking", "thinking": "y", "signature": "s"},
        {"type": "text", "text": "x"},
        {"type": "tool_use", "id": "t", "name": "add", "input": {}},
    ],
}
MESSAGE_EVENTS: list[dict[str, Any]] = [
    {"type": "message_start", "message": {"id": "m", "model": "c", "usage": USAGE, "content": []}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": "", "signature": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "y"}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "s"}},
    {
        "type": "content_block_start",
        "index": 1,
        "content_block": {"type": "tool_use", "id": "t", "name": "a", "input": {}},
    },
    {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": "{}"}},
    {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": USAGE},
    {"type": "message_stop"},
]


RESPONSE: dict[str, Any] = {
    "id": "r",
    "model": "g",
    "status": "completed",
    "error": None,
    "incomplete_details": None,
    "usage": {**USAGE, "input_tokens_details": {"cached_tokens": 1}, "output_tokens_details": {"reasoning_tokens": 1}},
    "output": [
        {"type": "reasoning", "id": "i", "summary": [{"type": "summary_text", "text": "y"}], "encrypted_content": "e"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "x", "annotations": []}]},
        {"type": "function_call", "id": "f", "call_id": "c", "name": "add", "arguments": "{}"},
    ],
}
RESPONSE_EVENTS: list[dict[str, Any]] = [
    {"type": "response.created", "response": {"id": "r", "output": []}},
    {"type": "response.reasoning_summary_text.delta", "output_index": 0, "summary_index": 0, "delta": "y"},
    {"type": "response.output_text.delta", "output_index": 1, "delta": "x"},
    {"type": "response.output_item.done", "output_index": 1, "item": RESPONSE["output"][1]},
    {"type": "response.function_call_arguments.delta", "output_index": 2, "delta": "{}"},
    {"type": "response.completed", "response": {**RESPONSE, "output": RESPONSE["output"][1:]}},
]
GENERATED: dict[str, Any] = {
    "candidates": [
        {
            "index": 0,
            "finishReason": "STOP",
            "content": {
                "role": "model",
                "parts": [
                    {"text": "y", "thought": True},
                    {"text": "x", "thoughtSignature": "s"},
                    {"functionCall": {"id": "c", "name": "add", "args": {"a": 1}}, "thoughtSignature": "s"},
                ],
            },
        }
    ],
    "usageMetadata": {"promptTokenCount": 1, "candidatesTokenCount": 2, "thoughtsTokenCount": 1, "totalTokenCount": 4},
    "promptFeedback": {"blockReason": None},
    "modelVersion": "g",
    "responseId": "r",
    "error": None,
}


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    if isinstance(value, dict | list):
        inside = cast("dict[Any, Any] | list[Any]", value)
        for key in inside if isinstance(inside, dict) else range(len(inside)):
            yield from places(inside[key], (*at, key))


def spoilt(value: Any, at: tuple[Any, ...], odd: Any) -> Any:
    if not at:
        return odd
    value = copy.copy(value)
    value[at[0]] = spoilt(value[at[0]], at[1:], odd)
    return value


def written(value: Any) -> bytes:
    return json.dumps(value).replace('"@deep@"', "[" * 3000 + "]" * 3000).encode()


def variants(value: Any) -> Iterator[Any]:
    for at in places(value):
        for odd in ODD:
            yield spoilt(value, at, odd)
        if at and isinstance(at[-1], str):  # left out
            short = copy.deepcopy(value)
            parent = short
            for key in at[:-1]:
                parent = parent[key]
            del parent[at[-1]]
            yield short


CASES: dict[str, tuple[type[Model], bool, Any]] = {
    "a completion": (OpenAIModel, False, COMPLETION),
    "a chunk": (OpenAIModel, True, [CHUNK]),
    "a message": (AnthropicModel, False, MESSAGE),
    "events": (AnthropicModel, True, MESSAGE_EVENTS),
    "a response": (ResponsesModel, False, RESPONSE),
    "events of a response": (ResponsesModel, True, RESPONSE_EVENTS),
    "a generated content": (GeminiModel, False, GENERATED),
    "generated contents": (GeminiModel, True, [GENERATED]),
}


@pytest.mark.parametrize("name", CASES)
async def test_a_wrong_type_at_each_place(name: str) -> None:
    kind, streamed, value = CASES[name]
    sent = list(variants(value))
    steps: list[Step] = []
    for one in sent:
        if streamed and isinstance(one, list):
            events = cast("list[Any]", one)
            steps.append(stream([b"".join(event(written(part)) for part in events) + event(b"[DONE]")]))
        else:
            steps.append(raw(written(one)))
    good, texts = 0, list[str]()
    async with Provider(*steps) as provider:
        model = kind(provider.config(llm_max_retries=0))
        for one in sent:
            try:
                outcome = await call_model(model, HI, on_delta=(lambda _: None) if streamed else None)
            except CallFailed as error:
                texts.append(str(error))
            except Exception as error:
                raise AssertionError(f"{error!r} for {one}") from error
            else:
                good += 1
                data = msgspec.json.encode(outcome.reply)
                assert msgspec.json.decode(data, type=ModelReply) == outcome.reply, one
                msgspec.json.encode(model.body(ModelRequest((*HI.messages, outcome.reply.message))))
    assert all(texts)
    assert len(sent) / 4 < good < len(sent)


@pytest.mark.parametrize("figure", [b'"nan"', b"NaN", b"1e999", b"-5", b'"-inf"'])
async def test_figures_that_no_call_has_make_no_room_in_a_budget(figure: bytes) -> None:
    usage = b'{"cost": %b, "prompt_tokens": -9, "completion_tokens": -9, "total_tokens": -9}' % figure
    reply = b'{"choices": [{"message": {"content": "x"}}], "usage": %b}' % usage
    async with Provider(raw(reply)) as provider:
        outcome = await call_model(OpenAIModel(provider.config(llm_max_retries=0)), HI)
    assert outcome.reply.usage == Usage()


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", CASES)
async def test_bytes_that_are_no_text_at_each_place(name: str, streamed: bool) -> None:
    kind, is_stream, value = CASES[name]
    if is_stream is not streamed:
        return
    sent: list[bytes] = []
    for one in [spoilt(value, at, "@bad@") for at in places(value) if at]:
        parts = [event(written(part)) for part in one] + [event(b"[DONE]")] if streamed else [written(one)]
        sent.append(b"".join(parts).replace(b"@bad@", b"a\xff"))
    async with Provider(*(stream([data]) if streamed else raw(data) for data in sent)) as provider:
        model = kind(provider.config(llm_max_retries=0))
        for data in sent:
            try:
                outcome = await call_model(model, HI, on_delta=(lambda _: None) if streamed else None)
                msgspec.json.decode(msgspec.json.encode(outcome.reply), type=ModelReply)
            except CallFailed:
                continue
            except Exception as error:
                raise AssertionError(f"{error!r} for {data!r}") from error


JSON = {"Content-Type": "application/json"}
SSE = {"Content-Type": "text/event-stream"}


def dripping(start: bytes, drop: bytes, pause: float = 0.01) -> Step:
    """Send bytes for as long as somebody listens."""

    async def step(connection: Connection) -> None:
        await connection.send(start)
        while not connection.released.is_set():
            await connection.send(drop)
            await asyncio.sleep(pause)

    return step


def sized(body: bytes, length: int, **headers: str) -> bytes:
    return head(200, {**JSON, "Content-Length": str(length), **headers}) + body


BOMB = gzip.compress(b"\n" * (32 << 20))
TRANSPORTS: dict[str, tuple[Step, str]] = {
    "slow bytes of a body": (dripping(sized(b"", 10**9), b" "), "llm_timeout"),
    "slow bytes of a line": (dripping(EVENTS, chunked(b"x")), "llm_timeout"),
    "comments for ever": (dripping(EVENTS, chunked(b": ping\n\n")), "llm_timeout"),
    "empty deltas for ever": (
        dripping(EVENTS, chunked(event({"choices": [{"delta": {"content": ""}}]}))),
        "llm_timeout",
    ),
    "pieces of white space for ever": (
        dripping(EVENTS, chunked(event({"choices": [{"delta": {"content": " "}}]}))),
        "llm_timeout",
    ),
    "slow bytes of a head": (dripping(b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n"), "llm_timeout|broken HTTP reply"),
    "one header without end": (dripping(b"HTTP/1.1 200 OK\r\nX-A: ", b"b" * 9000, 0), "broken HTTP reply|llm_timeout"),
    "a line without end": (dripping(EVENTS, chunked(b"x" * 60_000), 0), "more than 1 MB"),
    "data lines without end": (dripping(EVENTS, chunked(b"data: " + b"x" * 60_000 + b"\n"), 0), "more than 1 MB"),
    "a body without end": (dripping(sized(b"", 10**12), b"x" * 60_000, 0), "more than 1 MB"),
    "line ends without end": (dripping(EVENTS, chunked(b"\r" * 60_000), 0), "more than 1 MB|llm_timeout"),
    "a bomb": (raw(BOMB, Content_Encoding="gzip"), "more than 1 MB"),
    "a bomb in a stream": (raw(BOMB, 200, "text/event-stream", Content_Encoding="gzip"), "more than 1 MB"),
    "a bomb in a refusal": (raw(BOMB, 400, Content_Encoding="gzip"), "more than 1 MB"),
    "a bomb in a bomb": (raw(gzip.compress(BOMB), Content_Encoding="gzip, gzip"), "."),
    "no gzip": (raw(b"plain", Content_Encoding="gzip"), "broken HTTP reply|cut the connection"),
    "an unknown coding": (raw(b"plain", Content_Encoding="zebra"), "is not a reply|instead of"),
    "an unknown charset": (raw(b"{}", 200, "application/json; charset=zebra"), "no choices|only the beginning"),
    "more than was announced": (stalled(sized(b"{}extra", 2)), "no choices|is not a reply|broken HTTP reply"),
    "less than was announced": (stalled(sized(b"{}", 9)), "llm_timeout|llm_stall_timeout"),
    "a chunk of garbage": (stalled(EVENTS + b"zz\r\nxx\r\n"), "broken HTTP reply|cut the connection"),
    "a chunk of any size": (stalled(EVENTS + b"ffffffffffffffffff\r\n"), "broken HTTP reply|cut the connection|llm_"),
    "two lengths": (
        stalled(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx"),
        "broken HTTP reply",
    ),
    "a status of letters": (stalled(b"HTTP/1.1 abc OK\r\n\r\n"), "broken HTTP reply"),
    "a status of 999": (raw(b"odd", 999), "answered 999: odd"),
    "no status for ever": (
        dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        "llm_timeout|llm_stall_timeout|could not|closed",
    ),
    "switching protocols": (
        stalled(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"),
        ".",
    ),
    "no content": (raw(b"", 204), "is not a reply|instead of"),
    "a redirect in circles": (raw(b"", 307, Location="/v1/chat/completions"), "set llm_base_url"),
    "a redirect to a file": (raw(b"", 302, Location="file:///etc/passwd"), "set llm_base_url"),
    "a redirect with line ends": (raw(b"", 302, Location="http://x/%0d%0aX: y"), "set llm_base_url"),
    "retry in a year": (raw(b"{}", 429, Retry_After="31536000"), "answered 429"),
    "retry at no time": (raw(b"{}", 429, Retry_After="inf"), "answered 429"),
    "retry at nan": (raw(b"{}", 429, Retry_After="nan"), "answered 429"),
    "retry at a date far away": (raw(b"{}", 429, Retry_After="Fri, 31 Dec 999999 23:59:59 GMT"), "answered 429"),
    "escapes in an error": (raw(b'{"error": {"message": "\\u001b]0;x\\u0007 \\ud800"}}', 400), "answered 400"),
}


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", TRANSPORTS)
async def test_a_transport_that_means_harm(name: str, streamed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_REPLY", 1 << 20)
    step, said = TRANSPORTS[name]
    async with Provider(step) as provider:
        conf = AgentConfig(
            llm_config=provider.config(llm_max_retries=0, llm_timeout=0.5, llm_stall_timeout=0.25, llm_api_key="sk-key")
        )
        agent = Agent("a", conf)
        began = time.monotonic()
        tracemalloc.start()
        try:
            if streamed:
                outputs = [output async for output in Runners.streaming_run("hi", agent=agent)]
                assert isinstance(outputs[-1], RunFinished)
                response = outputs[-1].response
            else:
                response = await Runners.run("hi", agent=agent)
            most = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert response.status == "failed"
    assert str(response.error).encode()
    assert time.monotonic() - began < 8
    assert most < 24 << 20
    assert re.search(said, str(response.error)), response.error
    assert not re.search(r"raised \w*(Error|Exception)", str(response.error))


async def test_a_password_in_an_address_is_not_told_when_the_server_sends_it_back() -> None:
    sent = base64.b64encode(b"user:hunter22").decode()
    async with Provider(raw(b'{"error": {"message": "who is %b?"}}' % sent.encode(), 401)) as provider:
        config = provider.config(llm_max_retries=0, llm_api_key=None)
        config.llm_base_url = str(config.llm_base_url).replace("://", "://user:hunter22@")
        with pytest.raises(CallFailed, match=r"who is \*\*\*\?"):
            await call_model(OpenAIModel(config), HI)
    with pytest.raises(ConfigError, match="llm_base_url has a user, and there is a key"):
        OpenAIModel(config.model_copy(update={"llm_api_key": "sk-key"}))
