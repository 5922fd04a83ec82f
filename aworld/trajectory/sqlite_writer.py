"""The one thread that writes a SQLite store.

Callers of any thread and loop queue jobs; the thread takes what has gathered and writes it in one transaction (group
commit), so that the cost of a commit is shared by all running tasks. The transaction takes the write lock at its
beginning, looks whether another process wrote since (`PRAGMA data_version`), and therefore knows for certain where
each log ends. A job that does not fit is refused alone; a failure of the file refuses the batch and leaves nothing
half-written. Waiting callers are told by one call into each of their loops.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeAlias
from weakref import WeakSet

import msgspec
from msgspec import Struct

from aworld.core.event import Event, Started, TaskInfo
from aworld.core.exceptions import AWorldError, StoreError
from aworld.trajectory.memory import check_fork, has_forks, out_of_order
from aworld.trajectory.sqlite_file import PARTICULAR, SEQ_BITS, connect, explain, family, roll_back
from aworld.trajectory.sqlite_reader import compose, nearest
from aworld.trajectory.store import already_there, unknown_trajectory
from aworld.trajectory.summary import Tally

BATCH = 500
"""Events of one transaction; more gain nothing and make the first of them wait."""

KEPT = 50_000
"""Tallies of running tasks that are kept between batches; one takes about 1 KB."""

Waiter: TypeAlias = "asyncio.Future[None] | Future[Any]"


class Append(Struct):
    """Events of one trajectory, in order, and who waits for them."""

    id: str
    events: Sequence[Event]
    data: list[bytes]
    waiter: Waiter | None


class Call(Struct):
    """Something else to do on the writing connection, after all that was queued before; None: only be reached."""

    do: Callable[[sqlite3.Connection], Any] | None
    waiter: Future[Any]


class Known(Struct):
    """A log as the writer knows it: the number of its trajectory and the tally up to its last event."""

    key: int
    tally: Tally


Outcome: TypeAlias = "tuple[Append, AWorldError | None]"


class Writer:
    """The queue and the thread behind it. The thread starts with the first job and ends with `stop`."""

    def __init__(self, path: str, url: str, synchronous: str, timeout: float) -> None:
        self.path, self.url = path, url
        self.queue: deque[Append | Call] = deque()
        self.busy = False
        self.closed = False
        self._taken: list[Append] = []
        self.unreported: dict[str, AWorldError] = {}
        """Failures of appends for which nobody waited, by trajectory."""
        self._settings: dict[str, Any] = {"synchronous": synchronous, "timeout": timeout}
        self._wake = threading.Lock()
        self._wake.acquire()
        self._start = threading.Lock()
        self._thread: threading.Thread | None = None
        self._connection: sqlite3.Connection | None = None
        self._known: dict[str, Known] = {}
        self._lost: dict[str, tuple[int, AWorldError]] = {}
        """The number after the last event of a trajectory that was refused, and why: what goes on there fails too."""
        self._version = -1
        _writers.add(self)

    def wake(self) -> None:
        """Let the thread write what is queued."""
        if self._thread is None:
            self._begin()
        if self._wake.locked():
            with suppress(RuntimeError):  # another caller was quicker
                self._wake.release()

    def call(self, do: Callable[[sqlite3.Connection], Any] | None) -> Future[Any]:
        """Run `do` on the writing connection after everything queued so far. Raises `StoreError` when closed.

        Without `do`, what is returned is done when all that was queued is written or refused.
        """
        if self.closed:
            raise self.shut()
        waiter: Future[Any] = Future()
        self.queue.append(Call(do, waiter))
        self.wake()
        return waiter

    def delete(self, id: str, forks: bool) -> Future[int]:
        """Delete a trajectory, and with `forks` those forked from it; the result is how many are gone."""

        def do(connection: sqlite3.Connection) -> int:
            gone = remove(connection, self.url, id, forks)
            for each in gone:
                self._known.pop(each, None)
            return len(gone)

        return self.call(do)

    def shut(self) -> StoreError:
        """The error for using a store that was closed."""
        return StoreError(f"store={self.url} | the store is closed; open it again with open_store")

    def stop(self) -> None:
        """Write what is queued, then end the thread; returns at once."""
        self.closed = True
        if self._thread is not None:
            self.wake()

    def join(self) -> None:
        """Wait until everything is written and the thread has ended. Call after `stop`."""
        thread = self._thread
        if thread is None:  # nothing was ever awaited, and at the interpreter's end no thread can begin
            self._serve()
        elif thread is not threading.current_thread():
            thread.join()

    def forget(self) -> None:
        """In a forked child: the thread, its connection and the queue are the parent's."""
        _inherited.append(self._connection)
        self.queue.clear()
        self._wake, self._start = threading.Lock(), threading.Lock()
        self._wake.acquire()
        self._thread = self._connection = None
        self._known.clear()
        self.busy = False

    def _begin(self) -> None:
        with self._start:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"aworld-store {self.path}", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        try:
            while not self.closed:
                self._wake.acquire()
                self._serve()
            self._serve()  # what came between the last look at the queue and `stop`
        except BaseException as error:
            self._abandon(error)
            raise

    def _serve(self) -> None:
        self.busy = True
        while self.queue:
            self._work()
        self.busy = False
        if self.closed:
            self._disconnect()

    def _work(self) -> None:
        queue, jobs, size = self.queue, self._taken, 0
        while queue and size < BATCH and isinstance(job := queue[0], Append):
            jobs.append(job)
            queue.popleft()
            size += len(job.data)
        if jobs:
            self._tell(self._write(jobs))
            jobs.clear()
        elif isinstance(job := queue.popleft(), Call):
            self._answer(job)

    def _abandon(self, error: BaseException) -> None:
        """Leave nobody waiting when the thread dies of a mistake of ours."""
        self.closed = True
        failure = StoreError(f"store={self.url} | the writer stopped: {error!r}; this is a bug, please report it")
        queued = [*self._taken, *self.queue]
        self.queue.clear()
        self._tell([(job, failure) for job in queued if isinstance(job, Append)])
        for job in queued:
            if isinstance(job, Call) and not job.waiter.done():
                job.waiter.set_exception(failure)

    def _answer(self, call: Call) -> None:
        try:
            call.waiter.set_result(call.do and call.do(self._connect()))
        except (sqlite3.Error, AWorldError) as error:
            self._known.clear()
            call.waiter.set_exception(error if isinstance(error, AWorldError) else explain(self.path, error))

    def _connect(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = connect(self.path, **self._settings)
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        self._known.clear()
        if connection is not None:
            with suppress(sqlite3.Error):  # the log beside the file stays and is taken in by whoever opens it next
                connection.close()

    def _write(self, jobs: list[Append]) -> list[Outcome]:
        try:
            return self._commit(self._connect(), jobs)
        except StoreError as error:
            failure = error
        except (sqlite3.Error, OverflowError) as error:
            failure = explain(self.path, error)
            again = len(jobs) > 1 and (family(error) in PARTICULAR or isinstance(error, OverflowError))
            self._disconnect()
            if again:
                return [outcome for job in jobs for outcome in self._write([job])]
        for job in jobs:
            self._lose(job, failure)
        return [(job, failure) for job in jobs]

    def _lose(self, job: Append, error: AWorldError) -> None:
        self._lost[job.id] = (job.events[-1].seq + 1, error)

    def _commit(self, connection: sqlite3.Connection, jobs: list[Append]) -> list[Outcome]:
        if len(self._lost) > KEPT:
            self._lost.clear()
        outcomes: list[Outcome] = []
        rows: list[tuple[int, bytes]] = []
        touched: dict[str, Known] = {}
        connection.execute("BEGIN IMMEDIATE")
        try:
            version = connection.execute("PRAGMA data_version").fetchone()[0]
            if version != self._version or len(self._known) > KEPT:
                self._known.clear()
                self._version = version
            for job in jobs:
                try:
                    known = self._admit(connection, job)
                except AWorldError as error:
                    self._lose(job, error)
                    outcomes.append((job, error))
                    continue
                base, seq = known.key << SEQ_BITS, known.tally.events
                rows += [(base + seq + place, data) for place, data in enumerate(job.data)]
                for event in job.events:
                    known.tally.apply(event)
                touched[job.id] = known
                outcomes.append((job, None))
            connection.executemany("INSERT INTO events VALUES (?, ?)", rows)
            _write_tallies(connection, touched)
            connection.execute("COMMIT")
        except BaseException:
            self._known.clear()  # the tallies have run ahead of the file
            roll_back(connection)
            raise
        for id, known in touched.items():
            if known.tally.ended is not None:
                self._known.pop(id, None)
            if self._lost:
                self._lost.pop(id, None)
        return outcomes

    def _admit(self, connection: sqlite3.Connection, job: Append) -> Known:
        known = self._known.get(job.id) or self._recall(connection, job.id)
        first = job.events[0]
        end, lost = self._lost.get(job.id, (-1, None))
        lost = lost if first.seq == end else None
        if isinstance(first, Started):
            if known is not None:
                raise already_there(job.id, self.url)
            known = self._create(connection, job.id, first)
        elif known is None:
            raise lost or unknown_trajectory(job.id, self.url, nearest(connection, job.id))
        due = known.tally.events
        if first.seq != due:
            raise (lost if end > due else None) or out_of_order(job.id, self.url, first.seq, due)
        if due + len(job.data) >= 1 << SEQ_BITS:
            raise StoreError(f"store={self.url} | trajectory {job.id!r} has {due} events, the most that one can have")
        self._known[job.id] = known
        return known

    def _recall(self, connection: sqlite3.Connection, id: str) -> Known | None:
        row = connection.execute(f"SELECT {', '.join(_COLUMNS)}, asked, key FROM trajectories WHERE id = ?", (id,))
        found = row.fetchone()
        if found is None:
            return None
        task, rest = found[1:6], found[6:]
        (agent, status, score, started, updated, finished, steps, events, inputs, outputs, answer, error, forked) = (
            rest[:13]
        )
        tally = Tally(
            id=id, task=TaskInfo(*task), agent=agent, ended=None if finished is None else status,
            score=score, started_at=started, updated_at=updated, finished_at=finished, steps=steps, events=events,
            input_tokens=inputs, output_tokens=outputs, answer=answer, error=error, forked_from=forked,
            asked=msgspec.json.decode(rest[13] or b"[]"), changed=False,
        )  # fmt: skip
        return Known(rest[14], tally)

    def _create(self, connection: sqlite3.Connection, id: str, started: Started) -> Known:
        fork, parent, tally = started.forked_from, None, Tally(id=id, task=started.task)
        if fork is None and started.seq != 0:
            raise out_of_order(id, self.url, started.seq, 0)
        if fork is not None:
            row = connection.execute("SELECT key FROM trajectories WHERE id = ?", (fork.id,)).fetchone()
            if row is None:
                raise unknown_trajectory(fork.id, self.url, nearest(connection, fork.id))
            parent = row[0]
            tally = Tally.of(id, check_fork(id, started, compose(connection, self.path, fork.id, until=fork.seq)))
        cursor = connection.execute(
            "INSERT INTO trajectories (id, task_id, task_name, group_id, session_id, user_id, status, started_at,"
            " updated_at, steps, events, forked_from, parent, first) VALUES (?,?,?,?,?,?,'running',?,?,0,0,?,?,?)",
            (
                id, started.task.id, started.task.name, started.task.group_id, started.task.session_id,
                started.task.user_id, started.at, started.at, fork.id if fork else None, parent, started.seq,
            ),
        )  # fmt: skip
        assert cursor.lastrowid is not None  # an insert that succeeded has one
        return Known(cursor.lastrowid, tally)

    def _tell(self, outcomes: list[Outcome]) -> None:
        loops: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[None], AWorldError | None]]] = {}
        for job, error in outcomes:
            waiter = job.waiter
            if waiter is None:
                if error is not None:
                    self.unreported[job.id] = error
            elif isinstance(waiter, Future):
                waiter.set_result(None) if error is None else waiter.set_exception(error)
            else:
                loops.setdefault(waiter.get_loop(), []).append((waiter, error))
        for loop, waiters in loops.items():
            with suppress(RuntimeError):  # the loop was closed: nobody waits any more
                loop.call_soon_threadsafe(_resolve, waiters)


