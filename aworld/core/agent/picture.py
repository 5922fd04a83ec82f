"""Pictures of a team: Mermaid text for documents, a tree for terminals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aworld.core.agent.base import BaseAgent
from aworld.core.agent.flow import Topology, Unit, UnitTool

if TYPE_CHECKING:
    from aworld.core.agent.workflow import Vertex


def mermaid(root: Unit) -> str:
    """A flowchart in Mermaid's language."""
    lines: list[str] = ["flowchart TD"]
    _Chart(lines).draw(root, "n", 1)
    return "\n".join(lines) + "\n"


class _Chart:
    def __init__(self, lines: list[str]) -> None:
        self._lines = lines

    def draw(self, unit: Unit, id: str, depth: int) -> None:
        """Draw a unit as node `id`: an agent as a box, a team as a box of boxes."""
        if isinstance(unit, BaseAgent):
            self._line(depth, f'{id}["{_label(unit.name)}"]')
            for number, tool in enumerate(_called(unit)):
                self.draw(tool, f"{id}t{number}", depth)
                self._line(depth, f"{id} -.-> {id}t{number}")
            return
        self._line(depth, f'subgraph {id}["{_label(unit.name)} ({_kind(unit)})"]')
        for member, node in self._nodes(unit, id):
            self.draw(member, node, depth + 1)
        for edge in _edges(unit, id):
            self._line(depth + 1, edge)
        self._line(depth, "end")

    def _nodes(self, unit: Topology, id: str) -> list[tuple[Unit, str]]:
        places = _places(unit)
        if places:
            return [(place.unit, f"{id}_{number}") for number, place in enumerate(places)]
        return [(member, f"{id}_{number}") for number, member in enumerate(unit.members())]

    def _line(self, depth: int, text: str) -> None:
        self._lines.append("    " * depth + text)


def _edges(unit: Topology, id: str) -> list[str]:
    """The arrows inside a team."""
    places = _places(unit)
    if places:
        number = {place.id: i for i, place in enumerate(places)}
        return [
            f"{id}_{number[source]} -->{'|if|' if when else ''} {id}_{number[place.id]}"
            for place in places
            for source, when in place.before.items()
        ]
    members = unit.members()
    handoffs: Any = getattr(unit, "edges", None)
    if handoffs is not None:
        number = {member.name: i for i, member in enumerate(members)}
        return [f"{id}_{number[source.name]} ==> {id}_{number[target.name]}" for source, target in handoffs]
    if hasattr(unit, "leader"):
        return [f"{id}_0 -.-> {id}_{number}" for number in range(1, len(members))]
    if hasattr(unit, "verifier"):
        return [f"{id}_0 --> {id}_1", f"{id}_1 -->|not accepted| {id}_0"]
    if hasattr(unit, "until"):
        return [f"{id}_0 -->|again| {id}_0"]
    return [f"{id}_0 --> {id}_1"] if len(members) > 1 else []


def tree(root: Unit) -> str:
    """A tree of box-drawing characters, one line a member."""
    lines: list[str] = []
    _branch(root, "", "", lines, "")
    return "\n".join(lines) + "\n"


def _branch(unit: Unit, head: str, indent: str, lines: list[str], note: str) -> None:
    kind = f" ({_kind(unit)})" if isinstance(unit, Topology) else ""
    desc = f" - {unit.desc}" if unit.desc else ""
    lines.append(f"{head}{unit.name}{kind}{note}{desc}")
    below: list[tuple[Unit, str]] = []
    if isinstance(unit, BaseAgent):
        below = [(tool, "") for tool in _called(unit)]
    elif places := _places(unit):
        below = [(p.unit, _place_note(p)) for p in places]
    else:
        handoffs: Any = getattr(unit, "edges", ())
        for member in unit.members():
            targets = [target.name for source, target in handoffs if source is member]
            below.append((member, f"  hands over to {', '.join(targets)}" if targets else ""))
    for number, (member, said) in enumerate(below):
        last = number == len(below) - 1
        _branch(member, indent + ("└── " if last else "├── "), indent + ("    " if last else "│   "), lines, said)


def _places(unit: Topology) -> list[Vertex]:
    graph: Any = getattr(unit, "graph", None)
    return list(graph.places.values()) if graph is not None else []


def _place_note(place: Vertex) -> str:
    other = f"  as {place.id}" if place.id != place.unit.name else ""
    after = [f"{source} (if)" if when else source for source, when in place.before.items()]
    return other + (f"  after {', '.join(after)}" if after else "")


def _called(agent: BaseAgent) -> list[Unit]:
    return [item.unit for item in agent.toolkit.items if isinstance(item, UnitTool)]


def _kind(unit: Topology) -> str:
    return type(unit).__name__.removesuffix("Swarm").lower()


def _label(name: str) -> str:
    return name.replace('"', "'")
