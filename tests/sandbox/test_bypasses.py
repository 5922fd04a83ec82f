"""Ways around the limits of a box that are refused, by the kernel's count and by the worker's own.

Each holds at most 100 MB, or 4 s of a processor.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from aworld.core.exceptions import AWorldError
from aworld.core.sandbox import SandboxError, SandboxLimits
from aworld.sandbox import cgroup
from aworld.sandbox.local_sandbox import LimitsBy
from aworld.sandbox.worker_proc import GroupFigures
from tests.sandbox.places import local, needs_bubblewrap, needs_group, python

pytestmark = needs_bubblewrap
LIMITS = SandboxLimits(memory_mb=48, disk_mb=16, processes=24, cpu_seconds=20, wall_seconds=30)


SHARED_UNMAPPED = """
import mmap
held = mmap.mmap(-1, 100 << 20)
for start in range(0, 100 << 20, 1 << 20):
    held[start:start + (1 << 20)] = bytes(1 << 20)
    held.madvise(mmap.MADV_DONTNEED, start, 1 << 20)
"""
PAGE_TABLES = """
import mmap, os
for _ in range(3):
    if os.fork() == 0:
        break
held = mmap.mmap(-1, 12 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000, prot=mmap.PROT_READ)
for start in range(0, 12 << 30, 2 << 20):
    held[start]
"""
TCP = """
import socket
server = socket.create_server(("127.0.0.1", 0))
held = []
for _ in range(40):
    held += [socket.create_connection(server.getsockname()), server.accept()[0]]
    held[-1].setblocking(False)
    try:
        for _ in range(100):
            held[-1].send(bytes(1 << 18))
    except BlockingIOError:
        pass
"""
PIPES = """
import os
for _ in range(3):
    if os.fork() == 0:
        break
held = []
for _ in range(400):
    held.append(os.pipe())
    os.set_blocking(held[-1][1], False)
    os.write(held[-1][1], bytes(1 << 16))
"""
PIPES_HIDDEN = "import ctypes; ctypes.CDLL(None).prctl(4, 0)\n" + PIPES
UNLINKED_IN_PIPES = """
import os
for _ in range(3):
    if os.fork() == 0:
        break
