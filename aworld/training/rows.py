"""From episodes to what trainers of single completions take (TRL, verl): one row an episode, exact ids.

They count with one completion for each prompt of a batch. An episode of several rows (a team, a sub-agent, drift)
therefore gives the row with the most sampled tokens, and the others are counted in `left_out`; an episode without any
gives an empty row that weighs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from aworld.training.samples import Sample

__all__ = ["Row", "Rows", "row_of", "rows_of"]


class Row(Struct, frozen=True, kw_only=True):
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


class Rows(Struct, frozen=True, kw_only=True):
    """The rows of a step, in the order in which they were asked for."""

    rows: list[Row]
    left_out: int = 0
    """Samples that had no place, as their episode gave another row."""
    empty: int = 0
    """Episodes without any."""

    def fields(self) -> dict[str, list[object]]:
        """What `rollout_func` returns; `score` and `advantages` are handed on to whoever scores."""
        names = Row.__struct_fields__
        return {name: [getattr(row, name) for row in self.rows] for name in names}


def rows_of(
    episodes: Sequence[str], samples: Sequence[Sample], scores: Mapping[str, float | None], end_id: int
) -> Rows:
    """The rows of `episodes`, by trajectory id.

    Args:
        episodes: In the order of TRL's prompts.
        samples: Those that are trained on, with advantages, and those that are not, without.
        scores: The score of each episode, for the trainer's own figures.
        end_id: What an empty row is made of: TRL wants at least one token.
    """
    by_episode: dict[str, list[Sample]] = {}
    for sample in samples:
        by_episode.setdefault(sample.trajectory_id, []).append(sample)
    rows = [row_of(by_episode.get(id, ()), scores.get(id), end_id) for id in episodes]
    return Rows(rows=rows, left_out=len(samples) - len(by_episode), empty=sum(id not in by_episode for id in episodes))


def row_of(samples: Sequence[Sample], score: float | None, end_id: int) -> Row:
    """The row of one episode, of its samples; one that weighs nothing where it has none."""
    if not samples:
        ids = [end_id]
        return Row(prompt_ids=ids, completion_ids=ids, env_mask=[0], logprobs=[0.0], advantages=[0.0], score=score)
    return _row(max(samples, key=_weight), score)


def _weight(sample: Sample) -> tuple[bool, int]:
    """What is trained on goes before what was filtered out, then the row with the most sampled tokens."""
    return bool(sample.advantages), sum(sample.mask)


def _row(sample: Sample, score: float | None) -> Row:
    first = sample.mask.index(1)
    count = len(sample.ids) - first
    return Row(
        prompt_ids=list(sample.ids[:first]),
        completion_ids=list(sample.ids[first:]),
        env_mask=list(sample.mask[first:]),
        logprobs=[0.0 if logprob is None else logprob for logprob in sample.logprobs[first:]],
        advantages=list(sample.advantages[first:]) or [0.0] * count,
        score=score,
    )
