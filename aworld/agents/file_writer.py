"""Agents and teams as YAML text; see `aworld.agents.files`."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any, cast

import yaml

from aworld.agents.file_schema import FUNCTIONS, KINDS, NODE, SECRET, VERSION
from aworld.agents.llm_agent import Agent
from aworld.agents.patterns import FunctionAgent, Guard
from aworld.agents.references import find, reference_of
from aworld.core.agent.base import BaseAgent
from aworld.core.agent.flow import Topology, Unit, UnitTool, units_of
from aworld.core.agent.swarm import Edge, HandoffSwarm, Loop, Map, TeamSwarm, WorkflowNode, WorkflowSwarm
from aworld.core.exceptions import ConfigError
from aworld.core.tool.func_to_tool import FunctionTool, as_tools


def dump(unit: Unit) -> str:
    """An agent or team as YAML; `load(dump(x))` has the same settings and structure. Keys and headers are left out.

    Raises:
        ConfigError: A member has what cannot be written, such as a lambda or a model object; names the member.
    """
    sections: dict[str, dict[str, Any]] = {"agents": {}, "swarms": {}}
    for name, member in units_of(unit).items():
        section = "swarms" if isinstance(member, Topology) else "agents"
        sections[section][name] = _swarm(member) if isinstance(member, Topology) else _agent(member)
    document = {"version": VERSION, "run": unit.name, **{key: value for key, value in sections.items() if value}}
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Line(list[Any]):
    """A list that is written in one line."""


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        """Write equal values out, each in its place."""
        return True


def _write_text(dumper: Any, text: str) -> Any:
    style = "|" if "\n" in text else None
    if any(sign in text for sign in "\x85\u2028\u2029"):  # line breaks to YAML, which folds them unless escaped
        style = '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _write_line(dumper: Any, items: _Line) -> Any:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)


_Dumper.add_representer(str, _write_text)
_Dumper.add_representer(_Line, _write_line)


# Agents


def _agent(agent: BaseAgent) -> dict[str, Any]:
    if type(agent) is FunctionAgent:
        function = reference_of(agent.function, f"The function of agent {agent.name!r}")
        return _without_none({"function": function, "desc": agent.desc})
    if type(agent) is not Agent:
        raise ConfigError(
            f"Agent {agent.name!r} is a {type(agent).__name__}; a file has only Agent and function_agent. Make it one "
            "of these, or keep it in Python."
        )
    model = agent._model
    if model is not None and not isinstance(model, str):
        raise ConfigError(
            f"Agent {agent.name!r} has a model object ({type(model).__name__}); name the model in conf= or model="
            '"provider:name", or leave it to the environment.'
        )
    conf = agent.conf.llm_config.model_dump(exclude=set(SECRET), exclude_defaults=True, mode="json")
    if agent.output_retries != type(agent.conf).model_fields["output_retries"].default:
        conf["output_retries"] = agent.output_retries
    output = agent.output_type
    return _without_none(
        {
            "desc": agent.desc,
            "system_prompt": agent.system_prompt,
            "model": model,
            "conf": conf or None,
            "tools": [_tool(tool, agent.name) for tool in agent.toolkit.given] or None,
            "tool_names": list(agent.toolkit.tool_names) or None,
            "output_type": reference_of(output, f"output_type of agent {agent.name!r}") if output is not None else None,
            "max_steps": agent.max_steps,
        }
    )


def _tool(tool: Any, owner: str) -> str:
    if isinstance(tool, UnitTool):
        return tool.unit.name
    what = f"Tool {getattr(tool, 'name', type(tool).__name__)!r} of agent {owner!r}"
    if not isinstance(tool, FunctionTool):
        raise ConfigError(
            f"{what} is a {type(tool).__name__}; a file has only functions of modules. Register it with "
            "@tool(tool_name=...) and name it in tool_names, or keep the agent in Python."
        )
    function = tool.__wrapped__
    reference = f"{function.__module__}:{function.__qualname__}"
    if "<" in reference or function.__module__ == "__main__" or not _same_tool(find(reference, what), tool):
        raise ConfigError(
            f"{what} is not what others find as {reference!r}. Only a function that stands in a module, with @tool on "
            "it or without, can be written."
        )
    return reference


def _same_tool(found: Any, tool: Any) -> bool:
    """Whether what a file finds makes the same tool; a decorated function stands in its module in place of the bare."""
    if found is tool:
        return True
    if not callable(found):
        return False
    made = as_tools(found)[0]
    traits = ("schema", "timeout", "idempotent", "_inline", "__wrapped__")
    return all(getattr(made, trait, None) == getattr(tool, trait) for trait in traits)


# Swarms


def _swarm(swarm: Topology) -> dict[str, Any]:
    match swarm:
        case WorkflowSwarm() if _is_edges(swarm):
            return {"edges": _edges(swarm), **_options("edges", swarm, nodes=_nodes(swarm))}
        case WorkflowSwarm():
            return {"workflow": _chain(swarm.items, swarm.name), **_options("workflow", swarm)}
        case TeamSwarm():
            return {"team": _Line(member.name for member in swarm.members()), **_options("team", swarm)}
        case HandoffSwarm():
            pairs = [_Line((source.name, target.name)) for source, target in swarm.edges]
            start = swarm.root if swarm.root is not swarm.edges[0][0] else None
            return {"handoff": pairs, **_options("handoff", swarm, start=start)}
        case Loop():
            return {"loop": swarm.body.name, **_options("loop", swarm)}
        case Map():
            return {"map": swarm.unit.name, **_options("map", swarm)}
        case Guard():
            pair = _Line((swarm.solver.name, swarm.verifier.name))
            return {"solver_verifier": pair, **_options("solver_verifier", swarm)}
        case _:
            kinds = ", ".join(KINDS)
            raise ConfigError(
                f"{swarm.name!r} is a {type(swarm).__name__}; a file has only {kinds}. Keep it in Python."
            )


def _options(word: str, swarm: Topology, **given: Any) -> dict[str, Any]:
    """The options that differ from their defaults."""
    kind, found = KINDS[word], dict[str, Any]()
    for option, default in kind.options.items():
        value = given[option] if option in given else getattr(swarm, kind.attributes.get(option, option))
        if value is not default and value != default:
            found[option] = _value(value, f"{option}= of {swarm.name!r}", option)
    return found


def _value(value: Any, what: str, option: str) -> Any:
    if option in FUNCTIONS:
        return reference_of(value, what)
    if isinstance(value, BaseAgent | Topology):
        return value.name
    if option == "reduce":
        return reference_of(value, what)
    if option == "state":
        return {key: reference_of(function, f"{what}, {key!r}") for key, function in value.items()}
    return value


def _chain(items: Iterable[Any], owner: str) -> list[Any]:
    """The items of a chain; a serial group in it is the same as its members."""
    flat: list[Any] = []
    for item in items:
        flat += _chain(cast("tuple[Any, ...]", item), owner) if isinstance(item, tuple) else [_group(item, owner)]
    return flat


def _group(item: Any, owner: str) -> Any:
    """A member of a chain: a name, a list side by side, a serial group, or a node with what is special about it."""
    if isinstance(item, tuple):
        return {"serial": _chain(cast("tuple[Any, ...]", item), owner)}
    if isinstance(item, list):
        return _Line(_group(member, owner) for member in cast("list[Any]", item))
    if isinstance(item, WorkflowNode):
        found = _node(item, owner)
        return found if len(found) > 1 else found["member"]
    return item.name


def _node(node: WorkflowNode, owner: str) -> dict[str, Any]:
    found: dict[str, Any] = {"member": node.unit.name}
    for key in NODE[1:]:
        value, default = getattr(node, key), inspect.signature(WorkflowNode).parameters[key].default
        if value != default:
            found[key] = _value(value, f"{key}= of {node.unit.name!r} in {owner!r}", key)
    return found


def _is_edges(swarm: WorkflowSwarm) -> bool:
    return all(
        isinstance(item, Edge) or (isinstance(item, tuple) and len(cast("Any", item)) == 2) for item in swarm.items
    )


def _edges(swarm: WorkflowSwarm) -> list[Any]:
    written: list[Any] = []
    for item in swarm.items:
        edge = item if isinstance(item, Edge) else Edge(*item)
        source, target = (swarm.graph.at(end).id for end in (edge.source, edge.target))
        if edge.when is None:
            written.append(_Line((source, target)))
        else:
            when = reference_of(edge.when, f"when= from {source!r} to {target!r} in {swarm.name!r}")
            written.append({"from": source, "to": target, "when": when})
    return written


def _nodes(swarm: WorkflowSwarm) -> dict[str, Any]:
    """The places of a graph that are more than a member under its own name."""
    nodes: dict[str, Any] = {}
    for id, place in swarm.graph.places.items():
        found = _node(place.node, swarm.name)
        found.pop("name", None)
        if len(found) > 1 or id != place.unit.name:
            nodes[id] = found
    return nodes


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
