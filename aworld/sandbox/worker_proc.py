"""What the kernel tells the process inside a local sandbox (`worker.py`) of those that run there."""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

CLOCK = os.sysconf("SC_CLK_TCK")
BYTE_BYTES = 4096
"""What the kernel may hold for one byte on its way, if it was sent alone."""
MOST_DESCRIPTORS = 1024
"""That a process may have."""
ENTRY_BYTES = 1024
"""What the kernel holds for a file in memory besides its data: an inode of 720 bytes and a name."""


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


class MemoryUse:
    """What a process holds, in bytes: nothing, once it ended."""

    __slots__ = ("exact", "mapped", "own", "shared")

    def __init__(self, pid: int, exact: bool) -> None:
        status = _kilobytes(f"/proc/{pid}/status")
        tables = status.get(b"VmPTE", 0)
        self.own = status.get(b"RssAnon", 0) + status.get(b"VmSwap", 0) + tables
        self.shared = status.get(b"RssShmem", 0)
        self.mapped = status.get(b"VmSize", 0) - sum(
            status.get(name, 0) for name in (b"VmData", b"VmStk", b"VmExe", b"VmLib")
        )
        """Most that its shared mappings can hold, whatever of it is mapped in just now."""
        self.exact = False
        """Whether what it has in common with others counts by its share; of one that hides that, it counts in full."""
        if exact:
            share = _kilobytes(f"/proc/{pid}/smaps_rollup")
            if share:
                self.exact = True
                self.own = share.get(b"Pss_Anon", 0) + share.get(b"SwapPss", 0) + tables
                self.shared = share.get(b"Pss_Shmem", 0)


def _kilobytes(path: str) -> dict[bytes, int]:
    """The lines of a file that tell kilobytes, as bytes; nothing where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return {line.split(b":")[0]: int(line.split()[1]) << 10 for line in file if line.endswith(b" kB\n")}
    except OSError:
        return {}


def shared_mappings(pids: Iterable[int]) -> int:
    """Bytes of all mappings that belong to no file and are shared, each once."""
    sizes: dict[bytes, int] = {}
    for pid in pids:
        try:
            with open(f"/proc/{pid}/maps", "rb") as file:
                for line in file:
                    if line.endswith(b"/dev/zero (deleted)\n"):
                        start, _, end = line.split()[0].partition(b"-")
                        inode = line.split()[4]
                        sizes[inode] = max(sizes.get(inode, 0), int(end, 16) - int(start, 16))
        except OSError:
            pass
    return sum(sizes.values())


def used_pipes(pids: Iterable[int], exact: bool) -> int:
    """How many pipes there are; unless exact, how many descriptors.

    A process that hides its descriptors counts as if all that it may have were pipes.
    """
    pipes: set[str] = set()
    others = 0
    for pid in pids:
        folder = f"/proc/{pid}/fd"
        try:
            names = os.listdir(folder)
            if exact:
                links = [os.readlink(f"{folder}/{name}") for name in names]
                pipes.update(link for link in links if link.startswith("pipe:"))
            else:
                others += len(names)
        except PermissionError:
            others += MOST_DESCRIPTORS if _lives(pid) else 0
        except OSError:
            pass
    return len(pipes) + others


def _lives(pid: int) -> bool:
    """What a zombie had seems hidden, and is gone."""
    try:
        return not Process(pid).zombie
    except (FileNotFoundError, ProcessLookupError):
        return False


def used_sockets() -> tuple[int, int]:
    """How many sockets there are, and bytes that connections may hold for what was not sent or not received yet."""
    with open("/proc/net/sockstat", "rb") as file:
        count = int(file.readline().split()[2])
    most = 0
    for name in ("tcp_rmem", "tcp_wmem"):  # how far the kernel lets the buffers of one grow
        with open(f"/proc/sys/net/ipv4/{name}", "rb") as file:
            most += int(file.read().split()[2])
    held = 0
    for name in ("tcp", "tcp6"):
        if os.path.exists(f"/proc/net/{name}"):
            with open(f"/proc/net/{name}", "rb") as file:
                next(file)
                for line in file:
                    queued = sum(int(part, 16) for part in line.split()[4].split(b":"))
                    held += min(most, queued * BYTE_BYTES)
    return count, held


def last_number() -> int:
    """The newest process number."""
    with open("/proc/loadavg", "rb") as file:
        return int(file.read().split()[4])


class GroupFigures:
    """What the kernel counts for the control group of the box (`cgroup.py`), less what was there at the start."""

    def __init__(self, folder: str, root: str) -> None:
        self._folder = folder
        self._root = root
        self._memory = 0
        self._memory = self.memory()
        self._cpu = 0.0
        self._cpu = self.cpu() - time.process_time()

    def memory(self) -> int:
        """Bytes that processes and the kernel hold for the box: neither files in memory nor copies of files on disk."""
        usage = int(self._read("usage"))
        if os.path.exists(f"{self._folder}/tcp"):  # version 1 counts these apart
            usage += int(self._read("tcp"))
        stat = dict(line.split()[:2] for line in self._read("stat").splitlines())
        shared = int(stat[b"shmem"])
        copies = int(stat.get(b"file", stat.get(b"cache", 0))) - shared + int(stat.get(b"slab_reclaimable", 0))
        states = [os.statvfs(folder) for folder in ("/tmp", "/dev/shm", self._root)]
        files = sum((state.f_blocks - state.f_bfree) * state.f_frsize for state in states)
        entries = sum(state.f_files - state.f_ffree for state in states)
        return usage - copies - files - entries * ENTRY_BYTES - self._memory

    def cpu(self) -> float:
        """Processor seconds of all processes that are or were in it."""
        words = self._read("cpu").split()
        seconds = int(words[0]) / 1e9 if len(words) == 1 else int(words[1]) / 1e6
        return seconds - self._cpu

    def killed(self) -> int:
        """How many processes the kernel ended for want of memory."""
        lines = dict(line.split()[:2] for line in self._read("oom").splitlines())
        return int(lines.get(b"oom_kill", 0))

    def _read(self, name: str) -> bytes:
        with open(f"{self._folder}/{name}", "rb") as file:
            return file.read()


def used_files(folders: tuple[str, ...]) -> int:
    """How many files and folders there are."""
    return sum(state.f_files - state.f_ffree for state in map(os.statvfs, folders))
