"""Files of earlier versions are brought up to date where they are, whole or not at all."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from aworld.core.event import Rewarded
from aworld.core.trajectory import Trajectory
from aworld.trajectory import Query, open_store
from aworld.trajectory.export import FORMATS, export
from aworld.trajectory.sqlite_file import connect
from aworld.trajectory.summary import COLUMNS, Tally

FIXTURES = Path(__file__).with_name("fixtures")
PLAIN = ["first", "second", "half", "fork", "waiting", "rewarded"]
EPISODES = {
    "nightly.1.7.aa4e299d.0": ("7", "0", "0"),
    "nightly.1.7.aa4e299d.1": ("7", "1", "0"),
    "nightly.1.7.aa4e299d.1~1": ("7", "1", "1"),
    "nightly.1.problem.980d4b02.0": ("of two words", "0", "0"),
    "nightly.1.problem.980d4b02.1": ("of two words", "1", "0"),
}


@pytest.fixture
def old(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy of the store that the first code of a schema wrote."""
    return Path(shutil.copy(FIXTURES / f"schema_{request.param}.db", tmp_path / "old.db"))


def test_a_new_file_has_the_columns_of_a_summary(tmp_path: Path) -> None:
    connection = connect(str(tmp_path / "new.db"))
    types = {row[1]: (row[2], bool(row[3])) for row in connection.execute("PRAGMA table_info(trajectories)")}
    names = {str: "TEXT", int: "INTEGER", float: "REAL"}
    for column in COLUMNS.values():
        assert types[column.name] == (names[column.type], not column.optional)
    connection.close()


@pytest.mark.parametrize("old", [1, 2], indirect=True)
async def test_the_list_of_an_old_file_is_the_fold_of_its_logs(old: Path) -> None:
    store = open_store(str(old))
    for summary in await store.query():
        fold = Tally.of(summary.id, await store.read(summary.id)).summary()
        if summary.id in EPISODES:
            problem, sample, attempt = EPISODES[summary.id]
            labels = {"run": "nightly.1", "problem": problem, "sample": sample, "attempt": attempt}
            assert summary.labels == labels
            assert (summary.session_id, summary.environment) == (None, "doubling")
            changed = {"labels": labels, "session_id": None}
            assert {name: getattr(summary, name) for name in summary.__struct_fields__} == {
                name: changed.get(name, getattr(fold, name)) for name in fold.__struct_fields__
            }
        else:
            assert summary == fold
    assert (await store.query(Query(ids=("waiting",))))[0].cost == 0.25
    assert await store.count(Query(session="ann-1")) == 1
    assert {facet.value for facet in (await store.facets(["model"]))["model"]} == {"model-1"}
    await store.close()


@pytest.mark.parametrize("old", [2], indirect=True)
async def test_episodes_of_an_old_file_are_found_by_their_labels(old: Path) -> None:
    store = open_store(str(old))
    found = await store.query(Query(labels={"run": "nightly.1", "problem": "7"}, order="id"))
    assert [summary.id for summary in found] == [id for id in EPISODES if ".7." in id]
    assert await store.count(Query(session="nightly.1")) == 0
    assert await store.count() == len(PLAIN) + len(EPISODES)
    await store.close()


@pytest.mark.parametrize("old", [1, 2], indirect=True)
async def test_an_old_file_is_read_exported_and_written(old: Path, tmp_path: Path) -> None:
    store = open_store(str(old))
    assert [s.id for s in await store.query(Query(order="oldest", session="ann-1"))] == ["first"]
    half = Trajectory.of("half", await store.read("half"))
    assert (half.status, half.next_step, half.started is not None) == ("running", 1, True)
    waiting = Trajectory.of("waiting", await store.read("waiting"))
    assert [question.id for question in waiting.open_questions()] == ["q1"]
    for format in FORMATS:
        export(store, format, tmp_path / format)
    assert "What is twice 21?" in (tmp_path / "rows").read_text()
    lines = (tmp_path / "swift").read_text().splitlines()
    assert sum('"problem_id":"7"' in line for line in lines) == (3 if await store.count(prefix(EPISODES)) else 0)
    await store.append("half", [Rewarded(seq=len(half.events), at=2e9, value=1.0)])
    assert (await store.query(Query(ids=("half",))))[0].score == 1.0
    await store.close()


def prefix(ids: Any) -> Query:
    return Query(prefix=next(iter(ids))[:10])


def asked(path: Path, statement: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchall()


KILLED = """
import os, signal, sqlite3, sys
from aworld.trajectory import sqlite_file

class Dying(sqlite3.Connection):
    def execute(self, statement, *values):
        if statement.lstrip().startswith(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().execute(statement, *values)

connect = sqlite3.connect
sqlite3.connect = lambda *a, **k: connect(*a, factory=Dying, **k)
sqlite_file.connect(sys.argv[1])
"""


@pytest.mark.parametrize("old", [2], indirect=True)
@pytest.mark.parametrize("at", ["CREATE TABLE cohorts", "UPDATE trajectories SET env", "INSERT INTO cohorts",
                                "DROP INDEX trajectories_score", "PRAGMA user_version =", "COMMIT"])  # fmt: skip
def test_a_migration_that_is_killed_loses_nothing_and_is_done_at_the_next_opening(old: Path, at: str) -> None:
    before = asked(old, "SELECT id, events FROM trajectories ORDER BY id")
    died = subprocess.run([sys.executable, "-c", KILLED, str(old), at], timeout=60)
    assert died.returncode == -9
    assert asked(old, "PRAGMA user_version") == [(1,)]

    async def look() -> None:
        store = open_store(str(old))
        assert sorted((summary.id, summary.events) for summary in await store.query()) == before
        assert await store.count(Query(labels={"run": "nightly.1"})) == len(EPISODES)
        await store.close()

    asyncio.run(look())
