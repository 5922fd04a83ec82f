"""Google's API of Gemini against a server that speaks the protocol."""

from __future__ import annotations

import json
from typing import Any, Literal

import msgspec
import pytest
from pydantic import BaseModel, Field

from aworld.agents.llm_agent import Agent
from aworld.config.conf import AgentConfig, ModelConfig
from aworld.core.exceptions import ConfigError, ModelError
from aworld.core.message import Audio, File, Image, Message, Text, ToolCall, Usage
from aworld.core.model import Delta, ModelRequest, OutputSchema, ReasoningDelta, TextDelta, ToolSchema
from aworld.core.output import RunFinished
from aworld.models.call import call_model
from aworld.models.gemini import GeminiModel
from aworld.runner import Runners
from tests.runners.scenes import add

from .provider import EVENTS, Provider, Step, answer, broken, check_failure, chunked, event, joined, raw, status, stream

HI = ModelRequest(messages=(Message("user", "hi"),))
ADD = ToolSchema("add", "Adds.", {"type": "object", "properties": {"a": {"type": "integer"}}})
THOUGHT = {"text": "Add them.", "thought": True}
CALL = {"functionCall": {"name": "add", "args": {"a": 1, "b": 2}}, "thoughtSignature": "c2ln"}
USAGE = {
    "promptTokenCount": 10, "cachedContentTokenCount": 4, "candidatesTokenCount": 2, "thoughtsTokenCount": 5,
    "totalTokenCount": 17,
}  # fmt: skip


def reply(*parts: dict[str, Any], finish: str | None = "STOP", **more: Any) -> dict[str, Any]:
    candidate: dict[str, Any] = {"index": 0, "content": {"role": "model", "parts": list(parts)}}
    if finish is not None:
        candidate["finishReason"] = finish
    fields = {"usageMetadata": USAGE, "modelVersion": "gemini-3-x", "responseId": "r1"}
    return {"candidates": [candidate], **fields, **more}


def chunks(*parts: dict[str, Any], finish: str = "STOP") -> list[bytes]:
    """A reply as a stream, each part of it in a chunk of its own; the usage grows."""
    out = [reply(part, finish=None, usageMetadata={"promptTokenCount": 10}) for part in parts]
    return [event(chunk) for chunk in [*out, reply(finish=finish)]]


async def test_the_conversation_in_googles_words() -> None:
    messages = (
        Message("system", "Be brief."),
        Message(
            "user",
            (
                Text("Look:"),
                Image("data:image/png;base64,AAAA"),
                Image("https://x.example/a.jpg?size=2"),
                File("data:text/plain,hello", "a.txt"),
                File(file_id="https://x.example/files/f1"),
                Audio("AA==", "mp3"),
            ),
        ),
        Message("assistant", "I'll add.", (ToolCall("t1", "add", '{"a":  1}'), ToolCall("t2", "add", "not JSON"))),
        Message("tool", "2", tool_call_id="t1"),
        Message(
            "tool", (Text("no"), Image("data:image/png;base64,BB==")), tool_call_id="t2", name="add", is_error=True
        ),
        Message("user", "And now?"),
        Message("assistant", ""),
    )
    params = {"tool_choice": "add", "temperature": 0.25}
    generation: dict[str, Any] = {"topK": 3, "thinkingConfig": {"includeThoughts": True}}
    extras: dict[str, Any] = {"safetySettings": [], "generationConfig": generation}
    async with Provider(answer(reply({"text": "ok"}))) as provider:
        config = provider.config(
            llm_api_key="key", llm_model_name="gemini-3-pro", llm_stop=["x"], llm_seed=7, llm_max_tokens=99,
            llm_reasoning_effort="low", llm_temperature=1.0, params=extras,
        )  # fmt: skip
        await GeminiModel(config).generate(ModelRequest(messages=messages, tools=(ADD,), params=params))
        request = provider.requests[0]
    assert request.target == "/v1/models/gemini-3-pro:generateContent"
    assert request.headers["x-goog-api-key"] == "key"
    assert request.json == {
        "safetySettings": [],
        "generationConfig": {
            "stopSequences": ["x"], "seed": 7, "maxOutputTokens": 99, "temperature": 0.25, "topK": 3,
            "thinkingConfig": {"thinkingLevel": "low", "includeThoughts": True},
        },
        "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["add"]}},
        "systemInstruction": {"parts": [{"text": "Be brief."}]},
        "tools": [
            {"functionDeclarations": [{"name": "add", "description": "Adds.", "parametersJsonSchema": ADD.parameters}]}
        ],
        "contents": [
            {
                "role": "user",
                "parts": [
                    {"text": "Look:"},
                    {"inlineData": {"mimeType": "image/png", "data": "AAAA"}},
                    {"fileData": {"fileUri": "https://x.example/a.jpg?size=2", "mimeType": "image/jpeg"}},
                    {"inlineData": {"mimeType": "text/plain", "data": "aGVsbG8="}},
                    {"fileData": {"fileUri": "https://x.example/files/f1"}},
                    {"inlineData": {"mimeType": "audio/mp3", "data": "AA=="}},
                ],
            },
            {
                "role": "model",
                "parts": [
                    {"text": "I'll add."},
                    {
                        "functionCall": {"id": "t1", "name": "add", "args": {"a": 1}},
                        "thoughtSignature": "skip_thought_signature_validator",
                    },
                    {"functionCall": {"id": "t2", "name": "add", "args": {"arguments": "not JSON"}}},
                ],
            },
            {
                "role": "user",
                "parts": [
                    {"functionResponse": {"id": "t1", "name": "add", "response": {"output": "2"}}},
                    {"functionResponse": {"id": "t2", "name": "add", "response": {"error": "no"}}},
                    {"inlineData": {"mimeType": "image/png", "data": "BB=="}},
                    {"text": "And now?"},
                ],
            },
        ],
    }  # fmt: skip


