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
come from the environment.

History of the schema: 1, the first.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from pydantic import ValidationError

from aworld.agents.definitions import Maker, travels
from aworld.agents.llm_agent import SECRET_SETTINGS
from aworld.agents.patterns import Guard
from aworld.agents.references import importable
from aworld.agents.yaml_lines import YamlText
from aworld.config.conf import AgentConfig
from aworld.core.agent.base import BaseAgent
from aworld.core.agent.flow import Topology, Unit
from aworld.core.agent.swarm import HandoffSwarm, Loop, Map, TeamSwarm, WorkflowSwarm
from aworld.core.checks import hint, nearest
from aworld.core.definition import AgentDefinition, Definition, TeamDefinition, options_of
from aworld.core.exceptions import ConfigError

D = TypeVar("D", AgentDefinition, TeamDefinition)

VERSION = 1
TOP = ("version", "run", "agents", "swarms")
AGENT = (
    "type", "desc", "system_prompt", "model", "model_object", "conf", "tools", "tool_names", "mcp_servers", "sandbox",
    "output_type", "max_steps", "options",
)  # fmt: skip
FUNCTION_AGENT = ("function", "desc")
KINDS: dict[str, type[Topology]] = {
    "workflow": WorkflowSwarm, "edges": WorkflowSwarm, "team": TeamSwarm, "handoff": HandoffSwarm,
    "loop": Loop, "map": Map, "solver_verifier": Guard,
}  # fmt: skip
"""Teams by the word with which a file begins them."""
SUBJECTS = {"loop": ["body"], "map": ["unit"], "solver_verifier": ["solver", "verifier"]}
"""Options that stand at the word itself."""
OWN_TEAM = ("type", "desc", "members", "parts", "options")
EDGE_FORM = "an edge is [FROM, TO] or {from: A, to: B, when: module:function}"


def load(path_or_text: str | Path) -> Unit:
    """The agent or team that a YAML file or text describes. A text that ends in `.yaml` or `.yml` is a path.

    Raises:
        ConfigError: The file cannot be read, or (`FileError`) says what cannot be; names the line and the remedy.
    """
    if isinstance(path_or_text, Path) or path_or_text.endswith((".yaml", ".yml")):
        try:
            text = Path(path_or_text).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path_or_text}: cannot be read: {error}.") from error
        with importable(Path(path_or_text).absolute().parent):
            return _AgentsFile(text, str(path_or_text)).root()
    return _AgentsFile(path_or_text, "the text").root()


class FileError(ConfigError):
    """A file of agents says what cannot be. The message begins with the file and the line."""


