"""How a recorded run looks in a terminal: with and without colour, in 80 columns and in 200.

What models and tools wrote is data from strangers: control characters, which could drive the terminal, are shown as
a sign. Everything is built of `Text`, never of markup.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.highlighter import JSONHighlighter
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from aworld.cmd.terminal import clean
from aworld.cmd.trajectories import short_id
from aworld.core.event import Attempt, ModelCalled, Noted, Rewarded, ToolCalled
from aworld.core.message import Audio, Content, File, Image
from aworld.core.output import GUARDRAIL
from aworld.core.trajectory import Node, Step, Trajectory
from aworld.models.native_tools import native_uses
from aworld.trajectory.formats import parsed
from aworld.trajectory.query import Facets
from aworld.trajectory.summary import Summary, answer_text

LOOKS = {
    "finished": ("✓", "green"),
    "failed": ("✗", "red"),
    "timeout": ("✗", "red"),
    "cancelled": ("■", "yellow"),
    "limit_reached": ("■", "yellow"),
    "interrupted": ("■", "yellow"),
    "waiting": ("?", "cyan"),
    "running": ("…", "blue"),
}
"""Sign and colour of a status."""
UNKNOWN = ("?", "dim")
"""Of one that a later version, or somebody else, wrote into the file."""

CUT = 800
"""Characters of one message that are shown without `--full`."""

CUT_LINES = 12
"""Lines of one message that are shown without `--full`."""


def table(summaries: list[Summary], width: int | None, now: float, sort: str = "") -> Table:
    """The list of runs for a terminal of this width, or for a pipe, where nothing is cut; `sort`: a column to show too.

    Ids are what one copies: on a terminal as much of them as tells one from another, also where it is too narrow. As
    many columns follow as leave some room for the answer, which is cut. A pipe has whole ids, and neither labels nor
    groups, which are long: `--json` has all.
    """
    columns = _columns(summaries, now, sort)
    if width is None:
        columns = {name: cells for name, cells in columns.items() if name not in ("labels", "group") or name == sort}
    else:
        columns["run"] = [Text(name, style="cyan") for name in _short_names([clean(one.id) for one in summaries])]
    sizes = {name: max(len(name), *(cell.cell_len for cell in cells)) for name, cells in columns.items()}
    if width is not None:
        del sizes["answer"]
        while len(sizes) > len(_ALWAYS) and _across(sizes) + ANSWER >= width:
            sizes.popitem()
        left = width - _across(sizes) - 1
        if left >= len("answer"):
            sizes["answer"] = left
    out = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold", width=_across(sizes) - 2)
    for name, size in sizes.items():
        justify = "right" if name in _RIGHT else "left"
        out.add_column(name, no_wrap=True, overflow="ellipsis", width=size, justify=justify)
    for row in zip(*(columns[name] for name in sizes)):
        out.add_row(*row)
    return out


def _short_names(ids: list[str]) -> list[str]:
    """The ids of a page by as much of their beginning, or their end, as tells them apart."""
    for size in range(10, 60, 4):
        names = [id if len(id := short_id(whole)) <= size + 1 else f"…{id[-size:]}" for whole in ids]
        if len({*names}) == len({*ids}):
            return names
    return ids


def _across(sizes: dict[str, int]) -> int:
    """The width of columns with the space after each."""
    return sum(size + 2 for size in sizes.values())


ANSWER = 20
"""Columns of a terminal that an answer should have at least."""

_ALWAYS = ("run", "status", "score")
_RIGHT = ("score", "cost", "steps", "tokens", "time", "started")


def _columns(summaries: list[Summary], now: float, sort: str) -> dict[str, list[Text]]:
    """What can be said of runs, the most important first. Environments and labels only where there are any."""
    columns = {
        "run": [Text(clean(summary.id), style="cyan") for summary in summaries],
        "status": [status_text(summary.status) for summary in summaries],
        "score": [_score(summary.score) for summary in summaries],
        "steps": [Text(str(summary.steps)) for summary in summaries],
        "tokens": [Text(_short_number(_total(summary))) for summary in summaries],
        "time": [Text(_lasted(summary)) for summary in summaries],
        "started": [Text(_ago(now - summary.started_at)) for summary in summaries],
        "agent": [Text(clean(summary.agent or "")) for summary in summaries],
        "environment": [Text(clean(summary.environment or "")) for summary in summaries],
        "labels": [Text(labels_text(summary.labels)) for summary in summaries],
        "group": [Text(clean(summary.group_id or "")) for summary in summaries],
        "answer": [_ended(summary) for summary in summaries],
    }
    optional = [name for name in ("environment", "labels") if not any(columns[name])]
    shown = {name: cells for name, cells in columns.items() if name not in optional}
    if sort in _SORTED and sort not in shown:
        first = {name: shown.pop(name) for name in _ALWAYS}
        shown = {**first, sort: [_SORTED[sort](getattr(summary, sort)) for summary in summaries], **shown}
    return shown


def labels_text(labels: dict[str, str]) -> str:
    """Labels on one line."""
    return _one_line(" ".join(f"{name}={value}" for name, value in labels.items()))


def facet_table(counts: Facets) -> Table:
    """How many runs have which value, one line a field."""
    out = Table.grid(padding=(0, 2, 0, 0))
    out.add_column(no_wrap=True, style="bold")
    out.add_column(overflow="fold")
    for field, facets in counts.items():
        values = [f"{clean(facet.value)} {facet.count:,}{'+' if facet.more else ''}" for facet in facets]
        out.add_row(clean(field), " · ".join(values) or "none")
    return out


def _plain(value: object) -> Text:
    return Text("–" if value is None else clean(str(value)))


_SORTED: dict[str, Callable[[Any], Text]] = {
    "cost": lambda cost: _plain(None if cost is None else f"${cost:.4f}"),
    **dict.fromkeys(("events", "notes", "input_tokens", "output_tokens", "user_id", "session_id", "version"), _plain),
    **dict.fromkeys(("model", "environment", "task_id", "task_name"), _plain),
}
"""Columns that are shown when the list is in their order."""


def _ended(summary: Summary) -> Text:
    return Text(_one_line(summary.error or summary.answer or ""), style="red" if summary.error else "")


def show(out: Console, trajectory: Trajectory, summary: Summary, *, full: bool = False) -> None:
    """Print a run: a panel with the outcome, then the conversation step by step."""
    out.print(_header(trajectory, summary, full))
    seen: set[int] = set()
    verdicts = [e for e in trajectory.own_events if isinstance(e, Noted) and e.source == GUARDRAIL]
    for verdict in verdicts:
        if verdict.step is None:
            out.print(_verdict(verdict))
    for step in trajectory.steps():
        depth = _depth(trajectory, step.call.activation)
        for id in trajectory.path_ids(step.call.prompt):
            if id not in seen and trajectory.messages[id].origin != "tool":
                out.print(_indented(_said(trajectory.messages[id], full), depth))
            seen.add(id)
        out.print()
        out.print(_indented(_step_line(step), depth))
        for piece in _step_body(trajectory, step, full):
            out.print(_indented(piece, depth + 1))
        for verdict in verdicts:
            if verdict.step == step.number:
                out.print(_indented(_verdict(verdict), depth + 1))
        seen.update(result.result for result in step.results.values())
        if step.call.reply is not None:
            seen.add(step.call.reply)
    for question in trajectory.questions.values():
        out.print(Text.assemble(("? asked  ", "cyan bold"), clean(question.question)))
        reply = trajectory.answers.get(question.id)
        out.print(Text.assemble(("  answer ", "cyan"), clean(reply) if reply is not None else "none yet"))
    outcome = [reward for reward in trajectory.rewards if reward.step is None]
    if outcome:
        out.print()
        for reward in outcome:
            out.print(_reward(reward))


def _header(trajectory: Trajectory, summary: Summary, full: bool) -> Panel:
    sign, colour = LOOKS.get(summary.status, UNKNOWN)
    facts = [f"{summary.steps} step{'' if summary.steps == 1 else 's'}", _lasted(summary) or "no time known"]
    if _total(summary) is not None:
        facts.append(f"{_number(summary.input_tokens)} tokens in, {_number(summary.output_tokens)} out")
    if trajectory.usage is not None and trajectory.usage.cost is not None:
        prices = f" ({trajectory.usage.prices})" if trajectory.usage.prices else ""
        facts.append(f"${trajectory.usage.cost:.4f}{prices}")
    line = Text.assemble((f"{sign} {summary.status}", f"bold {colour}"), "  ")
    if summary.score is not None:
        line.append_text(Text.assemble(_score(summary.score), "  "))
    elif trajectory.rewards:
        line.append("score unknown  ", style="yellow")
    line.append(" · ".join(facts))
    lines: list[RenderableType] = [line]
    started = datetime.fromtimestamp(summary.started_at).isoformat(sep=" ", timespec="seconds")
    about = {
        "task": summary.task_name or (summary.task_id if summary.task_id != summary.id else None),
        "agent": summary.agent,
        "group": summary.group_id,
        "session": summary.session_id,
        "user": summary.user_id,
        "environment": summary.environment,
        "version": summary.version,
        "labels": labels_text(summary.labels),
        "forked from": summary.forked_from,
        "started": started,
        "files": f"{len(trajectory.artifacts)} changed: see aworld diff" if trajectory.artifacts else None,
    }
    for name, value in about.items():
        if value:
            lines.append(_hanging(Text(f"{name:<12}", "dim"), Text(clean(value))))
    if trajectory.error is not None:
        lines.append(_hanging(Text("error       ", "dim"), Text(_cut(trajectory.error, full), "red")))
    if trajectory.answer is not None:
        answer = Text(_cut(answer_text(trajectory.answer), full), "bold")
        lines.append(_hanging(Text("answer      ", "dim"), answer))
    return Panel(
        Group(*lines), title=Text(clean(summary.id), style="bold cyan"), title_align="left", border_style=colour
    )


def _step_line(step: Step) -> Text:
    call = step.call
    parts = [clean(call.model)] if call.model else ["decided by code"]
    parts.append(seconds(call.ended - call.started))
    if call.first_token is not None:
        parts.append(f"first token {seconds(call.first_token - call.started)}")
    if call.usage is not None:
        parts.append(f"{_number(call.usage.input_tokens)} → {_number(call.usage.output_tokens)} tokens")
        if call.usage.cached_tokens:
            parts.append(f"{call.usage.cached_tokens:,} cached")
        if call.usage.cache_write_tokens:
            parts.append(f"{call.usage.cache_write_tokens:,} put into the cache")
    if call.queued > 0.001:
        parts.append(f"waited {seconds(call.queued)} for the limiter")
    if call.finish_reason not in (None, "stop", "tool_calls"):
        parts.append(clean(str(call.finish_reason)))
    line = Text.assemble((f"● {call.step}", "bold magenta"), "  ", (clean(call.agent), "bold"), "  ")
    return line.append(" · ".join(parts), style="dim")


def _step_body(trajectory: Trajectory, step: Step, full: bool) -> Iterator[RenderableType]:
    call = step.call
    for attempt in call.attempts:
        yield _attempt(attempt)
    reply = trajectory.messages[call.reply].message if call.reply is not None else None
    if reply is not None:
        if reply.reasoning:
            yield Text(_cut(reply.reasoning, full), style="dim italic")
        for use in native_uses(reply):
            asked = Text.assemble((clean(use.tool), "bold blue"), f"  {_cut(use.input, full)}")
            yield _hanging(Text("⇢ ", "blue"), asked)
            if use.output is not None:
                yield _hanging(Text("← ", "green"), Text(_cut(use.output, full)))
        if reply.content:
            yield Text(_cut(content(reply.content), full))
    if call.error is not None:
        yield Text(f"✗ {clean(call.error)}", style="red")
    for tool_call in step.tool_calls or _unmade(call, trajectory):
        yield from _tool_call(trajectory, step, tool_call, full)
    for reward in step.rewards:
        yield _reward(reward)


def _unmade(call: ModelCalled, trajectory: Trajectory) -> list[ToolCalled]:
    """What a model asked for and nobody ran: hand-offs and the calls of a run that ended."""
    if call.reply is None:
        return []
    return [
        ToolCalled(
            seq=call.seq, at=call.at, step=call.step, call_id=c.id, name=c.name, arguments=c.arguments, result=-1
        )
        for c in trajectory.messages[call.reply].message.tool_calls
    ]


def _tool_call(trajectory: Trajectory, step: Step, call: ToolCalled, full: bool) -> Iterator[RenderableType]:
    yield _hanging(Text("→ ", "blue"), Text.assemble((clean(call.name), "bold blue"), _arguments(call.arguments, full)))
    result = step.results.get(call.call_id)
    if result is None:
        yield _hanging(Text("  "), Text("no result" if call.result >= 0 else "not run", style="yellow"))
        return
    for attempt in result.attempts:
        yield _attempt(attempt)
    took = "" if result.duration is None else f"  {seconds(result.duration)}"
    node = trajectory.messages.get(result.result)
    text = _cut(content(node.message.content), full) if node is not None else ""
    failed = result.error is not None
    body = Text.assemble((text or clean(result.error or ""), "red" if failed else ""), (took, "dim"))
    yield _hanging(Text("✗ ", "red") if failed else Text("← ", "green"), body)


def _arguments(arguments: str, full: bool) -> Text:
    value = parsed(arguments)
    if isinstance(value, str):  # not JSON: as the model wrote it
        return Text(f"  {_cut(value, full)}")
    flat = json.dumps(value, ensure_ascii=False)
    pretty = flat if len(flat) <= 60 else json.dumps(value, ensure_ascii=False, indent=2)
    text = JSONHighlighter()(Text(_cut(pretty, full)))
    return Text.assemble("  " if pretty is flat else "\n", text)


def _hanging(mark: Text, body: Text) -> RenderableType:
    """`body` with its further lines under its first, `mark` standing out to the left."""
    grid = Table.grid(expand=False)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(mark, body)
    return grid


def _said(node: Node, full: bool) -> RenderableType:
    """A message that no step shows: what was put in by the task, a person, another agent or memory."""
    colour = {"system": "dim", "user": "yellow"}.get(node.message.role, "")
    speaker = node.message.role if node.origin in ("input", "model") else f"{node.message.role} ({node.origin})"
    body = _cut(content(node.message.content), full)
    return _hanging(Text(f"{speaker:<6}  ", f"bold {colour}"), Text(body, "dim" if colour == "dim" else ""))


def _attempt(attempt: Attempt) -> Text:
    named = attempt.status is None or str(attempt.status) in attempt.error
    status = "" if named else f"{attempt.status} "
    waited = f", then waited {seconds(attempt.waited)}" if attempt.waited else ""
    asked = f" of {clean(attempt.model)}" if attempt.model else ""
    return Text(f"↻ failed try{asked}: {status}{_one_line(attempt.error)}{waited}", style="yellow")


def _verdict(verdict: Noted) -> Text:
    """What a guardrail said."""
    data = verdict.data
    said = ("✓ passed", "green") if data["passed"] else (f"✗ {_one_line(data['reason'])}", "red")
    name = f"guardrail {clean(verdict.name)} on {clean(data['on'])}  "
    return Text.assemble((name, "dim"), said, (f"  {seconds(data['seconds'])}", "dim"))


def _reward(reward: Rewarded) -> Text:
    if reward.value is None:
        line = Text.assemble(("✗ no value", "red"), f"  {clean(reward.name)}")
    else:
        star = "★" if reward.value > 0 else "☆"
        line = Text.assemble((f"{star} {reward.value:g}", "bold yellow"), f"  {clean(reward.name)}")
    if reward.weight != 1.0:
        line.append(f" × {reward.weight:g}")
    if reward.source:
        line.append(f"  ({clean(reward.source)})", style="dim")
    if reward.error is not None:
        line.append(f"  {_one_line(reward.error)}", style="red")
    return line


def status_text(status: str) -> Text:
    """A status with its sign and colour."""
    sign, colour = LOOKS.get(status, UNKNOWN)
    return Text(f"{sign} {status}", style=colour)


def content(value: Content | None) -> str:
    """A message as text; a sign stands for pictures, sounds and files."""
    if value is None or isinstance(value, str):
        return value or ""
    pieces: list[str] = []
    for part in value:
        match part:
            case Image(url=url):
                pieces.append("[picture]" if url.startswith("data:") else f"[picture {url}]")
            case Audio(format=format):
                pieces.append(f"[sound, {format}]")
            case File(name=name, file_id=file_id):
                pieces.append(f"[file {name or file_id or ''}]")
            case _:
                pieces.append(part.text)
    return "\n".join(pieces)


def _cut(text: str, full: bool) -> str:
    text = clean(text).rstrip()
    if full:
        return text
    kept = "\n".join(text[:CUT].split("\n")[:CUT_LINES])
    if len(kept) == len(text):
        return text
    return f"{kept.rstrip()} … ({len(text) - len(kept):,} more characters, --full shows them)"


def _indented(piece: RenderableType, depth: int) -> RenderableType:
    return Padding(piece, (0, 0, 0, 2 * depth)) if depth else piece


def _depth(trajectory: Trajectory, id: int | None) -> int:
    depth = 0
    while id is not None and (activation := trajectory.activations.get(id)) is not None and depth < 8:
        id = activation.caller
        depth += id is not None
    return depth


def _one_line(text: str) -> str:
    return " ".join(clean(text[:300]).split())


def _score(score: float | None) -> Text:
    if score is None:
        return Text("–", style="dim")
    return Text(f"★ {score:.3g}", style="bold yellow" if score > 0 else "yellow")


def _total(summary: Summary) -> int | None:
    counts = [count for count in (summary.input_tokens, summary.output_tokens) if count is not None]
    return sum(counts) if counts else None


def _number(count: int | None) -> str:
    return "?" if count is None else f"{count:,}"


def _short_number(count: int | None) -> str:
    if count is None:
        return "–"
    for limit, unit in ((1_000_000, "M"), (10_000, "k")):
        if count >= limit:
            return f"{count / (1_000_000 if unit == 'M' else 1000):.1f}{unit}"
    return str(count)


def _lasted(summary: Summary) -> str:
    end = summary.finished_at or summary.updated_at
    return seconds(end - summary.started_at)


def seconds(duration: float) -> str:
    """A duration for people."""
    if duration < 0.0995:
        return f"{max(duration, 0.0) * 1000:.0f} ms"
    if duration < 99.5:
        return f"{duration:.1f} s"
    minutes, rest = divmod(round(duration), 60)
    if minutes < 100:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _ago(duration: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if duration >= size:
            return f"{duration // size:.0f} {unit} ago"
    return "just now"
