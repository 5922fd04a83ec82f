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
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from aworld.core.bounded import bounded, described
from aworld.core.checks import positive, unique
from aworld.core.event import Status
from aworld.core.exceptions import ConfigError
from aworld.core.run_environment import Reward
from aworld.core.tool.threads import THREADS
from aworld.core.trajectory import Trajectory
from aworld.environments.problem import Problem, check_takes_one

if TYPE_CHECKING:
    from aworld.environments.session import Session

SOURCE = "rubric"
"""What the log says of where such rewards come from."""


@dataclass(frozen=True, slots=True)
class ScoredEpisode:
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


Scorer: TypeAlias = Callable[[ScoredEpisode], float | Awaitable[float]]


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
        check_takes_one(self.scorer, f"Part {self.name!r}, its scorer", "the episode")
        if not isinstance(self.weight, Real) or not math.isfinite(self.weight):
            raise ConfigError(f"Part {self.name!r}: the weight must be a finite number; got {self.weight!r}.")
        positive("timeout", self.timeout)


class Rubric:
    """Named, weighted parts. A plain function stands for a part of its name and weight 1."""

    def __init__(self, *parts: Part | Scorer) -> None:
        if not parts:
            raise ConfigError("Rubric() has no part; give it at least one part or function of the episode.")
        self.parts: tuple[Part, ...] = tuple(part if isinstance(part, Part) else _part(part) for part in parts)
        unique("Two parts of the rubric are named", (part.name for part in self.parts))

    async def score(self, episode: ScoredEpisode) -> list[Reward]:
        """One reward for each part, in their order. Does not raise."""
        if len(self.parts) == 1:
            return [await _reward(self.parts[0], episode)]
        return list(await asyncio.gather(*(_reward(part, episode) for part in self.parts)))

    def __repr__(self) -> str:
        return f"Rubric({', '.join(f'{part.name} × {part.weight:g}' for part in self.parts)})"


def as_rubric(value: Rubric | Part | Scorer | Sequence[Part | Scorer] | None) -> Rubric | None:
    """A rubric from what a caller gave: a rubric, a part, a function of the episode, or several of them."""
    if value is None or isinstance(value, Rubric):
        return value
    return (
        Rubric(*cast("list[Part | Scorer]", value))
        if isinstance(value, list | tuple)
        else Rubric(cast("Part | Scorer", value))
    )


def _part(scorer: Scorer) -> Part:
    name = getattr(scorer, "__name__", "") or type(scorer).__name__
    return Part("reward" if name == "<lambda>" else name, scorer)


async def _reward(part: Part, episode: ScoredEpisode) -> Reward:
    """The reward that a part gives. Whatever goes wrong in it becomes a reward without a value."""
    inline = part.inline and not inspect.iscoroutinefunction(part.scorer)
    scoring = _outcome(part, episode, inline)
    try:
        value = await scoring if inline else await bounded(scoring, part.timeout)
    except TimeoutError:  # of `bounded`: that of a scorer is an outcome
        value = _Failure(f"No value within {part.timeout:g} s.")
    except asyncio.InvalidStateError as raised:
        value = _Failure(described(raised))
    if isinstance(value, Real) and math.isfinite(value):
        return Reward(value=float(value), name=part.name, weight=part.weight, source=SOURCE)
    error = str(value) if isinstance(value, _Failure) else f"The scorer gave {value!r:.80}, which is no finite number."
    return Reward(value=None, name=part.name, weight=part.weight, source=SOURCE, error=error)


class _Failure(str):
    """Why there is no value."""


async def _outcome(part: Part, episode: ScoredEpisode, inline: bool) -> Any:
    """What a scorer gives, or why it gave nothing."""
    try:
        here = inline or inspect.iscoroutinefunction(part.scorer)
        value: Any = part.scorer(episode) if here else await THREADS.run(partial(part.scorer, episode))
        return await value if inspect.isawaitable(value) else value
    except SystemExit as raised:  # it would take the event loop with it
        return _Failure(f"RuntimeError: it tried to end the program (exit code {raised.code})")
    except Exception as raised:  # noqa: BLE001 - a scorer that fails is data
        return _Failure(described(raised))
