"""From episodes to what trainers of single completions take: one row an episode, or pairs of episodes, exact ids.

Such trainers count with one completion for each prompt of a batch. An episode of several rows (a team, a sub-agent,
drift) therefore gives the row with the most sampled tokens, and the others are counted in `left_out`; an episode
without any gives an empty row that weighs nothing. A pair is two episodes of one problem, the better beside the worse.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from aworld.training.filters import apply
from aworld.training.samples import Sample


class CompletionRow(Struct, frozen=True, kw_only=True):
    """One completion. The lists after `prompt_ids` have one entry a token of the completion."""

    prompt_ids: list[int]
    """What was read before the first sampled token."""
    completion_ids: list[int]
    """From the first sampled token on: what was sampled and what was read in between."""
    env_mask: list[int]
    """1 for what the policy sampled, 0 for what it read."""
    logprobs: list[float]
    """As recorded; 0 for what was read."""
    advantages: list[float]
    score: float | None
    """None where it is unknown."""


class CompletionRows(Struct, frozen=True, kw_only=True):
    """The rows of a step, in the order in which they were asked for."""

    rows: list[CompletionRow]
    left_out: int = 0
    """Samples that had no place, as their episode gave another row."""
    empty: int = 0
    """Episodes without any."""

    def fields(self) -> dict[str, list[object]]:
        """What `rollout_func` returns; `score` and `advantages` are handed on to whoever scores."""
        names = CompletionRow.__struct_fields__
        return {name: [getattr(row, name) for row in self.rows] for name in names}


def rows_of(
    episodes: Sequence[str], samples: Sequence[Sample], scores: Mapping[str, float | None], end_id: int
) -> CompletionRows:
    """The rows of `episodes`, by trajectory id.

    Args:
        episodes: In the order of the trainer's prompts.
        samples: Those that are trained on, with advantages, and those that are not, without.
        scores: The score of each episode, for the trainer's own figures.
        end_id: What an empty row is made of: trainers want at least one token.
    """
    by_episode: dict[str, list[Sample]] = {}
    for sample in samples:
        by_episode.setdefault(sample.tokens.trajectory_id, []).append(sample)
    rows = [row_of(by_episode.get(id, ()), scores.get(id), end_id) for id in episodes]
    empty = sum(id not in by_episode for id in episodes)
    return CompletionRows(rows=rows, left_out=len(samples) - len(by_episode), empty=empty)


def row_of(samples: Sequence[Sample], score: float | None, end_id: int) -> CompletionRow:
    """The row of one episode, of its samples; one that weighs nothing where it has none."""
    if not samples:
        ids = [end_id]
        return CompletionRow(
            prompt_ids=ids, completion_ids=ids, env_mask=[0], logprobs=[0.0], advantages=[0.0], score=score
        )
    return _row(max(samples, key=_weight), score)


def _weight(sample: Sample) -> tuple[bool, int]:
    """What is trained on goes before what was filtered out, then the row with the most sampled tokens."""
    return bool(sample.advantages), sum(sample.tokens.mask)


def _row(sample: Sample, score: float | None) -> CompletionRow:
    tokens, first = sample.tokens, sample.tokens.prompt_length
    return CompletionRow(
        prompt_ids=list(tokens.ids[:first]),
        completion_ids=list(tokens.ids[first:]),
        env_mask=list(tokens.mask[first:]),
        logprobs=[0.0 if logprob is None else logprob for logprob in tokens.logprobs[first:]],
        advantages=list(sample.advantages[first:]) or [0.0] * (len(tokens.ids) - first),
        score=score,
    )


class PreferencePair(Struct, frozen=True, kw_only=True):
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


class PreferencePairs(Struct, frozen=True, kw_only=True):
    """The pairs of some samples, and what gave none."""

    pairs: list[PreferencePair]
    groups: int = 0
    undecided: int = 0
    """Groups without two episodes that differ by more than the margin."""
    other_prompts: int = 0
    """Samples that do not begin with the prompt of their group: they cannot be compared."""
    dropped: dict[str, int] = {}
    """Samples that the filters took out, by filter."""


def pairs_of(samples: Iterable[Sample], *, margin: float = 0.0, filters: Iterable[str] = ()) -> PreferencePairs:
    """Pair the episodes of each group: the best with the worst, the second best with the second worst, and so on.

    Args:
        samples: Of any number of groups. Of an episode only the first row counts: the one that begins with the prompt.
        margin: Only episodes whose rewards differ by more than this are a pair.
        filters: Names of `aworld.training.filters` besides those that always apply, such as `truncated`.
    """
    kept, dropped = apply(list(samples), filters)
    groups: dict[tuple[str, str], dict[str, Sample]] = {}
    for sample in kept:
        groups.setdefault(sample.group, {}).setdefault(sample.tokens.trajectory_id, sample)
    pairs: list[PreferencePair] = []
    undecided = others = 0
    for group in groups.values():
        first = next(iter(group.values()))
        same = [sample for sample in group.values() if _prompt(sample) == _prompt(first)]
        others += len(group) - len(same)
        ranked = sorted(same, key=_reward, reverse=True)
        matched = [
            _pair(better, worse)
            for better, worse in zip(ranked[: len(ranked) // 2], reversed(ranked))
            if _reward(better) - _reward(worse) > margin
        ]
        undecided += not matched
        pairs += matched
    return PreferencePairs(pairs=pairs, groups=len(groups), undecided=undecided, other_prompts=others, dropped=dropped)


def _reward(sample: Sample) -> float:
    assert sample.tokens.score is not None  # the filter `failed_rewards` always applies
    return sample.tokens.score


def _prompt(sample: Sample) -> tuple[int, ...]:
    return sample.tokens.ids[: sample.tokens.prompt_length]


def _pair(better: Sample, worse: Sample) -> PreferencePair:
    start = better.tokens.prompt_length
    return PreferencePair(
        prompt_ids=list(_prompt(better)),
        chosen_ids=list(better.tokens.ids[start:]),
        chosen_mask=list(better.tokens.mask[start:]),
        rejected_ids=list(worse.tokens.ids[start:]),
        rejected_mask=list(worse.tokens.mask[start:]),
        chosen=better.tokens.trajectory_id,
        rejected=worse.tokens.trajectory_id,
        margin=_reward(better) - _reward(worse),
    )
