"""The forward pass of Qwen2 in NumPy, with a cache of keys and values.

What comes out for a sequence does not depend, bit for bit, on what is computed beside it, nor on whether its beginning
was read at once, in pieces, or token by token. That holds because every sum has one order: matrices are multiplied in
blocks of a fixed number of rows (BLAS chooses its kernel by shape, and kernels sum in different orders), the sums of
the softmax go over blocks of a fixed width, and padding adds exact zeros. Blocks this small are also faster than whole
matrices of these sizes (21 against 45 microseconds for 128×64 by 64×160), and too small for BLAS to use threads, which
would be ten times slower under load.

Weights are in the layout of `transformers` outside, and prepared once here: transposed, norms folded into the matrices
behind them, query, key and value fused, gate and up fused.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from aworld.core.exceptions import ConfigError

Array: TypeAlias = NDArray[np.float32]
Ids: TypeAlias = NDArray[np.int64]
Weights: TypeAlias = dict[str, Array]
Prefix: TypeAlias = tuple[int, ...]
Size: TypeAlias = Annotated[int, Meta(ge=1, le=2**24)]

ARCHITECTURE = "Qwen2ForCausalLM"
_COMPUTED = {"hidden_act": "silu", "tie_word_embeddings": False, "use_sliding_window": False, "rope_type": "default"}
ROWS = 8
"""Rows of a block of a matrix product."""
WIDTH = 32
"""Positions of a block of the softmax; caches hold a multiple of it."""


class PolicyConfig(Struct, frozen=True, kw_only=True):
    """Sizes and constants, under the names of the `transformers` configuration of Qwen2."""

    vocab_size: Size
    hidden_size: Size = 64
    intermediate_size: Size = 160
    num_hidden_layers: Size = 3
    num_attention_heads: Size = 2
    num_key_value_heads: Size = 1
    max_position_embeddings: Size = 1024
    rope_theta: Annotated[float, Meta(gt=0)] = 10000.0
    rms_norm_eps: Annotated[float, Meta(ge=0)] = 1e-6
    eos_token_id: int

    @property
    def head_dim(self) -> int:
        """Size of one attention head."""
        return self.hidden_size // self.num_attention_heads

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every weight, in the layout of `transformers` (output features first)."""
        hidden, inner = self.hidden_size, self.intermediate_size
        keys = self.num_key_value_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, hidden)}
        for layer in range(self.num_hidden_layers):
            at = f"model.layers.{layer}."
            shapes |= {
                f"{at}input_layernorm.weight": (hidden,),
                f"{at}self_attn.q_proj.weight": (hidden, hidden),
                f"{at}self_attn.q_proj.bias": (hidden,),
                f"{at}self_attn.k_proj.weight": (keys, hidden),
                f"{at}self_attn.k_proj.bias": (keys,),
                f"{at}self_attn.v_proj.weight": (keys, hidden),
                f"{at}self_attn.v_proj.bias": (keys,),
                f"{at}self_attn.o_proj.weight": (hidden, hidden),
                f"{at}post_attention_layernorm.weight": (hidden,),
                f"{at}mlp.gate_proj.weight": (inner, hidden),
                f"{at}mlp.up_proj.weight": (inner, hidden),
                f"{at}mlp.down_proj.weight": (hidden, inner),
            }
        shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (self.vocab_size, hidden)}
        return shapes

    def to_json(self) -> dict[str, Any]:
        """What `config.json` holds."""
        return {
            "architectures": [ARCHITECTURE],
            "model_type": "qwen2",
            **msgspec.structs.asdict(self),
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "hidden_act": "silu",
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "tie_word_embeddings": False,
            "use_sliding_window": False,
            "torch_dtype": "float32",
        }

    @classmethod
    def from_json(cls, data: dict[str, Any], source: Path | str = "config.json") -> PolicyConfig:
        """Read what `config.json` holds. Raises `ConfigError` for anything that is computed differently here."""
        architectures = data.get("architectures") or [data.get("model_type")]
        if architectures != [ARCHITECTURE]:
            raise ConfigError(
                f"{source}: the embedded policy computes {ARCHITECTURE} only; this is {architectures[0]}."
            )
        rope: dict[str, Any] = data.get("rope_parameters") or data.get("rope_scaling") or {}
        said = {**data, "rope_type": rope.get("rope_type", rope.get("type", "default"))}
        for name, value in _COMPUTED.items():
            if said.get(name, value) != value:
                raise ConfigError(f"{source}: {name} must be {value!r} for the embedded policy; it is {said[name]!r}.")
        data = {"rope_theta": rope.get("rope_theta", 10000.0), **data}
        if isinstance(data.get("eos_token_id"), list):
            data["eos_token_id"] = data["eos_token_id"][0]
        try:
            config = msgspec.convert(data, cls, strict=False)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{source} does not describe a policy: {error}") from None
        if config.hidden_size % config.num_attention_heads or config.num_attention_heads % config.num_key_value_heads:
            raise ConfigError(f"{source}: heads must divide hidden_size, and num_key_value_heads the heads.")
        if data.get("head_dim", config.head_dim) != config.head_dim:
            raise ConfigError(f"{source}: head_dim must be hidden_size / num_attention_heads, {config.head_dim}.")
        return config


