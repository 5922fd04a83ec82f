"""The steps of a run that TRL drives: rollouts when it asks for completions, reports when it has updated.

TRL works in a thread, the episodes on the event loop of who called `train`: what is asked for from the thread is run on
the loop, and the thread waits.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import msgspec

from aworld.core.exceptions import ConfigError, TrainingError
from aworld.environments.problem import Problem
from aworld.environments.rollout import Rollout
from aworld.training.completions import CompletionRows, rows_of
from aworld.training.evaluation import figures_of, held_out_problems
from aworld.training.registry import TrainingJob
from aworld.training.result import Saved, StepReport, TrainingResult, TrainingStarted
from aworld.training.run_folder import FREE, identity_of
from aworld.training.samples import Sample
from aworld.training.steps import episodes_of, learnable, problems_of
from aworld.training.training_config import TrainingConfig
from aworld.training.training_state import RunTime, TrainingState, evaluation_due, measure, result_of, stop_of
from aworld.training.trl.trained_policy import TrainedPolicy

__all__ = ["Steps"]

T = TypeVar("T")

STATE = "aworld.json"
"""File in each of TRL's checkpoints: what has been reported until then."""

FIGURES = {"loss": "loss", "grad_norm": "gradient_norm", "entropy": "entropy", "clip_ratio/region_mean": "clipped"}
"""What TRL logs, and what the reports call it."""


class GRPOState(TrainingState, kw_only=True):
    """What a run that goes on must know of what was before."""

    identity: str = ""
    """Digest of what must be the same when a run goes on."""


