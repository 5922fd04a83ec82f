"""The rows that the writer of a SQLite store reads and changes, inside its transactions."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from itertools import compress
from operator import attrgetter
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from aworld.core.event import Started, decode_event
from aworld.core.trajectory import Score
from aworld.trajectory.memory import check_fork, has_forks, out_of_order
from aworld.trajectory.sql import COHORT, FIGURES, INSERT, OTHERS, SEQ_BITS, SQLITE, STORED, fields_of, selected, update
from aworld.trajectory.sqlite_file import roll_back
from aworld.trajectory.sqlite_reader import compose, nearest
from aworld.trajectory.store import unknown_trajectory
from aworld.trajectory.summary import Tally

_RECALL = selected(SQLITE, "key", "cohort", "asked") + " WHERE t.id = ?"
_figures_of = attrgetter(*FIGURES)
_others_of = attrgetter(*OTHERS, "labels")

_REWARD = b'{"kind":"reward"'


class Known(Struct):
    """A log as the writer knows it: its trajectory's number, the tally up to its last event, and what the file has."""

    key: int
    tally: Tally
    others: tuple[Any, ...]
    """The columns of `OTHERS`, and the labels."""
    cohort: int | None = None
    """Where the trajectory is filed."""


def recall(connection: sqlite3.Connection, id: str) -> Known | None:
    """A trajectory as it stands in the file; None if it is not there."""
    row = connection.execute(_RECALL, (id,)).fetchone()
    if row is None:
        return None
    key, cohort, asked, _ = row[len(STORED) :]
    tally = Tally(**fields_of(row), key=key)
    if asked:
        tally.asked = msgspec.json.decode(asked, type=list[tuple[str, str | None]])
    tally.paused = tally.status == "waiting" and not asked
    if tally.score is not None:
        tally.scored = Score(tally.score)
    else:
        tally.scored = _scored(connection, id, key, tally.forked_from is not None)
    return Known(key, tally, _others_of(tally), cohort)


def _stored(others: tuple[Any, ...]) -> tuple[Any, ...]:
    *columns, asked, _ = others
    return *columns, msgspec.json.encode(asked) if asked else None


def _scored(connection: sqlite3.Connection, id: str, key: int, forked: bool) -> Score:
    """The score as log and notes tell it, where the list says that there is none: a reward may have failed."""
    if forked:
        score = Tally.of(id, compose(connection, "", id)).scored
        rewards = []
    else:
        score = Score()
        rewards = connection.execute(
            "SELECT data FROM events WHERE key >= ? AND key < ? AND substr(data, 1, ?) = ? ORDER BY key",
            (key << SEQ_BITS, (key + 1) << SEQ_BITS, len(_REWARD), _REWARD),
        ).fetchall()
    rewards += connection.execute(
        "SELECT data FROM notes WHERE trajectory = ? AND substr(data, 1, ?) = ? ORDER BY number",
        (key, len(_REWARD), _REWARD),
    ).fetchall()
    for (data,) in rewards:
        score.add(decode_event(data))
    return score


def create(
    connection: sqlite3.Connection,
    url: str,
    id: str,
    started: Started,
    owner: str | None,
    lease_until: float | None,
) -> Known:
    """Add a trajectory; a fork begins with the tally of what it shares.

    Raises `TaskError` if a fork's parent is unknown or shorter than it says, `StoreError` for a wrong number.
    """
    fork, parent, tally = started.forked_from, None, Tally(id=id, task_id=id)
    if fork is None and started.seq != 0:
        raise out_of_order(id, url, started.seq, 0)
    if fork is not None:
        row = connection.execute("SELECT key, events FROM trajectories WHERE id = ?", (fork.id,)).fetchone()
        if row is None:
            raise unknown_trajectory(fork.id, url, nearest(connection, fork.id))
        parent, events = row
        if started.after and started.seq == fork.seq <= events:  # nothing of the tally is shared
            tally.events = fork.seq
        else:
            tally = Tally.of(id, check_fork(id, started, compose(connection, url, fork.id, until=fork.seq)))
    begun = replace(tally, events=started.seq)
    begun.apply(started)  # so that it is written once as it is after this event; the caller applies it to the other
    others = _others_of(begun)
    row = (*_figures_of(begun), *_stored(others), parent, started.seq, owner, lease_until)
    cursor = connection.execute(INSERT, row)
    assert cursor.lastrowid is not None  # an insert that succeeded has one
    tally.key = cursor.lastrowid
    _write_labels(connection, tally.key, {}, begun.labels)
    return Known(tally.key, tally, others)


