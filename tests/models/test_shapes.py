"""What servers send beside their protocols: read where its sense is clear, else an error that may pass. However the
bytes are cut on their way, it is the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from msgspec import Struct

from aworld.core.exceptions import ModelError
from aworld.core.message import Message, ToolCall, Usage
from aworld.core.model import Delta, ModelReply, ModelRequest, TextDelta
from aworld.models.anthropic import AnthropicModel
from aworld.models.gemini import GeminiModel
from aworld.models.openai import OpenAIModel
from aworld.models.openai_responses import ResponsesModel

from .provider import DONE, Provider, Step, chat, event, piece, raw, stream

HI = ModelRequest(messages=(Message("user", "hi"),))
Seen = Callable[[ModelReply], Any]


class Refused(Struct):
    """An error whose text has this, and that may pass."""

    text: str


def text(reply: ModelReply) -> Any:
    return reply.message.content


def calls(reply: ModelReply) -> Any:
    return [(call.name, call.arguments) for call in reply.message.tool_calls]


def use(index: int | None = 0, id: Any = "a", name: str | None = "add", arguments: Any = "{}") -> dict[str, Any]:
    """A piece of a tool call, without what is None."""
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    return {key: value for key, value in (("index", index), ("id", id)) if value is not None} | {"function": function}


def half(escape: str, **fields: Any) -> bytes:
    """A chunk whose text ends or begins with half of a character, as a proxy that cuts UTF-16 writes it."""
    return event(
        json.dumps({"id": "c1", "choices": [{"index": 0, "delta": {"content": "@"}}], **fields})
        .replace("@", escape)
        .encode()
    )


END = [piece("stop"), DONE]
CHAT_STREAMS: dict[str, tuple[list[bytes], Seen, Any]] = {
    "a surrogate pair in two chunks": ([half("a\\ud83d"), half("\\ude00b"), *END], text, "a😀b"),
    "a lone surrogate": ([half("a\\ude00b"), *END], text, "a\ufffdb"),
    'a finish reason of "" and a cut': ([piece("", content="hal")], text, Refused("only the beginning")),
    'a finish reason of "" until the end': (
        [piece("", content="who"), piece("stop", content="le"), DONE],
        text,
        "whole",
    ),
    "an error event": (
        [piece(content="hal"), b"event: error\n" + event({"message": "engine died"}), DONE],
        text,
        Refused("engine died"),
    ),
    "an error in FastAPI's words": ([event({"detail": "no GPU"}), DONE], text, Refused("no GPU")),
    "an error of vLLM": (
        [event({"object": "error", "message": "too busy", "code": 503}), DONE],
        text,
        Refused("too busy"),
    ),
    "no index, one id": (
        [
            piece(tool_calls=[use(None, arguments='{"a"')]),
            piece(tool_calls=[use(None, name=None, arguments=": 1}")]),
            piece("tool_calls"),
            DONE,
        ],
        calls,
        [("add", '{"a": 1}')],
    ),
    "no index, two ids": (
        [piece(tool_calls=[use(None), use(None, "b", "sub")]), piece("tool_calls"), DONE],
        calls,
        [("add", "{}"), ("sub", "{}")],
    ),
    "text after the end": ([piece("stop", content="all"), DONE + piece(content=" and more")], text, "all"),
    "usage of floats": (
        [
            piece("stop", content="x"),
            event({"choices": [], "usage": {"prompt_tokens": 3.5, "completion_tokens": 2}}),
            DONE,
        ],
        lambda reply: reply.usage,
        Usage(output_tokens=2),
    ),
    "null among the calls": ([piece("stop", content="x", tool_calls=[None]), DONE], text, "x"),
    "a list of parts with null": ([piece("stop", content=[None, {"text": "x"}]), DONE], text, "x"),
    "content of a wrong type": ([piece("stop", content=5), DONE], text, Refused("not a reply")),
    "calls of a wrong type": ([piece("stop", tool_calls=5), DONE], text, Refused("not a reply")),
    "an event of brackets": ([event(b"[" * 50_000)], text, Refused("not a reply")),
    "numbers too large": ([event(b'{"id": 1e999, "choices": []}'), piece("stop", content="x"), DONE], text, "x"),
}


def logprobs(*values: Any) -> dict[str, Any]:
    return {"logprobs": {"content": [{"token": "x", "logprob": value} for value in values]}}


CHAT_WHOLES: dict[str, tuple[Any, Seen, Any]] = {
    "usage of floats": (
        {**chat("x"), "usage": {"prompt_tokens": 3.5, "total_tokens": 4}},
        lambda r: r.usage,
        Usage(total_tokens=4),
    ),
    "usage as a list": ({**chat("x"), "usage": [1]}, lambda r: (text(r), r.usage), ("x", None)),
    "usage with odd details": (
        {**chat("x"), "usage": {"prompt_tokens": 1, "prompt_tokens_details": [], "cost": "free"}},
        lambda r: r.usage,
        Usage(input_tokens=1),
    ),
    "a number for a model": ({**chat("x"), "model": 4}, lambda r: (text(r), r.model), ("x", None)),
    "a log-probability of null": (chat("x", **logprobs(-1.0, None)), lambda r: (text(r), r.tokens), ("x", None)),
    "odd token ids": (chat("x", token_ids=[1, "a"], **logprobs(-1.0)), lambda r: (text(r), r.tokens), ("x", None)),
    "null among the calls": (chat("x", message={"tool_calls": [None]}), lambda r: (text(r), calls(r)), ("x", [])),
    "null among the choices": ({"choices": [None, *chat("x")["choices"]]}, text, "x"),
    "a finish reason of 5": (chat("x", finish_reason=5), lambda r: (text(r), r.finish_reason), ("x", None)),
    "two calls without ids": (
        chat(None, message={"tool_calls": [use(None, None), use(None, None, "sub")]}),
        calls,
        [("add", "{}"), ("sub", "{}")],
    ),
    "a choice of text": ({"choices": ["x"]}, text, Refused("not a reply")),
    "a message of text": ({"choices": [{"message": "x"}]}, text, Refused("not a reply")),
    "no message": ({"choices": [{"finish_reason": "stop"}]}, text, Refused("not a whole reply")),
}


def block(kind: str | None, index: int = 0, **fields: Any) -> bytes:
    content = None if kind is None else {"type": kind, **fields}
    return event({"type": "content_block_start", "index": index, "content_block": content})


def grown(kind: str, index: int = 0, **fields: Any) -> bytes:
    return event({"type": "content_block_delta", "index": index, "delta": {"type": kind, **fields}})


def usage(**figures: Any) -> dict[str, Any]:
    return {"input_tokens": 1, "output_tokens": 2, **figures}


BEGIN = event({"type": "message_start", "message": {"id": "m", "model": "c", "usage": usage()}})
STOP = event({"type": "message_stop"})
THOUGHT = [
    block("thinking", thinking="", signature=""),
    grown("thinking_delta", thinking="Hm."),
    grown("signature_delta", signature="s"),
]


def stopped(reason: Any) -> list[bytes]:
    return [event({"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": 9}}), STOP]


def cut(*before: bytes) -> list[bytes]:
    """A call whose arguments `max_tokens` has cut."""
    return [
        BEGIN,
        *before,
        block("tool_use", 1, id="t1", name="add", input={}),
        grown("input_json_delta", 1, partial_json='{"a": 1, "b": "cut'),
        *stopped("max_tokens"),
    ]


OK = [block("text", text=""), grown("text_delta", text="ok"), *stopped("end_turn")]
MESSAGE_STREAMS: dict[str, tuple[list[bytes], Seen, Any]] = {
    "a call that was cut": (cut(), calls, [("add", '{"a": 1, "b": "cut')]),
    "a call that was cut, with thinking": (cut(*THOUGHT), calls, [("add", '{"a": 1, "b": "cut')]),
    "a null for a block": (
        [BEGIN, block(None), grown("text_delta", text="x"), *stopped("end_turn")],
        text,
        Refused("not begun"),
    ),
    "no start of a block": ([BEGIN, grown("text_delta", text="x"), *stopped("end_turn")], text, Refused("not begun")),
    "a call without an id": (
        [BEGIN, block("tool_use", name="add", input={}), *stopped("tool_use")],
        calls,
        Refused("without an id"),
    ),
    "a call with an id of null": (
        [BEGIN, block("tool_use", id=None, name="add", input={}), *stopped("tool_use")],
        calls,
        Refused("not a whole reply"),
    ),
    "a text of null": ([BEGIN, block("text", text=None), *stopped("end_turn")], text, Refused("not a whole reply")),
    "a text of null that grows": (
        [BEGIN, block("text", text=None), grown("text_delta", text="ok"), *stopped("end_turn")],
        text,
        "ok",
    ),
    "a piece of null": (
        [BEGIN, block("text", text=""), grown("text_delta", text=None), grown("text_delta", text="ok"), *stopped("x")],
        text,
        "ok",
    ),
    "an event of a kind to come": ([BEGIN, event({"type": "weather", "delta": "rain", "index": "x"}), *OK], text, "ok"),
    "a piece of a kind to come": (
        [BEGIN, block("text", text=""), grown("poem_delta", poem=[1]), grown("text_delta", text="ok"), *stopped("x")],
        text,
        "ok",
    ),
    "a block of a kind to come": ([BEGIN, block("poem", 7, lines=[1]), *OK], text, "ok"),
    "a block without a type": (
        [BEGIN, event({"type": "content_block_start", "index": 0, "content_block": {}}), STOP],
        text,
        Refused("not a whole reply"),
    ),
    "odd figures": (
        [event({"type": "message_start", "message": {"id": 5, "model": 7, "usage": usage(input_tokens="x")}}), *OK],
        lambda reply: (text(reply), reply.model, reply.usage),
        ("ok", None, Usage(output_tokens=9)),
    ),
    "a surrogate pair in two pieces": (
        [
            BEGIN,
            block("text", text=""),
            grown("text_delta", text="@").replace(b"@", b"a\\ud83d"),
            grown("text_delta", text="@").replace(b"@", b"\\ude00b"),
            *stopped("end_turn"),
        ],
        text,
        "a😀b",
    ),
    "an event after the end": ([BEGIN, *OK, grown("text_delta", text=" and more")], text, "ok"),
    "a whole reply instead": ([], text, "ok"),
    "an event of brackets": (
        [event(b'{"type": "content_block_delta", "delta": ' + b"[" * 50_000)],
        text,
        Refused("not a reply"),
    ),
}


def whole(*content: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "message", "id": "m", "model": "c", "content": content, "stop_reason": "end_turn", **fields}


SAY = {"type": "text", "text": "ok"}
MESSAGE_WHOLES: dict[str, tuple[Any, Seen, Any]] = {
    "a text of null": (whole({"type": "text", "text": None}), text, Refused("not a whole reply")),
    "a thought of null": (whole({"type": "thinking", "thinking": None}), text, Refused("not a whole reply")),
    "a null for a block": (whole(None, SAY), text, "ok"),
    "a block of text": (whole("ok"), text, Refused("not a reply")),
    "odd figures": (whole(SAY, model=4, usage=[], id=5), lambda r: (text(r), r.model, r.usage), ("ok", None, None)),
    "an input that is no object": (
        whole({"type": "tool_use", "id": "t", "name": "add", "input": 5}),
        calls,
        [("add", "5")],
    ),
}


def item(kind: str, **fields: Any) -> dict[str, Any]:
    return {"id": "i", "type": kind, **fields}


def told(*parts: Any) -> dict[str, Any]:
    return item("message", role="assistant", content=list(parts))


def called(**fields: Any) -> dict[str, Any]:
    return item("function_call", **{"call_id": "c", "name": "add", "arguments": "{}", **fields})


def response(*output: Any, **fields: Any) -> dict[str, Any]:
    return {"id": "r", "model": "g", "status": "completed", "output": list(output), **fields}


def ended(*output: Any, **fields: Any) -> bytes:
    return event({"type": "response.completed", "response": response(*output, **fields)})


def grows(kind: str = "output_text", **fields: Any) -> bytes:
    return event({"type": f"response.{kind}.delta", "output_index": 0, **fields})


SAID = {"type": "output_text", "text": "ok"}
RESPONSE_STREAMS: dict[str, tuple[list[bytes], Seen, Any]] = {
    "a surrogate pair in two pieces": (
        [
            grows(delta="@").replace(b"@", b"a\\ud83d"),
            grows(delta="@").replace(b"@", b"\\ude00b"),
            ended(told({"type": "output_text", "text": "a😀b"})),
        ],
        text,
        "a😀b",
    ),
    "a piece of null": ([grows(delta=None), grows(delta="ok"), ended(told(SAID))], text, "ok"),
    "a piece of a wrong type": ([grows(delta=5)], text, Refused("not a reply")),
    "an event of a kind to come": (
        [event({"type": "response.weather", "delta": {"rain": 1}, "item": 5}), ended(told(SAID))],
        text,
        "ok",
    ),
    "an item of a kind to come": ([ended(item("poem", content="lines"), told(SAID))], text, "ok"),
    "a part of a kind to come": ([ended(told({"type": "poem", "lines": [1]}, SAID))], text, "ok"),
    "null among the items": ([ended(None, told(SAID))], text, "ok"),
    "an item of text": ([ended("ok")], text, Refused("not a reply")),
    "a text of null": ([ended(told({"type": "output_text", "text": None}))], text, Refused("not a whole reply")),
    "arguments as an object": ([ended(called(arguments={"a": 1}))], calls, Refused("not a whole reply")),
    "arguments that were cut": (
        [ended(called(arguments='{"a": 1, "b": "cut'), incomplete_details={"reason": "max_output_tokens"})],
        lambda reply: (calls(reply), reply.finish_reason),
        ([("add", '{"a": 1, "b": "cut')], "length"),
    ),
    "odd figures": (
        [ended(told(SAID), model=5, id=7, usage={"input_tokens": "x", "output_tokens": 9, "input_tokens_details": []})],
        lambda reply: (text(reply), reply.model, reply.usage),
        ("ok", None, Usage(output_tokens=9)),
    ),
    "an event after the end": ([ended(told(SAID)), grows(delta=" and more")], text, "ok"),
    "an end without a response": ([event({"type": "response.completed"})], text, Refused("only the beginning")),
    "an error of text": ([event({"type": "error", "error": "engine died"})], text, Refused("engine died")),
    "an event of brackets": (
        [event(b'{"type": "response.completed", "response": ' + b"[" * 50_000)],
        text,
        Refused("not a reply"),
    ),
}
RESPONSE_WHOLES: dict[str, tuple[Any, Seen, Any]] = {
    "no status": ({"output": [told(SAID)]}, lambda r: (text(r), r.finish_reason), ("ok", "stop")),
    "no output": ({"status": "completed"}, text, Refused("no output")),
    "an output of text": (response(output="ok"), text, Refused("not a reply")),
    "reasoning without a summary": (
        response(item("reasoning", summary=None, content=[{"type": "reasoning_text", "text": "Hm."}]), told(SAID)),
        lambda reply: (text(reply), reply.message.reasoning),
        ("ok", "Hm."),
    ),
    "a call with an id of null": (response(called(call_id=None)), calls, Refused("not a whole reply")),
}


def candidate(*parts: Any, finish: Any = "STOP", **fields: Any) -> dict[str, Any]:
    answer = {"content": {"parts": list(parts)}, **fields}
    return {"candidates": [answer if finish is None else {**answer, "finishReason": finish}]}


def use_of(**fields: Any) -> dict[str, Any]:
    return {"functionCall": {"name": "add", "args": {}, **fields}}


FINAL = event(candidate())
GEMINI_STREAMS: dict[str, tuple[list[bytes], Seen, Any]] = {
    "a surrogate pair in two pieces": (
        [
            event(candidate({"text": "@"}, finish=None)).replace(b"@", b"a\\ud83d"),
            event(candidate({"text": "@"}, finish=None)).replace(b"@", b"\\ude00b"),
            FINAL,
        ],
        text,
        "a😀b",
    ),
    "an end in each chunk": ([event(candidate({"text": "o"})), event(candidate({"text": "k"}))], text, "ok"),
    "no parts": ([event({"candidates": [{"content": {}}]}), event(candidate({"text": "ok"}))], text, "ok"),
    "no content": ([event({"candidates": [{"finishReason": "SAFETY"}]})], lambda r: r.finish_reason, "content_filter"),
    "null among the parts": ([event(candidate(None, {"text": "ok"}))], text, "ok"),
    "another candidate": ([event(candidate({"text": "no"}, index=1)), event(candidate({"text": "ok"}))], text, "ok"),
    "a text of null": ([event(candidate({"text": None}))], text, Refused("not a reply")),
    "a part of text": ([event(candidate("ok"))], text, Refused("not a reply")),
    "a part of a kind to come": ([event(candidate({"poem": [1]}, {"text": "ok"}))], text, "ok"),
    "a thought of 5": ([event(candidate({"text": "ok", "thought": 5}))], text, "ok"),
    "two calls without ids": (
        [event(candidate(use_of(), use_of(name="sub"))), FINAL],
        lambda reply: [(call.id, call.name) for call in reply.message.tool_calls],
        [("call_0", "add"), ("call_1", "sub")],
    ),
    "arguments of null": ([event(candidate(use_of(args=None)))], calls, [("add", "{}")]),
    "arguments of text": ([event(candidate(use_of(args="x")))], calls, [("add", '"x"')]),
    "a call of null": ([event(candidate({"functionCall": None}))], calls, Refused("not a whole reply")),
    "odd figures": (
        [
            event({
                **candidate({"text": "ok"}), "modelVersion": 5, "responseId": [],
                "usageMetadata": {"promptTokenCount": "x", "thoughtsTokenCount": 9},
            })
        ],
        lambda reply: (text(reply), reply.model, reply.usage),
        ("ok", None, Usage(output_tokens=9, reasoning_tokens=9)),
    ),
    "an error of text": ([event({"error": "engine died"})], text, Refused("engine died")),
    "an event of brackets": ([event(b'{"candidates": ' + b"[" * 50_000)], text, Refused("not a reply")),
}  # fmt: skip
GEMINI_WHOLES: dict[str, tuple[Any, Seen, Any]] = {
    "no reason to end": (candidate({"text": "ok"}, finish=None), lambda r: (text(r), r.finish_reason), ("ok", None)),
    "a reason of 5": (candidate({"text": "ok"}, finish=5), lambda r: (text(r), r.finish_reason), ("ok", None)),
    "candidates of text": ({"candidates": "ok"}, text, Refused("not a reply")),
    "a call with a name of 5": (candidate(use_of(name=5)), calls, Refused("not a whole reply")),
}

Model = OpenAIModel | AnthropicModel | ResponsesModel | GeminiModel
CASES = [
    *((ResponsesModel, True, name, *row) for name, row in RESPONSE_STREAMS.items()),
    *((ResponsesModel, False, name, *row) for name, row in RESPONSE_WHOLES.items()),
    *((GeminiModel, True, name, *row) for name, row in GEMINI_STREAMS.items()),
    *((GeminiModel, False, name, *row) for name, row in GEMINI_WHOLES.items()),
    *((OpenAIModel, True, name, *row) for name, row in CHAT_STREAMS.items()),
    *((AnthropicModel, True, name, *row) for name, row in MESSAGE_STREAMS.items()),
    *((OpenAIModel, False, name, *row) for name, row in CHAT_WHOLES.items()),
    *((AnthropicModel, False, name, *row) for name, row in MESSAGE_WHOLES.items()),
]


def answers(sent: Any, streamed: bool) -> list[Step]:
    """The same bytes on their way: at once, and cut at other places."""
    if not streamed:
        body = json.dumps(sent).encode()
        return [raw(body)]
    if not sent:
        return [raw(json.dumps(whole(SAY)).encode())]
    data = b"".join(sent)
    steps = [stream(sent), stream([data])]
    if len(data) < 10_000:
        steps += [stream([data[at : at + size] for at in range(0, len(data), size)]) for size in (1, 7, 50)]
    return steps


async def outcome(model: Model, deltas: list[Delta] | None) -> ModelReply | ModelError:
    try:
        return await (model.generate(HI) if deltas is None else model.stream(HI, deltas.append))
    except ModelError as error:
        return error


@pytest.mark.parametrize(
    ("kind", "streamed", "sent", "seen", "expected"),
    [pytest.param(kind, streamed, *row, id=f"{kind.__name__}, {name}") for kind, streamed, name, *row in CASES],
)
async def test_a_shape(kind: type[Model], streamed: bool, sent: Any, seen: Seen, expected: Any) -> None:
    steps = answers(sent, streamed)
    async with Provider(*steps) as provider:
        model = kind(provider.config())
        for _ in steps:
            deltas: list[Delta] = []
            reply = await outcome(model, deltas if streamed else None)
            if isinstance(reply, ModelError):
                assert isinstance(expected, Refused), reply
                assert expected.text in str(reply)
                assert reply.retryable
            else:
                assert seen(reply) == expected
                shown = "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
                assert not shown or shown == reply.message.content


async def test_what_was_cut_goes_back_as_an_object() -> None:
    again = raw(json.dumps(whole(SAY)).encode())
    async with Provider(stream(cut(*THOUGHT)), again) as provider:
        model = AnthropicModel(provider.config())
        reply = await model.stream(HI, lambda _: None)
        assert reply.usage == Usage(1, 9, 10)
        result = Message("tool", "not JSON", tool_call_id="t1", name="add", is_error=True)
        await model.generate(ModelRequest(messages=(*HI.messages, reply.message, result)))
        said = provider.requests[1].json["messages"][1]["content"]
    assert said[0] == {"type": "thinking", "thinking": "Hm.", "signature": "s"}
    assert said[1] == {"type": "tool_use", "id": "t1", "name": "add", "input": {"arguments": '{"a": 1, "b": "cut'}}
    assert reply.message.tool_calls == (ToolCall("t1", "add", '{"a": 1, "b": "cut'),)


@pytest.mark.parametrize("kind", [OpenAIModel, AnthropicModel, ResponsesModel, GeminiModel])
async def test_a_refusal_of_brackets_is_quoted(kind: type[Model]) -> None:
    async with Provider(raw(b"[" * 100_000, 400), raw(b'{"error":' * 900 + b"1" + b"}" * 900, 400)) as provider:
        model = kind(provider.config())
        for start in (r"answered 400: \[\[\[\[", "answered 400: "):
            with pytest.raises(ModelError, match=start) as caught:
                await model.generate(HI)
            assert (caught.value.status, caught.value.retryable) == (400, False)
