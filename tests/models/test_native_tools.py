"""Providers' own tools: sent in each dialect's form, kept as they came, sent back, and shown."""

from __future__ import annotations

import io
import json
from typing import Any

import msgspec
import pytest
from rich.console import Console

from aworld.agents.llm_agent import Agent
from aworld.cmd.trajectory_view import show
from aworld.config.conf import ModelConfig
from aworld.core.exceptions import ConfigError, ModelError
from aworld.core.hooks import HookContext, Hooks
from aworld.core.message import Message, chat_format
from aworld.core.model import Delta, ModelRequest, ToolSchema
from aworld.core.task import Task
from aworld.models import CodeExecution, ScriptedModel, WebSearch, native_uses
from aworld.models.anthropic import AnthropicModel, Block
from aworld.models.gemini import GeminiModel
from aworld.models.native_tools import Location, NativeUse
from aworld.models.openai import OpenAIModel
from aworld.models.openai_responses import ResponsesModel
from aworld.runner import Runners
from aworld.trajectory.summary import Tally

from .provider import DONE, Provider, answer, chat, event, piece, stream

HI = ModelRequest(messages=(Message("user", "What is new?"),))
SEARCH: Block = {"type": "server_tool_use", "id": "srv_1", "name": "web_search", "input": {"query": "news"}}
PAGE: Block = {"type": "web_search_result", "url": "https://n.example/1", "title": "News", "encrypted_content": "E9s="}
FOUND: Block = {"type": "web_search_tool_result", "tool_use_id": "srv_1", "content": [PAGE]}
CITATION: Block = {"type": "web_search_result_location", "url": PAGE["url"], "title": "News", "encrypted_index": "Eo8=",
            "cited_text": "It rained."}  # fmt: skip
RUN: Block = {**SEARCH, "id": "srv_2", "name": "bash_code_execution", "input": {"command": "expr 6 '*' 7"}}
RAN: Block = {"type": "bash_code_execution_tool_result", "tool_use_id": "srv_2",
       "content": {"type": "bash_code_execution_result", "stdout": "42\n", "stderr": "", "return_code": 0,
                   "content": []}}  # fmt: skip
SAID: Block = {"type": "text", "text": "It rained.", "citations": [CITATION]}
CONTENT = [SEARCH, FOUND, RUN, RAN, SAID]
USES = [NativeUse("web_search", "news", "News https://n.example/1"), NativeUse("code_execution", "expr 6 '*' 7", "42")]


def reply(*content: dict[str, Any], stop: str = "end_turn") -> dict[str, Any]:
    return {"type": "message", "id": "msg_1", "model": "claude-x", "content": content, "stop_reason": stop}


def streamed(*content: dict[str, Any]) -> list[bytes]:
    """The same as events: inputs and citations in pieces of their own, as the API sends them."""
    events: list[dict[str, Any]] = [{"type": "message_start", "message": {"id": "msg_1", "model": "claude-x"}}]
    for index, block in enumerate(content):
        begun: Block
        deltas: list[Block]
        match block:
            case {"type": "server_tool_use"}:
                text = json.dumps(block["input"])
                begun, pieces = block | {"input": dict[str, Any]()}, (text[:9], text[9:])
                deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
            case {"type": "text"}:
                begun = {**block, "text": "", "citations": []}
                deltas = [{"type": "citations_delta", "citation": one} for one in block["citations"]]
                deltas.append({"type": "text_delta", "text": block["text"]})
            case _:
                begun, deltas = block, []
        events.append({"type": "content_block_start", "index": index, "content_block": begun})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    events += [{"type": "message_delta", "delta": {"stop_reason": "end_turn"}}, {"type": "message_stop"}]
    return [event(one) for one in events]


