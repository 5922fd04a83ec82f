"""Loss and gradients of a policy: the forward pass of Qwen2 over whole sequences, and the way back.

Works in the precision of the weights: float32 to train, float64 to check it against finite differences. An
`Objective` says what is minimised: a function of the log-probability of each sampled token.

The pass does in float32 what inference does, operation by operation, with the same prepared matrices and the same
order of sums, and so rounds as it does: a policy that is about to learn a comparison turns a rounding of 1e-7 in its
attention into 1e-4 of a log-probability. Where BLAS takes the same kernels for both shapes of attention (AVX-512) the
logits are equal bit for bit; elsewhere that one product differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from aworld.models.embedded.transformer import Matrices, PolicyConfig, head_of, product, rotations, row_sums

Floats: TypeAlias = NDArray[Any]
Parameters: TypeAlias = dict[str, Floats]
Objective: TypeAlias = Callable[[Floats, Floats, Floats], tuple[tuple[Floats, Floats], dict[str, Floats]]]
"""Takes new log-probabilities, those at sampling, and advantages, one a sampled token. Returns the loss of each token
with its slope by the new log-probability, and figures of each token by name."""


def grpo(clip: float = 0.2, clip_high: float | None = None) -> Objective:
    """The clipped policy gradient of PPO with group-relative advantages, each token counting the same, without KL.

    `clip_high` bounds ratios above 1 where it is to be another bound than `clip`.

    Sources: Schulman et al. 2017 (PPO), Shao et al. 2024 (GRPO), Yu et al. 2025 (DAPO: mean over tokens).
    """

    def objective(new: Floats, old: Floats, advantages: Floats) -> tuple[tuple[Floats, Floats], dict[str, Floats]]:
        ratio = np.exp(np.clip(new - old, -20.0, 20.0))
        held = np.clip(ratio, 1 - clip, 1 + (clip_high or clip))
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

    def objective(new: Floats, old: Floats, advantages: Floats) -> tuple[tuple[Floats, Floats], dict[str, Floats]]:
        return (-new * advantages, -advantages), {"entropy": -new}

    return objective


@dataclass(slots=True)
class Batch:
    """Token sequences side by side, padded on the right. All arrays are (sequences, positions)."""

    ids: NDArray[np.int64]
    mask: NDArray[np.bool_]
    """Which tokens were sampled; only they are learnt from. Never the first of a sequence."""
    logprobs: Floats
    """Log-probabilities that the sampled tokens had when they were sampled; 0 elsewhere, and where none are needed."""
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
        logprobs = np.zeros(batch.ids.shape)
        logprobs[batch.mask] = _Pass(config, weights, batch).logprobs
        return logprobs


def one_thread() -> AbstractContextManager[Any]:
    """Keep BLAS to one thread: for matrices this small, more are ten times slower on a busy machine."""
    return cast("Any", _controller()).limit(limits=1, user_api="blas")


@lru_cache(maxsize=1)
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


class _Pass:
    """A forward pass that keeps what the way back needs. Equal sequences of a batch go through it as one."""

    def __init__(self, config: PolicyConfig, weights: Parameters, batch: Batch) -> None:
        self.config, self.weights = config, weights
        self.gradients: Parameters = {}
        different, row_of = np.unique(batch.ids, axis=0, return_inverse=True)
        self.ids = different[:, :-1]  # what stands at the end predicts nothing
        self.kind = weights["lm_head.weight"].dtype
        span = self.ids.shape[1]
        self.layers: list[tuple[Matrices, dict[str, Floats]]] = []
        cos, sin = rotations(config, span)  # those of inference, also in float64: they are part of what the policy is
        self.cos, self.sin = cos.astype(self.kind)[:, None], sin.astype(self.kind)[:, None]
        self.future = np.triu(np.full((span, span), -np.inf, self.kind), 1)
        x = weights["model.embed_tokens.weight"][self.ids.reshape(-1)]
        for number in range(config.num_hidden_layers):
            x = self._layer(f"model.layers.{number}.", x)
        sampled = batch.mask[:, 1:]
        sequence, position = np.nonzero(sampled)
        self.places, self.place_of = np.unique(row_of.reshape(-1)[sequence] * span + position, return_inverse=True)
        self.targets = different[:, 1:].reshape(-1)[self.places]
        self.old, self.advantages = batch.logprobs[:, 1:][sampled], batch.advantages[:, 1:][sampled]
        self.size = x.shape
        self.last, self.last_rate = _normed(x[self.places], config.rms_norm_eps)
        self.temperature = self.kind.type(batch.temperature)
        self.head = head_of(config, weights)
        logits = product(self.last, self.head)[:, : config.vocab_size] / self.temperature
        logits -= logits.max(-1, keepdims=True)
        chosen = logits[np.arange(len(self.places)), self.targets]
        self.shares = np.exp(logits, out=logits)
        sums = self.shares.sum(-1, keepdims=True)
        self.shares /= sums
        self.logprobs: Floats = (chosen - np.log(sums[:, 0])).astype(np.float64)[self.place_of]

    def _layer(self, at: str, x: Floats) -> Floats:
        config, of = self.config, Matrices(self.config, self.weights, at)
        (rows, span), kv, size = self.ids.shape, config.num_key_value_heads, config.head_dim
        normed, rate = _normed(x, config.rms_norm_eps)
        mixed = (product(normed, of.qkv) + of.bias).reshape(rows, span, -1, size)
        turned = self._turn(mixed[:, :, :-kv], 1)
        q, k, v = self._split(turned[:, :, :-kv]), self._split(turned[:, :, -kv:]), self._split(mixed[:, :, -kv:])
        looks = (q @ k.swapaxes(2, 3)).reshape(rows, kv, -1, span, span)
        looks += self.future
        looks -= looks.max(-1, keepdims=True)
        np.exp(looks, out=looks)
        looks = looks.reshape(rows, kv, -1, span)
        sums = row_sums(looks)
        seen: Floats = looks @ v
        seen /= sums
        merged = self._merged(seen, span)
        y = x + product(merged, of.out)
        after, after_rate = _normed(y, config.rms_norm_eps)
        both = product(after, of.gate_up)
        inner = both.shape[1] // 2
        gate = both[:, :inner]
        closed: Floats = np.exp(np.minimum(-gate, 80))
        closed += 1
        passing = gate / closed
        active: Floats = passing * both[:, inner:]
        kept = {
            "normed": normed, "rate": rate, "q": q, "k": k, "v": v, "looks": looks, "sums": sums, "seen": seen,
            "merged": merged, "after": after, "after_rate": after_rate, "both": both, "closed": closed,
            "passing": passing, "active": active,
        }  # fmt: skip
        self.layers.append((of, kept))
        return y + product(active, of.down)

    def backward(self, slope: Floats) -> Parameters:
        """Gradients by every weight, given the slope of the loss by each log-probability."""
        gradients = self.gradients
        slopes = np.bincount(self.place_of, slope, len(self.places))
        scaled = slopes.astype(self.kind)[:, None] / self.temperature
        by_logits = self.shares * -scaled
        by_logits[np.arange(len(self.places)), self.targets] += scaled[:, 0]
        self._folded_back("model.norm.weight", ["lm_head.weight"], by_logits.T @ self.last)
        by_x = np.zeros(self.size, self.kind)
        by_last = by_logits @ self.head[:, : self.config.vocab_size].T
        by_x[self.places] = _normed_back(by_last, self.last, self.last_rate)
        for number in reversed(range(len(self.layers))):
            at, (of, kept) = f"model.layers.{number}.", self.layers[number]
            by_x = self._think_back(at, by_x, of, kept)
            by_x = self._attend_back(at, by_x, of, kept)
        by_embedding = np.zeros_like(self.weights["model.embed_tokens.weight"])
        np.add.at(by_embedding, self.ids.reshape(-1), by_x)
        gradients["model.embed_tokens.weight"] = by_embedding
        return gradients

    def _think_back(self, at: str, by_x: Floats, of: Matrices, kept: dict[str, Floats]) -> Floats:
        self.gradients[f"{at}mlp.down_proj.weight"] = by_x.T @ kept["active"]
        by_active = by_x @ of.down.T
        both, closed, passing = kept["both"], kept["closed"], kept["passing"]
        inner = both.shape[1] // 2
        gate, up = both[:, :inner], both[:, inner:]
        by_both = np.empty_like(both)
        np.multiply(by_active, passing, out=by_both[:, inner:])
        by_active *= up
        np.multiply(by_active, (1 + gate - passing) / closed, out=by_both[:, :inner])
        names = [f"{at}mlp.{name}_proj.weight" for name in ("gate", "up")]
        self._folded_back(f"{at}post_attention_layernorm.weight", names, by_both.T @ kept["after"])
        return by_x + _normed_back(by_both @ of.gate_up.T, kept["after"], kept["after_rate"])

    def _attend_back(self, at: str, by_x: Floats, of: Matrices, kept: dict[str, Floats]) -> Floats:
        (rows, span), size = self.ids.shape, self.config.head_dim
        heads, kv = self.config.num_attention_heads, self.config.num_key_value_heads
        self.gradients[f"{at}self_attn.o_proj.weight"] = by_x.T @ kept["merged"]
        looks = kept["looks"]
        by_seen = self._split((by_x @ of.out.T).reshape(rows, span, -1, size))
        by_seen /= kept["sums"]
        by_scores = by_seen @ kept["v"].swapaxes(2, 3)
        by_scores -= (by_seen * kept["seen"]).sum(-1, keepdims=True)
        by_scores *= looks
        by_mixed = np.empty((rows, span, heads + 2 * kv, size), self.kind)
        by_mixed[:, :, :heads] = self._merged(by_scores @ kept["k"], span).reshape(rows, span, -1, size)
        by_mixed[:, :, heads : heads + kv] = (by_scores.swapaxes(2, 3) @ kept["q"]).transpose(0, 2, 1, 3)
        by_mixed[:, :, : heads + kv] = self._turn(by_mixed[:, :, : heads + kv], -1)
        by_mixed[:, :, heads + kv :] = (looks.swapaxes(2, 3) @ by_seen).transpose(0, 2, 1, 3)
        flat = by_mixed.reshape(rows * span, -1)
        slopes, bias = flat.T @ kept["normed"], flat.sum(0)
        slopes[: heads * size] *= of.scale
        bias[: heads * size] *= of.scale
        names = [f"{at}self_attn.{name}_proj" for name in ("q", "k", "v")]
        self._folded_back(f"{at}input_layernorm.weight", [f"{name}.weight" for name in names], slopes)
        parts = np.split(bias, [heads * size, (heads + kv) * size])
        self.gradients.update((f"{name}.bias", part) for name, part in zip(names, parts, strict=True))
        return by_x + _normed_back(flat @ of.qkv.T, kept["normed"], kept["rate"])

    def _folded_back(self, norm: str, names: Sequence[str], slopes: Floats) -> None:
        """Gradients of matrices and of the norm before them, given those of the products of both."""
        weights, gradients, done = self.weights, self.gradients, 0
        gradients[norm] = np.zeros_like(weights[norm])
        for name in names:
            part = slopes[done : done + len(weights[name])]
            done += len(part)
            gradients[name] = part * weights[norm]
            gradients[norm] += (part * weights[name]).sum(0)

    def _turn(self, x: Floats, way: int) -> Floats:
        """Rotate (rows, positions, heads, size) by the positions; `way` -1 rotates back."""
        half = x.shape[-1] // 2
        first, second, sin = x[..., :half], x[..., half:], self.sin * way
        return np.concatenate([first * self.cos - second * sin, second * self.cos + first * sin], -1)

    def _split(self, x: Floats) -> Floats:
        """(rows, positions, heads, size) to (rows, kv heads, group · positions, size): what shares keys and values."""
        rows, span, heads, size = x.shape
        kv = self.config.num_key_value_heads
        apart = x.reshape(rows, span, kv, heads // kv, size).transpose(0, 2, 3, 1, 4)
        return np.ascontiguousarray(apart.reshape(rows, kv, -1, size))

    def _merged(self, x: Floats, span: int) -> Floats:
        """Heads side by side again: (rows · positions, hidden)."""
        rows, kv, _, size = x.shape
        return x.reshape(rows, kv, -1, span, size).transpose(0, 3, 1, 2, 4).reshape(rows * span, -1)


def _normed(x: Floats, epsilon: float) -> tuple[Floats, Floats]:
    rate = 1 / np.sqrt(np.einsum("ij,ij->i", x, x) / x.shape[1] + x.dtype.type(epsilon))[:, None]
    return x * rate, rate


def _normed_back(by_out: Floats, normed: Floats, rate: Floats) -> Floats:
    return (by_out - normed * (np.einsum("ij,ij->i", by_out, normed) / normed.shape[1])[:, None]) * rate
