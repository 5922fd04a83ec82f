"""Runs on this machine: where a task meets its store, and many tasks each other.

Many tasks run on this event loop, or in worker processes; the calls, results and logs are the same. One scheduler
(`gather`) does any kind of work side by side: tasks, episodes, what is resumed.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import weakref
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from aworld.config.conf import EngineName, RunConfig
from aworld.core.agent.flow import Unit
from aworld.core.checks import typed, unique
from aworld.core.event import AgentFinished, Event, Finished, MessageAdded, Rewarded
from aworld.core.exceptions import ConfigError, LimitReached, TaskError
from aworld.core.task import Task, TaskResponse
from aworld.core.trajectory import Trajectory
from aworld.runners.budget import Budget, Share, check_prices, status_of
from aworld.runners.dependencies import dependencies
from aworld.runners.driver import not_ended, refuse_interactive, run_to_end
from aworld.runners.run import units_of_task
from aworld.trajectory import Query, TrajectoryStore, WeakStore, open_store
from aworld.trajectory.store import already_there

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

_opened: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
"""Stores opened by URL, so that one process has one writer for each; they close when nothing uses them."""

_no_config = cache(RunConfig)  # made when first needed: importing this builds no schema

_memory = WeakStore()
"""Where logs are found when no store is named: they live as long as somebody holds their response."""


@typed()
def run_config(run_conf: RunConfig | dict[str, Any] | None) -> RunConfig:
    """A run configuration from what a caller gave. Raises ConfigError for an engine that is not here."""
    conf = RunConfig(**run_conf) if isinstance(run_conf, dict) else (run_conf or _no_config())
    if conf.engine_name is EngineName.RAY:
        raise ConfigError(
            f"engine_name={conf.engine_name.value!r} is not in this version; use EngineName.LOCAL or PROCESSES.",
            setting="engine_name",
        )
    if conf.worker_num > 1 and "engine_name" not in conf.model_fields_set:
        raise ConfigError(
            f"worker_num={conf.worker_num} needs engine_name='processes'; say engine_name='local' if it shall mean "
            "nothing: on this event loop max_concurrency says how many tasks run at once.",
            setting="worker_num",
        )
    return conf


def store_of(value: Any, task: Task | None = None) -> TrajectoryStore:
    """The store that a caller named: a store, a URL, or None: that of the run which `task` goes on from, or the memory
    of this process."""
    if value is None:
        before = task.after if task is not None else None
        return before.store if isinstance(before, TaskResponse) and before.store is not None else _memory
    if not isinstance(value, str):
        if not hasattr(value, "append") or not hasattr(value, "claim"):
            raise ConfigError(f"store takes a store or an address such as sqlite:///runs.db; got {value!r}.")
        return value
    store = _opened.get(value)
    if store is None or getattr(store, "closed", False):
        store = _opened[value] = open_store(value)
    return store


async def load(id: str, store: TrajectoryStore) -> Trajectory:
    """The trajectory of this id. Raises TaskError when the store does not have it."""
    return Trajectory.of(id, await store.read(id), await store.notes(id))


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
        self._checked: Unit | None = None
        """An agent that works with nothing that is given to the run: the next task of it needs no look."""
        self.budget = None if conf.max_cost is None and conf.max_tokens is None else Budget(conf)

    def check(self, task: Task) -> None:
        """Raise TaskError for a task that cannot be run there, or lacks its dependencies; ConfigError for one whose
        cost cannot be limited."""
        if task.deps is not None or task.agent is not self._checked:
            dependencies(task)
            self._checked = task.agent if task.deps is None else None
        if self.budget is not None or task.conf.max_cost is not None:
            task.share = self.budget
            check_prices(task, units_of_task(task.agent, task.tools).values())

    async def run_one(self, task: Task, record: Trajectory | None = None) -> TaskResponse:
        """Run a task to its end, on from `record` if there is one; within `each`. One for which nothing is left of the
        budget is not begun: its response says so, and its record has no events more than before."""
        if self.budget is None:
            return await self._run_one(task, record)
        try:
            held = await self.budget.reserve(begin=True)
        except LimitReached as reached:
            text = f"{reached} It was not {'gone on with' if record is not None else 'begun'}."
            return TaskResponse(record or Trajectory(task.id), status_of(reached), error=text, store=self.store)
        task.share = share = Share(self.budget, held)
        try:
            return await self._run_one(task, record)
        finally:
            share.leave()

    @abstractmethod
    async def _run_one(self, task: Task, record: Trajectory | None) -> TaskResponse:
        """Run it there."""

    @abstractmethod
    def _at_work(self, limit: int) -> AbstractAsyncContextManager[None]:
        """What it takes to run so many tasks at once."""

    async def each(self, items: Iterable[T], work: Callable[[T], Awaitable[R]], limit: int) -> AsyncGenerator[R]:
        """`gather`, with work that runs tasks by `run_one`."""
        async with self._at_work(limit), aclosing(gather(items, work, limit)) as results:
            async for result in results:
                yield result

    async def run(self, tasks: Sequence[Task]) -> AsyncGenerator[TaskResponse]:
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


class LocalExecutor(Executor):
    """Runs tasks on this event loop."""

    async def _run_one(self, task: Task, record: Trajectory | None) -> TaskResponse:
        return await run_to_end(task, self.store, record)

    @asynccontextmanager
    async def _at_work(self, limit: int) -> AsyncGenerator[None]:
        with rare_collection(self._conf.rare_collection and limit > 1):
            yield


def executor_of(conf: RunConfig, store: TrajectoryStore) -> Executor:
    """The executor that a configuration names."""
    if conf.engine_name is not EngineName.PROCESSES:
        return LocalExecutor(store, conf)
    from aworld.runners.worker_processes import ProcessExecutor  # most programs start none

    return ProcessExecutor(store, conf)


async def run_many(
    tasks: Sequence[Task], conf: RunConfig, done: Callable[[TaskResponse], Any] | None = None
) -> dict[str, TaskResponse]:
    """Run tasks, at most `conf.max_concurrency` at once; responses by task id, in the order of the tasks."""
    ids = unique("Two tasks have the id", (task.id for task in tasks), TaskError)
    for task in tasks:
        refuse_interactive(task)
    for agent in {id(task.agent): task.agent for task in tasks}.values():
        agent.check()  # misuse is told before any task begins
    store = store_of(conf.store, tasks[0] if tasks else None)
    named = tuple(task.id for task in tasks if task.named)
    if taken := await store.query(Query(ids=named)) if named else ():
        raise already_there(taken[0].id, store.url)
    await _check_turns_before(tasks, store, among=ids if conf.sequence_dependent else ())
    executor = executor_of(conf, store)
    responses: dict[str, TaskResponse] = {}
    # One after the other is as many batches of one: the first that does not finish stops the rest.
    for batch in [[task] for task in tasks] if conf.sequence_dependent else [tasks]:
        async with aclosing(executor.run(batch)) as finished:
            async for response in finished:
                responses[response.id] = response
                if done is not None:
                    await tell(done, response)
        if conf.sequence_dependent and not all(response.success for response in responses.values()):
            break
    return {id: responses[id] for id in ids if id in responses}


async def _check_turns_before(tasks: Sequence[Task], store: TrajectoryStore, among: Iterable[str]) -> None:
    """Raises TaskError, before any task begins, where one goes on from a run that is not there or has not ended."""
    names = {task.after for task in tasks if isinstance(task.after, str)} - set(among)
    ended = {summary.id: summary for summary in await store.query(Query(ids=tuple(names)))} if names else {}
    for name in names:
        if name not in ended:
            await store.read(name)  # says that there is none, and which is near
        elif ended[name].finished_at is None:
            raise not_ended(name, ended[name].status)


async def tell(listener: Callable[[Any], Any], news: Any) -> None:
    """Call a function of the caller's that wants to know. What it raises is logged: it ends no run, and no batch."""
    try:
        pending = listener(news)
        if inspect.isawaitable(pending):
            await pending
    except Exception:
        logger.exception("listener=%r | it raised; the runs go on", listener)