class Cache:
    """Keys and values of `rows` sequences, up to `length` positions each (a multiple of `WIDTH`)."""

    __slots__ = ("keys", "length", "rows", "values")

    def __init__(self, config: PolicyConfig, rows: int, length: int) -> None:
        self.rows, self.length = rows, padded(length, WIDTH)
        shape = (config.num_hidden_layers, rows, config.num_key_value_heads)
        self.keys: Array = np.zeros((*shape, config.head_dim, self.length), np.float32)  # as the product wants them
        self.values: Array = np.zeros((*shape, self.length, config.head_dim), np.float32)

    def read(self, row: int, length: int) -> Past:
        """A copy of the first `length` positions of a row."""
        return Past(self.keys[:, row, :, :, :length].copy(), self.values[:, row, :, :length].copy())

    def write(self, row: int, past: Past) -> None:
        """Put a copied beginning into a row."""
        self.keys[:, row, :, :, : past.length] = past.keys
        self.values[:, row, :, : past.length] = past.values

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a row over another."""
        self.keys[:, target, :, :, :length] = self.keys[:, source, :, :, :length]
        self.values[:, target, :, :length] = self.values[:, source, :, :length]

    def grown(self, config: PolicyConfig, rows: int, length: int) -> Cache:
        """The same in a larger cache."""
        larger = Cache(config, max(rows, self.rows), max(length, self.length))
        larger.keys[:, : self.rows, :, :, : self.length] = self.keys
        larger.values[:, : self.rows, :, : self.length] = self.values
        return larger


class Past:
    """Keys and values of the beginning of a sequence: of all of it, or of all but its last token."""

    __slots__ = ("hidden", "keys", "length", "nbytes", "values")

    def __init__(self, keys: Array, values: Array) -> None:
        self.keys, self.values = keys, values
        self.length = keys.shape[-1]
        self.nbytes = keys.nbytes + values.nbytes
        self.hidden: Array | None = None
        """The hidden state of the last token, from which the next one is sampled; None when it was not computed."""


class PromptCache:
    """Beginnings that come again (system prompts, the questions of a group, conversations that go on), by their ids;
    the longest unused are forgotten when `limit` bytes are full."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.nbytes = 0
        self._prompts: OrderedDict[Prefix, Past] = OrderedDict()

    def find(self, ids: Prefix) -> Past | None:
        """What was computed of exactly this beginning."""
        past = self._prompts.get(ids)
        if past is not None:
            self._prompts.move_to_end(ids)
        return past

    def keep(self, ids: Prefix, past: Past) -> None:
        """Remember a beginning."""
        earlier = self._prompts.pop(ids, None)
        if earlier is not None:
            self.nbytes -= earlier.nbytes
        self._prompts[ids] = past
        self.nbytes += past.nbytes
        while self.nbytes > self.limit and len(self._prompts) > 1:  # the newest is about to be used, however large
            self.nbytes -= self._prompts.popitem(last=False)[1].nbytes

    def __len__(self) -> int:
        return len(self._prompts)


