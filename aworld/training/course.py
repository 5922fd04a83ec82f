"""The course of a training run, whichever engine trains: how far it is, its evaluations, when to stop, its result."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec import Struct

from aworld.core.agent.flow import units_of
from aworld.core.exceptions import ConfigError, TrainingError
from aworld.environments.environment import derived_seed
from aworld.environments.problem import Problem
from aworld.training.config import TrainingConfig
from aworld.training.evaluation import comparisons, evaluate
from aworld.training.registry import TrainingJob
from aworld.training.result import Evaluated, Evaluation, Mode, Stepped, StepReport, Stop, TrainingResult
from aworld.training.steps import hopeless, told

__all__ = [
    "FREE",
    "Course",
    "Spent",
    "check_same",
    "evaluation_due",
    "identity_of",
    "measure",
    "result_of",
    "stop_of",
]

FREE = ("steps", "evaluate_every", "max_concurrency", "checkpoint_every", "keep_checkpoints", "target", "patience")
"""Settings that may be others when a run goes on."""


class Course(Struct, kw_only=True):
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


class Spent:
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


def identity_of(job: TrainingJob) -> dict[str, Any]:
    """What makes a run the one that it is, whichever engine trains: its settings, environment and first policy."""
    return {
        **job.config.model_dump(mode="json", exclude=set(FREE)),
        "environment": job.environment.name,
        "test_dataset": None if job.held_out is None else job.held_out.name,
        "policy": {name: _model_of(unit) for name, unit in units_of(job.agent).items()},
    }


def _model_of(unit: Any) -> str | None:
    """What an agent asks: an embedded policy by its weights, wherever it was read from, any other by its name."""
    model: Any = getattr(unit, "model", None)
    if model is None:
        return None
    if model.provider != "embedded":
        return f"{model.provider}:{model.name}"
    from aworld.training.embedded.learner import version_of  # needs NumPy, which other engines may do without

    return f"embedded:{version_of(model.policy.weights, 0)}"


def check_same(run_path: object, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise ConfigError when the run that a folder holds is another one."""
    for name, value in now.items():
        if was.get(name) != value:
            raise ConfigError(
                f"run_path | {run_path} holds a run with {name}={was.get(name)!r}, now it is {value!r}. Take another "
                "run_path, or go on with the same."
            )


async def measure(
    job: TrainingJob,
    course: Course,
    agent: Any,
    problems: Sequence[Problem],
    *,
    agents: Sequence[str] | None = None,
    store: Any = None,
    run: Callable[[Mode], str] | None = None,
    watched: bool = True,
) -> None:
    """Evaluate in each mode, and put it down; does nothing where there is nothing to evaluate on.

    Raises TrainingError when the first evaluation knows the outcome of no problem.

    Args:
        agent: The agent or team that asks the policy as it is now.
        agents: Names of those whose sampling the mode sets; None for all.
        store: Where episodes are kept; those that it has are not run again.
        run: Names the episodes of a mode in the store.
        watched: Whether who watches the training hears of each episode.
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
            step=course.step,
            agents=agents,
            seed=derived_seed(config.seed, "evaluation"),
            store=store,
            run=run(mode) if run is not None else None,
            max_concurrency=config.max_concurrency,
            retries=config.retries,
            on_progress=told(job, f"evaluation {mode}", course.step) if watched else None,
        )
        course.evaluations.append(evaluation)
        job.emit(Evaluated(evaluation))
        if course.step == 0 and evaluation.unknown == evaluation.tasks:
            raise TrainingError(f"evaluation {mode} | {hopeless(evaluation.tasks, evaluation.reason, job)}")


def evaluation_due(course: Course, config: TrainingConfig) -> bool:
    """Whether the step that is done is one after which to evaluate in mid-training."""
    every = config.evaluate_every
    return bool(every) and course.step % every == 0 and course.step < config.steps


def stop_of(evaluations: Sequence[Evaluation], config: TrainingConfig) -> Stop | None:
    """Why training should stop after these evaluations; None where it should not."""
    of_mode = [each.success for each in evaluations if each.mode == config.evaluation_modes[0]]
    successes = [success for success in of_mode if success is not None]
    if not successes:
        return None
    if config.target is not None and (of_mode[-1] or 0.0) >= config.target:
        return "target"
    best = successes.index(max(successes))
    return "patience" if config.patience is not None and len(successes) - 1 - best >= config.patience else None


def result_of(job: TrainingJob, engine: str, course: Course, *, seconds: float, cpu_seconds: float) -> TrainingResult:
    """The result of a run that is over."""
    return TrainingResult(
        engine=engine,
        policy=str(job.policy_path),
        run_path=str(job.run_path),
        store=job.store,
        steps=course.step,
        stopped=course.stopped or "steps",
        history=tuple(course.history),
        evaluations=tuple(course.evaluations),
        comparisons=comparisons(course.evaluations),
        seconds=seconds,
        cpu_seconds=cpu_seconds,
    )
