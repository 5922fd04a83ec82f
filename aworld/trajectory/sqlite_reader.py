"""What is read from a SQLite store: logs, and the list of trajectories.

Functions of a connection; who calls them sees to threads. Everything is read in short statements, so that a long
export never keeps the writer's log from being taken back into the file.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import msgspec

from aworld.core.event import Event
from aworld.core.exceptions import StoreError, TaskError
from aworld.trajectory.query import (
    LABEL, MOST, Facet, Facets, Page, Place, Query, Where, check_facets, facets_of, order_of, page_of, place_after,
)  # fmt: skip
from aworld.trajectory.sql import COHORT, INDEXED, QUICK, SQLITE, Values, all_of, selected, summary_of
from aworld.trajectory.sqlite_file import SEQ_BITS
from aworld.trajectory.store import unknown_trajectory
from aworld.trajectory.summary import COLUMNS, Summary

_log: msgspec.json.Decoder[list[Event]] = msgspec.json.Decoder(list[Event])

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


def listed(connection: sqlite3.Connection, path: str, query: Query) -> Page:
    """The summaries that a query asks for. Raises `TaskError` if the one to go on after is unknown."""
    places = _Search(connection, query).places(_last(connection, path, query), query.limit, query.offset)
    return page_of(query, _summaries(connection, [key for _, key in places]), places[-1] if places else None)


def counted(connection: sqlite3.Connection, query: Query, most: int | None = None) -> int:
    """How many trajectories match a query; at most `most`, where counting ends."""
    return _Search(connection, query).count(most)


def scanned(connection: sqlite3.Connection, path: str, query: Query) -> Iterator[tuple[Summary, list[Event]]]:
    """Matching trajectories with their events; in memory are one log and a page of summaries.

    What is deleted meanwhile is left out. A page begins at the place where the one before ended, not after an id: that
    may be gone.
    """
    left, offset = query.limit, query.offset
    last = _last(connection, path, query)
    while left is None or left > 0:
        size = PAGE if left is None else min(PAGE, left)
        places = _Search(connection, query).places(last, size, offset)
        for summary in _summaries(connection, [key for _, key in places]):
            try:
                events = compose(connection, path, summary.id)
            except TaskError:
                continue
            yield summary, events
        if len(places) < size:
            return
        left = None if left is None else left - len(places)
        offset, last = 0, places[-1]


def faceted(connection: sqlite3.Connection, fields: Sequence[str], query: Query) -> Facets:
    """How often each value occurs in the fields among what matches a query."""
    check_facets(fields)
    search = _Search(connection, query)
    return {field: search.facet(field) for field in fields}


def _last(connection: sqlite3.Connection, path: str, query: Query) -> Place | None:
    place = place_after(query)
    if place is not None or query.after is None:
        return place
    statement = f"SELECT {order_of(query).column}, key FROM trajectories WHERE id = ?"
    place = connection.execute(statement, (query.after,)).fetchone()
    if place is None:
        raise unknown_trajectory(query.after, path, nearest(connection, query.after))
    return place


def _summaries(connection: sqlite3.Connection, keys: list[int]) -> Iterator[Summary]:
    for first in range(0, len(keys), PAGE):
        some, values = keys[first : first + PAGE], Values(SQLITE)
        rows = connection.execute(
            f"{selected(SQLITE, 'key')} WHERE {values.among('t.key', some)}", values.values
        ).fetchall()
        by_key = {row[-2]: row for row in rows}
        yield from (summary_of(by_key[key]) for key in some if key in by_key)


FEW = 50_000
"""Rows that are looked at one by one: what a condition leaves of a million is less, or so common that walking along
the order soon finds a page of them. Looking at one takes about 1 µs."""

MERGED = 100
"""Cohorts that are merged in one statement; SQLite takes 500."""

SHOWN = 1000
"""Different values of a facet that are counted."""

_Driver: TypeAlias = "tuple[Where, ...]"
"""Conditions that an index answers together."""


class _Search:
    """How a query is answered: which index leads, and what is checked row by row.

    Conditions on the columns of cohorts choose cohorts, whose sizes are known. Of the others, the one that leaves least
    leads, and what it leaves is looked at and sorted; if even that is much, the indexes of the chosen cohorts, each in
    the order asked for, and the few trajectories that are not filed are merged, until the page is full.
    """

    def __init__(self, connection: sqlite3.Connection, query: Query) -> None:
        self._connection, self._order = connection, order_of(query)
        self._conditions = query.conditions
        self._of_cohorts = [where for where in self._conditions if where.field in COHORT]
        self._rest = [where for where in self._conditions if where.field not in COHORT]
        values = Values(SQLITE)
        chosen = all_of(["trajectories > 0", *values.on_cohorts(self._of_cohorts)])
        rows = connection.execute(f"SELECT key, trajectories FROM cohorts{chosen}", values.values).fetchall()
        self._cohorts = [key for key, _ in rows]
        self._filed: int = sum(size for _, size in rows)

    def _unfiled(self, values: Values, conditions: Sequence[Where]) -> str:
        """The trajectories that are not filed, of which these conditions hold."""
        index = SQLITE.use_index.format("trajectories_unfiled")
        return f" FROM trajectories AS t{index}{all_of(['t.cohort IS NULL', *values.every(conditions)])}"

    def _drivers(self) -> list[_Driver]:
        drivers: list[_Driver] = [
            (where,)
            for where in self._rest
            if (where.label and where.op in ("=", "in") and where.value is not None)
            or (where.field in INDEXED and where.op in ("=", "in", "prefix") and where.value is not None)
        ]
        for column in QUICK:
            ranges = tuple(w for w in self._rest if w.field == column and w.op in ("=", "<", "<=", ">", ">="))
            if ranges and all(where.value is not None for where in ranges):
                drivers.append(ranges)
        return drivers

    def _source(self, driver: _Driver, values: Values) -> str:
        """A select of the keys that a driver leaves; one without conditions leaves the cohorts."""
        where = driver[0] if driver else None
        if where is not None and where.label:
            name = values.add(where.label)
            return f"SELECT trajectory AS key FROM labels WHERE name = {name} AND {values.on('value', where)}"
        if where is not None and where.field == "task_id":  # the index has only those that differ from the id
            same = f"SELECT key FROM trajectories WHERE {values.on('id', where)} AND task_id = id"
            return f"{same} UNION ALL SELECT key FROM trajectories WHERE task_id <> id AND {values.on('task_id', where)}"
        if where is not None and where.field not in QUICK:
            return f"SELECT key FROM trajectories WHERE {values.on(where.field, where)}"
        if not self._of_cohorts and (where is None or where.field == "started_at"):
            return f"SELECT t.key FROM trajectories AS t{all_of(values.every(driver))}"
        index = SQLITE.use_index.format(f"cohort_{where.field}" if where else "cohort_started_at")
        filed = all_of([values.among("t.cohort", self._cohorts), *values.every(driver)])
        unfiled = self._unfiled(values, [*driver, *self._of_cohorts])
        return f"SELECT t.key FROM trajectories AS t{index}{filed} UNION ALL SELECT t.key{unfiled}"

    def _matching(self, driver: _Driver, values: Values) -> str:
        """From where the rows that match come, named `t`, and their conditions."""
        source = self._source(driver, values)
        filed = not driver or driver[0].field in QUICK
        left = [where for where in self._rest if where not in driver] + ([] if filed else self._of_cohorts)
        return f" FROM ({source}) AS c CROSS JOIN trajectories AS t{all_of(['t.key = c.key', *values.every(left)])}"

    def _lead(self, most: int = FEW) -> _Driver:
        """The conditions that leave least; none if they all leave more than `most`, or the cohorts leave less."""
        values = Values(SQLITE)
        unfiled = self._one(f"SELECT count(*) FROM (SELECT 1{self._unfiled(values, ())})", values)
        lead, least = (), self._filed + unfiled
        for driver in self._drivers():
            values = Values(SQLITE)
            limit = min(most + 1, least)
            source = f"SELECT 1 FROM ({self._source(driver, values)}) LIMIT {limit}"
            count: int = self._one(f"SELECT count(*) FROM ({source})", values)
            if count < limit:
                lead, least = driver, count
        return lead

    def _one(self, statement: str, values: Values) -> Any:
        return self._connection.execute(statement, values.values).fetchone()[0]

    def count(self, most: int | None) -> int:
        """How many match, at most `most`."""
        drivers, values = self._drivers(), Values(SQLITE)
        limit = "" if most is None else f" LIMIT {most}"
        alone = len(drivers) == 1 and len(drivers[0]) == len(self._rest)
        if not self._rest:
            rows = f"SELECT 1{self._unfiled(values, self._of_cohorts)}"
            count = self._filed + self._one(f"SELECT count(*) FROM ({rows}{limit})", values)
            return count if most is None else min(count, most)
        if alone and (not self._of_cohorts or drivers[0][0].field in QUICK):
            rows = f"SELECT 1 FROM ({self._source(drivers[0], values)})"  # an index has all of the answer
        else:
            rows = f"SELECT 1{self._matching(self._lead(most=5 * FEW if most else 1 << 62), values)}"
        return self._one(f"SELECT count(*) FROM ({rows}{limit})", values)

    def places(self, last: Place | None, limit: int | None, offset: int) -> list[Place]:
        """Where the trajectories of a page stand, in order."""
        lead, column = self._lead(), self._order.column
        if column in QUICK and (not lead or lead[0].field == column):
            return self._merged(last, limit, offset)
        values = Values(SQLITE)
        matching = self._matching(lead, values)
        beyond = "" if last is None else f" AND {self._beyond(last, values)}"
        direction = self._direction
        return self._connection.execute(
            f"SELECT t.{column}, t.key{matching}{beyond} ORDER BY t.{column} IS NULL, t.{column} {direction},"
            f" t.key {direction} LIMIT {-1 if limit is None else limit} OFFSET {offset}",
            values.values,
        ).fetchall()

    @property
    def _direction(self) -> str:
        return "DESC" if self._order.descends else "ASC"

    def _beyond(self, last: Place, values: Values) -> str:
        column, sign = f"t.{self._order.column}", "<" if self._order.descends else ">"
        value, key = last
        if value is None:
            return f"{column} IS NULL AND t.key {sign} {values.add(key)}"
        beyond = f"({column}, t.key) {sign} ({values.add(value)}, {values.add(key)})"
        return f"({column} IS NULL OR {beyond})" if COLUMNS[self._order.column].optional else beyond

    def _merged(self, last: Place | None, limit: int | None, offset: int) -> list[Place]:
        column, end = self._order.column, None if limit is None else offset + limit
        if not COLUMNS[column].optional:
            return self._ordered("", last, limit, offset)
        places: list[Place] = []
        if last is None or last[0] is not None:
            places = self._ordered(f"t.{column} IS NOT NULL", last, end)
            last = None
        if end is None or len(places) < end:
            places += self._ordered(f"t.{column} IS NULL", last, None if end is None else end - len(places))
        return places[offset:]

    def _ordered(self, also: str, last: Place | None, limit: int | None, offset: int = 0) -> list[Place]:
        """The first places in the order of an index."""
        if self._order.column == "started_at" and not self._of_cohorts:
            return self._union([None], also, last, limit, offset)
        if len(self._cohorts) <= MERGED:
            return self._union([0, *self._cohorts], also, last, limit, offset)
        end = None if limit is None else offset + limit
        places = self._union([0], also, last, end, 0)
        for first in range(0, len(self._cohorts), MERGED):
            places += self._union(self._cohorts[first : first + MERGED], also, last, end, 0)
        places.sort(reverse=self._order.descends, key=lambda place: place if place[0] is not None else (0.0, place[1]))
        return places[offset:end]

    def _union(
        self, cohorts: Sequence[int | None], also: str, last: Place | None, limit: int | None, offset: int
    ) -> list[Place]:
        """The first places in these cohorts; 0 stands for what is not filed, None for all."""
        values = Values(SQLITE)
        place = f"SELECT t.{self._order.column}, t.key"
        conditions = values.every(self._rest) + ([also] if also else [])
        if last is not None and last[0] is None:
            conditions.append(f"t.key {'<' if self._order.descends else '>'} {values.add(last[1])}")
        elif last is not None:
            sign = "<" if self._order.descends else ">"
            conditions.append(f"(t.{self._order.column}, t.key) {sign} ({values.add(last[0])}, {values.add(last[1])})")
        unions: list[str] = []
        for cohort in cohorts:
            if cohort == 0:
                unfiled = self._unfiled(values, self._of_cohorts)
                unions.append(" AND ".join([place + unfiled, *conditions]))
                continue
            index = "trajectories_started" if cohort is None else f"cohort_{self._order.column}"
            own = [] if cohort is None else [f"t.cohort = {cohort}"]
            rows = f"{place} FROM trajectories AS t{SQLITE.use_index.format(index)}"
            unions.append(rows + all_of([*own, *conditions]))
        direction = self._direction
        first = f"ORDER BY 1 {direction}, 2 {direction} LIMIT {-1 if limit is None else limit} OFFSET {offset}"
        return self._connection.execute(f"{' UNION ALL '.join(unions)} {first}", values.values).fetchall()

    def facet(self, field: str) -> list[Facet]:
        """How often each value occurs in a field."""
        values = Values(SQLITE)
        if field in COHORT and not self._rest:
            chosen = all_of(values.on_cohorts(self._of_cohorts))
            unfiled = self._unfiled(values, self._of_cohorts)
            counts = Counter(dict(self._connection.execute(
                f"SELECT value, sum(count) FROM (SELECT nullif({field}, '') AS value, trajectories AS count FROM cohorts"
                f"{chosen} UNION ALL SELECT t.{field}, 1{unfiled}) GROUP BY 1", values.values,
            )))  # fmt: skip
            del counts[None]
            return facets_of(counts.items())
        if not self._conditions:
            return self._values(field)
        if field.startswith(LABEL):
            name = values.add(field[len(LABEL) :])
            value = f"(SELECT value FROM labels WHERE trajectory = t.key AND name = {name})"
        else:
            value = f"t.{field}"
        rows = f"SELECT {value} AS value{self._matching(self._lead(), values)} LIMIT {FEW + 1}"
        counts = Counter(dict(self._connection.execute(f"SELECT value, count(*) FROM ({rows}) GROUP BY 1", values.values)))
        more = counts.total() > FEW
        del counts[None]
        return facets_of(counts.items(), more)

    def _values(self, field: str) -> list[Facet]:
        """Of all trajectories: goes through an index from one value to the next."""
        values = Values(SQLITE)
        if field.startswith(LABEL):
            table, column, name = "labels", "value", f"name = {values.add(field[len(LABEL) :])} AND "
        else:
            table, column, name = "trajectories", field, ""
        rows = self._connection.execute(
            f"WITH RECURSIVE v(value) AS (SELECT min({column}) FROM {table} WHERE {name}{column} IS NOT NULL UNION ALL"
            f" SELECT (SELECT min({column}) FROM {table} WHERE {name}{column} > v.value) FROM v"
            f" WHERE v.value IS NOT NULL LIMIT {SHOWN + 1})"
            f" SELECT value, (SELECT count(*) FROM (SELECT 1 FROM {table} WHERE {name}{column} = v.value"
            f" LIMIT {MOST + 1})) FROM v WHERE value IS NOT NULL",
            values.values,
        )
        return facets_of(rows.fetchall())
