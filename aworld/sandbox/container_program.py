"""A program that goes on running in a container, spoken with over the connection that its exec was attached to.

The engine knows no more than that one. What the program starts is known by a variable in its environment, which
children inherit; a child that hides itself from that ends with the container.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from aworld.core.sandbox import SandboxError
from aworld.sandbox.container_engine import ContainerEngine, ExecStream

PIECE = 1 << 16
START_SECONDS = 30.0
"""Until a program was started, which takes a fraction of one."""
OBEY_SECONDS = 5.0
"""Until a program that was killed has ended; then the container is removed."""
BEGUN = b"+"
"""What the shell around a program says when it can be started."""

_KILL = """
tries=0
while found=$(grep -ls "AWORLD_PROGRAM=$mark" /proc/[0-9]*/environ); do
  for place in $found; do place=${place%/environ}; kill -9 "${place#/proc/}" 2>/dev/null; done
  tries=$((tries+1)); [ $tries -lt 100 ] || kill -9 -1
done
"""
"""A kill takes a moment to be seen, and a process may start others meanwhile; one that outruns this many rounds takes
all others with it."""
START = f"""
mark=$1; shift
command -v -- "$1" > /dev/null || exit 127
printf {BEGUN.decode()}
exec 3<&0 < /dev/null
AWORLD_PROGRAM=$mark "$@" <&3 3<&- 2> /dev/null &
exec 3<&-
wait $!; code=$?
{_KILL}
exit $code
"""
"""Its end is that of all that it started, so the shell around it ends last, and the connection with it."""
STOP = f"mark=$1\n{_KILL}"


class ContainerProgram:
    """A running program, as a `SandboxProcess`. Made by `start`."""

    def __init__(
        self, engine: ContainerEngine, exec_id: str, mark: str, stream: ExecStream, run: Run, broken: Broken
    ) -> None:
        self._engine = engine
        self._exec_id = exec_id
        self._mark = mark
        self._stream = stream
        self._run = run
        self._broken = broken
        self._reading = asyncio.Lock()
        self._reason = ""
        """Why nothing more can be sent; empty while it runs."""

    @classmethod
    async def start(
        cls,
        engine: ContainerEngine,
        container: str,
        enter: str,
        command: Sequence[str],
        settings: Any,
        run: Run,
        broken: Broken,
    ) -> ContainerProgram:
        """Start a program; `enter` is the beginning of a script that leads to its folder.

        Raises `SandboxError` when it cannot be started.
        """
        mark = secrets.token_hex(8)
        argv = ["/bin/sh", "-c", enter + START, "sh", mark, *command]
        wanted = {"AttachStdin": True, "AttachStdout": True, "AttachStderr": True, "Cmd": argv, **settings}
        exec_id = (await engine.ask("POST", f"/containers/{container}/exec", wanted))["Id"]
        stream = await engine.attach(f"/exec/{exec_id}/start", {"Detach": False, "Tty": False})
        program = cls(engine, exec_id, mark, stream, run, broken)
        try:
            errors = b""
            async with asyncio.timeout(START_SECONDS):
                while (piece := await stream.piece(1)) is not None and piece[0] != 1:
                    errors += piece[1]
            if piece is None:
                raise SandboxError(errors.decode(errors="replace").strip()[:500] or "no such program")
        except BaseException as error:
            await asyncio.shield(program._give_up())
            if isinstance(error, TimeoutError):
                raise SandboxError(f"the engine did not start it in {START_SECONDS:g} s") from None
            raise
        return program

    @property
    def running(self) -> bool:
        """Whether it was not seen to end."""
        return not self._reason

    async def send(self, data: bytes) -> None:
        """Write to its standard input, waiting while it does not read. Raises SandboxError when it has ended."""
        if self._reason:
            raise SandboxError(self._reason)
        try:
            await self._stream.send(data)
        except OSError:
            raise SandboxError(self._reason or "the program has ended") from None

    async def receive(self, size: int = PIECE) -> bytes:
        """The next bytes of its standard output, at least one and at most `size`; none when it has ended."""
        async with self._reading:
            while not self._reason:
                piece = await self._stream.piece(size)
                if piece is None:
                    await self._end()
                elif piece[0] == 1:
                    return piece[1]
        return b""

    async def stop(self) -> None:
        """Kill it with everything that it started, and wait until that is done."""
        if self._reason:
            return
        try:
            await self._run(["/bin/sh", "-c", STOP, "sh", self._mark])
            async with asyncio.timeout(OBEY_SECONDS):
                while await self.receive():
                    pass
        except TimeoutError:
            await self._broken()
            raise SandboxError("a program could not be killed, so its container was removed") from None

    def leave(self, reason: str) -> None:
        """The sandbox is gone, and it with it."""
        self._reason = self._reason or reason
        self._stream.close()

    async def _give_up(self) -> None:
        """It could not be started, or nobody waits for it any more."""
        with suppress(SandboxError):
            await self._run(["/bin/sh", "-c", STOP, "sh", self._mark])
        self.leave("the program was not started")

    async def _end(self) -> None:
        """Take note that it has ended, and how."""
        code: Any = None
        with suppress(SandboxError):
            code = (await self._engine.ask("GET", f"/exec/{self._exec_id}/json"))["ExitCode"]
        self.leave(f"the program has ended: exit code {code}" if code is not None else "the sandbox is closed")


Run = Callable[[list[str]], Awaitable[object]]
"""Runs a command in the container to its end."""
Broken = Callable[[], Awaitable[None]]
"""Removes the container."""
