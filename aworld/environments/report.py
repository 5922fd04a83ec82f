"""How far a rollout is, and what it came to: success with its uncertainty, and each part of the reward."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from msgspec import to_builtins

from aworld.core.checks import Count, typed
from aworld.core.message import Usage
from aworld.core.trajectory import Trajectory

if TYPE_CHECKING:
    from aworld.environments.environment import Environment
    from aworld.environments.rollout import Rollout

Z = 1.96
"""Standard normal quantile of a confidence of 95 %."""


@dataclass(slots=True)
class RolloutProgress:
    """Running figures of a rollout; the same object is told of every episode."""

    total: int | None = None
    """Episodes in all; None when the problems are a stream."""
    done: int = 0
    """Episodes that have ended, those of an earlier start included."""
    skipped: int = 0
    """Episodes that an earlier start had finished."""
    retried: int = 0
    """Attempts whose surroundings failed and that were begun again."""
    lost: int = 0
    """Episodes whose surroundings failed to the last attempt."""
    lost_in_a_row: int = 0
    """How many of the last episodes were lost, without one that was not."""
    reason: str | None = None
    """Why surroundings failed the last time that they did."""
    statuses: Counter[str] = field(default_factory=Counter[str])
    """Endings of this start, by status."""
    unscored: int = 0
    """Episodes of this start that ended without a score."""
    _scored: int = 0
    _sum: float = 0.0
    _started: float = field(default_factory=time.monotonic)

    def skip(self, count: int) -> None:
        """Count episodes that an earlier start had finished."""
        self.skipped += count
        self.done += count

    def count(self, rollout: Rollout) -> None:
        """Count one more episode."""
        self.done += 1
        self.statuses[rollout.status] += 1
        self.lost += rollout.lost
        self.lost_in_a_row = self.lost_in_a_row + 1 if rollout.lost else 0
        if rollout.lost:
            self.reason = rollout.error
        score = rollout.score
        if score is None:
            self.unscored += 1
        else:
            self._scored += 1
            self._sum += score

    @property
    def failed(self) -> int:
        """Episodes of this start that did not finish well, whatever the reason."""
        return sum(self.statuses.values()) - self.statuses["finished"]

    @property
    def mean_score(self) -> float | None:
        """Mean of the scores of this start; None before the first."""
        return self._sum / self._scored if self._scored else None

    @property
    def rate(self) -> float:
        """Episodes a second, of this start."""
        elapsed = time.monotonic() - self._started
        return (self.done - self.skipped) / elapsed if elapsed > 0 else 0.0

    @property
    def eta(self) -> float | None:
        """Seconds that are left at this rate; None when nobody knows."""
        rate = self.rate
        return None if self.total is None or not rate else (self.total - self.done) / rate


@dataclass(slots=True)
class PartFigures:
    """What is known of the rewards of one name. Values without those that failed."""

    name: str
    weight: float = 1.0
    count: int = 0
    failed: int = 0
    total: float = 0.0
    low: float = math.inf
    high: float = -math.inf
    error: str | None = None
    """Why one of them failed."""

    @property
    def mean(self) -> float | None:
        """Mean of the values; None without one."""
        return self.total / self.count if self.count else None


@dataclass(slots=True)
class Estimate:
    """A share with its confidence interval of 95 %."""

    value: float
    low: float
    high: float


@dataclass(slots=True)
class Report:
    """Figures of a rollout, fed by `add`; it keeps counts, not episodes."""

    environment: Environment
    episodes: int = 0
    lost: int = 0
    """Episodes whose surroundings failed: in no figure below."""
    unscored: int = 0
    """Episodes of which nobody knows whether they passed, as a scorer failed: in neither pass@1 nor pass@k."""
    statuses: Counter[str] = field(default_factory=Counter[str])
    parts: dict[str, PartFigures] = field(default_factory=dict[str, PartFigures])
    errors: Counter[str] = field(default_factory=Counter[str])
    """Why episodes did not finish well, by text."""
    usage: Usage = field(default_factory=Usage)
    """What all episodes took."""
    _groups: dict[str, list[int]] = field(default_factory=dict[str, list[int]])

    def add(self, rollout: Rollout) -> None:
        """Count one more episode."""
        self.episodes += 1
        self.statuses[rollout.status] += 1
        self.usage += rollout.record.usage or Usage()
        if rollout.error is not None:
            self.errors[rollout.error.splitlines()[0][:200] if rollout.error else "?"] += 1
        if rollout.lost:
            self.lost += 1
            return
        self._add_parts(rollout.record)
        success = solved(self.environment, rollout.record)
        if success is None:
            self.unscored += 1
            return
        counts = self._groups.setdefault(rollout.group_id, [0, 0])
        counts[0] += 1
        counts[1] += success

    def _add_parts(self, record: Trajectory) -> None:
        for reward in record.rewards:
            part = self.parts.setdefault(reward.name, PartFigures(reward.name, reward.weight))
            if reward.value is None:
                part.failed += 1
                part.error = part.error or reward.error
                continue
            part.count += 1
            part.total += reward.value
            part.low, part.high = min(part.low, reward.value), max(part.high, reward.value)

    @property
    def problems(self) -> int:
        """Problems of which at least one sample is known to have passed or not."""
        return len(self._groups)

    @property
    def pass_at_1(self) -> Estimate | None:
        """Share of episodes that solved their problem, each problem counting the same; None without any."""
        return share_of([(n, c) for n, c in self._groups.values()])

    @typed()
    def pass_at(self, k: Count) -> float | None:
        """Probability that at least one of `k` samples solves a problem; None when no problem has that many samples.

        The unbiased estimator of Chen et al. 2021, "Evaluating Large Language Models Trained on Code", section 2.1.
        """
        chances = [1.0 - math.comb(n - c, k) / math.comb(n, k) for n, c in self._groups.values() if n >= k]
        return fmean(chances) if chances else None

    def _repr_html_(self) -> str:
        from aworld.core.notebook import html

        first = self.pass_at_1
        passed = None if first is None else f"{first.value:.3f} (95 %: {first.low:.3f}–{first.high:.3f})"
        endings = ", ".join(f"{count} {status}" for status, count in self.statuses.most_common())
        return html(
            self.environment.name, {"pass@1": passed, "problems": self.problems, "episodes": endings},
            ("part", "rewards", "mean", "weight", "failed"),
            ((part.name, part.count, part.mean, part.weight, part.failed) for part in self.parts.values()),
        )  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """The figures, JSON-able."""
        first = self.pass_at_1
        samples = max((n for n, _ in self._groups.values()), default=1)
        return {
            "environment": self.environment.name,
            "episodes": self.episodes,
            "problems": self.problems,
            "statuses": dict(self.statuses),
            "usage": to_builtins(self.usage),
            "lost": self.lost,
            "unscored": self.unscored,
            "pass@1": None if first is None else {"value": first.value, "low": first.low, "high": first.high},
            **({f"pass@{samples}": self.pass_at(samples)} if samples > 1 else {}),
            "parts": {
                part.name: {"mean": part.mean, "weight": part.weight, "count": part.count, "failed": part.failed}
                for part in self.parts.values()
            },
        }


def solved(environment: Environment, record: Trajectory) -> bool | None:
    """Whether an episode solved its problem: the first part of the rubric gave 1 or more; without a rubric, the score.

    None when that is not known.
    """
    if environment.rubric is None or not environment.rubric.parts:
        return None if record.score is None else record.score >= 1.0
    name = environment.rubric.parts[0].name
    value = next((r.value for r in reversed(record.rewards) if r.name == name), None)
    return None if value is None else value >= 1.0


def unknown_because(record: Trajectory) -> str:
    """Why nobody knows what an episode is worth, such as `reward 'right': KeyError: 'x'`, and its trajectory."""
    failed = [reward for reward in record.rewards if reward.value is None]
    first = next((reward for reward in failed if reward.weight), failed[0] if failed else None)
    if record.surroundings_failed or first is None:
        why = f"the episode ended as {record.status}: {record.error or 'nobody gave a reward'}"
    else:
        why = f"reward {first.name!r}: {first.error}"
    return f"{why} (trajectory {record.id})"


def share_of(groups: list[tuple[int, int]]) -> Estimate | None:
    """The share of successes over groups of (samples, successes), with Wilson's interval.

    Samples of one problem are alike, so they count as fewer: as many as would give the spread that the problems show,
    never fewer than there are problems nor more than there are samples.
    """
    if not groups:
        return None
    shares = [c / n for n, c in groups]
    count, p = len(shares), fmean(shares)
    samples = sum(n for n, _ in groups)
    effective = float(samples if count == 1 else count)
    if count > 1:
        variance = sum((share - p) ** 2 for share in shares) / (count - 1) / count
        if variance > 0:
            effective = min(max(p * (1 - p) / variance, count), samples)
    centre = (p + Z * Z / (2 * effective)) / (1 + Z * Z / effective)
    half = Z * math.sqrt(p * (1 - p) / effective + Z * Z / (4 * effective * effective)) / (1 + Z * Z / effective)
    return Estimate(p, max(0.0, centre - half), min(1.0, centre + half))
