"""The contract of a store of logs, and the address by which one is opened.

A store takes events in the order of their numbers and gives them back. `append` hands over synchronously and never
blocks: the caller decides by `wait` whether to learn when the events are durable. A forked trajectory stores only
its own events, from its `started` event on; what it shares with its parent is read from the parent.

One process works on a run, the owner of its `Lease`. Anybody may add notes, which the store numbers; the owner finds
them in the inbox of its lease. Anybody may follow what happens, in any process.
"""

from __future__ import annotations

import asyncio
import difflib
from collections import deque
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import suppress
from threading import get_ident
from typing import Any, Protocol
from urllib.parse import parse_qsl, unquote

from msgspec.structs import replace

from aworld.core.checks import is_text, typed
from aworld.core.event import Event, Note, Started, ToolsetOffered, decode_events, encode_event
from aworld.core.exceptions import ConfigError, LeaseError, StoreError, TaskError
from aworld.core.output import Output
from aworld.trajectory.hub import Hub, NoteAdded
from aworld.trajectory.query import EVERYTHING, Facets, Page, Query, Recorded, log_unreadable
from aworld.trajectory.summary import Summary


class Lease:
    """The right to work on one run, from `TrajectoryStore.claim`. Hold it as long as the run, or its record, matters.

    A dropped lease is released. With a `WeakStore` it is also what keeps the log known.
    """

    __slots__ = ("__weakref__", "_loop", "_thread", "alarm", "ended", "id", "inbox", "keeps", "lost", "notes")

    def __init__(self, id: str, *, notes_after: int = -1) -> None:
        """For stores. Needs a running event loop."""
        self.id = id
        self.inbox: deque[Note] = deque()
        """Notes about the run in the order of their numbers, by whomever, this process included; take them out with
        `popleft`. After the run has ended those by this store object still come, until the lease is released."""
        self.lost: str | None = None
        """Why the run is not ours any more: it was taken over, or deleted. Nothing more is written."""
        self.alarm: Callable[[], None] | None = None
        """Called in the event loop that claimed, when something came into `inbox` or the lease was lost. What came
        before it was set is in `inbox` already: look there after setting it."""
        self.ended = False
        """Whether the run's `finished` event is stored, and nobody is held off any more."""
        self.keeps: object = None
        """The log, where the store itself does not keep it alive."""
        self.notes = notes_after + 1
        """Number of the next note for the inbox."""
        self._loop = asyncio.get_running_loop()
        self._thread = get_ident()

    def deliver(self, notes: Sequence[Note]) -> None:
        """Put notes into the inbox. For stores; callable from any thread."""
        self.inbox.extend(notes)
        self.notes = notes[-1].seq + 1
        self._ring()

    def lose(self, why: str) -> None:
        """Say that the lease is lost. For stores; callable from any thread."""
        if self.lost is None:
            self.lost = why
            self._ring()

    def _ring(self) -> None:
        if (alarm := self.alarm) is not None:
            soon = self._loop.call_soon if get_ident() == self._thread else self._loop.call_soon_threadsafe
            with suppress(RuntimeError):  # the loop was closed: nobody is at work any more
                soon(alarm)


