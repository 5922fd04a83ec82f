"""One call of somebody else's code, bounded in time: what does not end is left behind, and holds nobody up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from aworld.core.tool.base import Clock

T = TypeVar("T")

GRACE = 0.5
"""Seconds that a cancelled call has to clean up before it is left to itself: a cancelled run ends within a second."""


async def bounded(call: Coroutine[Any, Any, T], limit: float, clock: Clock | None = None) -> T:
    """What `call` returns, run in a task of its own. Raises TimeoutError after `limit` seconds (by `clock`, where the
    call may have to wait before it begins), and what it raises; asyncio.InvalidStateError when it cancelled itself.

    A call that ignores its cancellation cannot hold up the caller.
    """
    loop = asyncio.get_running_loop()
    task = loop.create_task(call)
    over = loop.create_future()  # what asyncio.wait does with a timeout, at two thirds of its cost
    task.add_done_callback(lambda _: over.done() or over.set_result(None))

    def ring() -> None:
        nonlocal timer
        if clock is not None and (left := clock.left(limit)) > 0:
            timer = loop.call_later(left, ring)
        elif not over.done():
            over.set_result(None)

    timer = loop.call_later(limit, ring)
    try:
        await over
    except asyncio.CancelledError:
        await abandon(task)
        raise
    finally:
        timer.cancel()
    if not task.done():
        await abandon(task)
        if clock is not None and clock.began is None:
            waited = time.perf_counter() - clock.queued
            raise TimeoutError(f"It did not run: no thread was free within {waited:.0f} s.")
        raise TimeoutError(f"No answer within {limit:g} s; it was stopped.")
    if task.cancelled():  # by itself, not by us
        raise asyncio.InvalidStateError("it cancelled itself")
    return task.result()


def described(raised: BaseException) -> str:
    """Type and text of an exception, as a log can keep it; also of one that cannot tell its text."""
    try:
        return f"{type(raised).__name__}: {raised}".encode("utf-8", "backslashreplace").decode()
    except Exception:  # noqa: BLE001 - somebody else's `__str__`
        return type(raised).__name__


async def abandon(task: asyncio.Future[Any]) -> None:
    """Cancel a task, give it a moment to clean up, and forget it: its late error is nobody's news."""
    task.add_done_callback(lambda t: t.cancelled() or t.exception())
    task.cancel()
    await asyncio.wait((task,), timeout=GRACE)


def failure_of(raised: BaseException) -> str | None:
    """What an exception of somebody else's code is to a run: its own failure, in words, whatever it was.

    A Rust panic, `SystemExit`, a `CancelledError` that nobody asked for: raised on, each would take all other runs of
    the event loop with it. None for Ctrl-C and for a cancellation of the task at work, which are to be raised.
    """
    if isinstance(raised, KeyboardInterrupt | GeneratorExit):
        return None
    if isinstance(raised, asyncio.CancelledError):
        task = asyncio.current_task()
        return None if task is not None and task.cancelling() else "CancelledError, which nobody asked for"
    return described(raised)


def own_failure(raised: BaseException) -> str:
    """The same; what is no failure of that code is raised again."""
    text = failure_of(raised)
    if text is None:
        raise raised
    return text
