"""What the kernel tells the process inside a local sandbox (`worker.py`) of those that run there."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

CLOCK = os.sysconf("SC_CLK_TCK")


class Process:
    """A process as /proc shows it."""

    __slots__ = ("children", "cpu", "parent", "zombie")

    def __init__(self, pid: int) -> None:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b") ")[2].split()
        self.zombie = fields[0] in b"ZX"
        self.parent = int(fields[1])
        self.cpu = sum(map(int, fields[11:15])) / CLOCK  # its own and that of children it waited for
        self.children: list[int] = []


def processes() -> dict[int, Process]:
    """All descendants of this process."""
    running: dict[int, Process] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:  # noqa: SIM105 - contextlib takes milliseconds to import
                running[int(name)] = Process(int(name))
            except (FileNotFoundError, ProcessLookupError):
                pass  # it ended meanwhile
    for pid, process in running.items():
        if process.parent in running:
            running[process.parent].children.append(pid)
    return {pid: running[pid] for pid in tree(running, os.getpid()) if pid != os.getpid()}


def tree(running: dict[int, Process], root: int) -> list[int]:
    """A process and its descendants."""
    pids = [root] if root in running else []
    for pid in pids:
        pids += running[pid].children
    return pids


def memory_of(pid: int, exact: bool) -> int:
    """Bytes of memory of a process; if exact, its share of what it has in common with others.

    One that hides its share counts in full. Nothing, once it ended.
    """
    try:
        if exact:
            with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
                return _sum_kb(file, (b"Pss_Anon", b"Pss_Shmem", b"SwapPss"))
    except PermissionError:
        pass
    except OSError:
        return 0
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            return _sum_kb(file, (b"RssAnon", b"RssShmem", b"VmSwap"))
    except OSError:
        return 0


def _sum_kb(lines: Iterable[bytes], names: tuple[bytes, ...]) -> int:
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(names))


def used_sockets() -> int:
    """How many sockets there are."""
    with open("/proc/net/sockstat", "rb") as file:
        return int(file.readline().split()[2])


def used_files(folders: tuple[str, ...]) -> int:
    """How many files and folders there are."""
    return sum(state.f_files - state.f_ffree for state in map(os.statvfs, folders))
