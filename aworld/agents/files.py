"""Agents and teams in YAML, the text form of their definitions: `load` reads it, `dump` writes it without loss.

    version: 1
    run: newsroom
    agents:
      researcher: {desc: Finds facts, tools: ["my_tools:search"], model: "openai:gpt-4o"}
      critic: {system_prompt: Say what is wrong.}
      writer: {conf: {llm_temperature: 0.2}}
      counter: {function: "my_rules:count_words"}
      judge: {type: "my_rules:Judge", options: {threshold: 0.5}}
    swarms:
      newsroom: {workflow: [researcher, [critic, counter], writer]}

An agent or swarm is defined once, and named wherever it stands. The words are those of Python: `workflow`, `edges`,
`team` (leader first), `handoff` (pairs), `loop`, `map`, `solver_verifier`, each with the options of its class. Code is
written as `module:name` and imported, the file's own folder before others: load only files that you would run. Keys
come from the environment. Of YAML only plain data is read (the safe tags), keys are text, and none stands twice in a
mapping.

History of the schema: 1, the first.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from pydantic import ValidationError

from aworld.agents.definitions import Maker, travels
from aworld.agents.patterns import Guard
from aworld.agents.references import importable
from aworld.config.conf import AgentConfig
from aworld.core.agent.base import BaseAgent
from aworld.core.agent.flow import Topology, Unit
from aworld.core.agent.swarm import HandoffSwarm, Loop, Map, TeamSwarm, WorkflowSwarm
from aworld.core.checks import hint, nearest, typed
from aworld.core.definition import AgentDefinition, Definition, TeamDefinition, options_of
from aworld.core.exceptions import ConfigError

D = TypeVar("D", AgentDefinition, TeamDefinition)

VERSION = 1
TOP = ("version", "run", "agents", "swarms")
AGENT = (
    "type", "desc", "system_prompt", "instructions", "model", "fallback_on", "model_object", "conf", "tools",
    "tool_names", "mcp_servers", "sandbox", "output_type", "deps_type", "input_guardrails", "output_guardrails",
    "max_steps", "options",
)  # fmt: skip
FUNCTION_AGENT = ("function", "desc")
KINDS: dict[str, type[Topology]] = {
    "workflow": WorkflowSwarm, "edges": WorkflowSwarm, "team": TeamSwarm, "handoff": HandoffSwarm,
    "loop": Loop, "map": Map, "solver_verifier": Guard,
}  # fmt: skip
"""Teams by the word with which a file begins them."""
SUBJECTS = {"loop": ["body"], "map": ["unit"], "solver_verifier": ["solver", "verifier"]}
"""Options that stand at the word itself."""
_NOT_IN_CONF = {
    "llm_api_key": "others can read the file: set LLM_API_KEY in the environment",
    "llm_headers": "others can read the file: give headers in Python",
    "system_prompt": "write it beside it",
    "llm_config": "write its settings in its place",
}
OWN_TEAM = ("type", "desc", "members", "parts", "options")
PAIRS = {
    "edges": "an edge is [FROM, TO] or {from: A, to: B, when: module:function}",
    "handoff": "a hand-off is a pair [FROM, TO]",
}


@typed()
def load(path_or_text: str | Path) -> Unit:
    """The agent or team that a YAML file or text describes. A text that ends in `.yaml` or `.yml` is a path.

    Raises:
        ConfigError: The file cannot be read, or says what cannot be; names the line and the remedy.
    """
    if isinstance(path_or_text, Path) or path_or_text.endswith((".yaml", ".yml")):
        try:
            text = Path(path_or_text).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path_or_text}: cannot be read: {error}.") from error
        with importable(Path(path_or_text).absolute().parent):
            return _AgentsFile(text, str(path_or_text)).root()
    return _AgentsFile(path_or_text, "the text").root()


class _AgentsFile:
    """One document while it is read. Units are made when they are first named, each of its definition."""

    def __init__(self, text: str, source: str) -> None:
        self._source = source
        self._text = YamlText(text, source)
        self._definitions: dict[str, Definition] = {}
        self._units: dict[str, Unit] = {}
        self._unfinished: list[str] = []
        self._named: set[str] = set()
        top = self._mapping(self._text.data, "a file of agents")
        self._refuse_unknown(top, TOP, "The file")
        if top.get("version") != VERSION:
            problem = f"version: {VERSION} is the version that is read here; got {top.get('version')!r}"
            raise self._error(problem, *(["version"] if "version" in top else []))
        self._run: Any = top.get("run")
        self._paths: dict[str, tuple[str, str]] = {}
        for section in ("agents", "swarms"):
            for name in self._mapping(top.get(section), section, section):
                if name in self._paths:
                    raise self._error(f"{name!r} is an agent already; rename one", section, name)
                self._paths[name] = (section, name)

    def root(self) -> Unit:
        """The member that is run. Raises ConfigError when members are left that nobody names."""
        for name, path in self._paths.items():
            self._unit(name, self._text.line(path))
        free = [name for name in self._paths if name not in self._named]
        if self._run is None:
            if len(free) == 1:
                return self._units[free[0]]
            example = (free or list(self._paths) or ["NAME"])[-1]
            raise self._error(f"say which member is run, such as run: {example}", line=1)
        root = self._unit(self._run, self._text.line(["run"]))
        for name in free:
            if name != self._run:
                raise self._error(f"nobody names {name!r}; give it a place or remove it", *self._paths[name])
        return root

    def _unit(self, name: Any, line: int) -> Unit:
        """The agent or swarm of this name, named in this line."""
        if not isinstance(name, str):
            problem = f"a member is text; got {_shown(name)}. Put it in quotes, if that is what is meant"
            raise self._error(problem, line=line)
        if name in self._units:
            return self._units[name]
        if name not in self._paths:
            near = nearest(name, self._paths)
            meant = f"did you mean {near!r}?" if near else f"defined are: {', '.join(self._paths) or 'none'}"
            raise self._error(f"no agent or swarm is named {name!r}; {meant}", line=line)
        if name in self._unfinished:
            way = " → ".join([*self._unfinished[self._unfinished.index(name) :], name])
            raise self._error(f"{name!r} would be a member of itself: {way}", line=line)
        self._unfinished.append(name)
        path = self._paths[name]
        body = self._mapping(self._text.data[path[0]][name], repr(name), *path)
        read = self._agent if path[0] == "agents" else self._team
        definition = self._definitions[name] = read(name, body, path)
        try:
            self._units[name] = Maker(definition, {part: self._units[part] for part in definition.below}).unit()
        except ConfigError as error:
            line = self._text.line_of(error.setting, path) if error.setting else self._text.line(path)
            raise self._error(str(error), line=line) from error
        self._unfinished.pop()
        return self._units[name]

    def _members(self, names: Iterable[Any], path: tuple[str, ...]) -> dict[str, Definition]:
        """The definitions of members that are named below a path."""
        members: dict[str, Definition] = {}
        for name in names:
            self._unit(name, self._text.line_of(name, path))
            self._named.add(name)
            members[name] = self._definitions[name]
        return members

    def _is_member(self, name: Any) -> bool:
        return isinstance(name, str) and (name in self._paths or ":" not in name)

    def _agent(self, name: str, body: dict[str, Any], path: tuple[str, ...]) -> AgentDefinition:
        owner = f"Agent {name!r}"
        self._refuse_unknown(body, FUNCTION_AGENT if "function" in body else AGENT, owner, *path)
        if "function" in body:
            body = {"type": "FunctionAgent", "desc": body.get("desc"), "options": {"function": body["function"]}}
        fields = {"type": "Agent", **body, **self._conf(body.pop("conf", None), owner, *path, "conf")}
        tools = cast("list[Any]", fields["tools"]) if isinstance(fields.get("tools"), list) else []
        fields["units"] = self._members((name for name in _names(tools) if self._is_member(name)), path)
        fields.pop("conf", None)
        return self._defined(AgentDefinition, {"name": name, **fields}, owner, path)

    def _conf(self, value: Any, owner: str, *path: str) -> dict[str, Any]:
        """The settings of the model, and what else stands beside them."""
        conf = self._mapping(value, f"conf of {owner}", *path)
        for key, remedy in _NOT_IN_CONF.items():
            if key in conf:
                raise self._error(f"{owner}: {key} does not go into conf; {remedy}", *path, key)
        try:
            if tools := AgentConfig(**conf).llm_config.llm_native_tools:
                conf["llm_native_tools"] = tools
        except ConfigError as error:
            raise self._error(f"{owner}: {error}", *path, error.setting) from error
        retries = {"output_retries": conf.pop("output_retries")} if "output_retries" in conf else {}
        return {"llm_config": conf, **retries}

    def _team(self, name: str, body: dict[str, Any], path: tuple[str, ...]) -> TeamDefinition:
        owner = f"Swarm {name!r}"
        words = [word for word in KINDS if word in body]
        if "type" in body:
            self._refuse_unknown(body, OWN_TEAM, owner, *path)
            fields = {**body, "members": self._members(body.get("members") or [], path)}
            return self._defined(TeamDefinition, {"name": name, **fields}, owner, path)
        begins = self._text.line(path, value=True)
        if len(words) != 1:
            both = " and ".join(words) or "none of them"
            raise self._error(f"swarm {name!r} is one of {', '.join(KINDS)}; here is {both}", line=begins)
        word, subjects = words[0], SUBJECTS.get(words[0], [])
        subject, options = body.pop(word), options_of(KINDS[word])
        extra = {"edges": ["nodes"], "handoff": ["start"]}.get(word, [])
        takes = [option for option in options if option not in (*subjects, "root_agent")]
        self._refuse_unknown(body, [*takes, "desc", *extra], owner, *path)
        for option in takes:
            if options[option] is inspect.Parameter.empty and option not in body:
                raise self._error(f"{owner} needs {option}: module:function", line=begins)
            if isinstance(options[option], bool) and not isinstance(body.get(option, True), bool):
                raise self._error(f"{owner}: {option} is true or false; got {body[option]!r}", *path, option)
        fields = {"type": KINDS[word].__name__, "desc": body.pop("desc", None)}
        nodes = fields["nodes"] = self._mapping(body.pop("nodes", None), f"nodes of {owner}", *path, "nodes")
        body |= {"root_agent": body.pop("start", None)}
        listed = cast("list[Any]", subject if isinstance(subject, list) and len(subjects) != 1 else [subject])
        if len(subjects) not in (0, len(listed)):
            raise self._error(f"{owner}: write {word}: [{', '.join(subjects).upper()}]", *path, word)
        body |= zip(subjects, listed)
        if not subjects:
            fields["parts"] = self._pairs(subject, word, path) if word in ("edges", "handoff") else subject
        names = [end for end in _names(fields.get("parts", listed)) if end not in nodes]
        names += [
            *_names(list(nodes.values())),
            *(n for n in map(body.get, ("root_agent", "reduce")) if self._is_member(n)),
        ]
        fields |= {"options": _without_none(body), "members": self._members(names, path)}
        return self._defined(TeamDefinition, {"name": name, **fields}, owner, path, word)

    def _pairs(self, subject: Any, word: str, path: tuple[str, ...]) -> Any:
        """Pairs as edges."""
        edges: list[Any] = []
        for index, item in enumerate(cast("list[Any]", subject) if isinstance(subject, list) else ()):
            if isinstance(item, list) and len(cast("list[Any]", item)) == 2:
                edges.append(dict(zip(("from", "to"), cast("list[Any]", item))))
            elif word == "edges" and isinstance(item, dict) and {"from", "to"} <= item.keys():
                edges.append(item)
            else:
                raise self._error(PAIRS[word], *path, word, index)
        return edges if isinstance(subject, list) else subject

    # Pieces of the document

    def _defined(self, kind: type[D], fields: dict[str, Any], owner: str, path: tuple[str, ...], word: str = "") -> D:
        """The definition of these fields. What pydantic says against it is put into the words of the file."""
        try:
            return kind(**_without_none(fields))
        except ConfigError as error:
            if not isinstance(error.__cause__, ValidationError):
                raise self._error(f"{owner}: {error}", *path, error.setting) from error
            first = error.__cause__.errors(include_url=False)[0]
        steps = [word if step == "parts" else step for step in first["loc"]]
        value, key = _shown(first["input"]), str(steps[-1])
        problem = {
            "list_type": f"{key} is a list; got {value}",
            "tuple_type": f"{key} is a list; got {value}",
            "dict_type": f"{key} is a mapping, key: value; got {value}",
            "string_type": f"{key} of {owner} is text; got {value}. Put it in quotes, if that is what is meant",
        }.get(first["type"], f"{owner}: {key}={value}: {first['msg']}")
        raise self._error(problem, *path, *steps)

    def _error(self, text: str, *path: Any, line: int | None = None) -> ConfigError:
        line = self._text.line(path) if line is None else line
        return ConfigError(f"{self._source}, line {line}: {text.rstrip('.')}{'' if text.endswith('?') else '.'}")

    def _mapping(self, value: Any, what: str, *path: Any) -> dict[str, Any]:
        """A copy of a mapping; an empty one in place of nothing."""
        if value is not None and not isinstance(value, dict):
            raise self._error(f"{what} is a mapping, key: value; got {_shown(value)}", *path)
        return dict(cast("dict[str, Any]", value or {}))

    def _refuse_unknown(self, body: Iterable[str], known: Sequence[str], owner: str, *path: Any) -> None:
        for key in body:
            if key not in known:
                raise self._error(f"{owner} has no {key!r}; {hint(key, known)}", *path, key)


def _names(part: Any) -> Iterator[Any]:
    """The names that stand in a part of a team."""
    if isinstance(part, list):
        for item in cast("list[Any]", part):
            yield from _names(item)
    elif isinstance(part, dict):
        body = cast("dict[str, Any]", part)
        yield from _names([body[key] for key in ("from", "to", "member", "tool", "serial") if key in body])
    else:
        yield part


def _shown(value: Any) -> str:
    return "a mapping" if isinstance(value, dict) else "a list" if isinstance(value, list) else repr(value)


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


# Lines


class YamlText:
    """A YAML text: its `data`, and the lines (from 1) on which the data stand.

    A path is made of keys and indices; what it names beyond the data is passed over.
    """

    def __init__(self, text: str, source: str) -> None:
        """Raises ConfigError that names `source` and the line."""
        self._source = source
        self._values: dict[int, Any] = {}
        self._root: Any = None
        try:
            self._loader: Any = yaml.SafeLoader(text)
            self._root = self._loader.get_single_node()
            self.data: Any = None if self._root is None else self._value(self._root)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f", line {mark.line + 1}" if mark is not None else ""
            problem = getattr(error, "problem", None) or str(error).splitlines()[0]
            raise ConfigError(f"{source}{where}: this is not YAML: {problem}.") from error
        except RecursionError as error:
            raise ConfigError(f"{source}: nested too deep.") from error

    def line(self, path: Sequence[Any] = (), *, value: bool = False) -> int:
        """The line of the key or item at the end of a path; with `value`, on which its value begins."""
        key, node = self._node(path)
        return _line(node if value else key)

    def line_of(self, value: Any, path: Sequence[Any]) -> int:
        """The line of the first key or single value below a path that is this; the path's own without one."""
        key, node = self._node(path)
        waiting, seen = [node], set[int]()
        while waiting:
            node = waiting.pop()
            if isinstance(node, yaml.ScalarNode):
                if self._loader.construct_object(node) == value:
                    return _line(node)
            elif id(node) not in seen:
                seen.add(id(node))  # an alias leads to what was looked through
                pairs = isinstance(node, yaml.MappingNode)
                below: list[Any] = [part for pair in node.value for part in pair] if pairs else node.value
                waiting += reversed(below)
        return _line(key)

    def _node(self, path: Sequence[Any]) -> tuple[yaml.Node, yaml.Node]:
        """What stands at the end of a path: the key, or the item itself, and the value."""
        key = node = self._root
        for step in path:
            children: Any = node.value
            if isinstance(node, yaml.MappingNode):
                key, node = next((pair for pair in children if pair[0].value == step), (key, node))
            elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(children):
                key = node = children[step]
        return key, node

    def _value(self, node: yaml.Node) -> Any:
        """A node as data. What an alias stands for is read once, however often it is used."""
        if isinstance(node, yaml.ScalarNode):
            return self._loader.construct_object(node)
        if id(node) in self._values:
            if self._values[id(node)] is None:
                raise self._error(node, "an alias refers to what it is part of")
            return self._values[id(node)]
        self._values[id(node)] = None
        mapping = isinstance(node, yaml.MappingNode)
        value = self._values[id(node)] = self._mapping(node) if mapping else [self._value(n) for n in node.value]
        return value

    def _mapping(self, node: yaml.MappingNode) -> dict[str, Any]:
        data: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            key: Any = self._value(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise self._error(key_node, "merge keys (<<) are not read; write the keys out")
            if not isinstance(key, str):
                raise self._error(key_node, f"a key must be text: put {getattr(key_node, 'value', 'this')} in quotes")
            if key in data:
                raise self._error(key_node, f"{key!r} stands here twice, first in line {lines[key]}")
            data[key], lines[key] = self._value(value_node), _line(key_node)
        return data

    def _error(self, node: yaml.Node, text: str) -> ConfigError:
        return ConfigError(f"{self._source}, line {_line(node)}: {text}.")


def _line(node: yaml.Node | None) -> int:
    return 1 if node is None else node.start_mark.line + 1


# Writing


@typed()
def dump(unit: Unit | Definition) -> str:
    """An agent or team, or its definition, as YAML; `load(dump(x))` has an equal definition. Keys are left out.

    Raises:
        ConfigError: A member has what cannot be written, such as a lambda or a model object; names the member.
    """
    definition = travels(unit) if isinstance(unit, BaseAgent | Topology) else unit
    document: dict[str, Any] = {"version": VERSION, "run": definition.name}
    for part in _all(definition):
        section = "agents" if isinstance(part, AgentDefinition) else "swarms"
        body = _agent_body(part) if isinstance(part, AgentDefinition) else _team_body(part)
        document.setdefault(section, {})[part.name] = body
    return yaml.dump(document, Dumper=_Writer, sort_keys=False, allow_unicode=True, width=110)


def _all(definition: Definition) -> Iterator[Definition]:
    """A definition and all below it, each name once."""
    waiting, seen = [definition], set[str]()
    while waiting:
        part = waiting.pop()
        if part.name not in seen:
            seen.add(part.name)
            yield part
            waiting += part.below.values()


def _agent_body(definition: AgentDefinition) -> dict[str, Any]:
    body = definition.record()
    if definition.type == "FunctionAgent":
        return _without_none({"function": definition.options["function"], "desc": definition.desc})
    retries = {"output_retries": body["output_retries"]} if "output_retries" in body else {}
    body["conf"] = {**definition.llm_config, **retries}
    return {key: body[key] for key in AGENT if body.get(key) and (key, body[key]) != ("type", "Agent")}


def _team_body(definition: TeamDefinition) -> dict[str, Any]:
    body = definition.record()
    parts, options = body.get("parts", []), body.pop("options", {})
    edges = isinstance(parts[0] if parts else None, dict) and "from" in parts[0]
    words = [word for word, kind in KINDS.items() if kind.__name__ == definition.type]
    word = "edges" if "edges" in words and edges else words[0] if words else ""
    rest = {key: body[key] for key in ("nodes", "desc") if key in body}
    if not word:
        fields = {"members": list(definition.members), "parts": parts, "options": options}
        return {"type": definition.type, **{key: value for key, value in fields.items() if value}, **rest}
    names = [options.pop(option) for option in SUBJECTS.get(word, ())]
    subject: Any = names[0] if len(names) == 1 else _Line(names) if names else [_part_body(part) for part in parts]
    start = _without_none({"start": options.pop("root_agent", None)})
    return {word: _Line(subject) if word == "team" else subject, **options, **start, **rest}


def _part_body(part: Any) -> Any:
    match part:
        case [*items]:
            return _Line(map(_part_body, items))
        case {"serial": [*items]}:
            return {"serial": list(map(_part_body, items))}
        case {"from": source, "to": target} if "when" not in part:
            return _Line([source, target])
        case _:
            return part


class _Line(list[Any]):
    """A list that is written in one line."""


class _Writer(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        """Write equal values out, each in its place."""
        return True


def _write_text(dumper: Any, text: str) -> Any:
    style = "|" if "\n" in text else None
    if any(sign in text for sign in "\x85\u2028\u2029"):  # line breaks to YAML, which folds them unless escaped
        style = '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Writer.add_representer(str, _write_text)
_Writer.add_representer(
    _Line, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
)
