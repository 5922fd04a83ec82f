"""Who works on a run, written beside it: a process and a store object of it, recognised also after it died.

A process of this machine whose number is free, or belongs to one that began at another time, is dead: its runs are
taken over at once. A live one never loses a run, however late it renews. Of a process of another machine, or of another
container on this one, only the time until which it has promised to be back is known.
"""

from __future__ import annotations

import os
import platform
import secrets
import time
from functools import cache
from pathlib import Path
from weakref import WeakSet

LEASE = 15.0
"""Seconds for which a run is claimed, and after which another machine may take it over."""

RENEWAL = 5.0
"""Seconds after which claims are renewed."""


class Owner:
    """A store object of a process. `text` is what is written into the file."""

    def __init__(self) -> None:
        self.mark = secrets.token_hex(6)
        pid = os.getpid()
        self.text = " ".join((platform.node() or "-", _boot(), _namespace(), str(pid), _began(pid) or "-", self.mark))
        _owners.add(self)

    def leave(self) -> None:
        """Be nobody any more, for other store objects of this process."""
        _owners.discard(self)

    def until(self) -> float:
        """The end of a lease that begins now, UNIX seconds."""
        return time.time() + LEASE

    def yields(self, owner: str, until: float | None) -> bool:
        """Whether this one may have a run that the file says is `owner`'s."""
        if owner == self.text:
            return True
        alive = is_alive(owner)
        return (until or 0.0) < time.time() if alive is None else not alive


_owners: WeakSet[Owner] = WeakSet()


def is_alive(owner: str) -> bool | None:
    """Whether an owner's process runs and has not dropped the store; None if that cannot be seen from here."""
    try:
        _, boot, namespace, pid, began, mark = owner.split(" ")
        number = int(pid)
    except ValueError:  # of a newer version
        return None
    if (boot, namespace) != (_boot(), _namespace()):
        return None
    if number == os.getpid():
        return any(other.mark == mark for other in list(_owners))
    if began == "-":
        return _answers(number)
    return _began(number) == began


def name_of(owner: str) -> str:
    """An owner as an error names it."""
    host, _, _, pid, *_ = [*owner.split(" "), *"????"]
    return "another store object of this process" if _is_here(owner) else f"another process (pid {pid} on {host})"


def _is_here(owner: str) -> bool:
    return owner.split(" ")[1:4] == [_boot(), _namespace(), str(os.getpid())]


@cache
def _boot() -> str:
    """What tells this start of this machine from others."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "-"


def _namespace() -> str:
    """What tells process numbers of one container from those of another."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return platform.node() or "-"


def _began(pid: int) -> str | None:
    """When a process began, in ticks since the machine did; None if there is none, or it is dead and not yet buried."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _answers(pid: int) -> bool | None:
    """Whether there is a process of this number, where its beginning cannot be read."""
    if os.name != "posix":  # there, asking would end it
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