class Steps:
    """Rollouts, reports and evaluations of one run. `checkpoint` is the folder that it goes on from."""

    def __init__(
        self, job: TrainingJob, policy: TrainedPolicy, loop: asyncio.AbstractEventLoop, checkpoint: str | None = None
    ) -> None:
        self.job, self.policy, self.loop = job, policy, loop
        self.config: TrainingConfig = job.config
        self.agent: Any = job.agent.with_model(policy.model)
        self.names = self.config.agents or (str(job.agent.name),)
        self.state = GRPOState(identity=_identity(job))
        if checkpoint is not None:
            self.state = _taken_up(checkpoint, self.state.identity)
        self._held_out = held_out_problems(job.held_out, self.config.final_tasks)
        self._updates = self.config.epochs * self.config.minibatches
        self._running: Future[Any] | None = None
        self._cancelled = False
        self._report: dict[str, Any] = {}
        self._logged: list[Mapping[str, Any]] = []
        self._spent = RunTime(self.state.cpu_seconds)

    # Asked by TRL, in its thread.

    def rollout_func(self, prompts: Sequence[str], trainer: Any) -> dict[str, list[object]]:
        """TRL's `rollout_func`: the episodes of one step. A prompt is the number of a problem of the run."""
        numbers = list(dict.fromkeys(int(prompt) for prompt in prompts))
        return self._on_loop(self._episodes(numbers)).fields()

    def agree(self, difference: float) -> None:
        """Take note of how far recorded and recomputed log-probabilities differ. Raises TrainingError."""
        self._report["statistics"]["logprob_difference"] = difference
        most = self.config.logprob_tolerance
        if most is not None and difference > most:
            raise TrainingError(
                f"step={self.state.step + 1} | log-probabilities of sampled tokens differ by {difference:.2e} nats "
                f"between rollouts and trainer, more than config.logprob_tolerance={most:g}: the samples are not this "
                "policy's own, or are computed in another precision; raise it, or set it to None, if that is meant."
            )

    def updated(self, update: int, logs: Mapping[str, Any]) -> bool:
        """TRL has made update number `update`. Returns whether training is to stop."""
        self._logged.append(logs)
        if update % self._updates:
            return False
        self._on_loop(self._finish_step())
        return self.state.stopped is not None

    def saved(self, path: str) -> None:
        """TRL has written a checkpoint."""
        self.state.cpu_seconds = self._spent.cpu_seconds
        Path(path, STATE).write_bytes(msgspec.json.encode(self.state))
        self.job.emit(Saved(self.state.step, path))

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

    # On the loop.

    async def begin(self) -> None:
        """Measure the policy as it is, unless the run goes on."""
        self.job.emit(TrainingStarted("trl", str(self.job.run_path), self.state.step))
        if not self.state.evaluations:
            await self._evaluate(self._held_out)

    async def end(self) -> TrainingResult:
        """Measure what has come of it, and write it."""
        state = self.state
        self.policy.refresh(f"step-{state.step}")
        if state.lacks(self._held_out):
            await self._evaluate(self._held_out)
        self.policy.save(self.job.policy_path)
        self.job.emit(Saved(state.step, str(self.job.policy_path)))
        return result_of(self.job, "trl", state, seconds=self._spent.seconds, cpu_seconds=self._spent.cpu_seconds)

    async def _episodes(self, numbers: Sequence[int]) -> CompletionRows:
        """The episodes of the next step, as TRL's rows, in the order of TRL's prompts."""
        config, step = self.config, self.state.step + 1
        began, cpu = time.monotonic(), time.process_time()
        self.policy.refresh(f"step-{step - 1}")
        # TRL's dataset has `groups` rows a step, in order: the place in the step says which problem a row stands for.
        problems = problems_of(self.job.environment, config, step)
        asked: list[Problem] = [problems[number % config.groups] for number in numbers]
        episodes = await episodes_of(
            self.job, self.agent, asked, step, agents=self.names, store=self.job.store,
            run=f"step-{step}-{self.state.identity}",
        )  # fmt: skip
        rolled = time.process_time() - cpu
        rows = self._rows(step, episodes)
        self._report |= {"began": began, "cpu_seconds": {"rollouts": rolled}, "updating": time.process_time()}
        return rows

    def _rows(self, step: int, episodes: Sequence[Rollout]) -> CompletionRows:
        environment = self.job.environment
        derived, kept, dropped = learnable(episodes, self.names, self.config, environment, step)
        learnt = {_place(sample) for sample in kept}
        others = [sample for sample in derived.samples if _place(sample) not in learnt]
        end = int(self.policy.tokenizer.eos_token_id)
        rows = rows_of([e.id for e in episodes], [*kept, *others], {e.id: e.score for e in episodes}, end)
        score, success, reason = figures_of(environment, [each.record for each in episodes])
        self._report = {
            "episodes": len(episodes),
            "score": score,
            "success": success,
            "reason": reason,
            "samples": len(kept),
            "dropped": {**dropped, **({"second row of an episode": rows.left_out} if rows.left_out else {})},
            "statistics": {
                "drift": float(derived.drift),
                "without_tokens": float(derived.without_tokens),
                "empty": float(rows.empty),
                "tokens": float(sum(sum(sample.tokens.mask) for sample in kept)),
            },
        }
        return rows

    async def _finish_step(self) -> None:
        """Report the step, and measure the policy where that is due."""
        report, logged = self._report, self._logged
        self._logged = []
        for theirs, ours in FIGURES.items():
            values = [float(logs[theirs]) for logs in logged if logs.get(theirs) is not None]
            if values:
                report["statistics"][ours] = fmean(values)
        report["cpu_seconds"]["update"] = time.process_time() - report.pop("updating")
        seconds = time.monotonic() - report.pop("began")
        self.state.add(StepReport(step=self.state.step + 1, seconds=seconds, **report), self.job)
        if evaluation_due(self.state, self.config) and self._held_out:
            self.policy.refresh(f"step-{self.state.step}")
            await self._evaluate(self._held_out[: self.config.evaluation_tasks])
            self.state.stopped = stop_of(self.state.evaluations, self.config)

    async def _evaluate(self, problems: Sequence[Problem]) -> None:
        """Evaluate in each mode; episodes that the store has are not run again."""
        await measure(
            self.job, self.state, self.agent, problems, agents=self.names, store=self.job.store,
            run=f"{self.state.step}-{self.state.identity}",
        )  # fmt: skip


def _identity(job: TrainingJob) -> str:
    """A digest of what makes the run the one that it is, for the names of its episodes."""
    return hashlib.blake2b(msgspec.json.encode(identity_of(job), order="deterministic"), digest_size=6).hexdigest()


def _taken_up(checkpoint: str, identity: str) -> GRPOState:
    state = msgspec.json.decode(Path(checkpoint, STATE).read_bytes(), type=GRPOState)
    if state.identity != identity:
        raise ConfigError(
            f"{Path(checkpoint).parent.parent} holds a run with other settings, environment or first policy; give them "
            f"as they were, or another run_path. Only {', '.join(FREE)} may be others."
        )
    return state


def _place(sample: Sample) -> tuple[str, int, tuple[int, ...]]:
    """What tells a sample from all others."""
    return sample.tokens.trajectory_id, sample.tokens.activation, sample.tokens.steps
