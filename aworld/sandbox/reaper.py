"""Finds what dead runtimes left behind, and destroys it.

A box of bubblewrap ends with its runtime: the kernel sees to that. Folders, containers and remote sandboxes do not, so
each has a record on disk, written before it is made and deleted when it is destroyed:

    TMPDIR/aworld-sandboxes-UID/RUNTIME/lock                 locked by the runtime as long as it lives
                                       /SANDBOX/record.json  what it is, and where
                                       /SANDBOX/…            its files, if it has any on this machine

The lock tells the dead from the living: the kernel lets go of it when the process ends, in whatever way, and unlike a
process number it cannot be mistaken for that of a later process, or of one in another container.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import secrets
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from aworld.core.exceptions import AWorldError
from aworld.core.sandbox import SandboxError
from aworld.sandbox import cgroup
from aworld.sandbox.kinds import kind_of

logger = logging.getLogger(__name__)


class Record(msgspec.Struct, frozen=True):
    """A sandbox that outlives its runtime if nobody destroys it."""

    id: str
    kind: str
    """As in `aworld.sandbox.kinds`, whose class destroys it; a `folder` goes with its record."""
    pid: int
    """The process of the runtime, for people who look."""
    at: float
    """UNIX seconds."""
    detail: dict[str, str] = {}
    """What its destroyer needs; no secrets."""


class _Runtime:
    """The records of this process."""

    def __init__(self) -> None:
        base = _base()
        self.folder = base / f"{os.getpid()}-{secrets.token_hex(4)}"
        fresh = base / f".{self.folder.name}"  # without a lock it must not be seen
        fresh.mkdir()
        self.lock = os.open(fresh / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        fresh.rename(self.folder)

    def release(self) -> None:
        """Nothing is left to destroy."""
        (self.folder / "lock").unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            self.folder.rmdir()
        os.close(self.lock)


_changing = threading.Lock()
_runtimes: dict[int, _Runtime] = {}
"""Of this process, by its number; a fork has none of its own yet."""


def _close_lock_in_fork() -> None:
    """A fork shares the lock; it must not hold it when its parent is dead."""
    for runtime in _runtimes.values():
        os.close(runtime.lock)
    _runtimes.clear()


os.register_at_fork(after_in_child=_close_lock_in_fork)


def record(id: str, kind: str, detail: dict[str, str] | None = None) -> Path:
    """Write that this runtime has a sandbox, or what is newly known of it. Returns a folder for its files."""
    with _changing:
        runtime = _runtimes.get(os.getpid())
        if runtime is None:
            runtime = _runtimes[os.getpid()] = _Runtime()
        folder = runtime.folder / id
        folder.mkdir(exist_ok=True)
    data = msgspec.json.encode(Record(id, kind, os.getpid(), time.time(), detail or {}))
    fresh = folder / "record.new"
    fresh.write_bytes(data)
    fresh.rename(folder / "record.json")
    return folder


async def forget(id: str) -> None:
    """The sandbox is destroyed: delete its record and its files. Does nothing if there is none."""
    runtime = _runtimes.get(os.getpid())
    if runtime is None or not (runtime.folder / id).exists():
        return
    await asyncio.to_thread(_remove, runtime.folder / id)
    with _changing:
        if os.getpid() in _runtimes and not any(entry.is_dir() for entry in runtime.folder.iterdir()):
            del _runtimes[os.getpid()]
            runtime.release()


async def reap() -> list[str]:
    """Destroy the sandboxes of dead runtimes of this user on this machine; their ids.

    What cannot be destroyed now, for example because an engine does not answer, is logged and kept for the next time.
    """
    reaped: list[str] = []
    if sys.platform == "linux":
        cgroup.sweep()
    for runtime in _base().iterdir():
        with _locked(runtime) as dead:
            if not dead:
                continue
            places = [place for place in runtime.iterdir() if place.is_dir()]
            gone = [place.name for place in places if await _destroy(place)]
            if len(gone) == len(places):
                await asyncio.to_thread(shutil.rmtree, runtime, ignore_errors=True)
            reaped += gone
    if reaped:
        logger.info("reaped=%d | sandboxes of dead runtimes were destroyed: %s", len(reaped), ", ".join(reaped))
    return reaped


async def _destroy(place: Path) -> bool:
    """Destroy one sandbox and its record."""
    try:
        orphan = msgspec.json.decode((place / "record.json").read_bytes(), type=Record)
        if orphan.kind != "folder":
            await kind_of(orphan.kind).destroy(orphan)
    except FileNotFoundError:
        pass  # the runtime died before it wrote the record, so before it made the sandbox
    except (AWorldError, OSError, AttributeError, msgspec.MsgspecError) as error:  # also a kind without `destroy`
        logger.warning("sandbox=%s | an orphan cannot be destroyed yet: %s", place.name, error)
        return False
    await asyncio.to_thread(_remove, place)
    return True


@contextmanager
def _locked(runtime: Path) -> Generator[bool]:
    """Hold the lock of a runtime, if it is dead, so that nobody else reaps it."""
    try:
        lock = os.open(runtime / "lock", os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError):
        yield False  # just being released
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield runtime.exists()
    finally:
        os.close(lock)


def _base() -> Path:
    """The folder of all records of this user."""
    base = Path(tempfile.gettempdir()) / f"aworld-sandboxes-{os.geteuid()}"
    base.mkdir(mode=0o700, exist_ok=True)
    state = base.lstat()
    if base.is_symlink() or state.st_uid != os.geteuid() or state.st_mode & 0o022:
        raise SandboxError(f"{base} belongs to somebody else; remove it, or set TMPDIR to a folder of your own")
    return base


def _remove(place: Path) -> None:
    """Delete a folder, also when its processes have made parts of it unreadable."""

    def unlock(function: Any, path: str, error: Any) -> None:
        for stuck in (os.path.dirname(path), path):
            with suppress(OSError):
                if not os.path.islink(stuck):
                    os.chmod(stuck, 0o700)

    # What is in the way is unlocked in the first pass and deleted in the second.
    handler: dict[str, Any] = {"onexc" if sys.version_info >= (3, 12) else "onerror": unlock}
    shutil.rmtree(place, **handler)
    shutil.rmtree(place, ignore_errors=True)
    if place.exists():
        logger.warning("folder=%s | cannot be deleted", place)
