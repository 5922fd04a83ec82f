"""What a training run tells: reports of its steps, events for who watches, and the result.

All values are frozen structs that `msgspec.json` writes and reads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

import msgspec
from msgspec import Struct

from aworld.training.evaluation import Comparison, Evaluation, Mode

Stop: TypeAlias = Literal["steps", "target", "patience", "nothing_to_learn"]


class StepReport(Struct, frozen=True, kw_only=True):
    """One training step."""

    step: int
    """Number of the step, from 1."""
    episodes: int
    """Episodes that were run."""
    score: float | None
    """Mean score of the episodes that have one."""
    success: float | None
    """Share of the episodes that solved their problem, at the sampling temperature, on the training set; of those of
    which that is known, and None where none is."""
    samples: int
    """Samples that the update saw."""
    pass_at_k: float | None = None
    """Share of the problems that at least one of their `samples` episodes solved; None where it is not known."""
    dropped: dict[str, int] = {}
    """Samples that were left out, by the name of the filter or the reason."""
    reason: str | None = None
    """Why the first episode without a score has none, and its trajectory."""
    statistics: dict[str, float] = {}
    """Further figures by name: `loss`, `drift`, `logprob_difference` (largest between recorded and recomputed), ..."""
    seconds: float = 0.0
    cpu_seconds: dict[str, float] = {}
    """CPU seconds by what they were spent on: `rollouts`, `model`, `update`, ..."""


class TrainingStarted(Struct, frozen=True, tag="started", tag_field="kind"):
    """Training begins, or goes on after `step` steps."""

    engine: str
    run_path: str
    step: int = 0


class TrainingProgress(Struct, frozen=True, tag="progress", tag_field="kind"):
    """Episodes of a phase (`rollouts`, `evaluation greedy`, ...) that are done so far."""

    phase: str
    step: int
    done: int
    total: int


class Stepped(Struct, frozen=True, tag="step", tag_field="kind"):
    """A training step is done."""

    report: StepReport


class Evaluated(Struct, frozen=True, tag="evaluation", tag_field="kind"):
    """An evaluation is done."""

    evaluation: Evaluation


class Saved(Struct, frozen=True, tag="saved", tag_field="kind"):
    """A checkpoint or the final policy is on disk."""

    step: int
    path: str


TrainingEvent: TypeAlias = TrainingStarted | TrainingProgress | Stepped | Evaluated | Saved
"""What `AgentTrainer(on_event=...)` is told, in the order in which it happens."""


class TrainingResult(Struct, frozen=True, kw_only=True):
    """How a training run ended, and where everything is."""

    engine: str
    policy: str
    """Folder of the trained policy, in the layout of Hugging Face: `Agent(model=...)` takes it, and vLLM serves it."""
    run_path: str
    store: str | None = None
    """Address of the store with every episode; None where the engine keeps none."""
    steps: int = 0
    """Steps that were taken, those before a resume included."""
    stopped: Stop = "steps"
    """Why training ended: all steps taken, the target reached, no better evaluation for long, or nothing to learn from
    for long, as the episodes of each problem were worth the same."""
    advice: str | None = None
    """With `nothing_to_learn`: what was seen, and what to try."""
    history: tuple[StepReport, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    """Every evaluation, in order; the first of each mode is before training, the last after it."""
    comparisons: tuple[Comparison, ...] = ()
    """Before against after, one a mode."""
    seconds: float = 0.0
    """Wall seconds of this process."""
    cpu_seconds: float = 0.0
    """CPU seconds of all processes that trained, resumed ones included."""

    def _repr_html_(self) -> str:
        from aworld.core.notebook import html
        from aworld.training.curve import svg

        shares = ((one.mode, f"{one.before:.1%}", f"{one.after:.1%}", one.p_value) for one in self.comparisons)
        facts = {"steps": self.steps, "stopped": self.stopped, "advice": self.advice, "run_path": self.run_path}
        table = html(self.engine, facts, ("held out", "before", "after", "p"), shares)
        return f'{table}<div style="max-width:560px">{svg(self)}</div>' if self.evaluations else table

    def of_mode(self, mode: Mode) -> tuple[Evaluation, ...]:
        """The evaluations of one mode, in order."""
        return tuple(evaluation for evaluation in self.evaluations if evaluation.mode == mode)

    def before(self, mode: Mode = "greedy") -> Evaluation | None:
        """The evaluation before training; None where there was none."""
        return next((evaluation for evaluation in self.of_mode(mode)[:1] if evaluation.step == 0), None)

    def after(self, mode: Mode = "greedy") -> Evaluation | None:
        """The evaluation of the trained policy; None where there was none."""
        return next((evaluation for evaluation in self.of_mode(mode)[-1:] if evaluation.step == self.steps), None)

    def save(self, path: Path) -> None:
        """Write it as JSON; the file appears when it is whole."""
        beside = path.with_name(f".{path.name}.new")
        beside.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")
        beside.replace(path)

    @classmethod
    def open(cls, path: Path) -> TrainingResult:
        """Read what `save` wrote."""
        return msgspec.json.decode(path.read_bytes(), type=cls)
