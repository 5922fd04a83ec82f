"""Swarms: teams of agents. A swarm stands wherever an agent may, in another swarm too, to any depth.

Swarm(a, [b, c], d)              a workflow: a, then b and c side by side, then d with what both said
Swarm((a, b), (a, c), (b, d))    the same as edges, when every argument is a pair
TeamSwarm(leader, a, b)          the leader calls its members as tools
HandoffSwarm((a, b), (b, a))     control moves along the edges
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any, ClassVar, Literal, Self, cast

from aworld.core.agent.base import BaseAgent
from aworld.core.agent.flow import (
    Arrow,
    Carry,
    End,
    Flow,
    HandoffTool,
    InTurn,
    OnError,
    Start,
    Topology,
    Turns,
    Unit,
    UnitTool,
    refuse_strangers,
)
from aworld.core.agent.flow import units_of as units_of
from aworld.core.agent.picture import mermaid, tree
from aworld.core.agent.workflow import Aggregate, Graph, WorkflowFlow
from aworld.core.agent.workflow import Edge as Edge
from aworld.core.agent.workflow import Loop as Loop
from aworld.core.agent.workflow import Map as Map
from aworld.core.agent.workflow import WorkflowNode as WorkflowNode
from aworld.core.checks import Count, Number, known_keys, one_of, typed
from aworld.core.definition import Description
from aworld.core.exceptions import ConfigError
from aworld.core.message import Content, Text
from aworld.core.tool.base import Tool


class GraphBuildType(StrEnum):
    """How the arguments of `Swarm` are read."""

    WORKFLOW = "workflow"
    TEAM = "team"
    HANDOFF = "handoff"


class Swarm(Topology):
    """A team of agents. `Swarm(...)` itself makes the kind that `build_type` says, a workflow when it says nothing.

    Args:
        members: Agents, swarms and groups of them; `topology=[...]` takes the same as a list.
        root_agent: The agent that begins, where the members do not say: a team's leader, a hand-off's first.
        build_type: `GraphBuildType.WORKFLOW`, `TEAM` or `HANDOFF`.
        name: Its name in logs and other teams; made of its members' when not given.
        desc: What it is good at, for agents that may call it.
        state: How writes of parallel members to one key of the task's context are joined, by key.

    Raises:
        ConfigError: For an empty swarm, cycles in a workflow, two members of one name, or a member that is none.
    """

    _fields: ClassVar[frozenset[str]] = Topology._fields | {"topology", "build_type"}
    _named: ClassVar[frozenset[str]] = frozenset({"answer", "state", "root_agent"})
    root_agent: Unit | None = None
    """The agent that begins, where the order of the members does not say."""

    def __new__(cls, *members: Any, build_type: GraphBuildType | str | None = None, **options: Any) -> Self:
        """Choose the kind."""
        build_type = one_of("build_type", build_type or GraphBuildType.WORKFLOW, GraphBuildType)
        kind = _KINDS[GraphBuildType(build_type)] if cls is Swarm else cls
        return cast("Self", object.__new__(kind))

    @typed()
    def __init__(
        self,
        *members: Any,
        topology: Sequence[Any] | None = None,
        root_agent: Unit | None = None,
        build_type: GraphBuildType | str | None = None,
        name: str | None = None,
        desc: str | None = None,
        state: dict[str, Callable[[Any, Any], Any]] | None = None,
        **options: Any,
    ) -> None:
        if members and topology:
            raise ConfigError("Give a swarm's members as arguments or as topology=[...], not both.")
        items = list(members or topology or ())
        if not items and root_agent is None:
            raise ConfigError("A swarm needs members: Swarm(agent, ...).")
        if options:
            takes = [p.name for p in reversed(self._parameters()) if p.kind is p.KEYWORD_ONLY]
            known_keys(type(self).__name__, options, takes, "option")
        self._build(items, root_agent, name, **options)
        super().__init__(name or self._default_name(), desc)
        self.reducers = dict(state or {})
        units_of(self)
        for member in self.members():
            if tools := self._tools_for(member):
                _refuse_doubles(member, tools, self.name)
                self.tools_of[member.name] = tools

    @classmethod
    def _parameters(cls) -> list[inspect.Parameter]:
        """The arguments of the constructor, those of the kind of swarm among them."""
        build = inspect.signature(cls._build).parameters.values()
        return [*super()._parameters(), *(p for p in build if p.kind is p.KEYWORD_ONLY)]

    @property
    def state(self) -> dict[str, Callable[[Any, Any], Any]] | None:
        """How writes of parallel members are joined, by key; None where they are not."""
        return self.reducers or None

    def _tools_for(self, member: Unit) -> tuple[Tool, ...]:
        """The tools that the swarm adds to those of a member."""
        return ()

    def _build(self, members: list[Any], root_agent: Unit | None, name: str | None) -> None:
        raise NotImplementedError

    def _default_name(self) -> str:
        names = [member.name for member in self.members()]
        return "-".join(names)[:60] if len(names) > 1 else f"{names[0]}-alone"

    @typed()
    def draw(self, *, style: Literal["mermaid", "tree"] = "mermaid") -> str:
        """A picture: Mermaid text, or a tree for a terminal."""
        return mermaid(self) if style == "mermaid" else tree(self)


class WorkflowSwarm(Swarm):
    """Members in an order that is known beforehand; see `aworld.core.agent.workflow`.

    `on_error` says what a failed member means: `fail` (default), `skip`, or `tell` those that come after it.
    `answer` makes the answer from the outputs of all members, by name; without it the last one's is the answer.
    """

    items: list[Any]
    """The members, groups or edges as they were given."""
    graph: Graph
    on_error: OnError
    answer: Aggregate | None

    @typed()
    def _build(
        self,
        members: list[Any],
        root_agent: Unit | None,
        name: str | None,
        *,
        on_error: OnError = "fail",
        answer: Aggregate | None = None,
    ) -> None:
        self.on_error, self.answer = on_error, answer
        begins = root_agent is None or (members and members[0] is root_agent)
        self.items = members if begins else [root_agent, *members]
        self.graph = Graph(self.items, name or "workflow")

    def members(self) -> list[Unit]:
        """The members, each once, in the order in which they were named."""
        return list({id(vertex.unit): vertex.unit for vertex in self.graph.vertices.values()}.values())

    def shape(self) -> tuple[dict[str, Unit], list[Arrow]]:
        """The members by their nodes, and what each waits for."""
        return {vertex.id: vertex.unit for vertex in self.graph.vertices.values()}, self.graph.arrows()

    def _structure(self, description: Description) -> dict[str, Any]:
        """The chain, or the edges."""
        return self.graph.parts(self.items, description)

    def flow(self) -> Flow:
        """A new run of the graph."""
        return WorkflowFlow(self.graph, self.name, self.on_error, self.answer)

    def side_by_side(self, one: str, other: str) -> bool:
        """Whether neither waits for the other."""
        first, second = self.graph.vertex_of(one), self.graph.vertex_of(other)
        return first != second and not self.graph.follows(first, second) and not self.graph.follows(second, first)


class TeamSwarm(Swarm):
    """A leader that calls its members as tools, several at once if it likes, and ends the work. The leader comes first.

    A member that is called with more than a text stands there as `member.as_tool(input=Model)`.

    A member that fails tells the leader so.
    """

    leader: BaseAgent[Any, Any]
    team: list[Unit]
    _callees: list[UnitTool]
    """The team as the leader's model sees it."""

    def _build(self, members: list[Any], root_agent: Unit | None, name: str | None) -> None:
        leader, *team = members if root_agent is None else [root_agent, *(m for m in members if m is not root_agent)]
        callees = [member if isinstance(member, UnitTool) else None for member in team]
        team = [member if callee is None else callee.unit for member, callee in zip(team, callees)]
        refuse_strangers("TeamSwarm", leader, *team)
        if not isinstance(leader, BaseAgent):
            raise ConfigError(
                f"The leader of a team is an agent that can call its members; {leader.name!r} is a swarm."
            )
        if not team:
            raise ConfigError(
                f"TeamSwarm has a leader, {leader.name!r}, and no members: TeamSwarm(leader, member, ...)."
            )
        self.leader, self.team = leader, team
        self._callees = [callee or UnitTool(member) for member, callee in zip(team, callees)]

    def _tools_for(self, member: Unit) -> tuple[Tool, ...]:
        return tuple(self._callees) if member is self.leader else ()

    def _default_name(self) -> str:
        return f"{self.leader.name}-team"

    def members(self) -> list[Unit]:
        """The leader and its members."""
        return [self.leader, *self.team]

    def arrows(self) -> list[Arrow]:
        """Whom the leader calls."""
        return [Arrow(self.leader.name, callee.name, "calls") for callee in self.team]

    def _structure(self, description: Description) -> dict[str, Any]:
        """The leader first."""
        return {"parts": [self.leader.name, *(callee.part(description) for callee in self._callees)]}

    def flow(self) -> Flow:
        """The leader's work is the team's."""
        return InTurn(self._lead)

    def _lead(self, task: Content) -> Turns:
        result, _ = yield Start("leader", self.leader, task)
        if result.error is not None:
            return End(error=f"Leader {result.agent!r} of {self.name!r} failed: {result.error}")
        return End(result.answer)