def watched(
    work: Callable[[Task], Any], total: int, on_progress: Callable[[RunProgress], Any] | None
) -> Callable[[Task], Any]:
    """The work, with progress told before and after each piece."""
    if on_progress is None:
        return work
    progress = RunProgress(total)

    async def told(task: Task) -> TaskResponse:
        progress.running += 1
        await tell(on_progress, progress)
        try:
            response = await work(task)
        finally:
            progress.running -= 1
        progress.done += 1
        await tell(on_progress, progress)
        return response

    return told


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


def fork_point(record: Trajectory, at: int | None) -> int:
    """How many events a fork before step `at` shares (None: after the last step). Raises TaskError."""
    if at is not None and (not isinstance(at, int) or not 0 <= at <= record.next_step):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers of a front door give anything
        raise TaskError(f"Trajectory {record.id} has {record.next_step} steps; at={at} is not between 0 and that.")
    anew = [call for step, call in record.calls.items() if at is not None and step >= at]
    if not anew:  # everything but the end, which is drawn again, and what was said after it
        seq = len(record.events)
        while _is_end(record.events[seq - 1], record):
            seq -= 1
        return seq
    # A step begins with the message of its reply, or with the call where no reply came. Parallel ones overtake others.
    replies = {call.reply for call in anew}
    first = min(call.seq for call in anew)
    return next(e.seq for e in record.own_events if e.seq == first or (isinstance(e, MessageAdded) and e.id in replies))


def _is_end(event: Event, record: Trajectory) -> bool:
    """Whether an event belongs to the end of a run; what a team got over, and a hand-over, lie before it."""
    if isinstance(event, AgentFinished):
        return event.handoff is None and (event.error is None or record.status != "finished")
    return isinstance(event, Finished | Rewarded)
