"""TRL's `GRPOTrainer` with advantages from outside, and the callback that tells how training goes.

Imported only where TRL is installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aworld.training.trl.grpo_steps import GRPORun
from aworld.training.trl.trained_policy import trl_package

_torch: Any = trl_package("torch")

if TYPE_CHECKING:

    class GRPOTrainerBase:
        """What is used here of `trl.GRPOTrainer`, which has no types and is not installed where types are checked."""

        args: Any
        num_iterations: int
        _step: int

        def __init__(self, **arguments: Any) -> None: ...
        def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]: ...
        def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any: ...
        def _get_per_token_logps_and_entropies(self, *arguments: Any, **named: Any) -> Any: ...

    CallbackBase = object
else:
    GRPOTrainerBase = trl_package("trl").GRPOTrainer
    CallbackBase = trl_package("transformers").TrainerCallback


class RuntimeGRPOTrainer(GRPOTrainerBase):
    """`GRPOTrainer` whose advantages are those that came with the rows, one a token.

    TRL's own loss takes advantages of the shape (rows, tokens) "from subclasses"; this is such a subclass.
    """

    def __init__(self, run: GRPORun, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._run = run
        self._recorded: Any = None

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        width = output["completion_ids"].shape[1]
        advantages = [row["advantages"] + [0.0] * (width - len(row["advantages"])) for row in inputs]
        output["advantages"] = _torch.tensor(advantages, device=output["completion_ids"].device)
        return output

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        self._recorded = inputs if self._step % self._generate_every == 0 else None
        return super()._compute_loss(model, inputs)

    @property
    def _generate_every(self) -> int:
        return self.args.steps_per_generation * self.num_iterations

    def _get_per_token_logps_and_entropies(self, *arguments: Any, **named: Any) -> Any:
        logprobs = super()._get_per_token_logps_and_entropies(*arguments, **named)
        inputs, self._recorded = self._recorded, None
        if inputs is not None:  # these weights are still those that sampled
            mask = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
            difference = (logprobs[0].detach() - inputs["sampling_per_token_logps"]).abs()[mask]
            self._run.agree(float(difference.max()) if difference.numel() else 0.0)
        return logprobs


class StepCallback(CallbackBase):
    """Tells `GRPORun` what TRL logged, and lets it evaluate and stop after each step."""

    def __init__(self, run: GRPORun) -> None:
        self._run = run

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """An update was logged."""
        if logs is not None and "loss" in logs and self._run.updated(state.global_step, logs):
            control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A checkpoint was written."""
        self._run.saved(f"{args.output_dir}/checkpoint-{state.global_step}")
