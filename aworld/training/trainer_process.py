"""Trainers and servers that run as processes of their own, in Python environments of their own.

A process gets a group of its own and writes to a log file. Ending it ends the group: first asked, then killed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from aworld.core.exceptions import ConfigError

GRACE = 10.0
"""Seconds that a process gets to end by itself once asked."""
TAIL = 30
"""Lines of a log that an error shows."""


class TrainerProcess:
    """A running process. `log` holds everything that it writes."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self.log = log

    @classmethod
    async def start(
        cls, command: Sequence[str], log: Path, variables: Mapping[str, str], folder: Path
    ) -> TrainerProcess:
        """Start a command in `folder`, with `variables` added to the environment."""
        with log.open("wb") as output:  # the child keeps its own handle
            process = await asyncio.create_subprocess_exec(
                *command,
                cwd=folder,
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return cls(process, log)

    @property
    def pid(self) -> int:
        """Its number, which is that of its group too."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.returncode is None

    async def wait(self) -> int:
        """Wait for its end; the exit status, negative for a signal."""
        return await self._process.wait()

    async def stop(self) -> None:
        """End it and whatever it started. Does nothing when it has ended."""
        if not self.running:
            return
        self._signal(signal.SIGTERM)
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), GRACE)
        finally:
            self._signal(signal.SIGKILL)  # whatever of the group is left
        await self._process.wait()

    def tail(self, lines: int = TAIL) -> str:
        """The last lines of its log."""
        return tail(self.log, lines)

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)


def tail(log: Path, lines: int = TAIL) -> str:
    """The last lines of a file; progress bars count as one line. Empty when there is no such file."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 64_000))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    last = [line.rsplit("\r", 1)[-1].rstrip() for line in text.splitlines(keepends=False)]
    return "\n".join([line for line in last if line][-lines:])


def version_in(python: str, package: str) -> str | None:
    """The version of an installed package in another Python environment; None when it is not there.

    Raises ConfigError when there is no such Python.
    """
    code = (
        "import importlib.metadata as m, sys\n"
        "try: print(m.version(sys.argv[1]))\n"
        "except m.PackageNotFoundError: print('')"
    )
    try:
        done = subprocess.run([python, "-c", code, package], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"python={python!r} does not run: {error}. Give the path of a Python executable.") from None
    return done.stdout.strip() or None


def python_of(given: str | None, variable: str) -> str:
    """The Python executable that an option names, else an environment variable, else this one."""
    return os.path.expanduser(given or os.environ.get(variable) or sys.executable)
