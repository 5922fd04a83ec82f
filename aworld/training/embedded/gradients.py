"""Loss and gradients of a policy: the forward pass of Qwen2 over whole sequences, and the way back.

Works in the precision of the weights: float32 to train, float64 to check it against finite differences. `objectives`
says what is minimised: a function of the log-probability of each sampled token.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from aworld.models.embedded.config import PolicyConfig
from aworld.training.embedded.objectives import Objective, grpo

Floats: TypeAlias = NDArray[Any]
Parameters: TypeAlias = dict[str, Floats]


@dataclass(slots=True)
class Batch:
    """Token sequences side by side, padded on the right. All arrays are (sequences, positions)."""

    ids: NDArray[np.int64]
    mask: NDArray[np.bool_]
    """Which tokens were sampled; only they are learnt from. Never the first of a sequence."""
    logprobs: Floats
    """Log-probabilities that the sampled tokens had when they were sampled; 0 elsewhere, and where nothing needs them."""
    advantages: Floats
    """How much better than expected what followed was, a token."""
    temperature: float = 1.0
    """The temperature at which the tokens were sampled."""

    @classmethod
    def of(
        cls,
        ids: Sequence[Sequence[int]],
        mask: Sequence[Sequence[int]],
        logprobs: Sequence[Sequence[float | None]] | None = None,
        advantages: Sequence[float | Sequence[float]] | None = None,
        *,
        temperature: float = 1.0,
    ) -> Batch:
        """From sequences of any length; an advantage may be one number for all tokens of a sequence (default 1)."""
        shape = (len(ids), max(map(len, ids)))
        batch = cls(np.zeros(shape, np.int64), np.zeros(shape, np.bool_), np.zeros(shape), np.ones(shape), temperature)
        for row, one in enumerate(ids):
            batch.ids[row, : len(one)] = one
            batch.mask[row, : len(one)] = mask[row]
            if logprobs is not None:
                batch.logprobs[row, : len(one)] = [value or 0.0 for value in logprobs[row]]
            if advantages is not None:
                batch.advantages[row, : len(one)] = advantages[row]
        return batch

    @property
    def tokens(self) -> int:
        """How many tokens were sampled."""
        return int(self.mask.sum())


def loss_and_gradients(
    config: PolicyConfig,
    weights: Parameters,
    batch: Batch,
    objective: Objective | None = None,
    *,
    tokens: int | None = None,
) -> tuple[float, Parameters, dict[str, float]]:
    """The loss of a batch, its gradient by each weight, and figures of the objective (means over tokens).

    The loss is the mean over sampled tokens. `tokens` is the number to divide by where the batch is a part of a step,
    so that the parts of a step add up; the figures are divided alike. `objective` is GRPO when not given.
    """
    with one_thread():
        passed = _Pass(config, weights, batch)
        wanted, figures = (objective or grpo())(passed.logprobs, passed.old, passed.advantages)
        count = max(1, batch.tokens if tokens is None else tokens)
        slope = wanted[1] / count
        statistics = {name: float(value.sum()) / count for name, value in figures.items()}
        return float(wanted[0].sum()) / count, passed.backward(slope), statistics


def log_probabilities(config: PolicyConfig, weights: Parameters, batch: Batch) -> Floats:
    """Log-probabilities (sequences, positions) that the weights give the sampled tokens; 0 elsewhere."""
    with one_thread():
        found = np.zeros(batch.ids.shape)
        found[batch.mask] = _Pass(config, weights, batch).logprobs
        return found


def one_thread() -> AbstractContextManager[Any]:
    """Keep BLAS to one thread: for matrices this small, more are ten times slower on a busy machine."""
    return _controller().limit(limits=1, user_api="blas")


@lru_cache(maxsize=1)
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


class _Pass:
    """A forward pass that keeps what the way back needs."""

    def __init__(self, config: PolicyConfig, weights: Parameters, batch: Batch) -> None:
        self.config, self.weights = config, weights
        self.gradients: Parameters = {}
        self.ids = batch.ids[:, :-1]  # what stands at the end predicts nothing
        self.kind = weights["lm_head.weight"].dtype
        rows, span = self.ids.shape
        self.layers: list[dict[str, Floats]] = []
        half = config.head_dim // 2
        angles = np.arange(span)[:, None] / config.rope_theta ** (np.arange(half) / half)
        self.cos = np.cos(angles).astype(self.kind)[:, None]
        self.sin = np.sin(angles).astype(self.kind)[:, None]
        self.future = np.triu(np.full((span, span), -np.inf, self.kind), 1)
        x = weights["model.embed_tokens.weight"][self.ids.reshape(-1)]
        for number in range(config.num_hidden_layers):
            x = self._layer(f"model.layers.{number}.", x, rows, span)
        self.places = np.flatnonzero(batch.mask[:, 1:].reshape(-1))
        self.targets = batch.ids[:, 1:].reshape(-1)[self.places]
        self.old = batch.logprobs[:, 1:].reshape(-1)[self.places]
        self.advantages = batch.advantages[:, 1:].reshape(-1)[self.places]
        self.size = x.shape
        self.last, self.last_rate = _normed(x[self.places], config.rms_norm_eps)
        self.temperature = self.kind.type(batch.temperature)
        logits = (self.last * weights["model.norm.weight"]) @ weights["lm_head.weight"].T / self.temperature
        logits -= logits.max(-1, keepdims=True)
        chosen = logits[np.arange(len(self.places)), self.targets]
        self.shares = np.exp(logits, out=logits)
        sums = self.shares.sum(-1, keepdims=True)
        self.shares /= sums
        self.logprobs: Floats = (chosen - np.log(sums[:, 0])).astype(np.float64)

    def _layer(self, at: str, x: Floats, rows: int, span: int) -> Floats:
        config, w = self.config, self.weights
        heads, kv, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        normed, rate = _normed(x, config.rms_norm_eps)
        inside = normed * w[f"{at}input_layernorm.weight"]
        q, k, v = (
            (inside @ w[f"{at}self_attn.{name}_proj.weight"].T + w[f"{at}self_attn.{name}_proj.bias"]).reshape(
                rows, span, -1, size
            )
            for name in ("q", "k", "v")
        )
        q, k = self._turn(q, 1) * self.kind.type(size**-0.5), self._turn(k, 1)
        # (rows, kv heads, group · positions, size): the heads of a group share keys and values.
        q = q.reshape(rows, span, kv, heads // kv, size).transpose(0, 2, 3, 1, 4).reshape(rows, kv, -1, size)
        k, v = np.ascontiguousarray(k.transpose(0, 2, 1, 3)), np.ascontiguousarray(v.transpose(0, 2, 1, 3))
        looks = (q @ k.swapaxes(2, 3)).reshape(rows, kv, -1, span, span)
        looks += self.future
        looks -= looks.max(-1, keepdims=True)
        np.exp(looks, out=looks)
        looks /= looks.sum(-1, keepdims=True)
        looks = looks.reshape(rows, kv, -1, span)
        seen = self._merged(looks @ v, span)
        y = x + seen @ w[f"{at}self_attn.o_proj.weight"].T
        after, after_rate = _normed(y, config.rms_norm_eps)
        thought = after * w[f"{at}post_attention_layernorm.weight"]
        gate, up = thought @ w[f"{at}mlp.gate_proj.weight"].T, thought @ w[f"{at}mlp.up_proj.weight"].T
        open_ = 1 / (1 + np.exp(np.minimum(-gate, 80)))
        product = gate * open_ * up
        self.layers.append(
            {"normed": normed, "rate": rate, "inside": inside, "q": q, "k": k, "v": v, "looks": looks, "seen": seen,
             "after": after, "after_rate": after_rate, "thought": thought, "gate": gate, "open": open_, "up": up,
             "product": product}
        )  # fmt: skip
        return y + product @ w[f"{at}mlp.down_proj.weight"].T

    def backward(self, slope: Floats) -> Parameters:
        """Gradients by every weight, given the slope of the loss by each log-probability."""
        w, found = self.weights, self.gradients
        scaled = slope.astype(self.kind)[:, None] / self.temperature
        by_logits = self.shares * -scaled
        by_logits[np.arange(len(self.places)), self.targets] += scaled[:, 0]
        found["lm_head.weight"] = by_logits.T @ (self.last * w["model.norm.weight"])
        by_normed = by_logits @ w["lm_head.weight"]
        found["model.norm.weight"] = (by_normed * self.last).sum(0)
        by_x = np.zeros(self.size, self.kind)
        by_x[self.places] = _normed_back(by_normed * w["model.norm.weight"], self.last, self.last_rate)
        for number in reversed(range(len(self.layers))):
            by_x = self._layer_back(f"model.layers.{number}.", by_x, self.layers[number])
        by_embedding = np.zeros_like(w["model.embed_tokens.weight"])
        np.add.at(by_embedding, self.ids.reshape(-1), by_x)
        found["model.embed_tokens.weight"] = by_embedding
        return found

    def _layer_back(self, at: str, by_x: Floats, kept: dict[str, Floats]) -> Floats:
        w = self.weights
        rows, span = self.ids.shape
        by_product = self._linear_back(f"{at}mlp.down_proj.weight", by_x, kept["product"])
        gate, open_ = kept["gate"], kept["open"]
        by_up = by_product * gate * open_
        by_gate = by_product * kept["up"] * open_ * (1 + gate * (1 - open_))
        by_thought = self._linear_back(f"{at}mlp.gate_proj.weight", by_gate, kept["thought"])
        by_thought += self._linear_back(f"{at}mlp.up_proj.weight", by_up, kept["thought"])
        by_x = by_x + self._norm_back(
            f"{at}post_attention_layernorm.weight", by_thought, kept["after"], kept["after_rate"]
        )
        by_seen = self._linear_back(f"{at}self_attn.o_proj.weight", by_x, kept["seen"])
        kv, size = kept["k"].shape[1], self.config.head_dim
        by_seen = by_seen.reshape(rows, span, kv, -1, size).transpose(0, 2, 3, 1, 4).reshape(rows, kv, -1, size)
        looks = kept["looks"]
        by_v = looks.swapaxes(2, 3) @ by_seen
        by_looks = by_seen @ kept["v"].swapaxes(2, 3)
        by_scores = looks * (by_looks - (by_looks * looks).sum(-1, keepdims=True))
        by_q = self._merged(by_scores @ kept["k"], span).reshape(rows, span, -1, size)
        by_k = (by_scores.swapaxes(2, 3) @ kept["q"]).transpose(0, 2, 1, 3)
        by_q, by_k = self._turn(by_q, -1) * self.kind.type(size**-0.5), self._turn(by_k, -1)
        by_inside = np.zeros_like(by_x)
        for name, by in (("q", by_q), ("k", by_k), ("v", by_v.transpose(0, 2, 1, 3))):
            flat = np.ascontiguousarray(by).reshape(rows * span, -1)
            self.gradients[f"{at}self_attn.{name}_proj.bias"] = flat.sum(0)
            by_inside += self._linear_back(f"{at}self_attn.{name}_proj.weight", flat, kept["inside"])
        return by_x + self._norm_back(f"{at}input_layernorm.weight", by_inside, kept["normed"], kept["rate"])

    def _linear_back(self, name: str, by_out: Floats, given: Floats) -> Floats:
        self.gradients[name] = by_out.T @ given
        return by_out @ self.weights[name]

    def _norm_back(self, name: str, by_out: Floats, normed: Floats, rate: Floats) -> Floats:
        self.gradients[name] = (by_out * normed).sum(0)
        return _normed_back(by_out * self.weights[name], normed, rate)

    def _turn(self, x: Floats, way: int) -> Floats:
        """Rotate (rows, positions, heads, size) by the positions; `way` -1 rotates back."""
        half = x.shape[-1] // 2
        first, second, sin = x[..., :half], x[..., half:], self.sin * way
        return np.concatenate([first * self.cos - second * sin, second * self.cos + first * sin], -1)

    def _merged(self, x: Floats, span: int) -> Floats:
        """Heads side by side again: (rows · positions, hidden)."""
        rows, kv, _, size = x.shape
        return x.reshape(rows, kv, -1, span, size).transpose(0, 3, 1, 2, 4).reshape(rows * span, -1)


def _normed(x: Floats, epsilon: float) -> tuple[Floats, Floats]:
    rate = 1 / np.sqrt(np.einsum("ij,ij->i", x, x) / x.shape[1] + x.dtype.type(epsilon))[:, None]
    return x * rate, rate


def _normed_back(by_out: Floats, normed: Floats, rate: Floats) -> Floats:
    return (by_out - normed * (np.einsum("ij,ij->i", by_out, normed) / normed.shape[1])[:, None]) * rate
