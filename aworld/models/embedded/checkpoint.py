"""A policy on disk: the folder layout of `transformers`, which vLLM reads too."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from aworld.core.exceptions import ConfigError
from aworld.models.embedded.tokenizer import END, PolicyTokenizer
from aworld.models.embedded.transformer import PolicyConfig, Weights
from aworld.models.providers import json_object

PACKAGED = Path(__file__).parent
"""The folder of the policy that comes with the package."""

_WEIGHTS = "model.safetensors"
_TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True)
class Policy:
    """A language model: its shape, its weights by the names of `transformers`, its tokenizer with the chat template."""

    config: PolicyConfig
    weights: Weights
    tokenizer: PolicyTokenizer
    version: str = "0"
    """What the log calls these weights (`Tokens.policy_version`)."""

    @classmethod
    def open(cls, path: str | Path | None = None) -> Policy:
        """Read a folder; the packaged policy when none is named. Raises `ConfigError` that says what does not fit."""
        folder = PACKAGED if path is None else Path(path)
        data = json_object(_text(folder, "config.json"), folder / "config.json")
        config = PolicyConfig.from_json(data, folder / "config.json")
        tokenizer = PolicyTokenizer(_text(folder, "tokenizer.json"), _template(folder))
        if tokenizer.size != config.vocab_size:
            raise ConfigError(
                f"{folder}: the tokenizer has {tokenizer.size} tokens and the model {config.vocab_size}; "
                "they are not of one checkpoint."
            )
        if tokenizer.eos_token_id != config.eos_token_id:
            raise ConfigError(
                f"{folder}: eos_token_id is {config.eos_token_id}, but {END} is {tokenizer.eos_token_id}."
            )
        return cls(config, _checked(config, _weights(folder), folder), tokenizer, str(data.get("policy_version", "0")))

    def save(self, path: str | Path) -> Path:
        """Write the folder, made if need be. Each file is replaced in one piece, the weights last."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        config = {**self.config.to_json(), "policy_version": self.version}
        _replace(folder / "config.json", json.dumps(config, indent=2) + "\n")
        _replace(folder / "tokenizer.json", self.tokenizer.data)
        _replace(folder / "tokenizer_config.json", json.dumps(_tokenizer_config(self.config), indent=2) + "\n")
        _replace(folder / _TEMPLATE, self.tokenizer.chat_template)
        arrays = {name: np.ascontiguousarray(weight) for name, weight in self.weights.items()}
        _replace(folder / _WEIGHTS, save(arrays, {"format": "pt"}))
        return folder

    def with_weights(self, weights: Weights, version: str) -> Policy:
        """The same policy with other weights of the same shapes. Raises `ConfigError` for other shapes."""
        return replace(self, weights=_checked(self.config, weights, "weights"), version=version)


def _text(folder: Path, name: str) -> str:
    try:
        return (folder / name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"No policy in {folder}: {name} cannot be read ({getattr(error, 'strerror', None) or error}). "
            "A checkpoint folder has config.json, model.safetensors, tokenizer.json and chat_template.jinja."
        ) from None


def _template(folder: Path) -> str:
    """The template's own file, or the older place inside `tokenizer_config.json`."""
    if (folder / _TEMPLATE).exists() or not (folder / "tokenizer_config.json").exists():
        return _text(folder, _TEMPLATE)
    name = "tokenizer_config.json"
    template = json_object(_text(folder, name), folder / name).get("chat_template")
    return template if isinstance(template, str) else _text(folder, _TEMPLATE)


def _weights(folder: Path) -> Weights:
    try:
        return load((folder / _WEIGHTS).read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"No policy in {folder}: {_WEIGHTS} is missing.") from None
    except (OSError, SafetensorError, TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{folder / _WEIGHTS} cannot be read as float32 safetensors: {error}") from None


def _checked(config: PolicyConfig, weights: Weights, source: Path | str) -> Weights:
    shapes = config.shapes()
    if odd := sorted(shapes.keys() ^ weights.keys()):
        difference = "lacks" if odd[0] in shapes else "has besides"
        raise ConfigError(
            f"{source} {difference} {odd[0]!r} ({len(odd)} names differ from what the configuration asks for)."
        )
    for name, shape in shapes.items():
        if weights[name].shape != shape:
            raise ConfigError(f"{source}: {name} is {weights[name].shape}, and the configuration says {shape}.")
    return {name: np.asarray(weights[name], np.float32) for name in shapes}


def _tokenizer_config(config: PolicyConfig) -> dict[str, Any]:
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "model_max_length": config.max_position_embeddings,
        "eos_token": END,
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
    }


def _replace(path: Path, content: str | bytes) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_bytes(content.encode() if isinstance(content, str) else content)
    scratch.replace(path)  # a reader sees the old file or the new one, never half of one
