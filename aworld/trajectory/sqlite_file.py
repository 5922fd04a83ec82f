"""The SQLite file of a store: its tables, their versions, how it is opened, and what its failures mean.

An event's key is one integer, its trajectory's number times 2**24 plus its place in the log. As the row id of the
table it makes a log lie in one piece, in order, and be unique in each place; a batch costs 6 µs an event, where a
`PRIMARY KEY (trajectory, seq) WITHOUT ROWID` took 13 and half as much space again (events of 300 B to 2 KB).
Changing a table means adding a step to `MIGRATIONS` in `sqlite_migrations`.
"""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path
from urllib.parse import quote

from aworld.core.exceptions import StoreError
from aworld.trajectory.sqlite_migrations import MIGRATIONS, take

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
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=timeout, isolation_level=None, check_same_thread=False)
        _begin_log(connection, timeout)
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute("PRAGMA wal_autocheckpoint = 0")  # the writer does it, where nobody waits
        connection.execute("PRAGMA journal_size_limit = 67108864")
        migrate(connection, path)
    except (OSError, sqlite3.Error) as error:
        if connection is not None:
            connection.close()
        raise explain(path, error) from error
    except StoreError:
        if connection is not None:
            connection.close()
        raise
    return connection


def _begin_log(connection: sqlite3.Connection, timeout: float) -> None:
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
            check_version(connection, path)
    except sqlite3.Error as error:
        raise explain(path, error) from error
    return connection


def check_version(connection: sqlite3.Connection, path: str) -> int:
    """The version of a file's tables, 0 for an empty file. Raises `StoreError` for a newer or a foreign file."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    application: int = connection.execute("PRAGMA application_id").fetchone()[0]
    tables: int = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if application != APPLICATION_ID and tables:
        # Another connection may have made the tables between the questions: then the mark is there now.
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application != APPLICATION_ID and tables:
        raise StoreError(f"store={path} | a SQLite file of another program; give the store a file of its own")
    if version > len(MIGRATIONS):
        raise StoreError(
            f"store={path} | written by a newer AWorld (schema version {version}, known here: {len(MIGRATIONS)}); "
            "upgrade with pip install -U aworld, or use another file"
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
            take(connection, step)
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
    "SQLITE_IOERR": "the disk takes or gives no data (full, a limit on file sizes, or failing); see to it and go on",
    "SQLITE_TOOBIG": "an event is larger than SQLite's limit of 1 GB",
}

PARTICULAR = ("SQLITE_TOOBIG", "SQLITE_CONSTRAINT", "SQLITE_FULL", "SQLITE_MISMATCH", "SQLITE_IOERR")
"""Failures that may be of one trajectory's events only: the others of the batch are tried again."""


def family(error: BaseException) -> str:
    """The name of SQLite's primary code for an error, `` for other errors."""
    return "_".join(getattr(error, "sqlite_errorname", "").split("_")[:2])


def explain(path: str, error: Exception) -> StoreError:
    """What a failure of the file means and what to do, as a `StoreError`."""
    remedy = _REMEDIES.get(family(error))
    if isinstance(error, OSError):
        remedy = "the folder cannot be made or used; look at the path and its permissions"
    return StoreError(f"store={path} | {error}" + (f": {remedy}" if remedy else ""))
