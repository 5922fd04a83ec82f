"""What is read from a SQLite store: logs, and the list of trajectories.

Functions of a connection; who calls them sees to threads. Everything is read in short statements, so that a long
export never keeps the writer's log from being taken back into the file.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec.structs import replace

from aworld.core.event import Event, Note, Started, ToolsetOffered, decode_event, decode_events
from aworld.core.exceptions import StoreError, TaskError
from aworld.trajectory.query import (
    LABEL,
    MOST,
    Facet,
    Facets,
    Page,
    Place,
    Query,
    Recorded,
    UnreadableLog,
    Where,
    check_facets,
    facets_of,
    order_of,
    page_of,
    place_after,
)  # fmt: skip
from aworld.trajectory.sql import COHORT, INDEXED, QUICK, SEQ_BITS, SQLITE, Values, all_of, fields_of, selected
from aworld.trajectory.store import unknown_trajectory
from aworld.trajectory.summary import COLUMNS, Summary

PAGE = 500
"""Trajectories that a scan lists at once."""


def compose(
    connection: sqlite3.Connection, path: str, id: str, *, after: int = -1, until: int | None = None
) -> list[Event]:
    """The events of a trajectory numbered above `after` and below `until`, those it shares with its parents first.

    Raises `TaskError` if the trajectory is unknown, `StoreError` if an event cannot be decoded.
    """
    row = connection.execute("SELECT key, parent, first FROM trajectories WHERE id = ?", (id,)).fetchone()
    if row is None:
        raise unknown_trajectory(id, path, nearest(connection, id))
    end = (1 << SEQ_BITS) - 1 if until is None else until
    pieces: list[list[bytes]] = []
    while row is not None and end > after + 1:
        key, parent, first = row
        if parent is not None and parent >= key:  # what begins later has the larger number
            raise _unreadable(path, f"the log of {id!r}", ValueError("it shares its beginning with itself"))
        base = key << SEQ_BITS
        cursor = connection.execute(
            "SELECT data FROM events WHERE key >= ? AND key < ? ORDER BY key",
            (base + max(first, after + 1), base + max(first, end)),
        )
        pieces.append([data for (data,) in cursor])
        end = min(end, first)
        row = None
        if parent is not None:
            row = connection.execute("SELECT key, parent, first FROM trajectories WHERE key = ?", (parent,)).fetchone()
    try:
        events = decode_events([data for piece in reversed(pieces) for data in piece])
        return with_bodies(connection, path, events)
    except (msgspec.DecodeError, TypeError) as error:  # TypeError: somebody edited the file and left text, not bytes
        raise _unreadable(path, f"the log of {id!r}", error) from error


def _unreadable(path: str, what: str, error: Exception) -> UnreadableLog:
    remedy = "restore the file, or remove this run by `aworld trajectories delete`"
    return UnreadableLog(f"store={path} | {what} cannot be read: {error}; {remedy}")


_bodies: dict[tuple[str, str], Any] = {}
"""Definitions that were read, by file and digest: many runs share few."""

KEPT = 1000
"""Definitions that are kept; more empty the cache."""


def with_bodies(connection: sqlite3.Connection, path: str, events: list[Event]) -> list[Event]:
    """The events with the definitions that they name by digest, in place."""
    for place, event in enumerate(events):
        if type(event) is Started and event.definitions and not event.definitions.keys() <= event.agents.keys():
            agents = {
                name: event.agents.get(name) or definition_of(connection, path, digest)
                for name, digest in event.definitions.items()
            }
            agents = {name: agent for name, agent in agents.items() if agent is not None}
            events[place] = replace(event, agents={**agents, **event.agents})
        elif type(event) is ToolsetOffered and not event.tools:
            events[place] = replace(event, tools=tuple(definition_of(connection, path, event.digest) or ()))
    return events


def definition_of(connection: sqlite3.Connection, path: str, digest: str) -> Any:
    """The body of a definition; None if the file has none."""
    body = _bodies.get((path, digest))
    if body is None:
        row = connection.execute("SELECT data FROM definitions WHERE digest = ?", (digest,)).fetchone()
        if row is not None:
            if len(_bodies) >= KEPT:
                _bodies.clear()
            body = _bodies[path, digest] = msgspec.json.decode(row[0])
    return body


def nearest(connection: sqlite3.Connection, id: str) -> list[str]:
    """Ids among which a mistyped one is likely to be found: its neighbours by name, and the newest."""
    rows = connection.execute(
        "SELECT id FROM (SELECT id FROM trajectories WHERE id >= :id ORDER BY id LIMIT 50) UNION "
        "SELECT id FROM (SELECT id FROM trajectories WHERE id < :id ORDER BY id DESC LIMIT 50) UNION "
        "SELECT id FROM (SELECT id FROM trajectories ORDER BY started_at DESC LIMIT 200)",
        {"id": id},
    )
    return [row[0] for row in rows]


@contextmanager
def _moment(connection: sqlite3.Connection) -> Generator[None, None, None]:
    """Statements that see the same moment: meanwhile trajectories may be filed, and would be there twice or never."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("COMMIT")


