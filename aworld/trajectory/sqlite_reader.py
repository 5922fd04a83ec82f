"""What is read from a SQLite store: logs, and the list of trajectories.

Functions of a connection; who calls them sees to threads. Everything is read in short statements, so that a long
export never keeps the writer's log from being taken back into the file.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

import msgspec

from aworld.core.event import Event
from aworld.core.exceptions import StoreError
from aworld.trajectory.sqlite_file import SEQ_BITS
from aworld.trajectory.store import Query, unknown_trajectory
from aworld.trajectory.summary import Summary

_log: msgspec.json.Decoder[list[Event]] = msgspec.json.Decoder(list[Event])

_FIELDS = Summary.__struct_fields__
_SELECT = f"SELECT {', '.join(_FIELDS)} FROM trajectories"

PAGE = 500
"""Trajectories that a scan lists at once."""


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


def listed(connection: sqlite3.Connection, query: Query) -> list[Summary]:
    """The summaries that a query asks for."""
    where, values = _where(query)
    descending = query.order in ("newest", "best")
    place = (
        "started_at" if query.order in ("newest", "oldest") else f"ifnull(score, {'-9e999' if descending else '9e999'})"
    )
    if query.after is not None:
        row = connection.execute(f"SELECT {place}, key FROM trajectories WHERE id = ?", (query.after,)).fetchone()
        if row is not None:
            where.append(f"({place}, key) {'<' if descending else '>'} (?, ?)")
            values += row
    direction = "DESC" if descending else "ASC"
    statement = f"{_SELECT}{_all(where)} ORDER BY {place} {direction}, key {direction} LIMIT ? OFFSET ?"
    cursor = connection.execute(statement, (*values, -1 if query.limit is None else query.limit, query.offset))
    return [Summary(**dict(zip(_FIELDS, row))) for row in cursor]


def counted(connection: sqlite3.Connection, query: Query) -> int:
    """How many trajectories match a query."""
    where, values = _where(query)
    return connection.execute(f"SELECT count(*) FROM trajectories{_all(where)}", values).fetchone()[0]


def scanned(connection: sqlite3.Connection, path: str, query: Query) -> Iterator[tuple[Summary, list[Event]]]:
    """Matching trajectories with their events; in memory are one log and a page of summaries."""
    left = query.limit
    offset, after = query.offset, query.after
    while left is None or left > 0:
        size = PAGE if left is None else min(PAGE, left)
        page = listed(connection, msgspec.structs.replace(query, limit=size, offset=offset, after=after))
        for summary in page:
            yield summary, compose(connection, path, summary.id)
        if len(page) < size:
            return
        left = None if left is None else left - len(page)
        offset, after = 0, page[-1].id


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