ADDRESSES = {
    None: "https://generativelanguage.googleapis.com/v1beta/models/gemini-3-pro:generateContent",
    "https://x.example": "https://x.example/v1beta/models/gemini-3-pro:generateContent",
    "https://x.example/v1/publishers/google": (
        "https://x.example/v1/publishers/google/models/gemini-3-pro:generateContent"
    ),
}


@pytest.mark.parametrize("base", ADDRESSES)
def test_addresses(base: str | None) -> None:
    model = GeminiModel(ModelConfig(llm_model_name="gemini-3-pro", llm_base_url=base))
    assert model.url == ADDRESSES[base]
    assert model.stream_url == ADDRESSES[base].replace(":generateContent", ":streamGenerateContent?alt=sse")
    tuned = GeminiModel(ModelConfig(llm_model_name="tunedModels/mine ?", llm_base_url=base))
    assert tuned.url.endswith("/tunedModels/mine%20%3F:generateContent")


def test_the_second_generation_has_budgets_and_no_signatures() -> None:
    model = GeminiModel(ModelConfig(llm_model_name="gemini-2.5-flash", llm_reasoning_effort="medium"))
    said = Message("assistant", None, (ToolCall("t1", "now", "{}"),))
    body = model.body(ModelRequest((*HI.messages, said), tools=(ToolSchema("now", "", {"type": "object"}),)))
    assert body["generationConfig"] == {"thinkingConfig": {"thinkingBudget": 8192}}
    assert body["tools"] == [{"functionDeclarations": [{"name": "now", "description": ""}]}]
    assert set(body["contents"][1]["parts"][0]) == {"functionCall"}
    output = OutputSchema("Out", {"type": "object"})
    with pytest.raises(ModelError, match=r'gemini-2.5-flash takes only one of .* llm_tool_mode="structured"'):
        model.body(ModelRequest(HI.messages, tools=(ADD,), output=output))
    assert model.body(ModelRequest(HI.messages, output=output, params={"stop": "x"}))["generationConfig"] == {
        "responseMimeType": "application/json",
        "responseJsonSchema": {"type": "object"},
        "stopSequences": ["x"],
        "thinkingConfig": {"thinkingBudget": 8192},
    }


