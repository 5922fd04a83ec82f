"""The SQLite file of a store: its tables, their versions, how it is opened, and what its failures mean.

An event's key is one integer, its trajectory's number times 2**24 plus its place in the log. As the row id of the
table it makes a log lie in one piece, in order, and be unique in each place; a batch costs 6 µs an event, where a
`PRIMARY KEY (trajectory, seq) WITHOUT ROWID` took 13 and half as much space again (events of 300 B to 2 KB).
Changing a table means adding a step to `MIGRATIONS`.
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from shutil import disk_usage
from typing import TypeAlias
from urllib.parse import quote

from aworld.core.exceptions import AWorldError, StoreError, TaskError
from aworld.trajectory.sqlite_reader import compose
from aworld.trajectory.summary import Tally

APPLICATION_ID = 0x41576C64
"""`AWld`, the mark by which `file` and we tell this file from other databases."""

PAGE_SIZE = 4096
"""Bytes; SQLite's default."""


def connect(path: str, *, synchronous: str = "normal", timeout: float = 30.0) -> sqlite3.Connection:
    """A connection that writes; the file, its folders and its tables are made or brought up to date.

    `timeout` is in seconds. Raises `StoreError` when the file cannot be used.
    """
    connection = None
    try:
        make_file(Path(path))
        connection = sqlite3.connect(path, timeout=timeout, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA trusted_schema = OFF")  # what stands in a file of a stranger may call nothing
        begin_log(connection, timeout)
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute("PRAGMA wal_autocheckpoint = 0")  # the writer does it, where nobody waits
        connection.execute("PRAGMA journal_size_limit = 67108864")
        migrate(connection, path)
    except (OSError, sqlite3.Error, StoreError) as error:
        if connection is not None:
            connection.close()
        raise explain(path, error) from error
    return connection


def make_file(path: Path) -> None:
    """Make the file and the folders that are missing, for their owner alone: what agents say is nobody else's. SQLite
    gives what it puts beside the file the permissions of the file."""
    make_folders(path.parent)
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def make_folders(path: Path) -> None:
    """Make a folder and those above it that are missing, for their owner alone. Git leaves `.aworld` out: what agents
    were told must not be committed by accident."""
    for folder in reversed([folder for folder in (path, *path.parents) if not folder.exists()]):
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.name == ".aworld":
            (folder / ".gitignore").write_text("*\n", encoding="utf-8")


Identity: TypeAlias = "tuple[tuple[int, int] | None, tuple[int, int] | None]"


def identity(path: str) -> Identity:
    """What tells a file and the log beside it from others that are put in their places; None for what is not there."""
    return _inode(path), _inode(path + "-wal")


def _inode(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def begin_log(connection: sqlite3.Connection, timeout: float) -> None:
    """Write ahead from now on. Processes that make the same file at the same moment are refused without a wait."""
    until = time.monotonic() + timeout
    while True:
        try:
            connection.execute("PRAGMA journal_mode = wal")
        except sqlite3.OperationalError as error:
            if family(error) != "SQLITE_BUSY" or time.monotonic() >= until:
                raise
            time.sleep(0.005)
        else:
            return


def empty() -> sqlite3.Connection:
    """An empty store in memory: what one reads of a file that is not there."""
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    migrate(connection, ":memory:")
    return connection


def connect_to_read(path: str, *, timeout: float = 30.0) -> sqlite3.Connection:
    """A connection that cannot write. Raises `StoreError`; the file must be there."""
    address = f"file:{quote(os.path.abspath(path))}?mode=ro"
    try:
        connection = sqlite3.connect(address, uri=True, timeout=timeout, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA trusted_schema = OFF")
        try:
            check_version(connection, path)
        except sqlite3.OperationalError as error:
            # A store that was closed well, in a folder where nothing can be written: WAL needs a file beside it,
            # unless SQLite is told that nobody writes.
            if family(error) not in ("SQLITE_CANTOPEN", "SQLITE_READONLY") or os.path.exists(path + "-wal"):
                raise
            connection.close()
            connection = sqlite3.connect(
                address + "&immutable=1", uri=True, isolation_level=None, check_same_thread=False
            )
            connection.execute("PRAGMA trusted_schema = OFF")
            check_version(connection, path)
    except sqlite3.Error as error:
        raise explain(path, error) from error
    return connection


def check_version(connection: sqlite3.Connection, path: str) -> int:
    """The version of a file's tables, 0 for an empty file. Raises `StoreError` for a newer or a foreign file."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    application: int = connection.execute("PRAGMA application_id").fetchone()[0]
    tables, odd = connection.execute(
        "SELECT count(*), total(type IN ('view', 'trigger') OR sql LIKE 'CREATE VIRTUAL%') FROM sqlite_master"
    ).fetchone()
    if application != APPLICATION_ID and tables:
        # Another connection may have made the tables between the questions: then the mark is there now.
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application != APPLICATION_ID and tables:
        raise StoreError(f"store={path} | a SQLite file of another program; give the store a file of its own")
    if odd:
        raise StoreError(f"store={path} | it has views, triggers or virtual tables, and no store has; use another file")
    if version > len(MIGRATIONS):
        raise StoreError(
            f"store={path} | written by a newer AWorld (schema version {version}, known here: {len(MIGRATIONS)}); "
            "open it with that version, or use another file"
        )
    return version


def migrate(connection: sqlite3.Connection, path: str) -> None:
    """Bring the tables up to the newest version, in one transaction."""
    if check_version(connection, path) == len(MIGRATIONS):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = check_version(connection, path)  # again, under the lock: another process may have been first
        for step in MIGRATIONS[version:]:
            if isinstance(step, str):
                _run_script(connection, step)
            else:
                step(connection)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        connection.execute("COMMIT")
    except BaseException:
        roll_back(connection)
        raise


def roll_back(connection: sqlite3.Connection) -> None:
    """End a transaction that failed, unless SQLite did so itself."""
    if connection.in_transaction:
        connection.execute("ROLLBACK")


_REMEDIES = {
    "SQLITE_FULL": "the disk is full; make room and go on, what was acknowledged is safe",
    "SQLITE_READONLY": "the file or its folder cannot be written; change its permissions or give another path",
    "SQLITE_CANTOPEN": "the file cannot be opened or made; look at the path and the permissions of its folder",
    "SQLITE_PERM": "the file cannot be opened; look at its permissions",
    "SQLITE_BUSY": "another process holds the file locked; end that process or raise ?timeout= (seconds)",
    "SQLITE_LOCKED": "the file is locked; end what holds it or raise ?timeout= (seconds)",
    "SQLITE_NOTADB": "not a SQLite file; give the store a path of its own",
    "SQLITE_CORRUPT": "the file is damaged; save what is left with `sqlite3 FILE .recover` and use a new file",
    "SQLITE_IOERR_SHORT_READ": "the -wal beside it was removed or cut off while it was open; end what has it open, and "
    "open it again: what was written lately may be lost",
    "SQLITE_IOERR": "the disk takes or gives no data (full, a limit on file sizes, or failing); see to it and go on",
    "SQLITE_TOOBIG": "an event is larger than SQLite's limit of 1 GB",
}

PARTICULAR = ("SQLITE_TOOBIG", "SQLITE_CONSTRAINT", "SQLITE_FULL", "SQLITE_MISMATCH", "SQLITE_IOERR")
"""Failures that may be of one trajectory's events only: the others of the batch are tried again."""


def family(error: BaseException) -> str:
    """The name of SQLite's primary code for an error, `` for other errors."""
    return "_".join(getattr(error, "sqlite_errorname", "").split("_")[:2])


def explain(path: str, error: BaseException) -> AWorldError:
    """What a failure of the file means and what to do; errors of ours are their own explanation."""
    if isinstance(error, AWorldError):
        return error
    if isinstance(error, sqlite3.Error):
        name = "SQLITE_FULL" if family(error) in _FULL and _is_full(path) else error.sqlite_errorname
        remedy = _REMEDIES.get(name) or _REMEDIES.get(family(error))
        return StoreError(f"store={path} | {error}" + (f": {remedy}" if remedy else ""))
    if isinstance(error, OSError):
        return StoreError(f"store={path} | {error}: the folder cannot be made or used; look at its permissions")
    if isinstance(error, UnicodeEncodeError):
        return TaskError(f"store={path} | nothing in it is named by a text with lone surrogates: {error}")
    if isinstance(error, OverflowError):
        return StoreError(f"store={path} | {error}: a number in it is larger than SQLite can hold")
    return StoreError(f"store={path} | the writer failed: {error!r}; this is a bug, please report it")


_FULL = ("SQLITE_IOERR", "SQLITE_CANTOPEN")
"""What SQLite also says of a disk on which there is no room for a file beside the file."""


def _is_full(path: str) -> bool:
    try:
        return disk_usage(os.path.dirname(path)).free < 1 << 16
    except OSError:
        return False


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
    _run_script(connection, _VERSION_2)
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
    _run_script(connection, _INDEXES_2)


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


def _run_script(connection: sqlite3.Connection, script: str) -> None:
    for statement in script.split(";"):
        connection.execute(statement)


MIGRATIONS: tuple[Step, ...] = (_VERSION_1, _to_version_2)
"""The steps by which the tables came to be as they are, one a version. A new file takes all of them. All that a file
lacks are taken in one transaction, so one that is interrupted has changed nothing. What is here is never edited."""
