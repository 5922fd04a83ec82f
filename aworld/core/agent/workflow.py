"""Workflows: members in an order that is known beforehand.

A workflow is an acyclic graph. A node starts when all it depends on have ended, parallel ones at once; an edge may
carry a condition, and a node none of whose edges was taken is left out. `Loop` and `Map` repeat a member.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

from aworld.core.agent.flow import (
    Arrow,
    End,
    Flow,
    InTurn,
    Move,
    OnError,
    Result,
    Start,
    State,
    Topology,
    Turns,
    Unit,
    is_unit,
    joined,
    readable,
    refuse_strangers,
    units_of,
)
from aworld.core.checks import Count, Number, typed, typed_class
from aworld.core.definition import Description
from aworld.core.exceptions import ConfigError
from aworld.core.message import Content, Part, content_text

Condition = Callable[[State, Any], bool]
"""A function of the task's state and the output of the node before."""

Aggregate = Callable[[dict[str, Any]], Any]
"""Makes a node's input from the outputs of those before, by name."""


@typed_class
@dataclass(frozen=True, slots=True)
class WorkflowNode:
    """A member with what is special about it in this workflow.

    `input` makes its input from the outputs before it, by name, and the workflow's own input under `"input"`.
    `on_error` says what its failure means (None: what the workflow says), after `retries` further tries.
    """

    unit: Any
    input: Aggregate | None = None
    on_error: OnError | None = None
    retries: Number = 0
    name: str | None = None

    def part(self, description: Description, owner: str) -> Any:
        """The node in a definition: the member's name alone where nothing is special about it."""
        part: dict[str, Any] = {"name": self.name, "on_error": self.on_error, "retries": self.retries}
        if self.input is not None:
            part["input"] = description.code(self.input, f"input= of {self.unit.name!r} in {owner!r}")
        part = {key: value for key, value in part.items() if value}
        return {"member": self.unit.name, **part} if part else self.unit.name


@typed_class
@dataclass(frozen=True, slots=True)
class Edge:
    """One member after another, if `when` says so."""

    source: Any
    target: Any
    when: Condition | None = None


@dataclass(slots=True)
class Vertex:
    """A node of the graph: a member, what it waits for, and what waits for it."""

    id: str
    node: WorkflowNode
    before: dict[str, Condition | None] = field(default_factory=dict[str, "Condition | None"])
    after: list[str] = field(default_factory=list[str])

    @property
    def unit(self) -> Unit:
        """The member."""
        return self.node.unit