@pytest.mark.parametrize("streamed", [False, True])
async def test_signatures_go_back_in_their_parts_exactly(streamed: bool) -> None:
    second = {"functionCall": {"name": "add", "args": {"a": 2}}}
    parts = (THOUGHT, {"text": "Let me see."}, CALL, second, {"text": "", "thoughtSignature": "ZW5k"})
    pieces = (
        {"text": "Add ", "thought": True},
        {"text": "them.", "thought": True},
        {"text": "Let me "},
        {"text": "see."},
    )
    steps = [stream(chunks(*pieces, *parts[2:]))] if streamed else [answer(reply(*parts))]
    async with Provider(*steps, answer(reply({"text": "3"}))) as provider:
        model = GeminiModel(provider.config())
        deltas: list[Delta] = []
        outcome = await call_model(model, HI, on_delta=deltas.append if streamed else None)
        got = outcome.reply
        # As the log would give it back.
        kept = msgspec.json.decode(msgspec.json.encode(got.message), type=Message)
        results = [Message("tool", str(n), tool_call_id=f"call_{n}", name="add") for n in (0, 1)]
        plain = await model.generate(ModelRequest(messages=(*HI.messages, kept, *results)))
        target, sent = provider.requests[0].target, provider.requests[1].json["contents"]
    assert target == f"/v1/models/m:{'streamGenerateContent?alt=sse' if streamed else 'generateContent'}"
    assert (got.message.content, got.message.reasoning) == ("Let me see.", "Add them.")
    assert [(call.id, call.name, json.loads(call.arguments)) for call in got.message.tool_calls] == [
        ("call_0", "add", {"a": 1, "b": 2}),
        ("call_1", "add", {"a": 2}),
    ]
    assert (got.finish_reason, got.model, got.response_id) == ("tool_calls", "gemini-3-x", "r1")
    assert got.usage == Usage(10, 7, 17, cached_tokens=4, reasoning_tokens=5)
    assert sent[1] == {"role": "model", "parts": list(parts)}
    # The calls came without ids, so their answers name none either: they go by their order.
    assert sent[2]["parts"] == [
        {"functionResponse": {"name": "add", "response": {"output": str(n)}}} for n in (0, 1)
    ]  # fmt: skip
    assert plain.message == Message("assistant", "3")  # nothing kept where nothing must come back
    if streamed:
        assert joined(deltas) == [ReasoningDelta("Add them."), TextDelta("Let me see.")]
        assert got.first_token is not None


async def test_arguments_are_kept_as_they_were_written() -> None:
    body = (
        b'{"candidates": [{"content": {"parts": [{"functionCall": {"id": "f1", "name": "add", "args": {"a":  1}}}]}}]}'
    )
    async with Provider(raw(body)) as provider:
        model = GeminiModel(provider.config())
        got = await model.generate(HI)
    assert got.message == Message("assistant", None, (ToolCall("f1", "add", '{"a":  1}'),))
    result = Message("tool", "1", tool_call_id="f1", name="add")
    again = model.body(ModelRequest((*HI.messages, got.message, result)))["contents"]
    assert again[2]["parts"][0]["functionResponse"]["id"] == "f1"
    assert b'"args":{"a":  1}' in model.encode({"contents": again})


async def test_parts_that_nobody_here_reads_go_back_too() -> None:
    parts = [{"executableCode": {"language": "PYTHON", "code": "1+1"}}, {"text": "2"}]
    async with Provider(answer(reply(*parts))) as provider:
        model = GeminiModel(provider.config())
        got = await model.generate(HI)
    assert got.message.content == "2"
    assert model.body(ModelRequest((*HI.messages, got.message)))["contents"][1]["parts"] == parts


@pytest.mark.parametrize(
    ("finish", "reason"), [("STOP", "stop"), ("MAX_TOKENS", "length"), ("SAFETY", "content_filter"), ("OTHER", "other")]
)
async def test_how_an_answer_ends(finish: str, reason: str) -> None:
    async with Provider(
        answer(reply({"text": "ok"}, finish=finish)), stream(chunks({"text": "ok"}, finish=finish))
    ) as p:
        model = GeminiModel(p.config())
        for got in (await model.generate(HI), await model.stream(HI, lambda _: None)):
            assert (got.finish_reason, got.message.content) == (reason, "ok")


