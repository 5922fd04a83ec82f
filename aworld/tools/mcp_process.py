"""The process of a stdio MCP server: lines in, lines out, and an end that leaves nothing behind.

The child runs in a session of its own, so that Ctrl-C reaches it through us only, with the environment it was given
and nothing else of ours. It is asked to end by closing its input, then told to, then killed, with all it started; when
the runtime itself dies, the guard kills it. What it writes to standard error can neither block it nor fill our memory:
the last words are kept, for errors.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Callable
from typing import cast

from aworld.tools.mcp_config import Resolved

logger = logging.getLogger(__name__)

MAX_LINE = 64 * 1024 * 1024
"""Most bytes of one message; far above any picture, and far below what would hurt the process."""
PATIENCE = 2.0
"""Seconds that a server has to end by itself when its input is closed, and again when it is told to."""

_LAST_WORDS = 600  # bytes of standard error that are kept
_SETTLE = 0.2  # seconds
_LINGER = 1.0  # seconds in which what a dead server wrote is still read, when a child of it holds the pipe


class ServerProcess(asyncio.SubprocessProtocol):
    """A running server. Made by `spawn`."""

    def __init__(self, name: str, redact: Callable[[str], str]) -> None:
        self.name = name
        self._redact = redact
        self._errors = b""
        self._trouble = ""
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.SubprocessTransport | None = None
        self._lines: deque[bytes] = deque()
        self._partial: list[bytes] = []
        self._partial_size = 0
        self._silent = False
        self._reader: asyncio.Future[None] | None = None
        self._exited = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()

    @classmethod
    async def spawn(cls, server: Resolved) -> ServerProcess:
        """Start a server. Raises OSError."""
        process = cls(server.name, server.redact)
        env = server.environment()
        try:
            await process._loop.subprocess_exec(
                lambda: process, server.command, *server.args, env=env, cwd=server.cwd, start_new_session=True
            )
        except BaseException:  # cancelled: the loop has killed what it had begun
            if process._transport is not None:
                GUARD.release(process.pid)
            raise
        return process

    @property
    def pid(self) -> int:
        """The process id, which is also that of its group."""
        assert self._transport is not None  # connection_made comes first
        return self._transport.get_pid()

    @property
    def last_words(self) -> str:
        """What is known of why it ended: what it did wrong, its exit code, and the end of its standard error; without
        keys."""
        code = self._transport.get_returncode() if self._transport is not None else None
        ended = "" if code is None else f"exit code {code}" if code >= 0 else f"killed by signal {-code}"
        errors = " ".join(self._redact(self._errors.decode(errors="replace")).split())
        return ", ".join(filter(None, (self._trouble, ended, errors and f"its last words: {errors}")))

    async def settle(self) -> None:
        """After it said its last, wait a moment for its exit code and what it wrote to standard error."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SETTLE):
                await self._exited.wait()

    async def read(self) -> bytes | None:
        """The next line, without its end; None when the server says nothing more. For one reader."""
        while not self._lines:
            if self._silent:
                return None
            self._reader = self._loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        return self._lines.popleft()

    async def write(self, line: bytes) -> None:
        """Send a line; waits while the server does not read. Raises BrokenPipeError."""
        pipe = self._input()
        if pipe is None or pipe.is_closing() or self._silent:
            raise BrokenPipeError
        pipe.write(line)
        await self._writable.wait()

    async def stop(self) -> None:
        """End the server and all that it started; takes at most three times `PATIENCE`."""
        assert self._transport is not None
        pipe = self._input()
        if pipe is not None:
            # What was not read until now will not be read; a full pipe would never close.
            if pipe.get_write_buffer_size():
                pipe.abort()
            pipe.close()
        for end in (None, self._terminate, self._kill):
            if end is not None and not self._exited.is_set():
                end()
            try:
                async with asyncio.timeout(PATIENCE):
                    await self._exited.wait()
                    break
            except TimeoutError:
                continue
        else:
            logger.error("server=%s pid=%s | cannot be killed; it is left behind", self.name, self.pid)
        self._kill()  # children that outlived it
        GUARD.release(self.pid)
        self._end()
        self._transport.close()

    def _input(self) -> asyncio.WriteTransport | None:
        assert self._transport is not None
        return cast("asyncio.WriteTransport | None", self._transport.get_pipe_transport(0))

    def _terminate(self) -> None:
        if os.name == "posix":
            self._signal_group(signal.SIGTERM)

    def _kill(self) -> None:
        if os.name == "posix":
            self._signal_group(signal.SIGKILL)
        elif self._transport is not None and not self._exited.is_set():
            self._transport.kill()

    def _signal_group(self, sign: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # gone, or no longer ours
            os.killpg(self.pid, sign)

    # Called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The process runs."""
        self._transport = cast("asyncio.SubprocessTransport", transport)
        GUARD.watch(self.pid)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """It has written something."""
        if fd == 2:
            self._errors += data
            if len(self._errors) > _LAST_WORDS:  # cut between words, so that no half of a key is left
                self._errors = self._errors[-_LAST_WORDS:].partition(b" ")[2]
            if logger.isEnabledFor(logging.DEBUG):
                logger.debug("server=%s | %s", self.name, self._redact(data.decode(errors="replace")).rstrip())
            return
        if self._silent:  # nobody reads it any more, and there may be no end to it
            return
        head, newline, rest = data.partition(b"\n")
        self._partial.append(head)
        self._partial_size += len(head)
        if not newline:
            if self._partial_size > MAX_LINE:
                self._trouble = f"it sent a message of more than {MAX_LINE >> 20} MB"
                self._end()
            return
        self._lines.append(b"".join(self._partial))
        *whole, last = rest.split(b"\n")
        self._lines.extend(whole)
        self._partial = [last]
        self._partial_size = len(last)
        self._wake()

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        """A pipe was closed."""
        if fd == 1:
            self._end()
        elif fd == 0:
            self._writable.set()

    def process_exited(self) -> None:
        """It has ended; a child of it may still hold its pipes."""
        self._exited.set()
        self._loop.call_later(_LINGER, self._end)

    def pause_writing(self) -> None:
        """It does not read."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """It reads again."""
        self._writable.set()

    def _end(self) -> None:
        self._silent = True
        self._writable.set()
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


_GUARD_SCRIPT = """
trap '' HUP INT TERM
live=
while read -r sign id; do
  case $sign in
    +) live="$live $id";;
    -) kept=; for one in $live; do [ "$one" = "$id" ] || kept="$kept $one"; done; live=$kept;;
  esac