class TrajectoryStore(Protocol):
    """Where logs are kept."""

    @property
    def hub(self) -> Hub:
        """News of this store in this process: what was appended and noted, and outputs that are not stored."""
        ...

    async def read(self, id: str, *, after: int = -1) -> list[Event]:
        """The events of a trajectory with a number above `after`, what it shares with its parents included.

        Raises `TaskError` if unknown.
        """
        ...

    async def notes(self, id: str, *, after: int = -1) -> list[Note]:
        """The notes about a trajectory with a number above `after`; those of its parents are not its own.

        Raises `TaskError` if unknown.
        """
        ...

    def follow(
        self, ids: str | Iterable[str] | Query, *, after: int = -1, notes_after: int = -1
    ) -> AsyncGenerator[tuple[str, Event | NoteAdded | Output]]:
        """What is stored of some runs, and then what comes, wherever they run; ends only when it is left.

        Yields `(id, entry)`. Events come in the order of their numbers, those above `after`; notes come as `NoteAdded`,
        those above `notes_after`, in the order of theirs: none twice, none left out. Outputs that are not stored come
        only from runs of this store object, while they happen. An id that is not there is waited for. A query is asked
        at the beginning, and again of each run that begins later, when its first events are stored.
        """
        ...

    async def query(self, query: Query = EVERYTHING) -> Page:
        """The trajectories that match, in the order asked for.

        Raises `TaskError` if the id in `after` is unknown: it was deleted, or mistyped.
        """
        ...

    async def count(self, query: Query = EVERYTHING, *, most: int | None = None) -> int:
        """How many match, at most `most`: counting ends there. `limit`, `offset` and `after` do not count."""
        ...

    async def facets(self, fields: Sequence[str], query: Query = EVERYTHING) -> Facets:
        """How often each value occurs in each field among what matches; see `query.FACETS`."""
        ...

    def scan(
        self, query: Query = EVERYTHING, *, on_unreadable: Callable[[StoreError], None] = log_unreadable
    ) -> Iterator[tuple[Summary, Recorded]]:
        """Matching trajectories one after the other, one in memory at a time.

        What is deleted meanwhile is left out, and so is a log that cannot be read, of which `on_unreadable` is told; by
        default a warning is logged. Blocks while it reads: from async code, run the loop over it in a thread.
        Raises `TaskError` if the id in `after` is unknown.
        """
        ...

    async def definition(self, digest: str) -> Any:
        """The body of a definition: of an agent, a team, a list of tools. Raises `TaskError` if unknown."""
        ...

    async def blob(self, digest: str) -> bytes:
        """The content that `put_blob` was given. Raises `TaskError` if unknown."""
        ...

    def append(self, trajectory_id: str, events: Sequence[Event], *, wait: bool = True) -> Awaitable[None]:
        """Hand over the next events of a trajectory; returns at once.

        With `wait`, what is returned completes when these events and all handed over before them are durable.
        Without, they are written within a few milliseconds, what is returned is already done, and a failure is
        raised by the next append to that trajectory or by `flush`.

        Bodies that an event names by digest (`Started.agents`, `ToolsetOffered.tools`) are stored once and put back
        when it is read. A digest is trusted to be of its body.

        Raises `TaskError` when a `started` event names an id that the store has, or a trajectory is unknown;
        `LeaseError` when somebody else works on it, or this store's lease of it was lost; `StoreError` when the
        events cannot be written.
        """
        ...

    async def flush(self) -> None:
        """Return when everything handed over is durable. Raises the first failure that nobody was told of."""
        ...

    async def claim(self, id: str, *, new: bool = False, notes_after: int = -1) -> Lease:
        """Become the one who works on a run, until it has ended or `release`.

        With `new` the run is about to begin: nothing is read, and the `started` event, when it is appended, says whose
        it is. Without, a run that is there is taken over unless a live owner holds it, in one step with the look at
        its owner; one that is not there is reserved as with `new`. The inbox begins with the notes that are there and
        have a number above `notes_after`. What was stored when this returns does not change any more: read the log
        after it.

        Raises `TaskError` with `new` when this store object knows the id to be taken; `LeaseError` when a live owner
        holds the run, in this store object or elsewhere.
        """
        ...

    def release(self, lease: Lease) -> None:
        """Let others have the run, after what was handed over is written; returns at once."""
        ...

    def note(self, id: str, notes: Sequence[Note]) -> Awaitable[list[int]]:
        """Add notes about a trajectory, of whomever; they are handed over at once. What is returned completes with
        their numbers when they are durable.

        The numbers, from 0 and dense, replace the `seq` that they came with. Raises `TaskError` if the trajectory is
        unknown, or if a command is for a run that has ended.
        """
        ...

    async def put_blob(self, data: bytes) -> str:
        """Store some bytes, once, and return their SHA-256 digest."""
        ...

    @property
    def url(self) -> str:
        """The address for `open_store`."""
        ...

    async def delete(self, id: str, *, forks: bool = False) -> int:
        """Delete a trajectory and return how many are gone; a lease of it is lost.

        One that others were forked from is deleted only with `forks`, which deletes those too; else `StoreError`.
        Raises `TaskError` if unknown.
        """
        ...

    async def vacuum(self) -> None:
        """Give the space of deleted trajectories back."""
        ...

    async def close(self) -> None:
        """Write what is queued, release all leases, and let go of files and threads."""
        ...


def check_id(id: str) -> None:
    """Raise `TaskError` for what no store can have as the id of a trajectory."""
    if type(id) is not str or not is_text(id):
        raise TaskError(f"trajectory id {id!r}: give a text without lone surrogates", setting="id")


def encoded(entries: Sequence[Event | Note], id: str, url: str) -> list[bytes]:
    """Events or notes as they are stored. Raises `StoreError` for one that could not be read back as what it is."""
    try:
        data = [encode_event(entry) for entry in entries]
        decode_events(data)
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        if len(entries) > 1:
            for entry in entries:  # one of them, which is named
                encoded([entry], id, url)
        raise StoreError(
            f"store={url} | {type(entries[0]).__name__} of trajectory {id!r} could not be read back and was not "
            f"written: {error}; give each field a value of its type, and texts without lone surrogates"
        ) from error
    return data


