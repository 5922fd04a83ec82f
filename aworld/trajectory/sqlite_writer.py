"""The one writer of a SQLite store.

Callers of any thread and loop queue jobs; a thread takes what has gathered and writes it in one transaction (group
commit), so that the cost of a commit is shared by all running tasks. The transaction takes the write lock at its
beginning, looks whether another process wrote since (`PRAGMA data_version`), and therefore knows for certain where
each log ends. A job that does not fit is refused alone; a failure of the file refuses the batch and leaves nothing
half-written. Waiting callers are told by one call into each of their loops.

What a run that is alone waits for is written by its own thread (`write_here`), at less than half the cost. That never
waits, neither for the writer's thread nor for another process nor for the disk: what cannot be written at once is left
to the thread, and so are all failures. Whoever holds `_pen` is the writer.

The thread also is the one watcher of the file: while somebody follows runs or runs are claimed here, it looks every few
milliseconds whether another process wrote (which costs microseconds), and hands on what is new (`sqlite_watch`).
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
from contextlib import closing, suppress
from typing import Any, TypeAlias, final
from weakref import WeakSet

from msgspec import Struct
from msgspec.structs import replace

from aworld.core.event import Event, Finished, Note, Started, encode_event
from aworld.core.exceptions import AWorldError, StoreError
from aworld.trajectory.hub import Hub, NoteAdded
from aworld.trajectory.memory import check_notes, out_of_order
from aworld.trajectory.sql import SEQ_BITS
from aworld.trajectory.sqlite_file import (
    APPLICATION_ID,
    PAGE_SIZE,
    PARTICULAR,
    Identity,
    connect,
    explain,
    family,
    identity,
    roll_back,
)
from aworld.trajectory.sqlite_reader import nearest
from aworld.trajectory.sqlite_tables import Known, create, file_ended, recall, remove, write_tallies
from aworld.trajectory.sqlite_watch import Claims, Watch
from aworld.trajectory.store import DELETED, Lease, already_there, unknown_trajectory

BATCH = 500
"""Events of one transaction; more gain nothing and make the first of them wait."""

SMALL, SMALL_SIZE = 50, 65_536
"""Events and bytes of the largest batch that a run writes itself; it holds up its event loop meanwhile."""

LOG_PAGES = 4000
"""Pages of the log beside the file (16 MB) after which they are copied back: those of running tasks are rewritten
often and copied once. Copying waits for the disk, so only the thread does it."""

KEPT = 50_000
"""Tallies of running tasks that are kept between batches; one takes about 1 KB."""

Waiter: TypeAlias = "asyncio.Future[Any] | Future[Any]"


@final
class Append(Struct):
    """Events of one trajectory, in order, and who waits for them."""

    id: str
    events: Sequence[Event]
    data: list[bytes]
    bodies: dict[str, bytes]
    """What the events name by digest and the file may not have."""
    waiter: Waiter | None


@final
class Remark(Struct):
    """Notes about one trajectory, and who waits for their numbers."""

    id: str
    notes: Sequence[Note]
    waiter: Waiter


@final
class Release(Struct):
    """The end of a claim."""

    id: str


@final
class Call(Struct):
    """Something else to do on the writing connection, after all that was queued before; None: only be reached."""

    do: Callable[[sqlite3.Connection], Any] | None
    waiter: Future[Any]


Job: TypeAlias = "Append | Remark | Release"
"""What shares a transaction with others of its kind."""

Outcome: TypeAlias = "tuple[Job, AWorldError | None]"


class _Batch:
    """What one transaction writes."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.rows: list[tuple[int, bytes]] = []
        self.size = 0
        self.bodies: dict[str, bytes] = {}
        self.notes: list[tuple[int, int, bytes]] = []
        self.touched: dict[str, Known] = {}
        self.marked: list[str] = []
        """Runs that begin here and are ours."""
        self.released: list[str] = []