BUSY = {"error": {"code": 429, "message": "Quota exceeded", "status": "RESOURCE_EXHAUSTED"}}
DELAY = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "0.02s"}
MALFORMED = {"candidates": [{"finishReason": "MALFORMED_FUNCTION_CALL", "finishMessage": "print(add(1"}]}
FAULTS: dict[str, tuple[Step, int | None, str, bool]] = {
    "busy": (status(429, BUSY), 429, "gemini answered 429: Quota exceeded", True),
    "busy, in a list": (status(503, [{"error": {"code": 503, "message": "overloaded"}}]), 503, "503: overloaded", True),
    "an error in mid-stream": (
        stream([*chunks({"text": "Hel"})[:1], event({"error": {"code": 503, "message": "overloaded"}})]),
        503,
        "gemini reported: overloaded",
        True,
    ),
    "a call that is none": (stream([event(MALFORMED)]), None, "MALFORMED_FUNCTION_CALL: print(add(1", True),
    "a prompt that was blocked": (
        stream([event({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": {}})]),
        400,
        r"the prompt is not answered \(PROHIBITED_CONTENT\)",
        False,
    ),
    "a wrong key": (status(400, {"error": {"code": 400, "message": "API key not valid."}}), 400, "API key not", False),
    "cut in mid-stream": (broken(EVENTS + chunked(chunks({"text": "H"})[0])), None, "cut the conn|could not", True),
    "ends without an end": (stream(chunks({"text": "ok"})[:-1]), None, "only the beginning", True),
    "no JSON": (raw(b"<html>"), None, "is not a reply", True),
    "no candidates": (answer({"candidates": []}), None, "no candidates|only the beginning", True),
    "a call without a name": (answer(reply({"functionCall": {"args": {}}})), None, "not a whole reply", True),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_failures(name: str) -> None:
    step, code, said, passing = FAULTS[name]
    async with Provider(step, answer(reply({"text": "ok"}))) as provider:
        await check_failure(GeminiModel(provider.config(llm_max_retries=1)), code, said, passing)


async def test_the_wait_that_an_error_asks_for_in_its_body_is_obeyed() -> None:
    busy = {"error": {**BUSY["error"], "details": [DELAY]}}
    async with Provider(status(429, busy), answer(reply({"text": "ok"}))) as provider:
        outcome = await call_model(GeminiModel(provider.config()), HI)
    assert 0.02 <= outcome.attempts[0].waited <= 0.03


class Sum(BaseModel):
    """The answer."""

    total: int


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_run_with_a_tool_and_a_typed_answer(streamed: bool) -> None:
    outputs = ((THOUGHT, CALL), ({"text": '{"total": 3}', "thoughtSignature": "ZW5k"},))
    steps = [stream(chunks(*output)) if streamed else answer(reply(*output)) for output in outputs]
    async with Provider(*steps) as provider:
        config = provider.config(llm_provider="gemini", llm_api_key="a-key", llm_model_name="gemini-3-pro")
        agent = Agent("adder", AgentConfig(llm_config=config), tools=[add], output_type=Sum)
        if streamed:
            seen = [output async for output in Runners.streaming_run("1 + 2?", agent)]
            assert isinstance(seen[-1], RunFinished)
            done = seen[-1].response
        else:
            done = await Runners.run("1 + 2?", agent)
        first, second = (request.json for request in provider.requests)
        replayed = await Runners.replay(done, agent)
    assert (done.status, done.answer) == ("finished", Sum(total=3))
    assert first["generationConfig"] == {
        "responseMimeType": "application/json",
        "responseJsonSchema": Sum.model_json_schema(),
    }
    assert second["contents"][1:] == [
        {"role": "model", "parts": [THOUGHT, CALL]},
        {"role": "user", "parts": [{"functionResponse": {"name": "add", "response": {"output": "3"}}}]},
    ]
    # The record: what was sent, exactly, and what came.
    model = GeminiModel(config)
    called = [done.record.calls[step] for step in sorted(done.record.calls)]
    for call, body in zip(called, (first, second), strict=True):
        assert (call.provider, call.model, call.response_id) == ("gemini", "gemini-3-x", "r1")
        assert call.usage == Usage(10, 7, 17, cached_tokens=4, reasoning_tokens=5)
        sent = model.body(ModelRequest(tuple(done.record.path(call.prompt))))["contents"]
        assert json.loads(model.encode({"contents": sent}))["contents"] == body["contents"]
    assert [call.finish_reason for call in called] == ["tool_calls", "stop"]
    assert "a-key" not in repr(done.record)
    assert replayed.same


def test_settings_that_the_api_has_no_word_for() -> None:
    for setting in ("llm_parallel_tool_calls", "llm_prompt_cache"):
        value: Any = "1h" if setting == "llm_prompt_cache" else False
        with pytest.raises(ConfigError, match=setting):
            GeminiModel(ModelConfig(llm_model_name="m", **{setting: value}))
    body = GeminiModel(ModelConfig(llm_model_name="m", llm_prompt_cache=True, llm_tool_choice="required")).body(HI)
    assert body == {
        "contents": [{"role": "user", "parts": [{"text": "hi"}]}],
        "toolConfig": {"functionCallingConfig": {"mode": "ANY"}},
    }


class Card(BaseModel):
    """What pydantic makes of literals and references."""

    kind: Literal["card"]
    sums: list[Sum]
    best: Sum = Field(description="The best of them.")


def test_schemas_have_only_what_the_api_knows() -> None:
    def shape(schema: dict[str, Any]) -> Any:
        body = GeminiModel(ModelConfig(llm_model_name="m")).body(
            ModelRequest(HI.messages, (ToolSchema("show", "", schema),), output=OutputSchema("Card", schema))
        )
        (tool,) = body["tools"][0]["functionDeclarations"]
        assert tool["parametersJsonSchema"] == body["generationConfig"]["responseJsonSchema"]
        return tool["parametersJsonSchema"]

    written = shape(Card.model_json_schema())
    assert written["properties"] == {
        "kind": {"enum": ["card"], "title": "Kind", "type": "string"},
        "sums": {"items": {"$ref": "#/$defs/Sum"}, "title": "Sums", "type": "array"},
        "best": {"$ref": "#/$defs/Sum"},
    }
    odd = {"properties": {"const": {"const": True}, "one": {"const": 1}, "$ref": {"type": "string"}}}
    assert shape(odd) == {
        "properties": {"const": {}, "one": {"type": "integer", "enum": [1]}, "$ref": {"type": "string"}}
    }


async def test_the_second_generation_answers_typed_with_tools_in_words() -> None:
    said = ({"tool": "add", "arguments": {"a": 1, "b": 2}}, {"answer": {"total": 3}})
    async with Provider(*(answer(reply({"text": json.dumps(one)})) for one in said)) as provider:
        config = provider.config(
            llm_provider="gemini", llm_api_key="k", llm_model_name="gemini-2.5-flash", llm_tool_mode="structured"
        )
        done = await Runners.run("1 + 2?", Agent("a", AgentConfig(llm_config=config), tools=[add], output_type=Sum))
        first, second = (request.json for request in provider.requests)
    assert (done.status, done.answer) == ("finished", Sum(total=3))
    assert "tools" not in first
    assert first["generationConfig"]["responseJsonSchema"]["anyOf"][0]["properties"]["tool"] == {
        "type": "string",
        "enum": ["add"],
    }
    assert second["contents"][-1]["parts"] == [{"text": "Result of add: 3"}]


async def test_a_conversation_goes_on_with_another_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    part: dict[str, Any] = {"type": "output_text", "text": "3", "annotations": []}
    said: dict[str, Any] = {
        "status": "completed",
        "output": [{"type": "message", "role": "assistant", "content": [part]}],
    }
    busy = status(503, {"error": {"code": 503, "message": "overloaded"}})
    async with Provider(answer(reply(THOUGHT, CALL)), busy) as google, Provider(answer(said)) as other:
        monkeypatch.setenv("GEMINI_BASE_URL", google.base_url)
        monkeypatch.setenv("OPENAI_BASE_URL", other.base_url)
        models = ["gemini:gemini-3-pro", "openai-responses:gpt-5"]
        done = await Runners.run("1 + 2?", Agent("a", {"llm_max_retries": 0}, model=models, tools=[add]))
        sent = other.requests[0].json["input"]
    assert (done.status, done.answer) == ("finished", "3")
    first, second = (done.record.calls[step] for step in sorted(done.record.calls))
    assert (first.provider, second.provider) == ("gemini", "openai-responses")
    # The signature stays where it belongs; the call and its answer go on under the id that was made for them.
    assert sent[1:] == [
        {"type": "function_call", "call_id": "call_0", "name": "add", "arguments": '{"a": 1, "b": 2}'},
        {"type": "function_call_output", "call_id": "call_0", "output": "3"},
    ]