@pytest.mark.parametrize("live", [False, True])
async def test_anthropic_searches_and_computes_and_gets_all_of_it_back(live: bool) -> None:
    search = WebSearch(max_uses=2, allowed_domains=("n.example",), location=Location(country="NO", city="Oslo"))
    first = stream(streamed(*CONTENT)) if live else answer(reply(*CONTENT))
    async with Provider(first, answer(reply({"type": "text", "text": "Yes."}))) as provider:
        model = AnthropicModel(provider.config(llm_native_tools=[search, "code_execution"]))
        deltas: list[Delta] = []
        tool = ToolSchema("add", "Adds.", {"type": "object", "properties": {}})
        asked = ModelRequest(HI.messages, tools=(tool,))
        said = await (model.stream(asked, deltas.append) if live else model.generate(asked))
        await model.generate(ModelRequest((*HI.messages, said.message, Message("user", "Sure?"))))
        before, after = (exchange.json for exchange in provider.requests)
    assert before["tools"] == [
        {
            "type": "web_search_20250305",
            "name": "web_search",
            "max_uses": 2,
            "allowed_domains": ["n.example"],
            "user_location": {"type": "approximate", "country": "NO", "city": "Oslo"},
        },
        {"type": "code_execution_20250825", "name": "code_execution"},
        {"name": "add", "description": "Adds.", "input_schema": tool.parameters},
    ]
    assert after["tools"] == before["tools"][:2]
    assert after["messages"][1] == {"role": "assistant", "content": CONTENT}
    assert (said.message.text, said.message.tool_calls) == ("It rained.", ())
    assert native_uses(said.message) == USES


async def test_what_they_did_is_shown_with_the_step() -> None:
    usage = {"input_tokens": 5, "output_tokens": 3, "cache_read_input_tokens": 64, "cache_creation_input_tokens": 32}
    async with Provider(answer({**reply(*CONTENT), "usage": usage})) as provider:
        model = AnthropicModel(provider.config(llm_native_tools=["web_search", "code_execution"]))
        response = await Runners.run("What is new?", Agent("reporter", model=model))
    out = io.StringIO()
    show(Console(file=out, width=120), response.record, Tally.of(response.id, response.record.events).summary())
    shown = [line.rstrip() for line in out.getvalue().splitlines()]
    at = next(n for n, line in enumerate(shown) if "web_search" in line)
    assert [line.strip() for line in shown[at : at + 5]] == [
        "⇢ web_search  news", "← News https://n.example/1", "⇢ code_execution  expr 6 '*' 7", "← 42", "It rained.",
    ]  # fmt: skip
    assert "101 → 3 tokens · 64 cached · 32 put into the cache" in out.getvalue()


@pytest.mark.parametrize("live", [False, True])
async def test_openai_searches_and_computes_and_gets_all_of_it_back(live: bool) -> None:
    page = {"type": "url", "url": "https://n.example/1"}
    output = [
        {"id": "ws_1", "type": "web_search_call", "action": {"type": "search", "query": "news", "sources": [page]}},
        {"id": "ci_1", "type": "code_interpreter_call", "code": "6 * 7", "container_id": "cntr_1",
         "outputs": [{"type": "logs", "logs": "42"}]},
        {"id": "msg_1", "type": "message", "role": "assistant", "content": [
            {"type": "output_text", "text": "It rained.", "annotations": [{"type": "url_citation", **page}]}]},
    ]  # fmt: skip
    whole = {"id": "resp_1", "model": "gpt-x", "status": "completed", "output": output}
    first = stream([event({"type": "response.completed", "response": whole})]) if live else answer(whole)
    search = WebSearch(allowed_domains=("n.example",), location=Location(country="NO"))
    async with Provider(first, answer(whole)) as provider:
        model = ResponsesModel(provider.config(llm_native_tools=[search, "code_execution"]))
        tool = ToolSchema("add", "Adds.", {"type": "object", "properties": {}})
        asked = ModelRequest(HI.messages, tools=(tool,))
        said = await (model.stream(asked, lambda _: None) if live else model.generate(asked))
        await model.generate(ModelRequest((*HI.messages, said.message, Message("user", "Sure?"))))
        before, after = (exchange.json for exchange in provider.requests)
    assert before["tools"] == [
        {
            "type": "web_search",
            "filters": {"allowed_domains": ["n.example"]},
            "user_location": {"type": "approximate", "country": "NO"},
        },
        {"type": "code_interpreter", "container": {"type": "auto"}},
        {"type": "function", "name": "add", "description": "Adds.", "parameters": tool.parameters, "strict": False},
    ]
    assert set(before["include"]) == {
        "reasoning.encrypted_content", "web_search_call.action.sources", "code_interpreter_call.outputs",
    }  # fmt: skip
    assert after["tools"] == before["tools"][:2]
    assert after["input"][1:4] == output
    assert said.message.text == "It rained."
    assert native_uses(said.message) == [
        NativeUse("web_search", "news", "https://n.example/1"),
        NativeUse("code_execution", "6 * 7", "42"),
    ]


