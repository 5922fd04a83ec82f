"""What a SQLite store claims, and what it hears of other processes.

A claim is two columns of a trajectory's row (`owner`, `lease_until`), changed in one transaction with the look at them.
`Watch` is the one watcher of a store in a process. It asks the file whether anybody else wrote (`PRAGMA data_version`,
3 µs), and if so looks at the rows of the runs that are followed or claimed here, and reads what is new of them once for
all listeners. All of it happens under the writer's pen.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, TypeAlias
from weakref import WeakValueDictionary

import msgspec

from aworld.core.checks import is_text
from aworld.core.event import Note, decode_events
from aworld.trajectory.hub import Hub, NoteAdded, Topic
from aworld.trajectory.query import UnreadableLog
from aworld.trajectory.sql import SEQ_BITS
from aworld.trajectory.sqlite_file import MIGRATIONS, Identity, check_version, connect_to_read, identity, roll_back
from aworld.trajectory.sqlite_owner import RENEWAL, Owner, name_of
from aworld.trajectory.sqlite_reader import notes_of, with_bodies
from aworld.trajectory.sqlite_tables import Known
from aworld.trajectory.store import DELETED, Lease, lease_lost, occupied

FOLLOWING, CLAIMING = 0.05, 0.2
"""Seconds between two looks while somebody follows, and while runs are only claimed: for these a command from another
process is what may come."""

AT_ONCE = 1000
"""Entries of one run that the watcher reads and hands out; of more the followers are told to read for themselves."""

_AMONG = "IN (SELECT value FROM json_each(?))"

Change: TypeAlias = "tuple[str, int | None]"
"""The id of a trajectory, and its number if the row says from now on that it is ours."""


class Claims:
    """The runs that a store object holds, or is about to begin."""

    def __init__(self, url: str) -> None:
        self.leases: WeakValueDictionary[str, Lease] = WeakValueDictionary()
        """Those that somebody holds, also of runs that have not begun or have ended."""
        self.keys: dict[str, int] = {}
        """Numbers of the trajectories of which the file says that they are ours."""
        self._url = url
        self._owner: Owner | None = None

    @property
    def owner(self) -> Owner:
        """Who we are."""
        if self._owner is None:
            self._owner = Owner()
        return self._owner

    def reserve(self, id: str, notes_after: int) -> Lease | None:
        """A lease that says nothing in the file yet; None if one is held."""
        holder = self.leases.get(id)
        if holder is not None and holder.lost is None and not holder.ended:
            return None
        lease = self.leases[id] = Lease(id, notes_after=notes_after)
        return lease

    def drop(self, lease: Lease) -> None:
        """Forget a lease; what the file says is another matter."""
        if self.leases.get(lease.id) is lease:
            del self.leases[lease.id]

    def take(self, connection: sqlite3.Connection, lease: Lease) -> None:
        """Make a run ours unless a live owner holds it, and read the notes about it. Raises `LeaseError`."""
        connection.execute("BEGIN IMMEDIATE")
        try:
            row = connection.execute("SELECT key, owner, lease_until FROM trajectories WHERE id = ?", (lease.id,))
            key, owner, until = row.fetchone() or (None, None, None)
            if owner is not None and not self.owner.yields(owner, until):
                raise occupied(lease.id, self._url, name_of(owner))
            if key is not None:
                connection.execute(
                    "UPDATE trajectories SET owner = ?, lease_until = ? WHERE key = ?",
                    (self.owner.text, self.owner.until(), key),
                )
            connection.execute("COMMIT")
        except BaseException:
            roll_back(connection)
            raise
        if key is not None:
            self.keys[lease.id] = key
            self._deliver(connection, key, lease)

    def mark(self, id: str) -> tuple[str | None, float | None]:
        """Owner and end of the lease for the row of a run that begins."""
        return (self.owner.text, self.owner.until()) if id in self.leases else (None, None)

    def check(self, connection: sqlite3.Connection, id: str, key: int | None) -> None:
        """Refuse what is appended to a run that is somebody else's. Raises `LeaseError`."""
        owner = until = None
        if key is not None:
            row = connection.execute("SELECT owner, lease_until FROM trajectories WHERE key = ?", (key,))
            owner, until = row.fetchone()
        self._compare(id, key, owner)
        lease = self.leases.get(id)
        if lease is not None and lease.lost is not None:
            raise lease_lost(id, self._url, lease.lost)
        if owner is not None and not self.owner.yields(owner, until):
            raise occupied(id, self._url, name_of(owner))

    def _compare(self, id: str, key: int | None, owner: str | None) -> None:
        """Give up a run of which the file does not say any more that it is ours."""
        if id in self.keys and (key != self.keys[id] or owner != self.owner.text):
            by = "somebody" if owner is None else name_of(owner)
            self.lose(id, DELETED if key != self.keys[id] else f"was taken over by {by}")

    def lose(self, id: str, why: str) -> None:
        """Tell who holds a run that it is lost."""
        self.keys.pop(id, None)
        if (lease := self.leases.get(id)) is not None:
            lease.lose(why)

    def settle(
        self, connection: sqlite3.Connection, touched: dict[str, Known], marked: Sequence[str], released: Sequence[str]
    ) -> list[Change]:
        """Take our mark from the runs that ended or were released; returns what to `adopt` after the commit.

        `marked` are those that begin with it in this transaction.
        """
        ended = {id for id, log in touched.items() if log.tally.ended is not None}
        gone = [*released, *(id for id in ended if id in self.keys or id in marked)]
        if gone:
            connection.executemany(
                "UPDATE trajectories SET owner = NULL, lease_until = NULL WHERE id = ? AND owner = ?",
                [(id, self.owner.text) for id in gone],
            )
        return [*((id, touched[id].key) for id in marked if id not in ended), *((id, None) for id in gone)]

    def adopt(self, changes: Iterable[Change], touched: dict[str, Known]) -> None:
        """Know what `settle` has changed."""
        for id, key in changes:
            if key is not None:
                self.keys[id] = key
                continue
            self.keys.pop(id, None)
            if id in touched and touched[id].tally.ended is not None and (lease := self.leases.get(id)) is not None:
                lease.ended = True

    def renew(self, connection: sqlite3.Connection) -> None:
        """Promise to be back, for all that is ours; let go of what nobody holds any more."""
        dropped = [key for id, key in list(self.keys.items()) if id not in self.leases]
        if dropped:
            self._give_back(connection, dropped)
            self.keys = {id: key for id, key in self.keys.items() if key not in dropped}
        if self.keys:
            connection.execute(
                f"UPDATE trajectories SET lease_until = ? WHERE key {_AMONG} AND owner = ?",
                (self.owner.until(), _json(self.keys.values()), self.owner.text),
            )

    def end(self, connection: sqlite3.Connection) -> None:
        """Let go of all, for good."""
        if self._owner is not None:
            self._owner.leave()
        if self.keys:
            self._give_back(connection, self.keys.values())
            self.keys.clear()

    def _give_back(self, connection: sqlite3.Connection, keys: Iterable[int]) -> None:
        connection.execute(
            f"UPDATE trajectories SET owner = NULL, lease_until = NULL WHERE key {_AMONG} AND owner = ?",
            (_json(keys), self.owner.text),
        )

    def look(self, connection: sqlite3.Connection, rows: Iterable[Sequence[Any]]) -> None:
        """See from the rows of our runs which are lost, and about which there are new notes."""
        there: set[str] = set()
        for key, id, _, _, notes, owner in rows:
            there.add(id)
            self._compare(id, key, owner)
            lease = self.leases.get(id)
            if id in self.keys and lease is not None and notes > lease.notes:
                with suppress(UnreadableLog):  # notes that cannot be read hold up nobody else
                    self._deliver(connection, key, lease)
        for id in self.keys.keys() - there:
            self.lose(id, DELETED)

    def _deliver(self, connection: sqlite3.Connection, key: int, lease: Lease) -> None:
        if notes := notes_of(connection, self._url, key, lease.notes):
            lease.deliver(notes)

    def forget(self) -> None:
        """In a forked child: all is the parent's."""
        self.leases, self.keys, self._owner = WeakValueDictionary(), {}, None


