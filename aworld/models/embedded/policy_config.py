"""The shape of a policy, as `config.json` says it. Qwen2 only: what the forward pass here computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from aworld.core.exceptions import ConfigError

ARCHITECTURE = "Qwen2ForCausalLM"


class PolicyConfig(Struct, frozen=True, kw_only=True):
    """Sizes and constants, under the names of the `transformers` configuration of Qwen2."""

    vocab_size: int
    hidden_size: int = 64
    intermediate_size: int = 160
    num_hidden_layers: int = 3
    num_attention_heads: int = 2
    num_key_value_heads: int = 1
    max_position_embeddings: int = 1024
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
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
        expected = {"hidden_act": "silu", "tie_word_embeddings": False, "use_sliding_window": False}
        for name, value in expected.items():
            if data.get(name, value) != value:
                raise ConfigError(f"{source}: {name} must be {value!r} for the embedded policy; it is {data[name]!r}.")
        if rope.get("rope_type", rope.get("type", "default")) != "default":
            raise ConfigError(f"{source}: scaled rotary positions are not computed here (rope_type {rope}).")
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