class Writer:
    """The queue and the thread behind it. The thread starts with the first job and ends with `stop`."""

    def __init__(self, path: str, url: str, synchronous: str, timeout: float) -> None:
        self.path, self.url = path, url
        self.queue: deque[Job | Call] = deque()
        self.closed = False
        self.hub = Hub(self.attend)
        self.claims = Claims(url)
        self.bodies: set[str] = set()
        """Digests of definitions that the file is known to have."""
        self._watch = Watch(self.hub, self.claims, path, url)
        self._dozing = False
        """Whether the thread sleeps until it is woken, and does not watch."""
        self.unreported: dict[str, AWorldError] = {}
        """Failures of appends for which nobody waited, by trajectory."""
        self._settings: dict[str, Any] = {"synchronous": synchronous, "timeout": timeout}
        self._syncs = synchronous == "full"
        self._waits = True
        """Whether the connection waits for the lock of another process."""
        self._last: str | None = None
        """The run that had to wait last for its events to be written; None when it was alone and has ended."""
        self._pages = 0
        """About how many pages were written since they were last copied back."""
        self._pen = threading.Lock()
        """Held by who takes jobs from the queue and uses the connection."""
        self._wake = threading.Lock()
        self._wake.acquire()
        self._start = threading.Lock()
        self._thread: threading.Thread | None = None
        self._connection: sqlite3.Connection | None = None
        self._file: Identity = (None, None)
        """Which file is open."""
        self._known: dict[str, Known] = {}
        self._lost: dict[str, tuple[int, int, AWorldError]] = {}
        """Of trajectories whose events were refused: the first of those, the one that comes after them, and why. What
        goes on there fails too, also when somebody else has filled the place meanwhile."""
        self._version = -1
        self._loop: asyncio.AbstractEventLoop | None = None
        """The loop in which news are told."""
        _writers.add(self)

    @property
    def connected(self) -> bool:
        """Whether the file is open."""
        return self._connection is not None

    @property
    def busy(self) -> bool:
        """Whether jobs are taken and not yet done."""
        return self._pen.locked()

    def wake(self) -> None:
        """Let the thread write what is queued."""
        if self._thread is None:
            self._begin()
        if self._wake.locked():
            with suppress(RuntimeError):  # another caller was quicker
                self._wake.release()

    def attend(self) -> None:
        """Let the thread watch the file, if there is what to watch for."""
        if not self.closed and (self._dozing or self._thread is None) and self._watch.pause() is not None:
            self.wake()

    def write_here(self, job: Append, loop: asyncio.AbstractEventLoop | None) -> bool:
        """Write all that is queued, `job` last, in the calling thread, which runs `loop`; whether that was done.

        Not done is: what can share a commit with other runs, a large batch, what has to wait for anybody or for the
        disk, and what fails in any way.
        """
        if self._syncs or not self._is_alone(job) or self._pages >= LOG_PAGES or not self._pen.acquire(blocking=False):
            return False
        try:
            jobs = self._little()
            if self._connection is None or not jobs:
                return False
            if isinstance(job.events[-1], Finished) and identity(self.path) != self._file:
                return False
            try:
                self._set_waits(self._connection, False)
                outcomes = self._commit(self._connection, jobs)
            except Exception:  # noqa: BLE001 - nothing was written: the thread meets it again, and tells who waits
                return False
            for _ in jobs:
                self.queue.popleft()
            self._tell(outcomes, loop)
        finally:
            self._pen.release()
        if self._pages >= LOG_PAGES:
            self.wake()
        elif self._dozing:
            self.attend()
        return True

    def _little(self) -> list[Append]:
        """All that is queued, if it is little; else nothing."""
        jobs: list[Append] = []
        events = size = 0
        for job in list(self.queue) if len(self.queue) <= SMALL else ():  # others may queue more meanwhile
            if not isinstance(job, Append):
                return []
            jobs.append(job)
            events += len(job.data)
            size += sum(map(len, job.data))
        return jobs if events <= SMALL and size <= SMALL_SIZE else []

    def _is_alone(self, job: Append) -> bool:
        """Whether no other run has written since this one did: one of many does better to share a commit."""
        alone = self._last is None or self._last == job.id
        self._last = None if alone and isinstance(job.events[-1], Finished) else job.id
        return alone

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
            for name in gone:
                self._known.pop(name, None)
                self.claims.lose(name, DELETED)
            return len(gone)

        return self.call(do)

    def shut(self) -> StoreError:
        """The error for using a store that was closed."""
        return StoreError(f"store={self.url} | the store is closed; open it again with open_store")

    def stop(self) -> None:
        """Let the thread write what is queued and end; returns at once, unless no thread can begin any more."""
        if self.closed:  # a dropped store may be collected right here, while the end of the interpreter stops it
            return
        self.closed = True
        if self._thread is not None or self.queue:
            try:
                self.wake()
            except RuntimeError:  # as at the interpreter's end
                self._serve()

    def join(self) -> None:
        """Wait until everything is written and the thread has ended. Call after `stop`."""
        with self._start:  # a caller may be beginning it just now
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def forget(self) -> None:
        """In a forked child: the thread, its connection and the queue are the parent's."""
        _inherited.append(self._connection)
        self.queue.clear()
        self._pen, self._wake, self._start = threading.Lock(), threading.Lock(), threading.Lock()
        self._wake.acquire()
        self._thread = self._connection = None
        self._known.clear()
        self.claims.forget()
        self.hub.forget()
        self._watch = Watch(self.hub, self.claims, self.path, self.url)

    def _begin(self) -> None:
        with self._start:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name=f"aworld-store {self.path}", daemon=True)
                thread.start()
                self._thread = thread  # not before: where it cannot begin, nobody may count on it

    def _run(self) -> None:
        while not self.closed:
            self._doze()
            self._serve()
        self._serve()  # what came between the last look at the queue and `stop`

    def _doze(self) -> None:
        self._dozing = True  # before the look: who has something to watch for sets it before it looks at this
        pause = self._watch.pause()
        self._dozing = pause is None
        if pause is None:
            self._wake.acquire()
        else:
            self._wake.acquire(timeout=pause)
        self._dozing = False

    def _serve(self) -> None:
        while self.queue or self._pages >= LOG_PAGES:
            with self._pen:
                self._work()
            self._look()  # also when there is always something to write
        if self.closed:
            with self._pen:
                self._disconnect()
        else:
            self._look()

    def _look(self) -> None:
        """Look for what other processes wrote. What fails is tried again at the next look."""
        if self._watch.is_due():
            with self._pen, suppress(Exception):
                self._watch.look(self._connect() if self.claims.keys or self.connected else None)

    def _work(self) -> None:
        """Do what comes next. A mistake of ours fails what it happened in, and the thread goes on."""
        if self._pages >= LOG_PAGES:
            self._copy_back()
        queue, size, jobs = self.queue, 0, list[Job]()
        while queue and size < BATCH and type(job := queue[0]) is not Call:
            jobs.append(job)
            queue.popleft()
            size += len(job.data) if type(job) is Append else 1
        if jobs:
            try:
                self._tell(self._write(jobs))
            except BaseException as error:  # noqa: BLE001 - nobody else would tell who waits
                failure = explain(self.path, error)
                self._tell([(job, failure) for job in jobs])
        elif queue and isinstance(job := queue.popleft(), Call):
            self._answer(job)

    def _copy_back(self) -> None:
        """Copy the pages of the log into the file, so that the log can begin anew."""
        self._pages = 0
        if self._connection is None:
            return
        with suppress(sqlite3.Error):  # it is tried again when as much has been written again
            file_ended(self._connection)
            self._connection.execute("PRAGMA wal_checkpoint")
            # The first write of a log that begins anew waits for the disk: this one, which changes nothing.
            self._set_waits(self._connection, True)
            self._connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")

    def _set_waits(self, connection: sqlite3.Connection, waits: bool) -> None:
        if waits != self._waits:
            connection.execute(f"PRAGMA busy_timeout = {int(1000 * self._settings['timeout']) if waits else 0}")
            self._waits = waits

    def _mistake(self, error: BaseException) -> StoreError:
        return StoreError(f"store={self.url} | the writer failed: {error!r}; this is a bug, please report it")

    def _answer(self, call: Call) -> None:
        if not call.waiter.set_running_or_notify_cancel():
            return  # its caller has gone; from here on nobody can cancel it
        try:
            call.waiter.set_result(call.do and call.do(self._connect()))
        except BaseException as error:  # noqa: BLE001 - as in `_work`
            self._known.clear()
            if not isinstance(error, sqlite3.Error | AWorldError):
                self._disconnect()  # whatever was half done is undone
            call.waiter.set_exception(explain(self.path, error))

    def _connect(self) -> sqlite3.Connection:
        if self._connection is not None and identity(self.path) != self._file:
            self._leave()
        if self._connection is None:
            self._connection = connect(self.path, **self._settings)
            self._file = identity(self.path)
            self._waits = True
        self._set_waits(self._connection, True)
        return self._connection

    def _leave(self) -> None:
        """Let go of what is open and not at its path any more, before anything is acknowledged that is written nowhere.

        Where only the log beside the file was removed, what it holds is still open here: it is saved. Raises
        `StoreError` if something is lost.
        """
        connection, self._connection = self._connection, None  # so that nothing more is written into it
        self._disconnect()
        assert connection is not None  # or there was nothing to leave
        with closing(connection):
            if identity(self.path)[0] == self._file[0]:
                busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
                if not busy:
                    return
        for id in list(self.claims.keys):
            self.claims.lose(id, "was in a file that is no more")
        raise self.moved()

    def moved(self) -> StoreError:
        """The error for a file that is not at its path any more."""
        return StoreError(
            f"store={self.url} | the file or its -wal was moved, removed or replaced while it was open, and what was "
            "written since is lost; put it back before going on, or begin anew: a new file is made there"
        )

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        self._known.clear()
        self.bodies.clear()
        self._watch.close()
        if connection is not None:
            with suppress(sqlite3.Error):
                if self.closed:
                    self._set_waits(connection, True)  # what is not given back is held until this process ends
                    self.claims.end(connection)
                file_ended(connection)
            with suppress(sqlite3.Error):  # the log beside the file stays and is taken in by whoever opens it next
                connection.close()

    def _write(self, jobs: list[Job]) -> list[Outcome]:
        try:
            return self._commit(self._connect(), jobs)
        except Exception as error:  # noqa: BLE001 - a mistake of ours: the jobs in which it is not are done
            self._disconnect()
            failure = explain(self.path, error)
            general = isinstance(error, AWorldError | sqlite3.Error) and family(error) not in PARTICULAR
        if len(jobs) > 1 and not general:
            return [outcome for job in jobs for outcome in self._write([job])]
        for job in jobs:
            self._refuse(job, failure)
        return [(job, failure) for job in jobs]

    def _refuse(self, job: Job, error: AWorldError) -> None:
        if isinstance(job, Append):
            self.lose(job.id, job.events, error)

    def lose(self, id: str, events: Sequence[Event], error: AWorldError) -> None:
        """Remember that events of a trajectory were refused. Callable from any thread."""
        seq, end = events[0].seq, events[-1].seq + 1
        first, last, why = self._lost.get(id, (seq, end, error))
        self._lost[id] = (first, max(last, end), why) if first < seq else (seq, end, error)

    def take(self, connection: sqlite3.Connection, lease: Lease) -> None:
        """Make a run ours; see `Claims.take`. Whoever claims reads the log anew, so what was refused is no more."""
        self.claims.take(connection, lease)
        self._lost.pop(lease.id, None)

    def _commit(self, connection: sqlite3.Connection, jobs: Sequence[Job]) -> list[Outcome]:
        if len(self._lost) > KEPT:
            self._lost.clear()
        batch = _Batch()
        connection.execute("BEGIN IMMEDIATE")
        try:
            version = connection.execute("PRAGMA data_version").fetchone()[0]
            if version != self._version or len(self._known) > KEPT:
                self._known.clear()
                self._version = version
            for job in jobs:
                try:
                    self._add(connection, job, batch)
                except AWorldError as error:
                    self._refuse(job, error)
                    batch.outcomes.append((job, error))
            connection.executemany("INSERT INTO events VALUES (?, ?)", batch.rows)
            if batch.bodies:
                connection.executemany("INSERT OR IGNORE INTO definitions VALUES (?, ?)", batch.bodies.items())
            if batch.notes:
                connection.executemany("INSERT INTO notes (trajectory, number, data) VALUES (?, ?, ?)", batch.notes)
            write_tallies(connection, batch.touched)
            changes = self.claims.settle(connection, batch.touched, batch.marked, batch.released)
            connection.execute("COMMIT")
        except BaseException:
            self._known.clear()  # the tallies have run ahead of the file
            roll_back(connection)
            raise
        # Measured with 1 to 200 runs at once: within a tenth of what SQLite writes.
        self._pages += 1 + 3 * len(batch.touched) + batch.size // PAGE_SIZE
        self.bodies.update(batch.bodies)
        self.claims.adopt(changes, batch.touched)
        for id, log in batch.touched.items():
            if log.tally.ended is not None:
                self._known.pop(id, None)
        return batch.outcomes

    def _add(self, connection: sqlite3.Connection, job: Job, batch: _Batch) -> None:
        """Add what a job writes. Raises AWorldError if it cannot be written, and has added nothing."""
        if type(job) is Release:
            batch.released.append(job.id)
        elif type(job) is Remark:
            log = self._known.get(job.id) or batch.touched.get(job.id) or recall(connection, job.id)
            if log is None:
                raise unknown_trajectory(job.id, self.url, nearest(connection, job.id))
            check_notes(job.id, job.notes, log.tally)
            job.notes = [replace(note, seq=seq) for seq, note in enumerate(job.notes, log.tally.notes)]
            batch.notes += [(log.key, note.seq, encode_event(note)) for note in job.notes]
            for note in job.notes:
                log.tally.apply_note(note)
            batch.touched[job.id] = log  # and not `_known`: who notes has not been asked whose the run is
        else:
            log = self._admit(connection, job, batch)
            base, seq = log.key << SEQ_BITS, log.tally.events
            batch.rows += [(base + seq + place, data) for place, data in enumerate(job.data)]
            if job.bodies:
                batch.bodies.update(job.bodies)
            batch.size += sum(map(len, job.data))
            log.tally.apply(*job.events)
            batch.touched[job.id] = log
        batch.outcomes.append((job, None))

    def _admit(self, connection: sqlite3.Connection, job: Append, batch: _Batch) -> Known:
        log = self._known.get(job.id)
        if log is None:
            log = batch.touched.get(job.id) or recall(connection, job.id)
            self.claims.check(connection, job.id, None if log is None else log.key)
        first = job.events[0]
        if self._lost and job.id in self._lost:
            start, end, why = self._lost[job.id]
            if start < first.seq <= end:
                raise why
        if isinstance(first, Started):
            if log is not None:
                raise already_there(job.id, self.url)
            owner, until = self.claims.mark(job.id)
            log = create(connection, self.url, job.id, first, owner, until)
            if owner is not None:
                batch.marked.append(job.id)
        elif log is None:
            raise unknown_trajectory(job.id, self.url, nearest(connection, job.id))
        due = log.tally.events
        if first.seq != due:
            raise out_of_order(job.id, self.url, first.seq, due)
        if due + len(job.data) >= 1 << SEQ_BITS:
            raise StoreError(f"store={self.url} | trajectory {job.id!r} has {due} events, the most that one can have")
        self._known[job.id] = log
        self._lost.pop(job.id, None)
        return log

    def _tell(self, outcomes: list[Outcome], here: asyncio.AbstractEventLoop | None = None) -> None:
        """Tell who listens and who waits; those of the loop that runs in this thread, `here`, directly."""
        listening = bool(self.hub.topics or self.hub.expectant)
        news: list[Append | Remark] = []
        loops: dict[asyncio.AbstractEventLoop, list[tuple[Waiter, AWorldError | None, Any]]] = {}
        for job, error in outcomes:
            if type(job) is Release:
                continue
            if error is None and (listening or type(job) is Remark):
                news.append(job)
            waiter = job.waiter
            if waiter is None:
                if error is not None:
                    self.unreported[job.id] = error
                continue
            if error is not None:  # who waits here hears it
                self.unreported.pop(job.id, None)
            outcome = (waiter, error, [note.seq for note in job.notes] if type(job) is Remark else None)
            if isinstance(waiter, Future):
                self._deliver(news, [outcome])
                news = []
            else:
                loops.setdefault(waiter.get_loop(), []).append(outcome)
        if news and here is None:
            # Told in the loop where most listen, all of a batch at once: to wake each listener from here costs 10 µs.
            self._loop = next(iter(loops), self._loop)
            if self._loop is not None and self._loop not in loops:
                loops[self._loop] = []
        for loop, waiters in loops.items():
            due, news = (news, []) if loop in (here, self._loop) else ([], news)
            if loop is here:
                self._deliver(due, waiters)
                continue
            try:
                loop.call_soon_threadsafe(self._deliver, due, waiters)
            except RuntimeError:  # the loop was closed: nobody waits any more
                self._deliver(due, ())
                self._loop = None if self._loop is loop else self._loop
        self._deliver(news, ())

    def _deliver(
        self, news: Sequence[Append | Remark], waiters: Sequence[tuple[Waiter, AWorldError | None, Any]]
    ) -> None:
        for job in news:
            self._publish(job)
        _resolve(waiters)

    def _publish(self, job: Append | Remark) -> None:
        """Tell who listens in this process of what is stored now."""
        if type(job) is Remark:
            self._watch.deliver(job.id, job.notes)
            self.hub.publish(job.id, [*map(NoteAdded, job.notes)])
            return
        self.hub.publish(job.id, job.events)
        if isinstance(job.events[0], Started):
            self.hub.announce(job.id)


def _resolve(waiters: Sequence[tuple[Waiter, AWorldError | None, Any]]) -> None:
    for waiter, error, result in waiters:
        if waiter.done():  # cancelled while it waited; the events are written all the same
            continue
        if error is None:
            waiter.set_result(result)
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
