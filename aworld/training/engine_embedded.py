"""The engine `embedded`: GRPO, or imitation of successes, for the embedded policy, in NumPy.

Each step asks the current policy for episodes (`aworld.environments.rollouts`, all of them stored), derives samples,
credits and filters them, learns, and hands the new weights to the agent. Whatever is random follows from the seed and
the number of the step, so a run that was killed goes on from its newest checkpoint to the same result, bit for bit;
episodes that the store has of the same weights are not run again.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any, cast

from msgspec.structs import replace

from aworld.core.exceptions import ConfigError, TrainingError
from aworld.environments.environment import Environment, derived_seed
from aworld.environments.problem import Problem
from aworld.environments.report import solved
from aworld.environments.rollout import Rollout, rollouts
from aworld.runners.local import store_of
from aworld.training import credit, filters
from aworld.training.config import TrainingConfig
from aworld.training.embedded import checkpoints
from aworld.training.embedded.actor import Actor
from aworld.training.embedded.checkpoints import State
from aworld.training.embedded.learner import Learner
from aworld.training.evaluation import Ask, comparisons, evaluate, held_out_problems
from aworld.training.registry import TrainingJob
from aworld.training.result import Evaluated, Progress, Saved, Started, Stepped, StepReport, TrainingResult
from aworld.training.samples import Derived, Sample, derive

FREE = ("steps", "evaluate_every", "max_concurrency", "checkpoint_every", "keep_checkpoints", "target", "patience")
"""Settings that may be others when a run goes on."""


class EmbeddedEngine:
    """Trains the embedded policy of an agent, or of the agents of a team that share it."""

    name = "embedded"

    def check(self, job: TrainingJob) -> None:
        """Refuse what cannot work. Raises ConfigError."""
        config = job.config
        Actor(job.agent, config.agents)
        if config.options:
            raise ConfigError(f"config.options: the engine 'embedded' has none; got {', '.join(config.options)}.")
        credit.named(credit.CREDITS, config.credit, "config.credit")
        credit.named(credit.ADVANTAGES, config.advantages, "config.advantages")
        for name in config.filters:
            filters.filter_of(name)
        if config.steps:
            problems_of(job.environment, config, 1)

    async def train(self, job: TrainingJob) -> TrainingResult:
        """Train to the end, or on from the newest checkpoint."""
        self.check(job)
        actor = Actor(job.agent, job.config.agents)
        try:
            return await _Run(job, actor).run()
        finally:
            actor.release()


class _Run:
    def __init__(self, job: TrainingJob, actor: Actor) -> None:
        self.job, self.config, self.actor = job, job.config, actor
        self.learner = Learner(actor.policy, job.config)
        self.store = store_of(job.store)
        self.began, self.cpu = time.monotonic(), time.process_time()
        self.state = State(identity=identity_of(job, self.learner))
        found = checkpoints.newest(job.checkpoint_path)
        if found is not None:
            self.state = checkpoints.restore(found, self.learner, self.state.identity)
        self.spent_before = self.state.cpu_seconds
        self.problems = held_out_problems(job.held_out, self.config.final_tasks)

    async def run(self) -> TrainingResult:
        config, state = self.config, self.state
        self.job.emit(Started("embedded", str(self.job.run_path), state.step))
        self.actor.load(self.learner.policy)
        if not state.evaluations:
            await self.evaluate(self.problems)
        while state.step < config.steps and state.stopped is None:
            await self.step()
            state.stopped = await self.measured()
            over = state.stopped is not None or state.step == config.steps
            if over or (config.checkpoint_every and state.step % config.checkpoint_every == 0):
                self.save()
        if state.step and state.evaluations and not self.is_measured():
            await self.evaluate(self.problems)
            self.save()
        await self.store.flush()
        self.learner.policy.save(self.job.policy_path)
        self.job.emit(Saved(state.step, str(self.job.policy_path)))
        return self.result()

    def is_measured(self) -> bool:
        """Whether the policy as it stands was evaluated on all held-out problems."""
        last = self.state.evaluations[-1]
        return last.step == self.state.step and last.tasks == len(self.problems)

    def save(self) -> None:
        self.state.cpu_seconds = self.spent()
        place = checkpoints.save(self.job.checkpoint_path, self.state, self.learner, self.config.keep_checkpoints)
        self.job.emit(Saved(self.state.step, str(place)))

    def spent(self) -> float:
        return self.spent_before + time.process_time() - self.cpu

    async def evaluate(self, problems: Sequence[Problem]) -> None:
        """Evaluate in each mode; episodes that the store has are not run again."""
        if self.job.held_out is None or not problems:
            return
        for mode in self.config.evaluation_modes:
            evaluation = await evaluate(
                self.job.held_out,
                self.actor.agent,
                problems,
                mode=mode,
                temperature=self.config.temperature,
                step=self.state.step,
                agents=self.actor.names,
                seed=derived_seed(self.config.seed, "evaluation"),
                store=self.store,
                run=f"evaluation-{mode}-{self.learner.policy.version}",
                max_concurrency=self.config.max_concurrency,
                retries=self.config.retries,
                on_progress=self.told(f"evaluation {mode}"),
            )
            self.state.evaluations.append(evaluation)
            self.job.emit(Evaluated(evaluation))

    async def measured(self) -> Any:
        """Evaluate where it is due in mid-training; why training should stop now, None where it should not."""
        config, step = self.config, self.state.step
        if not config.evaluate_every or step % config.evaluate_every or step >= config.steps or not self.problems:
            return None
        await self.evaluate(self.problems[: config.evaluation_tasks])
        first = config.evaluation_modes[0]
        successes = [each.success for each in self.state.evaluations if each.mode == first]
        if config.target is not None and successes[-1] >= config.target:
            return "target"
        best = successes.index(max(successes))
        if config.patience is not None and len(successes) - 1 - best >= config.patience:
            return "patience"
        return None

    def told(self, phase: str) -> Callable[[Any], None]:
        """Hands the progress of rollouts on."""
        return lambda progress: self.job.emit(Progress(phase, self.state.step, progress.done, progress.total or 0))

    async def step(self) -> None:
        """Episodes, samples, update, new weights."""
        config, number = self.config, self.state.step + 1
        began, cpu = time.monotonic(), time.process_time()
        episodes = await self.episodes(number)
        rolled = time.process_time()
        elapsed = time.monotonic() - began
        derived, samples, dropped = learnable(episodes, self.actor.names, config, self.job.environment, number)
        sampled = time.process_time()
        figures = await asyncio.to_thread(self.learner.update, samples, number)
        self.agree(figures, number)
        self.actor.load(self.learner.policy)
        updated = time.process_time()
        scores = [episode.score for episode in episodes if episode.score is not None]
        report = StepReport(
            step=number,
            episodes=len(episodes),
            score=fmean(scores) if scores else None,
            success=fmean(solved(self.job.environment, each.record) is True for each in episodes),
            samples=len(samples),
            dropped=dropped,
            statistics={
                **figures,
                "drift": derived.drift,
                "without_tokens": derived.without_tokens,
                "empty": derived.empty,
                "tokens": sum(sum(sample.mask) for sample in samples),
                "episodes_per_second": len(episodes) / elapsed if elapsed else 0.0,
            },
            seconds=time.monotonic() - began,
            cpu_seconds={"rollouts": rolled - cpu, "samples": sampled - rolled, "update": updated - sampled},
        )
        self.state.step = number
        self.state.history.append(report)
        self.job.emit(Stepped(report))

    async def episodes(self, number: int) -> list[Rollout]:
        """The episodes of a step, in the order of problems and samples."""
        config = self.config
        problems = problems_of(self.job.environment, config, number)
        ask = Ask(self.actor.names, temperature=config.temperature, top_p=1.0, max_tokens=config.max_completion_tokens)
        found = [
            rollout
            async for rollout in rollouts(
                self.job.environment,
                self.actor.agent,
                problems,
                samples=config.samples,
                seed=derived_seed(config.seed, "rollouts", number),
                store=self.store,
                max_concurrency=config.max_concurrency,
                retries=config.retries,
                run=f"step-{number:05d}-{self.learner.policy.version}",
                yield_finished=True,
                on_progress=self.told("rollouts"),
                hooks=(ask,),
            )
        ]
        places = {problem.id: place for place, problem in enumerate(problems)}
        return sorted(found, key=lambda rollout: (places[rollout.problem.id], rollout.sample))

    def agree(self, figures: dict[str, float], number: int) -> None:
        """Raise TrainingError when the trainer computes other log-probabilities than were sampled from."""
        difference, most = figures.get("logprob_difference", 0.0), self.config.logprob_tolerance
        if most is not None and difference > most:
            raise TrainingError(
                f"step={number} | log-probabilities of sampled tokens differ by {difference:.2e} nats between rollouts "
                f"and trainer, more than config.logprob_tolerance={most:g}: the samples are not this policy's own."
            )

    def result(self) -> TrainingResult:
        state = self.state
        return TrainingResult(
            engine="embedded",
            policy=str(self.job.policy_path),
            run_path=str(self.job.run_path),
            store=self.job.store,
            steps=state.step,
            stopped=state.stopped or "steps",
            history=tuple(state.history),
            evaluations=tuple(state.evaluations),
            comparisons=comparisons(state.evaluations),
            seconds=time.monotonic() - self.began,
            cpu_seconds=self.spent(),
        )


def identity_of(job: TrainingJob, learner: Learner) -> dict[str, Any]:
    """What must be the same when a run goes on: the settings that shape it, the environment and the first policy."""
    settings = job.config.model_dump(mode="json", exclude=set(FREE))
    return {**settings, "environment": job.environment.name, "first policy": learner.policy.version}


def problems_of(environment: Environment, config: TrainingConfig, number: int) -> list[Problem]:
    """The problems of a step, from 1: of a stream drawn by the step, of a list in shuffled rounds."""
    count = config.groups
    if callable(environment.train):
        seed = derived_seed(config.seed, "problems", number)
        for more in (2, 8, 64):  # an endless stream may say the same again
            distinct = {problem.id: problem for problem in environment.problems("train", count * more, seed=seed)}
            if len(distinct) >= count:
                return list(distinct.values())[:count]
        raise ConfigError(f"config.groups={count}: environment {environment.name!r} gives only {len(distinct)}.")
    everything = environment.problems("train")
    rounds = len(everything) // count
    if not rounds:
        raise ConfigError(
            f"train_dataset has {len(everything)} problems, fewer than config.groups={count}; give more, or lower it."
        )
    turn, place = divmod(number - 1, rounds)
    random.Random(f"{config.seed}/{turn}").shuffle(everything)
    return everything[place * count : (place + 1) * count]


def learnable(
    episodes: Sequence[Rollout], agents: Sequence[str], config: TrainingConfig, environment: Environment, number: int
) -> tuple[Derived, list[Sample], dict[str, int]]:
    """From episodes to samples with advantages; and how many were dropped, by reason."""
    rule = cast(credit.Credit, credit.named(credit.CREDITS, config.credit, "config.credit"))
    derived = derive([each.record for each in episodes], agents=agents, credit=rule, discount=config.discount)
    samples, dropped = filters.apply(derived.samples, ())
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
