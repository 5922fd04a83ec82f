"""What a training step is made of, whichever engine learns from it: its problems, its episodes, its samples.

Whatever is random in these follows from `config.seed` and the number of the step, so a run that goes on from a
checkpoint sees the same, and two engines with the same settings are given the same problems.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from aworld.core.exceptions import ConfigError, TrainingError
from aworld.environments.environment import Environment, derived_seed
from aworld.environments.problem import SAMPLE, Problem
from aworld.environments.report import RolloutProgress, solved, unknown_because
from aworld.environments.rollout import Rollout, rollouts
from aworld.training import credit, filters
from aworld.training.evaluation import SamplingParams
from aworld.training.registry import TrainingJob
from aworld.training.result import TrainingProgress
from aworld.training.samples import Sample, SampleSet, derive
from aworld.training.training_config import TrainingConfig


def problems_of(environment: Environment, config: TrainingConfig, number: int) -> list[Problem]:
    """The problems of a step, from 1: of a stream drawn by the step, of what ends in shuffled rounds.

    Raises ConfigError when there are fewer than `config.groups`, if that was given.
    """
    count = config.groups
    seed = derived_seed(config.seed, "problems", number)
    if environment.endless:
        return environment.problems("train", count, seed=seed)
    # A function that ends may heed its seed or not: what it makes for this step is gone round like a list.
    everything = environment.problems("train", *((SAMPLE, seed) if callable(environment.train) else ()), fewer=True)
    if "groups" not in config.model_fields_set:  # the default asks for no more than there is
        count = min(count, len(everything)) or count
    rounds = len(everything) // count
    if not rounds:
        raise ConfigError(
            f"config.groups={count} problems a step: train_dataset has only {len(everything)}; give groups="
            f"{len(everything)} or fewer (--groups)."
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
    sampling = SamplingParams(
        agents, temperature=config.temperature, top_p=1.0, max_tokens=config.max_completion_tokens
    )
    finished = [
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
            labels={"step": str(number)},
            yield_finished=True,
            on_progress=watched(job, "rollouts", number - 1),
            hooks=(sampling,),
        )
    ]
    places = {problem.id: place for place, problem in enumerate(problems)}
    episodes = sorted(finished, key=lambda rollout: (places[rollout.problem.id], rollout.sample))
    if all(episode.score is None for episode in episodes):
        raise TrainingError(f"step={number} | {hopeless(len(episodes), unknown_because(episodes[0].record), job)}")
    return episodes


def hopeless(count: int, reason: str | None, job: TrainingJob) -> str:
    """What is said where nobody knows what a single one of `count` episodes is worth."""
    return (
        f"of none of {count} episodes it is known what it is worth. The first: {reason}. Look at that trajectory in "
        f"{job.store}, mend what failed, and start with another run_path: what is recorded stays as it was."
    )


def watched(job: TrainingJob, phase: str, step: int) -> Callable[[RolloutProgress], None]:
    """Hands the progress of rollouts on to who watches the training; `step` is how many are done."""
    return lambda progress: job.emit(TrainingProgress(phase, step, progress.done, progress.total or 0))


class StepSamples(Struct, frozen=True, kw_only=True):
    """What a step learns from."""

    samples: list[Sample]
    """With advantages."""
    dropped: dict[str, int]
    """How many were left out, by the name of the filter or the reason."""
    derived: SampleSet
    """All of them, before any filter."""

    @property
    def statistics(self) -> dict[str, float]:
        """Further figures of a step's report."""
        return {
            "drift": self.derived.drift,
            "without_tokens": self.derived.without_tokens,
            "empty": self.derived.empty,
            "tokens": sum(sum(sample.tokens.mask) for sample in self.samples),
        }


def learnable(
    episodes: Sequence[Rollout], agents: Sequence[str], config: TrainingConfig, environment: Environment, number: int
) -> StepSamples:
    """From the episodes of a step to samples with advantages."""
    records = [episode.record for episode in episodes]
    derived = derive(records, agents=agents, credit=credit.CREDITS[config.credit], discount=config.discount)
    samples, dropped = filters.apply(derived.samples, ())
    if derived.empty:
        dropped["empty"] = derived.empty
    solvers = {record.id for record in records if solved(environment, record)}
    if config.shuffle_rewards:
        samples, solvers = shuffled(samples, solvers, random.Random(f"{config.seed}/{number}/control"))
    if config.algorithm == "sft":
        kept = [sample for sample in samples if sample.tokens.trajectory_id in solvers]
        dropped |= {"not_solved": len(samples) - len(kept)} if len(kept) < len(samples) else {}
        imitated = [replace(sample, advantages=tuple(map(float, sample.tokens.mask))) for sample in kept]
        return StepSamples(samples=imitated, dropped=dropped, derived=derived)
    kept, more = filters.apply(samples, config.filters)
    credited = credit.with_advantages(kept, credit.ADVANTAGES[config.advantages])
    return StepSamples(samples=credited, dropped={**dropped, **more}, derived=derived)


def shuffled(samples: Sequence[Sample], solvers: set[str], draw: random.Random) -> tuple[list[Sample], set[str]]:
    """The control: what episodes earned, dealt out at random among them."""
    ids = list(dict.fromkeys(sample.tokens.trajectory_id for sample in samples))
    source = dict(zip(ids, draw.sample(ids, len(ids))))
    scores = {sample.tokens.trajectory_id: sample.tokens.score for sample in samples}
    dealt = [scores[source[sample.tokens.trajectory_id]] for sample in samples]
    mixed = [replace(s, returns=(score,) * len(s.returns), afterwards=score) for s, score in zip(samples, dealt)]
    return mixed, {id for id in ids if source[id] in solvers}
