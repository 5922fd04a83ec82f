"""How a team decides who acts next: a pure function of the log, kept up to date event by event.

A `Topology` is a value like an agent, and stands wherever an agent may. Running it makes a `Flow`, a reducer: it is
told its input and then each result, in the order of the log, and answers with moves. The runtime carries out those
moves that the log does not have yet. So the same few lines run a team, step it, resume it after a crash and fork it
anywhere; all that they need is that a flow, told the same, moves the same.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import msgspec
from typing_extensions import TypeIs

from aworld.core.agent.base import BaseAgent, checked_id, plain
from aworld.core.checks import typed
from aworld.core.definition import Defined, Description, TeamDefinition
from aworld.core.event import Status
from aworld.core.exceptions import AWorldError, ConfigError, ToolError
from aworld.core.message import Content, Text
from aworld.core.tool.base import Tool
from aworld.core.tool.func_to_tool import checked_name

if TYPE_CHECKING:
    from aworld.core.tool.arguments import Arguments

OnError: TypeAlias = Literal["fail", "skip", "tell"]
"""What a failed member means: the team fails with it, goes on without it, or is told and goes on."""

State: TypeAlias = Mapping[str, Any]
"""The task's context, as it stood when the flow was told."""


@dataclass(frozen=True, slots=True)
class Carry:
    """Earlier messages that an agent sees before its input: those of another agent's branch, all or the last ones."""

    activation: int
    last: int | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """Move: let a member begin. `node` names its place and is used once in a flow."""

    node: str
    unit: Unit
    input: Content
    carry: Carry | None = None


@dataclass(frozen=True, slots=True)
class End:
    """Move: the team has its answer, or has failed with `error`. Members still at work are stopped."""

    answer: Any = None
    error: str | None = None
    status: Status = "failed"
    """What a run that ends with this error is called."""


Move: TypeAlias = Start | End


@dataclass(frozen=True, slots=True)
class Result:
    """What a member came to. `handoff` is the agent to which it passes control, with `answer` as its words."""

    node: str
    agent: str
    activation: int
    answer: Any = None
    error: str | None = None
    handoff: str | None = None


class Flow(Protocol):
    """A team at work."""

    def begin(self, input: Content, state: State) -> Sequence[Move]:
        """The first moves."""
        ...

    def done(self, result: Result, state: State) -> Sequence[Move]:
        """The moves after a member's result; told in the order of the log."""
        ...


Turns: TypeAlias = Generator[Start, tuple[Result, State], End]
"""A team of which one member at a time is at work: yields who is next, is sent what came of it, and returns the end."""


class InTurn:
    """A flow written as a generator."""

    def __init__(self, turns: Callable[[Content], Turns]) -> None:
        self._begin = turns
        self._turns: Turns | None = None

    def begin(self, input: Content, state: State) -> Sequence[Move]:
        """See `Flow`."""
        self._turns = self._begin(input)
        return [next(self._turns)]

    def done(self, result: Result, state: State) -> Sequence[Move]:
        """See `Flow`."""
        assert self._turns is not None  # a flow is told its input first
        try:
            return [self._turns.send((result, state))]
        except StopIteration as end:
            return [end.value]


@dataclass(frozen=True, slots=True)
class Arrow:
    """How one node of a team leads to another."""

    source: str
    target: str
    kind: Literal["then", "if", "calls", "hands over", "not accepted", "again"] = "then"


class Topology(Defined):
    """Base of every team. Immutable in use; one instance serves any number of tasks."""

    @typed()
    def __init__(self, name: str, desc: str | None = None) -> None:
        if not name:
            raise ConfigError(f"{type(self).__name__} needs a name.")
        self.name = name
        self.desc = desc
        self.tools_of: dict[str, tuple[Tool, ...]] = {}
        """Tools that this team adds to those of a member, by the member's name."""
        self.reducers: dict[str, Callable[[Any, Any], Any]] = {}
        """How writes of parallel members to one key of the state are joined, by key."""

    @property
    def id(self) -> str:
        """The name as a provider takes it."""
        return checked_id(self.name)

    def members(self) -> list[Unit]:
        """The agents and teams that this team is made of."""
        raise NotImplementedError

    def flow(self) -> Flow:
        """A new reducer for one run of this team."""
        raise NotImplementedError

    def side_by_side(self, one: str, other: str) -> bool:
        """Whether two nodes of a flow may be at work at the same time; one after the other when a team does not say."""
        return False

    def check(self) -> None:
        """Called before a run begins. Raises ConfigError when a member misses a setting."""
        for member in self.members():
            member.check()

    def shape(self) -> tuple[dict[str, Unit], list[Arrow]]:
        """What a drawing of the team shows: the members by node, and how one leads to another."""
        return {member.name: member for member in self.members()}, self.arrows()

    def arrows(self) -> list[Arrow]:
        """How one member leads to another, as far as the team says."""
        return []

    def _define(self, description: Description) -> TeamDefinition:
        """The definition, made anew."""
        members = {member.name: member.definition for member in self.members()}
        return TeamDefinition(**self._head(description), **self._structure(description), members=members)

    def _structure(self, description: Description) -> dict[str, Any]:
        """How the members stand, where that is more than options say: `parts` and `nodes` of the definition."""
        return {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}: {', '.join(m.name for m in self.members())}>"


