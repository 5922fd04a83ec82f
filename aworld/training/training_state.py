"""Where a training run is, whichever engine trains: its steps and evaluations, when it stops, its result."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from aworld.core.exceptions import TrainingError
from aworld.environments.environment import derived_seed
from aworld.environments.problem import Problem
from aworld.training.evaluation import comparisons, evaluate
from aworld.training.registry import TrainingJob
from aworld.training.result import Evaluated, Evaluation, Stepped, StepReport, Stop, TrainingResult
from aworld.training.steps import hopeless, watched
from aworld.training.training_config import TrainingConfig

__all__ = ["RunTime", "TrainingState", "check_logprobs", "evaluation_due", "measure", "result_of", "stop_of"]


class TrainingState(Struct, kw_only=True):
    """What a run has behind it. Engines keep it in their checkpoints, with what else they need to go on."""

    step: int = 0
    """Steps that are done."""
    stopped: Stop | None = None
    """Why no further step is taken; None while there are more to take."""
    history: list[StepReport] = []
    evaluations: list[Evaluation] = []
    cpu_seconds: float = 0.0
    """CPU seconds when this was last kept, those of earlier processes included."""

    def add(self, report: StepReport, job: TrainingJob) -> None:
        """A step is done."""
        self.step = report.step
        self.history.append(report)
        job.emit(Stepped(report))

    def lacks(self, problems: Sequence[Problem]) -> bool:
        """Whether the policy was evaluated before, but as it stands not on all of these held-out problems."""
        last = self.evaluations[-1] if self.evaluations else None
        return last is not None and (last.step != self.step or last.tasks != len(problems))


class RunTime:
    """Time spent on a run: by this process since this was made, and `before` it, in CPU seconds."""

    def __init__(self, before: float = 0.0) -> None:
        self.before, self._began, self._cpu = before, time.monotonic(), time.process_time()

    @property
    def seconds(self) -> float:
        """Wall seconds of this process."""
        return time.monotonic() - self._began

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds of this process and of those before it."""
        return self.before + time.process_time() - self._cpu


async def measure(
    job: TrainingJob,
    state: TrainingState,
    agent: Any,
    problems: Sequence[Problem],
    *,
    agents: Sequence[str] | None = None,
    store: Any = None,
    run: str | None = None,
    reported: bool = True,
) -> None:
    """Evaluate in each mode, and put it down; does nothing where there is nothing to evaluate on.

    Raises TrainingError when the first evaluation knows the outcome of no problem.

    Args:
        agent: The agent or team that asks the policy as it is now.
        agents: Names of those whose sampling the mode sets; None for all.
        store: Where episodes are kept; those that it has are not run again.
        run: With a store: names the episodes of this policy in it.
        reported: Whether who watches the training hears of each episode.
    """
    config = job.config
    if job.held_out is None or not problems:
        return
    for mode in config.evaluation_modes:
        evaluation = await evaluate(
            job.held_out,
            agent,
            problems,
            mode=mode,
            temperature=config.temperature,
            step=state.step,
            agents=agents,
            seed=derived_seed(config.seed, "evaluation"),
            store=store,
            run=f"evaluation-{mode}-{run}" if run is not None else None,
            max_concurrency=config.max_concurrency,
            retries=config.retries,
            on_progress=watched(job, f"evaluation {mode}", state.step) if reported else None,
        )
        state.evaluations.append(evaluation)
        job.emit(Evaluated(evaluation))
        if state.step == 0 and evaluation.unknown == evaluation.tasks:
            raise TrainingError(f"evaluation {mode} | {hopeless(evaluation.tasks, evaluation.reason, job)}")


def check_logprobs(difference: float, step: int, config: TrainingConfig) -> None:
    """Raise TrainingError when the trainer computes other log-probabilities (in nats) than were sampled from."""
    most = config.logprob_tolerance
    if most is not None and difference > most:
        raise TrainingError(
            f"step={step} | log-probabilities of sampled tokens differ by {difference:.2e} nats between rollouts and "
            f"trainer, more than config.logprob_tolerance={most:g}: the samples are not this policy's own, or are "
            "computed in another precision; raise it, or set it to None, if that is meant."
        )


def evaluation_due(state: TrainingState, config: TrainingConfig) -> bool:
    """Whether the step that is done is one after which to evaluate in mid-training."""
    every = config.evaluate_every
    return bool(every) and state.step % every == 0 and state.step < config.steps


def stop_of(evaluations: Sequence[Evaluation], config: TrainingConfig) -> Stop | None:
    """Why training should stop after these evaluations; None where it should not."""
    of_mode = [e.success for e in evaluations if e.mode == config.evaluation_modes[0]]
    successes = [success for success in of_mode if success is not None]
    if not successes:
        return None
    if config.target is not None and (of_mode[-1] or 0.0) >= config.target:
        return "target"
    best = successes.index(max(successes))
    return "patience" if config.patience is not None and len(successes) - 1 - best >= config.patience else None


def result_of(
    job: TrainingJob, engine: str, state: TrainingState, *, seconds: float, cpu_seconds: float
) -> TrainingResult:
    """The result of a run that is over."""
    return TrainingResult(
        engine=engine,
        policy=str(job.policy_path),
        run_path=str(job.run_path),
        store=job.store,
        steps=state.step,
        stopped=state.stopped or "steps",
        history=tuple(state.history),
        evaluations=tuple(state.evaluations),
        comparisons=comparisons(state.evaluations),
        seconds=seconds,
        cpu_seconds=cpu_seconds,
    )
