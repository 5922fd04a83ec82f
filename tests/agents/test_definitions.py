"""Agents and teams as data: digests, differences, texts, and back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from aworld.agents.definitions import AgentDefinition, TeamDefinition, definition_of, diff
from aworld.agents.llm_agent import Agent
from aworld.config import AgentConfig
from aworld.core.agent.swarm import HandoffSwarm, Swarm, TeamSwarm
from aworld.core.exceptions import ConfigError
from tests.runners.travelling import place

PLACE = "tests.runners.travelling:place"


def writer(prompt: str = "You write.") -> Agent:
    conf = AgentConfig(llm_model_name="gpt-4o", llm_api_key="sk-secret", llm_temperature=0.2)
    return Agent("writer", conf, desc="Writes.", system_prompt=prompt, tools=[place], max_steps=3)


def test_an_agent_is_its_definition_and_back() -> None:
    definition = writer().definition
    assert isinstance(definition, AgentDefinition)
    assert (definition.name, definition.tools, definition.max_steps) == ("writer", [PLACE], 3)
    assert "sk-secret" not in definition.to_yaml()
    again = Agent.of(definition)
    assert again.definition == definition
    assert again.definition.digest == definition.digest == writer().definition.digest
    assert AgentDefinition.from_yaml(definition.to_yaml()) == definition


def test_a_digest_is_the_same_in_another_process() -> None:
    code = "from tests.agents.test_definitions import writer; print(writer().definition.digest)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
        check=True,
    )
    assert done.stdout.strip() == writer().definition.digest


def test_a_change_is_another_version_and_shown() -> None:
    before = writer().definition
    after = before.model_copy(update={"system_prompt": "Be brief.", "tools": [PLACE, "tests.runners.travelling:hang"]})
    assert before.digest != after.digest
    assert {str(change) for change in diff(before, after)} == {
        "system_prompt: 'You write.' → 'Be brief.'",
        "tools[1]: None → 'tests.runners.travelling:hang'",
    }
    assert Agent.of(after).system_prompt == "Be brief."
    assert diff(before, writer().definition) == []


@pytest.mark.parametrize("kind", [Swarm, TeamSwarm])
def test_a_team_is_made_of_the_definitions_of_its_members(kind: type[Swarm]) -> None:
    team = kind(writer(), Agent("critic"), name="desk")
    definition = definition_of(team)
    assert isinstance(definition, TeamDefinition)
    assert definition.agents["writer"] == writer().definition
    assert definition_of(Agent.of(definition)) == definition
    other = kind(writer("Another prompt."), Agent("critic"), name="desk")
    assert [change.path for change in diff(definition, definition_of(other))] == ["agents.writer.system_prompt"]
    assert definition_of(HandoffSwarm((writer(), Agent("critic")))).digest != definition.digest


def test_what_has_no_name_is_refused_with_what_to_do() -> None:
    def hidden() -> str:
        """Nobody finds this."""
        return ""

    with pytest.raises(ConfigError, match="hidden"):
        _ = Agent("a", tools=[hidden]).definition
    missing = writer().definition.model_copy(update={"tools": ["tests.runners.travelling:plaice"]})
    with pytest.raises(ConfigError, match="plaice"):
        Agent.of(missing)
    with pytest.raises((ConfigError, ValidationError), match="system_prompt"):
        AgentDefinition.model_validate({"name": "a", "system_promt": "x"})
    with pytest.raises(ValidationError, match="frozen"):
        writer().definition.__setattr__("desc", "other")
