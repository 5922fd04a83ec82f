"""Rubrics: the reward of an episode as a weighted sum of named parts.

Each part becomes one `reward` event of the log. A scorer gives a finite number; True and False count as 1 and 0. One
that raises, gives anything else (None, text, NaN, infinity) or takes too long is recorded as a failed reward, without a
value and with the reason, and the score of the episode is then unknown: never a silent 0.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import TYPE_CHECKING, Any, TypeAlias

from aworld.core.event import Status
from aworld.core.exceptions import ConfigError
from aworld.core.run_environment import Reward
from aworld.core.tool.threads import THREADS
from aworld.core.trajectory import Trajectory
from aworld.environments.signatures import check_takes_one

if TYPE_CHECKING:
    from aworld.environments.problem import Problem
    from aworld.environments.session import Session

SOURCE = "rubric"
"""What the log says of where such rewards come from."""


@dataclass(frozen=True, slots=True)
class Episode:
    """What a scorer sees: an episode that is about to end."""

    problem: Problem
    record: Trajectory
    """The run so far: messages, tool calls, step rewards."""
    answer: Any
    """What the agent answered, of its `output_type` in JSON form; None when it did not."""
    status: Status
    """How the run ends: `finished`, `limit_reached`, `timeout` or `failed`."""
    error: str | None = None
    session: Session | None = None
    """The episode's own state."""

    @property
    def text(self) -> str:
        """The answer as text; empty when there is none."""
        return "" if self.answer is None else self.answer if isinstance(self.answer, str) else str(self.answer)


Scorer: TypeAlias = Callable[[Episode], float | Awaitable[float]]


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a rubric.

    Args:
        name: As the log, the reports and the exports name it.
        scorer: Gives a number, plain or async.
        weight: What the number counts in the score; 0 for a mere figure, whose failure does not matter either.
        timeout: Seconds after which it has failed.
        inline: Run a plain scorer on the event loop instead of in a thread: cheaper, for a tiny one that never waits.
            Nobody can stop an inline one that hangs.
    """

    name: str
    scorer: Scorer
    weight: float = 1.0
    timeout: float = 60.0
    inline: bool = False

    def __post_init__(self) -> None:
        if not self.name or not isinstance(self.name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"A part of a rubric needs a name; got {self.name!r}.")
        if not callable(self.scorer):
            raise ConfigError(f"Part {self.name!r}: the scorer must be a function of the episode; got {self.scorer!r}.")
        check_takes_one(self.scorer, f"Part {self.name!r}, its scorer", "the episode")
        if not isinstance(self.weight, Real) or not math.isfinite(self.weight):
            raise ConfigError(f"Part {self.name!r}: the weight must be a finite number; got {self.weight!r}.")
        if not self.timeout > 0:
            raise ConfigError(f"Part {self.name!r}: the timeout must be more than 0 seconds; got {self.timeout!r}.")


class Rubric:
    """Named, weighted parts. A plain function stands for a part of its name and weight 1."""

    def __init__(self, *parts: Part | Scorer) -> None:
        if not parts:
            raise ConfigError("Rubric() has no part; give it at least one part or function of the episode.")
        self.parts: tuple[Part, ...] = tuple(_part(part) for part in parts)
        names = [part.name for part in self.parts]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ConfigError(f"Two parts of the rubric are named {min(twice)!r}; give one another name.")

    async def score(self, episode: Episode) -> list[Reward]:
        """One reward for each part, in their order. Does not raise."""
        if len(self.parts) == 1:
            return [await _reward(self.parts[0], episode)]
        return list(await asyncio.gather(*(_reward(part, episode) for part in self.parts)))

    def __repr__(self) -> str:
        return f"Rubric({', '.join(f'{part.name} × {part.weight:g}' for part in self.parts)})"


class _Late(Exception):
    """A scorer has taken too long."""


def as_rubric(given: Rubric | Part | Scorer | Sequence[Part | Scorer] | None) -> Rubric | None:
    """A rubric from what a caller gave: a rubric, a part, a function of the episode, or several of them."""
    if given is None or isinstance(given, Rubric):
        return given
    if callable(given) or isinstance(given, Part):
        return Rubric(given)
    if not isinstance(given, Sequence) or isinstance(given, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(
            f"A rubric is a Rubric, a Part, a function of the episode or a list of these; got {given!r:.100}."
        )
    return Rubric(*given)


def _part(given: Part | Scorer) -> Part:
    if isinstance(given, Part):
        return given
    if not callable(given):
        raise ConfigError(f"A rubric takes parts and functions of the episode; got {given!r:.100}.")
    name = getattr(given, "__name__", "") or type(given).__name__
    return Part("reward" if name == "<lambda>" else name, given)


async def _reward(part: Part, episode: Episode) -> Reward:
    """The reward that a part gives. Whatever goes wrong in it becomes a reward without a value."""
    try:
        value, error = await _value(part, episode)
    except _Late as late:
        value, error = None, str(late)
    except (Exception, SystemExit) as raised:  # noqa: BLE001 - a scorer that fails is data
        value, error = None, _described(raised)
    return Reward(value=value, name=part.name, weight=part.weight, source=SOURCE, error=error)


async def _value(part: Part, episode: Episode) -> tuple[float | None, str | None]:
    given: Any
    if part.inline and not inspect.iscoroutinefunction(part.scorer):
        given = part.scorer(episode)
        if inspect.isawaitable(given):
            given = await _bounded(given, part.timeout)
    else:
        given = await _bounded(_called(part, episode), part.timeout)
    if isinstance(given, Real) and math.isfinite(given):
        return float(given), None
    return None, f"The scorer gave {given!r:.80}, which is no finite number."


async def _called(part: Part, episode: Episode) -> Any:
    try:
        if inspect.iscoroutinefunction(part.scorer):
            return await part.scorer(episode)
        given: Any = await THREADS.run(partial(part.scorer, episode))
        return await given if inspect.isawaitable(given) else given
    except SystemExit as raised:  # it would take the event loop with it
        raise RuntimeError(f"it tried to end the program (exit code {raised.code})") from raised


async def _bounded(work: Awaitable[Any], limit: float) -> Any:
    """What is awaited, in a task of its own: one that ignores its cancellation cannot hold the run up."""
    task = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait((task,), timeout=limit)
    except asyncio.CancelledError:
        _abandon(task)
        raise
    if not done:
        _abandon(task)
        raise _Late(f"No value within {limit:g} s.")
    if task.cancelled():
        raise RuntimeError("the scorer cancelled itself")
    return task.result()


def _abandon(task: asyncio.Future[Any]) -> None:
    task.add_done_callback(lambda t: t.cancelled() or t.exception())  # its late error is nobody's news
    task.cancel()


def _described(raised: BaseException) -> str:
    try:
        return f"{type(raised).__name__}: {raised}"
    except Exception:  # noqa: BLE001 - somebody else's `__str__`
        return type(raised).__name__
