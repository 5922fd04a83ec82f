"""The runtime's end of a local sandbox: its process, the socket to its worker, and the commands that run.

What the worker says is a stranger's word. It tells when a command ended; deadlines and the size of output are kept
here, and a worker that does not obey is killed with everything in its box.
"""

from __future__ import annotations

import array
import asyncio
import itertools
import os
import signal
import socket
import subprocess
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from aworld.core.sandbox import SandboxError
from aworld.sandbox.base_sandbox import limit_of
from aworld.sandbox.pipes import Drain, Feed, Program
from aworld.sandbox.worker import MESSAGE_BYTES

READY_SECONDS = 30.0
"""Until the worker answers for the first time; it takes 20 ms on an idle machine."""
OBEY_SECONDS = 2.0
"""Until the worker has ended what it was told to end; else all is killed."""
LINGERING = 32
"""Commands whose background processes hold their output open. Older ones' output is closed."""


@dataclass(frozen=True, slots=True)
class CommandEnd:
    """How a command ended."""

    status: int
    """The exit code, or minus the number of the signal."""
    stdout: bytes
    stderr: bytes
    truncated: bool
    limit: str | None
    """The limit that ended it."""
    error: str
    """Why it could not be started; empty if it was."""


class _Running:
    """A command from its start to its end."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.done: asyncio.Future[tuple[int, str, str]] = loop.create_future()
        self.begun = asyncio.Event()
        """Whether it was started; told only of a program that goes on running."""
        self.late = False
        """Whether its time is over."""


class Channel:
    """A worker and what it runs. Belongs to the event loop in which it was made."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        link: socket.socket,
        owner: int | None,
        reclaim: Callable[[], None] | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._process = process
        self._link = link
        self._owner = owner
        """The user whom pipes are given to, so that commands can open /dev/stdout; None for this process's own."""
        self._reclaim = reclaim
        """Has the kernel give up what it keeps for the sandbox without need; None where nothing can be done."""
        self._reclaiming: asyncio.Future[None] | None = None
        self._running: dict[bytes, _Running] = {}
        self._numbers = itertools.count(1)
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        self._lingering: deque[Drain] = deque()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._ended = asyncio.Event()
        self._reason = ""
        link.setblocking(False)
        self._watch = os.pidfd_open(process.pid)
        self._loop.add_reader(self._watch, self._process_ended)
        self._loop.add_reader(link, self._hear)

    @property
    def pid(self) -> int:
        """The process that holds the sandbox, as this machine numbers it."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether commands can be run."""
        return self._link.fileno() >= 0 and not self._ended.is_set()

    async def ready(self) -> None:
        """Wait until the worker answers. Raises `SandboxError` with what the launcher said."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                await self._ready
        except TimeoutError:
            self._reason = f"not ready after {READY_SECONDS:g} s"
            await self.close()
            raise SandboxError(self._reason) from None

    async def run(
        self, words: Sequence[bytes], *, stdin: bytes | None, timeout: float, output_bytes: int
    ) -> CommandEnd:
        """Run one command, `run` or `do` and its arguments, to its end. Raises `SandboxError` if the box is gone."""
        id, message = self._message(words)
        drains, feed, passed = self._pipes(stdin, output_bytes)
        running = self._running[id] = _Running(self._loop)
        deadline = self._loop.call_later(timeout, self._out_of_time, id, timeout)
        try:
            self._post(message, passed)
            status, limit, error = await running.done
        except asyncio.CancelledError:
            self._post(b"kill\0" + id)
            raise
        finally:
            deadline.cancel()
            del self._running[id]
            if feed is not None:
                feed.close()
            stdout, stderr = (drain.finish() for drain in drains)
            self._linger(drains)
        code = os.waitstatus_to_exitcode(status)
        return CommandEnd(
            status=code,
            stdout=stdout,
            stderr=stderr,
            truncated=any(drain.truncated for drain in drains),
            limit="wall_seconds" if running.late else limit or limit_of(code),
            error=error,
        )

    async def keep(self, words: Sequence[bytes]) -> tuple[Program | None, str]:
        """Start a program that goes on running, `keep` and its arguments; None, and why, if it cannot be started.

        Raises `SandboxError` if the box is gone.
        """
        id, message = self._message(words)
        (in_theirs, stdin), (stdout, out_theirs) = _pipes(2)
        running = self._running[id] = _Running(self._loop)
        running.done.add_done_callback(lambda _: self._running.pop(id, None))
        end = partial(self._end, id, running, "when it was told to")
        program = Program(self._loop, stdin, stdout, running.done, end)
        self._post(message, self._give([in_theirs, out_theirs]))
        begun = self._loop.create_task(running.begun.wait())
        try:
            answered, _ = await asyncio.wait(
                (begun, running.done), timeout=READY_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            if not answered:
                end()
                return None, f"its worker did not start it in {READY_SECONDS:g} s"
        except asyncio.CancelledError:
            end()
            raise
        finally:
            begun.cancel()
        error = running.done.result()[2] if running.done.done() else ""
        return (None, error) if error else (program, "")

    def _message(self, words: Sequence[bytes]) -> tuple[bytes, bytes]:
        """A new number, and the message that asks for a command by it."""
        if not self.alive:
            raise SandboxError(self._reason or "the sandbox is closed")
        id = b"%d" % next(self._numbers)
        message = b"\0".join((words[0], id, *words[1:]))
        if len(message) > MESSAGE_BYTES:
            raise SandboxError(
                f"a command of {len(message)} bytes is too long; put it into a file, or give it as stdin"
            )
        return id, message

    def _give(self, descriptors: list[int]) -> list[int]:
        """Make the worker's ends of pipes those of its user."""
        if self._owner is not None:
            for descriptor in descriptors:
                os.fchown(descriptor, self._owner, self._owner)
        return descriptors

    def _pipes(self, stdin: bytes | None, limit: int) -> tuple[list[Drain], Feed | None, list[int]]:
        """Make the pipes of a command; the descriptors are those that the worker is given."""
        (out, out_theirs), (err, err_theirs), *more = _pipes(2 if stdin is None else 3)
        passed = [out_theirs, err_theirs]
        feed = None
        if stdin is not None:
            ((in_theirs, end),) = more
            passed.insert(0, in_theirs)
            feed = Feed(self._loop, end, stdin)
        return [Drain(self._loop, out, limit), Drain(self._loop, err, limit)], feed, self._give(passed)

    def _linger(self, drains: list[Drain]) -> None:
        """Keep reading for processes that were left behind, within bounds."""
        self._lingering = deque(drain for drain in (*self._lingering, *drains) if drain.open)
        while len(self._lingering) > 2 * LINGERING or (self._lingering and not self.alive):
            self._lingering.popleft().close()

    def _out_of_time(self, id: bytes, timeout: float) -> None:
        self._running[id].late = True
        self._end(id, self._running[id], f"after {timeout:g} s")

    def _end(self, id: bytes, running: _Running, when: str) -> None:
        """Have a command killed; if the worker does not, everything is."""
        self._post(b"kill\0" + id)
        self._loop.call_later(OBEY_SECONDS, self._disobeyed, running, when)

    def _disobeyed(self, running: _Running, when: str) -> None:
        if not running.done.done():
            self._fail(f"its worker did not end a command {when}")

    def _post(self, message: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send, now or as soon as there is room; the descriptors are closed once they are sent."""
        self._unsent.append((message, list(descriptors)))
        if len(self._unsent) == 1:
            self._send()

    def _send(self) -> None:
        while self._unsent:
            message, descriptors = self._unsent[0]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
            try:
                if self.alive:
                    self._link.sendmsg([message], rights)
            except BlockingIOError:
                self._loop.add_writer(self._link, self._send)
                return
            except OSError as error:
                self._fail(f"its worker cannot be reached: {error.strerror}")
                return  # nothing is left to send: hanging up has closed it all
            self._unsent.popleft()
            for descriptor in descriptors:
                os.close(descriptor)
        if self._link.fileno() >= 0:
            self._loop.remove_writer(self._link)

    def _hear(self) -> None:
        """A message of the worker, or its end."""
        try:
            message = self._link.recv(MESSAGE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            self._fail("its process ended")
        elif message == b"ready" and not self._ready.done():
            self._ready.set_result(None)
        elif message == b"reclaim" and self._reclaim is not None:
            if self._reclaiming is None:  # it may ask as often as it likes
                self._reclaiming = self._loop.run_in_executor(None, self._reclaim)
                self._reclaiming.add_done_callback(self._reclaimed)
        else:
            try:
                word, id, *rest = message.split(b"\0", 4)
                if word == b"begun":
                    if id in self._running:
                        self._running[id].begun.set()
                    return
                status, limit, error = rest
                outcome = int(status), limit.decode(), error.decode(errors="replace")
                os.waitstatus_to_exitcode(outcome[0])
                if word != b"end":
                    raise ValueError("not an end")
            except ValueError:
                self._fail("its worker said what makes no sense")
                return
            if id in self._running and not self._running[id].done.done():
                self._running[id].done.set_result(outcome)

    def _reclaimed(self, _: asyncio.Future[None]) -> None:
        self._reclaiming = None
        if self.alive:
            self._post(b"reclaimed")

    def _fail(self, reason: str) -> None:
        """The sandbox is broken: kill what is left of it and tell all who wait."""
        if self._link.fileno() < 0:
            return
        self._kill()
        errors = self._errors()
        self._reason = f"the sandbox is gone: {reason}{f' ({errors})' if errors else ''}"
        self._hang_up()

    def _errors(self) -> str:
        """What the launcher or the worker wrote to standard error."""
        if self._process.stderr is None:
            return ""
        os.set_blocking(self._process.stderr.fileno(), False)
        errors = self._process.stderr.read(4000) or b""
        return errors.decode(errors="replace").strip()[-1000:]

    def _hang_up(self) -> None:
        """Close the socket, on which the worker ends, and fail what waits."""
        if self._link.fileno() >= 0:
            self._loop.remove_reader(self._link)
            self._loop.remove_writer(self._link)
            self._link.close()
        error = SandboxError(self._reason or "the sandbox was closed")
        for future in (self._ready, *(running.done for running in self._running.values())):
            if not future.done():
                future.set_exception(error)
        if self._ready.done() and not self._ready.cancelled():
            self._ready.exception()  # nobody may be waiting for it any more
        while self._unsent:
            for descriptor in self._unsent.popleft()[1]:
                os.close(descriptor)
        while self._lingering:
            self._lingering.popleft().close()

    def _kill(self) -> None:
        if not self._ended.is_set():
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._watch, signal.SIGKILL)

    def _process_ended(self) -> None:
        self._loop.remove_reader(self._watch)
        os.close(self._watch)
        self._ended.set()
        self._process.wait()  # it has ended: this only takes note
        self._fail("its process ended")
        if self._process.stderr is not None:
            self._process.stderr.close()

    async def close(self) -> None:
        """End everything in the sandbox and wait until it is gone. Raises `SandboxError` if it does not go."""
        self._hang_up()
        if not await self._has_ended():
            self._kill()
            if not await self._has_ended():
                raise SandboxError(f"process {self.pid}, which holds the sandbox, was killed and has not ended")

    async def _has_ended(self) -> bool:
        """Whether it ends within `OBEY_SECONDS`."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), OBEY_SECONDS)
        return self._ended.is_set()


def _pipes(number: int) -> list[tuple[int, int]]:
    """Pipes, as many as are asked for or none. Raises `SandboxError`."""
    pipes: list[tuple[int, int]] = []
    try:
        while len(pipes) < number:
            pipes.append(os.pipe())
    except OSError as error:
        for descriptor in itertools.chain(*pipes):
            os.close(descriptor)
        raise SandboxError(f"this process cannot make pipes for a command: {error.strerror}") from None
    return pipes
