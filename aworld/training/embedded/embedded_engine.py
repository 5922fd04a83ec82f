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

from aworld.core.exceptions import ConfigError
from aworld.environments.problem import Problem
from aworld.runners.local import store_of
from aworld.training.embedded import checkpoints
from aworld.training.embedded.actor import Actor
from aworld.training.embedded.checkpoints import EmbeddedState
from aworld.training.embedded.learner import Learner
from aworld.training.evaluation import figures_of, held_out_problems
from aworld.training.registry import TrainingJob
from aworld.training.result import Saved, StepReport, TrainingResult, TrainingStarted
from aworld.training.run_folder import identity_of
from aworld.training.steps import episodes_of, learnable, problems_of
from aworld.training.training_state import (
    RunTime,
    check_logprobs,
    evaluation_due,
    measure,
    result_of,
    stop_of,
)


class EmbeddedEngine:
    """Trains the embedded policy of an agent, or of the agents of a team that share it."""

    name = "embedded"

    def check(self, job: TrainingJob) -> None:
        """Refuse what cannot work. Raises ConfigError."""
        config = job.config
        Actor(job.agent, config.agents)
        if config.options:
            raise ConfigError(f"config.options: the engine 'embedded' has none; got {', '.join(config.options)}.")
        if config.steps:
            problems_of(job.environment, config, 1)

    async def train(self, job: TrainingJob) -> TrainingResult:
        """Train to the end, or on from the newest checkpoint."""
        self.check(job)
        actor = Actor(job.agent, job.config.agents)
        try:
            with seldom_collecting():
                return await EmbeddedRun(job, actor).run()
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


class EmbeddedRun:
    """A training run of the embedded policy in this process."""

    def __init__(self, job: TrainingJob, actor: Actor) -> None:
        self.job, self.config, self.actor = job, job.config, actor
        self.learner = Learner(actor.policy, job.config)
        self.store = store_of(job.store)
        self.time = RunTime()
        self.state = EmbeddedState(identity=identity_of(job))
        checkpoint = checkpoints.newest(job.checkpoint_path)
        if checkpoint is not None:
            self.state = checkpoints.restore(checkpoint, self.learner, self.state.identity)
        self.time.before = self.state.cpu_seconds
        self.problems = held_out_problems(job.held_out, self.config.final_tasks)

    async def run(self) -> TrainingResult:
        """Train to the end."""
        config, state = self.config, self.state
        self.job.emit(TrainingStarted("embedded", str(self.job.run_path), state.step))
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
        return result_of(self.job, "embedded", state, seconds=self.time.seconds, cpu_seconds=self.time.cpu_seconds)

    def save(self) -> None:
        """Write a checkpoint."""
        self.state.cpu_seconds = self.time.cpu_seconds
        place = checkpoints.save(self.job.checkpoint_path, self.state, self.learner, self.config.keep_checkpoints)
        self.job.emit(Saved(self.state.step, str(place)))

    async def evaluate(self, problems: Sequence[Problem]) -> None:
        """Evaluate in each mode; episodes that the store has are not run again."""
        await measure(
            self.job, self.state, self.actor.agent, problems, agents=self.actor.names, store=self.store,
            run=self.learner.policy.version,
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
        check_logprobs(figures.get("logprob_difference", 0.0), number, config)
        self.actor.load(self.learner.policy)
        updated = time.process_time()
        score, success, reason = figures_of(job.environment, [episode.record for episode in episodes])
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
                "tokens": sum(sum(sample.tokens.mask) for sample in samples),
                "episodes_per_second": len(episodes) / elapsed if elapsed else 0.0,
            },
            seconds=time.monotonic() - began,
            cpu_seconds={"rollouts": rolled - cpu, "samples": sampled - rolled, "update": updated - sampled},
        )
        self.state.add(report, job)