class Graph:
    """The vertices of a workflow, in the order in which they were named. Raises ConfigError for cycles."""

    def __init__(self, items: Sequence[Any], owner: str) -> None:
        self.vertices: dict[str, Vertex] = {}
        self._owner = owner
        self._ids: dict[int, str] = {}
        self._numbers: dict[str, int] = {}
        self.edges: list[Edge] | None = None
        """The edges, where the workflow was given as such."""
        if all(isinstance(item, Edge) or (isinstance(item, tuple) and len(item) == 2) for item in items):  # pyright: ignore[reportUnknownArgumentType]
            self.edges = [item if isinstance(item, Edge) else Edge(*item) for item in items]
            for edge in self.edges:
                ends = self._vertex(edge.source, once=True), self._vertex(edge.target, once=True)
                self._connect(*ends, edge.when)
        else:
            self._chain(items)
        self._refuse_cycles()

    def _chain(self, items: Sequence[Any]) -> tuple[list[str], list[str]]:
        """One after the other; returns the first and the last vertices."""
        first: list[str] | None = None
        last: list[str] = []
        for item in items:
            heads, tails = self._group(item)
            for source in last:
                for target in heads:
                    self._connect(source, target, None)
            first, last = first if first is not None else heads, tails
        return first or [], last

    def _group(self, item: Any) -> tuple[list[str], list[str]]:
        """A list side by side, a tuple one after the other, anything else a vertex of its own."""
        if isinstance(item, list | tuple) and not item:
            raise ConfigError(f"{self._owner!r} has an empty group; leave it out or put members in.")
        if isinstance(item, tuple):
            return self._chain(cast("tuple[Any, ...]", item))
        if isinstance(item, list):
            groups = [self._group(member) for member in cast("list[Any]", item)]
            return [h for heads, _ in groups for h in heads], [t for _, tails in groups for t in tails]
        vertex = self._vertex(item)
        return [vertex], [vertex]

    def _vertex(self, item: Any, *, once: bool = False) -> str:
        """The id of a vertex for `item`; with `once` the same object is always the same vertex."""
        if once and id(item) in self._ids:
            return self._ids[id(item)]
        node = item if isinstance(item, WorkflowNode) else WorkflowNode(item)
        refuse_strangers(f"Swarm {self._owner!r}", node.unit)
        base = name = node.name or node.unit.name
        while name in self.vertices:
            self._numbers[base] = self._numbers.get(base, 1) + 1
            name = f"{base}-{self._numbers[base]}"
        self.vertices[name] = Vertex(name, node)
        self._ids[id(item)] = name
        return name

    def _connect(self, source: str, target: str, when: Condition | None) -> None:
        if source not in self.vertices[target].before:
            self.vertices[source].after.append(target)
        self.vertices[target].before[source] = when

    def _refuse_cycles(self) -> None:
        waiting = {id: len(vertex.before) for id, vertex in self.vertices.items()}
        free = deque(id for id, count in waiting.items() if count == 0)
        while free:
            for target in self.vertices[free.popleft()].after:
                waiting[target] -= 1
                if waiting[target] == 0:
                    free.append(target)
        stuck = [id for id, count in waiting.items() if count > 0]
        if stuck:
            raise ConfigError(
                f"{self._owner!r} has a cycle through {', '.join(map(repr, stuck))}. A workflow is acyclic: use "
                "Loop(member, until=..., max_rounds=...) to repeat, or HandoffSwarm for control that comes back."
            )

    def follows(self, later: str, earlier: str) -> bool:
        """Whether a vertex waits, by way of others or not, for another."""
        seen, waiting = {later}, [later]
        while waiting:
            for before in self.vertices[waiting.pop()].before:
                if before == earlier:
                    return True
                if before not in seen:
                    seen.add(before)
                    waiting.append(before)
        return False

    def vertex_of(self, node: str) -> str:
        """The vertex of a node of the flow: its own id, or one with the number of a further try."""
        return node if node in self.vertices else node.rpartition("~")[0]

    def arrows(self) -> list[Arrow]:
        """What each vertex waits for."""
        return [
            Arrow(source, vertex.id, "if" if when else "then")
            for vertex in self.vertices.values()
            for source, when in vertex.before.items()
        ]

    def parts(self, items: Sequence[Any], description: Description) -> dict[str, Any]:
        """The workflow in a definition: a chain, or its edges with the nodes that are more than a member."""
        if self.edges is None:
            return {"parts": self._chain_parts(items, description)}
        nodes: dict[str, Any] = {}
        for name, vertex in self.vertices.items():
            part = vertex.node.part(description, self._owner)
            if part != name:
                nodes[name] = {"member": part} if isinstance(part, str) else part
                nodes[name].pop("name", None)
        parts: list[dict[str, Any]] = []
        for edge in self.edges:
            source, target = (self._ids[id(end)] for end in (edge.source, edge.target))
            parts.append({"from": source, "to": target})
            if edge.when is not None:
                what = f"when= from {source!r} to {target!r} in {self._owner!r}"
                parts[-1]["when"] = description.code(edge.when, what)
        return {"parts": parts, "nodes": nodes}

    def _chain_parts(self, items: Sequence[Any], description: Description) -> list[Any]:
        """The items of a chain; a serial group in it is the same as its members."""
        parts: list[Any] = []
        for item in items:
            chained = isinstance(item, tuple)
            parts += self._chain_parts(item, description) if chained else [self._part(item, description)]  # pyright: ignore[reportUnknownArgumentType]
        return parts

    def _part(self, item: Any, description: Description) -> Any:
        if isinstance(item, tuple):
            return {"serial": self._chain_parts(cast("tuple[Any, ...]", item), description)}
        if isinstance(item, list):
            return [self._part(member, description) for member in cast("list[Any]", item)]
        return item.part(description, self._owner) if isinstance(item, WorkflowNode) else item.name


