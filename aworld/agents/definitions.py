"""Definitions: an agent or a team as data, with a digest, a difference and a text.

    before = definition_of(writer)
    after = before.model_copy(update={"system_prompt": "Be brief."})
    print(diff(before, after), after.digest)
    writer = Agent.of(after)

Code in a definition stands by its name, `module:object`; keys are never in it. YAML is its text form, the files of
`aworld.agents.files`. What cannot be named (a lambda, a model object) has no definition: the error says what it is and
how to name it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple, Self, TypeAlias, cast

import msgspec
import yaml
from pydantic import BaseModel, ConfigDict, JsonValue, model_validator

from aworld.agents.files import dump, load
from aworld.core.agent.flow import Unit
from aworld.core.checks import known_keys
from aworld.core.exceptions import ConfigError


class UnitDefinition(BaseModel):
    """What definitions of agents and teams share. Frozen: a change makes another one, with another digest."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        known_keys(cls.__name__, _keys(data), cls.model_fields, "field")
        return data

    def document(self) -> dict[str, Any]:
        """The definition as the document of a YAML file."""
        raise NotImplementedError

    @property
    def digest(self) -> str:
        """The version: 16 characters, the same in every process, that differ when anything in it does."""
        return hashlib.sha256(msgspec.json.encode(self.document(), order="deterministic")).hexdigest()[:16]

    def to_yaml(self) -> str:
        """The text form, which `load` and `from_yaml` read."""
        return yaml.safe_dump(self.document(), sort_keys=False, allow_unicode=True)

    @classmethod
    def from_yaml(cls, text: str) -> Self:
        """The definition of a text. Raises ConfigError as `load` does, and for a text of the other kind."""
        definition = definition_of(load(text))
        if not isinstance(definition, cls):
            raise ConfigError(f"The text defines a {type(definition).__name__}, not a {cls.__name__}.")
        return definition

    def build(self) -> Unit:
        """The agent or team. Raises ConfigError that names what is not there."""
        return load(self.to_yaml())


def _keys(data: object) -> dict[str, Any]:
    return cast("dict[str, Any]", data) if isinstance(data, dict) else {}


class AgentDefinition(UnitDefinition):
    """An agent: the words of `Agent` and of its files."""

    name: str
    desc: str | None = None
    system_prompt: str | None = None
    model: str | None = None
    """A short form such as `openai:gpt-4o`, or the folder of a policy."""
    conf: dict[str, JsonValue] | None = None
    """Settings of `AgentConfig`, without keys and headers."""
    tools: list[str] | None = None
    """`module:object`, or the name of an agent or a team."""
    tool_names: list[str] | None = None
    output_type: str | None = None
    max_steps: int | None = None
    function: str | None = None
    """`module:object` of an agent that is a function."""

    def body(self) -> dict[str, Any]:
        """What stands under the agent's name in a file."""
        return self.model_dump(mode="json", exclude_none=True, exclude={"name"})

    def document(self) -> dict[str, Any]:
        """See `UnitDefinition.document`."""
        return {"version": 1, "run": self.name, "agents": {self.name: self.body()}}


class TeamDefinition(UnitDefinition):
    """A team and all that it is made of."""

    name: str
    agents: dict[str, AgentDefinition]
    swarms: dict[str, dict[str, JsonValue]]
    """How the members of each team stand, in the words of the files: `workflow`, `team`, `handoff`, …"""

    def document(self) -> dict[str, Any]:
        """See `UnitDefinition.document`."""
        agents = {name: agent.body() for name, agent in self.agents.items()}
        return {"version": 1, "run": self.name, "agents": agents, "swarms": self.swarms}


Definition: TypeAlias = AgentDefinition | TeamDefinition


def definition_of(unit: Unit) -> Definition:
    """The definition of a living agent or team. Raises ConfigError that names what in it has no name."""
    document: dict[str, Any] = yaml.safe_load(dump(unit))
    bodies: dict[str, dict[str, Any]] = document.get("agents", {})
    agents = {name: AgentDefinition(name=name, **body) for name, body in bodies.items()}
    swarms: dict[str, dict[str, Any]] = document.get("swarms", {})
    if not swarms and len(agents) == 1:
        return agents[unit.name]
    return TeamDefinition(name=document["run"], agents=agents, swarms=swarms)


class Change(NamedTuple):
    """What differs between two definitions. A value that one of them lacks is None."""

    path: str
    """Such as `agents.writer.system_prompt` or `agents.writer.tools[1]`."""
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.path}: {self.before!r} → {self.after!r}"


def diff(before: Definition, after: Definition) -> list[Change]:
    """What changed from one definition to another, in the order of the fields."""
    values = [dict(_leaves(one.model_dump(mode="json", exclude_none=True))) for one in (before, after)]
    paths = dict.fromkeys([*values[0], *values[1]])
    changes = [Change(path, values[0].get(path), values[1].get(path)) for path in paths]
    return [change for change in changes if change.before != change.after]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in cast("dict[str, Any]", value).items():
            yield from _leaves(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value:
        for index, item in enumerate(cast("list[Any]", value)):
            yield from _leaves(item, f"{path}[{index}]")
    else:
        yield path, value
