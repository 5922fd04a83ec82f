"""The folder of a training run: which run it holds, and that one process at a time trains in it.

`run.json` says which run it is, and is written before anything runs: a run that was cut off before its first checkpoint
is not mixed with another one either. The lock is the kernel's, not the file's: it is let go when the process ends, in
whatever way, and a file that is left behind locks nobody out.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from aworld.core.agent.flow import units_of
from aworld.core.exceptions import ConfigError
from aworld.training.registry import TrainingJob
from aworld.trajectory.sqlite_file import make_folders

try:
    import fcntl
except ImportError:  # pragma: no cover - an operating system that has no such lock
    fcntl = None


FREE = ("steps", "evaluate_every", "max_concurrency", "checkpoint_every", "keep_checkpoints", "target", "patience")
"""Settings that may be others when a run goes on."""

LOCK, MARK = "run.lock", "run.json"


class RunMark(msgspec.Struct):
    """What a folder says of the run that it holds."""

    engine: str
    identity: dict[str, Any] | None = None
    """What must be the same when the run goes on."""


def run_folder(path: object, engine: str) -> Path:
    """The folder for a run of this engine, not made yet; None for `path` names a new one.

    Raises ConfigError when it is none, or holds something else.
    """
    if path is None:
        return Path(".aworld", "training", f"{datetime.now():%Y%m%d-%H%M%S-%f}-{engine}").resolve()
    if not isinstance(path, str | Path) or not str(path).strip():
        raise ConfigError(f"run_path takes the path of a folder; got {path!r:.100}.")
    folder = Path(path).expanduser().resolve()
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"run_path={str(path)!r} is a file; give the path of a folder.")
    held = _held(folder)
    if held is not None and held.engine != engine:
        raise ConfigError(f"run_path={str(path)!r} holds a run of the engine {held.engine!r}; take another folder.")
    names = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set[str]()
    if names - {LOCK} and MARK not in names:
        raise ConfigError(f"run_path={str(path)!r} holds other things; give a new folder, or that of an earlier run.")
    return folder


def identity_of(job: TrainingJob) -> dict[str, Any]:
    """What makes a run the one that it is, whichever engine trains: its settings, environment and first policy."""
    return {
        **job.config.model_dump(mode="json", exclude=set(FREE)),
        "environment": job.environment.name,
        "test_dataset": None if job.held_out is None else job.held_out.name,
        "policy": {name: _model_of(unit) for name, unit in units_of(job.agent).items()},
    }


def _model_of(unit: Any) -> str | None:
    """What an agent asks: an embedded policy by its weights, wherever it was read from, any other by its name."""
    model: Any = getattr(unit, "model", None)
    if model is None:
        return None
    if model.provider != "embedded":
        return f"{model.provider}:{model.name}"
    from aworld.training.embedded.learner import version_of  # needs NumPy, which other engines may do without

    return f"embedded:{version_of(model.policy.weights, 0)}"


def check_same(run_path: object, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise ConfigError when the run that a folder holds is another one."""
    for name, value in now.items():
        if before.get(name) != value:
            change = f"{name}={before.get(name)!r}, now it is {value!r}"
            raise ConfigError(f"run_path | {run_path} holds a run with {change}. Take another, or go on with the same.")


def check_folder(job: TrainingJob) -> None:
    """Refuse a folder that holds another run, also one that was cut off before its first checkpoint."""
    held = _held(job.run_path)
    if held is not None and held.identity is not None:
        check_same(job.run_path, held.identity, identity_of(job))


def mark(job: TrainingJob, engine: str) -> None:
    """Write which run the folder holds, whole or not at all, whenever the process ends."""
    beside = job.run_path / f".{MARK}.new"
    beside.write_bytes(msgspec.json.encode(RunMark(engine, identity_of(job))))
    beside.replace(job.run_path / MARK)


def _held(folder: Path) -> RunMark | None:
    """The run that a folder holds; None when it holds none."""
    try:
        return msgspec.json.decode((folder / MARK).read_bytes(), type=RunMark)
    except (OSError, msgspec.DecodeError):
        return None


@contextmanager
def alone_in(run_path: Path) -> Generator[None, None, None]:
    """Hold the lock of a run folder, which is made where there is none.

    What agents saw and said is in it: a folder that holds no run yet becomes its owner's alone.

    Raises ConfigError when somebody else trains there, or the folder cannot be written.
    """
    try:
        make_folders(run_path)
        if not (run_path / MARK).exists():
            run_path.chmod(0o700)
        lock = os.open(run_path / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise ConfigError(f"run_path={str(run_path)!r} cannot be written: {error.strerror}.") from None
    try:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise ConfigError(
            f"run_path={str(run_path)!r} | another training is at work in this folder. Wait until it ends, or take "
            "another run_path."
        ) from None
    except OSError:  # a file system without locks, such as some of a network: there nobody is kept out
        pass
    try:
        yield
    finally:
        os.close(lock)