held = []
for number in range(400):
    file = os.open(str(os.getpid()), os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.write(file, bytes(1 << 16))
    held.append(os.pipe())
    os.splice(file, held[-1][1], 1 << 16, offset_src=0)
    os.close(file)
    os.unlink(str(os.getpid()))
"""
MAPPINGS = """
import ctypes, mmap, os
libc = ctypes.CDLL(None)
for _ in range(6):
    if os.fork() == 0:
        break
for number in range(60_000):
    libc.mmap(None, 4096, 1 + number % 2 * 4, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
"""
HOLD = "\nimport time; time.sleep(2); print('held', flush=True)"


@pytest.mark.parametrize("program", [SHARED_UNMAPPED, PAGE_TABLES, TCP, PIPES, PIPES_HIDDEN, UNLINKED_IN_PIPES])
async def test_memory_that_is_of_no_process_counts(program: str, way: LimitsBy) -> None:
    async with local(LIMITS, limits_by=way) as box:
        assert box.limits_by == way
        result = await python(box, program + HOLD)
        assert b"held" not in result.stdout, result
        assert result.limit == "memory_mb" or b"MemoryError" in result.stderr, result
        assert (await box.exec("echo fine")).stdout == b"fine\n"


async def test_memory_of_the_kernel_counts_where_the_kernel_counts() -> None:
    needs_group()
    async with local(LIMITS, limits_by="cgroup") as box:
        result = await python(box, MAPPINGS + HOLD)
        assert result.limit == "memory_mb", result
        assert (await box.exec("echo fine")).stdout == b"fine\n"


async def test_what_is_no_memory_of_processes_does_not_count(way: LimitsBy) -> None:
    """Files in the box, names and copies of files of the machine, connections and sockets that hold nothing."""
    idle = """
import socket
server = socket.create_server(("127.0.0.1", 0))
held = [(socket.create_connection(server.getsockname()), server.accept()) for _ in range(30)]
import time; time.sleep(0.5); print("fine")
"""
    async with local(LIMITS, limits_by=way) as box:
        assert (await python(box, idle)).stdout == b"fine\n"
        assert (await box.exec("ls -lR /usr > /dev/null 2>&1")).limit is None
        assert (await box.exec("head -c 15M /dev/zero > file; head -c 15M /dev/zero > /tmp/a")).limit is None
        result = await box.exec("cat file /tmp/a | wc -c; rm file /tmp/a; sleep 0.3; echo fine")
        assert result.stdout == b"%d\nfine\n" % (30 << 20)


async def test_what_holds_memory_outside_of_processes_cannot_be_had() -> None:
    program = """
import ctypes, fcntl, os, platform, socket
libc = ctypes.CDLL(None, use_errno=True)
numbers = (190, 180, 75, 0) if platform.machine() == "aarch64" else (64, 240, 278, 206)
for number in (*numbers, 467, 999):  # semget, mq_open, vmsplice, io_setup, open_tree_attr, and one of the future
    assert libc.syscall(number, 0, 0, 0, 0) == -1 and ctypes.get_errno() == 38, number
one, other = socket.socketpair()
before = one.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
assert one.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == before
one.settimeout(1)
for call in (lambda: fcntl.fcntl(os.pipe()[1], 1031, 1 << 20), lambda: socket.socket(16, 3, 12),
             lambda: socket.socket(16, 3, 15), lambda: socket.socket(2, 1, 262)):  # netfilter, uevents, MPTCP
    try:
        call()
        print("had")
    except OSError:
        pass
socket.socket(16, 3, 0)
print("fine")
"""
    async with local(LIMITS) as box:
        result = await python(box, program)
        assert (result.stdout, result.stderr) == (b"fine\n", b"")


LOSING = """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
end = time.monotonic() + {seconds}
while time.monotonic() < end:
    if os.fork() == 0:
        start = time.process_time()
        while time.process_time() < start + {each}:
            pass
        os._exit(0)
    try:
        os.wait()
    except ChildProcessError:
        pass
    open("born", "a").write(".")
"""


@pytest.mark.parametrize("each", [0.03, 0.3])
async def test_processor_time_that_nobody_waited_for_counts(each: float, way: LimitsBy) -> None:
    async with local(SandboxLimits(cpu_seconds=0.6, wall_seconds=20, memory_mb=128), limits_by=way) as box:
        losing = LOSING.format(seconds=60, each=each)
        if way == "cgroup" or each > 0.1:  # else the time of the command is all that ends it
            assert (await python(box, losing)).limit == "cpu_seconds"
        await box.exec(["setsid", "-f", "python", "-c", losing])
        async with asyncio.timeout(25):
            born, before = b"", b"."
            while not born or born != before:
                before, born = born, (await box.exec("cat born")).stdout
                await asyncio.sleep(1.5)  # no command runs meanwhile
        assert len(born) * each < 4
        assert (await box.exec("echo fine")).stdout == b"fine\n"


async def test_time_of_a_program_that_is_kept_is_not_charged_to_others(way: LimitsBy) -> None:
    async with local(SandboxLimits(cpu_seconds=0.6, wall_seconds=20, memory_mb=128), limits_by=way) as box:
        kept = await box.open_process(["python", "-c", LOSING.format(seconds=2, each=0.03) + "\nprint('done')"])
        assert (await box.exec("sleep 1; echo fine")).stdout == b"fine\n"
        assert await kept.receive() == b"done\n"


async def test_the_place_of_the_worker_is_nobodys_to_set() -> None:
    attack = """
import os, resource, signal
ways = {
    "prlimit": lambda: resource.prlimit(1, resource.RLIMIT_NOFILE, (0, 0)),
    "renice": lambda: os.setpriority(os.PRIO_PROCESS, 1, 19),
    "renice all": lambda: os.setpriority(os.PRIO_USER, 0, 19),
    "renice group": lambda: os.setpriority(os.PRIO_PGRP, 1, 19),
    "idle": lambda: os.sched_setscheduler(1, os.SCHED_IDLE, os.sched_param(0)),
    "processors": lambda: os.sched_setaffinity(1, {0}),
}
for name, call in ways.items():
    try:
        call()
        print(name)
    except PermissionError:
        pass
os.nice(1)
os.setpriority(os.PRIO_PROCESS, os.getpid(), 5)
os.sched_setaffinity(0, os.sched_getaffinity(0))
resource.prlimit(os.getpid(), resource.RLIMIT_NOFILE, (64, 64))
print("fine")
"""
    async with local(LIMITS) as box:
        assert (await python(box, attack)).stdout == b"fine\n"
        assert (await box.exec("cat /proc/cmdline /proc/interrupts /proc/modules")).stdout == b""
        assert (await box.exec("cut -d' ' -f19 /proc/1/stat")).stdout == b"0\n"


async def test_a_group_is_gone_with_its_box() -> None:
    needs_group()
    async with local(LIMITS) as box:
        assert box._group is not None
        folders = box._group.folders
        assert all(folder.exists() for folder in folders)
        await box.exec("sleep 1000 & echo")
        os.kill(box.pid, 9)
    assert not any(folder.exists() for folder in folders)


async def test_groups_of_dead_runtimes_are_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_group()
    left = cgroup.make_group("aworld-left", LIMITS, 0)
    assert left is not None
    async with local(LIMITS) as box:
        monkeypatch.setattr(cgroup, "FRESH_SECONDS", -1.0)
        await asyncio.to_thread(cgroup.sweep)
        assert not any(folder.exists() for folder in left.folders)
        assert (await box.exec("echo fine")).stdout == b"fine\n"


def test_who_may_not_make_a_group_counts() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    pid = os.fork()
    if pid == 0:
        os.setgid(65534)
        os.setuid(65534)
        os._exit(0 if cgroup.make_group("aworld-nobody", LIMITS, 0) is None else 1)
    assert os.waitpid(pid, 0)[1] == 0


async def test_a_way_that_cannot_be_had_is_refused() -> None:
    with pytest.raises(AWorldError, match="limits_by='guessing' is not known"):
        async with local(LIMITS, limits_by="guessing"):
            pass


async def test_without_a_group_one_that_must_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "KINDS_V1", ("memory", "of another kernel"))
    if cgroup.make_group("aworld-test", LIMITS, 0) is not None:
        pytest.skip("this machine has control groups of version 2")
    with pytest.raises(SandboxError, match="no control group can be made here: run as root"):
        async with local(LIMITS, limits_by="cgroup"):
            pass
    async with local(LIMITS) as box:
        assert box.limits_by == "counting"


def test_figures_of_version_2(tmp_path: Path) -> None:
    (tmp_path / "usage").write_text(f"{90 << 20}\n")
    (tmp_path / "stat").write_text(f"anon 1\nfile {30 << 20}\nshmem {10 << 20}\nslab_reclaimable {5 << 20}\n")
    (tmp_path / "oom").write_text("low 0\nhigh 0\nmax 3\noom 1\noom_kill 2\n")
    (tmp_path / "cpu").write_text("usage_usec 500000\nuser_usec 1\nsystem_usec 2\n")
    figures = GroupFigures(str(tmp_path), str(tmp_path))
    (tmp_path / "usage").write_text(f"{99 << 20}\n")
    (tmp_path / "stat").write_text(f"anon 1\nfile {31 << 20}\nshmem {10 << 20}\nslab_reclaimable {6 << 20}\n")
    (tmp_path / "cpu").write_text("usage_usec 2500000\nuser_usec 1\nsystem_usec 2\n")
    assert abs(figures.memory() - (7 << 20)) < 1 << 20
    assert figures.cpu() >= 2
    assert figures.killed() == 2
