"""Feeds: a run read while it goes on, or later, in this process or another one.

A reader is shown a fold of the log from where it begins to read, and then what comes, as it becomes durable. Any number
of readers follow one run; what waits for a slow one waits in memory, so it slows nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, cast

from aworld.core.event import Finished
from aworld.core.exceptions import TaskError
from aworld.core.output import AnyOutput, Output, OutputFold, ReasoningOutput, RunFinished, TextOutput
from aworld.core.task import Task, TaskResponse
from aworld.core.trajectory import Trajectory
from aworld.runners.driver import Episode, refuse_interactive
from aworld.runners.run import recorded_seconds, run_finished
from aworld.trajectory.hub import NoteAdded
from aworld.trajectory.query import Query
from aworld.trajectory.store import TrajectoryStore


class RunStream:
    """The outputs of one run, and its response. Made by `Runners.streamed_run_task`; the run starts when it is read."""

    def __init__(
        self, task: Task, store: TrajectoryStore, *, keep_running: bool = False, episode: Episode | None = None
    ) -> None:
        self._asked, self._id, self._store = task, task.id, store
        self._keep_running = keep_running
        self._episode = episode
        """What goes on with a run; None for one that begins."""
        self._task: asyncio.Task[TaskResponse] | None = None
        self._readers = 0

    async def stream_events(self) -> AsyncGenerator[AnyOutput, None]:
        """Yield what happens, in order; exactly one `RunFinished` last. Raises what misuse raises.

        A reader that comes late is shown what happened before. When the last one leaves before the end, the run is
        cancelled, unless the stream was told to let it finish.
        """
        late = self._task is not None
        self._readers += 1
        subscription = self._store.hub.subscribe(self._id)
        entries, fold, seq = subscription.entries, OutputFold(self._id), -1
        for event in self._episode.record.events if self._episode is not None and not late else ():
            fold.take(event)  # what was shown before it went on
            seq = event.seq
        try:
            task = self._run()
            task.add_done_callback(lambda _: subscription.wake())
            missing = late
            while True:
                if missing:  # before this reader came, or more than waits in memory: the log has what matters
                    missing = False
                    subscription.stale.clear()
                    for event in await self._past(seq):
                        seq = event.seq
                        for output in fold.take(event):
                            yield output
                while entries:
                    entry: Any = entries.popleft()[1]
                    kind = cast("type[Any]", type(entry))
                    if kind is TextOutput or kind is ReasoningOutput:
                        yield entry
                    elif isinstance(entry, Output):
                        if kind is not RunFinished:  # that one comes from the task, whoever listened
                            yield fold.pass_on(entry)
                    elif kind is not NoteAdded and entry.seq > seq:
                        if entry.seq > seq + 1:
                            missing = True
                            break
                        seq = entry.seq
                        for output in fold.take(entry):
                            yield output
                if missing or subscription.stale:
                    missing = True
                elif task.done():
                    yield run_finished(await self.response())
                    return
                else:
                    await subscription.wait()
        finally:
            subscription.close()
            self._readers -= 1
            if not self._readers and not self._keep_running:
                await self.cancel()

    async def _past(self, seq: int) -> Sequence[Any]:
        """What the log has behind an event."""
        try:
            return await self._store.read(self._id, after=seq)
        except TaskError:  # it has not begun
            return ()

    async def response(self) -> TaskResponse:
        """Wait for the end, also that of a run that was cancelled."""
        task = self._run()
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            response = self._episode.response if self._episode is not None else None
            if not task.done() or response is None:  # it is the caller who was cancelled
                raise
            return response

    async def cancel(self) -> None:
        """End the run with status `cancelled`, within a second. Does nothing once it has ended."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait((self._task,))

    def suspend(self) -> None:
        """Stop the run within a second, so that it can be resumed; its status is `waiting` then."""
        if self._episode is not None:
            self._episode.suspend()

    def _run(self) -> asyncio.Task[TaskResponse]:
        if self._task is None:
            refuse_interactive(self._asked)
            self._episode = self._episode or Episode(self._asked, self._store)
            self._task = asyncio.ensure_future(self._episode.run())
            self._task.add_done_callback(self._done)
        return self._task

    def _done(self, task: asyncio.Task[TaskResponse]) -> None:
        if not task.cancelled() and task.exception() is not None and self._keep_running:
            task.get_loop().call_exception_handler({"message": "a run left alone failed", "task": task})


async def follow(
    store: TrajectoryStore, which: str | Sequence[str] | Query, after: int = -1
) -> AsyncIterator[AnyOutput]:
    """The outputs of stored runs, and of those at work in any process, as they come.

    With ids it ends when all of those runs have ended; with a query never by itself. `after` leaves out what events up
    to this number show. The response of a run that ended is made of its record.
    """
    folds: dict[str, OutputFold] = {}
    left = {which} if isinstance(which, str) else None if isinstance(which, Query) else set(which)
    if left is not None and not left:
        return
    for id in left or () if store.url == "weak:" else ():  # nobody else will ever begin it there
        await store.read(id)
    async for id, entry in store.follow(which):
        if isinstance(entry, NoteAdded):
            continue
        fold = folds.get(id) or folds.setdefault(id, OutputFold(id))
        if isinstance(entry, RunFinished):
            continue  # the log says so to every reader
        if isinstance(entry, Output):
            yield fold.pass_on(entry)
            continue
        for output in fold.take(entry):
            if entry.seq > after:
                yield output
        if isinstance(entry, Finished) and fold.own:  # not the end of the turn before, which a conversation shares
            record = Trajectory.of(id, await store.read(id), await store.notes(id))
            if record.events[-1].seq > entry.seq and not isinstance(record.events[-1], Finished):
                continue  # it was cut off, and went on
            folds.pop(id, None)
            response = TaskResponse(record, record.status, record.answer, record.error, recorded_seconds(record))
            yield run_finished(response, entry.seq)
            if left is not None:
                left.discard(id)
                if not left:
                    return