class Transformer:
    """Prepared weights and the forward pass over them. Holds no state of a sequence."""

    def __init__(self, config: PolicyConfig, weights: Weights) -> None:
        self.config = config
        self._embedding = np.ascontiguousarray(weights["model.embed_tokens.weight"], np.float32)
        self._layers = [_Layer(config, weights, f"model.layers.{n}.") for n in range(config.num_hidden_layers)]
        self._head = head_of(config, weights)
        self._cos, self._sin = rotations(config, config.max_position_embeddings)

    def forward(self, ids: Ids, starts: Ids, cache: Cache) -> Array:
        """Read `ids` (B, S) of the first B rows of `cache`, whose first token stands at `starts` (B).

        Returns the hidden states (B, S, hidden), not yet normed. Positions behind a shorter row's end may hold
        anything: what is computed there is overwritten when the row goes on.
        """
        batch, span = ids.shape
        positions: Ids = starts[:, None] + np.arange(span, dtype=np.int64)
        length = min(padded(int(positions.max()) + 1, WIDTH), cache.length)
        hidden_keys: NDArray[np.bool_] = np.arange(length, dtype=np.int64) > positions[:, :, None]  # (B, S, T)
        angles = np.minimum(positions, len(self._cos) - 1)  # padding may stand behind the last position
        cos, sin = self._cos[angles][:, :, None], self._sin[angles][:, :, None]
        x: Array = self._embedding[ids].reshape(batch * span, -1)
        for number, layer in enumerate(self._layers):
            x = layer.attend(x, positions, cos, sin, hidden_keys, cache.keys[number], cache.values[number])
            x = layer.think(x)
        return x.reshape(batch, span, -1)

    def logits(self, hidden: Array) -> Array:
        """Unnormalised log-probabilities (N, vocabulary) of hidden states (N, hidden)."""
        normed = _normed(hidden, self.config.rms_norm_eps)
        return np.ascontiguousarray(product(normed, self._head)[:, : self.config.vocab_size])


class Matrices:
    """The weights of the layer named `at` as products want them, in the precision they have: transposed, with the norm
    that stands before them, and what reads the same side by side."""

    __slots__ = ("bias", "down", "gate_up", "out", "qkv", "scale")

    def __init__(self, config: PolicyConfig, weights: Weights, at: str) -> None:
        self.scale = np.float32(config.head_dim**-0.5)  # of the scores, put into the queries
        parts = [
            (weights[f"{at}self_attn.{name}_proj.weight"], weights[f"{at}self_attn.{name}_proj.bias"])
            for name in ("q", "k", "v")
        ]
        parts[0] = (parts[0][0] * self.scale, parts[0][1] * self.scale)
        norm, post = weights[f"{at}input_layernorm.weight"], weights[f"{at}post_attention_layernorm.weight"]
        self.qkv: Array = np.ascontiguousarray((np.concatenate([weight for weight, _ in parts]) * norm).T)
        self.bias: Array = np.concatenate([bias for _, bias in parts])
        self.out: Array = np.ascontiguousarray(weights[f"{at}self_attn.o_proj.weight"].T)
        gate, up = weights[f"{at}mlp.gate_proj.weight"], weights[f"{at}mlp.up_proj.weight"]
        self.gate_up: Array = np.ascontiguousarray((np.concatenate([gate, up]) * post).T)
        self.down: Array = np.ascontiguousarray(weights[f"{at}mlp.down_proj.weight"].T)