def _write_labels(connection: sqlite3.Connection, key: int, before: dict[str, str], labels: dict[str, str]) -> None:
    gone = [(key, name) for name in before if labels.get(name) != before[name]]
    new = [(key, name, value) for name, value in labels.items() if before.get(name) != value]
    connection.executemany("DELETE FROM labels WHERE trajectory = ? AND name = ?", gone)
    connection.executemany("INSERT INTO labels VALUES (?, ?, ?)", new)


def write_tallies(connection: sqlite3.Connection, touched: dict[str, Known]) -> None:
    """Bring the list of trajectories up to date with the tallies.

    Only the columns that changed are written, so that most batches leave those alone that have an index.
    """
    statements: defaultdict[tuple[str, ...], list[tuple[Any, ...]]] = defaultdict(list)
    for log in touched.values():
        figures, others = _figures_of(log.tally), _others_of(log.tally)
        if others == log.others:
            statements[FIGURES].append((*figures, log.key))
            continue
        changed = [new != old for new, old in zip(others, log.others)]
        columns, values = (*FIGURES, *compress(OTHERS, changed)), [*figures, *compress(_stored(others), changed)]
        if log.cohort is not None and not _COHORT.isdisjoint(columns):
            connection.execute(_LEAVE, (log.cohort,))
            columns, values, log.cohort = (*columns, "cohort"), [*values, None], None
        statements[columns].append((*values, log.key))
        if changed[-1]:
            _write_labels(connection, log.key, log.others[-1], others[-1])
        log.others = others
    for columns, rows in statements.items():
        connection.executemany(update(columns), rows)


_COHORT = frozenset(COHORT)
_NAMES = ", ".join(COHORT)
_KNOWN = ", ".join(f"ifnull(trajectories.{name}, '')" for name in COHORT)
_UNFILED = "WHERE cohort IS NULL AND finished_at IS NOT NULL"
_JOIN = (
    f"INSERT INTO cohorts ({_NAMES}, trajectories)"
    f" SELECT {_KNOWN}, count(*) FROM trajectories {_UNFILED}"
    f" GROUP BY {_NAMES} ON CONFLICT ({_NAMES}) DO UPDATE SET trajectories = trajectories + excluded.trajectories"
)
_FILE = (
    f"UPDATE trajectories SET cohort = (SELECT key FROM cohorts AS c WHERE (c.{', c.'.join(COHORT)}) = ({_KNOWN}))"
    f" {_UNFILED}"
)
_LEAVE = "UPDATE cohorts SET trajectories = trajectories - 1 WHERE key = ?"


def file_ended(connection: sqlite3.Connection) -> None:
    """Put the trajectories that have ended where the indexes are by which lists are ordered.

    Done for many at once and where no run waits: a run that filed itself would write a page of each index.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        # No row by row: each would be waited for as long as another thread keeps Python busy.
        connection.execute(_JOIN)
        connection.execute(_FILE)
        connection.execute("COMMIT")
    except BaseException:
        roll_back(connection)
        raise


def remove(connection: sqlite3.Connection, url: str, id: str, forks: bool) -> list[str]:
    """Delete a trajectory, and with `forks` those forked from it, in one transaction; the ids that are gone.

    Raises `TaskError` if unknown, `StoreError` if others were forked from it and `forks` is not set.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        rows = connection.execute(
            "WITH RECURSIVE doomed(key, id, depth) AS (SELECT key, id, 0 FROM trajectories WHERE id = ? UNION ALL"
            " SELECT t.key, t.id, depth + 1 FROM trajectories t JOIN doomed ON t.parent = doomed.key"
            " WHERE t.key > doomed.key)"
            " SELECT key, id, depth FROM doomed",
            (id,),
        ).fetchall()
        if not rows:
            raise unknown_trajectory(id, url, nearest(connection, id))
        if len(rows) > 1 and not forks:
            raise has_forks(id, url, [child for _, child, depth in rows if depth == 1])
        for key, _, _ in rows:
            connection.execute(
                "DELETE FROM events WHERE key >= ? AND key < ?", (key << SEQ_BITS, (key + 1) << SEQ_BITS)
            )
            cohort = connection.execute("DELETE FROM trajectories WHERE key = ? RETURNING cohort", (key,)).fetchone()
            connection.execute(_LEAVE, cohort)
            for table in ("notes", "labels"):
                connection.execute(f"DELETE FROM {table} WHERE trajectory = ?", (key,))
        connection.execute("COMMIT")
    except BaseException:
        roll_back(connection)
        raise
    return [gone for _, gone, _ in rows]


def vacuum(connection: sqlite3.Connection) -> None:
    """Rewrite the file without its free pages."""
    connection.execute("VACUUM")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