class WorkflowFlow:
    """A workflow at work. Each edge is settled once, so that a whole run takes linear time."""

    def __init__(self, graph: Graph, owner: str, on_error: OnError, answer: Aggregate | None = None) -> None:
        self._graph = graph
        self._vertices = graph.vertices
        self._owner = owner
        self._on_error = on_error
        self._answer = answer
        self._waiting = {id: len(vertex.before) for id, vertex in graph.vertices.items()}
        self._inputs: dict[str, dict[str, Any]] = {id: {} for id in graph.vertices}
        self._outputs: dict[str, Any] = {}
        self._running = 0
        self._input: Content = ""

    def begin(self, input: Content, state: State) -> Sequence[Move]:
        """Start every vertex that waits for nothing."""
        self._input = input
        return self._start([id for id, count in self._waiting.items() if count == 0])

    def done(self, result: Result, state: State) -> Sequence[Move]:
        """Hand a result on along the edges."""
        id = self._graph.vertex_of(result.node)
        vertex = self._vertices[id]
        self._running -= 1
        output: Any = result.answer
        skipped = False
        if result.error is not None:
            tries = int(result.node[len(id) + 1 :] or 0)
            if tries < vertex.node.retries:
                self._running += 1
                return [Start(f"{id}~{tries + 1}", vertex.unit, self._input_of(vertex))]
            policy = vertex.node.on_error or self._on_error
            if policy == "fail":
                return [End(error=f"Member {id!r} of {self._owner!r} failed: {result.error}")]
            skipped = policy == "skip"
            output = f"(failed: {result.error})"
        if not skipped:
            self._outputs[id] = output
        moves = self._start(self._settle(id, skipped, state))
        return moves if self._running else [*moves, self._end()]

    def _settle(self, id: str, skipped: bool, state: State) -> list[str]:
        """Settle the edges out of a vertex, and of all that are left out by it; returns those free now."""
        free: list[str] = []
        settled = deque([(id, skipped)])
        while settled:
            source, left_out = settled.popleft()
            for target in self._vertices[source].after:
                when = self._vertices[target].before[source]
                if not left_out and (when is None or when(state, self._outputs[source])):
                    self._inputs[target][source] = self._outputs[source]
                self._waiting[target] -= 1
                if self._waiting[target] == 0:
                    if self._inputs[target]:
                        free.append(target)
                    else:
                        settled.append((target, True))
        return free

    def _start(self, ids: Sequence[str]) -> list[Move]:
        self._running += len(ids)
        return [Start(id, self._vertices[id].unit, self._input_of(self._vertices[id])) for id in ids]

    def _input_of(self, vertex: Vertex) -> Content:
        outputs = self._inputs[vertex.id]
        ordered = {source: outputs[source] for source in vertex.before if source in outputs}  # whoever ended first
        if vertex.node.input is not None:
            return _content(vertex.node.input({"input": self._input, **ordered}))
        return self._input if not vertex.before else joined(list(ordered.items()))

    def _end(self) -> End:
        """The answer: that of the last vertex, of all last ones by name, or what `answer` makes of all outputs."""
        last = {
            id: self._outputs[id] for id, vertex in self._vertices.items() if not vertex.after and id in self._outputs
        }
        if not last:
            return End(error=f"{self._owner!r} came to no end: every last member was left out.")
        if self._answer is not None:
            return End(answer=self._answer({id: self._outputs[id] for id in self._vertices if id in self._outputs}))
        return End(answer=next(iter(last.values())) if len(last) == 1 else last)


class Loop(Topology):
    """Repeats a member until `until(state, output)` holds, at most `max_rounds` times.

    From the second round on its input is the task and the output of the round before, or what `input(task, output)`
    makes of them. `answer(output)` picks the answer out of the last output. Rounds that run out end it with the last
    answer, or fail it where `must_hold`.
    """

    _named: ClassVar[frozenset[str]] = frozenset({"body", "until", "input", "answer"})

    @typed()
    def __init__(
        self,
        body: Unit | Sequence[Any],
        *,
        until: Condition,
        max_rounds: Count = 10,
        input: Callable[[Content, Any], Any] | None = None,
        answer: Callable[[Any], Any] | None = None,
        must_hold: bool = False,
        name: str | None = None,
        desc: str | None = None,
    ) -> None:
        if not is_unit(body):
            from aworld.core.agent.swarm import WorkflowSwarm  # a swarm is made of what stands here

            body = WorkflowSwarm(*body)
        self.body = body
        super().__init__(name or f"{self.body.name}-loop", desc)
        self.until, self.max_rounds, self.input, self.answer, self.must_hold = (
            until, max_rounds, input, answer, must_hold,
        )  # fmt: skip
        units_of(self)

    def members(self) -> list[Unit]:
        """The member that is repeated."""
        return [self.body]

    def arrows(self) -> list[Arrow]:
        """Again and again."""
        return [Arrow(self.body.name, self.body.name, "again")]

    def flow(self) -> Flow:
        """A new loop."""
        return InTurn(self._rounds)

    def _rounds(self, task: Content) -> Turns:
        content, number = task, 1
        while True:
            result, state = yield Start(f"round-{number}", self.body, content)
            if result.error is not None:
                return End(error=f"Round {number} of {self.name!r} failed: {result.error}")
            holds = self.until(state, result.answer)
            if number == self.max_rounds and self.must_hold and not holds:
                error = f"{self.name!r} ran out of max_rounds={self.max_rounds}."
                return End(error=error, status="limit_reached")
            if holds or number == self.max_rounds:
                return End(self.answer(result.answer) if self.answer is not None else result.answer)
            content = joined([(f"round {number}", result.answer)], task)
            if self.input is not None:
                content = _content(self.input(task, result.answer))
            number += 1


