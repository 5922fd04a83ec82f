"""The steps by which the tables of a SQLite store came to be as they are. A new file takes all of them.

A step is a script or a function of the connection; all that a file lacks are taken in one transaction, so one that is
interrupted has changed nothing. What is here already is never edited. `events.key` = `trajectories.key` << 24 | seq.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from typing import TypeAlias

from aworld.core.exceptions import StoreError
from aworld.trajectory.sqlite_reader import compose
from aworld.trajectory.summary import Tally

Step: TypeAlias = "str | Callable[[sqlite3.Connection], None]"

_VERSION_1 = """
    CREATE TABLE trajectories (
        key INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        task_id TEXT NOT NULL,
        task_name TEXT,
        group_id TEXT,
        session_id TEXT,
        user_id TEXT,
        agent TEXT,
        status TEXT NOT NULL,
        score REAL,
        started_at REAL NOT NULL,
        updated_at REAL NOT NULL,
        finished_at REAL,
        steps INTEGER NOT NULL,
        events INTEGER NOT NULL,
        input_tokens INTEGER,
        output_tokens INTEGER,
        answer TEXT,
        error TEXT,
        forked_from TEXT,
        parent INTEGER REFERENCES trajectories (key),
        first INTEGER NOT NULL,
        asked TEXT
    );
    CREATE INDEX trajectories_started ON trajectories (started_at);
    CREATE INDEX trajectories_task ON trajectories (task_id);
    CREATE INDEX trajectories_status ON trajectories (status, started_at);
    CREATE INDEX trajectories_group ON trajectories (group_id) WHERE group_id IS NOT NULL;
    CREATE INDEX trajectories_session ON trajectories (session_id) WHERE session_id IS NOT NULL;
    CREATE INDEX trajectories_score ON trajectories (score) WHERE score IS NOT NULL;
    CREATE INDEX trajectories_parent ON trajectories (parent) WHERE parent IS NOT NULL;
    CREATE TABLE events (
        key INTEGER PRIMARY KEY,
        data BLOB NOT NULL
    );
    """
"""`first` is the number of the first own event of a fork, 0 otherwise; `asked` is the JSON list of questions without a
reply."""

_VERSION_2 = """
    ALTER TABLE trajectories ADD COLUMN environment TEXT;
    ALTER TABLE trajectories ADD COLUMN model TEXT;
    ALTER TABLE trajectories ADD COLUMN version TEXT;
    ALTER TABLE trajectories ADD COLUMN cost REAL;
    ALTER TABLE trajectories ADD COLUMN duration REAL;
    ALTER TABLE trajectories ADD COLUMN notes INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE trajectories ADD COLUMN owner TEXT;
    ALTER TABLE trajectories ADD COLUMN lease_until REAL;
    ALTER TABLE trajectories ADD COLUMN cohort INTEGER;
    CREATE TABLE cohorts (
        key INTEGER PRIMARY KEY,
        status TEXT NOT NULL,
        agent TEXT NOT NULL,
        environment TEXT NOT NULL,
        model TEXT NOT NULL,
        trajectories INTEGER NOT NULL,
        UNIQUE (status, agent, environment, model)
    );
    CREATE TABLE notes (
        key INTEGER PRIMARY KEY AUTOINCREMENT, trajectory INTEGER NOT NULL, number INTEGER NOT NULL, data BLOB NOT NULL
    );
    CREATE UNIQUE INDEX notes_of ON notes (trajectory, number);
    CREATE TABLE labels (
        trajectory INTEGER NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (trajectory, name)
    ) WITHOUT ROWID;
    CREATE INDEX labels_of ON labels (name, value, trajectory);
    CREATE TABLE definitions (digest TEXT PRIMARY KEY, data BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE blobs (digest TEXT PRIMARY KEY, data BLOB NOT NULL)
    """
"""A cohort is the trajectories of one status, agent, environment and model (empty where there is none): its size is
kept, and each index by which lists are ordered holds it. A trajectory is filed under its cohort some time after its
end: one that filed itself would write a page of each index. `notes.key` orders the notes of all trajectories. `owner`
works on the run until `lease_until`."""

_INDEXES_2 = """
    DROP INDEX trajectories_status;
    DROP INDEX trajectories_score;
    DROP INDEX trajectories_task;
    DROP INDEX trajectories_started;
    CREATE INDEX order_started_at ON trajectories (started_at, key, cohort, score);
    CREATE INDEX order_score ON trajectories (score, key, cohort, started_at) WHERE cohort IS NOT NULL;
    CREATE INDEX order_cost ON trajectories (cost, key, cohort, started_at) WHERE cohort IS NOT NULL;
    CREATE INDEX order_duration ON trajectories (duration, key, cohort, started_at) WHERE cohort IS NOT NULL;
    CREATE INDEX order_cohort ON trajectories (cohort) WHERE cohort IS NOT NULL;
    CREATE INDEX trajectories_unfiled ON trajectories (started_at) WHERE cohort IS NULL;
    CREATE INDEX trajectories_task ON trajectories (task_id) WHERE task_id <> id;
    CREATE INDEX trajectories_user ON trajectories (user_id) WHERE user_id IS NOT NULL;
    CREATE INDEX trajectories_version ON trajectories (version) WHERE version IS NOT NULL
    """


def _to_version_2(connection: sqlite3.Connection) -> None:
    _run(connection, _VERSION_2)
    for key, id, task_name, session in connection.execute(
        "SELECT key, id, task_name, session_id FROM trajectories"
    ).fetchall():
        try:
            tally = Tally.of(id, compose(connection, "", id))
        except StoreError:  # a log that cannot be read is listed as it was
            tally = Tally(id=id, task_id=id)
        labels = _labels_of_episode(id, task_name or "", session, tally.environment)
        connection.execute(
            "UPDATE trajectories SET environment = ?, model = ?, cost = ?, session_id = ? WHERE key = ?",
            (tally.environment, tally.model, tally.cost, None if labels else session, key),
        )
        connection.executemany("INSERT INTO labels VALUES (?, ?, ?)", [(key, *label) for label in labels.items()])
    connection.execute("UPDATE trajectories SET duration = finished_at - started_at")
    cohort = "status, ifnull(agent, ''), ifnull(environment, ''), ifnull(model, '')"
    connection.execute(
        "INSERT INTO cohorts (status, agent, environment, model, trajectories) "
        f"SELECT {cohort}, count(*) FROM trajectories GROUP BY {cohort}"
    )
    connection.execute(
        "UPDATE trajectories SET cohort = "
        f"(SELECT key FROM cohorts AS c WHERE (c.status, c.agent, c.environment, c.model) = ({_of_outer(cohort)}))"
    )
    _run(connection, _INDEXES_2)


def _of_outer(columns: str) -> str:
    return re.sub(r"(status|agent|environment|model)", r"trajectories.\1", columns)


_EPISODE = re.compile(r"(.+)\.[0-9a-f]{8}\.(\d+)(?:~(\d+))?")


def _labels_of_episode(id: str, task_name: str, session: str | None, environment: str | None) -> dict[str, str]:
    """What the id and the name of an episode told in version 1, where the session was the run."""
    episode = _EPISODE.fullmatch(id[len(session) + 1 :]) if session and id.startswith(f"{session}.") else None
    if episode is None or session is None:
        return {}
    named = task_name.removeprefix(f"{environment}/")
    problem = named if environment and named != task_name else episode[1]
    return {"run": session, "problem": problem, "sample": episode[2], "attempt": episode[3] or "0"}


def _run(connection: sqlite3.Connection, script: str) -> None:
    for statement in script.split(";"):
        connection.execute(statement)


MIGRATIONS: tuple[Step, ...] = (_VERSION_1, _to_version_2)
"""One step a version."""


def take(connection: sqlite3.Connection, step: Step) -> None:
    """Take a step, in a transaction of the caller's."""
    if isinstance(step, str):
        _run(connection, step)
    else:
        step(connection)
