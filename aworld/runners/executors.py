"""Where many tasks run: on this event loop, or in worker processes of this machine.

The calls, results and logs are the same. Tasks travel to workers as references (import paths, data), never as pickled
objects; workers write to the store themselves, and what comes back over their pipes is a line for each run.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

from aworld.config.conf import EngineName, RunConfig
from aworld.core.exceptions import ConfigError
from aworld.core.task import Task, TaskResponse
from aworld.runners.driver import run_to_end
from aworld.trajectory.store import TrajectoryStore


@dataclass(slots=True)
class RunProgress:
    """How far many runs are."""

    total: int
    running: int = 0
    done: int = 0


class Executor(Protocol):
    """Runs tasks somewhere."""

    store: TrajectoryStore
    """Where the logs are."""

    def run(self, tasks: Sequence[Task]) -> AsyncGenerator[TaskResponse, None]:
        """Run them, as many at once as is allowed; responses in the order of finishing. Leaving early cancels."""
        ...


def executor_of(conf: RunConfig, store: TrajectoryStore) -> Executor:
    """The executor that a configuration names. Raises ConfigError for an engine that is not here."""
    if conf.engine_name is EngineName.LOCAL:
        return LocalExecutor(store, conf)
    if conf.engine_name is EngineName.PROCESSES:
        from aworld.runners.worker_processes import ProcessExecutor  # most programs start none

        return ProcessExecutor(store, conf)
    raise ConfigError(
        f"engine_name={conf.engine_name.value!r} is not in this version; use EngineName.LOCAL or PROCESSES.",
        setting="engine_name",
    )


class LocalExecutor:
    """Runs tasks on this event loop."""

    def __init__(self, store: TrajectoryStore, conf: RunConfig) -> None:
        self.store = store
        self._conf = conf

    async def run(self, tasks: Sequence[Task]) -> AsyncGenerator[TaskResponse, None]:
        """See `Executor.run`."""
        limit = min(self._conf.max_concurrency, len(tasks))
        work = watched(partial(run_to_end, store=self.store), len(tasks), self._conf.on_progress)
        with rare_collection(self._conf.rare_collection and limit > 1):
            async with aclosing(gather(tasks, work, max(limit, 1))) as responses:
                async for response in responses:
                    yield response


def watched(
    work: Callable[[Task], Any], total: int, on_progress: Callable[[RunProgress], None] | None
) -> Callable[[Task], Any]:
    """The work, with progress told before and after each piece."""
    if on_progress is None:
        return work
    progress = RunProgress(total)

    async def told(task: Task) -> TaskResponse:
        progress.running += 1
        on_progress(progress)
        try:
            response = await work(task)
        finally:
            progress.running -= 1
        progress.done += 1
        on_progress(progress)
        return response

    return told


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
