"""Engine `verl`: writes what verl reads, starts it, and puts its policy back.

verl needs GPUs and a rollout server (vLLM or SGLang); it starts Ray workers, each of which makes the environment and
the agent anew. So an engine of it needs to know how: `options={"setting": "package.module:function"}`, see `verl_loop`.
Further options are verl's own settings by their dotted names, such as `{"trainer.n_gpus_per_node": 1}`.

What is tested here is everything up to the start, on a CPU against verl's own classes; see docs/trainers.md.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

from aworld.core.exceptions import ConfigError
from aworld.models.torch_decoding import import_extra
from aworld.training.config import TrainingConfig
from aworld.training.evaluation import held_out_problems
from aworld.training.registry import TrainingJob
from aworld.training.result import Started, TrainingResult
from aworld.training.steps import problems_of
from aworld.training.verl_dataset import AGENT_NAME, write_problems

__all__ = ["VerlEngine", "overrides", "prepare"]

OWN = ("setting", "policy")
"""Options that are not verl's: how workers make environment and agent, and the checkpoint to begin with."""


class VerlEngine:
    """Trains with verl 0.9. Made anew for each run."""

    name = "verl"

    def check(self, job: TrainingJob) -> None:
        """Refuse what cannot work. Raises ConfigError that names the setting."""
        config = job.config
        if config.algorithm != "grpo":
            raise ConfigError(f"algorithm={config.algorithm!r}: the engine verl does 'grpo'.")
        if config.advantages not in _ADVANTAGES:
            raise ConfigError(
                f"advantages={config.advantages!r}: verl computes its own, one of {', '.join(_ADVANTAGES)}."
            )
        plain = TrainingConfig()
        for setting in ("credit", "filters", "shuffle_rewards", "target", "patience", "agents"):
            if getattr(config, setting) != getattr(plain, setting):
                raise ConfigError(f"{setting}={getattr(config, setting)!r}: verl has no word for it; leave it out.")
        import_extra("verl", "verl")
        for option, why in _NEEDED.items():
            if option not in config.options:
                raise ConfigError(f"The engine verl needs options={{{option!r}: ...}}: {why}")

    async def train(self, job: TrainingJob) -> TrainingResult:
        """Write dataset and settings, run verl to its end, and turn its last checkpoint into a policy."""
        self.check(job)
        if not import_extra("torch", "verl").cuda.is_available():
            prepare(job)
            raise ConfigError(
                f"verl trains on GPUs, and there is none here. Dataset and command are in {job.run_path}: start "
                "verl.sh on a machine with GPUs, or take train_engine_name='trl', which trains on a CPU too."
            )
        began = time.time()
        prepare(job)
        job.emit(Started(self.name, str(job.run_path)))
        await _run(job.run_path, ["-m", "verl.trainer.main_ppo", *overrides(job)])
        step = _last_step(job.checkpoint_path)
        actor = job.checkpoint_path / f"global_step_{step}" / "actor"
        merge = ["--backend", "fsdp", "--local_dir", str(actor), "--target_dir", str(job.policy_path)]
        await _run(job.run_path, ["-m", "verl.model_merger", "merge", *merge])
        return TrainingResult(
            engine=self.name, policy=str(job.policy_path), run_path=str(job.run_path), steps=step,
            seconds=time.time() - began,
        )  # fmt: skip


_ADVANTAGES = {"group_normalised": "True", "group_centred": "False"}
_NEEDED = {
    "setting": "'package.module:function' of a function that returns (environment, agent), called in verl's workers.",
    "policy": "the folder of the checkpoint to begin with.",
}


