"""Folders of policies: which is meant by a text, what answers for it, and what is said where there is none."""

from __future__ import annotations

import json
import os
import re
from typing import Any

_WEIGHTS = "model.safetensors"

_SMALL = 256
"""Width of the widest policy that is answered for by NumPy unless `transformers:` is said."""


def policy_folder(text: str) -> str | None:
    """The folder of a policy: the one that is named, or `policy/` in that of a training run; None for neither."""
    path = os.path.expanduser(text)
    return next((folder for folder in (path, os.path.join(path, "policy")) if _has_weights(folder)), None)


def provider_of(folder: str) -> str:
    """What answers for a policy in this process: NumPy where it is small and of the one kind that is computed there,
    else `transformers`."""
    try:
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            config: dict[str, Any] = json.load(file)
    except (OSError, ValueError):
        return "embedded"  # which says what is wrong with it
    ours = config.get("architectures") == ["Qwen2ForCausalLM"] and config.get("tie_word_embeddings") is False
    return "embedded" if ours and config.get("hidden_size", 0) <= _SMALL else "transformers"


def written(folder: str) -> object:
    """When the weights of a checkpoint were written; None for the packaged policy."""
    try:
        file = os.stat(os.path.join(folder, _WEIGHTS))
    except OSError:
        return None
    return file.st_mtime_ns, file.st_size, file.st_ino


def without_policy(text: str) -> str | None:
    """What is wrong with a text that can only be a folder: a path, or a training run that has no policy yet. None for
    a text that may be the name of a model."""
    path = os.path.expanduser(text)
    checkpoints = os.path.join(path, "checkpoints")
    if os.path.isfile(os.path.join(path, "run.json")) or os.path.isdir(checkpoints):
        newest = _newest(checkpoints)
        remedy = f"its newest checkpoint is {newest!r}" if newest else "it has no checkpoint yet either"
        return f"model={text!r}: no policy there yet, as the training run has not ended; {remedy}."
    if not text.startswith(("/", "./", "../", "~")):
        return None
    why = f"neither it nor its policy/ has a {_WEIGHTS}" if os.path.isdir(path) else "there is no such folder"
    return f"model={text!r} is no folder of a policy: {why}. {_REMEDY}"


_REMEDY = "Give the run_path of a finished training run, a checkpoint's folder, or 'provider:name'."


def if_a_folder_was_meant(text: str) -> str:
    """A sentence for the error about a model of this name; empty where it cannot be meant."""
    if os.path.isdir(os.path.expanduser(text)):
        return f"If the folder {text!r} was meant: neither it nor its policy/ has a {_WEIGHTS}."
    return f"If {text!r} was meant as a folder: there is none." if "/" in text else ""


def _has_weights(folder: str) -> bool:
    return os.path.isfile(os.path.join(folder, _WEIGHTS))


def _newest(checkpoints: str) -> str | None:
    """The checkpoint of the latest step, by the number in its name; None when there is none that is whole."""
    if not os.path.isdir(checkpoints):
        return None
    numbered = [(int(step[1]), name) for name in os.listdir(checkpoints) if (step := re.fullmatch(r"\w+-(\d+)", name))]
    whole = [(step, folder) for step, name in numbered if _has_weights(folder := os.path.join(checkpoints, name))]
    return max(whole)[1] if whole else None
