"""A sandbox in the cloud of E2B. Needs the SDK (`pip install "e2b>=2.63"`) and a key in E2B_API_KEY.

Memory, disk and the number of processes are those of the template; of the limits here time, output, network and, for
each process, processor time are kept. What a command detached from itself ends with the sandbox, not with a time-out.
Source: https://e2b.dev/docs/sdk-reference, SDK 2.63. Its command output is text, so output goes through files, which
are exact.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import secrets
import shlex
import time
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from typing import Any

from aworld.config.errors import ConfigError
from aworld.core.extras import import_extra
from aworld.core.sandbox import ExecResult, FileInfo, SandboxError, SandboxLimits, SandboxProcess
from aworld.sandbox import reaper
from aworld.sandbox.base_sandbox import RemoteSandbox, check_end, new_id
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


class E2BSandbox(RemoteSandbox):
    """A sandbox of E2B. Made by `open`."""

    shell = "bash"
    work = WORK
    limits_by = "machine"

    def __init__(self, limits: SandboxLimits, remote: Any, errors: Any, id: str) -> None:
        super().__init__(limits, id)
        self._remote = remote
        self._errors = errors

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

    async def _exec(
        self, argv: list[str], stdin: bytes | None, cwd: str, env: Mapping[str, str], timeout: float
    ) -> ExecResult:
        files = f"/tmp/{secrets.token_hex(8)}"
        if stdin is not None:
            await self._call(self._remote.files.write(f"{files}.in", stdin))
        most = self.limits.output_bytes + 1
        cpu = int(self.limits.cpu_seconds) + 1
        line = (
            f"ulimit -S -t {cpu}; ulimit -H -t {cpu + 1}; "
            f"timeout -s KILL {timeout:g} {shlex.join(argv)} < {f'{files}.in' if stdin is not None else '/dev/null'} "
            f"> >(head -c {most} > {files}.out; cat > /dev/null) 2> >(head -c {most} > {files}.err; cat > /dev/null); "
            f"code=$?; while ! test -e {files}.out -a -e {files}.err; do sleep 0.01; done; exit $code"
        )
        started = time.monotonic()
        code = await self._line(line, self.inside(cwd), env, timeout)
        duration = time.monotonic() - started
        out, err = [bytes(await self._call(self._remote.files.read(f"{files}.{end}", format="bytes")))
                    for end in ("out", "err")]  # fmt: skip
        late = code == KILLED and duration >= timeout
        return ExecResult(
            exit_code=-9 if late else code,
            stdout=out[: most - 1],
            stderr=err[: most - 1],
            duration=duration,
            timed_out=late,
            truncated=len(out) == most or len(err) == most,
            limit="wall_seconds" if late else "cpu_seconds" if code == OUT_OF_TIME else None,
        )

    async def _open_process(self, argv: list[str], cwd: str, env: Mapping[str, str]) -> SandboxProcess:
        self._check_open()  # the template needs python3
        program = await E2BProgram.start(self._remote.commands, argv, self.inside(cwd), env, self._call, self._to_end)
        self._keep(program)
        return program

    async def read(self, path: str) -> bytes:
        """A file's bytes. Raises FileNotFoundError or SandboxError."""
        return bytes(await self._call(self._remote.files.read(self.inside(path), format="bytes")))

    async def _write(self, path: str, data: bytes) -> None:
        await self._call(self._remote.files.write(self.inside(path), data))

    async def list(self, path: str = ".") -> list[FileInfo]:
        """The entries of a folder, by name."""
        entries = await self._call(self._remote.files.list(self.inside(path)))
        folders = [entry.type.value == "dir" for entry in entries]
        listed = [FileInfo(e.name, folder, 0 if folder else e.size) for e, folder in zip(entries, folders)]
        return sorted(listed, key=lambda entry: entry.name)

    async def snapshot(self) -> bytes:
        """The work folder as a tar archive."""
        name = f"/tmp/{secrets.token_hex(8)}.tar"
        await self._must(f"tar -c -f {name} -C {WORK} . && test $(stat -c %s {name}) -lt {SNAPSHOT_BYTES}")
        return bytes(await self._call(self._remote.files.read(name, format="bytes")))

    async def _restore(self, snapshot: bytes) -> None:
        check_end(snapshot)  # a broken one is refused before anything is touched
        await self._unpack(snapshot, ".", f"find {WORK} -mindepth 1 -delete")

    async def _destroy(self) -> None:
        with suppress(FileNotFoundError):  # E2B ended it already
            await self._call(self._remote.kill(), closing=True)

    @staticmethod
    async def destroy(record: Record) -> None:
        """Destroy a sandbox that a dead runtime left behind."""
        sdk = _sdk()
        try:
            await sdk.AsyncSandbox.kill(record.detail["sandbox"])
        except (sdk.SandboxException, sdk.AuthenticationException) as error:
            raise SandboxError(f"E2B: {error}") from None

    async def _unpack(self, data: bytes, folder: str, before: str = ":") -> None:
        name = f"/tmp/{secrets.token_hex(8)}.tar"
        await self._call(self._remote.files.write(name, data))
        folder = shlex.quote(self.inside(folder))
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


def _sdk() -> Any:
    """The SDK. Raises `ConfigError` without it, or without a key."""
    sdk = import_extra("e2b", "sandbox=e2b", "e2b>=2.63")
    if not os.environ.get("E2B_API_KEY"):
        raise ConfigError("sandbox=e2b | needs a key in the variable E2B_API_KEY")
    return sdk
