"""The one scheduler: many pieces of work side by side, with a limit, as they finish."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

THRESHOLDS = (20_000, 50, 100)
"""Of the garbage collector while many runs are in flight. At 1,000 at once it took a quarter of the CPU to walk the
frames of open calls, over and over; with these, and what was there before left out, 0.39 ms a call instead of 0.54."""


async def gather(items: Iterable[T], work: Callable[[T], Awaitable[R]], limit: int) -> AsyncGenerator[R, None]:
    """Do `work` on each item, at most `limit` at once; yields what it returns, in the order of finishing.

    Items are taken when there is room for them, so they may be endless, and a slow reader slows the work rather than
    fill the memory. The first error ends all of it and is raised here; leaving the loop early cancels what is at work.
    """
    results: asyncio.Queue[tuple[R] | None] = asyncio.Queue(limit)
    left = iter(items)

    async def take_turns() -> None:
        for item in left:  # workers share one iterator: each takes the next item when it is free
            await results.put((await work(item),))

    workers = [asyncio.create_task(take_turns()) for _ in range(limit)]

    async def end() -> None:
        await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
        await results.put(None)

    ending = asyncio.create_task(end())
    try:
        while (result := await results.get()) is not None:
            yield result[0]
        await asyncio.gather(*workers)
    finally:
        for task in (ending, *workers):
            task.cancel()
        await asyncio.gather(ending, *workers, return_exceptions=True)


_busy = 0
_before: tuple[bool, tuple[int, int, int]] | None = None


@contextmanager
def rare_collection(active: bool = True) -> Generator[None, None, None]:
    """Let the garbage collector look less often, and not at what is there already, while many runs are in flight.

    What it had before is restored at the end of the outermost use. A program that froze objects itself keeps them so.
    """
    global _busy, _before
    if not active:
        yield
        return
    _busy += 1
    if _busy == 1:
        freezes = gc.get_freeze_count() == 0
        _before = (freezes, gc.get_threshold())
        if freezes:
            gc.freeze()
        gc.set_threshold(*THRESHOLDS)
    try:
        yield
    finally:
        _busy -= 1
        if _busy == 0 and _before is not None:
            freezes, thresholds = _before
            gc.set_threshold(*thresholds)
            if freezes:
                gc.unfreeze()
