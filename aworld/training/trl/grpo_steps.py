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

from aworld.core.exceptions import ConfigError
from aworld.environments.problem import Problem
from aworld.environments.rollout import Rollout
from aworld.training.completions import CompletionRows, rows_of
from aworld.training.registry import TrainingJob
from aworld.training.result import Saved, TrainingResult
from aworld.training.run_folder import FREE, identity_of
from aworld.training.samples import Sample
from aworld.training.steps import episodes_of, learnable, problems_of
from aworld.training.training_run import TrainingRun, TrainingState
from aworld.training.trl.trained_policy import TrainedPolicy

T = TypeVar("T")

STATE = "aworld.json"
"""File in each of TRL's checkpoints: what has been reported until then."""

FIGURES = {"loss": "loss", "grad_norm": "gradient_norm", "entropy": "entropy", "clip_ratio/region_mean": "clipped"}
"""What TRL logs, and what the reports call it."""


class GRPOState(TrainingState, kw_only=True):
    """What a run that goes on must know of what was before."""

    identity: str = ""
    """Digest of what must be the same when a run goes on."""


class GRPORun(TrainingRun[GRPOState]):
    """Rollouts, reports and evaluations of one run. `checkpoint` is the folder that it goes on from."""

    def __init__(
        self, job: TrainingJob, policy: TrainedPolicy, loop: asyncio.AbstractEventLoop, checkpoint: str | None = None
    ) -> None:
        identity = _identity(job)
        state = GRPOState(identity=identity) if checkpoint is None else _restored(checkpoint, identity)
        super().__init__(job, "trl", state)
        self.policy, self.loop = policy, loop
        self.agent: Any = job.agent.with_model(policy.model)
        self.names = self.config.agents or (str(job.agent.name),)
        self._updates = self.config.epochs * self.config.minibatches
        self._running: Future[Any] | None = None
        self._cancelled = False
        self._episodes: list[Rollout] = []
        self._report: dict[str, Any] = {}
        self._logged: list[Mapping[str, Any]] = []
        self._began_step = self._rolled = 0.0

    # Asked by TRL, in its thread.

    def rollout_func(self, prompts: Sequence[str], trainer: Any) -> dict[str, list[object]]:
        """TRL's `rollout_func`: the episodes of one step. A prompt is the number of a problem of the run."""
        numbers = list(dict.fromkeys(int(prompt) for prompt in prompts))
        return self._on_loop(self._roll(numbers)).fields()

    def agree(self, difference: float) -> None:
        """Take note of how far recorded and recomputed log-probabilities differ. Raises TrainingError."""
        self._report["statistics"]["logprob_difference"] = difference
        self.check_logprobs(difference)

    def updated(self, update: int, logs: Mapping[str, Any]) -> bool:
        """TRL has made update number `update`. Returns whether training is to stop."""
        self._logged.append(logs)
        if update % self._updates:
            return False
        self._on_loop(self._close_step())
        return self.state.stopped is not None

    def saved(self, path: str) -> None:
        """TRL has written a checkpoint."""
        self.state.cpu_seconds = self.cpu_seconds
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

    async def end(self) -> TrainingResult:
        """Measure what has come of it, and write it."""
        await self.evaluate_last()
        self.policy.refresh(f"step-{self.state.step}")
        self.policy.save(self.job.policy_path)
        return self.result()

    async def evaluate(self, problems: Sequence[Problem]) -> None:
        """Evaluate in each mode; episodes that the store has are not run again."""
        step = self.state.step
        self.policy.refresh(f"step-{step}")
        await self.measure(self.agent, problems, agents=self.names, policy=f"{step}-{self.state.identity}")

    async def _roll(self, numbers: Sequence[int]) -> CompletionRows:
        """The episodes of the next step, as TRL's rows, in the order of TRL's prompts."""
        config, step = self.config, self.state.step + 1
        self._began_step, cpu = time.monotonic(), time.process_time()
        self.policy.refresh(f"step-{step - 1}")
        # TRL's dataset has `groups` rows a step, in order: the place in the step says which problem a row stands for.
        problems = problems_of(self.job.environment, config, step)
        self._episodes = await episodes_of(
            self.job, self.agent, [problems[number % config.groups] for number in numbers], step, agents=self.names,
            store=self.store, run=f"step-{step}-{self.state.identity}",
        )  # fmt: skip
        self._rolled = time.process_time()
        self._report["cpu_seconds"] = {"rollouts": self._rolled - cpu}
        return self._rows(step)

    def _rows(self, step: int) -> CompletionRows:
        """The rows of the step's episodes, and what its report says of them."""
        learnt = learnable(self._episodes, self.names, self.config, self.job.environment, step)
        # Those that are learnt from, with advantages, take the places of their originals.
        samples = {_key(sample): sample for sample in (*learnt.derived.samples, *learnt.samples)}
        scores = {episode.id: episode.score for episode in self._episodes}
        rows = rows_of(list(scores), list(samples.values()), scores, int(self.policy.tokenizer.eos_token_id))
        second = {"second row of an episode": rows.left_out} if rows.left_out else {}
        self._report |= {
            "samples": len(learnt.samples), "dropped": learnt.dropped | second, "statistics": learnt.statistics,
        }  # fmt: skip
        return rows

    async def _close_step(self) -> None:
        """Report the step, and measure the policy where that is due."""
        logged, self._logged = self._logged, []
        for theirs, ours in FIGURES.items():
            values = [float(logs[theirs]) for logs in logged if logs.get(theirs) is not None]
            if values:
                self._report["statistics"][ours] = fmean(values)
        self._report["cpu_seconds"]["update"] = time.process_time() - self._rolled
        seconds = time.monotonic() - self._began_step
        records = [episode.record for episode in self._episodes]
        await self.finish_step(self.report(records, seconds=seconds, **self._report))


def _identity(job: TrainingJob) -> str:
    """A digest of what makes the run the one that it is, for the names of its episodes."""
    return hashlib.blake2b(msgspec.json.encode(identity_of(job), order="deterministic"), digest_size=6).hexdigest()


def _restored(checkpoint: str, identity: str) -> GRPOState:
    state = msgspec.json.decode(Path(checkpoint, STATE).read_bytes(), type=GRPOState)
    if state.identity != identity:
        raise ConfigError(
            f"{Path(checkpoint).parent.parent} holds a run with other settings, environment or first policy; give them "
            f"as they were, or another run_path. Only {', '.join(FREE)} may be others."
        )
    return state


def _key(sample: Sample) -> tuple[str, int, tuple[int, ...]]:
    """What tells a sample from all others."""
    return sample.tokens.trajectory_id, sample.tokens.activation, sample.tokens.steps
