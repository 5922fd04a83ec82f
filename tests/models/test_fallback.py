"""One model after another, by rule; on record which answered and which did not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aworld.agents.files import dump, load
from aworld.agents.llm_agent import Agent
from aworld.config.conf import ModelConfig, TaskConfig
from aworld.core.exceptions import ConfigError, ModelError
from aworld.core.message import Message
from aworld.core.model import Delta, ModelRequest, TextDelta
from aworld.core.output import RetryOutput, RunFinished, TextOutput
from aworld.core.task import Task
from aworld.models import CallFailed, Fallback, FunctionModel, ScriptedModel, call_model
from aworld.models.anthropic import AnthropicModel
from aworld.models.openai import OpenAIModel
from aworld.runner import Runners
from aworld.server import ModelServer

from .provider import EVENTS, Provider, answer, broken, chat, chunked, piece, status

HI = ModelRequest(messages=(Message("user", "hi"),))
OVERLOADED = status(529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})
LIMITED = status(429, {"error": {"message": "slow down"}})
REFUSED = status(400, {"error": {"message": "too long"}})


def is_refusal(error: ModelError) -> bool:
    return error.status == 400


async def test_the_next_answers_when_the_first_cannot_serve() -> None:
    async with Provider(OVERLOADED, OVERLOADED, answer(chat("Hello."))) as provider:
        first = AnthropicModel(provider.config(llm_max_retries=1, llm_model_name="claude-x"))
        second = OpenAIModel(provider.config(llm_model_name="gpt-x", llm_temperature=0.5))
        agent = Agent("greeter", model=[first, second], model_settings={"temperature": 0.2, "top_p": 0.9})
        response = await Runners.run("hi", agent)
        asked = [(exchange.json["model"], exchange.json["temperature"]) for exchange in provider.requests]
    assert asked == [("claude-x", 0.2), ("claude-x", 0.2), ("gpt-x", 0.5)]  # what a model sets itself stands
    call = response.record.calls[0]
    assert (response.answer, call.provider, call.model) == ("Hello.", "openai", "m-2")
    assert call.params == {"temperature": 0.5, "top_p": 0.9}
    assert [(attempt.model, attempt.status) for attempt in call.attempts] == [("anthropic:claude-x", 529)] * 2
    assert (await Runners.replay(response, agent)).same
    assert (await Runners.replay(response)).same


@pytest.mark.parametrize(
    ("on", "failure", "falls"),
    [
        (("connection", "rate_limit", "server"), LIMITED, True),
        (("connection", "rate_limit", "server"), broken(b""), True),
        (("connection", "rate_limit", "server"), REFUSED, False),
        (("connection", "rate_limit", "server"), status(401, {"error": "no key"}), False),
        ("auth", status(401, {"error": "no key"}), True),
        ("rate_limit", OVERLOADED, False),
        (is_refusal, REFUSED, True),
    ],
)
async def test_which_errors_lead_to_the_next(on: Any, failure: Any, falls: bool) -> None:
    async with Provider(failure) as provider:
        first = OpenAIModel(provider.config(llm_max_retries=0))
        model = Fallback([first, ScriptedModel(["second"])], on=on)
        if falls:
            assert (await model.generate(HI)).message.text == "second"
        else:
            with pytest.raises(ModelError, match=r"answered (400|401|529)"):
                await model.generate(HI)


async def test_all_fail_and_the_error_names_each() -> None:
    async with Provider(LIMITED, LIMITED, OVERLOADED) as provider:
        first = OpenAIModel(provider.config(llm_max_retries=1, llm_model_name="gpt-x"))
        second = AnthropicModel(provider.config(llm_max_retries=0, llm_model_name="claude-x"))
        agent = Agent("greeter", model=[first, second])
        response = await Runners.run("hi", agent)
    assert response.status == "failed"
    assert response.error == (
        "openai:gpt-x: openai answered 429: slow down (after 2 tries); "
        "anthropic:claude-x: anthropic answered 529: Overloaded (after 3 tries)"
    )
    call = response.record.calls[0]
    assert (call.provider, call.model) == ("fallback", "openai:gpt-x, anthropic:claude-x")
    assert [attempt.model for attempt in call.attempts] == ["openai:gpt-x", "openai:gpt-x", "anthropic:claude-x"]
    assert call.started <= call.attempts[0].at <= call.attempts[-1].at <= call.ended
    assert (await Runners.replay(response, agent)).same


async def test_a_stream_says_that_what_was_shown_is_void() -> None:
    begun = EVENTS + chunked(piece(content="Hel"))
    async with Provider(broken(begun)) as provider:
        first = OpenAIModel(provider.config(llm_max_retries=0, llm_model_name="gpt-x"))
        agent = Agent("greeter", model=Fallback([first, ScriptedModel(["Hello."], name="spare")]))
        stream = Runners.streaming_run_task(Task("hi", agent))
        outputs = [output async for output in stream if isinstance(output, TextOutput | RetryOutput | RunFinished)]
    assert [type(output) for output in outputs] == [TextOutput, RetryOutput, TextOutput, RunFinished]
    retry = outputs[1]
    assert isinstance(retry, RetryOutput)
    assert retry.error.startswith("openai:gpt-x: ")
    assert retry.error.endswith("; now asking scripted:spare")
    deltas: list[Delta] = []
    model = Fallback([FunctionModel(lambda _: ModelError("gone", status=503)), ScriptedModel(["Hello."])])
    assert (await model.stream(HI, deltas.append)).message.text == "Hello."
    assert deltas == [TextDelta("Hello.")]


async def test_one_within_another_and_in_the_place_of_any_model() -> None:
    def down(_: ModelRequest) -> str:
        raise ModelError("down", status=500)

    inner = Fallback([FunctionModel(down, name="a"), FunctionModel(down, name="b")])
    outcome = await call_model(Fallback([inner, ScriptedModel(["third"])]), HI)
    assert [attempt.model for attempt in outcome.attempts] == ["function:a", "function:b"]
    assert outcome.asked is not None
    assert outcome.asked[0].provider == "scripted"
    for model in (inner, Fallback([inner])):
        with pytest.raises(CallFailed, match=r"^function:a: down; function:b: down \(after 2 tries\)$"):
            await call_model(model, HI)


async def test_a_server_of_models_serves_several_as_one() -> None:
    model = Fallback([FunctionModel(lambda _: ModelError("down", status=500)), ScriptedModel(["Hello."])])
    async with ModelServer(model) as server:
        client = OpenAIModel(ModelConfig(llm_base_url=server.base_url, llm_model_name="any"))
        assert (await client.generate(HI)).message.text == "Hello."


async def test_a_list_is_in_the_definition(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    agent = Agent("greeter", model=["openai:gpt-x", "embedded"])
    assert agent.definition.model == ("openai:gpt-x", "embedded")
    assert agent.definition.digest != Agent("greeter", model=["embedded", "openai:gpt-x"]).definition.digest
    for rule in ("auth", is_refusal):
        other = Agent("greeter", model=Fallback(["openai:gpt-x", "embedded"], on=rule))
        assert (
            len({agent.definition.digest, other.definition.digest, Agent.of(other.definition).definition.digest}) == 2
        )
        assert load(dump(other)).definition == other.definition
    async with Provider(LIMITED) as provider:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-own")
        monkeypatch.setenv("OPENAI_BASE_URL", provider.base_url)
        conf = {"llm_max_retries": 0, "llm_max_tokens": 4}
        living = Agent.of(Agent("greeter", conf, model=["openai:gpt-x", "embedded"]).definition)
        response = await Runners.run("hi", living)
        assert provider.requests[0].json["max_tokens"] == 4
    call = response.record.calls[0]
    assert (response.status, call.provider, call.params["max_tokens"]) == ("finished", "embedded", 4)
    assert [attempt.status for attempt in call.attempts] == [429]


def test_a_model_object_does_not_travel() -> None:
    agent = Agent("greeter", model=["openai:gpt-x", ScriptedModel(["ok"])])
    assert agent.definition.model == ("openai:gpt-x", "scripted:scripted")
    with pytest.raises(ConfigError, match="an object that has no name"):
        Agent.of(agent.definition)
    assert Agent.of(agent.definition, like=agent).definition.digest == agent.definition.digest


async def test_a_limit_on_money_wants_a_price_of_each() -> None:
    unknown = OpenAIModel(ModelConfig(llm_model_name="my-own", llm_base_url="http://127.0.0.1:1/v1"))
    task = Task("hi", Agent("greeter", model=[ScriptedModel(["ok"]), unknown]), conf=TaskConfig(max_cost=1))
    with pytest.raises(ConfigError, match="no price of openai:my-own is known"):
        await Runners.run_task(task)


async def test_bad_lists_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for models, words in (([], "give a list of models"), ("openai:gpt-x", "models='openai:gpt-x'"), ([5], r"\[0\]=5")):
        with pytest.raises(ConfigError, match=words):
            Fallback(models)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="on='conection' is not known; did you mean 'connection'"):
        Fallback(["embedded"], on="conection")
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="No API key for anthropic"):  # before the first is asked
        await Runners.run("hi", Agent("greeter", model=[ScriptedModel(["ok"]), "anthropic:claude-x"]))
