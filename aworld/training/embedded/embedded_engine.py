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
from aworld.training.embedded import checkpoints
from aworld.training.embedded.actor import Actor
from aworld.training.embedded.checkpoints import EmbeddedState
from aworld.training.embedded.learner import Learner
from aworld.training.registry import TrainingJob
from aworld.training.result import Saved, TrainingResult
from aworld.training.run_folder import identity_of
from aworld.training.steps import episodes_of, learnable, problems_of
from aworld.training.training_run import TrainingRun


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


class EmbeddedRun(TrainingRun[EmbeddedState]):
    """A training run of the embedded policy in this process."""

    def __init__(self, job: TrainingJob, actor: Actor) -> None:
        self.actor, self.learner = actor, Learner(actor.policy, job.config)
        state, checkpoint = EmbeddedState(identity=identity_of(job)), checkpoints.newest(job.checkpoint_path)
        if checkpoint is not None:
            state = checkpoints.restore(checkpoint, self.learner, state.identity)
        super().__init__(job, EmbeddedEngine.name, state)

    async def run(self) -> TrainingResult:
        """Train to the end."""
        every = self.config.checkpoint_every
        self.actor.load(self.learner.policy)
        await self.begin()
        while not self.over:
            await self.step()
            if self.over or (every and self.state.step % every == 0):
                self.save()
        if await self.evaluate_last():
            self.save()
        await self.store.flush()
        self.learner.policy.save(self.job.policy_path)
        return self.result()

    def save(self) -> None:
        """Write a checkpoint."""
        self.state.cpu_seconds = self.cpu_seconds
        folder = checkpoints.save(self.job.checkpoint_path, self.state, self.learner, self.config.keep_checkpoints)
        self.job.emit(Saved(self.state.step, str(folder)))

    async def evaluate(self, problems: Sequence[Problem]) -> None:
        """Evaluate in each mode; episodes that the store has are not run again."""
        version = self.learner.policy.version
        await self.measure(self.actor.agent, problems, agents=self.actor.names, policy=version)

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
        learnt = learnable(episodes, self.actor.names, config, job.environment, number)
        sampled = time.process_time()
        figures = await asyncio.to_thread(self.learner.update, learnt.samples, number)
        self.check_logprobs(figures.get("logprob_difference", 0.0))
        self.actor.load(self.learner.policy)
        updated = time.process_time()
        speed = {"episodes_per_second": len(episodes) / elapsed if elapsed else 0.0}
        await self.finish_step(self.report(
            [episode.record for episode in episodes],
            samples=len(learnt.samples),
            dropped=learnt.dropped,
            statistics={**figures, **learnt.statistics, **speed},
            seconds=time.monotonic() - began,
            cpu_seconds={"rollouts": rolled - cpu, "samples": sampled - rolled, "update": updated - sampled},
        ))  # fmt: skip