class _AgentsFile:
    """One document while it is read. Units are made when they are first named, each of its definition."""

    def __init__(self, text: str, source: str) -> None:
        self._source = source
        self._text = YamlText(text, source)
        self._definitions: dict[str, Definition] = {}
        self._units: dict[str, Unit] = {}
        self._unfinished: list[str] = []
        self._named: set[str] = set()
        top = self._mapping(self._text.data, [], "a file of agents")
        self._refuse_unknown(top, TOP, "The file", [])
        if top.get("version") != VERSION:
            problem = f"version: {VERSION} is the version that is read here; got {top.get('version')!r}"
            raise self._error(self._text.line(["version"]) if "version" in top else 1, problem)
        self._run: Any = top.get("run")
        self._paths: dict[str, list[str]] = {}
        for section in ("agents", "swarms"):
            for name in self._mapping(top.get(section), [section], section):
                if name in self._paths:
                    raise self._error(self._text.line([section, name]), f"{name!r} is an agent already; rename one")
                self._paths[name] = [section, name]

    def root(self) -> Unit:
        """The member that is run. Raises ConfigError when members are left that nobody names."""
        for name, path in self._paths.items():
            self._unit(name, self._text.line(path))
        free = [name for name in self._paths if name not in self._named]
        if self._run is None:
            if len(free) != 1:
                example = (free or list(self._paths) or ["NAME"])[-1]
                raise self._error(1, f"say which member is run, such as run: {example}")
            return self._units[free[0]]
        if not isinstance(self._run, str):
            raise self._error(self._text.line(["run"]), f"run is text; got {_shown(self._run)}")
        root = self._unit(self._run, self._text.line(["run"]))
        for name in free:
            if name != self._run:
                problem = f"nobody names {name!r}; give it a place or remove it"
                raise self._error(self._text.line(self._paths[name]), problem)
        return root

    def _unit(self, name: str, line: int) -> Unit:
        """The agent or swarm of this name, named in this line."""
        if name in self._units:
            return self._units[name]
        if name not in self._paths:
            near = nearest(name, self._paths)
            meant = f"did you mean {near!r}?" if near else f"defined are: {', '.join(self._paths) or 'none'}"
            raise self._error(line, f"no agent or swarm is named {name!r}; {meant}")
        if name in self._unfinished:
            way = " → ".join([*self._unfinished[self._unfinished.index(name) :], name])
            raise self._error(line, f"{name!r} would be a member of itself: {way}")
        self._unfinished.append(name)
        path = self._paths[name]
        body = self._mapping(self._text.data[path[0]][name], path, repr(name))
        definition = self._agent(name, body, path) if path[0] == "agents" else self._team(name, body, path)
        try:
            unit = Maker(definition, {part: self._units[part] for part in definition.below}).unit()
        except ConfigError as error:
            at = self._text.line_of(error.setting, path) if error.setting else self._text.line(path)
            raise self._error(at, str(error)) from error
        self._unfinished.pop()
        self._definitions[name], self._units[name] = definition, unit
        return unit

    def _members(self, names: Iterable[Any], path: list[str]) -> dict[str, Definition]:
        """The definitions of members that are named below a path."""
        members: dict[str, Definition] = {}
        for name in names:
            line = self._text.line_of(name, path)
            if not isinstance(name, str):
                raise self._error(line, f"a member is text; got {_shown(name)}. Put it in quotes, if that is meant")
            self._named.add(name)
            self._unit(name, line)
            members[name] = self._definitions[name]
        return members

    def _is_member(self, name: Any) -> bool:
        return isinstance(name, str) and (name in self._paths or ":" not in name)

    def _agent(self, name: str, body: dict[str, Any], path: list[str]) -> AgentDefinition:
        owner = f"Agent {name!r}"
        if "function" in body:
            self._refuse_unknown(body, FUNCTION_AGENT, owner, path)
            body = {"type": "FunctionAgent", "desc": body.get("desc"), "options": {"function": body["function"]}}
        self._refuse_unknown(body, AGENT, owner, path)
        conf = self._conf(body.pop("conf", None), owner, [*path, "conf"])
        fields = {"name": name, "type": "Agent", **{k: v for k, v in body.items() if v is not None}, **conf}
        tools = fields.get("tools", ())
        names = [tool for tool in cast("list[Any]", tools) if self._is_member(tool)] if isinstance(tools, list) else []
        return self._defined(AgentDefinition, {**fields, "units": self._members(names, path)}, owner, path)

    def _conf(self, value: Any, owner: str, path: list[str]) -> dict[str, Any]:
        """The settings of the model, and what else stands beside them."""
        conf = self._mapping(value, path, f"conf of {owner}")
        for key in conf:
            line = self._text.line([*path, key])
            if key in SECRET_SETTINGS:
                remedy = "set LLM_API_KEY in the environment" if key == "llm_api_key" else "give headers in Python"
                raise self._error(line, f"{owner} has {key} in the file, where others can read it; {remedy}")
            if key in ("system_prompt", "llm_config"):
                raise self._error(line, f"{owner}: {key} does not go into conf; write it beside it")
            if key not in AgentConfig.known():
                raise self._error(line, f"{owner} has no setting {key!r}; {hint(key, AgentConfig.known())}")
        try:
            AgentConfig(**conf)
        except ValidationError as error:
            first = error.errors()[0]
            problem = f"{owner}: {first['loc'][0]}: {first['msg']}"
            raise self._error(self._text.line([*path, *first["loc"]]), problem) from error
        retries = {"output_retries": conf.pop("output_retries")} if "output_retries" in conf else {}
        return {"llm_config": conf, **retries}

    def _team(self, name: str, body: dict[str, Any], path: list[str]) -> TeamDefinition:
        owner = f"Swarm {name!r}"
        if "type" in body:
            self._refuse_unknown(body, OWN_TEAM, owner, path)
            members = self._members(body.get("members") or [], path)
            return self._defined(TeamDefinition, {"name": name, **body, "members": members}, owner, path)
        words = [word for word in KINDS if word in body]
        if len(words) != 1:
            both = " and ".join(words) or "none of them"
            problem = f"swarm {name!r} is one of {', '.join(KINDS)}; here is {both}"
            raise self._error(self._text.line(path, value=True), problem)
        word = words[0]
        subject = body.pop(word)
        self._refuse_unknown(body, _keys(word), owner, path)
        self._refuse_values(body, options_of(KINDS[word]), word, owner, path)
        fields: dict[str, Any] = {"name": name, "type": KINDS[word].__name__, "desc": body.pop("desc", None)}
        nodes = fields["nodes"] = self._mapping(body.pop("nodes", None), [*path, "nodes"], f"nodes of {owner}")
        if body.get("start") is not None:
            body["root_agent"] = body.pop("start")
        options = fields["options"] = {key: value for key, value in body.items() if value is not None}
        if word in SUBJECTS:
            listed = subject if isinstance(subject, list) else [subject]
            if len(cast("list[Any]", listed)) != len(SUBJECTS[word]) or not all(isinstance(s, str) for s in listed):
                example = "solver_verifier: [SOLVER, VERIFIER]" if word == "solver_verifier" else f"{word}: MEMBER"
                raise self._error(self._text.line([*path, word]), f"{owner}: write {example}")
            options |= zip(SUBJECTS[word], listed)
        else:
            fields["parts"] = self._pairs(subject, word, [*path, word]) if word in ("edges", "handoff") else subject
        names = [end for end in _names(fields.get("parts")) if end not in nodes]
        names += [*_names(list(nodes.values())), *(options[key] for key in SUBJECTS.get(word, ()))]
        names += [options[key] for key in ("root_agent", "reduce") if self._is_member(options.get(key))]
        return self._defined(TeamDefinition, {**fields, "members": self._members(names, path)}, owner, path, word)

    def _refuse_values(
        self, body: dict[str, Any], options: Mapping[str, Any], word: str, owner: str, path: list[str]
    ) -> None:
        for option, default in options.items():
            if default is inspect.Parameter.empty and option not in (*body, *SUBJECTS.get(word, ())):
                raise self._error(self._text.line(path, value=True), f"{owner} needs {option}: module:function")
            if isinstance(default, bool) and not isinstance(body.get(option, default), bool):
                problem = f"{owner}: {option} is true or false; got {body[option]!r}"
                raise self._error(self._text.line([*path, option]), problem)

    def _pairs(self, subject: Any, word: str, path: list[str]) -> Any:
        """Pairs as edges."""
        form = EDGE_FORM if word == "edges" else "a hand-off is a pair [FROM, TO]"
        edges: list[Any] = []
        for index, item in enumerate(cast("list[Any]", subject) if isinstance(subject, list) else ()):
            pair: list[Any] = item if isinstance(item, list) else []
            if len(pair) != 2 and not (word == "edges" and isinstance(item, dict)):
                raise self._error(self._text.line([*path, index]), form)
            edge: dict[str, Any] = {"from": pair[0], "to": pair[1]} if pair else item
            if not {"from", "to"} <= edge.keys():
                raise self._error(self._text.line([*path, index]), form)
            edges.append(edge)
        return edges if isinstance(subject, list) else subject

    # Pieces of the document

    def _defined(self, kind: type[D], fields: dict[str, Any], owner: str, path: list[str], word: str = "") -> D:
        """The definition of these fields. What pydantic says against it is put into the words of the file."""
        try:
            return kind.model_validate(fields)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
        steps = [word if step == "parts" else step for step in first["loc"]]
        value, key = _shown(first["input"]), str(steps[-1])
        problem = {
            "list_type": f"{key} is a list; got {value}",
            "tuple_type": f"{key} is a list; got {value}",
            "dict_type": f"{key} is a mapping, key: value; got {value}",
            "string_type": f"{key} of {owner} is text; got {value}. Put it in quotes, if that is what is meant",
        }.get(first["type"], f"{owner}: {key}={value}: {first['msg']}")
        raise self._error(self._text.line([*path, *steps]), problem)

    def _error(self, line: int, text: str) -> ConfigError:
        return FileError(f"{self._source}, line {line}: {text.rstrip('.')}{'' if text.endswith('?') else '.'}")

    def _mapping(self, value: Any, path: list[Any], what: str) -> dict[str, Any]:
        """A copy of a mapping; an empty one in place of nothing."""
        if value is not None and not isinstance(value, dict):
            raise self._error(self._text.line(path), f"{what} is a mapping, key: value; got {_shown(value)}")
        return dict(cast("dict[str, Any]", value or {}))

    def _refuse_unknown(self, body: Iterable[str], known: Iterable[str], owner: str, path: list[Any]) -> None:
        names = list(known)
        for key in body:
            if key not in names:
                raise self._error(self._text.line([*path, key]), f"{owner} has no {key!r}; {hint(key, names)}")


