"""A sandbox in the cloud of E2B. Needs the extra `e2b` and a key in E2B_API_KEY.

Memory, disk and the number of processes are those of the template; of the limits here time, output, network and, for
each process, processor time are kept. What a command detached from itself ends with the sandbox, not with a time-out.
Source: https://e2b.dev/docs/sdk-reference, SDK 2.63. Its command output is text, so output goes through files, which
are exact.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import posixpath
import secrets
import shlex
import time
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

from aworld.config.errors import ConfigError
from aworld.core.sandbox import ExecResult, FileInfo, SandboxError, SandboxLimits, SandboxProcess
from aworld.sandbox import reaper
from aworld.sandbox.base import BaseSandbox, archive, check_end, need_bytes, new_id
from aworld.sandbox.e2b_program import E2BProgram
from aworld.sandbox.reaper import Record

WORK = "/home/user/work"
LIFE_SECONDS = 3600
"""Until E2B ends a sandbox by itself, unless told otherwise."""
GRACE_SECONDS = 15.0
"""That a call may take longer than the command it runs."""
SNAPSHOT_BYTES = 1 << 30
KILLED = 128 + 9
OUT_OF_TIME = 128 + 24
"""The exit code of SIGXCPU."""


class E2BSandbox(BaseSandbox):
    """A sandbox of E2B. Made by `open`."""

    def __init__(self, limits: SandboxLimits, remote: Any, errors: Any, id: str) -> None:
        super().__init__(limits, id)
        self._remote = remote
        self._errors = errors
        self._closed = False
        self._programs: list[E2BProgram] = []

    @classmethod
    async def open(
        cls,
        template: str | None = None,
        limits: SandboxLimits | None = None,
        *,
        env: Mapping[str, str] | None = None,
        life_seconds: int = LIFE_SECONDS,
    ) -> E2BSandbox:
        """Make one from a template, by default E2B's own; it ends by itself after `life_seconds`.

        Raises `ConfigError` without the package or the key, `SandboxError` if E2B refuses.
        """
        limits = limits or SandboxLimits()
        sdk = _sdk()
        id = new_id()
        making = sdk.AsyncSandbox.create(
            template=template,
            timeout=life_seconds,
            metadata={"aworld": id},
            envs=dict(env or {}),
            allow_internet_access=limits.network,
        )
        try:
            remote = await making
        except (sdk.SandboxException, sdk.AuthenticationException) as error:
            raise SandboxError(f"E2B did not make a sandbox: {error}") from None
        sandbox = cls(limits, remote, sdk, id)
        try:
            reaper.record(id, "e2b", {"sandbox": remote.sandbox_id})
            await sandbox._call(remote.files.make_dir(WORK))
        except BaseException:
            await asyncio.shield(sandbox.close())
            raise
        return sandbox

    @property
    def alive(self) -> bool:
        """Whether it was not closed."""
        return not self._closed

    async def exec(
        self,
        command: Sequence[str] | str,
        *,
        stdin: bytes | None = None,
        cwd: str = ".",
        env: dict[str, str] | None = None,
        timeout: float | None = None,
    ) -> ExecResult:
        """Run a program (a list) or a shell line (text) to its end."""
        argv = ["bash", "-c", command] if isinstance(command, str) else list(command)
        if not argv:
            raise SandboxError("no command was given")
        seconds = self._seconds(stdin, timeout)
        files = f"/tmp/{secrets.token_hex(8)}"
        if stdin is not None:
            await self._call(self._remote.files.write(f"{files}.in", stdin))
        most = self.limits.output_bytes + 1
        cpu = int(self.limits.cpu_seconds) + 1
        line = (
            f"ulimit -S -t {cpu}; ulimit -H -t {cpu + 1}; "
            f"timeout -s KILL {seconds:g} {shlex.join(argv)} < {f'{files}.in' if stdin is not None else '/dev/null'} "
            f"> >(head -c {most} > {files}.out; cat > /dev/null) 2> >(head -c {most} > {files}.err; cat > /dev/null); "
            f"code=$?; while ! test -e {files}.out -a -e {files}.err; do sleep 0.01; done; exit $code"
        )
        started = time.monotonic()
        code = await self._line(line, _inside(cwd), env or {}, seconds)
        duration = time.monotonic() - started
        out, err = [bytes(await self._call(self._remote.files.read(f"{files}.{end}", format="bytes")))
                    for end in ("out", "err")]  # fmt: skip
        late = code == KILLED and duration >= seconds
        return ExecResult(
            exit_code=-9 if late else code,
            stdout=out[: most - 1],
            stderr=err[: most - 1],
            duration=duration,
            timed_out=late,
            truncated=len(out) == most or len(err) == most,
            limit="wall_seconds" if late else "cpu_seconds" if code == OUT_OF_TIME else None,
        )

    async def open_process(
        self, command: Sequence[str], *, cwd: str = ".", env: dict[str, str] | None = None
    ) -> SandboxProcess:
        """Start a program and leave it running; what it started ends with it. The template needs python3."""
        if not command:
            raise SandboxError("no command was given")
        if self._closed:
            raise SandboxError("the sandbox is closed")
        try:
            program = await E2BProgram.start(
                self._remote.commands, command, _inside(cwd), env or {}, self._call, self._to_end
            )
        except (SandboxError, FileNotFoundError) as error:
            raise SandboxError(f"{command[0]} cannot be started in {cwd}: {error}") from None
        self._programs = [*(known for known in self._programs if known.running), program]
        return program

    async def read(self, path: str) -> bytes:
        """A file's bytes. Raises FileNotFoundError or SandboxError."""
        return bytes(await self._call(self._remote.files.read(_inside(path), format="bytes")))

    async def write(self, path: str, data: bytes) -> None:
        """Write a file; its folders are made."""
        need_bytes("data", data)
        await self._call(self._remote.files.write(_inside(path), data))

    async def list(self, path: str = ".") -> list[FileInfo]:
        """The entries of a folder, by name."""
        entries = await self._call(self._remote.files.list(_inside(path)))
        found = [FileInfo(entry.name, entry.type.value == "dir", 0 if entry.type.value == "dir" else entry.size)
                 for entry in entries]  # fmt: skip
        return sorted(found, key=lambda entry: entry.name)

    async def upload(self, source: Path | str, path: str) -> None:
        """Copy a file, or what is in a folder, of this machine into the sandbox. Links stay links."""
        source = Path(source)
        target = PurePosixPath(_inside(path))
        data = await asyncio.to_thread(archive, source, target.name, self.limits.disk_mb << 20)
        await self._unpack(data, str(target if source.is_dir() else target.parent))

    async def snapshot(self) -> bytes:
        """The work folder as a tar archive."""
        name = f"/tmp/{secrets.token_hex(8)}.tar"
        await self._must(f"tar -c -f {name} -C {WORK} . && test $(stat -c %s {name}) -lt {SNAPSHOT_BYTES}")
        return bytes(await self._call(self._remote.files.read(name, format="bytes")))

    async def restore(self, snapshot: bytes) -> None:
        """Put a snapshot in the place of what is in the work folder; a broken one is refused before."""
        need_bytes("snapshot", snapshot)
        check_end(snapshot)
        await self._unpack(snapshot, WORK, f"find {WORK} -mindepth 1 -delete")

    async def close(self) -> None:
        """Destroy the sandbox."""
        if not self._closed:
            self._closed = True
            for program in self._programs:
                program.leave("the sandbox is closed")
            with suppress(FileNotFoundError):  # E2B ended it already
                await self._call(self._remote.kill(), closing=True)
            await reaper.forget(self.id)

    async def _unpack(self, data: bytes, folder: str, before: str = ":") -> None:
        name = f"/tmp/{secrets.token_hex(8)}.tar"
        await self._call(self._remote.files.write(name, data))
        folder = shlex.quote(folder)
        # The whole archive is read before anything is touched.
        line = f"tar -t -f {name} > /dev/null && {before} && mkdir -p {folder} && tar -x -f {name} -C {folder}"
        await self._must(f"{line}; code=$?; rm -f {name}; exit $code")

    async def _must(self, line: str) -> None:
        if code := await self._line(line, "/", {}, self.limits.wall_seconds):
            raise SandboxError(f"E2B: {line!r} ended with {code}")

    async def _to_end(self, line: str) -> int:
        return await self._line(line, "/", {}, self.limits.wall_seconds)

    async def _line(self, line: str, cwd: str, env: Mapping[str, str], seconds: float) -> int:
        """Run a shell line and give its exit code."""
        running = self._remote.commands.run(line, cwd=cwd, envs=dict(env), timeout=seconds + GRACE_SECONDS)
        try:
            return (await self._call(running)).exit_code
        except self._errors.CommandExitException as error:
            return error.exit_code

    async def _call(self, work: Awaitable[Any], closing: bool = False) -> Any:
        """Await a call of the SDK, with its errors as ours; but not the end of a command."""
        if self._closed and not closing:
            if inspect.iscoroutine(work):
                work.close()  # it will not be awaited
            raise SandboxError("the sandbox is closed")
        try:
            return await work
        except self._errors.CommandExitException:
            raise
        except self._errors.NotFoundException as error:
            raise FileNotFoundError(str(error)) from None
        except self._errors.SandboxException as error:
            raise SandboxError(f"E2B: {error}") from None


async def destroy(found: Record) -> None:
    """Destroy a sandbox that a dead runtime left behind."""
    sdk = _sdk()
    try:
        await sdk.AsyncSandbox.kill(found.detail["sandbox"])
    except (sdk.SandboxException, sdk.AuthenticationException) as error:
        raise SandboxError(f"E2B: {error}") from None


def _sdk() -> Any:
    """The SDK. Raises `ConfigError` without it, or without a key."""
    try:
        sdk = import_module("e2b")
    except ImportError as error:
        raise ConfigError("sandbox=e2b | needs an extra: pip install 'aworld[e2b]'") from error
    if not os.environ.get("E2B_API_KEY"):
        raise ConfigError("sandbox=e2b | needs a key in the variable E2B_API_KEY")
    return sdk


def _inside(path: str) -> str:
    """The path there. Raises `SandboxError` if it leads out by its words; links lead only about the remote machine."""
    full = posixpath.normpath(posixpath.join(WORK, path))
    if "\0" in path or not f"{full}/".startswith(f"{WORK}/"):
        raise SandboxError(f"{path}: leads out of the work folder")
    return full
