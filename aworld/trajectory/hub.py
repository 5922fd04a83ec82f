"""News of a store within one process: who listens to a run hears of what is stored, and of what is not.

A publisher calls every listener's deque, and wakes those that wait; nothing is made for runs that nobody listens to.
Listeners of any thread and event loop may listen to the same run. What a hub says may come twice or with gaps (another
process wrote, a listener was slow): `follow` makes it exact by the numbers of events and notes, and reads from the
store what it has missed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import suppress
from threading import Lock, get_ident
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
from msgspec import Struct

from aworld.core.event import Event, Note
from aworld.core.exceptions import TaskError
from aworld.core.output import Output
from aworld.trajectory.query import Query, UnreadableLog, log_unreadable

if TYPE_CHECKING:
    from aworld.trajectory.store import TrajectoryStore

BACKLOG = 10_000
"""Entries that a slow listener may leave; what comes then is left out, and `Subscription.stale` says so."""


class NoteAdded(Struct, frozen=True, gc=False):
    """A note in a stream of events, which have numbers of their own: `note.seq` is its number among the notes."""

    note: Note


class Begun(Struct, frozen=True, gc=False):
    """News for who waits for runs to begin."""


Entry: TypeAlias = "Event | NoteAdded | Output"
BEGUN = Begun()


class Subscription:
    """What one listener has not yet taken of the runs that it listens to. Leave it with `close`, or use `with`."""

    __slots__ = ("_hub", "_thread", "_waiter", "entries", "ids", "stale")

    def __init__(self, hub: Hub) -> None:
        self.entries: deque[tuple[str, Any]] = deque()
        """Pairs of a trajectory id and an `Event`, a `NoteAdded` or an `Output`, in the order in which they came."""
        self.ids: set[str] = set()
        self.stale: set[str] = set()
        """Ids of which something may be missing here: read the store from where you are, and take them out."""
        self._hub = hub
        self._waiter: asyncio.Future[None] | None = None
        self._thread = 0

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def wait(self) -> None:
        """Return when there is something to take."""
        waiter = asyncio.get_running_loop().create_future()
        self._thread, self._waiter = get_ident(), waiter
        # Looked at again after the waiter is there: who puts something in does it in the opposite order.
        if not self.entries and not self.stale and not self._hub.closed:
            await waiter
        self._waiter = None

    def put(self, pair: tuple[str, Any]) -> None:
        """Take news. Callable from any thread."""
        if len(self.entries) < BACKLOG:
            self.entries.append(pair)
        else:
            self.stale.add(pair[0])
        if self._waiter is not None:
            self.wake()

    def wake(self) -> None:
        """Let the listener look."""
        waiter, self._waiter = self._waiter, None
        if waiter is None:
            return
        if self._thread == get_ident():
            _resolve(waiter)
        else:
            with suppress(RuntimeError):  # its loop was closed: nobody listens any more
                waiter.get_loop().call_soon_threadsafe(_resolve, waiter)

    def close(self) -> None:
        """Listen no more."""
        self._hub.drop(self)


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class Topic:
    """A run that somebody listens to, and how much of it was published here."""

    __slots__ = ("events", "listeners", "notes")

    def __init__(self) -> None:
        self.listeners: tuple[Subscription, ...] = ()
        self.events: int | None = None
        """Number of the next event; None as long as nobody looked how many there are."""
        self.notes: int | None = None


class Hub:
    """The listeners of a store, by the run to which they listen."""

    def __init__(self, watch: Callable[[], None] | None = None) -> None:
        """`watch` is called when a run gets its first listener."""
        self.topics: dict[str, Topic] = {}
        self.expectant: tuple[Subscription, ...] = ()
        """Who wants to hear of runs that begin."""
        self.fresh = False
        """Whether somebody began to listen since this was last cleared."""
        self.closed = False
        self._watch = watch
        self._lock = Lock()

    def subscribe(self, *ids: str, begun: bool = False) -> Subscription:
        """Listen to some runs from now on, with `begun` also for others that begin (which come as `BEGUN`)."""
        subscription = Subscription(self)
        for id in ids:
            self.add(id, subscription)
        if begun:
            with self._lock:
                self.expectant += (subscription,)
                self.fresh = True
            if self._watch is not None:
                self._watch()
        return subscription

    def add(self, id: str, subscription: Subscription) -> None:
        """Let a listener hear of one more run."""
        with self._lock:
            topic = self.topics.get(id)
            first = topic is None
            if topic is None:
                topic = self.topics[id] = Topic()
            if id not in subscription.ids:
                topic.listeners += (subscription,)
                subscription.ids.add(id)
            self.fresh = True
        if first and self._watch is not None:
            self._watch()

    def drop(self, subscription: Subscription) -> None:
        """Forget a listener."""
        with self._lock:
            for id in subscription.ids:
                topic = self.topics[id]
                topic.listeners = tuple(other for other in topic.listeners if other is not subscription)
                if not topic.listeners:
                    del self.topics[id]
            subscription.ids.clear()
            self.expectant = tuple(other for other in self.expectant if other is not subscription)

    def push(self, id: str, output: Output) -> None:
        """Tell of an output that is not stored. Callable from any thread, as all that follows."""
        topic = self.topics.get(id)
        if topic is not None:
            pair = (id, output)
            for listener in topic.listeners:  # as `put`, without a call: there is one for each piece of a text
                if len(listener.entries) < BACKLOG:
                    listener.entries.append(pair)
                if listener._waiter is not None:
                    listener.wake()

    def publish(self, id: str, entries: Sequence[Event | NoteAdded]) -> None:
        """Tell of events or of notes that are stored now, in the order of their numbers."""
        topic = self.topics.get(id)
        if topic is None or not entries:
            return
        last = entries[-1]
        if isinstance(last, NoteAdded):
            topic.notes = max(topic.notes or 0, last.note.seq + 1)
        else:
            topic.events = max(topic.events or 0, last.seq + 1)
        for listener in topic.listeners:
            for entry in entries:
                listener.put((id, entry))

    def announce(self, id: str | None) -> None:
        """Tell of a run that began, when its first events are stored; None: of some whose ids are not known."""
        for listener in self.expectant:
            listener.put((id or "", BEGUN))

    def close(self) -> None:
        """Let all listeners end."""
        self.closed = True
        for listener in {listener for topic in self.topics.values() for listener in topic.listeners}.union(
            self.expectant
        ):
            listener.wake()

    def forget(self) -> None:
        """In a forked child: the listeners are the parent's."""
        self.topics, self.expectant, self._lock = {}, (), Lock()

    def outdate(self, id: str) -> None:
        """Tell the listeners of a run that something of it may be missing."""
        topic = self.topics.get(id)
        for listener in topic.listeners if topic is not None else ():
            listener.stale.add(id)
            listener.wake()


