"""Reading a store at the moment when its tables are made."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from aworld.trajectory.sqlite_file import check_version, connect


def test_a_file_that_becomes_a_store_while_it_is_looked_at_is_not_taken_for_a_foreign_one(tmp_path: Path) -> None:
    path = str(tmp_path / "runs.db")
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("PRAGMA journal_mode = wal")

    def beside(statement: str) -> None:
        if "sqlite_master" in statement:  # the last of the questions: another thread makes the tables just before it
            reader.set_trace_callback(None)
            connect(path).close()

    reader.set_trace_callback(beside)
    try:
        check_version(reader, path)
    finally:
        reader.close()
