"""What the kinds of sandboxes share."""

from __future__ import annotations

import asyncio
import io
import posixpath
import secrets
import tarfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import ClassVar, Protocol, Self

from aworld.config.errors import ConfigError
from aworld.core.checks import positive
from aworld.core.sandbox import ExecResult, SandboxError, SandboxLimits, SandboxProcess
from aworld.sandbox import reaper

_BY_SIGNAL = {24: "cpu_seconds", 25: "disk_mb"}
"""SIGXCPU and SIGXFSZ of Linux; other systems have no names or other numbers for them."""
READ_BYTES = 64 << 20
"""Most that `read` gives: it is held in the memory of the runtime."""
END_BYTES = 1024
"""Zeros at the end of a tar archive."""


def limit_of(exit_code: int) -> str | None:
    """The limit for which the kernel kills by a signal of its own. Shells and engines tell signals as 128 and more."""
    return _BY_SIGNAL.get(-exit_code if exit_code < 0 else exit_code - 128)


def new_id() -> str:
    """A name for a sandbox, unique in the world."""
    return f"aworld-{secrets.token_hex(6)}"


def need_bytes(option: str, data: object) -> None:
    """Raise `ConfigError` for what is not bytes."""
    if not isinstance(data, bytes | bytearray):
        remedy = f"encode it: {option}.encode()" if isinstance(data, str) else "give bytes"
        raise ConfigError(f"{option} | must be bytes, not {type(data).__name__}; {remedy}")


def check_end(snapshot: bytes) -> None:
    """Raise `SandboxError` for an archive without its end: some programs named tar take what is cut off as it is."""
    if len(snapshot) < END_BYTES or any(snapshot[-END_BYTES:]):
        raise SandboxError("the snapshot is no tar archive, or was cut off")


class BaseSandbox:
    """What is checked and told once, for all kinds of sandboxes; `aworld.core.sandbox.Sandbox` says what it means.

    A kind opens itself, and writes `list`, `close`, `_exec`, `_open_process`, and `_do` or what is made of it.
    """

    shell: ClassVar[str] = "/bin/sh"
    """Runs commands that are text."""
    limits_by: str = "counting"
    """`cgroup`, `counting` or `machine`; see `aworld.core.sandbox.Sandbox`."""

    def __init__(self, limits: SandboxLimits, id: str | None = None) -> None:
        self.id = id or new_id()
        self.limits = limits

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def exec(
        self,
        command: Sequence[str] | str,
        *,
        stdin: bytes | None = None,
        cwd: str = ".",
        env: dict[str, str] | None = None,
        timeout: float | None = None,
    ) -> ExecResult:
        """Run a program (a list) or a shell line (text) to its end. Raises `SandboxError` and `ConfigError`."""
        argv = [self.shell, "-c", command] if isinstance(command, str) else _program(command)
        if stdin is not None:
            need_bytes("stdin", stdin)
        if timeout is None:
            timeout = self.limits.wall_seconds
        positive("timeout", timeout)
        return await self._exec(argv, stdin, cwd, env or {}, timeout)

    async def open_process(
        self, command: Sequence[str], *, cwd: str = ".", env: dict[str, str] | None = None
    ) -> SandboxProcess:
        """Start a program and leave it running; what it started ends with it. Raises `SandboxError`."""
        argv = _program(command)
        try:
            return await self._open_process(argv, cwd, env or {})
        except (SandboxError, FileNotFoundError) as error:
            raise SandboxError(f"{argv[0]} cannot be started in {cwd}: {error}") from None

    async def read(self, path: str) -> bytes:
        """A file's bytes; at most 64 MB. Raises FileNotFoundError, IsADirectoryError or SandboxError."""
        return await self._do("read", path, most=READ_BYTES)

    async def write(self, path: str, data: bytes) -> None:
        """Write a file; its folders are made. A file that cannot be written stays as it was."""
        need_bytes("data", data)
        await self._write(path, data)

    async def snapshot(self) -> bytes:
        """The work folder as a tar archive."""
        # Sparse files are packed in full, so an archive can be larger than what it was made of.
        return await self._do("pack", ".", most=2 * (self.limits.disk_mb << 20))

    async def upload(self, source: Path | str, path: str) -> None:
        """Copy a file, or what is in a folder, of this machine into the sandbox. Links stay links."""
        source = Path(source)
        target = PurePosixPath(path)
        data = await asyncio.to_thread(archive, source, target.name, self.limits.disk_mb << 20)
        await self._unpack(data, str(target if source.is_dir() else target.parent))

    async def restore(self, snapshot: bytes) -> None:
        """Put a snapshot in the place of what is in the work folder. After a failure that is as it was."""
        need_bytes("snapshot", snapshot)
        await self._restore(snapshot)

    async def close(self) -> None:
        """Destroy the sandbox."""
        raise NotImplementedError

    # What a kind writes

    async def _exec(
        self, argv: list[str], stdin: bytes | None, cwd: str, env: Mapping[str, str], timeout: float
    ) -> ExecResult:
        """Run a program to its end, for at most so many seconds."""
        raise NotImplementedError

    async def _open_process(self, argv: list[str], cwd: str, env: Mapping[str, str]) -> SandboxProcess:
        """Start a program. Raises `SandboxError` with the reason alone."""
        raise NotImplementedError

    async def _do(self, operation: str, path: str, *more: str, stdin: bytes | None = None, most: int = 0) -> bytes:
        """An operation on files: read, write, list, pack, unpack, restore or discard, as `worker_files` has them."""
        raise NotImplementedError

    async def _write(self, path: str, data: bytes) -> None:
        await self._replace("write", path, data, str(len(data)))

    async def _unpack(self, data: bytes, folder: str) -> None:
        """Fill a folder from a tar archive."""
        await self._do("unpack", folder, stdin=data)

    async def _restore(self, snapshot: bytes) -> None:
        await self._replace("restore", ".", snapshot)

    async def _replace(self, operation: str, path: str, data: bytes, *more: str) -> None:
        """Make something beside what it replaces, and put it in its place. Whatever ends that early leaves nothing."""
        part = f".aworld-part-{secrets.token_hex(8)}"
        try:
            await self._do(operation, path, part, *more, stdin=data)
        except BaseException:
            with suppress(SandboxError, OSError):  # the first error tells more
                await asyncio.shield(self._do("discard", path, part))
            raise

    def full(self, path: str) -> SandboxError:
        """The error for what finds no room."""
        return SandboxError(
            f"{path}: disk_mb={self.limits.disk_mb} is reached (what is replaced stays until the new is complete); "
            "delete files in the sandbox, or open it with a larger disk_mb"
        )


