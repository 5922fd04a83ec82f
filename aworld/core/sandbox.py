"""The contract of a sandbox: a place with files and processes of its own, and limits that hold.

Code that a model asks for runs here and nowhere else. A place that cannot isolate refuses to open; there is no silent
fall-back to a plain process. Paths are inside the sandbox's work folder; `..` and links that lead out are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

from aworld.core.checks import Count, Seconds, typed_class
from aworld.core.exceptions import AWorldError

if TYPE_CHECKING:
    from aworld.core.context.base import RunScope


class SandboxError(AWorldError):
    """A sandbox cannot be opened or used; the text says why and what to do."""


@typed_class
@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """What a sandbox may use."""

    cpu_seconds: Seconds = 60.0
    """Processor time of one command with all its processes. What commands leave behind has together as much again."""
    wall_seconds: Seconds = 120.0
    """Time of one command, unless the call gives its own."""
    memory_mb: Count = 1024
    """Of all processes together."""
    processes: Count = 64
    """And threads, at the same time."""
    disk_mb: Count = 512
    """Of the work folder."""
    output_bytes: Count = 1_000_000
    """Of standard output and of standard error of one command; the rest is dropped, and the result says so."""
    network: bool = False


class ExecResult(Struct, frozen=True):
    """How a command ended. Output is bytes, as it came."""

    exit_code: int
    """The exit code, or minus the number of the signal that ended it."""
    stdout: bytes
    stderr: bytes
    duration: float
    """Seconds."""
    timed_out: bool = False
    """Whether its wall time was over."""
    truncated: bool = False
    """Whether output was dropped."""
    limit: str | None = None
    """The limit that ended it, by its name in `SandboxLimits`, where that is known."""


class FileInfo(Struct, frozen=True):
    """An entry of a folder."""

    name: str
    is_folder: bool
    size: int
    """Bytes; 0 for folders."""


class SandboxProcess(Protocol):
    """A program that goes on running inside a sandbox, such as a Python that keeps its variables between calls.

    Its caller bounds the time of each exchange and stops it; the limits of time do not count for it, all others do. It
    ends with the sandbox. Its standard error is dropped.
    """

    async def send(self, data: bytes) -> None:
        """Write to its standard input, waiting while it does not read. Raises SandboxError when it has ended."""
        ...

    async def receive(self, size: int = 65_536) -> bytes:
        """The next bytes of its standard output, at least one and at most `size`; none when it has ended."""
        ...

    async def stop(self) -> None:
        """Kill it with everything that it started, and wait until that is done. Does nothing the second time."""
        ...


class Sandbox(Protocol):
    """One isolated place. Not shared between runs."""

    id: str

    @property
    def limits(self) -> SandboxLimits:
        """What it may use. Ready tools give no call more time than its `wall_seconds`."""
        ...

    @property
    def limits_by(self) -> str:
        """What keeps the limits that all its processes share.

        `cgroup`: the kernel. `counting`: looks at what it holds, which miss some of what the kernel holds for it.
        `machine`: it has one of its own.
        """
        ...

    @property
    def alive(self) -> bool:
        """Whether it can still be used, as far as is known here."""
        ...

    async def exec(
        self,
        command: Sequence[str] | str,
        *,
        stdin: bytes | None = None,
        cwd: str = ".",
        env: dict[str, str] | None = None,
        timeout: float | None = None,
    ) -> ExecResult:
        """Run a program (a list) or a shell line (text) to its end.

        Its background processes may outlive it, but not a time-out: then it ends with all that it started. `timeout`
        is in seconds and takes the place of `wall_seconds`. Raises SandboxError when it cannot be started, ConfigError
        for input that is not bytes and a `timeout` that is no time.
        """
        ...

    async def open_process(
        self, command: Sequence[str], *, cwd: str = ".", env: dict[str, str] | None = None
    ) -> SandboxProcess:
        """Start a program and leave it running. Raises SandboxError when it cannot be started."""
        ...

    async def read(self, path: str) -> bytes:
        """A file's bytes. Raises FileNotFoundError, IsADirectoryError, or SandboxError if the path leads out."""
        ...

    async def write(self, path: str, data: bytes) -> None:
        """Write a file; its folders are made. A file that cannot be written stays as it was.

        Raises SandboxError, and ConfigError for data that are not bytes.
        """
        ...

    async def list(self, path: str = ".") -> list[FileInfo]:
        """The entries of a folder, by name."""
        ...

    async def upload(self, source: Path | str, path: str) -> None:
        """Copy a file or folder of this machine into the sandbox. Raises FileNotFoundError."""
        ...

    async def snapshot(self) -> bytes:
        """The work folder as a tar archive."""
        ...

    async def restore(self, snapshot: bytes) -> None:
        """Put a snapshot in the place of what is in the work folder; a bad one is refused. Raises SandboxError."""
        ...

    async def close(self) -> None:
        """Destroy the sandbox: no process and no file is left. Does nothing the second time."""
        ...


class RunSandbox(Protocol):
    """The sandbox that a source has for one run."""

    @property
    def lost(self) -> bool:
        """Whether the run went on here without what it may have had in a sandbox before: it was not put aside."""
        ...

    async def open(self) -> Sandbox:
        """The sandbox, made at the first call; the same one until `end_run`. Raises SandboxError."""
        ...

    async def rest(self) -> None:
        """The run waits for a person, maybe for days: what is in the sandbox may be put aside."""
        ...

    async def end_run(self) -> None:
        """The run is over: destroy its sandbox."""
        ...


class SandboxSource(Protocol):
    """Gives each run a sandbox of its own, for as long as the run lasts."""

    def for_run(self, scope: RunScope) -> RunSandbox:
        """The run's own; nothing is made before it is opened."""
        ...