class Watch:
    """Hands on what other processes wrote."""

    def __init__(self, hub: Hub, claims: Claims, path: str, url: str) -> None:
        self._hub, self._claims, self._path, self._url = hub, claims, path, url
        self._last = self._renewed = 0.0
        """When it looked, and when it renewed, by the monotonic clock."""
        self._seen: tuple[int, int] | None = None
        """The connection that was asked last, and its version of the file."""
        self._newest: tuple[int, str] | None = None
        """Key and id of the newest trajectory that was seen, while somebody waits for new ones."""
        self._reading: sqlite3.Connection | None = None
        self._file: Identity = (None, None)
        """Of which file it reads."""

    def pause(self) -> float | None:
        """Seconds until the next look is due; None while there is nothing to look for."""
        if self._hub.topics or self._hub.expectant:
            interval = FOLLOWING
        elif self._claims.keys:
            interval = CLAIMING
        else:
            return None
        return max(0.0, self._last + interval - time.monotonic())

    def is_due(self) -> bool:
        """Whether to look now."""
        return self.pause() == 0.0

    def look(self, connection: sqlite3.Connection | None) -> None:
        """Look at the file. `connection` is the one that writes, which does not see its own writes as news."""
        self._last = time.monotonic()
        if connection is not None and self._claims.keys and self._last - self._renewed >= RENEWAL:
            self._claims.renew(connection)
            self._renewed = self._last
        connection = connection or self._reader()
        if connection is None:
            return
        seen = id(connection), connection.execute("PRAGMA data_version").fetchone()[0]
        fresh, self._hub.fresh = self._hub.fresh, False
        if seen != self._seen or fresh:
            self._seen = None  # unless all of this succeeds
            self._compare(connection)
            self._seen = seen

    def _compare(self, connection: sqlite3.Connection) -> None:
        hub, claims = self._hub, self._claims
        rows = connection.execute(
            f"SELECT key, id, first, events, notes, owner FROM trajectories WHERE id {_AMONG}",
            (_json(filter(is_text, {*list(hub.topics), *list(claims.keys)})),),
        ).fetchall()
        for key, id, first, events, notes, _ in rows:
            if (topic := hub.topics.get(id)) is not None:
                if id in claims.keys:  # nobody else adds events, and ours are told when they are written
                    topic.events = events
                try:
                    self._tell(connection, topic, id, key, first, events, notes)
                except (msgspec.DecodeError, UnreadableLog):  # who listens is told when it reads
                    self._leave_to_readers(topic, id, events, notes)
        claims.look(connection, [row for row in rows if row[1] in claims.keys])
        if hub.expectant:
            self._announce(connection)
        else:
            self._newest = None

    def _tell(
        self, connection: sqlite3.Connection, topic: Topic, id: str, key: int, first: int, events: int, notes: int
    ) -> None:
        if topic.notes is None and not notes:
            topic.notes = 0
        if (
            topic.events is None or topic.notes is None  # how much of it the listeners know is not known here
            or topic.events > events or topic.notes > notes  # it was deleted and begun anew
            or topic.events < first or max(events - topic.events, notes - topic.notes) > AT_ONCE
        ):  # fmt: skip
            self._leave_to_readers(topic, id, events, notes)
            return
        if events > topic.events:
            base = key << SEQ_BITS
            rows = connection.execute(
                "SELECT data FROM events WHERE key >= ? AND key < ? ORDER BY key", (base + topic.events, base + events)
            )
            news = decode_events([data for (data,) in rows])
            self._hub.publish(id, with_bodies(connection, self._path, news))
        if notes > topic.notes:
            self._hub.publish(id, [*map(NoteAdded, notes_of(connection, self._url, key, topic.notes))])

    def _leave_to_readers(self, topic: Topic, id: str, events: int, notes: int) -> None:
        topic.events, topic.notes = events, notes
        self._hub.outdate(id)

    def _announce(self, connection: sqlite3.Connection) -> None:
        if self._newest is None:  # whoever waits may have asked before this look: what came between has no name
            self._hub.announce(None)
            row = connection.execute("SELECT key, id FROM trajectories ORDER BY key DESC LIMIT 1").fetchone()
            self._newest = row or (0, "")
            return
        rows = connection.execute(
            "SELECT key, id FROM trajectories WHERE key >= ? ORDER BY key", (self._newest[0],)
        ).fetchall()
        for row in rows:
            if row != self._newest:  # its number may have been given anew, after a deletion
                self._hub.announce(row[1])
        if rows:
            self._newest = rows[-1]
        else:
            self._newest = connection.execute("SELECT ifnull(max(key), 0), '' FROM trajectories").fetchone()

    def deliver(self, id: str, notes: Sequence[Note]) -> None:
        """Put notes that were written here into the inbox of who runs here."""
        lease = self._claims.leases.get(id)
        if lease is not None and notes:
            if lease.notes == notes[0].seq:
                lease.deliver(notes)
            else:
                self._seen = None  # some by another process come first: the next look brings all

    def _reader(self) -> sqlite3.Connection | None:
        here = identity(self._path)
        if self._reading is not None and here != self._file:  # another was put in its place
            self.close()
        if self._reading is None and here[0] is not None:
            self._file = here
            connection = connect_to_read(self._path)
            if check_version(connection, self._path) < len(MIGRATIONS):
                connection.close()
            else:
                self._reading = connection
        return self._reading

    def close(self) -> None:
        """Let go of the file."""
        self._seen = None
        if self._reading is not None:
            self._reading.close()
            self._reading = None


def _json(values: Iterable[Any]) -> str:
    return msgspec.json.encode(list(values)).decode()
