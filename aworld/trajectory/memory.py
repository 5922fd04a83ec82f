"""Stores that write nothing: one keeps everything, one keeps nothing alive."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, MutableMapping, Sequence
from typing import Any
from weakref import WeakValueDictionary

from msgspec.structs import replace

from aworld.core.checks import typed
from aworld.core.event import Commanded, Event, Note, Started
from aworld.core.exceptions import StoreError, TaskError
from aworld.trajectory.hub import Entry, Hub, NoteAdded, follow
from aworld.trajectory.query import (
    EVERYTHING,
    Facets,
    Page,
    Query,
    Recorded,
    log_unreadable,
    matching,
    select,
    tabulate,
)
from aworld.trajectory.store import (
    DELETED,
    DONE,
    Lease,
    Ready,
    already_there,
    bodies_of,
    check_id,
    encoded,
    lease_lost,
    occupied,
    unknown_trajectory,
)  # fmt: skip
from aworld.trajectory.summary import Summary, Tally


class Log:
    """A trajectory in memory. A fork holds its parent, so that it can be read also when that is deleted."""

    __slots__ = ("__weakref__", "_tally", "end", "events", "first", "id", "notes", "parent")

    def __init__(self, id: str, number: int, first: int = 0, parent: Log | None = None) -> None:
        self.id = id
        self.first = self.end = first
        """Numbers of the first own event, and of the next one."""
        self.events: list[Event] = []
        """Those from `first` on."""
        self.notes: list[Note] = []
        self.parent = parent
        self._tally = Tally.of(id, parent.read()[:first] if parent else ())
        self._tally.key = number

    def read(self, after: int = -1) -> list[Event]:
        """The events with a number above `after`."""
        pieces: list[list[Event]] = []
        log, end = self, self.end
        while log is not None and end > after + 1:
            pieces.append(log.events[max(0, after + 1 - log.first) : max(0, end - log.first)])
            end = min(end, log.first)
            log = log.parent
        return [event for piece in reversed(pieces) for event in piece]

    @property
    def tally(self) -> Tally:
        """Brought up to date by who looks at it: most runs are never looked at."""
        tally = self._tally
        if tally.events < self.end:
            tally.apply(*self.events[tally.events - self.first :])
        return tally

    def add_notes(self, notes: Iterable[Note]) -> list[Note]:
        """The notes with their numbers."""
        tally, first = self.tally, len(self.notes)
        numbered: list[Note] = [replace(note, seq=seq) for seq, note in enumerate(notes, first)]
        self.notes += numbered
        for note in numbered:
            tally.apply_note(note)
        return numbered


class MemoryStore:
    """Keeps all logs in memory until they are deleted."""

    url = "memory:"

    def __init__(self) -> None:
        self.hub = Hub()
        self._logs: MutableMapping[str, Log] = {}
        self._leases: WeakValueDictionary[str, Lease] = WeakValueDictionary()
        self._number = 0
        self._blobs: dict[str, bytes] = {}

    def append(self, trajectory_id: str, events: Sequence[Event], *, wait: bool = True) -> Awaitable[None]:
        """See `TrajectoryStore.append`."""
        check_id(trajectory_id)
        if not events:
            return DONE
        first = events[0]
        begins = type(first) is Started
        log = self._begin(trajectory_id, first) if type(first) is Started else self._logs.get(trajectory_id)
        if log is None:
            return self._unheld(trajectory_id)
        if first.seq != log.end:
            raise out_of_order(trajectory_id, self.url, first.seq, log.end)
        log.events += events
        log.end += len(events)
        if begins:
            self._logs[trajectory_id] = log
            self.hub.announce(trajectory_id)
        if self.hub.topics:
            self.hub.publish(trajectory_id, events)
        return DONE

    def _begin(self, id: str, started: Started) -> Log | None:
        if self._is_taken(id):
            raise already_there(id, self.url)
        fork = started.forked_from
        parent = None if fork is None else self._log(fork.id)
        if parent is not None:
            check_fork(id, started, parent.read())
        self._number += 1
        return Log(id, self._number, 0 if parent is None else started.seq, parent)

    def _is_taken(self, id: str) -> bool:
        return id in self._logs

    def _unheld(self, id: str) -> Awaitable[None]:
        """Refuse what is appended to no log."""
        lease = self._leases.get(id)
        raise self._unknown(id) if lease is None or lease.lost is None else lease_lost(id, self.url, lease.lost)

    def _log(self, id: str) -> Log:
        log = self._logs.get(id)
        if log is None:
            raise self._unknown(id)
        return log

    def _unknown(self, id: str) -> TaskError:
        return unknown_trajectory(id, self.url, list(self._logs))

    async def flush(self) -> None:
        """See `TrajectoryStore.flush`."""

    async def claim(self, id: str, *, new: bool = False, notes_after: int = -1) -> Lease:
        """See `TrajectoryStore.claim`."""
        check_id(id)
        log, holder = self._logs.get(id), self._leases.get(id)
        goes_on = log is None or log.tally.ended is None
        if new and (self._is_taken(id) or (log is None and holder is not None and holder.lost is None)):
            raise already_there(id, self.url)
        if holder is not None and holder.lost is None and goes_on:
            raise occupied(id, self.url, "another run of this process")
        lease = Lease(id, notes_after=notes_after)
        if log is not None and not new:
            lease.keeps = log
            if log.notes[notes_after + 1 :]:
                lease.deliver(log.notes[notes_after + 1 :])
        self._leases[id] = lease
        return lease

    def release(self, lease: Lease) -> None:
        """See `TrajectoryStore.release`."""
        if self._leases.get(lease.id) is lease:
            del self._leases[lease.id]

    def note(self, id: str, notes: Sequence[Note]) -> Awaitable[list[int]]:
        """See `TrajectoryStore.note`."""
        check_id(id)
        log = self._log(id)
        encoded(notes, id, self.url)
        check_notes(id, notes, log.tally)
        numbered = log.add_notes(notes)
        if numbered and (lease := self._leases.get(id)) is not None:
            lease.deliver(numbered)
        self.hub.publish(id, [*map(NoteAdded, numbered)])
        return Ready([note.seq for note in numbered])

    @typed(TaskError)
    async def read(self, id: str, *, after: int = -1) -> list[Event]:
        """See `TrajectoryStore.read`."""
        return self._log(id).read(after)

    @typed(TaskError)
    async def notes(self, id: str, *, after: int = -1) -> list[Note]:
        """See `TrajectoryStore.notes`."""
        return self._log(id).notes[after + 1 :]

    @typed()
    def follow(
        self, ids: str | Iterable[str] | Query, *, after: int = -1, notes_after: int = -1
    ) -> AsyncGenerator[tuple[str, Entry]]:
        """See `TrajectoryStore.follow`."""
        return follow(self, ids, after=after, notes_after=notes_after)

    def _summaries(self, query: Query) -> list[tuple[int, Summary]]:
        """What can match at all: a query by id looks at those alone."""
        logs = list(self._logs.values()) if query.ids is None else [self._logs.get(id) for id in query.ids]
        return [(log.tally.key, log.tally.summary()) for log in logs if log is not None]

    def _select(self, query: Query) -> Page:
        # The place of the page before may be of a run that the ids do not name.
        every = query if query.after is None else replace(query, ids=None)
        return select(self._summaries(every), query, self._unknown)

    @typed()
    async def query(self, query: Query = EVERYTHING) -> Page:
        """See `TrajectoryStore.query`."""
        return self._select(query)

    @typed()
    async def count(self, query: Query = EVERYTHING, *, most: int | None = None) -> int:
        """See `TrajectoryStore.count`."""
        count = len(matching(self._summaries(query), query))
        return count if most is None else min(count, most)

    @typed()
    async def facets(self, fields: Sequence[str], query: Query = EVERYTHING) -> Facets:
        """See `TrajectoryStore.facets`."""
        return tabulate(self._summaries(query), fields, query)

    @typed()
    def scan(
        self, query: Query = EVERYTHING, *, on_unreadable: Callable[[StoreError], None] = log_unreadable
    ) -> Iterator[tuple[Summary, Recorded]]:
        """See `TrajectoryStore.scan`."""
        for summary in self._select(query):
            if (log := self._logs.get(summary.id)) is not None:
                record = Recorded(log.read())
                record.notes = list(log.notes)
                yield summary, record

    async def definition(self, digest: str) -> Any:
        """See `TrajectoryStore.definition`. Events keep their bodies here, so the logs are searched."""
        for log in list(self._logs.values()):
            for event in log.events:
                if digest in (bodies := bodies_of(event)):
                    return bodies[digest]
        raise unknown_digest("definition", digest, self.url)

    @typed()
    async def put_blob(self, data: bytes) -> str:
        """See `TrajectoryStore.put_blob`."""
        digest = hashlib.sha256(data).hexdigest()
        self._blobs.setdefault(digest, bytes(data))
        return digest

    async def blob(self, digest: str) -> bytes:
        """See `TrajectoryStore.blob`."""
        if digest not in self._blobs:
            raise unknown_digest("blob", digest, self.url)
        return self._blobs[digest]

    @typed(TaskError)
    async def delete(self, id: str, *, forks: bool = False) -> int:
        """See `TrajectoryStore.delete`."""
        log = self._log(id)
        children = [other.id for other in list(self._logs.values()) if other.parent is log]
        if children and not forks:
            raise has_forks(id, self.url, children)
        gone = 1
        for child in children:
            gone += await self.delete(child, forks=True)
        self._forget(id)
        return gone

    def _forget(self, id: str) -> None:
        del self._logs[id]
        if (lease := self._leases.get(id)) is not None:
            lease.lose(DELETED)

    async def vacuum(self) -> None:
        """See `TrajectoryStore.vacuum`."""

    async def close(self) -> None:
        """See `TrajectoryStore.close`."""
        self._leases.clear()
        self.hub.close()


BLOBS = 64 << 20
"""Bytes of blobs that a `WeakStore` keeps, the newest."""


class WeakStore(MemoryStore):
    """Knows the runs whose `Lease` somebody holds, and keeps none alive: the default of a library."""

    url = "weak:"

    def __init__(self) -> None:
        super().__init__()
        self._logs = WeakValueDictionary()

    def _begin(self, id: str, started: Started) -> Log | None:
        lease = self._leases.get(id)
        if lease is None and not self._is_taken(id):
            return None  # nobody would hold it
        log = super()._begin(id, started)
        if lease is not None:
            lease.keeps = log
        return log

    def _is_taken(self, id: str) -> bool:
        """One that has ended gives way: how long it stays in memory is the garbage collector's business."""
        log = self._logs.get(id)
        return log is not None and log.tally.ended is None

    def _unheld(self, id: str) -> Awaitable[None]:
        lease = self._leases.get(id)
        if lease is not None and lease.lost is not None:
            raise lease_lost(id, self.url, lease.lost)
        return DONE

    def _unknown(self, id: str) -> TaskError:
        return TaskError(
            f"no trajectory {id!r} here: without a store a run is known as long as its response is held. Give store=, "
            "where it is recorded."
        )

    async def put_blob(self, data: bytes) -> str:
        """See `TrajectoryStore.put_blob`. The newest are kept, up to `BLOBS` bytes."""
        digest = await super().put_blob(data)
        while len(self._blobs) > 1 and sum(map(len, self._blobs.values())) > BLOBS:
            del self._blobs[next(iter(self._blobs))]
        return digest

    async def delete(self, id: str, *, forks: bool = False) -> int:
        """See `TrajectoryStore.delete`. Forks hold what they share, and stay."""
        self._log(id)
        self._forget(id)
        return 1