@pytest.mark.parametrize("live", [False, True])
async def test_gemini_searches_and_computes_and_gets_all_of_it_back(live: bool) -> None:
    parts = [
        {"executableCode": {"language": "PYTHON", "code": "print(6 * 7)"}},
        {"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "42\n"}},
        {"text": "It rained."},
    ]
    grounding = {
        "webSearchQueries": ["news"],
        "groundingChunks": [{"web": {"uri": "https://n.example/1", "title": "News"}}, {"odd": 5}],
    }
    candidate = {"content": {"parts": parts}, "finishReason": "STOP", "groundingMetadata": grounding}
    whole = {"candidates": [candidate]}
    pieces = [{"candidates": [{"content": {"parts": [part]}}]} for part in parts]
    end = {"candidates": [{"finishReason": "STOP", "groundingMetadata": grounding}]}
    first = stream([event(one) for one in (*pieces, end)]) if live else answer(whole)
    async with Provider(first, answer(whole)) as provider:
        model = GeminiModel(provider.config(llm_native_tools=["web_search", "code_execution"]))
        tool = ToolSchema("now", "", {"type": "object", "properties": {}})
        asked = ModelRequest(HI.messages, tools=(tool,))
        said = await (model.stream(asked, lambda _: None) if live else model.generate(asked))
        await model.generate(ModelRequest((*HI.messages, said.message, Message("user", "Sure?"))))
        before, after = (exchange.json for exchange in provider.requests)
    functions = {"functionDeclarations": [{"name": "now", "description": ""}]}
    assert before["tools"] == [{"googleSearch": {}}, {"codeExecution": {}}, functions]
    assert before["toolConfig"] == {"includeServerSideToolInvocations": True}
    assert after["tools"] == before["tools"][:2]
    assert "toolConfig" not in after
    assert after["contents"][1] == {"role": "model", "parts": parts}
    assert said.message.text == "It rained."
    assert native_uses(said.message) == [
        NativeUse("code_execution", "print(6 * 7)", "42"),
        NativeUse("web_search", "news", "News https://n.example/1"),
    ]


async def test_what_stands_in_the_way_of_a_tool_is_said() -> None:
    config = ModelConfig(llm_model_name="gemini-2.5-pro", llm_native_tools=[{"type": "web_search"}])
    model = GeminiModel(config)
    tool = ToolSchema("now", "", {"type": "object"})
    with pytest.raises(ModelError, match=r"gemini-2.5-pro takes only one of .* take a model of Gemini 3"):
        await model.generate(ModelRequest(HI.messages, tools=(tool,)))


@pytest.mark.parametrize("live", [False, True])
async def test_a_search_of_chat_completions(live: bool) -> None:
    cited = {"type": "url_citation", "url_citation": {"url": "https://n.example/1", "title": "News", "start_index": 0}}
    found = chat("It rained.", message={"annotations": [cited]})
    pieces = [piece(content="It "), piece(content="rained."), piece("stop", annotations=[cited]), DONE]
    async with Provider(stream(pieces) if live else answer(found)) as provider:
        config = provider.config(llm_native_tools=[WebSearch(location=Location(city="Oslo"))])
        model = OpenAIModel(config, provider="openrouter")
        said = await (model.stream(HI, lambda _: None) if live else model.generate(HI))
        place = {"type": "approximate", "approximate": {"city": "Oslo"}}
        assert provider.requests[0].json["web_search_options"] == {"user_location": place}
    assert native_uses(said.message) == [NativeUse("web_search", "", "News https://n.example/1")]
    assert said.message.opaque == {"annotations": [cited]}
    assert "annotations" not in chat_format(said.message)  # no server asks for them, and some would refuse them


async def test_a_paused_turn_goes_on() -> None:
    """A provider whose own tools take long ends a reply with `pause_turn`: asked again, it goes on from there."""
    paused, done = reply(SEARCH, stop="pause_turn"), reply(FOUND, SAID)
    async with Provider(answer(paused), answer(done)) as provider:
        model = AnthropicModel(provider.config(llm_native_tools=["web_search"]))
        response = await Runners.run("What is new?", Agent("reporter", model=model))
        assert provider.requests[1].json["messages"][1:] == [{"role": "assistant", "content": [SEARCH]}]
    assert (response.status, response.answer, len(response.record.calls)) == ("finished", "It rained.", 2)
    assert response.record.calls[0].params["native_tools"] == [{"type": "web_search"}]


def test_native_tools_are_in_the_definition() -> None:
    agent = Agent("reporter", model="anthropic:claude-x", native_tools=[WebSearch(max_uses=3), "code_execution"])
    written = [{"type": "web_search", "max_uses": 3}, {"type": "code_execution"}]
    assert agent.definition.llm_config == {"llm_native_tools": written}
    assert Agent.of(agent.definition).definition.digest == agent.definition.digest


@pytest.mark.parametrize(
    ("provider", "tools", "words"),
    [
        ("openai", [CodeExecution()], "openai:m has no code_execution of its own"),
        ("a server", ["web_search"], "openai:m has no web_search of its own"),
        ("deepseek", ["web_search"], "deepseek:m has no web_search of its own"),
        ("openai", [WebSearch(max_uses=1)], "web_search of openai takes no max_uses"),
        ("openai-responses", [WebSearch(max_uses=1)], "web_search of openai-responses takes no max_uses"),
        ("gemini", [WebSearch(allowed_domains=("x",))], "web_search of gemini takes no allowed_domains"),
        ("embedded", ["web_search"], "embedded:packaged has no web_search of its own"),
    ],
)
async def test_what_a_provider_lacks_is_said_before_any_call(
    provider: str, tools: Any, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-never-used")
    monkeypatch.setenv("DEEPSEEK_API_KEY", "sk-never-used")
    monkeypatch.setenv("GEMINI_API_KEY", "never-used")
    if provider == "a server":  # with OpenAI's protocol: it would pass over what it does not know
        monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
        provider = "openai"
    agent = Agent("reporter", model="embedded" if provider == "embedded" else f"{provider}:m", native_tools=tools)
    with pytest.raises(ConfigError, match=words):
        await Runners.run("What is new?", agent)


@pytest.mark.parametrize(
    ("tools", "words"),
    [
        (["web_serch"], "native_tools: Invalid value 'web_serch'.*known are: code_execution, web_search"),
        ([5], r"native_tools\[0\]=5"),
        ([{"type": "web_search", "max_uses": "many"}], "native_tools: Expected"),
    ],
)
def test_unknown_tools_are_refused(tools: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Agent("reporter", native_tools=tools)
    with pytest.raises(ConfigError, match="takes max_uses"):
        WebSearch(most=3)  # pyright: ignore[reportCallIssue]


async def test_a_hook_lends_them_for_one_call() -> None:
    class Search(Hooks):
        async def before_model(self, at: HookContext, request: ModelRequest) -> ModelRequest:
            return msgspec.structs.replace(request, params={"native_tools": self.tools})

        def __init__(self, tools: Any) -> None:
            self.tools = tools

    async with Provider(answer(reply(*CONTENT))) as provider:
        agent = Agent("reporter", model=AnthropicModel(provider.config()))
        for tools, status in (([WebSearch(max_uses=1)], "finished"), (["web_serch"], "failed"), (5, "failed")):
            task = Task("What is new?", agent, hooks=[Search(tools)])
            response = (await Runners.run_task(task))[task.id]
            assert response.status == status
            assert status == "finished" or "native_tools: " in str(response.error)
        (sent,) = [exchange.json["tools"] for exchange in provider.requests]
    assert sent == [{"type": "web_search_20250305", "name": "web_search", "max_uses": 1}]


@pytest.mark.parametrize(
    "kept",
    [{"anthropic": 5}, {"anthropic": {}}, {"anthropic": {"content": [5]}}, {"annotations": ["x"]},
     {"gemini": {"parts": [5]}}, {"responses": {"output": None}}],
)  # fmt: skip
def test_a_record_of_a_stranger_may_hold_anything(kept: dict[str, Any]) -> None:
    assert native_uses(Message("assistant", "x", opaque=kept)) == []


async def test_a_model_object_is_asked_for_them_too() -> None:
    async with Provider(answer(reply(*CONTENT))) as provider:
        agent = Agent("reporter", model=AnthropicModel(provider.config()), native_tools=["web_search"])
        response = await Runners.run("What is new?", agent)
        assert provider.requests[0].json["tools"] == [{"type": "web_search_20250305", "name": "web_search"}]
    assert response.record.calls[0].params == {"max_tokens": 8192, "native_tools": [{"type": "web_search"}]}
    chat_model = OpenAIModel(ModelConfig(llm_model_name="m", llm_api_key="sk-never-used"))
    with pytest.raises(ConfigError, match="has no code_execution"):
        await Runners.run("What is new?", Agent("reporter", model=chat_model, native_tools=["code_execution"]))
    double = Agent("reporter", model=ScriptedModel(["ok"]), native_tools=["web_search"])  # stands for any model
    assert (await Runners.run("What is new?", double)).answer == "ok"
