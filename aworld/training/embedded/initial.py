"""Weights before any training."""

from __future__ import annotations

import numpy as np

from aworld.models.embedded.policy_config import PolicyConfig
from aworld.models.embedded.transformer import Weights


def initial_weights(config: PolicyConfig, seed: int = 0) -> Weights:
    """Random weights: normal with deviation 0.02, matrices by their input size, norms one, biases zero."""
    draw = np.random.default_rng(seed)
    weights: Weights = {}
    for name, shape in config.shapes().items():
        if len(shape) == 1:
            weights[name] = np.full(shape, 1.0 if "norm" in name else 0.0, np.float32)
        else:
            spread = 0.02 if "embed" in name or "lm_head" in name else (1.0 / shape[1]) ** 0.5 * 0.5
            weights[name] = (draw.standard_normal(shape) * spread).astype(np.float32)
    return weights
