"""What the tests of sandboxes share: boxes, and a look at the machine from outside."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import select
import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from aworld.core.context.base import Context, RunScope
from aworld.core.event import TaskInfo
from aworld.core.exceptions import ToolError
from aworld.core.sandbox import ExecResult, Sandbox, SandboxLimits
from aworld.core.tool.base import ToolContext
from aworld.sandbox import SandboxPool, open_sandbox
from aworld.sandbox.cgroup import make_group
from aworld.sandbox.local_sandbox import Isolation, LocalSandbox
from aworld.sandbox.pool import PooledSandbox
from aworld.tools.python import python_tool

needs_bubblewrap = pytest.mark.skipif(
    shutil.which("bwrap") is None and not os.environ.get("CI"),  # CI installs it, and fails if it did not
    reason="bubblewrap is not installed (apt install bubblewrap)",
)
IMAGE = os.environ.get("AWORLD_TEST_IMAGE")
"""An image with a shell and python3, where there is an engine to run it."""
needs_engine = pytest.mark.skipif(
    IMAGE is None, reason="AWORLD_TEST_IMAGE names no image; it needs a shell and python3, and Docker or Podman"
)
needs_e2b = pytest.mark.skipif(
    importlib.util.find_spec("e2b") is None or shutil.which("bwrap") is None,
    reason="the SDK of E2B is not installed (pip install e2b), or bubblewrap is not",
)
SMALL = SandboxLimits(
    cpu_seconds=5, wall_seconds=20, memory_mb=128, processes=24, disk_mb=16, output_bytes=10_000, network=False
)


def needs_group() -> None:
    """Skip where no control group can be made."""
    group = make_group("aworld-test", SMALL, 0)
    if group is None:
        pytest.skip("no control group can be made here (run as root, or by systemd-run --user --scope)")
    for folder in group.folders:
        folder.rmdir()


@asynccontextmanager
async def local(
    limits: SandboxLimits = SMALL, isolation: Isolation = "bubblewrap", **options: Any
) -> AsyncGenerator[LocalSandbox]:
    """A sandbox for the length of a test."""
    sandbox = await LocalSandbox.open(limits, isolation=isolation, **options)
    async with sandbox:
        yield sandbox


async def python(sandbox: LocalSandbox, program: str, **options: Any) -> ExecResult:
    """Run a Python program in a sandbox."""
    return await sandbox.exec(["python", "-c", program], **options)


async def keeps_variables(kind: str, seconds: int = 8) -> None:
    """The tool `python` in a sandbox of this kind: variables stay, and what takes longer than it allows is killed."""
    limits = replace(SMALL, wall_seconds=seconds)
    async with SandboxPool(lambda: open_sandbox(kind, limits), size=1) as pool:
        scope = RunScope("run", TaskInfo("task"))
        tool = scope.own(python_tool(pool))

        async def run(code: str) -> Any:
            state: dict[str, Any] = {}
            at = ToolContext("run", "bob", 0, "call", Context("run", TaskInfo("task"), state, state.__setitem__))
            return await tool.invoke(json.dumps({"code": code}), at)

        assert await run("x = 20; print('ü')") == "ü"
        assert await run("x += 1; open('kept', 'w').write(str(2 * x)); x") == "21"
        with pytest.raises(ToolError, match=rf"killed after {seconds} s \(limit: wall_seconds"):
            await run("while True: pass")
        with pytest.raises(ToolError, match="x"):
            await run("x")
        assert await run("open('kept').read()") == "'42'"
        for copy in scope.copies():
            if hasattr(copy, "end_run"):
                await copy.end_run()


class NamedPool(SandboxPool):
    """A pool, and runs by name that have sandboxes of it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._runs: dict[str, RunScope] = {}

    def run(self, name: str) -> PooledSandbox:
        pool: Any = self
        return self._runs.setdefault(name, RunScope(name, TaskInfo(name))).own(pool)

    async def lease(self, name: str) -> Sandbox:
        return await self.run(name).open()

    async def rest(self, name: str) -> None:
        await self.run(name).rest()

    async def end_run(self, name: str) -> None:
        await self.run(name).end_run()

    def holds(self, name: str) -> bool:
        """Whether files of the run were put aside, as seen by one that goes on elsewhere."""
        return not self.for_run(RunScope(name, TaskInfo(name), frozenset({"python"}))).lost


def new_mark() -> str:
    """Seconds to sleep that nothing else on this machine sleeps, by which a process is found from outside."""
    return f"{random.randrange(1000, 9999)}.{os.getpid()}"


def marked(marker: str) -> list[int]:
    """The processes of this machine with a word in their command line."""
    found: list[int] = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if marker.encode() in command_line(name) and int(name) != os.getpid():
                found.append(int(name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def command_line(name: str) -> bytes:
    """The command line of a process. In the middle of an `exec` it is empty for a moment: then it is read again."""
    for _ in range(10_000):
        with open(f"/proc/{name}/cmdline", "rb") as file:
            if line := file.read():
                return line
        os.readlink(f"/proc/{name}/exe")  # threads of the kernel and zombies have none: FileNotFoundError
    return b""


def gone(pids: list[int], seconds: float = 10) -> bool:
    """Wait until these processes have ended, whosever they are."""
    poll = select.poll()
    watched: set[int] = set()
    for pid in pids:
        try:
            watched.add(os.pidfd_open(pid))
        except ProcessLookupError:
            continue
    for descriptor in watched:
        poll.register(descriptor, select.POLLIN)
    while watched:
        ended = [descriptor for descriptor, _ in poll.poll(seconds * 1000)]
        for descriptor in ended:
            poll.unregister(descriptor)
            os.close(descriptor)
        watched -= set(ended)
        if not ended:
            return False
    return True
