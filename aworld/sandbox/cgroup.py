"""The control group of a local sandbox: what the kernel counts and bounds for all of its processes together.

It is made below the group of this process, or where that cannot have one with limits (a group of version 2 that holds
processes) beside it. Root can, and a user to whom a part of the tree was delegated, as systemd does it. The bound on
memory is wide, because the files in a sandbox's folders are memory too; how much its processes hold, the worker inside
reckons from the group's figures (`worker_proc.GroupFigures`), which it finds in `INSIDE`.

Sources: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/{memory,pids,cpuacct}.rst of Linux.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from aworld.core.sandbox import SandboxLimits

INSIDE = "/sandbox/group"
"""The folder inside with the figures, a file each."""
ROOM_MB = 64
"""For the worker, the launcher and the kernel's rounding, which goes in pieces of 256 KB for each processor."""
OWN_PROCESSES = 4
"""Worker, launcher, and what they are in between."""
EMPTY_SECONDS = 5.0
"""Until a group whose processes were killed is empty."""
FRESH_SECONDS = 10.0
"""An empty group that is younger may just be about to be entered."""
PREFIX = "aworld-"

KINDS_V1 = ("memory", "pids", "cpuacct")
FIGURES_V1 = {
    "usage": "memory.usage_in_bytes",
    "stat": "memory.stat",
    "oom": "memory.oom_control",
    "cpu": "cpuacct.usage",
    "tcp": "memory.kmem.tcp.usage_in_bytes",
}
FIGURES_V2 = {"usage": "memory.current", "stat": "memory.stat", "oom": "memory.events", "cpu": "cpu.stat"}


@dataclass(frozen=True, slots=True)
class ControlGroup:
    """The group of one sandbox."""

    folders: tuple[Path, ...]
    """One, or with version 1 one in each hierarchy."""
    figures: dict[str, Path]
    """Files that the worker reads, by their names inside."""

    def enter(self, pid: int) -> None:
        """Move a process in; all that it starts from now on is in it too. Raises OSError."""
        for folder in self.folders:
            _write(folder, "cgroup.procs", pid)

    def reclaim(self) -> None:
        """Have the kernel give up what it can, such as names of files that were looked up.

        Figures of version 2 tell how much that is; in those of version 1 it looks like memory in use.
        """
        with suppress(OSError):
            _write(self.folders[0], "memory.force_empty", 0)

    async def remove(self) -> None:
        """Delete it, as soon as its processes, which have been killed, are gone."""
        deadline = time.monotonic() + EMPTY_SECONDS
        left = list(self.folders)
        while left and time.monotonic() < deadline:
            left = [folder for folder in left if not _deleted(folder)]
            if left:
                await asyncio.sleep(0.005)


def make_group(name: str, limits: SandboxLimits, scratch_mb: int) -> ControlGroup | None:
    """The group for a sandbox with this much room for scratch files; None where none can be made."""
    memory = (limits.memory_mb + limits.disk_mb + scratch_mb + ROOM_MB) << 20
    processes = limits.processes + OWN_PROCESSES
    places = _places()
    if "" in places:
        wanted = {"memory.max": memory, "memory.swap.max": 0, "pids.max": processes}
        for parent in places[""]:
            if os.access(parent / "cgroup.procs", os.W_OK):  # who moves a process must own where both ends meet
                with suppress(OSError):
                    _write(parent, "cgroup.subtree_control", "+memory +pids")
                group = _made((parent / name,), wanted, FIGURES_V2)
                if group is not None:
                    return group
    if not places.keys() >= set(KINDS_V1):
        return None
    wanted = {
        "memory.limit_in_bytes": memory,
        "memory.memsw.limit_in_bytes": memory,
        "memory.kmem.tcp.limit_in_bytes": memory,  # else it is not counted
        "pids.max": processes,
    }
    return _made(tuple(dict.fromkeys(places[kind][0] / name for kind in KINDS_V1)), wanted, FIGURES_V1)


def sweep() -> None:
    """Delete the empty groups that dead runtimes left behind. A group that is in use is not empty."""
    for parent in {parent for parents in _places().values() for parent in parents}:
        with suppress(OSError):
            for folder in parent.glob(f"{PREFIX}*"):
                if time.time() - folder.stat().st_mtime > FRESH_SECONDS:
                    _deleted(folder)


def _made(folders: tuple[Path, ...], wanted: dict[str, int], names: dict[str, str]) -> ControlGroup | None:
    """Make the folders and set the limits in whichever has a file for them; None unless each could be set."""
    try:
        for folder in folders:
            folder.mkdir()
        for name, value in wanted.items():
            places = [folder for folder in folders if (folder / name).exists()]
            if not places and "sw" in name:
                continue  # a kernel without swap
            _write(places[0], name, value)
        figures = {
            inside: next(folder / name for folder in folders if (folder / name).exists())
            for inside, name in names.items()
        }
    except (OSError, IndexError, StopIteration):
        for folder in folders:
            _deleted(folder)
        return None
    return ControlGroup(folders, figures)


def _places() -> dict[str, list[Path]]:
    """By controller, "" for version 2: the group of this process, and the one above it."""
    places: dict[str, list[Path]] = {}
    with suppress(OSError):  # a kernel without groups
        mounts = dict(_mounts())
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            for controller in controllers.split(","):
                root, top = mounts.get(controller, ("", None))
                if top is not None and ".." not in path:  # else it lies outside of what is seen here
                    own = top / path.removeprefix(root).lstrip("/")
                    places[controller] = [own] if own == top else [own, own.parent]
    return places


def _mounts() -> Iterator[tuple[str, tuple[str, Path]]]:
    """By controller, "" for version 2: what is mounted of the tree, and where."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        root, top = before.split(" ")[3:5]
        if kind in ("cgroup", "cgroup2"):
            for controller in options.split(",") if kind == "cgroup" else ("",):
                yield controller, (root, Path(top))


def _write(folder: Path, name: str, value: object) -> None:
    descriptor = os.open(folder / name, os.O_WRONLY)
    try:
        os.write(descriptor, str(value).encode())
    finally:
        os.close(descriptor)


def _deleted(folder: Path) -> bool:
    """Delete a group; False while there is a process in it."""
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