Unit: TypeAlias = BaseAgent[Any, Any] | Topology
"""Whatever can act: an agent or a team."""


def is_unit(item: object) -> TypeIs[Unit]:
    """Whether something is an agent or a team."""
    return isinstance(item, BaseAgent | Topology)


class UnitTool(Tool):
    """An agent or a team that another agent calls. The runtime starts it in a branch of its own."""

    def __init__(self, unit: Unit, name: str | None = None, description: str | None = None, input: Any = None) -> None:
        self.unit = unit
        self.name = checked_id(unit.name) if name is None else checked_name(name, f"for {unit.name}")
        self.description = description or unit.desc or f"Ask {unit.name} to do something, and get its answer."
        self.input = input
        self.parameters = _one_text("input", "What it shall do, with all it needs to know.")
        self._typed: Arguments | None = None
        if input is not None:
            from aworld.core.tool.arguments import Arguments  # pydantic is not imported before it is needed

            self._typed = Arguments.of_type(input, f"input= of {unit.name!r} as a tool")
            self.parameters = self._typed.schema

    def under(self, name: str) -> Tool:
        """The agent or team under another name; in the log and to itself it keeps its own."""
        return UnitTool(self.unit, name, self.description, self.input)

    def read(self, arguments: str) -> str:
        """What the agent or team is told: the text, or the JSON of the input. Raises ToolError."""
        if self._typed is None:
            return _text_of(self.name, arguments, "input", "what it shall do")
        return self._typed.dump(self._typed.read(arguments))

    def part(self, description: Description) -> Any:
        """How a definition has it: its name, with what is not the default."""
        default, names = UnitTool(self.unit), ("name", "description")
        part = {name: getattr(self, name) for name in names if getattr(self, name) != getattr(default, name)}
        if self.input is not None:
            part["input"] = description.code(self.input, f"input= of {self.unit.name!r} as a tool")
        return {"tool": self.unit.name, **part} if part else self.unit.name


class HandoffTool(Tool):
    """Passes control to another agent. The runtime ends the caller's work and starts the other's."""

    def __init__(self, target: str, desc: str | None = None) -> None:
        self.target = target
        self.name = handoff_name(target)
        self.description = f"Hand over to {target}" + (f": {desc}" if desc else ".")
        self.parameters = _one_text("message", "What the other needs to know to go on: task, findings.")

    def read(self, arguments: str) -> str:
        """What the other is told. Raises ToolError."""
        return _text_of(self.name, arguments, "message", "what the other needs to know")


def _text_of(tool: str, arguments: str, name: str, meaning: str) -> str:
    """The one text argument of a call. Raises ToolError."""
    try:
        text = msgspec.json.decode(arguments or "{}", type=dict[str, Any]).get(name)
    except msgspec.DecodeError:
        text = None
    if not isinstance(text, str):
        raise ToolError(f'{tool} wants {{"{name}": "{meaning}"}}; got {arguments[:200]!r}.')
    return text


def _one_text(name: str, description: str) -> dict[str, Any]:
    """The schema of a tool that takes one text."""
    properties = {name: {"type": "string", "description": description}}
    return {"type": "object", "properties": properties, "required": [name], "additionalProperties": False}


def handoff_name(target: str) -> str:
    """The name of the tool that passes control to an agent."""
    return f"handoff_to_{checked_id(target)}"[:64]


def refuse_strangers(what: str, *members: Any, error: type[AWorldError] = ConfigError) -> tuple[Unit, ...]:
    """The members. Raises `error` for one that is neither an agent nor a team; `what` begins the sentence."""
    for member in members:
        if not isinstance(member, BaseAgent | Topology):
            raise error(f"{what} takes agents and swarms; got {member!r:.100}.")
    return members


def units_of(root: Unit) -> dict[str, Unit]:
    """All agents and teams of a tree by name. Raises ConfigError when two different ones share a name."""
    units: dict[str, Unit] = {}
    waiting: list[Unit] = [root]
    while waiting:
        unit = waiting.pop()
        namesake = units.get(unit.name)
        if namesake is None:
            units[unit.name] = unit
            waiting += unit.members() if isinstance(unit, Topology) else unit.callees()
        elif namesake is not unit:
            raise ConfigError(f"Two members of {root.name!r} are named {unit.name!r}; give one another name=.")
    return units


def readable(value: Any) -> str:
    """A result as a model reads it: text as it is, everything else as JSON."""
    return value if isinstance(value, str) else msgspec.json.encode(plain(value)).decode()


def joined(results: Sequence[tuple[str, Any]], input: Content | None = None) -> Content:
    """Several named results as one text that keeps them apart, after the input they come from, if given."""
    if len(results) == 1 and input is None:
        return readable(results[0][1])
    pieces = [f'<result from="{name}">\n{readable(value)}\n</result>' for name, value in results]
    if isinstance(input, tuple):
        return (*input, Text("\n\n".join(pieces)))
    if input is not None:
        pieces.insert(0, f"<task>\n{input}\n</task>")
    return "\n\n".join(pieces)
