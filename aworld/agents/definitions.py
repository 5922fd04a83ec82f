"""From definitions to living agents and teams: `unit_of`, `travels` and `secrets_of`.

`unit_of(unit.definition)` is a unit that acts the same; in another process too, where `travels(unit)` says that it
can be made again, and `secrets_of(unit)` holds what the definition must not.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

from aworld.agents.llm_agent import Agent
from aworld.agents.patterns import FunctionAgent, Guard
from aworld.agents.references import find
from aworld.config.conf import AgentConfig
from aworld.core.agent.base import BaseAgent
from aworld.core.agent.flow import Topology, Unit, UnitTool, units_of
from aworld.core.agent.swarm import Edge, HandoffSwarm, Loop, Map, TeamSwarm, WorkflowNode, WorkflowSwarm
from aworld.core.checks import known_keys, one_of, typed
from aworld.core.definition import (
    SECRET,
    AgentDefinition,
    Defined,
    Definition,
    TeamDefinition,
    is_ready,
    why_not,
)
from aworld.core.exceptions import ConfigError
from aworld.models.fallback import Fallback

READY: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (Agent, FunctionAgent, WorkflowSwarm, TeamSwarm, HandoffSwarm, Loop, Map, Guard)
}
"""The classes that a definition has by their short names."""


@typed()
def travels(unit: Unit) -> Definition:
    """The definition, if another process can make the unit again from it and from `secrets_of(unit)`.

    Raises:
        ConfigError: A member has what has no name there: a lambda, something of the main program, a model object;
            says which, and how to name it.
    """
    for member in units_of(unit).values():
        for _, refusal in member.described().objects.values():
            raise ConfigError(refusal)
    return unit.definition


def secrets_of(unit: Unit) -> dict[str, dict[str, Any]]:
    """What definitions leave out, by agent and setting: keys, headers, servers with a key in their configuration.

    For `unit_of(definition, secrets=...)`, in memory or through a pipe, and never for a file.
    """
    return {name: dict(secrets) for name, member in units_of(unit).items() if (secrets := member.described().secrets)}


@typed()
def unit_of(
    definition: Definition,
    like: Unit | None = None,
    *,
    secrets: Mapping[str, Mapping[str, Any]] | None = None,
) -> Unit:
    """The agent or team that a definition describes.

    Args:
        definition: Of an agent or a team; `Agent.of` is the same for an `Agent`.
        like: A unit from which comes what no definition holds, by the names of agents: keys and headers, model objects,
            functions without a name of their own. So a changed definition of a living agent can be tried.
        secrets: Keys and headers, as `secrets_of` gives them.

    Raises:
        ConfigError: It names what is not there, what cannot be imported, or an argument that its class does not take;
            says where in the definition.
    """
    models = {name: member.described() for name, member in units_of(like).items()} if like is not None else {}
    units: dict[str, tuple[Definition, Unit]] = {}

    def unit(part: Definition, path: str) -> Unit:
        if part.name in units:
            if units[part.name][0] != part:
                raise ConfigError(f"{path}: two different definitions are named {part.name!r}; rename one.")
            return units[part.name][1]
        members = {name: unit(member, f"{path}.{name}") for name, member in part.below.items()}
        description = models.get(part.name)
        objects = {name: value for name, (value, _) in description.objects.items()} if description is not None else {}
        keys = (secrets or {}).get(part.name) or (description.secrets if description is not None else {})
        try:
            living = Maker(part, members, objects, keys).unit()
        except ConfigError as error:
            raise ConfigError(f"Definition of {path}: {error}", setting=error.setting) from error
        units[part.name] = part, living
        return living

    return unit(definition, definition.name)


class Change(NamedTuple):
    """What differs between two definitions. A value that one of them lacks is None."""

    path: str
    """Such as `members.writer.system_prompt`, or `tools[1]`."""
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.path}: {self.before!r} → {self.after!r}"


@typed()
def diff(before: Definition, after: Definition) -> list[Change]:
    """What changed from one definition to another, members included, in the order of the fields."""
    old, new = (dict(_leaves(one.model_dump(mode="json", exclude_defaults=True))) for one in (before, after))
    changes = [Change(path, old.get(path), new.get(path)) for path in {**old, **new}]
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


@dataclass(slots=True)
class Maker:
    """Makes one unit of its definition and of its members."""

    definition: Definition
    members: Mapping[str, Unit]
    objects: Mapping[str, Any] = field(default_factory=dict[str, Any])
    secrets: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def unit(self) -> Unit:
        """The unit. Raises ConfigError."""
        definition = self.definition
        kind = self._kind()
        values = {key: self._option(value, key, kind) for key, value in definition.options.items()}
        values |= {"name": definition.name, "desc": definition.desc}
        items: list[Any] = []
        if isinstance(definition, TeamDefinition):
            items = self._items(definition)
        else:
            values |= self._settings(definition)
        parameters = inspect.signature(kind.__init__).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            values = {key: value for key, value in values.items() if key in parameters or key in definition.options}
        try:
            unit = kind(*items, **values)
        except TypeError as error:
            raise ConfigError(f"{definition.name!r} cannot be made: {error}.") from error
        if isinstance(definition, AgentDefinition) and unit.system_prompt != definition.system_prompt:
            unit = unit.with_system_prompt(definition.system_prompt or "", unit.instructions)
        if not is_ready(kind):
            self._refuse_another(unit)
        return unit

    def _kind(self) -> Any:
        name = self.definition.type
        if ":" not in name:
            return READY[one_of("type", name, READY)]
        kind = self._code(name, f"The class of {self.definition.name!r}")
        base: type[Any] = Topology if isinstance(self.definition, TeamDefinition) else BaseAgent
        if not isinstance(kind, type) or not issubclass(kind, base):
            raise ConfigError(f"{name!r} is no class of {base.__name__}.", setting=name)
        return kind

    def _refuse_another(self, unit: Unit) -> None:
        """A class of somebody's own may make what it likes of its arguments."""
        changes = [c for c in diff(self.definition, unit.definition) if not c.path.startswith("output_schema")]
        if changes:
            kind = type(unit).__name__
            raise ConfigError(f"{kind} makes another {self.definition.name!r} of its definition: {changes[0]}.")

    def _code(self, reference: str, what: str) -> Any:
        if reference in self.objects:
            return self.objects[reference]
        if trouble := why_not(reference):
            raise ConfigError(
                f"{what}, {reference!r}, is {trouble}. Name it as module:object where others can import it.",
                setting=reference,
            )
        return find(reference, what)

    def _option(self, value: Any, option: str, kind: type[Defined]) -> Any:
        what = f"{option}= of {self.definition.name!r}"
        if isinstance(value, dict):
            table = cast("dict[str, Any]", value)
            if table.keys() == {"code"}:
                return self._code(table["code"], what)
            if table.keys() == {"member"}:
                return self._member(table["member"])
            return {key: self._option(item, option, kind) for key, item in table.items()}
        if isinstance(value, list):
            return [self._option(item, option, kind) for item in cast("list[Any]", value)]
        if option in kind._named and isinstance(value, str):
            return self.members[value] if value in self.members else self._code(value, what)
        return value

    def _member(self, name: str) -> Unit:
        owner = self.definition.name
        return self.members[one_of(f"a member of {owner!r}", name, self.members)]

    # Teams

    def _items(self, definition: TeamDefinition) -> list[Any]:
        nodes = {id: self._node(part, id) for id, part in definition.nodes.items()}
        items: list[Any] = []
        for part in definition.parts:
            item = self._item(part, nodes)
            serial = isinstance(part, dict) and "serial" in part  # in a chain it is the same as its members
            items += item if serial else [item]
        return items

    def _item(self, part: Any, nodes: Mapping[str, Any]) -> Any:
        match part:
            case str():
                return nodes.get(part) or self._member(part)
            case list():
                return [self._item(member, nodes) for member in cast("list[Any]", part)]
            case {"serial": [*members]}:
                known_keys("A serial group", part, ("serial",), "key")
                return tuple(self._item(member, nodes) for member in members)
            case {"tool": name}:
                known_keys("A member as a tool", part, ("tool", "name", "description", "input"), "key")
                input = self._code(part["input"], f"input= of {name!r} as a tool") if "input" in part else None
                return UnitTool(self._member(name), part.get("name"), part.get("description"), input)
            case {"from": source, "to": target}:
                known_keys("An edge", part, ("from", "to", "when"), "key")
                ends = self._item(source, nodes), self._item(target, nodes)
                what = f"when= from {source!r} to {target!r} in {self.definition.name!r}"
                return Edge(*ends, self._code(part["when"], what)) if part.get("when") else ends
            case _:
                return self._node(part, None)

    def _node(self, part: Any, name: Any) -> WorkflowNode:
        if not isinstance(part, dict) or "member" not in part:
            raise ConfigError(f"write {{member: NAME, ...}}, or {{serial: [...]}} for a group; got {part!r}")
        node = cast("dict[str, Any]", part)
        name = name or node.get("name")
        known_keys("A member", node, ("member", "name", "input", "on_error", "retries"), "key")
        make = self._code(node["input"], f"input= of {node['member']!r}") if node.get("input") else None
        return WorkflowNode(self._member(node["member"]), make, node.get("on_error"), node.get("retries", 0), name)

    # Agents

    def _settings(self, definition: AgentDefinition) -> dict[str, Any]:
        """The arguments of `Agent`, those that differ from their defaults."""
        name, settings = definition.name, dict[str, Any]()
        changed = definition.model_fields_set & {"system_prompt", "tool_names", "max_steps", "model"}
        settings |= {key: value for key in changed if (value := getattr(definition, key))}
        conf = {**definition.llm_config, **{k: v for k, v in self.secrets.items() if not k.startswith("mcp_servers.")}}
        if definition.output_retries != AgentDefinition.model_fields["output_retries"].default:
            conf["output_retries"] = definition.output_retries
        if conf:
            settings["conf"] = AgentConfig(**conf)
        if definition.tools:
            settings["tools"] = [
                self._item(tool, {}) if not isinstance(tool, str) or tool in definition.units
                else self._code(tool, f"Tool of Agent {name!r}")
                for tool in definition.tools
            ]  # fmt: skip
        for key in ("input_guardrails", "output_guardrails"):
            if references := getattr(definition, key):
                settings[key] = [self._code(reference, f"{key} of Agent {name!r}") for reference in references]
        if definition.mcp_servers:
            settings["mcp_config"] = {"mcpServers": self._servers(definition)}
        if (on := definition.fallback_on) is not None:
            rule = self._code(on, f"fallback_on of Agent {name!r}") if isinstance(on, str) and ":" in on else on
            settings["model"] = Fallback(definition.model or (), rule)
        for key, option in (
            ("sandbox", "sandbox"),
            ("output_type", "output_type"),
            ("deps_type", "deps_type"),
            ("model_object", "model"),
            ("instructions", "system_prompt"),
        ):
            if (reference := getattr(definition, key)) is not None:
                settings[option] = self._code(reference, f"{key} of Agent {name!r}")
        return settings

    def _servers(self, definition: AgentDefinition) -> dict[str, Any]:
        servers: dict[str, Any] = {}
        for server, conf in definition.mcp_servers.items():
            servers[server] = self.secrets.get(f"mcp_servers.{server}", conf)
            if SECRET in repr(servers[server]):
                raise ConfigError(
                    f"MCP server {server!r} of agent {definition.name!r} has a key written out, which no definition "
                    "holds: write ${NAME} in its configuration, and set NAME in the environment."
                )
        return servers
