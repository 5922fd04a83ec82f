"""Engine `verl`: writes what verl reads, starts it, and puts its policy back.

verl needs GPUs and a rollout server (vLLM or SGLang); it starts Ray workers, each of which makes the environment and
the agent anew. So an engine of it needs to know how: `options={"setting": "package.module:function"}`, see
`agent_loop`. Further options are verl's own settings by their dotted names, such as `{"trainer.n_gpus_per_node": 1}`.

Its dataset is Parquet: `prompt, data_source, reward_model{ground_truth}, extra_info{index, problem, ...}`.
`extra_info.problem` is the problem itself as JSON, which the agent loop runs in its environment; `prompt` is what verl
shows and measures.

What is tested here is everything up to the start, on a CPU against verl's own classes; see docs/trainers.md.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from aworld.core.exceptions import ConfigError, TrainingError
from aworld.core.extras import import_extra
from aworld.core.message import content_text
from aworld.environments import Environment, Problem
from aworld.environments.problem import Split
from aworld.training.evaluation import held_out_problems
from aworld.training.registry import TrainingJob, refuse_settings
from aworld.training.result import TrainingResult, TrainingStarted
from aworld.training.steps import problems_of
from aworld.training.trainer_process import TrainerProcess
from aworld.training.training_config import TrainingConfig

PACKAGE = "verl==0.9.1"
AGENT_NAME = "aworld"
"""Under this name verl finds the agent loop."""
OWN = ("setting", "policy")
"""Options that are not verl's: how workers make environment and agent, and the checkpoint to begin with."""

_ADVANTAGES = {"group_normalised": "True", "group_centred": "False"}
_NEEDED = {
    "setting": "'package.module:function' of a function that returns (environment, agent), called in verl's workers.",
    "policy": "the folder of the checkpoint to begin with.",
}
_PLAIN = TrainingConfig()
_TAKES = {
    "algorithm": ("grpo",),
    "advantages": tuple(_ADVANTAGES),
    **{
        name: (getattr(_PLAIN, name),)
        for name in ("credit", "filters", "shuffle_rewards", "target", "patience", "agents")
    },
}
"""What verl has words for."""


class VerlEngine:
    """Trains with verl 0.9. Made anew for each run."""

    name = "verl"

    def check(self, job: TrainingJob) -> None:
        """Refuse what cannot work. Raises ConfigError that names the setting."""
        refuse_settings(self.name, job.config, _TAKES)
        import_extra("verl", "the engine verl", PACKAGE)
        for option, why in _NEEDED.items():
            if option not in job.config.options:
                raise ConfigError(f"The engine verl needs options={{{option!r}: ...}}: {why}")

    async def train(self, job: TrainingJob) -> TrainingResult:
        """Write dataset and settings, run verl to its end, and turn its last checkpoint into a policy."""
        self.check(job)
        if not import_extra("torch", "the engine verl", "torch").cuda.is_available():
            prepare(job)
            raise ConfigError(
                f"verl trains on GPUs, and there is none here. Dataset and command are in {job.run_path}: start "
                "verl.sh on a machine with GPUs, or take another train_engine_name, which trains on a CPU too."
            )
        began = time.time()
        prepare(job)
        job.emit(TrainingStarted(self.name, str(job.run_path)))
        await _run(job.run_path / "verl.log", ["-m", "verl.trainer.main_ppo", *overrides(job)])
        step = _last_step(job.checkpoint_path)
        actor = job.checkpoint_path / f"global_step_{step}" / "actor"
        merge = ["--backend", "fsdp", "--local_dir", str(actor), "--target_dir", str(job.policy_path)]
        await _run(job.run_path / "merge.log", ["-m", "verl.model_merger", "merge", *merge])
        return TrainingResult(
            engine=self.name, policy=str(job.policy_path), run_path=str(job.run_path), steps=step,
            seconds=time.time() - began,
        )  # fmt: skip


