"""What is read from a SQLite store: logs, and the list of trajectories.

Functions of a connection; who calls them sees to threads. Everything is read in short statements, so that a long
export never keeps the writer's log from being taken back into the file.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any, TypeAlias

import msgspec

from aworld.core.event import Event
from aworld.core.exceptions import StoreError, TaskError
from aworld.trajectory.sqlite_file import SEQ_BITS
from aworld.trajectory.store import Query, unknown_trajectory
from aworld.trajectory.summary import Summary

_log: msgspec.json.Decoder[list[Event]] = msgspec.json.Decoder(list[Event])

_FIELDS = Summary.__struct_fields__
_COLUMNS = ", ".join(_FIELDS)

PAGE = 500
"""Trajectories that a scan lists at once."""

Place: TypeAlias = "tuple[float, int]"
"""Where a trajectory stands in an order: what is ordered by, and its key."""


def compose(connection: sqlite3.Connection, path: str, id: str, *, until: int | None = None) -> list[Event]:
    """The events of a trajectory with a number below `until`, those it shares with its parents first.

    Raises `TaskError` if the trajectory is unknown, `StoreError` if an event cannot be decoded.
    """
    row = connection.execute("SELECT key, parent, first FROM trajectories WHERE id = ?", (id,)).fetchone()
    if row is None:
        raise unknown_trajectory(id, path, nearest(connection, id))
    end = (1 << SEQ_BITS) - 1 if until is None else until
    pieces: list[list[bytes]] = []
    while row is not None:
        key, parent, first = row
        base = key << SEQ_BITS
        cursor = connection.execute(
            "SELECT data FROM events WHERE key >= ? AND key < ? ORDER BY key", (base + first, base + max(first, end))
        )
        pieces.append([data for (data,) in cursor])
        end = min(end, first)
        row = None
        if parent is not None:
            row = connection.execute("SELECT key, parent, first FROM trajectories WHERE key = ?", (parent,)).fetchone()
    try:
        return _log.decode(b"[" + b",".join(data for piece in reversed(pieces) for data in piece) + b"]")
    except (msgspec.DecodeError, TypeError) as error:  # TypeError: somebody edited the file and left text, not bytes
        raise StoreError(
            f"store={path} | the log of {id!r} cannot be read: {error}; delete it, or restore it"
        ) from error


def nearest(connection: sqlite3.Connection, id: str) -> list[str]:
    """Ids among which a mistyped one is likely to be found: its neighbours by name, and the newest."""
    rows = connection.execute(
        "SELECT id FROM (SELECT id FROM trajectories WHERE id >= :id ORDER BY id LIMIT 50) UNION "
        "SELECT id FROM (SELECT id FROM trajectories WHERE id < :id ORDER BY id DESC LIMIT 50) UNION "
        "SELECT id FROM (SELECT id FROM trajectories ORDER BY started_at DESC LIMIT 200)",
        {"id": id},
    )
    return [row[0] for row in rows]


def listed(connection: sqlite3.Connection, path: str, query: Query) -> list[Summary]:
    """The summaries that a query asks for. Raises `TaskError` if the one to go on after is unknown."""
    return [summary for summary, _ in _page(connection, query, _last(connection, path, query))]


def _last(connection: sqlite3.Connection, path: str, query: Query) -> Place | None:
    if query.after is None:
        return None
    statement = f"SELECT {_ordered(query)}, key FROM trajectories WHERE id = ?"
    place = connection.execute(statement, (query.after,)).fetchone()
    if place is None:
        raise unknown_trajectory(query.after, path, nearest(connection, query.after))
    return place


def _page(connection: sqlite3.Connection, query: Query, last: Place | None) -> list[tuple[Summary, Place]]:
    where, values = _where(query)
    ordered = _ordered(query)
    sign, direction = ("<", "DESC") if _descends(query) else (">", "ASC")
    if last is not None:
        where.append(f"({ordered}, key) {sign} (?, ?)")
        values += last
    statement = (
        f"SELECT {_COLUMNS}, {ordered}, key FROM trajectories{_all(where)} "
        f"ORDER BY {ordered} {direction}, key {direction} LIMIT ? OFFSET ?"
    )
    cursor = connection.execute(statement, (*values, -1 if query.limit is None else query.limit, query.offset))
    return [(Summary(**dict(zip(_FIELDS, row))), row[-2:]) for row in cursor]


def _descends(query: Query) -> bool:
    return query.order in ("newest", "best")


def _ordered(query: Query) -> str:
    if query.order in ("newest", "oldest"):
        return "started_at"
    return f"ifnull(score, {'-9e999' if _descends(query) else '9e999'})"


def counted(connection: sqlite3.Connection, query: Query) -> int:
    """How many trajectories match a query."""
    where, values = _where(query)
    return connection.execute(f"SELECT count(*) FROM trajectories{_all(where)}", values).fetchone()[0]


def scanned(connection: sqlite3.Connection, path: str, query: Query) -> Iterator[tuple[Summary, list[Event]]]:
    """Matching trajectories with their events; in memory are one log and a page of summaries.

    What is deleted meanwhile is left out. A page begins at the place where the one before ended, not after an id: that
    may be gone.
    """
    left, offset = query.limit, query.offset
    last = _last(connection, path, query)
    while left is None or left > 0:
        size = PAGE if left is None else min(PAGE, left)
        page = _page(connection, msgspec.structs.replace(query, limit=size, offset=offset), last)
        for summary, _ in page:
            try:
                events = compose(connection, path, summary.id)
            except TaskError:
                continue
            yield summary, events
        if len(page) < size:
            return
        left = None if left is None else left - len(page)
        offset, last = 0, page[-1][1]


def _where(query: Query) -> tuple[list[str], list[Any]]:
    where: list[str] = []
    values: list[Any] = []

    def add(condition: str, *given: Any) -> None:
        where.append(condition)
        values.extend(given)

    for column, wanted in (
        ("group_id = ?", query.group),
        ("task_id = ?", query.task),
        ("session_id = ?", query.session),
        ("agent = ?", query.agent),
        ("score >= ?", query.min_score),
        ("score <= ?", query.max_score),
        ("started_at >= ?", query.since),
        ("started_at < ?", query.until),
    ):
        if wanted is not None:
            add(column, wanted)
    if query.prefix is not None:
        add("substr(id, 1, ?) = ?", len(query.prefix), query.prefix)
    for column, wanted in (("id", query.ids), ("status", query.status)):
        if wanted is not None:
            add(f"{column} IN (SELECT value FROM json_each(?))", msgspec.json.encode(wanted).decode())
    return where, values


def _all(conditions: list[str]) -> str:
    return " WHERE " + " AND ".join(conditions) if conditions else ""
