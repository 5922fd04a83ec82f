"""How a notebook shows a value: a few facts and a table, in the page's own colours, light or dark.

Models, tools and strangers wrote most of what stands there: every piece is escaped, and cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aworld.core.trajectory import Step, Trajectory

CUT = 300
"""Characters of one cell."""
MOST = 50
"""Rows of a table; how many more there are is said."""

_CELL = "text-align:left;vertical-align:top;padding:2px 12px 2px 0;border-bottom:1px solid rgba(128,128,128,.3)"


def html(
    title: str, facts: Mapping[str, object], head: Sequence[str] = (), rows: Iterable[Sequence[object]] = ()
) -> str:
    """A title, the facts that are known, and a table."""
    cells = ((name, "" if fact is None else _cell(fact)) for name, fact in facts.items())
    shown = " · ".join(f"<b>{escape(name)}</b> {cell}" for name, cell in cells if cell)
    lines = iter(rows)
    body = "".join(_row("td", line) for line in islice(lines, MOST))
    more = sum(1 for _ in lines)
    note = f"<div>and {more} more</div>" if more else ""
    table = f'<table style="border-collapse:collapse">{_row("th", head)}{body}</table>' if body else ""
    return f'<div style="font-size:90%"><div><b>{escape(title)}</b></div><div>{shown}</div>{table}{note}</div>'


def html_of(record: Trajectory, **facts: object) -> str:
    """A run, step by step."""
    usage = record.usage
    tokens = None if usage is None or usage.input_tokens is None else f"{usage.input_tokens} + {usage.output_tokens}"
    first = {"answer": record.answer, "error": record.error, "score": record.score, "tokens": tokens}
    return html(
        f"{record.status} · {record.id}", {**first, **facts}, ("step", "agent", "said", "tools"),
        ((step.call.step, step.call.agent, _said(record, step), _tools(record, step)) for step in record.steps()),
    )  # fmt: skip


def _said(record: Trajectory, step: Step) -> str:
    reply = record.messages.get(step.call.reply) if step.call.reply is not None else None
    return (reply.message.text if reply is not None else "") or step.call.error or ""


def _tools(record: Trajectory, step: Step) -> str:
    lines: list[str] = []
    for call in step.tool_calls:
        node = record.messages.get(call.result)
        lines.append(f"{call.name}({call.arguments:.100}) → {node.message.text if node is not None else '…':.150}")
    return "\n".join(lines)


def _row(kind: str, cells: Sequence[object]) -> str:
    row = "".join(f'<{kind} style="{_CELL}">{_cell(cell)}</{kind}>' for cell in cells)
    return f"<tr>{row}</tr>" if cells else ""


def _cell(value: object) -> str:
    text = value if isinstance(value, str) else f"{value:.3g}" if isinstance(value, float) else str(value)
    text = text if len(text) <= CUT else f"{text[:CUT]}…"
    return escape(text).replace("\n", "<br>")
