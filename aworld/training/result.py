"""What a training run tells: reports of its steps, evaluations, events for who watches, and the result.

All values are frozen structs that `msgspec.json` writes and reads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

import msgspec
from msgspec import Struct

Mode: TypeAlias = Literal["greedy", "sampled"]
Stop: TypeAlias = Literal["steps", "target", "patience"]


class Evaluation(Struct, frozen=True, kw_only=True):
    """How a policy did on held-out problems, one episode each."""

    step: int
    """Training steps that the policy had behind it."""
    mode: Mode
    outcomes: dict[str, bool | None]
    """Whether each problem was solved, by its id (`aworld.environments.report.solved`); None where no scorer could
    tell, or the surroundings failed: in no figure."""
    score: float | None = None
    """Mean score of the episodes that have one."""
    interval: tuple[float, float] = (0.0, 1.0)
    """95 % confidence interval of `success` (Wilson)."""
    reason: str | None = None
    """Why the first of the unknown ones is unknown, and its trajectory."""
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @property
    def tasks(self) -> int:
        """Held-out problems."""
        return len(self.outcomes)

    @property
    def successes(self) -> int:
        """Problems that were solved."""
        return sum(outcome is True for outcome in self.outcomes.values())

    @property
    def unknown(self) -> int:
        """Problems of which nobody could tell."""
        return sum(outcome is None for outcome in self.outcomes.values())

    @property
    def success(self) -> float | None:
        """Share of the problems whose outcome is known that were solved; None where none is."""
        known = self.tasks - self.unknown
        return self.successes / known if known else None


class Comparison(Struct, frozen=True, kw_only=True):
    """Before and after on the same held-out problems: those whose outcome is known both times."""

    mode: Mode
    tasks: int = 0
    """Problems that are compared."""
    unknown: int = 0
    """Problems that are left out, as an outcome is unknown."""
    before: float
    after: float
    gained: int
    """Problems solved only after."""
    lost: int
    """Problems solved only before."""
    p_value: float
    """Exact two-sided McNemar test: how likely so uneven a change is, were there no difference."""


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
    dropped: dict[str, int] = {}
    """Samples that were left out, by the name of the filter or the reason."""
    reason: str | None = None
    """Why the first episode without a score has none, and its trajectory."""
    statistics: dict[str, float] = {}
    """Further figures by name: `loss`, `drift`, `logprob_difference` (largest between recorded and recomputed), ..."""
    seconds: float = 0.0
    cpu_seconds: dict[str, float] = {}
    """CPU seconds by what they were spent on: `rollouts`, `model`, `update`, ..."""


class Started(Struct, frozen=True, tag="started", tag_field="kind"):
    """Training begins, or goes on after `step` steps."""

    engine: str
    run_path: str
    step: int = 0


class Progress(Struct, frozen=True, tag="progress", tag_field="kind"):
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


TrainingEvent: TypeAlias = Started | Progress | Stepped | Evaluated | Saved
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
    """Why training ended: all steps taken, the target reached, or no better evaluation for long."""
    history: tuple[StepReport, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    """Every evaluation, in order; the first of each mode is before training, the last after it."""
    comparisons: tuple[Comparison, ...] = ()
    """Before against after, one a mode."""
    seconds: float = 0.0
    """Wall seconds of this process."""
    cpu_seconds: float = 0.0
    """CPU seconds of all processes that trained, resumed ones included."""

    def of_mode(self, mode: Mode) -> tuple[Evaluation, ...]:
        """The evaluations of one mode, in order."""
        return tuple(each for each in self.evaluations if each.mode == mode)

    def before(self, mode: Mode = "greedy") -> Evaluation | None:
        """The evaluation before training; None where there was none."""
        found = self.of_mode(mode)
        return found[0] if found and found[0].step == 0 else None

    def after(self, mode: Mode = "greedy") -> Evaluation | None:
        """The evaluation of the trained policy; None where there was none."""
        found = self.of_mode(mode)
        return found[-1] if found and found[-1].step == self.steps else None

    def save(self, path: Path) -> None:
        """Write it as JSON; the file appears when it is whole."""
        beside = path.with_name(f".{path.name}.new")
        beside.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")
        beside.replace(path)

    @classmethod
    def open(cls, path: Path) -> TrainingResult:
        """Read what `save` wrote."""
        return msgspec.json.decode(path.read_bytes(), type=cls)
