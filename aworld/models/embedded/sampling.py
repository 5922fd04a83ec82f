"""Choosing the next token, and the log-probability with which it was chosen."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aworld.core.exceptions import ModelError
from aworld.models.embedded.transformer import Array, Ids

DEFAULT_MAX_TOKENS = 256
"""Tokens of an answer when nobody says more: ten times the longest that the packaged policy needs."""


@dataclass(slots=True)
class Sampling:
    """How one request is sampled. `temperature` 0 is greedy."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = DEFAULT_MAX_TOKENS
    seed: int | None = None
    stop: tuple[str, ...] = ()

    @classmethod
    def of(cls, params: dict[str, Any]) -> Sampling:
        """From a request's parameters; those of other providers are passed over. Raises `ModelError`."""
        limit = params.get("max_completion_tokens", params.get("max_tokens"))
        stop: Any = params.get("stop") or ()
        try:
            found = cls(
                temperature=float(_given(params.get("temperature"), 1.0)),
                top_p=float(_given(params.get("top_p"), 1.0)),
                max_tokens=int(_given(limit, DEFAULT_MAX_TOKENS)),
                seed=None if params.get("seed") is None else int(params["seed"]),
                stop=(stop,) if isinstance(stop, str) else tuple(map(str, stop)),
            )
        except (TypeError, ValueError) as error:
            raise ModelError(f"A sampling parameter cannot be read: {error}") from None
        if not (0.0 <= found.temperature < float("inf") and 0.0 < found.top_p <= 1.0 and found.max_tokens >= 1):
            raise ModelError("temperature must be 0 or more, top_p above 0 and at most 1, and max_tokens at least 1.")
        return found

    def draws(self) -> random.Random:
        """The random numbers of this request: one a token, the same for the same seed."""
        return random.Random(self.seed)


def choose(logits: Array, temperatures: Array, top_ps: Array, draws: NDArray[np.float64]) -> tuple[Ids, Array]:
    """One token a row of `logits` (N, vocabulary), and its log-probability.

    The log-probability is of the distribution that was sampled from, `temperature` and `top_p` included; of a greedy
    choice (temperature 0) it is of the unmodified distribution. `draws` are uniform in [0, 1). Raises `ModelError` for weights that are not finite.
    """
    greedy = temperatures == 0.0
    scaled = logits / np.where(greedy, np.float32(1.0), temperatures)[:, None]
    scaled -= scaled.max(-1, keepdims=True)
    weights: NDArray[np.float64] = np.exp(scaled.astype(np.float64))  # doubles: a sum of 400 must not lose the tail
    for row in np.flatnonzero((top_ps < 1.0) & ~greedy):
        _cut(weights[row], float(top_ps[row]))
    sums = np.cumsum(weights, axis=-1)
    total = sums[:, -1]
    if not np.isfinite(total).all():
        raise ModelError(
            "The policy's weights give no finite probabilities; training has diverged, or the file is bad."
        )
    chosen = (sums <= (draws * total)[:, None]).sum(-1)
    chosen = np.where(greedy, logits.argmax(-1), chosen)
    picked = weights[np.arange(len(chosen)), chosen]
    return chosen, (np.log(picked) - np.log(total)).astype(np.float32)


def _cut(weights: NDArray[np.float64], top_p: float) -> None:
    """Set to zero all but the likeliest tokens that together have at least `top_p`."""
    order = np.argsort(-weights, kind="stable")
    sums = np.cumsum(weights[order])
    kept = int((sums < top_p * sums[-1]).sum()) + 1
    weights[order[kept:]] = 0.0


def _given(value: Any, otherwise: Any) -> Any:
    return otherwise if value is None else value
