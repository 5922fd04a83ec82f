"""Agents and teams that are called with more than a text: `as_tool(input=Model)`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field, model_validator
from typing_extensions import TypedDict

from aworld.agents.definitions import travels, unit_of
from aworld.agents.files import dump, load
from aworld.agents.llm_agent import Agent
from aworld.core import event as ev
from aworld.core.agent.swarm import Swarm, TeamSwarm
from aworld.core.exceptions import ConfigError
from aworld.core.task import TaskResponse
from aworld.core.tool.wrappers import renamed
from aworld.models import FunctionModel, ScriptedModel
from aworld.models.doubles import call
from aworld.runner import Runners


class Query(BaseModel):
    """What to look for."""

    topic: str = Field(description="In a few words.")
    depth: int = 2
    tone: Literal["dry", "warm"] = "dry"

    @model_validator(mode="after")
    def possible(self) -> Query:
        if self.topic == "everything" and self.depth > 3:
            raise ValueError("nobody knows everything that well")
        return self


@dataclass
class Place:
    city: str


class Span(TypedDict):
    start: int
    end: int


def echo(name: str = "researcher", desc: str | None = None) -> Agent:
    """Answers with what it is told."""
    return Agent(name, desc=desc, model=FunctionModel(lambda request: request.messages[-1].text))


def lead(*replies: Any, tools: Any = ()) -> Agent:
    return Agent("leader", model=ScriptedModel(replies), tools=tools)


def offered(response: TaskResponse) -> dict[str, Any]:
    return response.trajectory[0]["state"]["tools"][0]["function"]


@pytest.mark.parametrize("kind", ["tool", "team"])
async def test_the_leader_sees_the_schema_and_the_member_gets_the_json(kind: str) -> None:
    callee = echo().as_tool(input=Query, name="research", description="Finds things out.")
    ask = call("research", topic="ice")
    swarm = lead(ask, "done", tools=[callee]) if kind == "tool" else TeamSwarm(lead(ask, "done"), callee)
    response = await Runners.run("x", swarm=swarm)
    assert response.answer == "done"
    schema = offered(response)
    assert (schema["name"], schema["description"]) == ("research", "Finds things out.")
    assert schema["parameters"]["required"] == ["topic"]
    assert schema["parameters"]["properties"]["topic"]["description"] == "In a few words."
    member = next(a for a in response.record.activations.values() if a.agent == "researcher")
    assert member.input is not None
    said = response.record.messages[member.input].message.text
    assert json.loads(said) == {"topic": "ice", "depth": 2, "tone": "dry"}
    results = [event for event in response.record.events if isinstance(event, ev.ToolReturned)]
    assert [(result.name, result.error) for result in results] == [("research", None)]
    report = await Runners.replay(response.record, swarm=swarm)
    assert report.same, report.difference


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"depth": 1}, "- topic: missing, wanted string"),
        ({"topic": "ice", "depth": "deep"}, '- depth: got "deep"'),
        ({"topic": "ice", "tone": "loud"}, "'dry' or 'warm'"),
        ({"topic": "everything", "depth": 9}, "nobody knows everything that well"),
    ],
)
async def test_a_bad_argument_goes_back_to_the_leader(arguments: dict[str, Any], words: str) -> None:
    callee = echo().as_tool(input=Query)
    response = await Runners.run(
        "x", lead(call("researcher", **arguments), call("researcher", topic="ice"), "done", tools=[callee])
    )
    assert response.answer == "done"
    refused, answered = [event for event in response.record.events if isinstance(event, ev.ToolReturned)]
    assert words in (refused.error or "")
    assert answered.error is None
    assert len(response.record.activations) == 2


@pytest.mark.parametrize(("kind", "arguments"), [(Place, {"city": "Oslo"}), (Span, {"start": 1, "end": 2})])
async def test_a_dataclass_and_a_typed_dict_are_inputs_too(kind: Any, arguments: dict[str, Any]) -> None:
    callee = echo().as_tool(input=kind)
    response = await Runners.run("x", lead(call("researcher", **arguments), "done", tools=[callee]))
    assert json.loads(response.trajectory[0]["observation"][0]["content"]) == arguments


async def test_a_team_is_called_in_the_same_way() -> None:
    team = Swarm(echo("first"), echo("second"), name="pair")
    response = await Runners.run("x", lead(call("pair", topic="ice"), "done", tools=[team.as_tool(input=Query)]))
    assert json.loads(response.trajectory[-1]["state"]["messages"][-1]["content"])["topic"] == "ice"


@pytest.mark.parametrize("kind", [str, list[int], dict[str, int], int | Query, lambda: None])
def test_what_is_no_object_with_fields_is_refused(kind: Any) -> None:
    with pytest.raises(ConfigError, match="input= of 'researcher' as a tool"):
        echo().as_tool(input=kind)


def test_a_name_that_providers_refuse_is_refused() -> None:
    with pytest.raises(ConfigError, match="'look up' cannot be the name of a tool"):
        echo().as_tool(name="look up")


def test_definitions_and_files_have_it_all() -> None:
    def member(name: str) -> Agent:
        return Agent(name, model="openai:gpt-4o")

    callee = member("researcher").as_tool(input=Query, name="research", description="Finds things out.")
    agent = Agent("leader", model="openai:gpt-4o", tools=[callee, *renamed(member("critic"), {"critic": "judge"})])
    definition = travels(agent)
    assert definition.model_dump()["tools"] == (
        {"tool": "researcher", "name": "research", "description": "Finds things out.",
         "input": "tests.swarms.test_typed_input:Query"},
        {"tool": "critic", "name": "judge"},
    )  # fmt: skip
    for unit in (agent, TeamSwarm(member("leader"), callee, member("critic"))):
        again = unit_of(travels(unit))
        assert again.definition == unit.definition
        assert load(dump(unit)).definition == unit.definition
    assert isinstance(again, TeamSwarm)
    assert again.definition.parts[::2] == ["leader", "critic"]
    assert [tool.name for tool in again._callees] == ["research", "critic"]
    assert again._callees[0].parameters == callee.parameters
    wrong = definition.model_copy(update={"tools": ({"tool": "researcher", "inputs": "x:Y"},)})
    with pytest.raises(ConfigError, match="inputs"):
        unit_of(wrong)
