"""Settings of a training run, the same for every engine; what only one engine knows goes into `options`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from pydantic import Field, ValidationInfo, field_validator

from aworld.config.conf import Settings
from aworld.core.checks import one_of
from aworld.core.exceptions import ConfigError
from aworld.training.credit import ADVANTAGES, CREDITS
from aworld.training.filters import FILTERS


class TrainingConfig(Settings):
    """How a policy is trained and how it is measured. The defaults are those of the figures in `benchmarks/`."""

    algorithm: Literal["grpo", "sft"] = "grpo"
    """`grpo`: policy gradient on advantages within groups; `sft`: the successes of the policy's own episodes, imitated.
    What an engine does not know, it refuses."""
    steps: int = Field(default=64, ge=0)
    """Training steps: each is rollouts of the current policy, then updates on them. 0 only evaluates."""
    groups: int = Field(default=24, ge=1)
    """Problems a step."""
    samples: int = Field(default=8, ge=1)
    """Episodes of each problem: the size of a group."""
    learning_rate: float = Field(default=3e-4, gt=0)
    """Step size of Adam, constant after the first ten steps. With 16 groups at 5e-4 the packaged policy learns twice as
    fast; but one run in five then forgets one of three tools while it learns the others."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the samples of a step."""
    minibatches: int = Field(default=1, ge=1)
    """Updates of each pass; the samples are dealt out at random."""
    clip: float = Field(default=0.2, gt=0)
    """How far the probability ratio of a token may move from 1 before it stops counting (PPO's epsilon). With one
    update a step (`epochs` and `minibatches` of 1) the ratio is 1, and this does nothing."""
    clip_high: float | None = Field(default=None, gt=0)
    """The same for a ratio above 1, where it is to be another ("clip-higher" of DAPO); None for `clip`."""
    kl: float = Field(default=0.0, ge=0)
    """Weight of the divergence from the first policy (KL, in nats a token), which is taken off the advantages: it keeps
    a policy from giving up acts that are not right yet. It costs another forward pass of each sample."""
    max_gradient_norm: float | None = Field(default=1.0, gt=0)
    """Longer gradients are scaled down to this norm; None leaves them."""
    advantages: str = "group_normalised"
    """Name in `aworld.training.credit.ADVANTAGES`: `group_normalised` (by the standard deviation of the group),
    `group_centred` (not divided), `raw` (rewards as they are)."""
    credit: str = "trajectory_reward"
    """Name in `aworld.training.credit.CREDITS`, of what a step is worth: `trajectory_reward`, `step_rewards` (with what
    follows it, discounted), `agent_reward` (what its own agent earned)."""
    discount: float = Field(default=1.0, ge=0, le=1)
    """Weight of a step's reward for each step earlier; for the credits that discount."""
    filters: tuple[str, ...] = ("no_variance",)
    """Names in `aworld.training.filters.FILTERS`, applied after those that always are; each reports what it dropped."""
    agents: tuple[str, ...] | None = None
    """Agents whose tokens are trained on, by name; None for all that the trained policy spoke for."""
    temperature: float = Field(default=1.0, gt=0)
    """Of the rollouts, and of sampled evaluation."""
    max_completion_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of one reply in rollouts; None leaves it to the agent's model settings."""
    seed: int = 0
    """Decides problems, sampling and the order of samples: the same seed gives the same run."""
    max_concurrency: int = Field(default=256, ge=1)
    """Episodes in flight at once; the embedded policy answers them side by side."""
    retries: int = Field(default=2, ge=0)
    """How often an episode is run again when its surroundings failed, not the policy."""
    logprob_tolerance: float | None = Field(default=1e-3, gt=0)
    """Largest difference, in nats, between the log-probability of a token as it was sampled and as the trainer computes
    it; beyond it training stops with an error. None only reports it. The engine 'embedded' rounds as its inference does
    and stays within some 1e-6, or 5e-5 on a processor without AVX-512; the float32 of another trainer may be off by
    1e-4 where the policy is about to learn a comparison; other weights are off by 1e-2."""
    shuffle_rewards: bool = False
    """The control: rewards are dealt out at random among the episodes of a step. Nothing may be learnt from them."""

    evaluate_every: int = Field(default=10, ge=0)
    """Steps between evaluations on held-out problems; 0 for only before and after."""
    evaluation_tasks: int = Field(default=100, ge=1)
    """Held-out problems of an evaluation during training."""
    final_tasks: int = Field(default=400, ge=1)
    """Held-out problems before and after training, the same ones; fewer where a finite test set has fewer."""
    evaluation_modes: tuple[Literal["greedy", "sampled"], ...] = ("greedy", "sampled")
    """`greedy`: the likeliest token each time; `sampled`: at `temperature`."""
    target: float | None = Field(default=None, gt=0, le=1)
    """Stop when the success on held-out problems, of the first of `evaluation_modes`, reaches this share."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after so many evaluations in a row without a better one."""

    checkpoint_every: int = Field(default=10, ge=0)
    """Steps between checkpoints, from which a killed run goes on; 0 for only the last."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints that are kept."""
    options: dict[str, Any] = Field(default_factory=dict)
    """What only the engine knows, by the engine's own names."""

    @field_validator("evaluation_modes")
    @classmethod
    def _at_least_one(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("name at least one of greedy and sampled")
        return value

    @field_validator("credit", "advantages", "filters")
    @classmethod
    def _named(cls, value: Any, info: ValidationInfo) -> Any:
        names: dict[str | None, Iterable[str]] = {"credit": CREDITS, "advantages": ADVANTAGES, "filters": FILTERS}
        for name in (value,) if isinstance(value, str) else value:
            one_of(f"config.{info.field_name}", name, names[info.field_name])
        return value


def training_config(source: object) -> TrainingConfig:
    """The settings that a caller gave: a `TrainingConfig`, a mapping, the path of a YAML file, or None for defaults.

    Raises ConfigError that names the setting.
    """
    if isinstance(source, TrainingConfig):
        return source
    settings: Any = _read(Path(source)) if isinstance(source, str | Path) else {} if source is None else source
    if not isinstance(settings, Mapping):
        takes = "a TrainingConfig, a mapping of its settings such as `steps: 50`, or the path of a YAML file of such"
        raise ConfigError(f"config takes {takes}; got {source!r:.100}.")
    return TrainingConfig(**cast("Mapping[str, Any]", settings))


def _read(path: Path) -> object:
    try:
        settings: object = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"config={str(path)!r} cannot be read as YAML: {error}.") from None
    return {} if settings is None else settings
