"""The score of a trajectory: a fold of its rewards.

A reward that could not be computed makes the score unknown, not smaller: the score is None until a reward of the same
name and step has a value. One of weight 0 is a mere figure, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from aworld.core.event import Rewarded


class Score:
    """Sum of weight times value of the rewards so far."""

    __slots__ = ("failed", "total")

    def __init__(self, total: float | None = None) -> None:
        self.total = total
        self.failed: set[tuple[str, int | None]] = set()
        """Name and step of each reward that has no value yet."""

    def add(self, reward: Rewarded) -> None:
        """Take one more reward."""
        if reward.value is not None:
            self.total = (self.total or 0) + reward.weight * reward.value
            if self.failed:
                self.failed.discard((reward.name, reward.step))
        elif reward.weight:
            self.failed.add((reward.name, reward.step))

    @property
    def value(self) -> float | None:
        """The score; None when there is no reward, or one that counts has no value."""
        return None if self.failed else self.total


def score_of(rewards: Iterable[Rewarded]) -> float | None:
    """The score of some rewards, in the order in which they were given."""
    score = Score()
    for reward in rewards:
        score.add(reward)
    return score.value
