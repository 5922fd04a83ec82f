"""The runtime's ends of a command's pipes: output is kept up to a limit, input is fed as it is taken."""

from __future__ import annotations

import asyncio
import os

PIECE = 1 << 16
"""Bytes of one read or write: what a pipe holds."""
DROPPED, PAUSE = 1 << 20, 0.02
"""Bytes that are thrown away before a pause of so many seconds. A command that floods its output gets rid of 50 MB/s
and takes 5 % of a core, and not the event loop."""


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
