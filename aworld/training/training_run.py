"""A training run, whichever engine trains: how far it is, what is measured and reported, when it stops, its result."""

from __future__ import annotations

import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from msgspec import Struct

from aworld.core.exceptions import TrainingError
from aworld.core.trajectory import Trajectory
from aworld.environments.environment import derived_seed
from aworld.environments.problem import Problem
from aworld.runners.local import store_of
from aworld.training.evaluation import Evaluation, comparisons, evaluate, figures_of, held_out_problems
from aworld.training.registry import TrainingJob
from aworld.training.result import Evaluated, Saved, Stepped, StepReport, Stop, TrainingResult, TrainingStarted
from aworld.training.steps import hopeless, watched
from aworld.training.training_config import TrainingConfig

logger = logging.getLogger(__name__)

BARREN = 8
"""Steps in a row without a single sample to learn from that end training. A policy that solves one in 500 episodes has
by then met a success in 95 % of runs, at the default of 192 episodes a step."""


class TrainingState(Struct, kw_only=True):
    """What a run has behind it. Engines keep it in their checkpoints, with what else they need to go on."""

    step: int = 0
    """Steps that are done."""
    stopped: Stop | None = None
    """Why no further step is taken; None while there are more to take."""
    advice: str | None = None
    """What the last step had nothing to learn from, and what to try; None when it had something."""
    history: list[StepReport] = []
    evaluations: list[Evaluation] = []
    cpu_seconds: float = 0.0
    """CPU seconds when this was last kept, those of earlier processes included."""


StateT = TypeVar("StateT", bound=TrainingState)


