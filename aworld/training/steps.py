"""What a training step is made of, whichever engine learns from it: its problems, its episodes, its samples.

Whatever is random in these follows from `config.seed` and the number of the step, so a run that goes on from a
checkpoint sees the same, and two engines with the same settings are given the same problems.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any, cast

from msgspec.structs import replace

from aworld.core.exceptions import ConfigError, TrainingError
from aworld.core.trajectory import Trajectory
from aworld.environments.environment import Environment, derived_seed
from aworld.environments.problem import SAMPLE, Problem
from aworld.environments.report import RolloutProgress
from aworld.environments.report import solved, unknown_because
from aworld.environments.rollout import Rollout, rollouts
from aworld.training import credit, filters
from aworld.training.config import TrainingConfig
from aworld.training.evaluation import Ask
from aworld.training.registry import TrainingJob
from aworld.training.result import Progress
from aworld.training.samples import Derived, Sample, derive

__all__ = ["episodes_of", "figures_of", "hopeless", "learnable", "problems_of", "told"]


def problems_of(environment: Environment, config: TrainingConfig, number: int) -> list[Problem]:
    """The problems of a step, from 1: of a stream drawn by the step, of what ends in shuffled rounds.

    Raises ConfigError when there are fewer than `config.groups`.
    """
    count = config.groups
    seed = derived_seed(config.seed, "problems", number)
    if environment.endless:
        return environment.problems("train", count, seed=seed)
    # A function that ends may heed its seed or not: what it makes for this step is gone round like a list.
    everything = environment.problems("train", *((SAMPLE, seed) if callable(environment.train) else ()), fewer=True)
    rounds = len(everything) // count
    if not rounds:
        raise ConfigError(
            f"config.groups={count} problems are learnt from in each step, and train_dataset has only "
            f"{len(everything)}; give more, or lower it."
        )
    turn, place = divmod(number - 1, rounds)
    random.Random(f"{config.seed}/{turn}").shuffle(everything)
    return everything[place * count : (place + 1) * count]


async def episodes_of(
    job: TrainingJob,
    agent: Any,
    problems: Sequence[Problem],
    number: int,
    *,
    agents: Sequence[str],
    store: Any,
    run: str,
) -> list[Rollout]:
    """The episodes of a step, in the order of problems and samples; those that the store has are not run again.

    Args:
        agent: The agent or team that asks the policy as it is now.
        agents: Names of those whose sampling the settings rule.
        run: Name of the episodes in the store; another one for each policy.

    Raises TrainingError when no episode has a score: there is nothing to learn from.
    """
    config = job.config
    ask = Ask(agents, temperature=config.temperature, top_p=1.0, max_tokens=config.max_completion_tokens)
    found = [
        rollout
        async for rollout in rollouts(
            job.environment,
            agent,
            problems,
            samples=config.samples,
            seed=derived_seed(config.seed, "rollouts", number),
            store=store,
            max_concurrency=config.max_concurrency,
            retries=config.retries,
            run=run,
            yield_finished=True,
            on_progress=told(job, "rollouts", number - 1),
            hooks=(ask,),
        )
    ]
    places = {problem.id: place for place, problem in enumerate(problems)}
    episodes = sorted(found, key=lambda rollout: (places[rollout.problem.id], rollout.sample))
    if all(episode.score is None for episode in episodes):
        raise TrainingError(f"step={number} | {hopeless(len(episodes), unknown_because(episodes[0].record), job)}")
    return episodes


def hopeless(count: int, reason: str | None, job: TrainingJob) -> str:
    """What is said where nobody knows what a single one of `count` episodes is worth."""
    return (
        f"of none of {count} episodes it is known what it is worth. The first: {reason}. Look at that trajectory in "
        f"{job.store}, mend what failed, and start with another run_path: what is recorded stays as it was."
    )


def told(job: TrainingJob, phase: str, step: int) -> Callable[[RolloutProgress], None]:
    """Hands the progress of rollouts on to who watches the training; `step` is how many are done."""
    return lambda progress: job.emit(Progress(phase, step, progress.done, progress.total or 0))


def figures_of(
    environment: Environment, records: Sequence[Trajectory]
) -> tuple[float | None, float | None, str | None]:
    """The mean score of the episodes that have one, the share that solved their problem (of those of which that is
    known), and why the first without a score has none. Each is None where there is nothing to tell."""
    scores = [record.score for record in records if record.score is not None]
    outcomes = [known for record in records if (known := solved(environment, record)) is not None]
    reason = next((unknown_because(record) for record in records if record.score is None), None)
    return fmean(scores) if scores else None, fmean(outcomes) if outcomes else None, reason


def learnable(
    episodes: Sequence[Rollout], agents: Sequence[str], config: TrainingConfig, environment: Environment, number: int
) -> tuple[Derived, list[Sample], dict[str, int]]:
    """From episodes to samples with advantages; and how many were dropped, by reason."""
    rule = cast(credit.Credit, credit.named(credit.CREDITS, config.credit, "config.credit"))
    derived = derive([each.record for each in episodes], agents=agents, credit=rule, discount=config.discount)
    samples, dropped = filters.apply(derived.samples, ())
    if derived.empty:
        dropped["empty"] = derived.empty
    solvers = {each.id for each in episodes if solved(environment, each.record)}
    if config.shuffle_rewards:
        samples, solvers = shuffled(samples, solvers, random.Random(f"{config.seed}/{number}/control"))
    if config.algorithm == "sft":
        kept = [sample for sample in samples if sample.trajectory_id in solvers]
        dropped |= {"not_solved": len(samples) - len(kept)} if len(kept) < len(samples) else {}
        ones = [replace(s, advantages=tuple(map(float, s.mask))) for s in kept]
        return derived, ones, dropped
    kept, more = filters.apply(samples, config.filters)
    advantage = cast(credit.Advantage, credit.named(credit.ADVANTAGES, config.advantages, "config.advantages"))
    return derived, credit.with_advantages(kept, advantage), {**dropped, **more}


def shuffled(samples: Sequence[Sample], solvers: set[str], draw: random.Random) -> tuple[list[Sample], set[str]]:
    """The control: what episodes earned, dealt out at random among them."""
    ids = list(dict.fromkeys(sample.trajectory_id for sample in samples))
    given = dict(zip(ids, draw.sample(ids, len(ids))))
    earned = {sample.trajectory_id: sample for sample in samples}
    mixed = [
        replace(s, reward=other.reward, returns=(other.reward,) * len(s.returns))
        for s in samples
        for other in [earned[given[s.trajectory_id]]]
    ]
    return mixed, {id for id in ids if given[id] in solvers}
