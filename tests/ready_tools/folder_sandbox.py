"""A sandbox for tests: a folder and plain processes. It isolates nothing but paths, so only our own code runs in it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Sequence
from pathlib import Path

from aworld.core.context.base import RunScope
from aworld.core.sandbox import ExecResult, FileInfo, Sandbox, SandboxError, SandboxLimits, SandboxProcess

OUTPUT = 1_000_000


class FolderProcess:
    """A child in a process group of its own."""

    def __init__(self, process: Process) -> None:
        self.process = process

    async def send(self, data: bytes) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(data)
            await self.process.stdin.drain()
        except OSError as error:
            raise SandboxError("the program has ended") from error

    async def receive(self, size: int = 65_536) -> bytes:
        assert self.process.stdout is not None
        return await self.process.stdout.read(size)

    async def stop(self) -> None:
        _kill(self.process)
        assert self.process.stdout is not None
        async with asyncio.timeout(10):
            # asyncio sees an end only behind all output: one that was flooded and is not read to it never ends.
            while await self.process.stdout.read(OUTPUT):
                pass
            await self.process.wait()


def _kill(process: Process) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


class FolderSandbox:
    """Work in `folder`."""

    limits_by = "counting"

    def __init__(self, folder: Path, id: str = "box", limits: SandboxLimits | None = None) -> None:
        self.id = id
        self.limits = limits or SandboxLimits()
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.processes: list[FolderProcess] = []
        self.closed = 0

    @property
    def alive(self) -> bool:
        return not self.closed

    def _inside(self, path: str) -> Path:
        found = (self.folder / path).resolve()
        if not found.is_relative_to(self.folder):
            raise SandboxError(f"{path!r} leads out of the work folder")
        return found

    def _environment(self, env: dict[str, str] | None) -> dict[str, str]:
        return {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(self.folder), **(env or {})}

    async def exec(
        self,
        command: Sequence[str] | str,
        *,
        stdin: bytes | None = None,
        cwd: str = ".",
        env: dict[str, str] | None = None,
        timeout: float | None = None,
    ) -> ExecResult:
        line = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        started = time.perf_counter()
        process = await asyncio.create_subprocess_exec(
            *line, cwd=self._inside(cwd), env=self._environment(env), stdin=DEVNULL if stdin is None else PIPE,
            stdout=PIPE, stderr=PIPE, start_new_session=True,
        )  # fmt: skip
        late = False
        work = asyncio.ensure_future(process.communicate(stdin))
        try:
            await asyncio.wait((work,), timeout=timeout or 30)
            late = not work.done()
        finally:
            _kill(process)
        out, err = await work
        cut = len(out) > OUTPUT or len(err) > OUTPUT
        code = process.returncode
        assert code is not None
        return ExecResult(code, out[:OUTPUT], err[:OUTPUT], time.perf_counter() - started, late, cut)

    async def open_process(
        self, command: Sequence[str], *, cwd: str = ".", env: dict[str, str] | None = None
    ) -> SandboxProcess:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=self._inside(cwd), env=self._environment(env), stdin=PIPE, stdout=PIPE, stderr=DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        self.processes.append(FolderProcess(process))
        return self.processes[-1]

    async def read(self, path: str) -> bytes:
        return self._inside(path).read_bytes()

    async def write(self, path: str, data: bytes) -> None:
        target = self._inside(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)

    async def list(self, path: str = ".") -> list[FileInfo]:
        await asyncio.sleep(0)  # others get their turn, as with a real one
        found = sorted(self._inside(path).iterdir())
        return [FileInfo(f.name, f.is_dir(), 0 if f.is_dir() else f.lstat().st_size) for f in found]

    async def upload(self, source: Path | str, path: str) -> None:
        shutil.copy(source, self._inside(path))

    async def snapshot(self) -> bytes:
        raise NotImplementedError

    async def restore(self, snapshot: bytes) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        self.closed += 1
        for process in self.processes:
            await process.stop()


class FolderSource:
    """A sandbox for each run, below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.open: dict[str, FolderSandbox] = {}
        self.ended: list[str] = []

    def for_run(self, scope: RunScope) -> FolderOfRun:
        return FolderOfRun(self, scope)


class FolderOfRun:
    """What one run has of a `FolderSource`."""

    def __init__(self, source: FolderSource, scope: RunScope) -> None:
        self.source = source
        self.run = scope.trajectory_id
        self.lost = bool(scope.used)

    async def open(self) -> Sandbox:
        if self.run not in self.source.open:
            self.source.open[self.run] = FolderSandbox(self.source.folder / self.run, self.run)
        return self.source.open[self.run]

    async def rest(self) -> None:
        return

    async def end_run(self) -> None:
        self.source.ended.append(self.run)
        box = self.source.open.pop(self.run, None)
        if box is not None:
            await box.close()
