"""The rows that the writer of a SQLite store reads and changes, inside its transactions."""

from __future__ import annotations

import sqlite3
from typing import Any

import msgspec
from msgspec import Struct

from aworld.core.event import Rewarded, Started, TaskInfo, decode_event
from aworld.core.score import Score
from aworld.trajectory.memory import check_fork, has_forks, out_of_order
from aworld.trajectory.sqlite_file import SEQ_BITS, roll_back
from aworld.trajectory.sqlite_reader import compose, nearest
from aworld.trajectory.store import unknown_trajectory
from aworld.trajectory.summary import Tally

_RECALL = (
    "SELECT task_id, task_name, session_id, user_id, group_id, agent, status, score, started_at, updated_at,"
    " finished_at, steps, events, input_tokens, output_tokens, answer, error, forked_from, asked, key"
    " FROM trajectories WHERE id = ?"
)

_RUNNING = "UPDATE trajectories SET updated_at=?, steps=?, events=?, input_tokens=?, output_tokens=? WHERE key=?"
# The columns that have an index stand only here: most batches leave them as they are.
_WHOLE = (
    "UPDATE trajectories SET agent=?, status=?, score=?, finished_at=?, answer=?, error=?, asked=?,"
    " updated_at=?, steps=?, events=?, input_tokens=?, output_tokens=? WHERE key=?"
)

_REWARD = b'{"kind":"reward"'


class Known(Struct):
    """A log as the writer knows it: the number of its trajectory and the tally up to its last event."""

    key: int
    tally: Tally


def recall(connection: sqlite3.Connection, id: str) -> Known | None:
    """A trajectory as it stands in the file; None if it is not there."""
    row = connection.execute(_RECALL, (id,)).fetchone()
    if row is None:
        return None
    agent, status, score, started, updated, finished, steps, events, inputs, outputs, answer, error, forked = row[5:18]
    key = row[19]
    scored = Score(score) if score is not None else _scored(connection, id, key, forked is not None)
    tally = Tally(
        id=id, task=TaskInfo(*row[:5]), agent=agent, ended=None if finished is None else status, scored=scored,
        started_at=started, updated_at=updated, finished_at=finished, steps=steps, events=events,
        input_tokens=inputs, output_tokens=outputs, answer=answer, error=error, forked_from=forked,
        asked=msgspec.json.decode(row[18] or b"[]", type=list[tuple[str, str | None]]), changed=False,
    )  # fmt: skip
    return Known(key, tally)


def _scored(connection: sqlite3.Connection, id: str, key: int, forked: bool) -> Score:
    """The score as the events tell it, where the list says that there is none: a reward may have failed."""
    score = Score()
    if forked:
        events = compose(connection, "", id)
    else:
        found = connection.execute(
            "SELECT data FROM events WHERE key >= ? AND key < ? AND substr(data, 1, ?) = ? ORDER BY key",
            (key << SEQ_BITS, (key + 1) << SEQ_BITS, len(_REWARD), _REWARD),
        )
        events = [decode_event(data) for (data,) in found]
    for event in events:
        if isinstance(event, Rewarded):
            score.add(event)
    return score


def create(connection: sqlite3.Connection, url: str, id: str, started: Started) -> Known:
    """Add a trajectory; a fork begins with the tally of what it shares.

    Raises `TaskError` if a fork's parent is unknown or shorter than it says, `StoreError` for a wrong number.
    """
    fork, parent, tally = started.forked_from, None, Tally(id=id, task=started.task)
    if fork is None and started.seq != 0:
        raise out_of_order(id, url, started.seq, 0)
    if fork is not None:
        row = connection.execute("SELECT key FROM trajectories WHERE id = ?", (fork.id,)).fetchone()
        if row is None:
            raise unknown_trajectory(fork.id, url, nearest(connection, fork.id))
        parent = row[0]
        tally = Tally.of(id, check_fork(id, started, compose(connection, url, fork.id, until=fork.seq)))
    task = started.task
    cursor = connection.execute(
        "INSERT INTO trajectories (id, task_id, task_name, group_id, session_id, user_id, status, started_at,"
        " updated_at, steps, events, forked_from, parent, first) VALUES (?,?,?,?,?,?,'running',?,?,0,0,?,?,?)",
        (
            id, task.id, task.name, task.group_id, task.session_id, task.user_id, started.at, started.at,
            fork.id if fork else None, parent, started.seq,
        ),
    )  # fmt: skip
    assert cursor.lastrowid is not None  # an insert that succeeded has one
    return Known(cursor.lastrowid, tally)


def write_tallies(connection: sqlite3.Connection, touched: dict[str, Known]) -> None:
    """Bring the list of trajectories up to date with the tallies."""
    running: list[tuple[Any, ...]] = []
    whole: list[tuple[Any, ...]] = []
    for known in touched.values():
        t = known.tally
        figures = (t.updated_at, t.steps, t.events, t.input_tokens, t.output_tokens, known.key)
        if t.changed:
            asked = msgspec.json.encode(t.asked) if t.asked else None
            whole.append((t.agent, t.status, t.scored.value, t.finished_at, t.answer, t.error, asked, *figures))
            t.changed = False
        else:
            running.append(figures)
    if running:
        connection.executemany(_RUNNING, running)
    if whole:
        connection.executemany(_WHOLE, whole)


def remove(connection: sqlite3.Connection, url: str, id: str, forks: bool) -> list[str]:
    """Delete a trajectory, and with `forks` those forked from it, in one transaction; the ids that are gone.

    Raises `TaskError` if unknown, `StoreError` if others were forked from it and `forks` is not set.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        found = connection.execute(
            "WITH RECURSIVE doomed(key, id, depth) AS (SELECT key, id, 0 FROM trajectories WHERE id = ? UNION ALL"
            " SELECT t.key, t.id, depth + 1 FROM trajectories t JOIN doomed ON t.parent = doomed.key)"
            " SELECT key, id, depth FROM doomed",
            (id,),
        ).fetchall()
        if not found:
            raise unknown_trajectory(id, url, nearest(connection, id))
        if len(found) > 1 and not forks:
            raise has_forks(id, url, [child for _, child, depth in found if depth == 1])
        for key, _, _ in found:
            connection.execute(
                "DELETE FROM events WHERE key >= ? AND key < ?", (key << SEQ_BITS, (key + 1) << SEQ_BITS)
            )
            connection.execute("DELETE FROM trajectories WHERE key = ?", (key,))
        connection.execute("COMMIT")
    except BaseException:
        roll_back(connection)
        raise
    return [gone for _, gone, _ in found]


def vacuum(connection: sqlite3.Connection) -> None:
    """Rewrite the file without its free pages."""
    connection.execute("VACUUM")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
