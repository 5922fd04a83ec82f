"""Runs on this machine: where a task meets its store, and many tasks each other."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from aworld.config.conf import EngineName, RunConfig, TaskRunMode
from aworld.core.event import AgentFinished, Event, Finished, MessageAdded, Rewarded
from aworld.core.exceptions import ConfigError, TaskError
from aworld.core.output import AnyOutput
from aworld.core.task import Task, TaskResponse
from aworld.core.trajectory import Trajectory
from aworld.runners.episode import Episode
from aworld.trajectory import Query, TrajectoryStore, WeakStore, open_store
from aworld.trajectory.store import already_there

_opened: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
"""Stores opened by URL, so that one process has one writer for each; they close when nothing uses them."""

_memory = WeakStore()
"""Where logs are found when no store is named: they live as long as somebody holds their response."""


def run_config(value: RunConfig | dict[str, Any] | None) -> RunConfig:
    """A run configuration from what a caller gave. Raises ConfigError for an engine that is not here."""
    conf = RunConfig(**value) if isinstance(value, dict) else (value or RunConfig())
    if conf.engine_name is not EngineName.LOCAL:
        raise ConfigError(f"engine_name={conf.engine_name.value!r} is not in this version; use EngineName.LOCAL.")
    return conf


def store_of(value: Any) -> TrajectoryStore:
    """The store that a caller named: a store, a URL, or None for the memory of this process."""
    if value is None:
        return _memory
    if not isinstance(value, str):
        if not hasattr(value, "append") or not hasattr(value, "attach"):
            raise ConfigError(f"store takes a store or an address such as sqlite:///runs.db; got {value!r}.")
        return value
    store = _opened.get(value)
    if store is None or getattr(store, "closed", False):
        store = _opened[value] = open_store(value)
    return store


async def load(id: str, store: TrajectoryStore) -> Trajectory:
    """The trajectory of this id. Raises TaskError when the store does not have it."""
    return Trajectory.of(id, await store.read(id))


async def run_one(task: Task, store: TrajectoryStore, emit: Callable[[AnyOutput], None] | None = None) -> TaskResponse:
    """Run a task to its end. Raises TaskError for one that is to be stepped."""
    refuse_interactive(task)
    return await Episode(task, store, forked(task), emit).run()


def refuse_interactive(task: Task) -> None:
    """Raises TaskError for a task that its caller wants to drive step by step."""
    if task.conf.run_mode is TaskRunMode.INTERACTIVE:
        text = f"Task {task.id!r} has run_mode=INTERACTIVE: step it with Runners.step, or leave run_mode out."
        raise TaskError(text, setting="run_mode", remedy="step it with Runners.step, or leave run_mode out")


def forked(task: Task) -> Trajectory | None:
    """The record that a forked task begins with; None for other tasks."""
    prefix = task.prefix
    if prefix is None:
        return None
    record = Trajectory(task.id)
    for event in prefix.trajectory.events[: prefix.seq]:
        record.apply(event)
    return record


async def run_many(
    tasks: Sequence[Task], conf: RunConfig, done: Callable[[TaskResponse], None] | None = None
) -> dict[str, TaskResponse]:
    """Run tasks, at most `conf.max_concurrency` at once; responses by task id, in the order of the tasks."""
    ids = [task.id for task in tasks]
    if len(set(ids)) != len(ids):
        twice = next(id for id in ids if ids.count(id) > 1)
        raise TaskError(f"Two tasks have the id {twice!r}; give each its own, or leave the id out.")
    for task in tasks:
        refuse_interactive(task)
    for agent in {id(task.agent): task.agent for task in tasks}.values():
        agent.check()  # misuse is told before any task begins
    store = store_of(conf.store)
    taken = await store.query(Query(ids=tuple(task.id for task in tasks if task.named)))
    if taken:
        raise already_there(taken[0].id, store.url)
    if conf.sequence_dependent:
        return await _in_sequence(tasks, store, done)
    responses: dict[str, TaskResponse] = {}
    waiting = iter(tasks)

    async def work() -> None:
        for task in waiting:  # workers share one iterator: each takes the next task when it is free
            response = responses[task.id] = await run_one(task, store)
            if done is not None:
                done(response)

    workers = [asyncio.create_task(work()) for _ in range(min(conf.max_concurrency, len(tasks)))]
    try:
        await asyncio.gather(*workers)
    except BaseException:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        raise
    return {id: responses[id] for id in ids}


async def _in_sequence(
    tasks: Sequence[Task], store: TrajectoryStore, done: Callable[[TaskResponse], None] | None
) -> dict[str, TaskResponse]:
    responses: dict[str, TaskResponse] = {}
    for task in tasks:
        response = responses[task.id] = await run_one(task, store)
        if done is not None:
            done(response)
        if not response.success:
            break
    return responses


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
    return next(e.seq for e in record.events if e.seq == first or (isinstance(e, MessageAdded) and e.id in replies))


def _is_end(event: Event, record: Trajectory) -> bool:
    """Whether an event belongs to the end of a run; what a team got over, and a hand-over, lie before it."""
    if isinstance(event, AgentFinished):
        return event.handoff is None and (event.error is None or record.status != "finished")
    return isinstance(event, Finished | Rewarded)
