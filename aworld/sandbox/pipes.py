"""The runtime's ends of a command's pipes: output is kept up to a limit, input is fed as it is taken.

Of a program that goes on running both are passed on as they come.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from aworld.core.sandbox import SandboxError

PIECE = 1 << 16
"""Bytes of one read or write: what a pipe holds."""
DROPPED, PAUSE = 1 << 20, 0.02
"""Bytes that are thrown away before a pause of so many seconds. A command that floods its output gets rid of 50 MB/s
and takes 5 % of a core, and not the event loop."""
LEFT_BYTES = 1 << 20
"""Most that a pipe holds for an ended program, whatever size it gave it."""


class Drain:
    """Reads a pipe until its end, keeps the first `limit` bytes and throws the rest away."""

    def __init__(self, loop: asyncio.AbstractEventLoop, descriptor: int, limit: int) -> None:
        os.set_blocking(descriptor, False)
        self.truncated = False
        self._data = bytearray()
        self._dropping = False
        self._dropped = 0
        self._loop = loop
        self._descriptor = descriptor
        self._limit = limit
        self._pause: asyncio.TimerHandle | None = None
        loop.add_reader(descriptor, self._read)

    @property
    def open(self) -> bool:
        """Whether somebody may still write."""
        return self._descriptor >= 0

    def _read(self) -> None:
        piece = self._piece()
        if piece is None:
            return
        if self._dropping:
            self._dropped += len(piece)
            if self._dropped >= DROPPED:
                self._dropped = 0
                self._loop.remove_reader(self._descriptor)
                self._pause = self._loop.call_later(PAUSE, self._loop.add_reader, self._descriptor, self._read)
        else:
            self._keep(piece)

    def _keep(self, piece: bytes) -> None:
        self._data += piece
        if len(self._data) > self._limit:
            self.truncated = self._dropping = True
            del self._data[self._limit :]

    def _piece(self) -> bytes | None:
        """What is there; None if nothing is. Closes at the end."""
        try:
            piece = os.read(self._descriptor, PIECE)
        except BlockingIOError:
            return None
        if not piece:
            self.close()
        return piece or None

    def finish(self) -> bytes:
        """The command has ended: everything that it wrote is in the pipe. What others write later is thrown away."""
        while self.open and not self._dropping and (piece := self._piece()) is not None:
            self._keep(piece)
        self._dropping = True
        kept = bytes(self._data)
        self._data.clear()
        return kept

    def close(self) -> None:
        """Stop reading. Who still writes gets SIGPIPE."""
        if self._descriptor < 0:
            return
        self._loop.remove_reader(self._descriptor)
        if self._pause is not None:
            self._pause.cancel()
        os.close(self._descriptor)
        self._descriptor = -1


class Feed:
    """Writes bytes into a pipe as they are taken, then closes it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, descriptor: int, data: bytes) -> None:
        os.set_blocking(descriptor, False)
        self._loop = loop
        self._descriptor = descriptor
        self._left = memoryview(data)
        loop.add_writer(descriptor, self._write)

    def _write(self) -> None:
        try:
            written = os.write(self._descriptor, self._left[:PIECE])
        except BlockingIOError:
            return
        except BrokenPipeError:  # the command does not want it
            self.close()
            return
        self._left = self._left[written:]
        if not self._left:
            self.close()

    def close(self) -> None:
        """Stop writing; the command reads an end of file."""
        if self._descriptor >= 0:
            self._loop.remove_writer(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1


class Program:
    """A program that goes on running, as a `SandboxProcess`. One task sends and one receives at a time."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        stdin: int,
        stdout: int,
        done: asyncio.Future[tuple[int, str, str]],
        kill: Callable[[], None],
    ) -> None:
        for descriptor in (stdin, stdout):
            os.set_blocking(descriptor, False)
        self._loop = loop
        self._stdin = stdin
        self._stdout = stdout
        self._done = done
        self._kill = kill
        self._open = True
        self._left = bytearray()
        """What it wrote before its end and nobody has received."""
        done.add_done_callback(self._ended)

    async def send(self, data: bytes) -> None:
        """Write to its standard input, waiting while it does not read. Raises SandboxError when it has ended."""
        left = memoryview(data)
        while left:
            if self._done.done():
                raise SandboxError(self._reason())
            try:
                left = left[os.write(self._stdin, left[:PIECE]) :]
            except BlockingIOError:
                await self._until(self._stdin, self._loop.add_writer, self._loop.remove_writer)
            except BrokenPipeError:
                raise SandboxError("the program reads no more input") from None

    async def receive(self, size: int = PIECE) -> bytes:
        """The next bytes of its standard output, at least one and at most `size`; none when it has ended."""
        while self._open:
            try:
                piece = os.read(self._stdout, size)
                if not piece:  # closed: it ends just now, or goes on in silence
                    await asyncio.wait((self._done,))
                return piece
            except BlockingIOError:
                if self._done.done():
                    return b""
                await self._until(self._stdout, self._loop.add_reader, self._loop.remove_reader)
        piece = bytes(self._left[:size])
        del self._left[:size]
        return piece

    async def stop(self) -> None:
        """Kill it with everything that it started, and wait until that is done."""
        if not self._done.done():
            self._kill()
            await asyncio.wait((self._done,))

    async def _until(
        self, descriptor: int, add: Callable[[int, Callable[[], None]], None], remove: Callable[[int], bool]
    ) -> None:
        """Wait until a pipe is ready, or the program has ended."""
        ready = asyncio.Event()
        add(descriptor, ready.set)
        waiting = self._loop.create_task(ready.wait())
        try:
            await asyncio.wait((waiting, self._done), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            if self._open:
                remove(descriptor)

    def _ended(self, done: asyncio.Future[tuple[int, str, str]]) -> None:
        self._open = False
        self._loop.remove_writer(self._stdin)
        self._loop.remove_reader(self._stdout)
        try:
            while len(self._left) < LEFT_BYTES and (piece := os.read(self._stdout, PIECE)):
                self._left += piece
        except BlockingIOError:
            pass  # somebody else has the pipe as well
        os.close(self._stdin)
        os.close(self._stdout)
        done.exception()  # nobody else may ask for it

    def _reason(self) -> str:
        error = self._done.exception()
        if error is not None:
            return str(error)
        status, limit, _ = self._done.result()
        return f"the program has ended: {limit or f'exit code {os.waitstatus_to_exitcode(status)}'}"
