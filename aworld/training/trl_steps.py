"""The steps of a run that TRL drives: rollouts when it asks for completions, reports when it has updated.

TRL works in a thread, the episodes on the event loop of who called `train`: what is asked for from the thread is run on
the loop, and the thread waits.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
from msgspec import Struct

from aworld.environments.problem import Problem
from aworld.environments.rollout import Rollout, by_group, rollouts
from aworld.training.config import TrainingConfig
from aworld.training.credit import ADVANTAGES, CREDITS, Advantage, Credit, named, with_advantages
from aworld.training.filters import apply
from aworld.training.registry import TrainingJob
from aworld.training.result import Evaluation, Progress, Saved, Started, Stepped, StepReport
from aworld.training.rows import Rows, rows_of
from aworld.training.samples import Sample, derive
from aworld.training.trl_policy import TrainedPolicy

__all__ = ["Steps"]

T = TypeVar("T")

STATE = "aworld.json"
"""File in each of TRL's checkpoints: what has been reported until then."""


class State(Struct, kw_only=True):
    """What a run that goes on must know of what was before."""

    history: list[StepReport] = []
    evaluations: list[Evaluation] = []
    cpu_seconds: float = 0.0


class Steps:
    """Rollouts, reports and evaluations of one run."""

    def __init__(self, job: TrainingJob, policy: TrainedPolicy, loop: asyncio.AbstractEventLoop) -> None:
        self.job, self.policy, self.loop = job, policy, loop
        self.config: TrainingConfig = job.config
        self.agent: Any = job.agent.with_model(policy.model)
        self.done = 0
        """Steps taken."""
        self.state = State()
        self.logprob_difference: float | None = None
        self.stopped: str = "steps"
        self._updates = self.config.epochs * self.config.minibatches
        self._problems = training_problems(job)
        self._running: Future[Any] | None = None
        self._cancelled = False
        self._report: dict[str, Any] = {}
        self._losses: list[Mapping[str, Any]] = []

    # --- asked by TRL, in its thread -------------------------------------------------------------------------------

    def rollout_func(self, prompts: Sequence[str], trainer: Any) -> dict[str, list[Any]]:
        """TRL's `rollout_func`: the episodes of one step. A prompt is the number of a problem."""
        step = int(trainer.state.global_step) // self._updates
        numbers = list(dict.fromkeys(int(prompt) for prompt in prompts))
        rows = self._on_loop(self._episodes(step, numbers))
        return rows.fields()

    def updated(self, update: int, logs: Mapping[str, Any]) -> bool:
        """TRL has made update number `update`. Returns whether training is to stop."""
        self._losses.append(logs)
        if update % self._updates:
            return False
        self.done = update // self._updates
        self._on_loop(self._finish_step())
        return self.stopped != "steps"

    def saved(self, update: int, path: str) -> None:
        """TRL has written a checkpoint."""
        Path(path, STATE).write_bytes(msgspec.json.encode(self.state))
        self.job.emit(Saved(update // self._updates, path))

    def cancel(self) -> None:
        """End the episodes in flight, and refuse more."""
        self._cancelled = True
        if self._running is not None:
            self._running.cancel()

    def _on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        if self._cancelled:
            work.close()
            raise asyncio.CancelledError("training was cancelled")
        self._running = running = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return running.result()
        finally:
            self._running = None

    # --- on the loop -----------------------------------------------------------------------------------------------

    async def begin(self, checkpoint: str | None) -> None:
        """Take up what a killed run had reported, or measure the policy as it is."""
        if checkpoint is not None:
            self.state = msgspec.json.decode(Path(checkpoint, STATE).read_bytes(), type=State)
            self.done = len(self.state.history)
        self.job.emit(Started("trl", str(self.job.run_path), self.done))
        if checkpoint is None:
            await self._evaluate(self.config.final_tasks)

    async def _episodes(self, step: int, numbers: Sequence[int]) -> Rows:
        """The episodes of a step, as TRL's rows in the order of the problems."""
        began, cpu = time.time(), time.process_time()
        config = self.config
        self.policy.refresh(f"step-{step}")
        self.policy.model.params.update(sampling(config))
        groups: dict[str, list[Rollout]] = {}
        done = 0
        episodes = rollouts(
            self.job.environment, self.agent, [self._problems[number] for number in numbers],
            samples=config.samples, seed=config.seed + step, store=self.job.store, run=f"step-{step + 1}",
            max_concurrency=config.max_concurrency, retries=config.retries, yield_finished=True,
        )  # fmt: skip
        async for group in by_group(episodes, config.samples):
            groups[group[0].problem.id] = group
            done += len(group)
            self.job.emit(Progress("rollouts", step + 1, done, len(numbers) * config.samples))
        ordered = [each for number in numbers for each in groups[self._problems[number].id]]
        rows = self._rows(step, ordered)
        self._report["seconds"] = time.time() - began
        self._report["rollouts"] = time.process_time() - cpu
        return rows

    def _rows(self, step: int, episodes: Sequence[Rollout]) -> Rows:
        config = self.config
        credit = cast(Credit, named(CREDITS, config.credit, "credit"))
        advantage = cast(Advantage, named(ADVANTAGES, config.advantages, "advantages"))
        records = [episode.record for episode in episodes]
        derived = derive(records, agents=config.agents, credit=credit, discount=config.discount)
        samples = derived.samples
        if config.shuffle_rewards:
            samples = shuffled(samples, random.Random(f"{config.seed}/{step}"))
        kept, dropped = apply(samples, config.filters)
        kept = with_advantages(kept, advantage)
        chosen = {(sample.trajectory_id, sample.activation, sample.steps) for sample in kept}
        others = [s for s in samples if (s.trajectory_id, s.activation, s.steps) not in chosen]
        end = self.policy.tokenizer.eos_token_id
        rows = rows_of([e.id for e in episodes], [*kept, *others], {e.id: e.score for e in episodes}, end)
        scores = [episode.score for episode in episodes if episode.score is not None]
        self._report = {
            "episodes": len(episodes),
            "score": sum(scores) / len(scores) if scores else None,
            "success": sum(score >= config.success_score for score in scores) / len(episodes),
            "samples": len(kept),
            "dropped": {**dropped, **({"second_row": rows.left_out} if rows.left_out else {})},
            "drift": derived.drift,
        }
        return rows

    async def _finish_step(self) -> None:
        """Report the step, and measure the policy where that is due."""
        report, losses = self._report, self._losses
        self._losses = []
        statistics = {"drift": float(report["drift"])}
        for name in ("loss", "grad_norm", "entropy", "clip_ratio/region_mean"):
            values = [float(logs[name]) for logs in losses if logs.get(name) is not None]
            if values:
                statistics[name] = sum(values) / len(values)
        if self.logprob_difference is not None:
            statistics["logprob_difference"] = self.logprob_difference
        told = StepReport(
            step=self.done, episodes=report["episodes"], score=report["score"], success=report["success"],
            samples=report["samples"], dropped=report["dropped"], statistics=statistics, seconds=report["seconds"],
            cpu_seconds={"rollouts": report["rollouts"]},
        )  # fmt: skip
        self.state.history.append(told)
        self.job.emit(Stepped(told))
        every = self.config.evaluate_every
        if every and self.done % every == 0 and self.done < self.config.steps:
            self.policy.refresh(f"step-{self.done}")
            await self._evaluate(self.config.evaluation_tasks)
            self._decide()

    async def _evaluate(self, tasks: int) -> None:
        """Measure the policy on held-out problems, each mode once."""

    def _decide(self) -> None:
        """Whether to stop early."""


def sampling(config: TrainingConfig) -> dict[str, Any]:
    """Sampling settings of rollouts, as a model's `params`."""
    limit = config.max_completion_tokens
    return {"temperature": config.temperature, **({} if limit is None else {"max_tokens": limit})}


def training_problems(job: TrainingJob) -> list[Problem]:
    """The problems of all steps, one after the other."""
    count = job.config.steps * job.config.groups
    return job.environment.problems("train", count, job.config.seed)


def shuffled(samples: Sequence[Sample], rng: random.Random) -> list[Sample]:
    """The samples with the rewards of their episodes dealt out at random."""
    return list(samples)
