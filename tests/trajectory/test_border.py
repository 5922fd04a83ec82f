"""What cannot be read back is refused before it is written; what was written so all the same holds nobody else up."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from aworld.cmd.main import main
from aworld.cmd.trajectory_view import status_text
from aworld.core.event import Commanded, Event, Labelled, Noted, Rewarded, Started, StateSet, TaskInfo
from aworld.core.exceptions import ConfigError, StoreError, TaskError
from aworld.trajectory import Query, TrajectoryStore, Where, open_store
from aworld.trajectory.export import export
from aworld.trajectory.sqlite import SQLiteStore
from tests.strategies import fork_of, run_of

SURROGATE: Any = "a\ud800"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SQLiteStore]:
    store = SQLiteStore(tmp_path / "runs.db")
    await store.append("good", run_of("good"))
    yield store
    await store.close()


def begun(**task: Any) -> Started:
    return Started(seq=0, at=1.0, trajectory_id="run", task=replace(TaskInfo("run"), **task))


def reward(**fields: Any) -> Rewarded:
    return replace(Rewarded(seq=-1, at=1.0, value=1.0), **fields)


MISFITS: list[Event] = [
    begun(id=7),
    begun(group_id=7),
    begun(name=7),
    begun(session_id=7),
    begun(user_id=7),
    begun(labels={"run": 7}),
    begun(name=SURROGATE),
    begun(labels={SURROGATE: "x"}),
    replace(begun(), conf=5),
    replace(begun(), agents={"a": {"prompt": SURROGATE}}, definitions={"a": "d1"}),
    replace(begun(), at=float("nan")),
]


@pytest.mark.parametrize("event", MISFITS, ids=str)
async def test_an_event_that_could_not_be_read_back_is_not_written(store: SQLiteStore, event: Event) -> None:
    with pytest.raises(StoreError, match=r"Started of trajectory 'run' could not be read back and was not written: \S"):
        await store.append("run", [event])
    log = run_of("run")
    await store.append("run", log[:1])
    with pytest.raises(StoreError, match="StateSet of trajectory 'run' could not be read back"):
        await store.append("run", [StateSet(seq=1, at=1.0, key="k", value=SURROGATE)])
    await store.append("run", log[1:])
    assert await store.read("run") == log
    assert await store.count() == 2


@pytest.mark.parametrize("kind", ["memory:", "sqlite"])
@pytest.mark.parametrize("note", [
    reward(name=5), reward(source=5), reward(step=True), reward(step=0.0), reward(name=SURROGATE),
    Noted(seq=-1, at=1.0, source="me", name=5), Labelled(seq=-1, at=1.0, labels={"split": 5}),  # pyright: ignore
    Commanded(seq=-1, at=1.0, action="steer", text=SURROGATE),
], ids=str)  # fmt: skip
async def test_a_note_that_could_not_be_read_back_is_not_written(kind: str, note: Any, tmp_path: Path) -> None:
    store = open_store(kind if kind == "memory:" else str(tmp_path / "runs.db"))
    await store.append("good", run_of("good")[:3])
    with pytest.raises(StoreError, match=r"of trajectory 'good' could not be read back and was not written: \S"):
        await store.note("good", [reward(name="fine"), note])
    assert await store.notes("good") == []
    assert await store.note("good", [reward(name="fine")]) == [0]
    await store.close()


@pytest.mark.parametrize("kind", ["memory:", "weak:", "sqlite"])
@pytest.mark.parametrize("id", [SURROGATE, 7, None])
async def test_what_is_no_id_is_refused_at_every_door(kind: str, id: Any, tmp_path: Path) -> None:
    store: TrajectoryStore = open_store(str(tmp_path / "runs.db") if kind == "sqlite" else kind)
    lease = await store.claim("good", new=True)
    await store.append("good", run_of("good"))

    async def claims() -> None:
        await store.claim(id)

    async def begins() -> None:
        await store.claim(id, new=True)

    async def appends() -> None:
        await store.append(id, run_of("good"))

    async def goes_on() -> None:
        store.append(id, [StateSet(seq=1, at=1.0, key="k")], wait=False)

    async def notes() -> None:
        await store.note(id, [reward()])

    for attempt in (claims, begins, appends, goes_on, notes):
        with pytest.raises(TaskError, match=r"trajectory id .*: give a text without lone surrogates"):
            await attempt()
    assert await store.read("good") == run_of("good")
    assert lease.lost is None
    await store.close()


async def test_what_no_text_can_be_is_asked_for_in_vain_and_harms_nobody(store: SQLiteStore) -> None:
    for attempt in (store.read, store.notes, store.delete, store.definition, store.blob):
        with pytest.raises(TaskError):
            await attempt(SURROGATE)
    for ask in (lambda: Query(prefix=SURROGATE), lambda: Where("labels.run", "=", SURROGATE), lambda: Query(after=5)):  # pyright: ignore
        with pytest.raises(ConfigError):
            ask()
    with store.hub.subscribe(SURROGATE, "good") as subscription:  # others are followed all the same
        other = SQLiteStore(store.path)
        await other.note("good", [reward()])
        async with asyncio.timeout(10):
            while not subscription.entries and "good" not in subscription.stale:
                await subscription.wait()
        await other.close()
    assert await store.read("good") == run_of("good")


async def test_a_job_that_raises_anything_fails_alone(store: SQLiteStore) -> None:
    class Odd(BaseException):
        pass

    def odd(_: sqlite3.Connection) -> None:
        raise Odd("what nobody thought of")

    before, failing = store.append("a", run_of("a")), store._writer.call(odd)
    after = store.append("b", run_of("b"))
    await before
    with pytest.raises(StoreError, match=r"the writer failed: Odd\('what nobody thought of'\); this is a bug"):
        await asyncio.wrap_future(failing)
    await after
    assert await store.read("b") == run_of("b")


def harm(path: Path, id: str) -> None:
    """Make a log such as earlier versions wrote, which took an int where text is meant."""
    with sqlite3.connect(path) as connection:
        (key,) = connection.execute("SELECT key FROM trajectories WHERE id = ?", (id,)).fetchone()
        connection.execute(
            "UPDATE events SET data = CAST(replace(CAST(data AS TEXT), ?, ?) AS BLOB) WHERE key = ?",
            ('"task":{', '"task":{"group_id":7,', key << 24),
        )
    connection.close()


async def test_one_log_that_cannot_be_read_holds_up_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "runs.db"
    store = SQLiteStore(path)
    for id in ("first", "old", "last"):
        await store.append(id, run_of(id))
    harm(path, "old")
    with pytest.raises(
        StoreError,
        match=r"the log of 'old' cannot be read: .*; restore the file, or remove this run by `aworld traj",
    ):
        await store.read("old")
    assert sorted(summary.id for summary in await store.query()) == ["first", "last", "old"]
    assert await store.count() == 3
    assert (await store.facets(["status"]))["status"][0].count == 3
    with caplog.at_level(logging.WARNING):
        assert sorted(summary.id for summary, _ in store.scan()) == ["first", "last"]
    assert "left out: store=" in caplog.text
    errors: list[StoreError] = []
    count = export(store, "rows", tmp_path / "rows.jsonl", on_unreadable=errors.append)
    assert count == len((tmp_path / "rows.jsonl").read_text().splitlines())
    assert ["the log of 'old' cannot be read" in str(error) for error in errors] == [True]
    await store.delete("old")
    assert export(store, "rows", tmp_path / "rows.jsonl", on_unreadable=errors.append) == count
    assert len(errors) == 1
    await store.close()


async def test_a_log_that_shares_its_beginning_with_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    store = SQLiteStore(path)
    log = run_of("run")
    await store.append("run", log)
    await store.append("fork", fork_of(log, "fork", 4, of="run"))
    await store.close()
    for parents in ({1: 1, 2: 2}, {1: 2, 2: 1}):
        with sqlite3.connect(path) as connection:
            connection.executemany(
                "UPDATE trajectories SET parent = ?, first = 3 WHERE key = ?", [(v, k) for k, v in parents.items()]
            )
        connection.close()
        store = SQLiteStore(path)
        async with asyncio.timeout(5):
            with pytest.raises(StoreError, match="log of 'run' cannot be read: it shares its beginning with itself"):
                await store.read("run")
            assert len(await store.query()) == 2
            assert list(store.scan(Query(ids=("run",)))) == []
        await store.close()
    store = SQLiteStore(path)
    async with asyncio.timeout(5):
        assert await store.delete("run", forks=True) >= 1
    await store.close()


@pytest.mark.parametrize("trick", [
    "ALTER TABLE trajectories RENAME TO t; CREATE VIEW trajectories AS SELECT * FROM t",
    "CREATE TRIGGER t AFTER INSERT ON events BEGIN DELETE FROM notes; END",
    "CREATE VIRTUAL TABLE words USING fts5(text)",
])  # fmt: skip
async def test_a_file_that_does_more_than_hold_data_is_refused(tmp_path: Path, trick: str) -> None:
    path = tmp_path / "runs.db"
    store = SQLiteStore(path)
    await store.append("run", run_of("run"))
    await store.close()
    with sqlite3.connect(path) as connection:
        connection.executescript(trick)
    connection.close()
    store = SQLiteStore(path)
    for attempt in (lambda: store.read("run"), store.query, lambda: store.append("new", run_of("new"))):
        with pytest.raises(StoreError, match="it has views, triggers or virtual tables, and no store has"):
            await attempt()
    await store.close()


async def test_what_stands_in_a_file_may_call_nothing(store: SQLiteStore) -> None:
    trusted = "PRAGMA trusted_schema"
    assert await store._read(lambda connection: connection.execute(trusted).fetchone()) == (0,)
    assert await asyncio.wrap_future(store._writer.call(lambda c: c.execute(trusted).fetchone())) == (0,)


async def test_a_status_that_nobody_knows_is_shown_as_it_is(store: SQLiteStore) -> None:
    with sqlite3.connect(store.path) as connection:
        connection.execute("UPDATE trajectories SET status = 'dreaming'")
    connection.close()
    assert [summary.status for summary in await store.query()] == ["dreaming"]
    assert status_text("dreaming").plain == "? dreaming"
    assert main(["trajectories", "list", "--store", store.path]) == 0
    assert main(["trajectories", "show", "good", "--store", store.path]) == 0


async def test_the_command_exports_the_others_and_says_which_it_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "runs.db"
    store = SQLiteStore(path)
    for id in ("first", "old"):
        await store.append(id, run_of(id))
    await store.close()
    harm(path, "old")
    status = await asyncio.to_thread(
        main, ["trajectories", "export", "--store", str(path), "--output", str(tmp_path / "x")]
    )
    assert status == 0
    said = capsys.readouterr().err
    assert "aworld: left out: store=" in said
    assert "the log of 'old' cannot be read: " in said
    assert "restore the file, or remove this run by `aworld trajectories delete`" in said
    assert len((tmp_path / "x").read_text().splitlines()) > 0


async def test_what_another_process_wrote_and_nobody_can_read_is_told_to_who_follows_it_alone(
    store: SQLiteStore,
) -> None:
    await store.append("bad", run_of("bad")[:3])
    lease = await store.claim("bad")
    heard = store.follow("bad")
    for _ in range(3):
        await anext(heard)
    with store.hub.subscribe("good") as subscription:
        with sqlite3.connect(store.path) as connection:  # an earlier version, which looked at no type
            (key,) = connection.execute("SELECT key FROM trajectories WHERE id = 'bad'").fetchone()
            event = b'{"kind":"state","seq":3,"at":1.0,"key":5}'
            connection.execute("INSERT INTO events VALUES (?, ?)", ((key << 24) + 3, event))
            connection.execute(
                "INSERT INTO notes (trajectory, number, data) VALUES (?, 0, ?)", (key, b'{"kind":"label"}')
            )
            connection.execute("UPDATE trajectories SET events = 4, notes = 1 WHERE key = ?", (key,))
        connection.close()
        async with asyncio.timeout(10):
            with pytest.raises(StoreError, match="the log of 'bad' cannot be read"):
                await anext(heard)
        other = SQLiteStore(store.path)
        await other.note("good", [reward()])
        async with asyncio.timeout(10):
            while not subscription.entries and "good" not in subscription.stale:
                await subscription.wait()
        await other.close()
    both = store.follow(["bad", "good"], after=-1)
    async with asyncio.timeout(10):
        assert (await anext(both))[0] == "good"
    await both.aclose()
    await store.append("new", run_of("new"))
    assert lease.lost is None
    assert await store.read("new") == run_of("new")
