"""Where many tasks run: on this event loop, or in worker processes of this machine.

The calls, results and logs are the same. Tasks travel to workers as references (import paths, data), never as pickled
objects; workers write to the store themselves, and what comes back over their pipes is a line for each run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from aworld.config.conf import EngineName, RunConfig
from aworld.core.exceptions import ConfigError
from aworld.core.task import Task, TaskResponse
from aworld.runners.driver import run_to_end
from aworld.runners.schedule import gather, rare_collection
from aworld.trajectory.store import TrajectoryStore

T = TypeVar("T")
R = TypeVar("R")


@dataclass(slots=True)
class RunProgress:
    """How far many runs are."""

    total: int
    running: int = 0
    done: int = 0


class Executor(ABC):
    """Runs tasks somewhere. `store` has the logs."""

    def __init__(self, store: TrajectoryStore, conf: RunConfig) -> None:
        self.store = store
        self._conf = conf

    @abstractmethod
    def check(self, task: Task) -> None:
        """Raise TaskError for a task that cannot be run there."""

    @abstractmethod
    async def run_one(self, task: Task) -> TaskResponse:
        """Run a task to its end, within `each`."""

    @abstractmethod
    def _at_work(self, limit: int) -> AbstractAsyncContextManager[None]:
        """What it takes to run so many tasks at once."""

    async def each(self, items: Iterable[T], work: Callable[[T], Awaitable[R]], limit: int) -> AsyncGenerator[R, None]:
        """`gather`, with work that runs tasks by `run_one`."""
        async with self._at_work(limit), aclosing(gather(items, work, limit)) as results:
            async for result in results:
                yield result

    async def run(self, tasks: Sequence[Task]) -> AsyncGenerator[TaskResponse, None]:
        """Run them, as many at once as is allowed; responses in the order of finishing. Leaving early cancels.

        Raises TaskError for a task that cannot be run there, before any begins.
        """
        for task in tasks:
            self.check(task)
        limit = max(min(self._conf.max_concurrency, len(tasks)), 1)
        work = watched(self.run_one, len(tasks), self._conf.on_progress)
        async with aclosing(self.each(tasks, work, limit)) as responses:
            async for response in responses:
                yield response


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


class LocalExecutor(Executor):
    """Runs tasks on this event loop."""

    def check(self, task: Task) -> None:
        """See `Executor.check`: every task can be run here."""

    async def run_one(self, task: Task) -> TaskResponse:
        """See `Executor.run_one`."""
        return await run_to_end(task, self.store)

    @asynccontextmanager
    async def _at_work(self, limit: int) -> AsyncGenerator[None]:
        with rare_collection(self._conf.rare_collection and limit > 1):
            yield


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
