"""OpenAI's Responses API against a server that speaks the protocol."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from pydantic import BaseModel

from aworld.agents.llm_agent import Agent
from aworld.config.conf import AgentConfig, ModelConfig
from aworld.config.errors import ConfigError
from aworld.core.exceptions import ModelError
from aworld.core.message import Audio, File, Image, Message, Text, ToolCall, Usage
from aworld.core.model import Delta, ModelRequest, ReasoningDelta, TextDelta, ToolSchema
from aworld.core.output import RunFinished
from aworld.models.call import call_model
from aworld.models.openai_responses import ResponsesModel
from aworld.models.prices import price_of
from aworld.runner import Runners
from tests.runners.scenes import add

from .provider import EVENTS, Provider, Step, answer, broken, check_failure, chunked, event, joined, raw, status, stream

HI = ModelRequest(messages=(Message("user", "hi"),))
REASONING = {
    "id": "rs_1", "type": "reasoning", "summary": [{"type": "summary_text", "text": "Add them."}],
    "encrypted_content": "gAAA==",
}  # fmt: skip
CALL = {
    "id": "fc_1", "type": "function_call", "call_id": "call_1", "name": "add", "arguments": '{"a": 1,  "b": 2}',
    "status": "completed",
}  # fmt: skip
USAGE = {
    "input_tokens": 10, "input_tokens_details": {"cached_tokens": 4}, "output_tokens": 7,
    "output_tokens_details": {"reasoning_tokens": 5}, "total_tokens": 17,
}  # fmt: skip


def text(said: str, **more: Any) -> dict[str, Any]:
    part: dict[str, Any] = {"type": "output_text", "text": said, "annotations": [], "logprobs": [], **more}
    return {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [part]}


def response(*output: dict[str, Any], **more: Any) -> dict[str, Any]:
    fields = {"id": "resp_1", "object": "response", "model": "gpt-x", "status": "completed", "error": None}
    return {**fields, "incomplete_details": None, "output": output, "usage": USAGE, **more}


def events(*output: dict[str, Any], kind: str = "completed", **more: Any) -> list[bytes]:
    """A response as a stream: each item grows in two pieces."""
    out: list[dict[str, Any]] = [{"type": "response.created", "response": response(status="in_progress", usage=None)}]
    for index, item in enumerate(output):
        at = {"output_index": index, "item_id": item["id"]}
        out.append({"type": "response.output_item.added", "output_index": index, "item": {"id": item["id"]}})
        if item["type"] == "function_call":
            pieces, name = item["arguments"], "response.function_call_arguments"
        elif item["type"] == "message":
            part = item["content"][0]
            pieces, name = part.get("text") or part["refusal"], f"response.{part['type']}"
        else:
            pieces, name = "".join(part["text"] for part in item["summary"]), "response.reasoning_summary_text"
        out += [{"type": f"{name}.delta", "delta": piece, **at} for piece in (pieces[:3], pieces[3:])]
        out.append({"type": f"{name}.done", **at})
        out.append({"type": "response.output_item.done", "output_index": index, "item": item})
    out.append({"type": f"response.{kind}", "response": response(*output, **more)})
    return [f"event: {one['type']}\n".encode() + event(one) for one in out]


async def test_the_conversation_as_input_items() -> None:
    messages = (
        Message("system", "Be brief."),
        Message(
            "user",
            (
                Text("Look:"),
                Image("data:image/png;base64,AAAA", "low"),
                File("data:application/pdf;base64,BBBB", "a.pdf"),
                File("https://x.example/a.pdf"),
                File(file_id="file_1"),
            ),
        ),
        Message("assistant", "I'll add.", (ToolCall("t1", "add", '{"a":  1}'), ToolCall("t2", "add", "not JSON"))),
        Message("tool", "2", tool_call_id="t1", name="add"),
        Message("tool", (Text("see"), Image("https://x.example/a.png")), tool_call_id="t2", name="add"),
        Message("assistant", "", opaque={"anthropic": {"content": []}}),
        Message("user", "And now?"),
    )
    tool = ToolSchema("add", "Adds.", {"type": "object", "properties": {}})
    params = {
        "tool_choice": "add", "seed": 3, "max_tokens": 9,
        "reasoning": {"summary": "auto"},
    }  # fmt: skip
    async with Provider(answer(response(text("ok")))) as provider:
        model = ResponsesModel(provider.config(llm_api_key="sk", llm_temperature=0.5, llm_reasoning_effort="low"))
        await model.generate(ModelRequest(messages=messages, tools=(tool,), params=params))
        request = provider.requests[0]
    assert request.target == "/v1/responses"
    assert request.headers["authorization"] == "Bearer sk"
    assert request.json == {
        "model": "m",
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "temperature": 0.5,
        "reasoning": {"effort": "low", "summary": "auto"},
        "max_output_tokens": 9,
        "tool_choice": {"type": "function", "name": "add"},
        "tools": [
            {"type": "function", "name": "add", "description": "Adds.", "parameters": tool.parameters, "strict": False}
        ],
        "input": [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "Look:"},
                    {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "low"},
                    {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,BBBB"},
                    {"type": "input_file", "file_url": "https://x.example/a.pdf"},
                    {"type": "input_file", "file_id": "file_1"},
                ],
            },
            {"role": "assistant", "content": "I'll add."},
            {"type": "function_call", "call_id": "t1", "name": "add", "arguments": '{"a":  1}'},
            {"type": "function_call", "call_id": "t2", "name": "add", "arguments": "not JSON"},
            {"type": "function_call_output", "call_id": "t1", "output": "2"},
            {
                "type": "function_call_output",
                "call_id": "t2",
                "output": [
                    {"type": "input_text", "text": "see"},
                    {"type": "input_image", "image_url": "https://x.example/a.png"},
                ],
            },
            {"role": "user", "content": "And now?"},
        ],
    }


@pytest.mark.parametrize("name", ["gpt-4o-mini", "gpt-4.1", "ft:gpt-4o:me", "gpt-5-chat-latest", "gpt-5.1-chat-latest"])
def test_models_that_do_not_reason_are_not_asked_for_reasoning(name: str) -> None:
    assert "include" not in ResponsesModel(ModelConfig(llm_model_name=name)).body(HI)


@pytest.mark.parametrize("streamed", [False, True])
async def test_reasoning_goes_back_in_its_place_exactly(streamed: bool) -> None:
    phased = {**text("Let me see."), "phase": "commentary"}
    output = (REASONING, phased, CALL)
    steps = [stream(events(*output))] if streamed else [answer(response(*output))]
    async with Provider(*steps, answer(response(text("3")))) as provider:
        model = ResponsesModel(provider.config())
        deltas: list[Delta] = []
        outcome = await call_model(model, HI, on_delta=deltas.append if streamed else None)
        reply = outcome.reply
        # As the log would give it back.
        kept = msgspec.json.decode(msgspec.json.encode(reply.message), type=Message)
        result = Message("tool", "3", tool_call_id="call_1")
        second = await model.generate(ModelRequest(messages=(*HI.messages, kept, result)))
        sent = provider.requests[1].json["input"]
    assert (reply.message.content, reply.message.reasoning) == ("Let me see.", "Add them.")
    assert reply.message.tool_calls == (ToolCall("call_1", "add", '{"a": 1,  "b": 2}'),)
    assert (reply.finish_reason, reply.model, reply.response_id) == ("tool_calls", "gpt-x", "resp_1")
    assert reply.usage == Usage(10, 7, 17, cached_tokens=4, reasoning_tokens=5)
    assert sent[1:] == [*output, {"type": "function_call_output", "call_id": "call_1", "output": "3"}]
    assert second.message == Message("assistant", "3")  # nothing kept where nothing must come back
    if streamed:
        assert joined(deltas) == [ReasoningDelta("Add them."), TextDelta("Let me see.")]
        assert reply.first_token is not None


async def test_parts_of_a_summary_stand_apart() -> None:
    delta = {"type": "response.reasoning_summary_text.delta", "output_index": 0}
    parts = [{"type": "summary_text", "text": "One."}, {"type": "summary_text", "text": "Two."}]
    chunks = [event({**delta, "summary_index": n, "delta": part["text"]}) for n, part in enumerate(parts)]
    end = events({**REASONING, "summary": parts}, text("ok"))[-1]
    async with Provider(stream([*chunks, end])) as provider:
        deltas: list[Delta] = []
        reply = await ResponsesModel(provider.config()).stream(HI, deltas.append)
    assert joined(deltas) == [ReasoningDelta("One.\n\nTwo.")]
    assert reply.message.reasoning == "One.\n\nTwo."


async def test_an_end_without_output_is_the_items_that_came() -> None:
    *before, _ = events(text("ok"), CALL)
    end = event({"type": "response.completed", "response": response()})
    async with Provider(stream([*before, end])) as provider:
        reply = await ResponsesModel(provider.config()).stream(HI, lambda _: None)
    assert (reply.message.content, len(reply.message.tool_calls)) == ("ok", 1)


REFUSAL = {**text(""), "content": [{"type": "refusal", "refusal": "I'd rather not."}]}
ENDS: dict[str, tuple[list[dict[str, Any]], dict[str, Any], str, str]] = {
    "a refusal": ([REFUSAL], {}, "refusal", "I'd rather not."),
    "too long": (
        [text("Once upon")],
        {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}},
        "length",
        "Once upon",
    ),
    "filtered": (
        [text("Once upon")],
        {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}},
        "content_filter",
        "Once upon",
    ),
    "the end": ([text("All.")], {}, "stop", "All."),
}


@pytest.mark.parametrize("name", ENDS)
async def test_how_an_answer_ends(name: str) -> None:
    output, more, reason, said = ENDS[name]
    kind = "incomplete" if more else "completed"
    async with Provider(answer(response(*output, **more)), stream(events(*output, kind=kind, **more))) as provider:
        model = ResponsesModel(provider.config())
        deltas: list[Delta] = []
        for reply in (await model.generate(HI), await model.stream(HI, deltas.append)):
            assert (reply.finish_reason, reply.message.content) == (reason, said)
    assert joined(deltas) == [TextDelta(said)]


async def test_reasoning_that_nothing_followed_is_not_sent_back() -> None:
    cut = response(REASONING, status="incomplete", incomplete_details={"reason": "max_output_tokens"})
    async with Provider(answer(cut)) as provider:
        model = ResponsesModel(provider.config())
        reply = await model.generate(HI)
    assert (reply.finish_reason, reply.message.content) == ("length", None)
    assert model.body(ModelRequest((*HI.messages, reply.message)))["input"] == [{"role": "user", "content": "hi"}]


def failed(error: Any = None) -> Step:
    return stream([event({"type": "response.failed", "response": response(status="failed", error=error)})])


FAULTS: dict[str, tuple[Step, int | None, str, bool]] = {
    "busy": (status(429, {"error": {"message": "Rate limit", "code": "rate_limit_exceeded"}}), 429, "Rate limit", True),
    "a whole one that failed": (
        answer(response(status="failed", error={"code": "server_error", "message": "boom"})),
        500,
        "openai-responses reported: boom",
        True,
    ),
    "a stream that failed": (
        failed({"code": "rate_limit_exceeded", "message": "slow"}),
        429,
        "slow",
        True,
    ),
    "a failure without words": (failed(), None, "the response is failed", True),
    "an error event": (
        stream([event({"type": "error", "code": "invalid_prompt", "message": "not allowed", "param": None})]),
        400,
        "openai-responses reported: not allowed",
        False,
    ),
    "an error in an event": (
        stream([event({"type": "error", "error": {"code": "context_length_exceeded", "message": "too long"}})]),
        400,
        "too long",
        False,
    ),
    "cut in mid-stream": (broken(EVENTS + chunked(events(text("ok"))[0])), None, "cut the conn|could not", True),
    "ends without an end": (stream(events(text("ok"))[:-1]), None, "only the beginning", True),
    "no JSON": (raw(b"<html>"), None, "is not a reply", True),
    "no response": (answer({}), None, "it has no output|only the beginning", True),
    "a call without a name": (answer(response({**CALL, "name": ""})), None, "without a call_id or a name", True),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
async def test_failures(name: str) -> None:
    step, code, said, passing = FAULTS[name]
    async with Provider(step, answer(response(text("ok")))) as provider:
        await check_failure(ResponsesModel(provider.config(llm_max_retries=1)), code, said, passing)


async def test_what_the_api_cannot_take_is_said() -> None:
    model = ResponsesModel(ModelConfig(llm_model_name="m"))
    with pytest.raises(ModelError, match="takes no audio"):
        await model.generate(ModelRequest(messages=(Message("user", (Audio("AA=="),)),)))
    with pytest.raises(ModelError, match="has no stop: leave it"):
        await model.generate(ModelRequest(HI.messages, params={"stop": ["x"]}))
    settings: list[dict[str, Any]] = [{"llm_seed": 1}, {"llm_stop": ["x"]}, {"llm_logit_bias": {"5": 1.0}}]
    for setting in settings:
        with pytest.raises(ConfigError, match=rf"leave it \({next(iter(setting))}\) unset"):
            ResponsesModel(ModelConfig(llm_model_name="m", **setting))


class Sum(BaseModel):
    """The answer."""

    total: int


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_run_with_a_tool_and_a_typed_answer(streamed: bool) -> None:
    outputs = ((REASONING, CALL), (text('{"total": 3}'),))
    steps = [stream(events(*output)) if streamed else answer(response(*output)) for output in outputs]
    async with Provider(*steps) as provider:
        config = provider.config(llm_provider="openai-responses", llm_api_key="sk-key")
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
    assert first["text"]["format"] == {
        "type": "json_schema", "name": "Sum", "schema": Sum.model_json_schema(), "strict": False,
    }  # fmt: skip
    assert second["input"][1:] == [
        REASONING,
        CALL,
        {"type": "function_call_output", "call_id": "call_1", "output": "3"},
    ]
    # The record: what was sent, exactly, and what came.
    model = ResponsesModel(config)
    called = [done.record.calls[step] for step in sorted(done.record.calls)]
    for call, body in zip(called, (first, second), strict=True):
        assert (call.provider, call.model, call.response_id) == ("openai-responses", "gpt-x", "resp_1")
        assert call.usage == Usage(10, 7, 17, cached_tokens=4, reasoning_tokens=5)
        prompt = tuple(done.record.path(call.prompt))
        assert json.loads(json.dumps(model.body(ModelRequest(prompt))["input"])) == body["input"]
    assert [call.finish_reason for call in called] == ["tool_calls", "stop"]
    assert "sk-key" not in repr(done.record)
    assert replayed.same


def test_settings_that_are_about_the_cache_and_the_price() -> None:
    model = ResponsesModel(ModelConfig(llm_model_name="gpt-5", llm_prompt_cache=True))
    first, second = model.body(HI), model.body(ModelRequest((*HI.messages, Message("assistant", "Hi."))))
    assert first["prompt_cache_key"] == second["prompt_cache_key"]
    assert "prompt_cache" not in first
    assert model.price == price_of("openai", "gpt-5")
    with pytest.raises(ConfigError, match="keeps no prompt for an hour"):
        ResponsesModel(ModelConfig(llm_model_name="gpt-5", llm_prompt_cache="1h"))


async def test_an_id_that_the_server_gave_twice_names_one_call_each_when_it_goes_back() -> None:
    async with Provider(answer(response(REASONING, CALL, CALL)), answer(response(text("3")))) as provider:
        agent = Agent("adder", model=ResponsesModel(provider.config()), tools=[add])
        assert (await Runners.run("1 + 2, twice?", agent)).answer == "3"
        sent = provider.requests[1].json["input"]
    assert [item["call_id"] for item in sent[2:4]] == [item["call_id"] for item in sent[4:]] == ["call_1", "call_1-1"]