class _Cursor:
    """How much of a run a follower has seen: the numbers of its next event and its next note."""

    __slots__ = ("events", "notes")

    def __init__(self, events: int, notes: int) -> None:
        self.events, self.notes = events, notes

    def passes(self, entry: Event | NoteAdded) -> bool:
        """Whether the entry is the next of its kind; then it counts as seen."""
        if isinstance(entry, NoteAdded):
            due = entry.note.seq == self.notes
            self.notes += due
        else:
            due = entry.seq == self.events
            self.events += due
        return due

    def lacks(self, entry: Event | NoteAdded) -> bool:
        """Whether something is missing before the entry."""
        return entry.note.seq > self.notes if isinstance(entry, NoteAdded) else entry.seq > self.events


async def follow(
    store: TrajectoryStore, ids: str | Iterable[str] | Query, *, after: int = -1, notes_after: int = -1
) -> AsyncGenerator[tuple[str, Entry]]:
    """See `TrajectoryStore.follow`. The store is read after the listening has begun, so nothing is missed."""
    query = ids if isinstance(ids, Query) else None
    names = [] if isinstance(ids, Query) else [ids] if isinstance(ids, str) else list(ids)
    cursors: dict[str, _Cursor] = {}

    async def missed(id: str) -> list[tuple[str, Entry]]:
        cursor = cursors.setdefault(id, _Cursor(after + 1, notes_after + 1))
        try:
            events, notes = await store.read(id, after=cursor.events - 1), await store.notes(id, after=cursor.notes - 1)
        except TaskError:  # not there yet, or no more
            return []
        except UnreadableLog as error:  # holds up those who follow nothing else
            if isinstance(ids, str):
                raise
            log_unreadable(error)
            return []
        return [(id, entry) for entry in (*events, *map(NoteAdded, notes)) if cursor.passes(entry)]

    with store.hub.subscribe(*names, begun=query is not None) as subscription:
        begun: list[str] | None = None  # all that match are to be asked for
        while True:
            if query is not None and begun != []:
                those, begun = begun, []
                matching = [id for id in await _matching(store, query, those) if id not in cursors]
                for id in matching:
                    store.hub.add(id, subscription)
                names += matching
            for id in names:
                for pair in await missed(id):
                    yield pair
            while subscription.entries:
                id, entry = pair = subscription.entries.popleft()
                if isinstance(entry, Output):
                    yield pair
                elif entry is BEGUN:
                    begun = None if begun is None or not id else [*begun, id]
                elif id in cursors:
                    if cursors[id].lacks(entry):
                        for other in await missed(id):
                            yield other
                    if cursors[id].passes(entry):
                        yield pair
            names = [subscription.stale.pop() for _ in range(len(subscription.stale))]
            if not names and (query is None or begun == []):
                if store.hub.closed:
                    return
                await subscription.wait()


async def _matching(store: TrajectoryStore, query: Query, begun: list[str] | None) -> list[str]:
    """Ids that a query names: at the beginning all, later those among the runs that began."""
    if begun is not None:
        ids = tuple(id for id in begun if query.ids is None or id in query.ids)
        query = msgspec.structs.replace(query, ids=ids, limit=None, offset=0, after=None)
    return [summary.id for summary in await store.query(query)]