def _keys(word: str) -> list[str]:
    """What a file may say of a kind of team."""
    options = [option for option in options_of(KINDS[word]) if option not in (*SUBJECTS.get(word, ()), "root_agent")]
    return [*options, "desc", *(["nodes"] if word == "edges" else ["start"] if word == "handoff" else [])]


def _names(part: Any) -> Iterator[Any]:
    """The names that stand in a part of a team."""
    if isinstance(part, list):
        for item in cast("list[Any]", part):
            yield from _names(item)
    elif isinstance(part, dict):
        body = cast("dict[str, Any]", part)
        yield from (body[key] for key in ("from", "to", "member") if key in body)
        yield from _names(body.get("serial"))
    else:
        yield part


def _shown(value: Any) -> str:
    return "a mapping" if isinstance(value, dict) else "a list" if isinstance(value, list) else repr(value)


# Writing


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
        return {"function": definition.options["function"], **({"desc": definition.desc} if definition.desc else {})}
    retries = {"output_retries": body["output_retries"]} if "output_retries" in body else {}
    body["conf"] = {**definition.llm_config, **retries}
    return {key: body[key] for key in AGENT if body.get(key) and (key, body[key]) != ("type", "Agent")}


def _team_body(definition: TeamDefinition) -> dict[str, Any]:
    body = definition.record()
    options = body.get("options", {})
    desc = {"desc": definition.desc} if definition.desc else {}
    edges = bool(definition.parts) and isinstance(definition.parts[0], dict) and "from" in definition.parts[0]
    word = next(
        (w for w, kind in KINDS.items() if kind.__name__ == definition.type and (w != "workflow" or not edges)), ""
    )
    if not word:
        return {"type": definition.type, "members": list(definition.members), **desc, **body}
    subjects = SUBJECTS.get(word, [])
    if subjects:
        names = [options.pop(option) for option in subjects]
        subject: Any = names[0] if len(names) == 1 else _Line(names)
    else:
        subject = [_part_body(part) for part in body["parts"]]
        subject = _Line(subject) if word == "team" else subject
    start = {"start": options.pop("root_agent")} if "root_agent" in options else {}
    nodes = {"nodes": body["nodes"]} if "nodes" in body else {}
    return {word: subject, **options, **start, **nodes, **desc}


def _part_body(part: Any) -> Any:
    if isinstance(part, list):
        return _Line(_part_body(item) for item in cast("list[Any]", part))
    if isinstance(part, dict) and part.keys() == {"from", "to"}:
        return _Line(cast("dict[str, Any]", part).values())
    if isinstance(part, dict) and "serial" in part:
        return {"serial": [_part_body(item) for item in cast("dict[str, Any]", part)["serial"]]}
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
