"""The learning curve: as data, as a picture (SVG, written here), and as lines for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from aworld.training.result import Evaluation, Mode, TrainingResult

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 48, 44
COLOURS: dict[Mode, str] = {"greedy": "#0b6e4f", "sampled": "#c1440e"}
SIGNS: dict[Mode, str] = {"greedy": "●", "sampled": "○"}
SMOOTHED = 5
"""Training steps of the running mean that is drawn: a step has some hundred episodes of few problems."""


def points(result: TrainingResult) -> dict[str, Any]:
    """The curve as JSON-able data: success by training step, on held-out problems and in training."""
    held_out = [
        {"step": one.step, "mode": one.mode, "success": one.success, "low": one.interval[0], "high": one.interval[1],
         "tasks": one.tasks, "score": one.score}
        for one in result.evaluations
    ]  # fmt: skip
    names = ("step", "success", "pass_at_k", "score", "episodes")
    training = [{name: getattr(one, name) for name in names} for one in result.history]
    return {"held_out": held_out, "training": training}


def svg(result: TrainingResult, title: str = "") -> str:
    """The curve as a picture that stands alone."""
    end = _end(result)
    last = end or 1
    drawn = [_frame(last, end), _training(result, last)]
    for mode in SIGNS:
        drawn += _evaluations(result.of_mode(mode), mode, last)
    drawn.append(_legend(result))
    heading = f"{title}: success on held-out tasks" if title else "Success on held-out tasks"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="13" role="img" aria-label="{escape(heading)}">\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>\n'
        f'<text x="{LEFT}" y="22" font-size="16" font-weight="bold" fill="#222222">{escape(heading)}</text>\n'
        + "\n".join(drawn)
        + "\n</svg>\n"
    )


def _x(step: float, last: int) -> float:
    return round(LEFT + (WIDTH - LEFT - RIGHT) * step / last, 1)


def _y(share: float) -> float:
    return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share, 1)


def _end(result: TrainingResult) -> int:
    """The last step that is shown; 0 where nothing was trained."""
    return max([result.steps, *(one.step for one in result.evaluations)], default=0)


def _frame(last: int, end: int) -> str:
    lines: list[str] = []
    for tenth in range(0, 11, 2):
        y = _y(tenth / 10)
        lines.append(f'<line x1="{LEFT}" y1="{y}" x2="{WIDTH - RIGHT}" y2="{y}" stroke="#e3e3e3"/>')
        lines.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end" fill="#555555">{tenth * 10} %</text>')
    for step in sorted({round(end * part / 5) for part in range(6)}):
        x = _x(step, last)
        lines.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle" fill="#555555">{step}</text>')
    lines.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle" fill="#555555">'
        "training step</text>"
    )
    return "\n".join(lines)


def _training(result: TrainingResult, last: int) -> str:
    line = " ".join(f"{_x(step, last)},{_y(share)}" for step, share in _in_training(result))
    if not line:
        return ""
    return f'<polyline points="{line}" fill="none" stroke="#b9b9b9" stroke-width="2"/>'


def _in_training(result: TrainingResult) -> list[tuple[int, float]]:
    """The steps whose success is known, smoothed."""
    scored = [(one.step, one.success) for one in result.history if one.success is not None]
    return [(step, share) for (step, _), share in zip(scored, smoothed([success for _, success in scored]))]


def _evaluations(evaluations: Sequence[Evaluation], mode: Mode, last: int) -> list[str]:
    scored = [(one, one.success) for one in evaluations if one.success is not None]
    if not scored:
        return []
    colour = COLOURS[mode]
    line = " ".join(f"{_x(one.step, last)},{_y(success)}" for one, success in scored)
    drawn = [f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2.5"/>']
    for one, success in scored:
        x, (low, high) = _x(one.step, last), one.interval
        drawn.append(f'<line x1="{x}" y1="{_y(low)}" x2="{x}" y2="{_y(high)}" stroke="{colour}" stroke-width="1.5"/>')
        drawn.append(f'<circle cx="{x}" cy="{_y(success)}" r="4" fill="{colour}"/>')
    return drawn


def _legend(result: TrainingResult) -> str:
    items = [(COLOURS[mode], f"{mode} (95 % interval)") for mode in SIGNS if result.of_mode(mode)]
    if result.history:
        items.append(("#b9b9b9", f"in training, mean of {SMOOTHED} steps"))
    drawn: list[str] = []
    for number, (colour, text) in enumerate(items):
        x = LEFT + 190 * number
        drawn.append(f'<line x1="{x}" y1="36" x2="{x + 20}" y2="36" stroke="{colour}" stroke-width="3"/>')
        drawn.append(f'<text x="{x + 26}" y="40" fill="#333333">{text}</text>')
    return "\n".join(drawn)


def smoothed(values: Sequence[float], count: int = SMOOTHED) -> list[float]:
    """The mean of each value and up to `count` - 1 before it."""
    return [sum(values[max(0, end - count) : end]) / min(end, count) for end in range(1, len(values) + 1)]


def terminal(result: TrainingResult, width: int = 72, height: int = 12) -> str:
    """The curve as lines of text: `●` greedy, `○` sampled, `·` in training."""
    end = _end(result)
    last = end or 1
    columns = max(10, width - 7)
    grid = [[" "] * columns for _ in range(height)]

    def put(step: int, share: float, sign: str) -> None:
        grid[height - 1 - round(share * (height - 1))][round(step / last * (columns - 1))] = sign

    for step, share in _in_training(result):
        put(step, share, "·")
    for mode, sign in reversed(SIGNS.items()):  # greedy on top
        for one in result.of_mode(mode):
            if one.success is not None:
                put(one.step, one.success, sign)
    lines = [f"{_label(row, height):>5} ┤{''.join(cells).rstrip()}" for row, cells in enumerate(grid)]
    ends = "0" + f"step {end}".rjust(columns - 1) if end else "step 0"
    return "\n".join([*lines, " " * 6 + "└" + "─" * columns, " " * 7 + ends, _signs(result)])


def _label(row: int, height: int) -> str:
    middle = height - 1 - round(0.5 * (height - 1))
    return {0: "100 %", middle: "50 %", height - 1: "0 %"}.get(row, "")


def _signs(result: TrainingResult) -> str:
    scored = [f"{sign} {mode}" for mode, sign in SIGNS.items() if result.of_mode(mode)]
    return " " * 7 + "   ".join([*scored, "· in training"] if result.history else scored)