done
for one in $live; do kill -9 "-$one"; done 2>/dev/null
"""


class _ProcessGuard:
    """Ends child processes when the runtime is gone: killed, crashed, or ended without closing.

    A process of its own, a shell of a megabyte, reads the process groups to watch from a pipe. The runtime alone holds
    the other end, so the end of the runtime, however it comes, is the end of the pipe, and then the groups are killed.
    There is one guard for the whole runtime, and only while there is something to watch.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._groups: set[int] = set()
        self._pipe: int | None = None
        self._pid: int | None = None

    def watch(self, group: int) -> None:
        """Kill this process group when the runtime ends. Call it right after the group was made."""
        with self._lock:
            self._groups.add(group)
            if self._pipe is None:
                self._start()
            else:
                self._tell("+", group)

    def release(self, group: int) -> None:
        """The group has ended."""
        with self._lock:
            self._groups.discard(group)
            self._tell("-", group)
            if not self._groups:
                self._stop()

    def _start(self) -> None:
        if os.name != "posix":
            return  # there, children end when their input does
        reading, self._pipe = os.pipe()  # neither end is inherited by other children
        null = os.open(os.devnull, os.O_RDWR)
        try:
            self._pid = os.posix_spawn(
                "/bin/sh", ["sh", "-c", _GUARD_SCRIPT], {"PATH": os.defpath}, setpgroup=0,  # out of reach of Ctrl-C
                file_actions=[(os.POSIX_SPAWN_DUP2, reading, 0)] + [(os.POSIX_SPAWN_DUP2, null, fd) for fd in (1, 2)],
            )  # fmt: skip
        finally:
            os.close(reading)
            os.close(null)
        for group in self._groups:
            self._tell("+", group)

    def _tell(self, sign: str, group: int) -> None:
        if self._pipe is None:
            return
        try:
            os.write(self._pipe, f"{sign} {group}\n".encode())
        except BrokenPipeError:  # somebody killed the guard: another one takes over
            self._stop()
            self._start()

    def _stop(self) -> None:
        pipe, pid, self._pipe, self._pid = self._pipe, self._pid, None, None
        if pipe is not None:
            os.close(pipe)
        if pid is not None:
            with contextlib.suppress(ChildProcessError):  # the program reaps children of its own accord
                os.waitpid(pid, 0)  # a shell at the end of its input: a millisecond

    def forget(self) -> None:
        """In a forked child: the guard is the parent's."""
        self._lock = threading.Lock()
        self._groups.clear()
        if self._pipe is not None:
            os.close(self._pipe)
        self._pipe = self._pid = None


GUARD = _ProcessGuard()
"""The guard of this runtime."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=GUARD.forget)
