"""A program that goes on running in a sandbox of E2B.

The SDK gives output as text, in which bytes that are no UTF-8 are lost. So a small program of ours stands between the
two: it starts the other one, and passes on what that writes as lines of base64. The template needs python3, as E2B's
own have.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import secrets
import shlex
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from aworld.core.sandbox import SandboxError
from aworld.sandbox.container_program import START, START_SECONDS, STOP

PIECE = 1 << 16
MOST_HELD = 1 << 20
"""Characters of output that are held for who has not received them yet; then the program waits."""
OBEY_SECONDS = 10.0
"""Until a program that was killed has ended."""
STARTED, REFUSED = ".", "!"

RELAY = f"""
import base64, os, select, subprocess, sys
def tell(text):
    os.write(1, text.encode() + b"\\n")
try:
    program = subprocess.Popen(sys.argv[1:], stdin=0, stdout=subprocess.PIPE, bufsize=0)
except OSError as error:
    tell("{REFUSED}" + str(error.strerror))
    sys.exit(127)
tell("{STARTED}")
out, end = program.stdout.fileno(), os.pidfd_open(program.pid)
while True:
    ready = select.select([out, end], [], [])[0]
    if out in ready:
        piece = os.read(out, {PIECE})
        if not piece:
            break
        data = base64.b64encode(piece).decode()
        while data:
            data = data[os.write(1, data.encode()):]
        tell("")
    else:
        break
sys.exit(program.wait() % 256)
"""
"""Ends with the program, also when a child of that one still holds its output."""

Call = Callable[[Awaitable[Any]], Awaitable[Any]]
"""Awaits a call of the SDK, with its errors as ours."""
Line = Callable[[str], Awaitable[object]]
"""Runs a shell line to its end."""


class E2BProgram:
    """A running program, as a `SandboxProcess`. Made by `start`."""

    def __init__(self, mark: str, call: Call, line: Line) -> None:
        self._mark = mark
        self._call = call
        self._line = line
        self._handle: Any = None
        self._text = ""
        """Output as it came, without the lines that were received."""
        self._data = bytearray()
        self._news = asyncio.Event()
        self._taken = asyncio.Event()
        self._ending: asyncio.Task[str] | None = None
        self._reason = ""
        """Why nothing more can be sent; empty while it runs."""

    @classmethod
    async def start(
        cls, commands: Any, command: Sequence[str], cwd: str, env: Mapping[str, str], call: Call, line: Line
    ) -> E2BProgram:
        """Start a program. Raises `SandboxError` when it cannot be started."""
        program = cls(secrets.token_hex(8), call, line)
        argv = ["/bin/sh", "-c", START, "sh", program._mark, "python3", "-I", "-c", RELAY, *command]
        started = commands.run(
            f"exec {shlex.join(argv)}", background=True, envs=dict(env), cwd=cwd, stdin=True, timeout=0,
            on_stdout=program._hear, retain_output=False,
        )  # fmt: skip
        program._handle = await call(started)
        program._ending = asyncio.create_task(program._wait())
        try:
            async with asyncio.timeout(START_SECONDS):
                first = await program._begun()
        except BaseException as error:
            await asyncio.shield(program.stop())
            if isinstance(error, TimeoutError):
                raise SandboxError(f"E2B did not start it in {START_SECONDS:g} s") from None
            raise
        if first != STARTED:
            await program.stop()
            raise SandboxError(first.removeprefix(REFUSED) or "there is no python3, which starts it")
        return program

    @property
    def running(self) -> bool:
        """Whether it was not seen to end."""
        return not self._reason

    async def send(self, data: bytes) -> None:
        """Write to its standard input. Raises SandboxError when it has ended."""
        for start in range(0, len(data), PIECE):
            if self._reason:
                raise SandboxError(self._reason)
            try:
                await self._call(self._handle.send_stdin(data[start : start + PIECE]))
            except FileNotFoundError:
                raise SandboxError(self._reason or "the program has ended") from None

    async def receive(self, size: int = PIECE) -> bytes:
        """The next bytes of its standard output, at least one and at most `size`; none when it has ended."""
        while not self._data:
            line, end, rest = self._text.partition("\n")
            if end:
                self._text = rest
                self._taken.set()
                try:
                    self._data += base64.b64decode(line, validate=True)
                except binascii.Error:
                    raise SandboxError("the sandbox said what makes no sense") from None
            elif self._reason:
                return b""
            else:
                self._news.clear()
                await self._news.wait()
        piece = bytes(self._data[:size])
        del self._data[:size]
        return piece

    async def stop(self) -> None:
        """Kill it with everything that it started, and wait until that is done."""
        if self._reason or self._ending is None:
            return
        await self._line(shlex.join(["/bin/sh", "-c", STOP, "sh", self._mark]))
        self._text = ""
        self._taken.set()
        try:
            async with asyncio.timeout(OBEY_SECONDS):
                await asyncio.shield(self._ending)
        except TimeoutError:
            raise SandboxError("a program could not be killed; close the sandbox") from None

    def leave(self, reason: str) -> None:
        """The sandbox is gone, and it with it."""
        self._reason = self._reason or reason
        if self._ending is not None:
            self._ending.cancel()
        self._news.set()

    async def _hear(self, text: str) -> None:
        """Output has come; the next is not taken before there is room."""
        self._text += text
        self._news.set()
        while len(self._text) > MOST_HELD and not self._reason:
            self._taken.clear()
            await self._taken.wait()

    async def _begun(self) -> str:
        """What the relay says first, behind the sign of the shell around it."""
        while "\n" not in self._text and not self._reason:
            self._news.clear()
            await self._news.wait()
        line, _, self._text = self._text.partition("\n")
        return line[1:]

    async def _wait(self) -> str:
        """Take note of its end."""
        try:
            code = (await self._handle.wait()).exit_code
            self._reason = f"the program has ended: exit code {code}"
        except Exception as error:  # noqa: BLE001 - the SDK's for any exit code but 0, and for a sandbox that is gone
            code = getattr(error, "exit_code", None)
            self._reason = f"the program has ended: {error if code is None else f'exit code {code}'}"
        self._news.set()
        self._taken.set()
        return self._reason