def prepare(job: TrainingJob) -> Path:
    """Write the dataset, the agent loop's settings and the command `verl.sh` below `job.run_path`; returns it."""
    config, folder = job.config, job.run_path
    learnt = [p for number in range(1, config.steps + 1) for p in problems_of(job.environment, config, number)]
    write_problems(job.environment, folder / "train.parquet", learnt)
    if job.held_out is not None:
        problems = held_out_problems(job.held_out, config.final_tasks)
        write_problems(job.held_out, folder / "test.parquet", problems, split="test")
    loop = {
        "name": AGENT_NAME, "_target_": "aworld.training.verl_loop.RuntimeAgentLoop",
        "setting": config.options["setting"], "retries": config.retries,
        "max_completion_tokens": config.max_completion_tokens,
    }  # fmt: skip
    (folder / "agent_loop.yaml").write_text(json.dumps([loop], indent=1) + "\n")  # JSON is YAML
    lines = " \\\n  ".join(f"'{each}'" for each in overrides(job))
    (folder / "verl.sh").write_text(f"#!/bin/sh\nexec python -m verl.trainer.main_ppo \\\n  {lines}\n")
    return folder


def overrides(job: TrainingJob) -> list[str]:
    """The settings of `verl.trainer.main_ppo` for this job, as its command line takes them."""
    config, folder = job.config, job.run_path
    rollout = "actor_rollout_ref.rollout"
    measured = job.held_out is not None
    settings: dict[str, Any] = {
        "data.train_files": folder / "train.parquet",
        "data.val_files": folder / ("test.parquet" if measured else "train.parquet"),  # it must read one, used or not
        "data.train_batch_size": config.groups,
        "data.shuffle": False,
        "algorithm.adv_estimator": "grpo",
        "algorithm.norm_adv_by_std_in_grpo": _ADVANTAGES[config.advantages],
        "algorithm.use_kl_in_reward": False,
        "actor_rollout_ref.model.path": config.options["policy"],
        "actor_rollout_ref.actor.optim.lr": config.learning_rate,
        "actor_rollout_ref.actor.use_kl_loss": False,
        "actor_rollout_ref.actor.clip_ratio": config.clip,
        "actor_rollout_ref.actor.ppo_epochs": config.epochs,
        "actor_rollout_ref.actor.ppo_mini_batch_size": max(1, config.groups // config.minibatches),
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 4,
        f"{rollout}.log_prob_micro_batch_size_per_gpu": 4,
        f"{rollout}.name": "vllm",
        f"{rollout}.mode": "async",
        f"{rollout}.n": config.samples,
        f"{rollout}.temperature": config.temperature,
        f"{rollout}.calculate_log_probs": True,
        f"{rollout}.agent.default_agent_loop": AGENT_NAME,
        f"{rollout}.agent.agent_loop_config_path": folder / "agent_loop.yaml",
        "trainer.total_training_steps": config.steps,
        # To verl a frequency of -1 is never, the end included; any other one includes the end.
        "trainer.save_freq": config.checkpoint_every or config.steps,
        "trainer.test_freq": (config.evaluate_every or config.steps) if measured else -1,
        "trainer.val_before_train": measured,
        "trainer.max_actor_ckpt_to_keep": config.keep_checkpoints,
        "trainer.default_local_dir": job.checkpoint_path,
        "trainer.logger": "[console]",
        **{name: value for name, value in config.options.items() if name not in OWN},
    }
    return [f"{name}={value}" for name, value in settings.items()]


async def _run(folder: Path, arguments: list[str]) -> None:
    """Run Python to its end, its words in `verl.log`. Raises ConfigError when it fails."""
    with (folder / "verl.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=log, stderr=log)
        try:
            code = await process.wait()
        except BaseException:
            process.terminate()
            await process.wait()
            raise
    if code:
        raise ConfigError(f"verl ended with code {code}; {folder / 'verl.log'} says why.")


def _last_step(folder: Path) -> int:
    try:
        return int((folder / "latest_checkpointed_iteration.txt").read_text())
    except (OSError, ValueError):
        raise ConfigError(f"verl left no checkpoint in {folder}; set checkpoint_every, and read verl.log.") from None
