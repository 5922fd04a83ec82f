"""Runs on this machine: where a task meets its store, and many tasks each other."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any

from aworld.config.conf import EngineName, RunConfig
from aworld.core.checks import unique
from aworld.core.event import AgentFinished, Event, Finished, MessageAdded, Rewarded
from aworld.core.exceptions import ConfigError, TaskError
from aworld.core.task import Task, TaskResponse
from aworld.core.trajectory import Trajectory
from aworld.runners.driver import refuse_interactive
from aworld.runners.executors import executor_of
from aworld.trajectory import Query, TrajectoryStore, WeakStore, open_store
from aworld.trajectory.store import already_there

_opened: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
"""Stores opened by URL, so that one process has one writer for each; they close when nothing uses them."""

_memory = WeakStore()
"""Where logs are found when no store is named: they live as long as somebody holds their response."""


def run_config(value: RunConfig | dict[str, Any] | None) -> RunConfig:
    """A run configuration from what a caller gave. Raises ConfigError for an engine that is not here."""
    conf = RunConfig(**value) if isinstance(value, dict) else (value or RunConfig())
    if conf.engine_name is EngineName.RAY:
        raise ConfigError(
            f"engine_name={conf.engine_name.value!r} is not in this version; use EngineName.LOCAL or PROCESSES.",
            setting="engine_name",
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


async def run_many(
    tasks: Sequence[Task], conf: RunConfig, done: Callable[[TaskResponse], None] | None = None
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
    executor = executor_of(conf, store)
    responses: dict[str, TaskResponse] = {}
    # One after the other is as many batches of one: the first that does not finish stops the rest.
    for batch in [[task] for task in tasks] if conf.sequence_dependent else [tasks]:
        async with aclosing(executor.run(batch)) as finished:
            async for response in finished:
                responses[response.id] = response
                if done is not None:
                    done(response)
        if conf.sequence_dependent and not all(response.success for response in responses.values()):
            break
    return {id: responses[id] for id in ids if id in responses}


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
