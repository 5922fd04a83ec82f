"""The engine `embedded`: GRPO, or imitation of successes, for the embedded policy, in NumPy.

Each step asks the current policy for episodes (`aworld.environments.rollouts`, all of them stored), derives samples,
credits and filters them, learns, and hands the new weights to the agent. Whatever is random follows from the seed and
the number of the step, so a run that was killed goes on from its newest checkpoint to the same result, bit for bit;
episodes that the store has of the same weights are not run again.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from aworld.core.exceptions import ConfigError, TrainingError
from aworld.environments.problem import Problem
from aworld.runners.local import store_of
from aworld.training import credit, filters
from aworld.training.course import Spent, evaluation_due, identity_of, measure, result_of, stop_of
from aworld.training.embedded import checkpoints
from aworld.training.embedded.actor import Actor
from aworld.training.embedded.checkpoints import State
from aworld.training.embedded.learner import Learner
from aworld.training.evaluation import held_out_problems
from aworld.training.registry import TrainingJob
from aworld.training.result import Saved, Started, StepReport, TrainingResult
from aworld.training.steps import episodes_of, figures_of, learnable, problems_of


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
            with seldom_collecting():
                return await _Run(job, actor).run()
        finally:
            actor.release()


@contextmanager
def seldom_collecting() -> Generator[None, None, None]:
    """Look for cyclic garbage a thirtieth as often: a step keeps some 10,000 objects that are none, and looking through
    them each time is a tenth of the CPU of training."""
    before = gc.get_threshold()
    gc.set_threshold(20_000, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


class _Run:
    def __init__(self, job: TrainingJob, actor: Actor) -> None:
        self.job, self.config, self.actor = job, job.config, actor
        self.learner = Learner(actor.policy, job.config)
        self.store = store_of(job.store)
        self.spent = Spent()
        self.state = State(identity=identity_of(job))
        found = checkpoints.newest(job.checkpoint_path)
        if found is not None:
            self.state = checkpoints.restore(found, self.learner, self.state.identity)
        self.spent.before = self.state.cpu_seconds
        self.problems = held_out_problems(job.held_out, self.config.final_tasks)

    async def run(self) -> TrainingResult:
        config, state = self.config, self.state
        self.job.emit(Started("embedded", str(self.job.run_path), state.step))
        self.actor.load(self.learner.policy)
        if not state.evaluations:
            await self.evaluate(self.problems)
        while state.step < config.steps and state.stopped is None:
            await self.step()
            if evaluation_due(state, config) and self.problems:
                await self.evaluate(self.problems[: config.evaluation_tasks])
                state.stopped = stop_of(state.evaluations, config)
            over = state.stopped is not None or state.step == config.steps
            if over or (config.checkpoint_every and state.step % config.checkpoint_every == 0):
                self.save()
        if state.step and state.lacks(self.problems):
            await self.evaluate(self.problems)
            self.save()
        await self.store.flush()
        self.learner.policy.save(self.job.policy_path)
        self.job.emit(Saved(state.step, str(self.job.policy_path)))
        return result_of(self.job, "embedded", state, seconds=self.spent.seconds, cpu_seconds=self.spent.cpu_seconds)

    def save(self) -> None:
        self.state.cpu_seconds = self.spent.cpu_seconds
        place = checkpoints.save(self.job.checkpoint_path, self.state, self.learner, self.config.keep_checkpoints)
        self.job.emit(Saved(self.state.step, str(place)))

    async def evaluate(self, problems: Sequence[Problem]) -> None:
        """Evaluate in each mode; episodes that the store has are not run again."""
        version = self.learner.policy.version
        await measure(
            self.job, self.state, self.actor.agent, problems, agents=self.actor.names, store=self.store,
            run=lambda mode: f"evaluation-{mode}-{version}",
        )  # fmt: skip

    async def step(self) -> None:
        """Episodes, samples, update, new weights."""
        job, config, number = self.job, self.config, self.state.step + 1
        began, cpu = time.monotonic(), time.process_time()
        episodes = await episodes_of(
            job, self.actor.agent, problems_of(job.environment, config, number), number,
            agents=self.actor.names, store=self.store, run=f"step-{number:05d}-{self.learner.policy.version}",
        )  # fmt: skip
        rolled = time.process_time()
        elapsed = time.monotonic() - began
        derived, samples, dropped = learnable(episodes, self.actor.names, config, job.environment, number)
        sampled = time.process_time()
        figures = await asyncio.to_thread(self.learner.update, samples, number)
        self.agree(figures, number)
        self.actor.load(self.learner.policy)
        updated = time.process_time()
        score, success, reason = figures_of(job.environment, [each.record for each in episodes])
        report = StepReport(
            step=number,
            episodes=len(episodes),
            score=score,
            success=success,
            samples=len(samples),
            dropped=dropped,
            reason=reason,
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
        self.state.add(report, job)

    def agree(self, figures: dict[str, float], number: int) -> None:
        """Raise TrainingError when the trainer computes other log-probabilities than were sampled from."""
        difference, most = figures.get("logprob_difference", 0.0), self.config.logprob_tolerance
        if most is not None and difference > most:
            raise TrainingError(
                f"step={number} | log-probabilities of sampled tokens differ by {difference:.2e} nats between rollouts "
                f"and trainer, more than config.logprob_tolerance={most:g}: the samples are not this policy's own."
            )