def listed(connection: sqlite3.Connection, path: str, query: Query) -> Page:
    """The summaries that a query asks for. Raises `TaskError` if the one to go on after is unknown."""
    with _moment(connection):
        places = _Search(connection, query).places(_last(connection, path, query), query.limit, query.offset)
        return page_of(query, _summaries(connection, [key for _, key in places]), places[-1] if places else None)


def counted(connection: sqlite3.Connection, query: Query, most: int | None = None) -> int:
    """How many trajectories match a query; at most `most`, where counting ends."""
    with _moment(connection):
        return _Search(connection, query).count(most)


def noted(connection: sqlite3.Connection, path: str, id: str, *, after: int = -1) -> list[Note]:
    """The notes about a trajectory with a number above `after`. Raises as `compose` does."""
    row = connection.execute("SELECT key FROM trajectories WHERE id = ?", (id,)).fetchone()
    if row is None:
        raise unknown_trajectory(id, path, nearest(connection, id))
    return notes_of(connection, path, row[0], after + 1)


def notes_of(connection: sqlite3.Connection, path: str, key: int, first: int = 0) -> list[Note]:
    """The notes about a trajectory from number `first` on. Raises `StoreError` if one cannot be read."""
    rows = connection.execute(
        "SELECT number, data FROM notes WHERE trajectory = ? AND number >= ? ORDER BY number", (key, first)
    )
    try:
        return [replace(decode_event(data), seq=number) for number, data in rows]
    except (msgspec.DecodeError, TypeError) as error:
        raise _unreadable(path, f"the notes about trajectory {key}", error) from error


def scanned(
    connection: sqlite3.Connection, path: str, query: Query, on_unreadable: Callable[[StoreError], None]
) -> Iterator[tuple[Summary, Recorded]]:
    """Matching trajectories with their events and notes; in memory are one log and a page of summaries.

    What is deleted meanwhile is left out. A page begins at the place where the one before ended, not after an id: that
    may be gone.
    """
    left, offset = query.limit, query.offset
    last = _last(connection, path, query)
    while left is None or left > 0:
        size = PAGE if left is None else min(PAGE, left)
        with _moment(connection):
            places = _Search(connection, query).places(last, size, offset)
            summaries = list(_summaries(connection, [key for _, key in places]))
        for summary in summaries:
            try:
                record = Recorded(compose(connection, path, summary.id))
                if summary.notes:
                    record.notes = noted(connection, path, summary.id)
            except TaskError:
                continue
            except UnreadableLog as error:
                on_unreadable(error)
                continue
            yield summary, record
        if len(places) < size:
            return
        left = None if left is None else left - len(places)
        offset, last = 0, places[-1]


def faceted(connection: sqlite3.Connection, fields: Sequence[str], query: Query) -> Facets:
    """How often each value occurs in the fields among what matches a query."""
    check_facets(fields)
    with _moment(connection):
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
        yield from (Summary(**fields_of(by_key[key])) for key in some if key in by_key)