class _Layer:
    def __init__(self, config: PolicyConfig, weights: Weights, at: str) -> None:
        self._of = Matrices(config, weights, at)
        self._config = config

    def attend(
        self,
        x: Array,
        positions: Ids,
        cos: Array,
        sin: Array,
        hidden_keys: NDArray[np.bool_],
        keys: Array,
        values: Array,
    ) -> Array:
        """Write the new keys and values, and let each new position look at its past. `x` is (B·S, hidden)."""
        config = self._config
        (batch, span), heads, kv = positions.shape, config.num_attention_heads, config.num_key_value_heads
        mixed = product(_normed(x, config.rms_norm_eps), self._of.qkv)
        mixed += self._of.bias
        mixed = mixed.reshape(batch, span, heads + 2 * kv, config.head_dim)
        turned = _rotated(mixed[:, :, : heads + kv], cos, sin)
        rows = np.arange(batch, dtype=np.int64)[:, None]
        keys[rows, :, :, positions] = turned[:, :, heads:]
        values[rows, :, positions] = mixed[:, :, heads + kv :]
        length = hidden_keys.shape[-1]
        group = heads // kv
        queries = turned[:, :, :heads].reshape(batch, span, kv, group, config.head_dim)
        if group == 1:  # a single row would be another kernel, with sums in another order
            queries = np.repeat(queries, 2, axis=3)
        scores: Array = queries @ keys[:batch, None, :, :, :length]
        np.copyto(scores, -np.inf, where=hidden_keys[:, :, None, None])
        scores -= scores.max(-1, keepdims=True)
        np.exp(scores, out=scores)
        seen: Array = scores @ values[:batch, None, :, :length]
        seen /= row_sums(scores)
        seen = seen[:, :, :, :group].reshape(batch * span, heads * config.head_dim)
        return x + product(seen, self._of.out)

    def think(self, x: Array) -> Array:
        """The gated layers of each position. `x` is (B·S, hidden)."""
        both = product(_normed(x, self._config.rms_norm_eps), self._of.gate_up)
        inner = both.shape[1] // 2
        gate = both[:, :inner]
        active = np.exp(np.minimum(-gate, np.float32(80.0)))  # e to the 88th is more than float32 holds
        active += 1.0
        np.divide(gate, active, out=active)
        active *= both[:, inner:]
        return x + product(active, self._of.down)


def head_of(config: PolicyConfig, weights: Weights) -> Array:
    """What makes logits of hidden states (hidden, vocabulary and padding), with the last norm."""
    folded = weights["lm_head.weight"] * weights["model.norm.weight"]
    head = np.zeros((config.hidden_size, padded(config.vocab_size, 16)), folded.dtype)
    head[:, : config.vocab_size] = folded.T
    return head


def rotations(config: PolicyConfig, length: int) -> tuple[Array, Array]:
    """Cosines and sines (`length`, head_dim / 2) of the angles by which a position turns queries and keys.

    Angles are rounded to float32, as in `transformers`: at position 300 by up to 1e-5, of which a policy that is about
    to learn a comparison makes 2e-4 of a log-probability. So all who compute with its weights round them alike.
    """
    half = config.head_dim // 2
    frequency = 1.0 / config.rope_theta ** (np.arange(half, dtype=np.float32) / np.float32(half))
    angles: Array = np.arange(length, dtype=np.float32)[:, None] * frequency[None].astype(np.float32)
    return np.cos(angles), np.sin(angles)


def padded(size: int, block: int) -> int:
    """The next multiple of `block`."""
    return -(-size // block) * block


def product(x: Array, weight: Array) -> Array:
    """`x @ weight` in blocks of `ROWS` rows."""
    rows, width = x.shape
    whole = padded(rows, ROWS)
    if whole != rows:
        x = np.concatenate([x, np.zeros((whole - rows, width), x.dtype)])
    return (x.reshape(whole // ROWS, ROWS, width) @ weight).reshape(whole, weight.shape[1])[:rows]


def _normed(x: Array, epsilon: float) -> Array:
    square = np.einsum("ij,ij->i", x, x)
    return x * (1.0 / np.sqrt(square / np.float32(x.shape[1]) + np.float32(epsilon)))[:, None]


def _rotated(x: Array, cos: Array, sin: Array) -> Array:
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    turned = np.empty(x.shape, np.float32)
    np.multiply(first, cos, out=turned[..., :half])
    turned[..., :half] -= second * sin
    np.multiply(second, cos, out=turned[..., half:])
    turned[..., half:] += first * sin
    return turned


def row_sums(scores: Array) -> Array:
    """Sums over the last axis, in blocks of `WIDTH` and then one block after the other: zeros behind change nothing."""
    if over := -scores.shape[-1] % WIDTH:  # never in inference
        scores = np.concatenate([scores, np.zeros((*scores.shape[:-1], over), scores.dtype)], -1)
    blocks = scores.reshape(*scores.shape[:-1], -1, WIDTH).sum(-1)
    total = blocks[..., 0].copy()
    for number in range(1, blocks.shape[-1]):
        total += blocks[..., number]
    return total[..., None]
