"""What the kinds of sandboxes share."""

from __future__ import annotations

import asyncio
import io
import secrets
import sys
import tarfile
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aworld.config.errors import ConfigError
from aworld.core.sandbox import SandboxError, SandboxLimits, SandboxProcess, check_amount

_BY_SIGNAL = {24: "cpu_seconds", 25: "disk_mb"}
"""SIGXCPU and SIGXFSZ of Linux; other systems have no names or other numbers for them."""
END_BYTES = 1024
"""Zeros at the end of a tar archive."""


def need_linux() -> None:
    """Raise `SandboxError` where there can be no local sandbox."""
    if not sys.platform.startswith("linux"):
        raise SandboxError(f"local sandboxes need Linux, not {sys.platform}; use a container")


def limit_of(exit_code: int) -> str | None:
    """The limit for which the kernel kills by a signal of its own. Shells and engines tell signals as 128 and more."""
    return _BY_SIGNAL.get(-exit_code if exit_code < 0 else exit_code - 128)


def new_id() -> str:
    """A name for a sandbox, unique in the world."""
    return f"aworld-{secrets.token_hex(6)}"


Part = Callable[[str], Coroutine[Any, Any, object]]
"""Work on what is made beside the file or the files whose place it takes, by its name."""


async def replace(make: Part, discard: Part) -> None:
    """Make something and put it in its place. Whatever ends that early, nothing of it is left."""
    part = f".aworld-part-{secrets.token_hex(8)}"
    try:
        await make(part)
    except BaseException:
        with suppress(SandboxError, OSError):  # the first error tells more
            await asyncio.shield(discard(part))
        raise


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
    """A name, limits, and `async with`, which closes."""

    def __init__(self, limits: SandboxLimits, id: str | None = None) -> None:
        self.id = id or new_id()
        self.limits = limits

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _seconds(self, stdin: bytes | None, timeout: float | None) -> float:
        """How long a command may take. Raises `ConfigError` for what it cannot be given."""
        if stdin is not None:
            need_bytes("stdin", stdin)
        if timeout is None:
            return self.limits.wall_seconds
        check_amount("timeout", timeout)
        return timeout

    async def open_process(
        self, command: Sequence[str], *, cwd: str = ".", env: dict[str, str] | None = None
    ) -> SandboxProcess:
        """Start a program and leave it running. Raises SandboxError where the kind of sandbox cannot do that."""
        raise SandboxError(
            f"a {type(self).__name__} cannot keep a program running; use commands (shell) and files instead, or a "
            f"local sandbox"
        )

    def full(self, path: str) -> SandboxError:
        """The error for what finds no room."""
        return SandboxError(
            f"{path}: disk_mb={self.limits.disk_mb} is reached (what is replaced stays until the new is complete); "
            "delete files in the sandbox, or open it with a larger disk_mb"
        )

    async def close(self) -> None:
        """Destroy the sandbox."""
        raise NotImplementedError


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
