"""Filters: which samples are left out of training, by named functions that report what they dropped.

Nothing disappears unseen: `apply` returns how many samples each filter took out. Three filters always apply, as what
they drop cannot be trained on (`ALWAYS`); the others are a matter of taste and stand in `TrainingConfig.filters`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from aworld.core.checks import one_of
from aworld.training.credit import returns_by_group
from aworld.training.samples import Sample

Filter: TypeAlias = Callable[[Sequence[Sample]], list[Sample]]
"""Returns the samples that are kept, in their order."""


def incomplete(samples: Sequence[Sample]) -> list[Sample]:
    """Drops samples of trajectories that lack a model call, or the token ids of one."""
    return [sample for sample in samples if sample.complete]


def surroundings(samples: Sequence[Sample]) -> list[Sample]:
    """Drops samples of episodes that failed for a reason that is not the policy's."""
    return [sample for sample in samples if not sample.surroundings_failed]


def failed_rewards(samples: Sequence[Sample]) -> list[Sample]:
    """Drops samples whose reward is unknown: a scorer failed, or nobody gave one."""
    return [s for s in samples if None not in (s.tokens.score, *s.returns, s.afterwards)]


def truncated(samples: Sequence[Sample]) -> list[Sample]:
    """Drops samples of episodes that a limit cut off, where that says nothing about the policy."""
    return [sample for sample in samples if not sample.truncated]


def without_logprobs(samples: Sequence[Sample]) -> list[Sample]:
    """Drops samples of which the server did not tell the log-probability of every sampled token."""
    rows = [(sample, sample.tokens) for sample in samples]
    return [s for s, row in rows if all(p is not None for p, sampled in zip(row.logprobs, row.mask) if sampled)]


def no_variance(samples: Sequence[Sample]) -> list[Sample]:
    """Drops groups that have nothing to teach: all credited alike, place by place, or only one episode left."""
    teaching = {
        group for group, episodes in returns_by_group(samples).items() if any(one != episodes[0] for one in episodes)
    }
    return [sample for sample in samples if sample.group in teaching]


FILTERS: dict[str, Filter] = {
    function.__name__: function
    for function in (incomplete, surroundings, failed_rewards, truncated, without_logprobs, no_variance)
}
ALWAYS = ("incomplete", "surroundings", "failed_rewards")
"""What these drop cannot be trained on."""


def apply(samples: Sequence[Sample], names: Iterable[str] = ("no_variance",)) -> tuple[list[Sample], dict[str, int]]:
    """Put samples through `ALWAYS` and the named filters, in this order.

    Returns the samples that are left and how many each filter dropped. Raises ConfigError for an unknown name.
    """
    dropped: dict[str, int] = {}
    kept = list(samples)
    for name in dict.fromkeys((*ALWAYS, *names)):
        before = len(kept)
        kept = FILTERS[one_of("filters", name, FILTERS)](kept)
        dropped[name] = before - len(kept)
    return kept, {name: count for name, count in dropped.items() if count}