class Map(Topology):
    """One member for many inputs, side by side.

    `over(input)` gives the inputs; without it the input is a JSON array, or the whole text `times` times. `reduce` is a
    function of the list of outputs, in the order of the inputs, or a member that reads them; without it the answer is
    the list. `max_parallel` bounds how many run at once.
    """

    _named: ClassVar[frozenset[str]] = frozenset({"unit", "over", "reduce"})

    @typed()
    def __init__(
        self,
        unit: Unit,
        *,
        over: Callable[[str], Sequence[Any]] | None = None,
        times: Count | None = None,
        reduce: Callable[[list[Any]], Any] | Unit | None = None,
        max_parallel: Count | None = None,
        on_error: OnError = "fail",
        name: str | None = None,
        desc: str | None = None,
    ) -> None:
        super().__init__(name or f"{unit.name}-map", desc)
        if over is not None and times is not None:
            raise ConfigError(f"Map {self.name!r}: give over= or times=, not both.")
        self.unit, self.over, self.times, self.reduce = unit, over, times, reduce
        self.max_parallel, self.on_error = max_parallel, on_error
        units_of(self)

    def members(self) -> list[Unit]:
        """The member that is repeated, and the one that reads the results."""
        return [self.unit, self.reduce] if is_unit(self.reduce) else [self.unit]

    def arrows(self) -> list[Arrow]:
        """To the member that reads the results, if there is one."""
        return [Arrow(self.unit.name, reader.name) for reader in self.members()[1:]]

    def flow(self) -> Flow:
        """A new map."""
        return _MapFlow(self)

    def side_by_side(self, one: str, other: str) -> bool:
        """All inputs are, however few may run at once."""
        return one != other and "reduce" not in (one, other)

    def items(self, input: Content) -> list[Content]:
        """The inputs. Raises ValueError when there is nothing to map over."""
        text = content_text(input)
        if self.times is not None:
            return [input] * self.times
        if self.over is not None:
            return [_content(item) for item in self.over(text)]
        try:
            inputs = json.loads(text)
        except (ValueError, RecursionError):
            inputs = None
        if not isinstance(inputs, list):
            raise ValueError("its input is not a JSON array; give over=, a function of the input")
        return [_content(item) for item in cast("list[Any]", inputs)]


class _MapFlow:
    def __init__(self, owner: Map) -> None:
        self._owner = owner
        self._items: list[Content] = []
        self._outputs: dict[int, Any] = {}
        self._settled = 0
        self._next = 0

    def begin(self, input: Content, state: State) -> Sequence[Move]:
        try:
            self._items = self._owner.items(input)
        except ValueError as error:
            return [End(error=f"{self._owner.name!r}: {error}")]
        if not self._items:
            return self._reduce()
        self._next = min(len(self._items), self._owner.max_parallel or len(self._items))
        return [Start(str(i), self._owner.unit, self._items[i]) for i in range(self._next)]

    def done(self, result: Result, state: State) -> Sequence[Move]:
        owner = self._owner
        if result.node == "reduce":
            failed = f"The reduce step of {owner.name!r} failed: {result.error}"
            return [End(result.answer, None if result.error is None else failed)]
        if result.error is not None and owner.on_error == "fail":
            return [End(error=f"Input {result.node} of {owner.name!r} failed: {result.error}")]
        self._settled += 1
        if result.error is None:
            self._outputs[int(result.node)] = result.answer
        elif owner.on_error == "tell":
            self._outputs[int(result.node)] = f"(failed: {result.error})"
        if self._next < len(self._items):
            self._next += 1
            return [Start(str(self._next - 1), owner.unit, self._items[self._next - 1])]
        return self._reduce() if self._settled == len(self._items) else []

    def _reduce(self) -> list[Move]:
        outputs = [self._outputs[i] for i in sorted(self._outputs)]
        reduce = self._owner.reduce
        if is_unit(reduce):
            named = [(f"{self._owner.unit.name} {i + 1}", output) for i, output in sorted(self._outputs.items())]
            return [Start("reduce", reduce, joined(named) if named else "[]")]
        return [End(reduce(outputs) if reduce is not None else outputs)]


def _content(value: Any) -> Content:
    if isinstance(value, tuple) and value and all(isinstance(part, Part) for part in cast("tuple[Any, ...]", value)):
        return cast("Content", value)
    return readable(value)
