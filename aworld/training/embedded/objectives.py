"""What training minimises, as a function of the log-probability of each sampled token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Values: TypeAlias = NDArray[Any]
Objective: TypeAlias = Callable[[Values, Values, Values], tuple[tuple[Values, Values], dict[str, Values]]]
"""Takes new log-probabilities, those at sampling, and advantages, one a sampled token. Returns the loss of each token
with its slope by the new log-probability, and figures of each token by name."""


def grpo(clip: float = 0.2) -> Objective:
    """The clipped policy gradient of PPO with group-relative advantages, each token counting the same, without KL.

    Sources: Schulman et al. 2017 (PPO), Shao et al. 2024 (GRPO), Yu et al. 2025 (DAPO: mean over tokens).
    """

    def objective(new: Values, old: Values, advantages: Values) -> tuple[tuple[Values, Values], dict[str, Values]]:
        ratio = np.exp(np.clip(new - old, -20.0, 20.0))
        held = np.clip(ratio, 1 - clip, 1 + clip)
        free = ratio * advantages <= held * advantages  # the smaller of both counts
        loss = -np.where(free, ratio, held) * advantages
        slope = -np.where(free, ratio * advantages, 0.0)
        figures = {
            "clipped": (~free).astype(np.float64),
            "drift": np.abs(new - old),
            "kl": ratio - 1 - (new - old),
            "entropy": -new,
        }
        return (loss, slope), figures

    return objective


def imitation() -> Objective:
    """Maximum likelihood, each token weighted by its advantage (1: supervised fine-tuning)."""

    def objective(new: Values, old: Values, advantages: Values) -> tuple[tuple[Values, Values], dict[str, Values]]:
        return (-new * advantages, -advantages), {"entropy": -new}

    return objective