class RemoteProgram(Protocol):
    """A program that runs in a `RemoteSandbox`."""

    @property
    def running(self) -> bool:
        """Whether it was not seen to end."""
        ...

    def leave(self, reason: str) -> None:
        """The sandbox is gone, and it with it."""
        ...


class RemoteSandbox(BaseSandbox):
    """A sandbox that does not end with this process: it has a record, by which a reaper finds it, and is destroyed."""

    work: ClassVar[str] = "/work"
    """The work folder inside."""

    def __init__(self, limits: SandboxLimits, id: str) -> None:
        super().__init__(limits, id)
        self._closed = False
        self._programs: list[RemoteProgram] = []

    @property
    def alive(self) -> bool:
        """Whether it was not closed."""
        return not self._closed

    async def close(self) -> None:
        """Destroy the sandbox with everything in it."""
        if not self._closed:
            self._closed = True
            for program in self._programs:
                program.leave("the sandbox is closed")
            await self._destroy()
            await reaper.forget(self.id)

    async def _destroy(self) -> None:
        raise NotImplementedError

    def _check_open(self) -> None:
        if self._closed:
            raise SandboxError("the sandbox is closed")

    def _keep(self, program: RemoteProgram) -> None:
        """Remember a program until it ends."""
        self._programs = [*(other for other in self._programs if other.running), program]

    @classmethod
    def inside(cls, path: str) -> str:
        """The path there. Raises `SandboxError` if it leads out already by its words; links are the kind's matter."""
        full = posixpath.normpath(posixpath.join(cls.work, path))
        if "\0" in path or not f"{full}/".startswith(f"{cls.work}/"):
            raise SandboxError(f"{path}: leads out of the work folder")
        return full


def _program(command: Sequence[str]) -> list[str]:
    argv = list(command)
    if not argv or not argv[0]:
        raise SandboxError("no command was given")
    return argv


def archive(source: Path, name: str, most_bytes: int) -> bytes:
    """A file under this name, or what is in a folder, as a tar archive. Links stay links; devices are left out.

    Raises `FileNotFoundError`, and `SandboxError` when there is more than `most_bytes`.
    """
    buffer = io.BytesIO()
    size = 0

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        nonlocal size
        size += member.size
        if size > most_bytes:
            raise SandboxError(f"{source} has more than the {most_bytes} bytes that the sandbox may hold; see disk_mb")
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member if member.isreg() or member.isdir() or member.issym() else None

    with tarfile.open(fileobj=buffer, mode="w") as tar:
        if source.is_dir():
            for entry in sorted(source.iterdir()):
                tar.add(entry, entry.name, filter=plain)
        else:
            tar.add(source.resolve(strict=True), name, filter=plain)
    return buffer.getvalue()
