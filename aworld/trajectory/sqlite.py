"""Logs in one SQLite file: a thread of its own writes them, worker threads read them.

What was acknowledged survives `kill -9`; with `synchronous="full"` a power cut too. Any number of threads, event
loops and processes may use the same file; two that run the same trajectory are told so.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sqlite3
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress
from typing import Any, TypeVar

import msgspec

from aworld.core.checks import typed
from aworld.core.event import Event, Note
from aworld.core.exceptions import ConfigError, StoreError, TaskError
from aworld.trajectory.hub import Entry, Hub, follow
from aworld.trajectory.memory import unknown_digest
from aworld.trajectory.query import EVERYTHING, Facets, Page, Query, Recorded, log_unreadable
from aworld.trajectory.sqlite_file import MIGRATIONS, Identity, check_version, connect_to_read, empty, explain, identity
from aworld.trajectory.sqlite_reader import compose, counted, definition_of, faceted, listed, noted, scanned
from aworld.trajectory.sqlite_tables import vacuum
from aworld.trajectory.sqlite_writer import Append, Release, Remark, Waiter, Writer
from aworld.trajectory.store import (
    DONE,
    NAMING,
    Lease,
    already_there,
    bodies_of,
    check_id,
    encoded,
    occupied,
    stripped,
)
from aworld.trajectory.summary import Summary

LINGER = 0.003
"""Seconds for which events that nobody waits for are gathered: one awaited append usually comes first and takes them
along, which saves the writer a wake-up."""

BACKLOG = 10_000
"""Queued appends beyond which also those who need not wait are given something to wait for."""

_T = TypeVar("_T")


class Pending:
    """What an append or a note from plain synchronous code returns: awaitable in any loop, or by `result`."""

    def __init__(self, future: Future[Any]) -> None:
        self._future = future

    def __await__(self) -> Generator[Any, None, Any]:
        return asyncio.wrap_future(self._future).__await__()

    def result(self, timeout: float | None = None) -> Any:
        """Block until the events are durable, for at most `timeout` seconds. Raises what the append raises."""
        return self._future.result(timeout)


class SQLiteStore:
    """A `TrajectoryStore` in one file."""

    def __init__(self, path: str | os.PathLike[str], *, synchronous: str = "normal", timeout: float = 30.0) -> None:
        """Nothing is opened yet.

        `synchronous` is SQLite's setting, `normal` or `full`; `timeout` the seconds to wait for another process.
        Raises `ConfigError`.
        """
        if synchronous not in ("normal", "full"):
            raise ConfigError(f"store={path} | synchronous={synchronous!r} is not known; use normal or full")
        self.path = os.path.abspath(os.path.expanduser(path))
        self.url = f"sqlite:///{self.path}"
        self._timeout = timeout
        self._writer = Writer(self.path, self.url, synchronous, timeout)
        self.hub: Hub = self._writer.hub
        self._lingering: asyncio.AbstractEventLoop | None = None
        self._me: weakref.ref[SQLiteStore] = weakref.ref(self)
        self._idle: deque[tuple[Identity, sqlite3.Connection]] = deque()
        """Connections that read, and the files of which they do."""
        # The thread holds the writer, never the store, so a store that was dropped without `close` ends it. At the end
        # of the interpreter the writer's own hook waits for the thread.
        weakref.finalize(self, _let_go, self._writer, self._idle).atexit = False

    @property
    def closed(self) -> bool:
        """Whether it was closed, and takes nothing more."""
        return self._writer.closed

    def append(self, trajectory_id: str, events: Sequence[Event], *, wait: bool = True) -> Awaitable[None]:
        """See `TrajectoryStore.append`. Callable from any thread, with or without a running event loop."""
        writer = self._writer
        if writer.closed:
            raise writer.shut()
        check_id(trajectory_id)
        if writer.unreported and (failure := writer.unreported.pop(trajectory_id, None)) is not None:
            if events:
                writer.lose(trajectory_id, events, failure)
            raise failure
        if not events:
            return DONE
        bodies: dict[str, bytes] = {}
        plain = [self._strip(event, bodies, trajectory_id) if type(event) in NAMING else event for event in events]
        data = encoded(plain, trajectory_id, self.url)  # now: what an event holds may change later
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        waiter: Waiter | None = None
        if wait or len(writer.queue) > BACKLOG:
            waiter = _uncancellable() if loop is None else loop.create_future()
        job = Append(trajectory_id, events, data, bodies, waiter)
        writer.queue.append(job)
        if waiter is None and loop is not None:
            if self._lingering is not loop:
                self._lingering = loop
                loop.call_later(LINGER, _end_linger, self._me)
            return DONE
        if not (wait and writer.write_here(job, loop)):
            writer.wake()
        if waiter is None:
            return DONE
        return Pending(waiter) if isinstance(waiter, Future) else waiter

    def _strip(self, event: Event, bodies: dict[str, bytes], id: str) -> Event:
        """An event without the bodies that it names; those that the file may not have are put into `bodies`."""
        new = {digest: body for digest, body in bodies_of(event).items() if digest not in self._writer.bodies}
        if new:
            encoded([event], id, self.url)
            bodies.update((digest, msgspec.json.encode(body)) for digest, body in new.items())
        return stripped(event)

    def end_linger(self) -> None:
        """Write what has gathered."""
        self._lingering = None
        if self._writer.queue:
            self._writer.wake()

    async def flush(self) -> None:
        """See `TrajectoryStore.flush`."""
        await self._settle()
        if self._writer.unreported:
            failures = list(self._writer.unreported.values())
            self._writer.unreported.clear()
            if len(failures) > 1:
                failures[0].add_note(f"{len(failures) - 1} more trajectories could not be written")
            raise failures[0]

    async def _settle(self) -> None:
        if (self._writer.queue or self._writer.busy) and not self._writer.closed:
            await asyncio.wrap_future(self._writer.call(None))

    async def claim(self, id: str, *, new: bool = False, notes_after: int = -1) -> Lease:
        """See `TrajectoryStore.claim`."""
        writer = self._writer
        if writer.closed:
            raise writer.shut()
        check_id(id)
        lease = writer.claims.reserve(id, notes_after)
        if lease is None:
            raise already_there(id, self.url) if new else occupied(id, self.url, "another run of this process")
        if not new and (writer.queue or os.path.exists(self.path)):
            try:
                await self._write(lambda connection: writer.take(connection, lease))
            except BaseException:
                writer.claims.drop(lease)
                raise
        return lease

    def release(self, lease: Lease) -> None:
        """See `TrajectoryStore.release`."""
        writer = self._writer
        writer.claims.drop(lease)
        if not writer.closed and not lease.ended and (writer.queue or writer.busy or lease.id in writer.claims.keys):
            writer.queue.append(Release(lease.id))
            writer.wake()

    def note(self, id: str, notes: Sequence[Note]) -> Awaitable[list[int]]:
        """See `TrajectoryStore.note`. Callable from any thread, with or without a running event loop."""
        writer = self._writer
        if writer.closed:
            raise writer.shut()
        check_id(id)
        encoded(notes, id, self.url)
        try:
            waiter: Waiter = asyncio.get_running_loop().create_future()
        except RuntimeError:
            waiter = _uncancellable()
        writer.queue.append(Remark(id, notes, waiter))
        writer.wake()
        return Pending(waiter) if isinstance(waiter, Future) else waiter

    @typed()
    async def put_blob(self, data: bytes) -> str:
        """See `TrajectoryStore.put_blob`."""

        def put(connection: sqlite3.Connection) -> str:
            digest = hashlib.sha256(data).hexdigest()
            connection.execute("INSERT OR IGNORE INTO blobs VALUES (?, ?)", (digest, data))
            return digest

        return await self._write(put)

    async def _write(self, do: Callable[[sqlite3.Connection], _T]) -> _T:
        return await asyncio.wrap_future(self._writer.call(do))

    @typed(TaskError)
    async def read(self, id: str, *, after: int = -1) -> list[Event]:
        """See `TrajectoryStore.read`."""
        return await self._read(lambda connection: compose(connection, self.url, id, after=after))

    @typed(TaskError)
    async def notes(self, id: str, *, after: int = -1) -> list[Note]:
        """See `TrajectoryStore.notes`."""
        return await self._read(lambda connection: noted(connection, self.url, id, after=after))

    @typed()
    def follow(
        self, ids: str | Iterable[str] | Query, *, after: int = -1, notes_after: int = -1
    ) -> AsyncGenerator[tuple[str, Entry]]:
        """See `TrajectoryStore.follow`."""
        return follow(self, ids, after=after, notes_after=notes_after)

    async def definition(self, digest: str) -> Any:
        """See `TrajectoryStore.definition`."""
        body = await self._read(lambda connection: definition_of(connection, self.url, digest))
        if body is None:
            raise unknown_digest("definition", digest, self.url)
        return body

    async def blob(self, digest: str) -> bytes:
        """See `TrajectoryStore.blob`."""
        ask = "SELECT data FROM blobs WHERE digest = ?"
        row = await self._read(lambda connection: connection.execute(ask, (digest,)).fetchone())
        if row is None:
            raise unknown_digest("blob", digest, self.url)
        return row[0]

    @typed()
    async def query(self, query: Query = EVERYTHING) -> Page:
        """See `TrajectoryStore.query`."""
        return await self._read(lambda connection: listed(connection, self.url, query))

    @typed()
    async def count(self, query: Query = EVERYTHING, *, most: int | None = None) -> int:
        """See `TrajectoryStore.count`."""
        return await self._read(lambda connection: counted(connection, query, most))

    @typed()
    async def facets(self, fields: Sequence[str], query: Query = EVERYTHING) -> Facets:
        """See `TrajectoryStore.facets`."""
        return await self._read(lambda connection: faceted(connection, fields, query))

    async def _read(self, ask: Callable[[sqlite3.Connection], _T]) -> _T:
        await self._settle()
        return await asyncio.to_thread(self._ask, ask)

    def _ask(self, ask: Callable[[sqlite3.Connection], _T]) -> _T:
        with self._connection() as connection:
            return ask(connection)

    @typed()
    def scan(
        self, query: Query = EVERYTHING, *, on_unreadable: Callable[[StoreError], None] = log_unreadable
    ) -> Iterator[tuple[Summary, Recorded]]:
        """See `TrajectoryStore.scan`."""
        if (self._writer.queue or self._writer.busy) and not self._writer.closed:
            self._writer.call(None).result()
        with self._connection() as connection:
            yield from scanned(connection, self.url, query, on_unreadable)

    @contextmanager
    def _connection(self) -> Generator[sqlite3.Connection, None, None]:
        here = identity(self.path)
        if here[0] is None:
            if self._writer.connected:
                raise self._writer.moved()
            with closing(empty()) as nothing:
                yield nothing
            return
        connection = None
        with suppress(IndexError):
            while connection is None:
                file, connection = self._idle.pop()
                if file != here:  # another was put in its place
                    connection.close()
                    connection = None
        connection = connection or self._open()
        try:
            yield connection
        except sqlite3.Error as error:
            connection.close()
            raise explain(self.path, error) from error
        except BaseException as error:  # a scan that is left early among them
            self._idle.append((here, connection))
            if isinstance(error, UnicodeEncodeError):
                raise explain(self.path, error) from error
            raise
        self._idle.append((here, connection))

    def _open(self) -> sqlite3.Connection:
        connection = connect_to_read(self.path, timeout=self._timeout)
        if check_version(connection, self.path) < len(MIGRATIONS):
            self._writer.call(_opened).result()  # the writer brings an old file up to date when it opens it
        return connection

    @typed(TaskError)
    async def delete(self, id: str, *, forks: bool = False) -> int:
        """See `TrajectoryStore.delete`."""
        return await asyncio.wrap_future(self._writer.delete(id, forks))

    async def vacuum(self) -> None:
        """See `TrajectoryStore.vacuum`. Needs as much free disk as the file has content."""
        await self._write(vacuum)

    async def close(self) -> None:
        """See `TrajectoryStore.close`. Raises the first failure that nobody was told of."""
        try:
            await self.flush()
        finally:
            self.hub.close()
            # Readers first: the last connection to close moves the log into the file, and a reader may not write.
            while self._idle:
                self._idle.pop()[1].close()
            self._writer.stop()
            await asyncio.to_thread(self._writer.join)


def _uncancellable() -> Future[Any]:
    """A future that only the writer ends: who gives up one wait for a `Pending` must not end the others."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    return future


def _opened(_: sqlite3.Connection) -> None:
    """Be given a connection: it was opened, and an old file brought up to date."""


def _let_go(writer: Writer, idle: deque[tuple[Identity, sqlite3.Connection]]) -> None:
    while idle:  # readers first, as in `close`
        idle.pop()[1].close()
    writer.stop()


def _end_linger(store: weakref.ref[SQLiteStore]) -> None:
    alive = store()
    if alive is not None:
        alive.end_linger()