def prepare(job: TrainingJob) -> Path:
    """Write the dataset, the agent loop's settings and the command `verl.sh` below `job.run_path`; returns it."""
    config, folder = job.config, job.run_path
    learnt = [p for number in range(1, config.steps + 1) for p in problems_of(job.environment, config, number)]
    write_problems(job.environment, folder / "train.parquet", learnt)
    if job.held_out is not None:
        problems = held_out_problems(job.held_out, config.final_tasks)
        write_problems(job.held_out, folder / "test.parquet", problems, split="test")
    loop = {
        "name": AGENT_NAME, "_target_": "aworld.training.verl.agent_loop.RuntimeAgentLoop",
        "setting": config.options["setting"], "retries": config.retries,
        "max_completion_tokens": config.max_completion_tokens,
    }  # fmt: skip
    (folder / "agent_loop.yaml").write_text(json.dumps([loop], indent=1) + "\n")  # JSON is YAML
    lines = " \\\n  ".join(f"'{setting}'" for setting in overrides(job))
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
        "actor_rollout_ref.actor.use_kl_loss": config.kl > 0,
        "actor_rollout_ref.actor.kl_loss_coef": config.kl,
        "actor_rollout_ref.actor.clip_ratio": config.clip,
        "actor_rollout_ref.actor.clip_ratio_low": config.clip,
        "actor_rollout_ref.actor.clip_ratio_high": config.clip_high or config.clip,
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


async def _run(log: Path, arguments: list[str]) -> None:
    """Run Python to its end in this folder, where the modules of the user are. Raises TrainingError when it fails."""
    process = await TrainerProcess.start([sys.executable, *arguments], log, {}, Path.cwd())
    try:
        code = await process.wait()
    finally:
        await process.stop()
    if code:
        raise TrainingError(f"verl ended with code {code}. The end of {log}:\n{process.tail()}")


def _last_step(folder: Path) -> int:
    try:
        return int((folder / "latest_checkpointed_iteration.txt").read_text())
    except (OSError, ValueError):
        raise TrainingError(f"verl left no checkpoint in {folder}; set checkpoint_every, and read verl.log.") from None


def write_dataset(
    environment: Environment, path: str | os.PathLike[str], *, split: Split = "train", n: int | None = None,
    seed: int | None = None,
) -> int:  # fmt: skip
    """Write problems of a split as verl's Parquet; returns how many.

    `n` and `seed` as of `Environment.problems`. Raises ConfigError without pyarrow.
    """
    problems = environment.problems(split, n, seed)
    write_problems(environment, path, problems, split=split)
    return len(problems)


def write_problems(
    environment: Environment, path: str | os.PathLike[str], problems: Sequence[Problem], *, split: Split = "train"
) -> None:
    """Write these problems, a row each, in their order. Raises ConfigError without pyarrow."""
    parquet: Any = import_extra("pyarrow.parquet", "verl's dataset, which is Parquet,", "pyarrow>=18")
    pyarrow: Any = import_extra("pyarrow", "verl's dataset", "pyarrow>=18")
    rows = [_row(environment, problem, number, split) for number, problem in enumerate(problems)]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=_schema(pyarrow)), os.fspath(path))


def problem_of(extra_info: Any) -> Problem:
    """The problem in a row's `extra_info`. Raises ConfigError for a dataset that `write_dataset` did not make."""
    try:
        return msgspec.json.decode(extra_info["problem"], type=Problem)
    except (TypeError, KeyError, msgspec.DecodeError) as error:
        raise ConfigError(f"extra_info has no problem ({error!r}); make the dataset with `write_dataset`.") from None


def _row(environment: Environment, problem: Problem, number: int, split: str) -> dict[str, Any]:
    prompt = [{"role": "user", "content": content_text(problem.input)}]
    if environment.system_prompt:
        prompt.insert(0, {"role": "system", "content": environment.system_prompt})
    truth = problem.answer if isinstance(problem.answer, str) else msgspec.json.encode(problem.answer).decode()
    return {
        "prompt": prompt,
        "data_source": environment.name,
        "ability": "agent",
        "agent_name": AGENT_NAME,
        "reward_model": {"style": "rule", "ground_truth": truth},
        "extra_info": {
            "index": number, "split": split, "id": problem.id, "problem": msgspec.json.encode(problem).decode(),
        },
    }  # fmt: skip


def _schema(pyarrow: Any) -> Any:
    text, whole = pyarrow.string(), pyarrow.int64()
    return pyarrow.schema([
        ("prompt", pyarrow.list_(pyarrow.struct([("role", text), ("content", text)]))),
        ("data_source", text),
        ("ability", text),
        ("agent_name", text),
        ("reward_model", pyarrow.struct([("style", text), ("ground_truth", text)])),
        ("extra_info", pyarrow.struct([("index", whole), ("split", text), ("id", text), ("problem", text)])),
    ])  # fmt: skip