_COLUMNS = (
    "id", "task_id", "task_name", "session_id", "user_id", "group_id", "agent", "status", "score", "started_at",
    "updated_at", "finished_at", "steps", "events", "input_tokens", "output_tokens", "answer", "error", "forked_from",
)  # fmt: skip

_RUNNING = "UPDATE trajectories SET updated_at=?, steps=?, events=?, input_tokens=?, output_tokens=? WHERE key=?"
# The columns that have an index stand only here: most batches leave them as they are.
_WHOLE = (
    "UPDATE trajectories SET agent=?, status=?, score=?, finished_at=?, answer=?, error=?, asked=?,"
    " updated_at=?, steps=?, events=?, input_tokens=?, output_tokens=? WHERE key=?"
)


def _write_tallies(connection: sqlite3.Connection, touched: dict[str, Known]) -> None:
    running: list[tuple[Any, ...]] = []
    whole: list[tuple[Any, ...]] = []
    for known in touched.values():
        t = known.tally
        figures = (t.updated_at, t.steps, t.events, t.input_tokens, t.output_tokens, known.key)
        if t.changed:
            asked = msgspec.json.encode(t.asked) if t.asked else None
            whole.append((t.agent, t.status, t.score, t.finished_at, t.answer, t.error, asked, *figures))
            t.changed = False
        else:
            running.append(figures)
    if running:
        connection.executemany(_RUNNING, running)
    if whole:
        connection.executemany(_WHOLE, whole)


