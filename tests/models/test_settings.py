"""How a model is asked: one set of words, put into those of each API; for one call by a hook; the cache of prompts."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from aworld.agents.llm_agent import Agent
from aworld.config.conf import ModelConfig, ModelSettings
from aworld.core.exceptions import ConfigError, ModelError
from aworld.core.hooks import HookContext, Hooks
from aworld.core.message import Message, ToolCall, Usage
from aworld.core.model import ModelRequest, ToolSchema
from aworld.core.task import Task
from aworld.models import build_model
from aworld.models.anthropic import AnthropicModel
from aworld.models.openai import OpenAIModel
from aworld.runner import Runners

from .provider import Provider, answer, chat

TOOL = ToolSchema("add", "Adds.", {"type": "object", "properties": {}})
HI = ModelRequest(messages=(Message("system", "Be brief."), Message("user", "hi")), tools=(TOOL,))
SAID: dict[str, Any] = {
    "type": "message", "id": "msg_1", "model": "claude-x", "content": [{"type": "text", "text": "ok"}],
    "stop_reason": "end_turn",
}  # fmt: skip
CALLED: dict[str, Any] = {**SAID, "content": [{"type": "tool_use", "id": "t1", "name": "add", "input": {}}]}
MARK = {"type": "ephemeral"}


def body(kind: type[OpenAIModel] | type[AnthropicModel], params: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """What is sent with these settings, beside the messages and tools."""
    model = kind(ModelConfig(llm_model_name="m", llm_base_url="http://127.0.0.1:1/v1", **settings))
    sent = model.body(msgspec.structs.replace(HI, params=params))
    return {key: value for key, value in sent.items() if key not in ("messages", "model", "system", "tools")}


CHAT_TOOL = {"type": "function", "function": {"name": "add"}}


@pytest.mark.parametrize(
    ("settings", "openai", "anthropic"),
    [
        ({"tool_choice": "auto"}, {"tool_choice": "auto"}, {"tool_choice": {"type": "auto"}}),
        ({"tool_choice": "required"}, {"tool_choice": "required"}, {"tool_choice": {"type": "any"}}),
        ({"tool_choice": "none"}, {"tool_choice": "none"}, {"tool_choice": {"type": "none"}}),
        ({"tool_choice": "add"}, {"tool_choice": CHAT_TOOL}, {"tool_choice": {"type": "tool", "name": "add"}}),
        ({"parallel_tool_calls": False}, {"parallel_tool_calls": False},
         {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}),
        ({"parallel_tool_calls": True, "tool_choice": "required"},
         {"parallel_tool_calls": True, "tool_choice": "required"},
         {"tool_choice": {"type": "any", "disable_parallel_tool_use": False}}),
        ({"max_tokens": 9, "top_p": 0.5}, {"max_tokens": 9, "top_p": 0.5}, {"max_tokens": 9, "top_p": 0.5}),
        ({"stop": ["x"]}, {"stop": ["x"]}, {"stop_sequences": ["x"]}),
        ({"prompt_cache": False}, {}, {}),
        ({"reasoning_effort": "low"}, {"reasoning_effort": "low"}, {"output_config": {"effort": "low"}}),
    ],
)  # fmt: skip
def test_settings_in_the_words_of_each_api(
    settings: dict[str, Any], openai: dict[str, Any], anthropic: dict[str, Any]
) -> None:
    fixed = {f"llm_{name}": value for name, value in settings.items()}
    for kind, words in ((OpenAIModel, openai), (AnthropicModel, {"max_tokens": 8192, **anthropic})):
        assert body(kind, {}, **fixed) == words
        assert body(kind, settings, llm_tool_choice=None) == words  # for this call alone
    assert body(OpenAIModel, {"seed": 1, "logit_bias": {"50256": -100}}) == {"seed": 1, "logit_bias": {"50256": -100}}


def test_a_call_takes_a_setting_back() -> None:
    assert body(OpenAIModel, {"temperature": None}, llm_temperature=0.5, llm_top_p=0.9) == {"top_p": 0.9}
    assert body(AnthropicModel, {"parallel_tool_calls": False}, llm_tool_choice="required") == {
        "max_tokens": 8192, "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seed": 1}, "anthropic has no seed: leave it"),
        ({"logit_bias": {"1": 5}}, "anthropic has no logit_bias"),
        ({"native_tools": ["web_search"], "max_tokens": "many"}, "max_tokens: Input should be a valid integer"),
        ({"temprature": 1}, "model_settings has no setting 'temprature'; did you mean 'temperature'"),
        ({"prompt_cache": "1d"}, "prompt_cache"),
        (5, "model_settings=5; give a dict"),
        ({"params": 5}, "params: Input should be a valid dictionary"),
        ({"params": {"messages": []}}, "messages: would be sent in place of what the log says"),
    ],
)
async def test_what_cannot_be_is_said_before_any_call(settings: Any, words: str) -> None:
    conf = ModelConfig(llm_api_key="sk-never-used", llm_provider="anthropic", llm_model_name="m")
    with pytest.raises(ConfigError, match=words):
        await Runners.run("hi", Agent("a", conf, model_settings=settings))


def test_models_without_a_word_for_a_setting_say_so() -> None:
    with pytest.raises(ConfigError, match="embedded has no tool_choice"):
        build_model(ModelConfig(llm_provider="embedded", llm_tool_choice="required"))
    with pytest.raises(ConfigError, match="openai has no tool_choice"):  # offered in words, no call can be forced
        build_model(ModelConfig(llm_model_name="m", llm_base_url="http://127.0.0.1:1", llm_tool_mode="prompt",
                                llm_tool_choice="required"))  # fmt: skip
    with pytest.raises(ModelError, match="anthropic has no logit_bias"):
        body(AnthropicModel, {"logit_bias": {"1": 5}})
    assert body(AnthropicModel, {"seed": 5}) == {"max_tokens": 8192}  # rollouts send one with every request
    with pytest.raises(ConfigError, match="prompt_cache=True"):
        body(OpenAIModel, {}, llm_prompt_cache="1h")


class ForceFirst(Hooks):
    """The first call must use a tool."""

    async def before_model(self, at: HookContext, request: ModelRequest) -> ModelRequest | None:
        """Ask for a tool in the first call alone."""
        params = ModelSettings(tool_choice="required")
        return msgspec.structs.replace(request, params={**request.params, **params}) if request.turn == 0 else None


def add(a: int = 1, b: int = 1) -> int:
    """Adds."""
    return a + b


async def test_a_hook_changes_the_settings_of_one_call() -> None:
    called = chat(None, message={"tool_calls": [{"id": "c1", "function": {"name": "add", "arguments": "{}"}}]})
    async with Provider(answer(called), answer(chat("2"))) as provider:
        agent = Agent("adder", provider.config(), tools=[add], model_settings={"top_p": 0.5, "params": {"top_k": 4}})
        task = Task("1 + 1?", agent, hooks=[ForceFirst()])
        response = (await Runners.run_task(task))[task.id]
        sent = [exchange.json.get("tool_choice") for exchange in provider.requests]
        assert provider.requests[0].json["top_k"] == 4
    assert (response.answer, sent) == ("2", ["required", None])
    assert [call.params for call in response.record.calls.values()] == [
        {"top_p": 0.5, "top_k": 4, "tool_choice": "required"}, {"top_p": 0.5, "top_k": 4},
    ]  # fmt: skip
    assert agent.definition.llm_config["llm_top_p"] == 0.5  # one place, whichever way it was said
    assert (
        Agent("adder", provider.config(llm_top_p=0.5, params={"top_k": 4}), tools=[add]).definition == agent.definition
    )


@pytest.mark.parametrize(("kept", "mark"), [(True, MARK), ("1h", {**MARK, "ttl": "1h"})])
async def test_anthropic_is_told_up_to_where_to_keep_the_prompt(kept: Any, mark: dict[str, Any]) -> None:
    usage = {"input_tokens": 5, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 20, "output_tokens": 3}
    async with Provider(answer({**CALLED, "usage": usage}), answer(SAID)) as provider:
        model = AnthropicModel(provider.config(llm_prompt_cache=kept))
        said = await model.generate(HI)
        result = Message("tool", "2", tool_call_id="t1", name="add")
        await model.generate(msgspec.structs.replace(HI, messages=(*HI.messages, said.message, result)))
        first, second = (exchange.json for exchange in provider.requests)
    assert first["system"] == [{"type": "text", "text": "Be brief.", "cache_control": mark}]
    assert first["tools"][-1]["cache_control"] == mark
    assert first["messages"] == [{"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": mark}]}]
    assert second["messages"][0]["content"] == [{"type": "text", "text": "hi"}]
    assert second["messages"][2]["content"][-1]["cache_control"] == mark
    assert "prompt_cache" not in first
    assert said.message.tool_calls == (ToolCall("t1", "add", "{}"),)
    assert said.usage == Usage(125, 3, 128, cached_tokens=100, cache_write_tokens=20)


async def test_openai_is_told_which_conversation_it_is() -> None:
    usage = {"prompt_tokens": 2000, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 1920}}
    begun = (Message("system", "Be brief."), Message("user", "hi"))
    later = (*begun, Message("assistant", "Hello."), Message("user", "And now?"))
    async with Provider(*(answer({**chat("ok"), "usage": usage}) for _ in range(4))) as provider:
        model = OpenAIModel(provider.config(llm_prompt_cache=True))
        for messages in (begun, later, (Message("user", "bye"),)):
            said = await model.generate(ModelRequest(messages=messages))
        await OpenAIModel(provider.config(params={"prompt_cache_key": "own"}, llm_prompt_cache=True)).generate(HI)
        keys = [exchange.json["prompt_cache_key"] for exchange in provider.requests]
    assert keys[0] == keys[1] != keys[2]
    assert keys[3] == "own"
    assert said.usage is not None
    assert said.usage.cached_tokens == 1920
