"""Checkpoints of a training run: folders that appear whole, from which a killed run goes on bit for bit.

A checkpoint is a policy folder (`config.json`, `model.safetensors`, `tokenizer.json`, `chat_template.jinja`), so an
agent can be asked with it, and beside these `optimiser.safetensors` and `training.json`. It is written under another
name, and renamed when every file is on the disk. Nothing is pickled.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
from safetensors.numpy import load_file, save_file  # pyright: ignore[reportUnknownVariableType]  # bare PathLike

from aworld.core.exceptions import ConfigError
from aworld.models.embedded.checkpoint import Policy
from aworld.training.embedded.learner import Learner
from aworld.training.run_folder import check_same
from aworld.training.training_run import TrainingState

_STATE = "training.json"
_MOMENTS = "optimiser.safetensors"


class EmbeddedState(TrainingState, kw_only=True):
    """How far a training run is."""

    identity: dict[str, Any] = {}
    """What must be the same when the run goes on."""
    learner: dict[str, Any] = {}


def save(folder: Path, state: EmbeddedState, learner: Learner, keep: int) -> Path:
    """Write the checkpoint of `state.step`, and forget all but the newest `keep`. Returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    state.learner, moments = learner.state()
    target = folder / f"step-{state.step:05d}"
    scratch = folder / f".{target.name}.{os.getpid()}"
    shutil.rmtree(scratch, ignore_errors=True)
    learner.policy.save(scratch)
    save_file(moments, scratch / _MOMENTS)
    (scratch / _STATE).write_bytes(msgspec.json.encode(state))
    for file in scratch.iterdir():
        _to_disk(file)
    shutil.rmtree(target, ignore_errors=True)  # one of an earlier try of this step
    scratch.rename(target)
    _to_disk(folder)
    for old in _all(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    for left in folder.glob(".step-*"):  # by a process that was killed in mid-writing
        shutil.rmtree(left, ignore_errors=True)
    return target


def newest(folder: Path) -> Path | None:
    """The newest checkpoint; None when there is none."""
    return next(reversed(_all(folder)), None)


def restore(target: Path, learner: Learner, identity: dict[str, Any]) -> EmbeddedState:
    """Put the learner where the checkpoint was. Raises ConfigError when it is of a run with other settings."""
    try:
        state = msgspec.json.decode((target / _STATE).read_bytes(), type=EmbeddedState)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"run_path | checkpoint {target} cannot be read: {error}; delete its folder.") from None
    check_same(target.parent.parent, state.identity, identity)
    learner.restore(Policy.open(target), state.learner, load_file(target / _MOMENTS))
    return state


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*")) if folder.is_dir() else []


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
