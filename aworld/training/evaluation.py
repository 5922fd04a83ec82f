"""Evaluation on held-out problems: one episode each, with a confidence interval, and the paired test of two of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from statistics import fmean
from typing import Any

from msgspec.structs import replace

from aworld.core.exceptions import ConfigError
from aworld.core.hooks import HookContext, Hooks
from aworld.core.model import ModelRequest
from aworld.environments.environment import Environment
from aworld.environments.problem import Problem
from aworld.environments.report import RolloutProgress as Progress
from aworld.environments.report import share_of, solved, unknown_because
from aworld.environments.rollout import rollouts
from aworld.training.result import Comparison, Evaluation, Mode

__all__ = ["Ask", "compare", "evaluate", "held_out_problems"]


class Ask(Hooks):
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
    ask = Ask(agents, temperature=0.0 if mode == "greedy" else temperature, top_p=1.0)
    began, cpu = time.monotonic(), time.process_time()
    outcomes: dict[str, bool | None] = {}
    scores: list[float] = []
    reasons: dict[str, str] = {}
    async for rollout in rollouts(
        environment,
        agent,
        problems,
        seed=seed,
        store=store,
        run=run,
        max_concurrency=min(max_concurrency, max(1, len(problems))),
        retries=retries,
        yield_finished=True,
        on_progress=on_progress,
        hooks=(*hooks, ask),
    ):
        outcome = outcomes[rollout.problem.id] = None if rollout.lost else solved(environment, rollout.record)
        if outcome is None:
            reasons[rollout.problem.id] = unknown_because(rollout.record)
        if rollout.score is not None:
            scores.append(rollout.score)
    ordered = {problem.id: outcomes[problem.id] for problem in problems}
    share = share_of([(1, int(outcome)) for outcome in ordered.values() if outcome is not None])
    return Evaluation(
        step=step,
        mode=mode,
        outcomes=ordered,
        score=fmean(scores) if scores else None,
        interval=(share.low, share.high) if share is not None else (0.0, 1.0),
        reason=next((reasons[problem.id] for problem in problems if problem.id in reasons), None),
        seconds=time.monotonic() - began,
        cpu_seconds=time.process_time() - cpu,
    )


def compare(before: Evaluation, after: Evaluation) -> Comparison:
    """The paired test of two evaluations on the problems of which both know the outcome.

    Raises ConfigError when there is none.
    """
    both = [id for id in before.outcomes if id in after.outcomes]
    known = _known(before, after)
    if not known:
        why = f"whose outcome is known both times ({before.reason or after.reason})" if both else "in common"
        raise ConfigError(f"compare: the two evaluations have no problem {why}.")
    was, now = ([one.outcomes[id] is True for id in known] for one in (before, after))
    gained = sum(b and not a for a, b in zip(was, now))
    lost = sum(a and not b for a, b in zip(was, now))
    return Comparison(
        mode=after.mode,
        tasks=len(known),
        unknown=len(both) - len(known),
        before=sum(was) / len(known),
        after=sum(now) / len(known),
        gained=gained,
        lost=lost,
        p_value=mcnemar(gained, lost),
    )


def comparisons(evaluations: Iterable[Evaluation]) -> tuple[Comparison, ...]:
    """The first evaluation of each mode against its last, where they know the outcome of a problem both times."""
    by_mode: dict[Mode, list[Evaluation]] = {}
    for evaluation in evaluations:
        by_mode.setdefault(evaluation.mode, []).append(evaluation)
    return tuple(compare(each[0], each[-1]) for each in by_mode.values() if len(each) > 1 and _known(each[0], each[-1]))


def _known(before: Evaluation, after: Evaluation) -> list[str]:
    """The problems whose outcome is known both times."""
    return [id for id, outcome in before.outcomes.items() if None not in (outcome, after.outcomes.get(id))]


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact p-value of McNemar's test: of the pairs that changed, each way is as likely as the other."""
    changed = gained + lost
    tail = sum(math.comb(changed, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**changed)
