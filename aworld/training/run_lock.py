"""One process trains in a run folder at a time.

Two would write the same episodes and checkpoints, and one of them would break in the middle. The lock is the kernel's,
not the file's: it is let go when the process ends, in whatever way, and a file that is left behind locks nobody out.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from aworld.core.exceptions import ConfigError

try:
    import fcntl
except ImportError:  # pragma: no cover - an operating system that has no such lock
    fcntl = None

LOCK = "run.lock"
"""The file in a run folder that is locked while somebody trains there."""


@contextmanager
def alone_in(run_path: Path) -> Generator[None, None, None]:
    """Hold the lock of a run folder, which is made where there is none.

    Raises ConfigError when somebody else trains there, or the folder cannot be written.
    """
    try:
        run_path.mkdir(parents=True, exist_ok=True)
        lock = os.open(run_path / LOCK, os.O_CREAT | os.O_RDWR, 0o666)
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
