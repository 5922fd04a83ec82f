"""Pictures of a team: Mermaid text for documents, a tree for terminals."""

from __future__ import annotations

from aworld.core.agent.base import BaseAgent
from aworld.core.agent.flow import Arrow, Topology, Unit

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
    nodes, arrows = unit.shape()
    ids = {node: f"{id}_{number}" for number, node in enumerate(nodes)}
    for node, member in nodes.items():
        lines += _chart(member, ids[node], depth + 1)
    for arrow in arrows:
        line = _ARROWS.get(arrow.kind, f"-->|{arrow.kind}|")
        lines.append(f"{indent}    {ids[arrow.source]} {line} {ids[arrow.target]}")
    return [*lines, f"{indent}end"]


def tree(root: Unit) -> str:
    """A tree of box-drawing characters, one line a member."""
    return "\n".join(_branch(root, "", "", "")) + "\n"


def _branch(unit: Unit, head: str, indent: str, note: str) -> list[str]:
    kind = f" ({_kind(unit)})" if isinstance(unit, Topology) else ""
    lines = [f"{head}{unit.name}{kind}{note}{f' - {unit.desc}' if unit.desc else ''}"]
    callees: dict[str, Unit] = {} if isinstance(unit, Topology) else {callee.name: callee for callee in unit.callees()}
    nodes, arrows = unit.shape() if isinstance(unit, Topology) else (callees, [])
    for number, (node, member) in enumerate(nodes.items(), 1):
        branch, rest = ("└── ", "    ") if number == len(nodes) else ("├── ", "│   ")
        name = "" if node == member.name else f"  as {node}"
        lines += _branch(member, indent + branch, indent + rest, name + _ways(arrows, node))
    return lines


def _ways(arrows: list[Arrow], node: str) -> str:
    """What leads to a node of a workflow, or where a hand-over may lead from it."""
    ways = {"then": "", "if": " (if)"}
    sources = [f"{a.source}{ways[a.kind]}" for a in arrows if a.target == node and a.kind in ways]
    targets = [a.target for a in arrows if a.source == node and a.kind == "hands over"]
    after = f"  after {', '.join(sources)}" if sources else ""
    return f"{after}  hands over to {', '.join(targets)}" if targets else after


def _kind(unit: Topology) -> str:
    return type(unit).__name__.removesuffix("Swarm").lower()


def _label(name: str) -> str:
    return name.replace('"', "'")
