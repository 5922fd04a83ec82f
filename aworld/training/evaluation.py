"""Evaluation on held-out problems: one episode each, with a confidence interval, and the paired test of two of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from statistics import fmean
from typing import Any, Literal, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from aworld.core.exceptions import ConfigError
from aworld.core.hooks import HookContext, Hooks
from aworld.core.model import ModelRequest
from aworld.core.trajectory import Trajectory
from aworld.environments.environment import Environment
from aworld.environments.problem import Problem
from aworld.environments.report import RolloutProgress as Progress
from aworld.environments.report import share_of, solved, unknown_because
from aworld.environments.rollout import rollouts

Mode: TypeAlias = Literal["greedy", "sampled"]


class Evaluation(Struct, frozen=True, kw_only=True):
    """How a policy did on held-out problems, one episode each."""

    step: int
    """Training steps that the policy had behind it."""
    mode: Mode
    outcomes: dict[str, bool | None]
    """Whether each problem was solved, by its id (`aworld.environments.report.solved`); None where no scorer could
    tell, or the surroundings failed: in no figure."""
    score: float | None = None
    """Mean score of the episodes that have one."""
    parts: dict[str, float] = {}
    """Mean of each part of the reward by its name, of those of weight 0 too, over the episodes that have it."""
    interval: tuple[float, float] = (0.0, 1.0)
    """95 % confidence interval of `success` (Wilson)."""
    reason: str | None = None
    """Why the first of the unknown ones is unknown, and its trajectory."""
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @property
    def tasks(self) -> int:
        """Held-out problems."""
        return len(self.outcomes)

    @property
    def successes(self) -> int:
        """Problems that were solved."""
        return sum(outcome is True for outcome in self.outcomes.values())

    @property
    def unknown(self) -> int:
        """Problems of which nobody could tell."""
        return sum(outcome is None for outcome in self.outcomes.values())

    @property
    def success(self) -> float | None:
        """Share of the problems whose outcome is known that were solved; None where none is."""
        known = self.tasks - self.unknown
        return self.successes / known if known else None


class Comparison(Struct, frozen=True, kw_only=True):
    """Before and after on the same held-out problems: those whose outcome is known both times."""

    mode: Mode
    tasks: int = 0
    """Problems that are compared."""
    unknown: int = 0
    """Problems that are left out, as an outcome is unknown."""
    before: float
    after: float
    gained: int
    """Problems solved only after."""
    lost: int
    """Problems solved only before."""
    p_value: float
    """Exact two-sided McNemar test: how likely so uneven a change is, were there no difference."""


class SamplingParams(Hooks):
    """Sets sampling parameters of the requests of some agents (None: of all), whatever their models' settings say."""

    def __init__(self, agents: Collection[str] | None = None, **params: Any) -> None:
        self.agents, self.params = agents, {key: value for key, value in params.items() if value is not None}

    async def before_model(self, at: HookContext, request: ModelRequest) -> ModelRequest | None:
        """Set them."""
        if self.agents is not None and request.agent not in self.agents:
            return None
        return replace(request, params={**request.params, **self.params})


def held_out_problems(environment: Environment | None, count: int) -> list[Problem]:
    """The first `count` held-out problems, the same ones for every run; fewer where there are fewer."""
    if environment is None:
        return []
    return environment.problems("test", count, seed=0 if callable(environment.test) else None, fewer=True)


