"""Credit: from rewards to what each sampled token is pushed by.

Two choices, each a named function. A *credit* says what each step of a trajectory is worth: the score of the whole
(`trajectory_reward`), what came after it (`step_rewards`), or what its agent earned (`agent_reward`). An *advantage*
says how much better that was than what the episodes of the same group got at the same place: a first call is compared
with first calls, as what is still to come shrinks on the way whatever the policy does. A reward that could not be
computed is unknown, not zero: what depends on it is None, and the sample is dropped by `filters.failed_rewards`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, TypeAlias, cast

from msgspec import Struct
from msgspec.structs import replace

from aworld.core.event import Rewarded
from aworld.core.exceptions import ConfigError
from aworld.core.trajectory import Trajectory, score_of

if TYPE_CHECKING:
    from aworld.training.samples import Sample


Credit: TypeAlias = Callable[[Trajectory, str, Sequence[int], float], tuple[float | None, ...]]
"""(trajectory, agent, steps of that agent, discount) -> what each of these steps is credited with. One after the last
step stands for the time when the episode is over."""

Advantage: TypeAlias = Callable[[float, "Group"], float]
"""(return of a step, the group of its episode) -> advantage."""

EPSILON = 1e-4
"""Added to the standard deviation, as in GRPO: groups that nearly agree must not shout."""


def trajectory_reward(
    trajectory: Trajectory, agent: str, steps: Sequence[int], discount: float
) -> tuple[float | None, ...]:
    """The score of the whole episode for every step of every agent. Discounts nothing."""
    return (trajectory.score,) * len(steps)


def step_rewards(trajectory: Trajectory, agent: str, steps: Sequence[int], discount: float) -> tuple[float | None, ...]:
    """The rewards of the whole, and those of this step and all later ones of whichever agent, discounted.

    A step that comes k decisions later counts with discount ** k.
    """
    outcome = _score([reward for reward in trajectory.rewards if reward.step is None])
    earned = _by_step(trajectory)
    return tuple(_to_go(outcome, earned, step, discount) for step in steps)


def agent_reward(trajectory: Trajectory, agent: str, steps: Sequence[int], discount: float) -> tuple[float | None, ...]:
    """What one agent earned: rewards of the whole, and of its own steps from this one on, discounted by its own steps.

    A reward of the whole whose `detail` is a mapping with `agent` counts for that agent only.
    """
    outcome = _score([r for r in trajectory.rewards if r.step is None and _meant_for(r) in (None, agent)])
    own = sorted(step for step, call in trajectory.calls.items() if call.agent == agent)
    places = {step: place for place, step in enumerate(own)}
    earned = {places[step]: score for step, score in _by_step(trajectory).items() if step in places}
    return tuple(_to_go(outcome, earned, places.get(step, len(own)), discount) for step in steps)


def _meant_for(reward: Rewarded) -> str | None:
    detail: object = reward.detail
    return cast("Mapping[str, str | None]", detail).get("agent") if isinstance(detail, Mapping) else None


def _score(rewards: Sequence[Rewarded]) -> float | None:
    """The score of some rewards; 0 when there is none, None when one could not be computed."""
    return score_of(rewards) if rewards else 0.0


def _by_step(trajectory: Trajectory) -> dict[int, float | None]:
    by_step: dict[int, list[Rewarded]] = {}
    for reward in trajectory.rewards:
        if reward.step is not None:
            by_step.setdefault(reward.step, []).append(reward)
    return {step: _score(rewards) for step, rewards in by_step.items()}


def _to_go(outcome: float | None, earned: Mapping[int, float | None], place: int, discount: float) -> float | None:
    total = outcome
    for at, score in earned.items():
        if at < place or total is None:
            continue
        total = None if score is None else total + score * discount ** (at - place)
    return total


class Group(Struct, frozen=True):
    """The returns of the episodes that are compared with each other, one each, all at the same place."""

    returns: tuple[float, ...]
    mean: float
    deviation: float
    """Standard deviation of these returns (of the population, not of a sample)."""

    @classmethod
    def of(cls, returns: Sequence[float]) -> Group:
        """From the returns of the episodes."""
        return cls(tuple(returns), fmean(returns), pstdev(returns))


def raw(value: float, group: Group) -> float:
    """The return itself."""
    return value


def group_centred(value: float, group: Group) -> float:
    """The return less the mean of the group (as "Dr. GRPO", arXiv:2503.20783: not divided by the deviation)."""
    return value - group.mean


def group_normalised(value: float, group: Group) -> float:
    """The return less the mean of the group, in standard deviations of the group (GRPO, arXiv:2402.03300)."""
    return (value - group.mean) / (group.deviation + EPSILON)


CREDITS: dict[str, Credit] = {
    "trajectory_reward": trajectory_reward,
    "step_rewards": step_rewards,
    "agent_reward": agent_reward,
}
ADVANTAGES: dict[str, Advantage] = {"group_normalised": group_normalised, "group_centred": group_centred, "raw": raw}


def with_advantages(samples: Sequence[Sample], advantage: Advantage = group_normalised) -> list[Sample]:
    """The samples with their advantages.

    At each place an episode counts once in its group, however many rows it has; one that was over by then counts with
    what it came to (`Sample.afterwards`). A group of one is compared with itself: its advantage is 0 (the filter
    `no_variance` drops it). Raises ConfigError for a sample whose return is unknown: filter those first.
    """
    for sample in samples:
        if None in (*sample.returns, sample.afterwards):
            episode = sample.tokens.trajectory_id
            raise ConfigError(f"trajectory={episode} | its reward is unknown; apply the filter failed_rewards first.")
    figures: dict[tuple[float, ...], Group] = {}
    by_place: dict[tuple[str, str], list[Group]] = {}
    for name, episodes in returns_by_group(samples).items():
        columns = [cast("tuple[float, ...]", column) for column in zip(*episodes)]
        by_place[name] = [figures.get(column) or figures.setdefault(column, Group.of(column)) for column in columns]
    return [_with(sample, by_place[sample.group], advantage) for sample in samples]


def returns_by_group(samples: Sequence[Sample]) -> dict[tuple[str, str], list[list[float | None]]]:
    """What each episode of each group is credited with, place by place, as far as the longest of its group goes."""
    groups: dict[tuple[str, str], dict[str, dict[int, float | None]]] = {}
    afterwards: dict[str, float | None] = {}
    for sample in samples:
        episode = sample.tokens.trajectory_id
        groups.setdefault(sample.group, {}).setdefault(episode, {}).update(zip(sample.places, sample.returns))
        afterwards[episode] = sample.afterwards
    return {
        name: [
            [returns.get(place, afterwards[episode]) for place in range(1 + max(map(max, episodes.values())))]
            for episode, returns in episodes.items()
        ]
        for name, episodes in groups.items()
    }


def _with(sample: Sample, groups: Sequence[Group], advantage: Advantage) -> Sample:
    by_step = [
        advantage(cast(float, value), groups[place]) for place, value in zip(sample.places, sample.returns, strict=True)
    ]
    if not all(map(math.isfinite, by_step)):
        raise ConfigError(f"trajectory={sample.tokens.trajectory_id} | an advantage is not finite: see its rewards.")
    return replace(sample, advantages=tuple(by_step[owner] if owner >= 0 else 0.0 for owner in sample.token_steps))
