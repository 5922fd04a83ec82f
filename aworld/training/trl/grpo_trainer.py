"""TRL's `GRPOTrainer` with advantages from outside, and the callback that tells how training goes.

Imported only where TRL is installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aworld.models.torch_decoding import import_extra
from aworld.training.trl.grpo_steps import Steps

_torch: Any = import_extra("torch", "trl")

if TYPE_CHECKING:

    class _Trainer:
        """What is used here of `trl.GRPOTrainer`, which has no types and is not installed where types are checked."""

        args: Any
        num_iterations: int
        _step: int

        def __init__(self, **arguments: Any) -> None: ...
        def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]: ...
        def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any: ...
        def _get_per_token_logps_and_entropies(self, *arguments: Any, **named: Any) -> Any: ...

    _Callback = object
else:
    _Trainer = import_extra("trl", "trl").GRPOTrainer
    _Callback = import_extra("transformers", "trl").TrainerCallback


class RuntimeGRPOTrainer(_Trainer):
    """`GRPOTrainer` whose advantages are those that came with the rows, one a token.

    TRL's own loss takes advantages of the shape (rows, tokens) "from subclasses"; this is such a subclass.
    """

    def __init__(self, steps: Steps, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._steps = steps
        self._recorded: Any = None

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        width = output["completion_ids"].shape[1]
        given = [row["advantages"] + [0.0] * (width - len(row["advantages"])) for row in inputs]
        output["advantages"] = _torch.tensor(given, device=output["completion_ids"].device)
        return output

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        self._recorded = inputs if self._step % self._generate_every == 0 else None
        return super()._compute_loss(model, inputs)

    @property
    def _generate_every(self) -> int:
        return self.args.steps_per_generation * self.num_iterations

    def _get_per_token_logps_and_entropies(self, *arguments: Any, **named: Any) -> Any:
        found = super()._get_per_token_logps_and_entropies(*arguments, **named)
        inputs, self._recorded = self._recorded, None
        if inputs is not None:  # these weights are still those that sampled
            mask = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
            difference = (found[0].detach() - inputs["sampling_per_token_logps"]).abs()[mask]
            self._steps.agree(float(difference.max()) if difference.numel() else 0.0)
        return found


class StepCallback(_Callback):
    """Tells `Steps` what TRL logged, and lets it evaluate and stop after each step."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """An update was logged."""
        if logs is not None and "loss" in logs and self._steps.updated(state.global_step, logs):
            control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A checkpoint was written."""
        self._steps.saved(f"{args.output_dir}/checkpoint-{state.global_step}")