def remove(connection: sqlite3.Connection, url: str, id: str, forks: bool) -> list[str]:
    """Delete a trajectory, and with `forks` those forked from it, in one transaction; the ids that are gone.

    Raises `TaskError` if unknown, `StoreError` if others were forked from it and `forks` is not set.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        found = connection.execute(
            "WITH RECURSIVE doomed(key, id, depth) AS (SELECT key, id, 0 FROM trajectories WHERE id = ? UNION ALL"
            " SELECT t.key, t.id, depth + 1 FROM trajectories t JOIN doomed ON t.parent = doomed.key)"
            " SELECT key, id, depth FROM doomed",
            (id,),
        ).fetchall()
        if not found:
            raise unknown_trajectory(id, url, nearest(connection, id))
        if len(found) > 1 and not forks:
            raise has_forks(id, url, [child for _, child, depth in found if depth == 1])
        for key, _, _ in found:
            connection.execute(
                "DELETE FROM events WHERE key >= ? AND key < ?", (key << SEQ_BITS, (key + 1) << SEQ_BITS)
            )
            connection.execute("DELETE FROM trajectories WHERE key = ?", (key,))
        connection.execute("COMMIT")
    except BaseException:
        roll_back(connection)
        raise
    return [gone for _, gone, _ in found]


def vacuum(connection: sqlite3.Connection) -> None:
    """Rewrite the file without its free pages."""
    connection.execute("VACUUM")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _resolve(waiters: list[tuple[asyncio.Future[None], AWorldError | None]]) -> None:
    for waiter, error in waiters:
        if waiter.done():  # cancelled while it waited; the events are written all the same
            continue
        if error is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(error)


_writers: WeakSet[Writer] = WeakSet()
_inherited: list[Any] = []
"""Connections of the parent process, kept open: closing one in a child would drop the parent's locks."""


def _drain() -> None:
    for writer in list(_writers):
        writer.stop()
    for writer in list(_writers):
        writer.join()


def _after_fork() -> None:
    for writer in list(_writers):
        writer.forget()


atexit.register(_drain)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
