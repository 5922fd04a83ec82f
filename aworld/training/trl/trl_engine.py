"""Engine `trl`: TRL's `GRPOTrainer` trains, and our runtime does the rollouts.

TRL asks for the completions of a batch by its `rollout_func`. It gets episodes: agents with tools and state, run by
`aworld.environments.rollouts`, as exact token ids with an `env_mask` for what the policy only read. The advantages are
those of `aworld.training.credit`, one a token, so that filters, step rewards and the control with shuffled rewards mean
the same here as in every other engine; loss, optimiser, schedule and checkpoints are TRL's.

Without vLLM TRL ignores the recorded log-probabilities in its loss; they are compared with its own at the first update
of each step, and the largest difference is reported as `logprob_difference`.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from aworld.core.checks import one_of
from aworld.core.exceptions import ConfigError
from aworld.training.registry import TrainingJob
from aworld.training.result import TrainingResult
from aworld.training.training_config import TrainingConfig
from aworld.training.trl.grpo_steps import GRPORun
from aworld.training.trl.trained_policy import TrainedPolicy, check_policy, on_cpu, policy_of, trl_package

RESERVED = {
    "output_dir": "run_path", "max_steps": "steps", "num_generations": "samples", "learning_rate": "learning_rate",
    "temperature": "temperature", "num_iterations": "epochs", "epsilon": "clip", "epsilon_high": "clip_high",
    "max_grad_norm": "max_gradient_norm", "steps_per_generation": "minibatches", "save_steps": "checkpoint_every",
    "save_total_limit": "keep_checkpoints", "seed": "seed",
}  # fmt: skip
"""Settings of `GRPOConfig` that follow from settings of ours, by their names here."""

OWN = ("micro_batch",)
"""Options that are not TRL's: how many episodes are in one forward pass."""


class TRLEngine:
    """Trains with TRL 1.16. Made anew for each run."""

    name = "trl"

    def check(self, job: TrainingJob) -> None:
        """Refuse what TRL cannot do. Raises ConfigError that names the setting."""
        config, batch = job.config, job.config.groups * job.config.samples
        if config.samples < 2 or batch % config.minibatches:
            raise ConfigError(
                f"samples={config.samples}, minibatches={config.minibatches}: TRL compares at least 2 samples of a "
                f"group, and minibatches must divide groups × samples, {batch}."
            )
        agent: Any = job.agent
        if not hasattr(agent, "with_model"):
            raise ConfigError("The engine trl trains one Agent; a swarm is trained by train_engine_name='embedded'.")
        if derived := [option for option in config.options if option in RESERVED]:
            raise ConfigError(f"options={{{derived[0]!r}: ...}} follows from {RESERVED[derived[0]]}=...; set that.")
        _check_options(config.options, self._trl())
        check_policy(agent.model)

    async def train(self, job: TrainingJob) -> TrainingResult:
        """Train; TRL runs in a thread, the episodes on the loop of the caller."""
        self.check(job)
        agent: Any = job.agent
        checkpoint = newest_checkpoint(job.checkpoint_path)
        policy = policy_of(agent.model, job.checkpoint_path / "start")
        run = GRPORun(job, policy, asyncio.get_running_loop(), checkpoint)
        trainer = self._trainer(job, policy, run)
        await run.begin()
        if not run.over:
            work = asyncio.create_task(asyncio.to_thread(trainer.train, resume_from_checkpoint=checkpoint))
            try:
                await asyncio.shield(work)
            except asyncio.CancelledError:
                run.cancel()
                await asyncio.wait((work,))
                raise
        return await run.end()

    def _trainer(self, job: TrainingJob, policy: TrainedPolicy, run: GRPORun) -> Any:
        from aworld.training.trl.grpo_trainer import RuntimeGRPOTrainer, StepCallback

        trl, datasets = self._trl(), trl_package("datasets")
        count = job.config.steps * job.config.groups
        arguments = trl.GRPOConfig(**grpo_arguments(job.config, job.checkpoint_path, on_cpu()))
        trainer: Any = RuntimeGRPOTrainer(
            run=run,
            model=policy.module,
            processing_class=policy.tokenizer,
            reward_funcs=recorded_score,
            args=arguments,
            # The prompt is only a number: which problem it stands for, `GRPORun` knows.
            train_dataset=datasets.Dataset.from_dict({"prompt": [str(number) for number in range(max(1, count))]}),
            rollout_func=run.rollout_func,
            callbacks=[StepCallback(run)],
        )
        trainer.remove_callback(trl_package("transformers").PrinterCallback)
        return trainer

    def _trl(self) -> Any:
        os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout_func is the purpose here
        return trl_package("trl")


def _check_options(options: Mapping[str, Any], trl: Any) -> None:
    """Refuse what `GRPOConfig` does not have, or fails with only in the middle of a step. Raises ConfigError."""
    for option in options:
        if option == "peft_config":
            raise ConfigError("options={'peft_config': ...}: the engine trl trains all weights of the policy, no LoRA.")
        one_of("options of the engine trl", option, (*OWN, *(field.name for field in fields(trl.GRPOConfig))))
    if options.get("loss_type") == "dr_grpo" and options.get("max_completion_length") is None:
        raise ConfigError(
            "options={'loss_type': 'dr_grpo'} divides by a fixed length: say max_completion_length beside it, in "
            "tokens of an episode after its prompt, such as 128."
        )


def recorded_score(prompts: list[str], score: list[float | None], **_: Any) -> list[float | None]:
    """TRL's reward function: what the rubric said of each episode; None is left out by TRL."""
    return score


def grpo_arguments(config: TrainingConfig, output: Path, on_cpu: bool) -> dict[str, Any]:
    """The arguments of `GRPOConfig` for these settings; `options` have the last word."""
    batch = config.groups * config.samples // config.minibatches
    options: Mapping[str, Any] = config.options
    micro = int(options.get("micro_batch", batch))
    if batch % micro:
        raise ConfigError(f"options={{'micro_batch': {micro}}} must divide the {batch} episodes of an update.")
    updates = config.epochs * config.minibatches  # of one training step
    return {
        "output_dir": str(output),
        "max_steps": config.steps * updates,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": batch // micro,
        "steps_per_generation": batch // micro * config.minibatches,
        "num_generations": config.samples,
        "num_iterations": config.epochs,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "constant",
        "epsilon": config.clip,
        "epsilon_high": config.clip_high,
        "beta": config.kl,
        "temperature": config.temperature,
        "max_grad_norm": config.max_gradient_norm or 0.0,
        "max_completion_length": None,
        "shuffle_dataset": False,  # the order of the problems is ours
        "seed": config.seed,
        "save_strategy": "steps" if config.checkpoint_every else "no",
        "save_steps": max(1, config.checkpoint_every) * updates,
        "save_total_limit": config.keep_checkpoints,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "activation_checkpointing": False,
        "use_cpu": on_cpu,
        "bf16": False,  # the rollouts are computed in float32, and the log-probabilities must agree
        **{name: value for name, value in options.items() if name not in OWN},
    }


def newest_checkpoint(folder: Path) -> str | None:
    """The checkpoint from which a killed run goes on; None where there is none."""
    states = list(folder.glob("checkpoint-*/trainer_state.json"))
    newest = max(states, key=lambda path: json.loads(path.read_text())["global_step"], default=None)
    return None if newest is None else str(newest.parent)