async def evaluate(
    environment: Environment,
    agent: Any,
    problems: Sequence[Problem],
    *,
    mode: Mode = "greedy",
    temperature: float = 1.0,
    step: int = 0,
    agents: Collection[str] | None = None,
    hooks: Sequence[Hooks] = (),
    seed: int = 0,
    store: Any = None,
    run: str | None = None,
    max_concurrency: int = 128,
    retries: int = 2,
    on_progress: Callable[[Progress], None] | None = None,
) -> Evaluation:
    """One episode of each problem.

    Args:
        mode: `greedy` asks for temperature 0, `sampled` for `temperature`.
        step: Training steps that the policy has behind it; for the report.
        agents: Whose sampling `mode` sets, by name; None for all.
        seed: Of sampling: the same seed draws the same, so that two evaluations can be compared in pairs.
        run: With a store: a name under which a second call goes on where the first was cut off.
    """
    sampling = SamplingParams(agents, temperature=0.0 if mode == "greedy" else temperature, top_p=1.0)
    began, cpu = time.monotonic(), time.process_time()
    outcomes: dict[str, bool | None] = {}
    scores: list[float] = []
    reasons: dict[str, str] = {}
    parts: dict[str, list[float]] = {}
    async for rollout in rollouts(
        environment,
        agent,
        problems,
        seed=seed,
        store=store,
        run=run,
        labels={"step": str(step), "mode": mode},
        max_concurrency=min(max_concurrency, max(1, len(problems))),
        retries=retries,
        yield_finished=True,
        on_progress=on_progress,
        hooks=(*hooks, sampling),
    ):
        outcome = outcomes[rollout.problem.id] = None if rollout.lost else solved(environment, rollout.record)
        if outcome is None:
            reasons[rollout.problem.id] = unknown_because(rollout.record)
        if rollout.score is not None:
            scores.append(rollout.score)
        for reward in () if rollout.lost else rollout.record.rewards:
            if reward.value is not None:
                parts.setdefault(reward.name, []).append(reward.value)
    ordered = {problem.id: outcomes[problem.id] for problem in problems}
    share = share_of([(1, int(outcome)) for outcome in ordered.values() if outcome is not None])
    return Evaluation(
        step=step,
        mode=mode,
        outcomes=ordered,
        score=fmean(scores) if scores else None,
        parts={name: fmean(parts[name]) for name in sorted(parts)},
        interval=(share.low, share.high) if share is not None else (0.0, 1.0),
        reason=next((reasons[problem.id] for problem in problems if problem.id in reasons), None),
        seconds=time.monotonic() - began,
        cpu_seconds=time.process_time() - cpu,
    )


def figures_of(
    environment: Environment, records: Sequence[Trajectory]
) -> tuple[float | None, float | None, float | None, str | None]:
    """The mean score of the episodes that have one, the share that solved their problem (of those of which that is
    known), the share of problems that any of their episodes solved (pass@k for k of each), and why the first episode
    without a score has none. Each is None where there is nothing to tell."""
    scores = [record.score for record in records if record.score is not None]
    outcomes = [(record.task.group_id, solved(environment, record)) for record in records]
    successes = [(group, outcome) for group, outcome in outcomes if outcome is not None]
    within_reach = {group for group, outcome in successes if outcome}
    problems = {group for group, _ in successes}
    return (
        fmean(scores) if scores else None,
        fmean(outcome for _, outcome in successes) if successes else None,
        len(within_reach) / len(problems) if problems else None,
        next((unknown_because(record) for record in records if record.score is None), None),
    )


def compare(before: Evaluation, after: Evaluation) -> Comparison:
    """The paired test of two evaluations on the problems of which both know the outcome.

    Raises ConfigError when there is none.
    """
    both = [id for id in before.outcomes if id in after.outcomes]
    compared = _compared(before, after)
    if not compared:
        why = f"whose outcome is known both times ({before.reason or after.reason})" if both else "in common"
        raise ConfigError(f"compare: the two evaluations have no problem {why}.")
    was, now = ([one.outcomes[id] is True for id in compared] for one in (before, after))
    gained = sum(b and not a for a, b in zip(was, now))
    lost = sum(a and not b for a, b in zip(was, now))
    return Comparison(
        mode=after.mode,
        tasks=len(compared),
        unknown=len(both) - len(compared),
        before=sum(was) / len(compared),
        after=sum(now) / len(compared),
        gained=gained,
        lost=lost,
        p_value=mcnemar(gained, lost),
    )


def comparisons(evaluations: Iterable[Evaluation]) -> tuple[Comparison, ...]:
    """The first evaluation of each mode against its last, where they know the outcome of a problem both times."""
    by_mode: dict[Mode, list[Evaluation]] = {}
    for evaluation in evaluations:
        by_mode.setdefault(evaluation.mode, []).append(evaluation)
    pairs = [(row[0], row[-1]) for row in by_mode.values() if len(row) > 1]
    return tuple(compare(first, last) for first, last in pairs if _compared(first, last))


def _compared(before: Evaluation, after: Evaluation) -> list[str]:
    """The problems whose outcome is known both times."""
    return [id for id, outcome in before.outcomes.items() if None not in (outcome, after.outcomes.get(id))]


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact p-value of McNemar's test: of the pairs that changed, each way is as likely as the other."""
    changed = gained + lost
    tail = sum(math.comb(changed, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**changed)
