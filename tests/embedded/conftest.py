"""A tiny policy of random weights, and requests to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from aworld.core.message import Message
from aworld.core.model import ModelRequest, ToolSchema
from aworld.models.embedded.checkpoint import Policy
from aworld.models.embedded.embedded_model import EmbeddedModel

NUMBER = {"type": "integer"}
TOOLS = tuple(
    ToolSchema(name, name, {"type": "object", "properties": {"a": NUMBER, "b": NUMBER}})
    for name in ("add", "subtract", "multiply")
)
"""The tools of the sums, as the packaged policy knows them."""


def asked(*messages: Message | str, tools: tuple[ToolSchema, ...] = TOOLS, **params: Any) -> ModelRequest:
    said = tuple(Message("user", m) if isinstance(m, str) else m for m in messages)
    return ModelRequest(said, tools, params, trajectory_id="run")


@pytest.fixture(scope="session")
def packaged() -> Policy:
    return Policy.open()


@pytest.fixture(scope="session")
def babbling(packaged: Policy) -> Policy:
    """The packaged policy with noise on its weights: it says anything."""
    draw = np.random.default_rng(3)
    noisy = {k: (v + draw.standard_normal(v.shape) * 0.2).astype(np.float32) for k, v in packaged.weights.items()}
    return packaged.with_weights(noisy, "babbling")


@pytest.fixture
def model(packaged: Policy) -> EmbeddedModel:
    return EmbeddedModel(packaged)
