"""Agents and teams in YAML: `load` reads them, `dump` writes them back without loss.

    version: 1
    run: newsroom
    agents:
      researcher: {desc: Finds facts, tools: ["my_tools:search"], model: "openai:gpt-4o"}
      critic: {system_prompt: Say what is wrong.}
      writer: {conf: {llm_temperature: 0.2}}
      counter: {function: "my_rules:count_words"}
    swarms:
      newsroom: {workflow: [researcher, [critic, counter], writer]}

An agent or swarm is defined once, and named wherever it stands. The words are those of Python: `workflow`, `edges`,
`team` (leader first), `handoff` (pairs), `loop`, `map`, `solver_verifier`, each with the options of its class. Code is
written as `module:name` and imported, the file's own folder before others: load only files that you would run. Keys
come from the environment.

History of the schema: 1, the first.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from aworld.agents.file_schema import (
    AGENT,
    EDGE,
    FUNCTION_AGENT,
    FUNCTIONS,
    KINDS,
    NODE,
    REQUIRED,
    SECRET,
    TOP,
    VERSION,
)
from aworld.agents.file_writer import dump as dump
from aworld.agents.llm_agent import Agent
from aworld.agents.patterns import FunctionAgent
from aworld.agents.references import find, importable
from aworld.agents.yaml_lines import ListedItems, Mapped, parse
from aworld.config.conf import AgentConfig
from aworld.core.agent.flow import Unit
from aworld.core.agent.swarm import Edge, WorkflowNode
from aworld.core.exceptions import ConfigError


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
            return _File(parse(text, str(path_or_text)), str(path_or_text)).root()
    return _File(parse(path_or_text, "the text"), "the text").root()


class FileError(ConfigError):
    """A file of agents says what cannot be. The message begins with the file and the line."""


class _File:
    """One document while it is read. Members are made when they are first named."""

    def __init__(self, document: Any, source: str) -> None:
        self._source = source
        self._made: dict[str, Unit] = {}
        self._making: list[str] = []
        self._named: set[str] = set()
        top = self._mapping(document, getattr(document, "line", 1), "a file of agents")
        self._refuse_unknown(top, TOP, "The file")
        if top.get("version") != VERSION:
            line = top.lines.get("version", 1)
            raise self._error(line, f"version: {VERSION} is the version that is read here; got {top.get('version')!r}")
        self._top = top
        self._agents = self._section("agents")
        self._swarms = self._section("swarms")
        for name in self._agents:
            if name in self._swarms:
                raise self._error(self._swarms.lines[name], f"{name!r} is an agent already; rename one")

    def root(self) -> Unit:
        """The member that is run. Raises ConfigError when members are left that nobody names."""
        for section in (self._agents, self._swarms):
            for name in section:
                self._unit(name, section.lines[name], named=False)
        free = [name for name in self._made if name not in self._named]
        run: Any = self._top.get("run")
        if run is None:
            if len(free) != 1:
                raise self._error(
                    1, f"say which member is run, such as run: {(free or list(self._made) or ['NAME'])[-1]}"
                )
            return self._made[free[0]]
        line = self._top.lines["run"]
        root = self._unit(self._text(run, line, "run"), line)
        for name in free:
            if name != run:
                section = self._agents if name in self._agents else self._swarms
                raise self._error(section.lines[name], f"nobody names {name!r}; give it a place or remove it")
        return root

    # Members

    def _unit(self, name: Any, line: int, *, named: bool = True) -> Unit:
        """The agent or swarm of this name."""
        name = self._text(name, line, "a member")
        if named:
            self._named.add(name)
        if name in self._made:
            return self._made[name]
        if name not in self._agents and name not in self._swarms:
            hint = _nearest(name, [*self._agents, *self._swarms], "defined are")
            raise self._error(line, f"no agent or swarm is named {name!r}; {hint}")
        if name in self._making:
            way = " → ".join([*self._making[self._making.index(name) :], name])
            raise self._error(line, f"{name!r} would be a member of itself: {way}")
        self._making.append(name)
        section = self._agents if name in self._agents else self._swarms
        try:
            entry = self._mapping(section[name], section.lines[name], repr(name))
            made = self._agent(name, entry) if section is self._agents else self._swarm(name, entry)
        except FileError:
            raise
        except ConfigError as error:
            raise self._error(section.lines[name], str(error)) from error
        self._making.pop()
        self._made[name] = made
        return made

    def _agent(self, name: str, entry: Mapped) -> Unit:
        what = f"Agent {name!r}"
        if "function" in entry:
            self._refuse_unknown(entry, FUNCTION_AGENT, what)
            return FunctionAgent(self._code(entry, "function", what), name, self._option(entry, "desc", what))
        self._refuse_unknown(entry, AGENT, what)
        output = self._code(entry, "output_type", what) if "output_type" in entry else None
        return Agent(
            name,
            self._conf(entry, what),
            desc=self._option(entry, "desc", what),
            system_prompt=self._option(entry, "system_prompt", what),
            tools=self._tools(entry, what),
            tool_names=[self._text(item, line, "a tool name") for item, line in self._list(entry, "tool_names")],
            output_type=output,
            max_steps=self._number(entry, "max_steps", what),
            model=self._option(entry, "model", what),
        )

    def _conf(self, entry: Mapped, what: str) -> AgentConfig | None:
        if entry.get("conf") is None:
            return None
        conf = self._mapping(entry["conf"], entry.lines["conf"], f"conf of {what}")
        for key in conf:
            line = conf.lines[key]
            if key in SECRET:
                remedy = "set LLM_API_KEY in the environment" if key == "llm_api_key" else "give headers in Python"
                raise self._error(line, f"{what} has {key} in the file, where others can read it; {remedy}")
            if key in ("system_prompt", "llm_config"):
                raise self._error(line, f"{what}: {key} does not go into conf; write it beside it")
            if key not in AgentConfig.known():
                raise self._error(line, f"{what} has no setting {key!r}; {_nearest(key, AgentConfig.known())}")
        try:
            return AgentConfig(**conf)
        except ValidationError as error:
            first = error.errors()[0]
            key = str(first["loc"][0])
            raise self._error(conf.lines.get(key, conf.line), f"{what}: {key}: {first['msg']}") from error

    def _tools(self, entry: Mapped, what: str) -> list[Any]:
        """Members by their names, everything else as `module:function`."""
        tools: list[Any] = []
        for item, line in self._list(entry, "tools"):
            reference = self._text(item, line, "a tool")
            is_member = reference in self._agents or reference in self._swarms or ":" not in reference
            tools.append(self._unit(reference, line) if is_member else self._find(reference, line, f"Tool of {what}"))
        return tools

    def _swarm(self, name: str, entry: Mapped) -> Unit:
        words = [word for word in KINDS if word in entry]
        if len(words) != 1:
            found = " and ".join(words) or "none of them"
            raise self._error(entry.line, f"swarm {name!r} is one of {', '.join(KINDS)}; here is {found}")
        word = words[0]
        kind, what = KINDS[word], f"Swarm {name!r}"
        self._refuse_unknown(entry, (word, *kind.options), what)
        options = {key: self._value(entry, key, what) for key in entry if key not in (word, "nodes", "start")}
        line = entry.lines[word]
        match word:
            case "workflow":
                members = self._chain(entry, word)
            case "edges":
                members = self._edges(entry, what)
            case "handoff":
                members = [self._pair(item, at) for item, at in self._list(entry, word)]
                if entry.get("start") is not None:
                    options["root_agent"] = self._unit(entry["start"], entry.lines["start"])
            case "loop" | "map":
                members = [self._unit(entry[word], line)]
            case _:
                members = [self._unit(item, at) for item, at in self._list(entry, word)]
                if word == "solver_verifier" and len(members) != 2:
                    raise self._error(line, f"{what}: write solver_verifier: [SOLVER, VERIFIER]")
        for option in kind.options:
            if kind.options[option] is REQUIRED and option not in entry:
                raise self._error(entry.line, f"{what} needs {option}: module:function")
        return kind.make(*members, name=name, **options)

    def _value(self, entry: Mapped, key: str, what: str) -> Any:
        """An option as its class takes it."""
        value, line = entry[key], entry.lines[key]
        if value is None:
            return None
        if key in FUNCTIONS:
            return self._code(entry, key, what)
        if key == "desc":
            return self._text(value, line, "desc")
        if key == "reduce":
            reference = self._text(value, line, "reduce")
            is_member = reference in self._agents or reference in self._swarms or ":" not in reference
            return self._unit(reference, line) if is_member else self._code(entry, key, what)
        if key == "state":
            joins = self._mapping(value, line, f"state of {what}")
            return {name: self._code(joins, name, f"state of {what}") for name in joins}
        if key == "must_hold" and not isinstance(value, bool):
            raise self._error(line, f"{what}: must_hold is true or false; got {value!r}")
        return value

    # Workflows

    def _chain(self, entry: Mapped, key: str) -> list[Any]:
        """The items of a chain. A serial group in it is the same as its members, and would be taken for an edge."""
        items: list[Any] = []
        for item, line in self._list(entry, key):
            group = self._group(item, line)
            items += list(cast("tuple[Any, ...]", group)) if isinstance(group, tuple) else [group]
        return items

    def _group(self, item: Any, line: int) -> Any:
        if isinstance(item, ListedItems):
            return [self._group(member, at) for member, at in zip(item, item.lines)]
        if not isinstance(item, Mapped):
            return self._unit(item, line)
        if "serial" in item:
            self._refuse_unknown(item, ("serial",), "A serial group")
            return tuple(self._chain(item, "serial"))
        return self._node(item, line)

    def _node(self, entry: Mapped, line: int, name: str | None = None) -> WorkflowNode:
        self._refuse_unknown(entry, NODE if name is None else tuple(k for k in NODE if k != "name"), "A member")
        if "member" not in entry:
            raise self._error(line, "write {member: NAME, ...}, or {serial: [...]} for a group")
        unit = self._unit(entry["member"], entry.lines["member"])
        options = {key: self._value(entry, key, repr(unit.name)) for key in entry if key not in ("member", "name")}
        if name is None:
            name = self._option(entry, "name", "A member")
        return WorkflowNode(unit, name=name, **options)

    def _edges(self, entry: Mapped, what: str) -> list[Any]:
        """Edges between members, or between the nodes that the swarm describes."""
        described = self._mapping(entry.get("nodes"), entry.lines.get("nodes", entry.line), f"nodes of {what}")
        nodes: dict[str, WorkflowNode] = {}
        for id in described:
            line = described.lines[id]
            nodes[id] = self._node(self._mapping(described[id], line, f"node {id!r}"), line, id)

        def end(name: Any, line: int) -> Any:
            return nodes[name] if isinstance(name, str) and name in nodes else self._unit(name, line)

        edges: list[Any] = []
        for item, line in self._list(entry, "edges"):
            if isinstance(item, Mapped):
                self._refuse_unknown(item, EDGE, "An edge")
                if "from" not in item or "to" not in item:
                    raise self._error(line, "an edge is [FROM, TO] or {from: A, to: B, when: module:function}")
                when = self._value(item, "when", "An edge") if "when" in item else None
                edges.append(Edge(end(item["from"], line), end(item["to"], line), when))
            elif isinstance(item, ListedItems) and len(item) == 2:
                edges.append((end(item[0], line), end(item[1], line)))
            else:
                raise self._error(line, "an edge is [FROM, TO] or {from: A, to: B, when: module:function}")
        return edges

    def _pair(self, item: Any, line: int) -> tuple[Unit, Unit]:
        if not isinstance(item, ListedItems) or len(item) != 2:
            raise self._error(line, "a hand-off is a pair [FROM, TO]")
        return self._unit(item[0], line), self._unit(item[1], line)

    # Pieces of the document

    def _error(self, line: int, text: str) -> ConfigError:
        return FileError(f"{self._source}, line {line}: {text.rstrip('.')}{'' if text.endswith('?') else '.'}")

    def _section(self, key: str) -> Mapped:
        return self._mapping(self._top.get(key), self._top.lines.get(key, 1), key)

    def _mapping(self, value: Any, line: int, what: str) -> Mapped:
        if value is None:
            return Mapped(line)
        if not isinstance(value, Mapped):
            raise self._error(line, f"{what} is a mapping, key: value; got {_shown(value)}")
        return value

    def _list(self, entry: Mapped, key: str) -> list[tuple[Any, int]]:
        """The items of a list with their lines; none when the key is not there."""
        value = entry.get(key)
        if value is None:
            return []
        if not isinstance(value, ListedItems):
            raise self._error(entry.lines[key], f"{key} is a list; got {_shown(value)}")
        return list(zip(value, value.lines))

    def _text(self, value: Any, line: int, what: str) -> str:
        if not isinstance(value, str):
            raise self._error(line, f"{what} is text; got {_shown(value)}. Put it in quotes, if that is what is meant")
        return value

    def _option(self, entry: Mapped, key: str, what: str) -> str | None:
        value: Any = entry.get(key)
        return None if value is None else self._text(value, entry.lines[key], f"{key} of {what}")

    def _number(self, entry: Mapped, key: str, what: str) -> int | None:
        value: Any = entry.get(key)
        if value is not None and type(value) is not int:
            raise self._error(entry.lines[key], f"{key} of {what} is a number; got {_shown(value)}")
        return value

    def _code(self, entry: Mapped, key: str, what: str) -> Callable[..., Any]:
        reference = self._text(entry[key], entry.lines[key], f"{key} of {what}")
        return self._find(reference, entry.lines[key], f"{key} of {what}")

    def _find(self, reference: str, line: int, what: str) -> Any:
        try:
            return find(reference, what)
        except ConfigError as error:
            raise self._error(line, str(error)) from error

    def _refuse_unknown(self, entry: Mapped, choices: Iterable[str], what: str) -> None:
        for key in entry:
            if key not in choices:
                raise self._error(entry.lines[key], f"{what} has no {key!r}; {_nearest(key, list(choices))}")


def _nearest(name: str, choices: list[str], words: str = "known are") -> str:
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"{words}: {', '.join(choices) or 'none'}"


def _shown(value: Any) -> str:
    if isinstance(value, Mapped | ListedItems):
        return "a mapping" if isinstance(value, Mapped) else "a list"
    return repr(value)
