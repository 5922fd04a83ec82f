"""Where many tasks run: on this event loop, or in worker processes of this machine.

The calls, results and logs are the same. Tasks travel to workers as references (import paths, data), never as pickled
objects; workers write to the store themselves, and what comes back over their pipes is a line for each run.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from aworld.config.conf import EngineName, RunConfig
from aworld.core.exceptions import ConfigError
from aworld.core.task import Task, TaskResponse
from aworld.runners.driver import run_to_end
from aworld.runners.schedule import gather, rare_collection
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
