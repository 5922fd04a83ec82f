"""Preference pairs from groups: episodes of one problem, the better one beside the worse one, as exact token ids."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from aworld.training.filters import apply
from aworld.training.samples import Sample

__all__ = ["Pair", "Pairs", "pairs_of"]


class Pair(Struct, frozen=True, kw_only=True):
    """Two continuations of one prompt. A mask has 1 where the policy sampled and 0 where it read."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    chosen_mask: list[int]
    rejected_ids: list[int]
    rejected_mask: list[int]
    chosen: str
    """Id of the better trajectory."""
    rejected: str
    margin: float
    """By how much it is better."""


class Pairs(Struct, frozen=True, kw_only=True):
    """The pairs of some samples, and what gave none."""

    pairs: list[Pair]
    groups: int = 0
    undecided: int = 0
    """Groups without two episodes that differ by more than the margin."""
    other_prompts: int = 0
    """Samples that do not begin with the prompt of their group: they cannot be compared."""
    dropped: dict[str, int] = {}
    """Samples that the filters took out, by filter."""


def pairs_of(samples: Iterable[Sample], *, margin: float = 0.0, filters: Iterable[str] = ()) -> Pairs:
    """Pair the episodes of each group: the best with the worst, the second best with the second worst, and so on.

    Args:
        samples: Of any number of groups. Of an episode only the first row counts: the one that begins with the prompt.
        margin: Only episodes whose rewards differ by more than this are a pair.
        filters: Names of `aworld.training.filters` besides those that always apply, such as `truncated`.
    """
    kept, dropped = apply(list(samples), filters)
    groups: dict[tuple[str, str], dict[str, Sample]] = {}
    for sample in kept:
        groups.setdefault(sample.group, {}).setdefault(sample.trajectory_id, sample)
    pairs: list[Pair] = []
    undecided = others = 0
    for group in groups.values():
        first = next(iter(group.values()))
        same = [sample for sample in group.values() if _prompt(sample) == _prompt(first)]
        others += len(group) - len(same)
        ranked = sorted(same, key=_reward, reverse=True)
        found = [
            _pair(better, worse)
            for better, worse in zip(ranked[: len(ranked) // 2], reversed(ranked))
            if _reward(better) - _reward(worse) > margin
        ]
        undecided += not found
        pairs += found
    return Pairs(pairs=pairs, groups=len(groups), undecided=undecided, other_prompts=others, dropped=dropped)


def _reward(sample: Sample) -> float:
    assert sample.reward is not None  # the filter `failed_rewards` always applies
    return sample.reward


def _prompt(sample: Sample) -> tuple[int, ...]:
    return sample.ids[: sample.mask.index(1)]


def _pair(better: Sample, worse: Sample) -> Pair:
    start = len(_prompt(better))
    return Pair(
        prompt_ids=list(_prompt(better)),
        chosen_ids=list(better.ids[start:]),
        chosen_mask=list(better.mask[start:]),
        rejected_ids=list(worse.ids[start:]),
        rejected_mask=list(worse.mask[start:]),
        chosen=better.trajectory_id,
        rejected=worse.trajectory_id,
        margin=_reward(better) - _reward(worse),
    )