def check_notes(id: str, notes: Sequence[Note], tally: Tally) -> None:
    """Refuse commands for a run that has ended. Raises `TaskError`."""
    if tally.ended is not None and any(type(note) is Commanded for note in notes):
        raise TaskError(f"run {id!r} has ended ({tally.ended}); nobody is there to obey a command")


def unknown_digest(what: str, digest: str, url: str) -> TaskError:
    """The error for a digest of which a store has nothing."""
    return TaskError(f"store={url} | no {what} with the digest {digest!r}; it was never stored here")


def check_fork(id: str, started: Started, parent: list[Event]) -> list[Event]:
    """The events that a fork shares with its parent. Raises `TaskError` when it begins beyond the parent's end."""
    fork = started.forked_from
    assert fork is not None  # callers come here with forks only
    if fork.seq > len(parent) or started.seq != fork.seq:
        raise TaskError(
            f"fork {id!r} begins with event {started.seq} and names event {fork.seq} of {fork.id!r}, "
            f"which has {len(parent)} events; the two numbers must be the same and at most that"
        )
    return parent[: fork.seq]


def out_of_order(id: str, url: str, came: int, due: int) -> StoreError:
    """The error for events that do not follow what the store has."""
    if came < due:
        return StoreError(
            f"store={url} | trajectory {id!r} has event {came} already: another process is running it; "
            f"stop one of the two, then Runners.resume({id!r})"
        )
    return StoreError(f"store={url} | trajectory {id!r}: event {came} came where {due} was due")


def has_forks(id: str, url: str, children: Sequence[str]) -> StoreError:
    """The error for deleting what others were forked from."""
    named = ", ".join(children[:5]) + (f" and {len(children) - 5} more" if len(children) > 5 else "")
    remedy = "delete those too with forks=True"
    text = f"store={url} | {id!r} shares its beginning with {named}; {remedy}"
    return StoreError(text, setting="forks", remedy=remedy)
