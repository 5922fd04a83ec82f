"""The agent that asks a language model, as a value."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aworld.agents.llm_agent import Agent
from aworld.config import AgentConfig, ModelConfig
from aworld.core.exceptions import ConfigError, ToolError
from aworld.core.model import ModelRequest
from aworld.core.tool.func_to_tool import tool
from aworld.models import FunctionModel, ScriptedModel
from aworld.runner import Runners


def greet(name: str) -> str:
    """Greet somebody."""
    return f"Hello, {name}."


@tool(tool_name="clock")
def now() -> str:
    """Tell the time."""
    return "noon"


def test_it_is_made_without_a_model_or_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLM_MODEL_NAME", raising=False)
    agent = Agent("Summary Agent", system_prompt="You specialize at summarizing.")
    assert (agent.name, agent.id) == ("Summary Agent", "Summary_Agent")
    with pytest.raises(ConfigError, match="LLM_MODEL_NAME"):
        agent.check()


@pytest.mark.parametrize("name", ["", None, 3])
def test_it_needs_a_name(name: Any) -> None:
    with pytest.raises(ConfigError, match=r"An agent needs a name|Agent: name="):
        Agent(name)


@pytest.mark.parametrize(
    "conf",
    [
        AgentConfig(llm_model_name="m", llm_temperature=0.1),
        ModelConfig(llm_model_name="m", llm_temperature=0.1),
        AgentConfig(llm_config=ModelConfig(llm_model_name="m", llm_temperature=0.1)),
        {"llm_model_name": "m", "llm_temperature": 0.1},
    ],
)
def test_settings_may_be_given_in_any_form(conf: Any) -> None:
    agent = Agent("a", conf)
    assert (agent.conf.llm_model_name, agent.conf.llm_temperature) == ("m", 0.1)
    agent.conf.llm_temperature = 0.7
    assert agent.conf.llm_config.llm_temperature == 0.7


def test_a_wrong_form_of_settings_is_refused() -> None:
    wrong: Any = "gpt-4o"
    with pytest.raises(ConfigError, match="conf='gpt-4o'; give an AgentConfig, a ModelConfig, a dict or None"):
        Agent("a", wrong)
    with pytest.raises(ConfigError, match=r"no setting 'llm_modelname'; did you mean 'llm_model_name'\?.*params="):
        AgentConfig(llm_modelname="x")
    conf = AgentConfig()
    with pytest.raises(ConfigError, match="did you mean 'llm_temperature'"):
        conf.llm_temprature = 1.0


def test_settings_are_its_own() -> None:
    conf = AgentConfig(llm_model_name="m")
    first, second = Agent("a", conf), Agent("b", conf)
    first.conf.llm_model_name = "other"
    assert second.conf.llm_model_name == conf.llm_model_name == "m"


def test_tools_of_one_name_are_refused() -> None:
    other = tool(name="greet")(now)
    with pytest.raises(ConfigError, match=r"Two tools of agent 'a' are named 'greet'.*renamed"):
        Agent("a", tools=[greet, other])


def test_registered_tools_are_found_by_name() -> None:
    offer = Agent("a", tools=[greet], tool_names=["clock"]).toolkit.ready()
    assert offer is not None
    assert list(offer.by_name) == ["greet", "now"]
    with pytest.raises(ConfigError, match=r"[Dd]id you mean 'clock'"):
        Agent("a", tool_names=["clok"])


def test_what_a_model_cannot_call_is_refused_when_the_agent_is_made() -> None:
    with pytest.raises(ToolError, match="lambda"):
        Agent("a", tools=[lambda: 1])
    with pytest.raises(ConfigError, match="tool_names="):
        Agent("a", tools=["clock"])


async def test_another_model_for_the_same_agent() -> None:
    agent = Agent("a", model=ScriptedModel(["one"]))
    other = agent.with_model(ScriptedModel(["two"]))
    assert (await Runners.run("x", agent)).answer == "one"
    assert (await Runners.run("x", other)).answer == "two"


async def test_runs_leave_nothing_in_the_agent() -> None:
    agent = Agent("a", model=FunctionModel(lambda request: request.messages[-1].text), tools=[greet])
    await Runners.run("warm up", agent)
    before = dict(vars(agent))
    responses = await asyncio.gather(*(Runners.run(f"{n}", agent) for n in range(50)))
    assert [response.answer for response in responses] == [f"{n}" for n in range(50)]
    assert vars(agent) == before


async def test_the_log_tells_its_settings_without_secrets() -> None:
    conf = AgentConfig(llm_model_name="m", llm_api_key="sk-1", llm_headers={"X": "sk-2"}, llm_base_url="http://h/v1")
    settings = Agent("a", conf, system_prompt="S", desc="D", output_type=int).settings()
    assert settings["llm_config"] == {"llm_model_name": "m", "llm_base_url": "http://h/v1"}
    assert (settings["system_prompt"], settings["desc"]) == ("S", "D")
    assert settings["output_schema"]["properties"] == {"result": {"type": "integer"}}
    assert "sk-" not in repr(settings)


async def test_the_request_says_where_in_the_run_it_is_asked() -> None:
    seen: list[ModelRequest] = []

    def note(request: ModelRequest) -> str:
        seen.append(request)
        return "ok"

    response = await Runners.run("x", Agent("a", model=FunctionModel(note), system_prompt="S"))
    (request,) = seen
    assert (request.turn, request.agent, request.trajectory_id) == (0, "a", response.id)
    assert [message.role for message in request.messages] == ["system", "user"]