FEW = 50_000
"""Trajectories that are looked at one by one, at about 1 µs each. What leaves more of a million is so common that a
walk in the order asked for soon finds a page of it."""

RARE = 5000
"""Trajectories of cohorts that are looked at one by one; of more, an index of an order has them sooner."""

LOOKED_AT = 20_000
"""Matching trajectories of which a facet is made where it has to look at them; of more it is a part."""

SHOWN = 1000
"""Different values of a facet that are counted."""

_Driver: TypeAlias = "tuple[Where, ...]"
"""Conditions that an index answers together."""


class _Search:
    """How a query is answered: by the condition that leaves least, or along an index in the order asked for.

    If a condition that has an index leaves few trajectories, those are looked at and sorted. Else all conditions leave
    much, and walking along the order soon finds a page. The indexes of the orders hold what is asked most besides, the
    cohort and the start, so that a walk of a million which finds nothing takes less than 100 ms. What is not filed yet
    is in the order of starts only: it is little, and sorted.
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

    def _walked(self, column: str, conditions: Sequence[str], values: Values) -> str:
        """Trajectories named `t` by the index of an order: those of the chosen cohorts that are filed; in the order of
        starts and without a choice all."""
        chosen = ["t.cohort IS NOT NULL"] if column != "started_at" else []
        if self._of_cohorts:
            chosen.append(values.among("t.cohort", self._cohorts))
        return f" FROM trajectories AS t{SQLITE.use_index.format(f'order_{column}')}{all_of([*conditions, *chosen])}"

    def _unfiled(self, conditions: Sequence[str], values: Values) -> str:
        """The trajectories of the chosen cohorts that are not filed, named `t`."""
        chosen = ["t.cohort IS NULL", *values.every(self._of_cohorts), *conditions]
        return f" FROM trajectories AS t{SQLITE.use_index.format('trajectories_unfiled')}{all_of(chosen)}"

    def _drivers(self) -> list[_Driver]:
        drivers: list[_Driver] = [
            (where,)
            for where in self._rest
            if (where.label and where.op in ("=", "in") and where.value is not None)
            or (where.field in INDEXED and where.op in ("=", "in", "prefix") and where.value is not None)
        ]
        return drivers + [bounds for column in QUICK if (bounds := self._bounds(column))]

    def _bounds(self, column: str) -> _Driver:
        ranges = (where for where in self._rest if where.field == column and where.value is not None)
        return tuple(where for where in ranges if where.op in ("=", "<", "<=", ">", ">="))

    def _source(self, driver: _Driver, values: Values) -> str:
        """A select of the keys that a driver leaves; one without conditions leaves the chosen cohorts."""
        if not driver:
            filed = self._walked("started_at" if self._filed > RARE else "cohort", (), values)
            return f"SELECT t.key{filed} UNION ALL SELECT t.key{self._unfiled((), values)}"
        where = driver[0]
        if where.label:
            name = values.add(where.label)
            return f"SELECT trajectory AS key FROM labels WHERE name = {name} AND {values.on('value', where)}"
        if where.field in QUICK:
            rows, conditions = (
                f"trajectories AS t{SQLITE.use_index.format(f'order_{where.field}')}",
                values.every(driver),
            )
            if where.field == "started_at":
                return f"SELECT t.key FROM {rows}{all_of(conditions)}"
            filed = f"SELECT t.key FROM {rows}{all_of(['t.cohort IS NOT NULL', *conditions])}"
            return f"{filed} UNION ALL SELECT t.key{self._unfiled(conditions, values)}"
        if where.field == "task_id":  # the index has only those that differ from the id
            same = f"SELECT key FROM trajectories WHERE {values.on('id', where)} AND task_id = id"
            other = f"SELECT key FROM trajectories WHERE {values.on('task_id', where)} AND task_id <> id"
            return f"{same} UNION ALL {other}"
        return f"SELECT key FROM trajectories WHERE {values.on(where.field, where)}"

    def _matching(self, driver: _Driver | None, values: Values, also: Sequence[str] = ()) -> str:
        """From where the trajectories that match come, named `t`, and their conditions."""
        if driver is None and not self._of_cohorts:
            return self._walked("started_at", [*values.every(self._rest), *also], values)
        driver = driver or ()
        source = self._source(driver, values)
        if driver:  # rows are then looked up as they lie in the file
            source += SQLITE.by_key
        left = [where for where in self._rest if where not in driver] + (self._of_cohorts if driver else [])
        conditions = all_of(["t.key = c.key", *values.every(left), *also])
        return f" FROM ({source}) AS c CROSS JOIN trajectories AS t{conditions}"

    def _lead(self, most: int = FEW, rare: int = RARE) -> _Driver | None:
        """The conditions that leave least; none for the cohorts, and None if all leave more than `most`."""
        lead, least = None, most + 1
        if self._of_cohorts and self._filed <= min(rare, most):
            values = Values(SQLITE)
            lead, least = (), self._filed + self._one(f"SELECT count(*){self._unfiled((), values)}", values)
        for driver in self._drivers():
            values = Values(SQLITE)
            source = f"SELECT 1 FROM ({self._source(driver, values)}) LIMIT {least}"
            count: int = self._one(f"SELECT count(*) FROM ({source})", values)
            if count < least:
                lead, least = driver, count
        return lead

    def _one(self, statement: str, values: Values) -> Any:
        return self._connection.execute(statement, values.values).fetchone()[0]

    def count(self, most: int | None) -> int:
        """How many match, at most `most`."""
        values, drivers = Values(SQLITE), self._drivers()
        limit = "" if most is None else f" LIMIT {most}"
        if not self._rest:
            count = self._filed + self._one(f"SELECT count(*){self._unfiled((), values)}", values)
            return count if most is None else min(count, most)
        alone = len(drivers) == 1 and len(drivers[0]) == len(self._rest)
        if alone and not self._of_cohorts and drivers[0][0].field not in QUICK:
            rows = f"SELECT 1 FROM ({self._source(drivers[0], values)})"  # an index has all of the answer
        elif alone and drivers[0][0].field in QUICK:
            rows = self._both(drivers[0][0].field, values)
        else:
            lead = self._lead(4 * FEW, rare=4 * FEW)
            rows = f"SELECT 1{self._matching(lead, values)}" if lead != () else self._both("cohort", values)
        return self._one(f"SELECT count(*) FROM ({rows}{limit})", values)

    def _both(self, column: str, values: Values) -> str:
        """One row for each trajectory that matches, by an index of those that are filed."""
        conditions = values.every(self._rest)
        filed = f"SELECT 1{self._walked(column, conditions, values)}"
        if column == "started_at" and not self._of_cohorts:  # that index has all
            return filed
        return f"{filed} UNION ALL SELECT 1{self._unfiled(conditions, values)}"

    def places(self, last: Place | None, limit: int | None, offset: int) -> list[Place]:
        """Where the trajectories of a page stand, in order."""
        lead, (column, descends) = self._lead(), self._order
        end = None if limit is None else offset + limit
        values = Values(SQLITE)
        if column not in QUICK or not (lead is None or (lead and lead[0].field == column)):
            return self._ask(self._matching(lead, values, self._beyond(last, values)), values, limit, offset)
        whole = column == "started_at" and not self._of_cohorts
        if whole and last is None:
            return self._ask(self._matching(None, values), values, limit, offset)
        unfiled: list[Place] = []
        if not whole:
            conditions = [*values.every(self._rest), *self._beyond(last, values)]
            unfiled = self._ask(self._unfiled(conditions, values), values, end)
        skipped = max(0, offset - len(unfiled))  # so many of the filed come before the page, wherever the others are
        places = unfiled + self._walk(last, limit and limit + offset - skipped, skipped)
        if unfiled:
            valued = [place for place in places if place[0] is not None]
            unknown = [place for place in places if place[0] is None]
            valued.sort(reverse=descends)
            unknown.sort(key=itemgetter(1), reverse=descends)
            places = valued + unknown
        return places[offset - skipped : None if end is None else end - skipped]

    def _ask(
        self, rows: str, values: Values, limit: int | None, offset: int = 0, in_range: bool = False
    ) -> list[Place]:
        """The first places of these rows; `in_range`: of one range of an index."""
        (column, descends), optional = self._order, COLUMNS[self._order.column].optional
        direction = "DESC" if descends else "ASC"
        last = f"t.{column} IS NULL, " if optional and not in_range else ""
        return self._connection.execute(
            f"SELECT t.{column}, t.key{rows} ORDER BY {last}t.{column} {direction}, t.key {direction}"
            f" LIMIT {-1 if limit is None else limit} OFFSET {offset}",
            values.values,
        ).fetchall()

    @property
    def _sign(self) -> Literal["<", ">"]:
        return "<" if self._order.descends else ">"

    def _beyond(self, last: Place | None, values: Values) -> list[str]:
        column, optional = f"t.{self._order.column}", COLUMNS[self._order.column].optional
        if last is None:
            return []
        if last[0] is None:
            return [f"{column} IS NULL AND t.key {self._sign} {values.add(last[1])}"]
        beyond = f"({column}, t.key) {self._sign} ({values.add(last[0])}, {values.add(last[1])})"
        return [f"({column} IS NULL OR {beyond})" if optional else beyond]

    def _walk(self, last: Place | None, limit: int | None, skipped: int) -> list[Place]:
        """The first places beyond the last one, but for some, from one range of an index to the next: its equals, the
        others, the unknown."""
        column = self._order.column
        ranges: list[tuple[Where, int | None]] = [(Where(column, "!=", None), None)]
        if last is not None:
            ranges = [(Where(column, "=", last[0]), last[1])]
            if last[0] is not None:
                ranges.append((Where(column, self._sign, last[0]), None))
        if COLUMNS[column].optional and (last is None or last[0] is not None) and not self._bounds(column):
            ranges.append((Where(column, "=", None), None))
        places: list[Place] = []
        if self._of_cohorts and not self._cohorts:
            return places
        for where, key in ranges:
            left = None if limit is None else limit - len(places)
            if left == 0:
                break
            values = Values(SQLITE)
            conditions = values.every([where]) + ([] if key is None else [f"t.key {self._sign} {values.add(key)}"])
            conditions += values.every(self._rest)
            walked = self._walked(column, conditions, values)
            rows = self._ask(walked, values, left, skipped, in_range=True)
            if skipped and not rows:
                skipped -= self._one(f"SELECT count(*){walked}", values)
            else:
                skipped = 0
            places += rows
        return places

    def facet(self, field: str) -> list[Facet]:
        """How often each value occurs in a field."""
        if not self._conditions and field not in COHORT:
            return self._values(field)
        values = Values(SQLITE)
        if field in COHORT and not self._rest:
            filed = all_of(values.on_cohorts(self._of_cohorts))
            rows = f"SELECT nullif({field}, '') AS value, trajectories AS count FROM cohorts{filed} UNION ALL "
            rows += f"SELECT t.{field}, 1{self._unfiled((), values)}"
            end = 0
        else:
            value = f"t.{field}"
            if field.startswith(LABEL):
                name = values.add(field[len(LABEL) :])
                value = f"(SELECT value FROM labels WHERE trajectory = t.key AND name = {name})"
            rows = f"SELECT {value} AS value, 1 AS count{self._matching(self._lead(4 * FEW), values)} LIMIT {LOOKED_AT}"
            end = LOOKED_AT
        counts = self._connection.execute(
            f"SELECT value, sum(count) FROM ({rows}) GROUP BY 1", values.values
        ).fetchall()
        more = end > 0 and sum(count for _, count in counts) >= end
        return facets_of([(value, count) for value, count in counts if value is not None], more)

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
