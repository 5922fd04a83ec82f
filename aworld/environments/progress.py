"""How far a rollout is: counts, throughput, and what is left."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aworld.environments.rollout import Rollout


class Progress:
    """Running figures of a rollout; the same object is told of every episode."""

    def __init__(self, total: int | None = None) -> None:
        self.total = total
        """Episodes in all; None when the problems are a stream."""
        self.done = 0
        """Episodes that have ended, those of an earlier start included."""
        self.skipped = 0
        """Episodes that an earlier start had finished."""
        self.retried = 0
        """Attempts whose surroundings failed and that were begun again."""
        self.lost = 0
        """Episodes whose surroundings failed to the last attempt."""
        self.lost_in_a_row = 0
        """How many of the last episodes were lost, without one that was not."""
        self.reason: str | None = None
        """Why surroundings failed the last time that they did."""
        self.statuses: Counter[str] = Counter()
        """Endings of this start, by status."""
        self.unscored = 0
        """Episodes of this start that ended without a score."""
        self._scored = 0
        self._sum = 0.0
        self._started = time.monotonic()

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
