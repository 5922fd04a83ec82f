"""What `swift rlhf` is told: our settings in ms-swift's words, and its dataset."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from aworld.core.exceptions import ConfigError
from aworld.core.message import Text, content_text
from aworld.environments import Environment, Problem
from aworld.training.registry import refuse_settings
from aworld.training.steps import problems_of
from aworld.training.training_config import TrainingConfig

PYTHON = "AWORLD_SWIFT_PYTHON"
"""Names the Python of ms-swift's environment where `options["python"]` does not."""

_SCALES = {"group_normalised": "group", "group_centred": "none"}
_TAKES = {"algorithm": ("grpo",), "advantages": tuple(_SCALES), "credit": ("trajectory_reward",), "agents": (None,)}


class SwiftOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`options` of the settings, for `train_engine_name="swift"`."""

    python: str | None = None
    """The Python executable of the environment where ms-swift is installed; else the variable `AWORLD_SWIFT_PYTHON`,
    else this Python."""
    model: str | None = None
    """The policy: a folder or the name of a model, where the agent's own is not an embedded one."""
    micro_batch: int | None = None
    """Episodes of one forward and backward pass; all of a step where it is not given."""
    arguments: dict[str, Any] = {}
    """Further arguments of `swift rlhf`, by its names without dashes; they override what follows from the settings."""
    environment: dict[str, str] = {}
    """Further environment variables of the process, such as `CUDA_VISIBLE_DEVICES` and `NPROC_PER_NODE`."""
    host: str = "127.0.0.1"
    """Where our side listens. Anything but loopback lets other machines in, which must know the token."""
    port: int = 0
    """0 takes a free one. A fixed one, with the variable `AWORLD_BRIDGE_TOKEN`, is for a `swift rollout` server, which
    has to be told before the trainer starts."""


def swift_options(settings: Mapping[str, Any]) -> SwiftOptions:
    """The options that a caller gave. Raises ConfigError that names the wrong one."""
    try:
        options = msgspec.convert(dict(settings), SwiftOptions)
    except msgspec.ValidationError as error:
        names = ", ".join(SwiftOptions.__struct_fields__)
        raise ConfigError(f"options of the swift engine: {error}. Known are {names}.") from None
    if options.micro_batch is not None and options.micro_batch < 1:
        raise ConfigError(f"options of the swift engine: micro_batch={options.micro_batch} must be at least 1.")
    return options


def check_config(config: TrainingConfig, options: SwiftOptions) -> None:
    """Refuse settings that ms-swift has no word for. Raises ConfigError."""
    refuse_settings("swift", config, _TAKES)
    if set(config.filters) - {"no_variance"}:
        raise ConfigError(f"filters={config.filters!r}: the swift engine takes no_variance, which advantages imply.")
    if config.target is not None or config.patience is not None:
        raise ConfigError("target and patience: a policy of the swift engine is evaluated only before and after.")
    if config.samples < 2:
        raise ConfigError(f"samples={config.samples}: the swift engine takes at least 2: advantages are within groups.")
    total, parts = config.groups * config.samples, config.minibatches
    micro = options.micro_batch or total // parts
    if total % (micro * parts):
        parts_of = f"{total} episodes in minibatches={parts} of micro batches of {micro}"
        raise ConfigError(f"{parts_of}: choose options['micro_batch'] so that it divides {total // parts}.")


def swift_arguments(
    config: TrainingConfig, options: SwiftOptions, *, model: Path | str, folder: Path, embedded: bool
) -> dict[str, Any]:
    """The arguments of `swift rlhf`, as the YAML file holds them. `embedded` policies train in float32 on the CPU."""
    total = config.groups * config.samples
    micro = options.micro_batch or total // config.minibatches
    updates = config.steps * config.epochs * config.minibatches
    arguments: dict[str, Any] = {
        "rlhf_type": "grpo",
        "model": str(model),
        "external_plugins": [str(folder / "swift_plugin.py")],
        "template": "aworld",
        "multi_turn_scheduler": "aworld",
        "reward_funcs": ["aworld"],
        "callbacks": ["aworld"],
        "dataset": [str(folder / "train.jsonl")],
        "split_dataset_ratio": 0,
        "dataset_shuffle": False,
        "train_dataloader_shuffle": False,
        "load_from_cache_file": False,
        "use_vllm": False,
        "tuner_type": "full",
        "num_generations": config.samples,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": total // (micro * config.minibatches),
        "steps_per_generation": total // micro,
        "num_iterations": config.epochs,
        "max_steps": updates,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "constant",
        "warmup_ratio": 0,
        "weight_decay": 0,
        "adam_beta2": 0.999,
        "epsilon": config.clip,
        "epsilon_high": config.clip_high or config.clip,
        "beta": config.kl,
        "max_grad_norm": config.max_gradient_norm or 0,
        "scale_rewards": _SCALES[config.advantages],
        "temperature": config.temperature,
        "top_p": 1.0,
        "top_k": -1,  # the whole distribution: what is learnt from is what was sampled from
        "max_completion_length": config.max_completion_tokens or 512,
        "seed": config.seed,
        "logging_steps": 1,
        "save_steps": updates,
        "save_total_limit": 1,
        "save_only_model": True,
        "check_model": False,  # it would tell a hub what is trained
        "report_to": ["none"],
        "eval_strategy": "no",
        "output_dir": str(folder / "output"),
        "add_version": False,
    }
    if embedded:
        # qwen2: several kinds of model share the architecture, and swift wants to know which.
        arguments |= {"model_type": "qwen2", "torch_dtype": "float32", "bf16": False, "use_cpu": True}
        arguments |= {"gradient_checkpointing": False}
    return arguments | options.arguments


def rows_of(environment: Environment, config: TrainingConfig) -> dict[str, Problem]:
    """The problems of all steps by the number of their row: steps may use the same ids for different problems."""
    steps = (problems_of(environment, config, number) for number in range(1, config.steps + 1))
    return {str(row): problem for row, problem in enumerate(chain.from_iterable(steps))}


def write_prompts(path: Path, rows: Mapping[str, Problem], environment: Environment) -> None:
    """Write the dataset of a GRPO run: the prompt of each problem, and its row as `problem_id`, by which the episode is
    begun.

    Tools and everything that is said later come from the episode itself.
    """
    with path.open("wb") as file:
        for row, problem in rows.items():
            if not all(isinstance(part, str | Text) for part in problem.input):
                raise ConfigError("The swift engine trains on text; a problem holds pictures, sounds or files.")
            messages: list[dict[str, Any]] = [{"role": "user", "content": content_text(problem.input)}]
            if environment.system_prompt:
                messages.insert(0, {"role": "system", "content": environment.system_prompt})
            file.write(msgspec.json.encode({"messages": messages, "problem_id": row}) + b"\n")