class TrainingRun(ABC, Generic[StateT]):
    """One run of an engine, from what `state` says was done before.

    An engine makes its own of it: it takes the steps, and says in `evaluate` who acts for the policy as it is now.
    """

    def __init__(self, job: TrainingJob, engine: str, state: StateT) -> None:
        self.job, self.config, self.engine, self.state = job, job.config, engine, state
        self.store = store_of(job.store)
        self.held_out = held_out_problems(job.held_out, job.config.final_tasks)
        self._began, self._cpu = time.monotonic(), _cpu_seconds() - state.cpu_seconds

    @abstractmethod
    async def evaluate(self, problems: Sequence[Problem]) -> None:
        """Evaluate the policy as it is, by `measure`."""

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds of this process, of those that it saw end, and of those before it."""
        return _cpu_seconds() - self._cpu

    @property
    def over(self) -> bool:
        """Whether no further step is to be taken."""
        return self.state.stopped is not None or self.state.step >= self.config.steps

    async def begin(self) -> None:
        """Say that training begins, and measure the policy as it is, unless that was done."""
        self.job.emit(TrainingStarted(self.engine, str(self.job.run_path), self.state.step))
        if not self.state.evaluations:
            await self.evaluate(self.held_out)

    def report(self, records: Sequence[Trajectory], **fields: Any) -> StepReport:
        """The report of the step that is done, with the figures of its episodes; `fields` are the others."""
        score, success, pass_at_k, reason = figures_of(self.job.environment, records)
        report = StepReport(
            step=self.state.step + 1, episodes=len(records), score=score, success=success, pass_at_k=pass_at_k,
            reason=reason, **fields,
        )  # fmt: skip
        self.state.advice = None if report.samples else nothing_to_learn(report, records, self.config)
        return report

    async def finish_step(self, report: StepReport) -> None:
        """A step is done: measure the policy where that is due, and see whether to stop."""
        self.add(report)
        every = self.config.evaluate_every
        if every and self.state.step % every == 0 and self.state.step < self.config.steps and self.held_out:
            await self.evaluate(self.held_out[: self.config.evaluation_tasks])
            self.state.stopped = stop_of(self.state.evaluations, self.config)
        if self.state.advice is None:
            return
        if all(earlier.samples for earlier in self.state.history[:-1]):
            logger.warning("step=%d | %s", report.step, self.state.advice)
        last = self.state.history[-BARREN:]
        if len(last) == BARREN and not any(earlier.samples for earlier in last):
            self.state.stopped = "nothing_to_learn"

    def add(self, report: StepReport) -> None:
        """Put a step down, and tell who watches."""
        self.state.step = report.step
        self.state.history.append(report)
        self.job.emit(Stepped(report))

    async def evaluate_last(self) -> bool:
        """Measure what has come of it, on all held-out problems; returns whether that was still to be done."""
        last = self.state.evaluations[-1] if self.state.evaluations else None
        if last is None or (last.step == self.state.step and last.tasks == len(self.held_out)):
            return False
        await self.evaluate(self.held_out)
        return True

    async def measure(
        self,
        agent: Any,
        problems: Sequence[Problem],
        *,
        agents: Sequence[str] | None = None,
        policy: str | None = None,
    ) -> None:
        """Evaluate in each mode, and put it down; does nothing where there is nothing to evaluate on.

        Args:
            agent: The agent or team that asks the policy as it is now.
            agents: Names of those whose sampling the mode sets; None for all.
            policy: Names this policy among the episodes in the store: those that it has are not run again, and who
                watches hears of each. None keeps no episodes.

        Raises TrainingError when the first evaluation knows the outcome of no problem.
        """
        job, config, step = self.job, self.config, self.state.step
        if job.held_out is None or not problems:
            return
        for mode in config.evaluation_modes:
            evaluation = await evaluate(
                job.held_out,
                agent,
                problems,
                mode=mode,
                temperature=config.temperature,
                step=step,
                agents=agents,
                seed=derived_seed(config.seed, "evaluation"),
                store=None if policy is None else self.store,
                run=None if policy is None else f"evaluation-{mode}-{policy}",
                max_concurrency=config.max_concurrency,
                retries=config.retries,
                on_progress=None if policy is None else watched(job, f"evaluation {mode}", step),
            )
            self.state.evaluations.append(evaluation)
            job.emit(Evaluated(evaluation))
            if step == 0 and evaluation.unknown == evaluation.tasks:
                raise TrainingError(f"evaluation {mode} | {hopeless(evaluation.tasks, evaluation.reason, job)}")

    def check_logprobs(self, difference: float) -> None:
        """Raise TrainingError when the trainer computes other log-probabilities (in nats) than were sampled from."""
        most = self.config.logprob_tolerance
        if most is not None and difference > most:
            raise TrainingError(
                f"step={self.state.step + 1} | log-probabilities of sampled tokens differ by {difference:.2e} nats "
                f"between rollouts and trainer, more than config.logprob_tolerance={most:g}: the samples are not this "
                "policy's own, or are computed in another precision; raise it, or set it to None, if that is meant."
            )

    def result(self) -> TrainingResult:
        """The result of a run that is over; its policy is on the disk."""
        state = self.state
        if state.history and not any(report.samples for report in state.history):
            state.stopped = state.stopped or "nothing_to_learn"
        self.job.emit(Saved(state.step, str(self.job.policy_path)))
        return TrainingResult(
            engine=self.engine,
            policy=str(self.job.policy_path),
            run_path=str(self.job.run_path),
            store=self.job.store,
            steps=state.step,
            stopped=state.stopped or "steps",
            advice=state.advice if state.stopped == "nothing_to_learn" else None,
            history=tuple(state.history),
            evaluations=tuple(state.evaluations),
            comparisons=comparisons(state.evaluations),
            seconds=time.monotonic() - self._began,
            cpu_seconds=self.cpu_seconds,
        )


def nothing_to_learn(report: StepReport, records: Sequence[Trajectory], config: TrainingConfig) -> str:
    """What is said of a step without a sample: what the policy can do, and what to try."""
    left_out = ", ".join(f"{count} {name}" for name, count in report.dropped.items())
    seen = f"nothing to learn from: of {report.episodes} episodes no sample is left ({left_out})"
    if report.success == 1.0:
        return f"{seen}, and every one solved its problem. Take harder problems, or be content."
    alike = ": the episodes of each problem were worth the same" if "no_variance" in report.dropped else ""
    share = "unknown" if report.pass_at_k is None else f"{report.pass_at_k:.1%}"
    first = records[0]
    calls = sum(len(step.tool_calls) for step in first.steps())
    return (
        f"{seen}{alike}; pass@{config.samples} is {share}. Such as {first.id}: {calls} calls of tools, and the answer "
        f"{str(first.answer)[:80]!r}. Try easier problems, a reward for a part of the way, more samples of each "
        "problem, or a policy that was shown some solutions."
    )


def stop_of(evaluations: Sequence[Evaluation], config: TrainingConfig) -> Stop | None:
    """Why training should stop after these evaluations; None where it should not."""
    of_mode = [evaluation.success for evaluation in evaluations if evaluation.mode == config.evaluation_modes[0]]
    successes = [success for success in of_mode if success is not None]
    if not successes:
        return None
    if config.target is not None and (of_mode[-1] or 0.0) >= config.target:
        return "target"
    best = successes.index(max(successes))
    return "patience" if config.patience is not None and len(successes) - 1 - best >= config.patience else None


def _cpu_seconds() -> float:
    """CPU seconds of this process, and of those that it started and saw end."""
    spent = os.times()
    return time.process_time() + spent.children_user + spent.children_system