class HandoffSwarm(Swarm):
    """Control moves along the edges, given as pairs; the first agent of the first pair begins, or `root_agent`.

    `history` says what the receiver sees: `"full"` (the conversation so far), a number (its last messages), `"summary"`
    (the task and what the other says), `"none"` (what the other says). After `max_handoffs`, or when the same hand-over
    is made `max_repeats` times in the same words, the run ends with a status that says so.
    """

    edges: list[tuple[Unit, Unit]]
    root: Unit
    history: Literal["full", "summary", "none"] | int

    @typed()
    def _build(
        self,
        members: list[Any],
        root_agent: Unit | None,
        name: str | None,
        *,
        history: Literal["full", "summary", "none"] | Number = "full",
        max_handoffs: Count = 50,
        max_repeats: Count = 3,
    ) -> None:
        for pair in members:
            if not isinstance(pair, tuple) or len(pair) != 2:  # pyright: ignore[reportUnknownArgumentType]
                raise ConfigError(f"HandoffSwarm takes pairs (from, to); got {pair!r}.")
            refuse_strangers("HandoffSwarm", *pair)
            if isinstance(pair[0], Topology):
                raise ConfigError(f"{pair[0].name!r} is a swarm: it can be handed to, but only an agent hands over.")
            if members.count(pair) > 1:
                names = " to ".join(repr(member.name) for member in cast("tuple[Unit, Unit]", pair))
                raise ConfigError(f"HandoffSwarm has the pair {names} twice; leave one out.")
        self.edges = list(members)
        self.root = root_agent if root_agent is not None else self.edges[0][0]
        self.root_agent = self.root if self.root is not self.edges[0][0] else None
        if root_agent is not None and all(root_agent not in edge for edge in self.edges):
            raise ConfigError(
                f"root_agent {getattr(root_agent, 'name', root_agent)!r} is in none of the pairs, so it could not hand "
                "over; add a pair (root_agent, other)."
            )
        self.history, self.max_handoffs, self.max_repeats = history, max_handoffs, max_repeats

    def _tools_for(self, member: Unit) -> tuple[Tool, ...]:
        return tuple(HandoffTool(target.name, target.desc) for source, target in self.edges if source is member)

    def members(self) -> list[Unit]:
        """The agents, each once, the first one first."""
        return list({id(unit): unit for unit in (self.root, *(end for edge in self.edges for end in edge))}.values())

    def arrows(self) -> list[Arrow]:
        """To whom each may pass control."""
        return [Arrow(source.name, target.name, "hands over") for source, target in self.edges]

    def _structure(self, description: Description) -> dict[str, Any]:
        """The pairs."""
        return {"parts": [{"from": source.name, "to": target.name} for source, target in self.edges]}

    def flow(self) -> Flow:
        """A new passing of control."""
        return InTurn(self._pass_on)

    def _pass_on(self, task: Content) -> Turns:
        units = {unit.name: unit for unit in self.members()}
        repeats = Counter[tuple[str, str, str]]()
        result, _ = yield Start("0", self.root, task)
        while result.error is None and result.handoff is not None:
            words, handoffs = str(result.answer), repeats.total() + 1
            repeats[key := (result.agent, result.handoff, words)] += 1
            if repeats[key] >= self.max_repeats:
                again = f"{repeats[key]} times in the same words"
                text = f"No progress: {result.agent!r} handed over to {result.handoff!r} {again}."
                return End(error=text, status="limit_reached")
            if handoffs > self.max_handoffs:
                return End(error=f"max_handoffs={self.max_handoffs} of {self.name!r} reached.", status="limit_reached")
            target, carry = units[result.handoff], None
            content: Content = f"{result.agent} hands over to you and says:\n{words}"
            if not isinstance(target, Topology) and self.history not in ("summary", "none"):
                carry = Carry(result.activation, self.history if isinstance(self.history, int) else None)
            elif self.history != "none":
                content = f"<task>\n{task}\n</task>\n\n{content}" if isinstance(task, str) else (*task, Text(content))
            result, _ = yield Start(str(handoffs), target, content, carry)
        if result.error is not None:
            return End(error=f"Member {result.agent!r} of {self.name!r} failed: {result.error}")
        return End(result.answer)


_KINDS: dict[GraphBuildType, type[Swarm]] = {
    GraphBuildType.WORKFLOW: WorkflowSwarm,
    GraphBuildType.TEAM: TeamSwarm,
    GraphBuildType.HANDOFF: HandoffSwarm,
}


def _refuse_doubles(agent: Unit, tools: Sequence[Tool], owner: str) -> None:
    items = agent.toolkit.items if isinstance(agent, BaseAgent) else ()
    taken_names = {tool.name for tool in items if isinstance(tool, Tool)}
    names = [tool.name for tool in tools]
    if taken := next((name for name in names if name in taken_names), None):
        raise ConfigError(f"Agent {agent.name!r} has a tool {taken!r} already, which {owner!r} adds; rename one.")
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"Two members of {owner!r} are offered to a model as {name!r}; rename one.")
