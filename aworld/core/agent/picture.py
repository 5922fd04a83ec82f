"""Pictures of a team: Mermaid text for documents, a tree for terminals."""

from __future__ import annotations

from aworld.core.agent.base import BaseAgent
from aworld.core.agent.flow import Shape, Topology, Unit

_ARROWS = {"then": "-->", "if": "-->|if|", "calls": "-.->", "hands over": "==>"}


def mermaid(root: Unit) -> str:
    """A flowchart in Mermaid's language."""
    return "\n".join(["flowchart TD", *_chart(root, "n", 1)]) + "\n"


def _chart(unit: Unit, id: str, depth: int) -> list[str]:
    """A unit as node `id`: an agent as a box, a team as a box of boxes."""
    indent = "    " * depth
    if isinstance(unit, BaseAgent):
        lines = [f'{indent}{id}["{_label(unit.name)}"]']
        for number, callee in enumerate(unit.callees()):
            lines += [*_chart(callee, f"{id}t{number}", depth), f"{indent}{id} -.-> {id}t{number}"]
        return lines
    lines = [f'{indent}subgraph {id}["{_label(unit.name)} ({_kind(unit)})"]']
    shape = unit.shape()
    ids = {node: f"{id}_{number}" for number, node in enumerate(shape.nodes)}
    for node, member in shape.nodes.items():
        lines += _chart(member, ids[node], depth + 1)
    for arrow in shape.arrows:
        line = _ARROWS.get(arrow.kind, f"-->|{arrow.kind}|")
        lines.append(f"{indent}    {ids[arrow.source]} {line} {ids[arrow.target]}")
    return [*lines, f"{indent}end"]


def tree(root: Unit) -> str:
    """A tree of box-drawing characters, one line a member."""
    return "\n".join(_branch(root, "", "", "")) + "\n"


def _branch(unit: Unit, head: str, indent: str, note: str) -> list[str]:
    kind = f" ({_kind(unit)})" if isinstance(unit, Topology) else ""
    lines = [f"{head}{unit.name}{kind}{note}{f' - {unit.desc}' if unit.desc else ''}"]
    shape = (
        unit.shape() if isinstance(unit, Topology) else Shape({callee.name: callee for callee in unit.callees()}, [])
    )
    for number, (node, member) in enumerate(shape.nodes.items()):
        last = number == len(shape.nodes) - 1
        branch, rest = ("└── ", "    ") if last else ("├── ", "│   ")
        lines += _branch(member, indent + branch, indent + rest, _note(shape, node))
    return lines


def _note(shape: Shape, node: str) -> str:
    name = "" if node == shape.nodes[node].name else f"  as {node}"
    ways = {"then": "", "if": " (if)"}
    after = [f"{a.source}{ways[a.kind]}" for a in shape.arrows if a.target == node and a.kind in ways]
    targets = [a.target for a in shape.arrows if a.source == node and a.kind == "hands over"]
    return (
        name
        + (f"  after {', '.join(after)}" if after else "")
        + (f"  hands over to {', '.join(targets)}" if targets else "")
    )


def _kind(unit: Topology) -> str:
    return type(unit).__name__.removesuffix("Swarm").lower()


def _label(name: str) -> str:
    return name.replace('"', "'")
