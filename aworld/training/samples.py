"""Samples: what a trainer learns from, derived from stored trajectories.

A sample is a token sequence of one agent (`aworld.trajectory.sequences`) with what credit needs. Nothing is tokenised
here: every id was sent or sampled, and the mask marks exactly the sampled ones. What cannot be trained on is still a
sample, marked so, and is taken out by a filter that counts it (`filters`); what has no token ids at all is counted in
`Derived`. Advantages are given by `credit`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from msgspec import Struct

from aworld.core.trajectory import Trajectory
from aworld.training.credit import Credit, trajectory_reward
from aworld.trajectory.sequences import TokenSequence, sequences

__all__ = ["Derived", "Sample", "derive", "samples_of"]

CUT_OFF = ("limit_reached", "timeout", "cancelled", "interrupted")
"""Statuses of episodes that were ended from outside."""


class Sample(Struct, frozen=True, kw_only=True):
    """One row of ids, as one agent saw and wrote them. What is said "a token" has one entry for each of `ids`."""

    trajectory_id: str
    group_id: str | None
    """The episodes that it is compared with: those of the same problem."""
    agent: str
    activation: int
    ids: tuple[int, ...]
    mask: tuple[int, ...]
    """A token: 1 when the policy sampled it, 0 when it was read."""
    logprobs: tuple[float | None, ...]
    """A token: natural logarithm, of the distribution that was sampled from; None for what was read, or not told."""
    steps: tuple[int, ...]
    """The model calls that the row is made of."""
    token_steps: tuple[int, ...]
    """A token: the place in `steps` of the call that sampled it, -1 for what was read."""
    reward: float | None
    """Score of the whole episode; None where it is unknown."""
    step_rewards: tuple[float | None, ...]
    """Score of each step's own rewards, None where it has none."""
    returns: tuple[float | None, ...]
    """What each step is credited with, by the chosen rule of `credit`; None where a reward is unknown."""
    advantages: tuple[float, ...] = ()
    """A token: what its probability is pushed by; empty until `credit.with_advantages` gave them."""
    truncated: bool = False
    """The episode, or a reply in it, was cut off by a limit."""
    complete: bool = True
    """No model call is missing from the log or lacks its token ids."""
    surroundings_failed: bool = False
    """The episode failed for a reason that is not the policy's."""
    policy_version: str | None = None
    """The policy that sampled; None when nobody said or it changed within the row."""

    @property
    def sampled(self) -> tuple[int, ...]:
        """The ids that the policy sampled, in order."""
        return tuple(id for id, mask in zip(self.ids, self.mask) if mask)

    @property
    def group(self) -> tuple[str, str]:
        """What the sample is compared within: its group (itself where it has none), and its agent."""
        return self.group_id or self.trajectory_id, self.agent


class Derived(Struct, frozen=True, kw_only=True):
    """The samples of some trajectories, and what could not become one."""

    samples: tuple[Sample, ...] = ()
    trajectories: int = 0
    drift: int = 0
    """Calls whose prompt did not extend the tokens before it: each began a row of its own."""
    without_tokens: int = 0
    """Calls of the chosen agents that were answered without token ids: they are in no sample."""
    empty: int = 0
    """Trajectories of which no token can be trained on."""

    def __add__(self, other: Derived) -> Derived:
        return Derived(
            samples=self.samples + other.samples,
            trajectories=self.trajectories + other.trajectories,
            drift=self.drift + other.drift,
            without_tokens=self.without_tokens + other.without_tokens,
            empty=self.empty + other.empty,
        )


def samples_of(
    trajectory: Trajectory,
    *,
    agents: Collection[str] | None = None,
    credit: Credit = trajectory_reward,
    discount: float = 1.0,
) -> Derived:
    """The samples of a trajectory.

    Args:
        agents: Whose tokens are trained on, by name. Agents that share a policy are named together; with several
            policies, ask once for each. None takes every agent of which the server told token ids.
        credit: How rewards are credited to steps, a function of `aworld.training.credit`.
        discount: Weight of a step's reward for each step earlier, where `credit` discounts.
    """
    derived = sequences(trajectory)
    chosen = {row.agent for row in derived.rows} if agents is None else set(agents)
    lacking = _calls_without_tokens(trajectory, chosen)
    rows = [row for row in derived.rows if row.agent in chosen]
    samples = [_sample(trajectory, row, derived.complete and not lacking, credit, discount) for row in rows]
    kept = tuple(sample for sample in samples if 1 in sample.mask)
    return Derived(
        samples=kept,
        trajectories=1,
        drift=_drift(rows),
        without_tokens=len(lacking) if agents is not None or rows else derived.without_tokens,
        empty=not kept,
    )


def derive(
    trajectories: Iterable[Trajectory],
    *,
    agents: Collection[str] | None = None,
    credit: Credit = trajectory_reward,
    discount: float = 1.0,
) -> Derived:
    """The samples of many trajectories, in their order; arguments as of `samples_of`."""
    each = [samples_of(t, agents=agents, credit=credit, discount=discount) for t in trajectories]
    return Derived(
        samples=tuple(sample for derived in each for sample in derived.samples),
        trajectories=len(each),
        drift=sum(derived.drift for derived in each),
        without_tokens=sum(derived.without_tokens for derived in each),
        empty=sum(derived.empty for derived in each),
    )


def _sample(trajectory: Trajectory, row: TokenSequence, complete: bool, credit: Credit, discount: float) -> Sample:
    calls = [trajectory.calls[step] for step in row.steps]
    lengths = [len((call.tokens and call.tokens.completion_ids) or ()) for call in calls]
    owners = iter([place for place, length in enumerate(lengths) for _ in range(length)])
    return Sample(
        trajectory_id=trajectory.id,
        group_id=trajectory.task.group_id,
        agent=row.agent,
        activation=row.activation,
        ids=row.ids,
        mask=row.mask,
        logprobs=row.logprobs,
        steps=row.steps,
        token_steps=tuple(next(owners) if sampled else -1 for sampled in row.mask),
        reward=row.score,
        step_rewards=row.step_scores,
        returns=credit(trajectory, row.agent, row.steps, discount),
        truncated=trajectory.status in CUT_OFF or any(call.finish_reason == "length" for call in calls),
        complete=complete,
        surroundings_failed=trajectory.surroundings_failed,
        policy_version=row.policy_version,
    )


def _calls_without_tokens(trajectory: Trajectory, agents: Collection[str]) -> list[int]:
    return [
        call.step
        for call in trajectory.calls.values()
        if call.agent in agents
        and call.model is not None
        and call.reply is not None
        and (call.tokens is None or call.tokens.level != "tokens")
    ]


def _drift(rows: Iterable[TokenSequence]) -> int:
    """Rows that are not the first of their activation."""
    activations = [row.activation for row in rows]
    return len(activations) - len(set(activations))
