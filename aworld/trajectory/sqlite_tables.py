"""The rows that the writer of a SQLite store reads and changes, inside its transactions."""

from __future__ import annotations

import sqlite3
from itertools import compress
from operator import attrgetter
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import astuple, replace

from aworld.core.event import Started, decode_event
from aworld.core.score import Score
from aworld.trajectory.memory import check_fork, has_forks, out_of_order
from aworld.trajectory.sql import COHORT, INSERT, SQLITE, STORED, WRITTEN, selected, summary_of, update
from aworld.trajectory.sqlite_file import SEQ_BITS, roll_back
from aworld.trajectory.sqlite_reader import compose, nearest
from aworld.trajectory.store import unknown_trajectory
from aworld.trajectory.summary import Summary, Tally

_RECALL = selected(SQLITE, "key", "cohort", "asked") + " WHERE t.id = ?"

FIGURES = ("updated_at", "steps", "events", "notes", "input_tokens", "output_tokens", "cost")
"""The columns that change with nearly every batch."""

_ALWAYS = tuple(name in FIGURES for name in WRITTEN)
_figures_of = attrgetter(*FIGURES)
_rest_of = attrgetter(
    "task", "agent", "version", "environment", "model", "ended", "scored.value", "started_at", "finished_at", "answer",
    "error", "asked", "labels", "paused",
)  # fmt: skip

_REWARD = b'{"kind":"reward"'


class Known(Struct):
    """A log as the writer knows it: its trajectory's number, the tally up to its last event, and what the file has."""

    key: int
    tally: Tally
    row: tuple[Any, ...]
    """The columns of `WRITTEN`."""
    rest: tuple[Any, ...]
    """What the columns but `FIGURES` were made of."""
    labels: dict[str, str]
    cohort: int | None = None
    """Where the trajectory is filed."""


def recall(connection: sqlite3.Connection, id: str) -> Known | None:
    """A trajectory as it stands in the file; None if it is not there."""
    row = connection.execute(_RECALL, (id,)).fetchone()
    if row is None:
        return None
    summary = summary_of(row)
    key, cohort, questions, _ = row[len(STORED) :]
    score = summary.score
    scored = Score(score) if score is not None else _scored(connection, id, key, summary.forked_from is not None)
    open_questions = msgspec.json.decode(questions or b"[]", type=list[tuple[str, str | None]])
    tally = Tally.taken_up(summary, key, open_questions, scored)
    return Known(key, tally, _row(tally, summary), _rest_of(tally), summary.labels, cohort)


def _row(tally: Tally, summary: Summary) -> tuple[Any, ...]:
    return *astuple(summary)[:-1], msgspec.json.encode(tally.asked) if tally.asked else None


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
    owner: str | None = None,
    lease_until: float | None = None,
) -> Known:
    """Add a trajectory; a fork begins with the tally of what it shares.

    Raises `TaskError` if a fork's parent is unknown or shorter than it says, `StoreError` for a wrong number.
    """
    fork, parent, tally = started.forked_from, None, Tally(id=id, task=started.task)
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
    summary = begun.summary()
    row = _row(begun, summary)
    cursor = connection.execute(INSERT, (*row, parent, started.seq, owner, lease_until))
    assert cursor.lastrowid is not None  # an insert that succeeded has one
    tally.key = cursor.lastrowid
    log = Known(tally.key, tally, row, (), {})
    if summary.labels:
        _write_labels(connection, log, summary.labels)
    return log


def _write_labels(connection: sqlite3.Connection, log: Known, labels: dict[str, str]) -> None:
    gone = [(log.key, name) for name in log.labels if labels.get(name) != log.labels[name]]
    new = [(log.key, name, value) for name, value in labels.items() if log.labels.get(name) != value]
    connection.executemany("DELETE FROM labels WHERE trajectory = ? AND name = ?", gone)
    connection.executemany("INSERT INTO labels VALUES (?, ?, ?)", new)
    log.labels = labels


def write_tallies(connection: sqlite3.Connection, touched: dict[str, Known]) -> None:
    """Bring the list of trajectories up to date with the tallies.

    Only the columns that changed are written, so that most batches leave those alone that have an index.
    """
    running: list[tuple[Any, ...]] = []
    statements: dict[tuple[str, ...], list[tuple[Any, ...]]] = {FIGURES: running}
    for log in touched.values():
        rest = _rest_of(log.tally)
        if rest == log.rest and log.cohort is None:  # most batches: a sixth of the time
            running.append((*_figures_of(log.tally), log.key))
            continue
        summary = log.tally.summary()
        row = _row(log.tally, summary)
        changed = [new != old or always for new, old, always in zip(row, log.row, _ALWAYS)]
        columns, values = tuple(compress(WRITTEN, changed)), list(compress(row, changed))
        if log.cohort is not None and not _COHORT.isdisjoint(columns):
            connection.execute(_LEAVE, (log.cohort,))
            columns, values, log.cohort = (*columns, "cohort"), [*values, None], None
        statements.setdefault(columns, []).append((*values, log.key))
        if summary.labels != log.labels:
            _write_labels(connection, log, summary.labels)
        log.row, log.rest = row, rest
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
            " SELECT t.key, t.id, depth + 1 FROM trajectories t JOIN doomed ON t.parent = doomed.key)"
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
