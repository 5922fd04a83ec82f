"""Samples: what a trainer learns from, derived from stored trajectories.

A sample is a token sequence of one agent (`aworld.trajectory.sequences`) with what credit needs. Nothing is tokenised
here: every id was sent or sampled, and the mask marks exactly the sampled ones. What cannot be trained on is still a
sample, marked so, and is taken out by a filter that counts it (`filters`); what has no token ids at all is counted in
`SampleSet`. Advantages are given by `credit`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from msgspec import Struct

from aworld.core.checks import typed
from aworld.core.trajectory import Trajectory
from aworld.training.credit import Credit, trajectory_reward
from aworld.trajectory.sequences import TokenSequence, sequences

CUT_OFF = ("limit_reached", "timeout", "cancelled", "interrupted")
"""Statuses of episodes that were ended from outside."""


class Sample(Struct, frozen=True, kw_only=True):
    """One row of ids, as one agent saw and wrote them, and what it is worth."""

    tokens: TokenSequence
    """The ids with their mask (1: sampled by the policy), log-probabilities and steps, and the score of the episode."""
    group_id: str | None
    """The episodes that it is compared with: those of the same problem."""
    token_steps: tuple[int, ...]
    """For each id: the place in `tokens.steps` of the call that sampled it, -1 for what was read."""
    returns: tuple[float | None, ...]
    """What each step is credited with, by the chosen rule of `credit`; None where a reward is unknown."""
    places: tuple[int, ...]
    """The place of each step among all those of its agent in the episode, from 0: it is compared with that place."""
    afterwards: float | None
    """What the episode is credited with once it is over; likewise."""
    advantages: tuple[float, ...] = ()
    """For each id: what its probability is pushed by; empty until `credit.with_advantages` gave them."""
    truncated: bool = False
    """The episode, or a reply in it, was cut off by a limit."""
    complete: bool = True
    """No model call is missing from the log or lacks its token ids."""
    surroundings_failed: bool = False
    """The episode failed for a reason that is not the policy's."""
    labels: dict[str, str] = {}
    """Those of the episode: `run`, `problem`, `sample`, ... say which one the sample is of."""

    @property
    def sampled(self) -> tuple[int, ...]:
        """The ids that the policy sampled, in order."""
        return tuple(id for id, mask in zip(self.tokens.ids, self.tokens.mask) if mask)

    @property
    def group(self) -> tuple[str, str]:
        """What the sample is compared within: its group (itself where it has none), and its agent."""
        return self.group_id or self.tokens.trajectory_id, self.tokens.agent


class SampleSet(Struct, frozen=True, kw_only=True):
    """The samples of some trajectories, and what could not become one."""

    samples: tuple[Sample, ...] = ()
    trajectories: int = 0
    drift: int = 0
    """Calls whose prompt did not extend the tokens before it: each began a row of its own."""
    without_tokens: int = 0
    """Calls of the chosen agents that were answered without token ids: they are in no sample."""
    empty: int = 0
    """Trajectories of which no token can be trained on."""


@typed()
def derive(
    trajectories: Iterable[Trajectory],
    *,
    agents: Collection[str] | None = None,
    credit: Credit = trajectory_reward,
    discount: float = 1.0,
) -> SampleSet:
    """The samples of trajectories, in their order.

    Args:
        agents: Whose tokens are trained on, by name. Agents that share a policy are named together; with several
            policies, ask once for each. None takes every agent of which the server told token ids.
        credit: How rewards are credited to steps, a function of `aworld.training.credit`.
        discount: Weight of a step's reward for each step earlier, where `credit` discounts.
    """
    samples: list[Sample] = []
    count = drift = without_tokens = empty = 0
    for trajectory in trajectories:
        # A judge that some provider answers without ids does not spoil the samples of a policy that it judges.
        captured = {call.agent for call in trajectory.calls.values() if call.tokens and call.tokens.level == "tokens"}
        rows = sequences(trajectory, (captured or None) if agents is None else agents)
        complete = rows.complete and not rows.without_tokens
        before = len(samples)
        samples += [_sample(trajectory, row, complete, credit, discount) for row in rows.rows if 1 in row.mask]
        count, drift, without_tokens = count + 1, drift + rows.drift, without_tokens + rows.without_tokens
        empty += len(samples) == before
    return SampleSet(
        samples=tuple(samples), trajectories=count, drift=drift, without_tokens=without_tokens, empty=empty
    )


def samples_of(trajectory: Trajectory, **settings: Any) -> SampleSet:
    """The samples of one trajectory; `settings` as of `derive`."""
    return derive((trajectory,), **settings)


def _sample(trajectory: Trajectory, row: TokenSequence, complete: bool, credit: Credit, discount: float) -> Sample:
    calls = [trajectory.calls[step] for step in row.steps]
    own = sorted(step for step, call in trajectory.calls.items() if call.agent == row.agent)
    *returns, afterwards = credit(trajectory, row.agent, (*row.steps, trajectory.next_step), discount)
    lengths = [len((call.tokens and call.tokens.completion_ids) or ()) for call in calls]
    owners = iter([place for place, length in enumerate(lengths) for _ in range(length)])
    return Sample(
        tokens=row,
        group_id=trajectory.task.group_id,
        token_steps=tuple(next(owners) if sampled else -1 for sampled in row.mask),
        returns=tuple(returns),
        places=tuple(map(own.index, row.steps)),
        afterwards=afterwards,
        truncated=trajectory.status in CUT_OFF or any(call.finish_reason == "length" for call in calls),
        complete=complete,
        surroundings_failed=trajectory.surroundings_failed,
        labels=trajectory.task.labels,
    )