class Ready:
    """An awaitable that is done, with a result."""

    def __init__(self, result: Any = None) -> None:
        self._result = result

    def __await__(self) -> Generator[Any, None, Any]:
        return self._result
        yield  # makes it a generator


DONE = Ready()
"""What an append returns that nobody has to wait for."""


@typed()
def open_store(url: str) -> TrajectoryStore:
    """Open the store at an address; files and threads are made when they are first needed.

    `memory:`, `sqlite:///relative.db`, `sqlite:////absolute.db`, or a path that ends in `.db`, `.sqlite` or
    `.sqlite3`. SQLite takes `?synchronous=full` (also a power cut loses nothing acknowledged; default `normal`: also
    `kill -9` does not) and `?timeout=30` (seconds to wait for another process's lock).
    Raises `ConfigError` for any other address.
    """
    address, _, options = url.partition("?")
    scheme, colon, rest = address.partition(":")
    if address in ("memory:", "weak:"):
        from aworld.trajectory.memory import MemoryStore, WeakStore

        return MemoryStore() if address == "memory:" else WeakStore()
    if scheme == "sqlite" and rest.startswith("///") and rest.strip("/") not in ("", ":memory:"):
        path = unquote(rest[3:])
    elif address.endswith((".db", ".sqlite", ".sqlite3")) and "://" not in address:
        path = address
    elif scheme in ("postgresql", "postgres") and colon:
        raise ConfigError(
            "store | PostgreSQL comes in a later version; use sqlite:///runs.db"
        )  # the URL has a password
    else:
        forms = "memory:, sqlite:///relative.db, sqlite:////absolute.db or a path ending in .db"
        raise ConfigError(f"store={address.rpartition('@')[2]!r} | not an address of a store; use {forms}")
    from aworld.trajectory.sqlite import SQLiteStore

    values = dict(parse_qsl(options, keep_blank_values=True))
    if unknown := values.keys() - {"synchronous", "timeout"}:
        raise ConfigError(
            f"store={address!r} | unknown option {', '.join(sorted(unknown))}; known: synchronous, timeout"
        )
    try:
        timeout = float(values.get("timeout", "30"))
    except ValueError:
        raise ConfigError(f"store={address!r} | timeout={values['timeout']!r} is not a number of seconds") from None
    return SQLiteStore(path, synchronous=values.get("synchronous", "normal"), timeout=timeout)


def unknown_trajectory(id: str, url: str, near: Iterable[str]) -> TaskError:
    """The error for an id that a store does not have, naming the nearest that it has."""
    close = difflib.get_close_matches(id, list(near), n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else "see `aworld trajectories list`"
    return TaskError(f"no trajectory {id!r} in store {url}; {hint}")


def occupied(id: str, url: str, owner: str) -> LeaseError:
    """The error for who would work on a run that somebody is at work on."""
    return LeaseError(
        f"store={url} | {owner} is running trajectory {id!r}; follow it, cancel it, or wait until it has ended"
    )


def lease_lost(id: str, url: str, why: str) -> LeaseError:
    """The error for who goes on with a run that is not its own any more."""
    return LeaseError(f"store={url} | trajectory {id!r} {why}; nothing more was written: read it to see how it went on")


DELETED = "was deleted"
"""Why a lease is lost of what is not there any more."""


def already_there(id: str, url: str) -> TaskError:
    """The error for a run that would begin under an id that a store has."""
    remedy = f"Runners.resume({id!r})"
    text = f"task id {id!r} is already in store {url}; pick another id, or continue it: {remedy}"
    return TaskError(text, setting="id", remedy=remedy)


NAMING = (Started, ToolsetOffered)
"""The kinds of events that name bodies."""


def bodies_of(event: Event) -> dict[str, Any]:
    """The bodies that an event holds, by digest."""
    if type(event) is Started:
        return {digest: event.agents[name] for name, digest in event.definitions.items() if name in event.agents}
    if type(event) is ToolsetOffered and event.tools:
        return {event.digest: event.tools}
    return {}


def stripped(event: Event) -> Event:
    """The event without the bodies of which it has the digests."""
    if type(event) is Started and event.definitions:
        return replace(event, agents={n: body for n, body in event.agents.items() if n not in event.definitions})
    return replace(event, tools=()) if type(event) is ToolsetOffered else event
