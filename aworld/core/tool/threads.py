"""Threads on which synchronous tools run, so that no tool holds up the event loop.

The threads are daemons: a tool that hangs never keeps the interpreter from exiting, which the standard library's
executor would. They are started when there is more work than threads, up to a bound, and then reused; beyond the
bound calls queue. A caller that is cancelled abandons its call: what the tool returns or raises later is dropped, and
as nobody can stop a thread, one that is still busy with an abandoned call stops counting against the bound, so that
tools that hang do not use up the threads of all others.
"""

from __future__ import annotations

import os
from asyncio import AbstractEventLoop, CancelledError, Future, get_running_loop
from collections.abc import Callable
from contextvars import Context, copy_context
from functools import partial
from inspect import isawaitable, iscoroutinefunction
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, TypeVar

from aworld.core.tool.base import Clock

T = TypeVar("T")

BOUND = 64
"""Threads at most: above what a task calls at once, below what costs noticeable memory (about 30 KB each)."""

SPARE = 192
"""Threads at most that may stand in for threads that are stuck in abandoned calls."""


class _ThreadCall:
    """One call on its way through a thread and back."""

    __slots__ = ("abandoned", "clock", "context", "error", "function", "future", "loop", "running", "value")

    def __init__(self, function: Callable[[], Any], loop: AbstractEventLoop, clock: Clock) -> None:
        self.function = function
        self.clock = clock
        self.loop = loop
        self.future: Future[Any] = loop.create_future()
        self.context: Context = copy_context()
        self.running = False
        self.abandoned = False
        self.value: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.value = self.context.run(self.function)
        except (StopIteration, CancelledError) as raised:  # both would mean something else to who awaits
            self.error = RuntimeError(f"the function raised {type(raised).__name__}")
            self.error.__cause__ = raised
        except BaseException as raised:  # noqa: BLE001 - nothing is swallowed: it is raised where the call is awaited
            self.error = raised
        self.clock.end()

    def post(self) -> None:
        try:
            self.loop.call_soon_threadsafe(self._settle)
        except RuntimeError:  # the loop was closed while the function ran: nobody waits any more
            return

    def _settle(self) -> None:
        if self.future.done():
            return
        if self.error is None:
            self.future.set_result(self.value)
        else:
            self.future.set_exception(self.error)


class DaemonThreads:
    """A pool of daemon threads for blocking calls, safe to use from several event loops at once."""

    def __init__(self, bound: int = BOUND, spare: int = SPARE) -> None:
        self._bound = bound
        self._spare = spare
        self._reset()

    def _reset(self) -> None:
        self._lock = Lock()
        self._calls: SimpleQueue[_ThreadCall] = SimpleQueue()
        self._threads = 0
        self._unfinished = 0
        self._stuck = 0

    @property
    def size(self) -> int:
        """How many threads there are now."""
        return self._threads

    async def run(self, function: Callable[[], T], clock: Clock | None = None) -> T:
        """Run `function` in a thread, with the caller's context variables, and return or raise what it does.

        `clock` stands until a thread is free. `StopIteration` and `CancelledError` come back as a `RuntimeError`.
        """
        clock = clock or Clock()
        clock.wait()
        call = _ThreadCall(function, get_running_loop(), clock)
        with self._lock:
            self._grow(self._unfinished + 1)
            self._unfinished += 1
            self._calls.put(call)
        try:
            return await call.future
        except CancelledError:
            self._abandon(call)
            raise

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """What a function of somebody else's returns: one that awaits on the event loop, any other in a thread."""
        if iscoroutinefunction(function):
            return await function(*args)
        value = await self.run(partial(function, *args))
        return await value if isawaitable(value) else value

    def _grow(self, calls: int) -> None:
        if calls > self._threads and self._threads < self._allowed():
            thread = Thread(target=self._work, args=(self._calls,), name=f"aworld-tool-{self._threads}", daemon=True)
            thread.start()
            self._threads += 1

    def _allowed(self) -> int:
        return self._bound + min(self._stuck, self._spare)

    def _abandon(self, call: _ThreadCall) -> None:
        with self._lock:
            call.abandoned = True
            if call.running:
                self._stuck += 1
                # In the loop's next turn: what is cancelled together with this call must not begin because of that.
                call.loop.call_soon(self._stand_in)

    def _stand_in(self) -> None:
        with self._lock:
            self._grow(self._unfinished)

    def _work(self, calls: SimpleQueue[_ThreadCall]) -> None:
        while self._serve(calls.get()):
            pass

    def _serve(self, call: _ThreadCall) -> bool:
        """Run one call; tells whether the thread goes on. A call is a local here, so that an idle thread holds none."""
        with self._lock:
            call.running = not call.abandoned
            if call.running:  # under the lock: who abandons a call knows whether it has begun
                call.clock.begin()
        if call.running:
            call.run()
        goes_on = True
        with self._lock:  # before the outcome is posted, so that who gets it finds this thread free
            self._unfinished -= 1
            if call.running and call.abandoned:
                self._stuck -= 1
                goes_on = self._threads <= self._allowed()
                self._threads -= not goes_on
            call.running = False
        if not call.abandoned:
            call.post()
        return goes_on


THREADS = DaemonThreads()
"""The threads of this process. None is started before the first synchronous tool is called."""

if hasattr(os, "register_at_fork"):  # a forked child has the object, but none of its threads
    os.register_at_fork(after_in_child=THREADS._reset)
