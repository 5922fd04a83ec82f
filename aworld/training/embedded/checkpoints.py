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
from aworld.training.course import Course, check_same
from aworld.training.embedded.learner import Learner

_STATE = "training.json"
_MOMENTS = "optimiser.safetensors"


class State(Course, kw_only=True):
    """How far a training run is."""

    identity: dict[str, Any] = {}
    """What must be the same when the run goes on."""
    learner: dict[str, Any] = {}


def save(folder: Path, state: State, learner: Learner, keep: int) -> Path:
    """Write the checkpoint of `state.step`, and forget all but the newest `keep`. Returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    state.learner, moments = learner.state()
    place = folder / f"step-{state.step:05d}"
    scratch = folder / f".{place.name}.{os.getpid()}"
    shutil.rmtree(scratch, ignore_errors=True)
    learner.policy.save(scratch)
    save_file(moments, scratch / _MOMENTS)
    (scratch / _STATE).write_bytes(msgspec.json.encode(state))
    for file in scratch.iterdir():
        _to_disk(file)
    shutil.rmtree(place, ignore_errors=True)  # one of an earlier try of this step
    scratch.rename(place)
    _to_disk(folder)
    for old in _all(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    for left in folder.glob(".step-*"):  # by a process that was killed in mid-writing
        shutil.rmtree(left, ignore_errors=True)
    return place


def newest(folder: Path) -> Path | None:
    """The newest checkpoint; None when there is none."""
    found = _all(folder)
    return found[-1] if found else None


def restore(place: Path, learner: Learner, identity: dict[str, Any]) -> State:
    """Put the learner where the checkpoint was. Raises ConfigError when it is of a run with other settings."""
    try:
        state = msgspec.json.decode((place / _STATE).read_bytes(), type=State)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"run_path | checkpoint {place} cannot be read: {error}; delete its folder.") from None
    check_same(place.parent.parent, state.identity, identity)
    learner.restore(Policy.open(place), state.learner, load_file(place / _MOMENTS))
    return state


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*")) if folder.is_dir() else []


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
