"""The SQLite store among threads, loops, processes and versions."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import sqlite3
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest

from aworld.core.event import Event, Rewarded, StateSet
from aworld.core.exceptions import ConfigError, StoreError
from aworld.trajectory import Query, Summary, sqlite_file
from aworld.trajectory.sqlite import Pending, SQLiteStore
from tests.strategies import run_of

FIXTURE = Path(__file__).with_name("schema_1.sql")


async def test_an_append_is_acknowledged_when_another_connection_sees_it(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "runs.db")
    for n in range(20):
        await store.append(f"run-{n}", run_of(f"run-{n}"))
        other = sqlite3.connect(tmp_path / "runs.db")
        assert other.execute("SELECT count(*) FROM trajectories").fetchone() == (n + 1,)
        other.close()
    await store.close()


async def test_what_nobody_waits_for_is_written_after_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, other = SQLiteStore(tmp_path / "runs.db"), SQLiteStore(tmp_path / "runs.db")
    log = run_of("run")
    await store.append("run", log[:2])
    wakes: list[None] = []
    wake = store._writer.wake
    monkeypatch.setattr(store._writer, "wake", lambda: (wakes.append(None), wake()))
    for event in log[2:5]:
        store.append("run", [event], wait=False)
    assert wakes == []
    async with asyncio.timeout(5):
        while len(await other.read("run")) < 5:
            pass
    assert len(wakes) <= 1  # one timer for the three, and none when the writer was still awake
    wakes.clear()
    store.append("run", log[5:6], wait=False)
    await store.append("run", log[6:])  # takes the event before it along
    assert len(wakes) <= 1
    assert await other.read("run") == log
    await other.close()
    await store.close()


async def test_many_tasks_of_several_loops_share_a_store(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "runs.db")

    async def one(id: str) -> None:
        for event in run_of(id, steps=3):
            await store.append(id, [event])

    async def many(name: int) -> None:
        await asyncio.gather(*(one(f"{name}-{n}") for n in range(20)))

    threads = [threading.Thread(target=asyncio.run, args=(many(name),)) for name in range(4)]
    for thread in threads:
        thread.start()
    await many(9)
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert await store.count() == 100
    assert all(events == run_of(summary.id, steps=3) for summary, events in store.scan())
    await store.close()


def test_plain_synchronous_code_appends_too(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "runs.db")
    log = run_of("run")
    pending = store.append("run", log)
    assert isinstance(pending, Pending)
    pending.result(5)
    store.append("run", [Rewarded(seq=len(log), at=2e9, value=1.0)], wait=False)

    async def score() -> float | None:
        await store.append("run", [Rewarded(seq=len(log) + 1, at=2e9, value=1.0)])
        return (await store.query())[0].score

    assert asyncio.run(score()) == 2.0
    with pytest.raises(StoreError, match="another process"):
        asyncio.run(_awaited(store.append("run", log[-1:])))
    asyncio.run(store.close())


async def _awaited(pending: object) -> None:
    assert isinstance(pending, Pending)
    await pending


async def test_a_failure_that_nobody_waited_for_is_raised_at_the_next_chance(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "runs.db")
    log = run_of("a")
    await store.append("a", log)
    store.append("a", log[-1:], wait=False)
    store.append("b", [StateSet(seq=0, at=1.0, key="k")], wait=False)
    with pytest.raises(Exception, match="another process") as first:
        await store.flush()
    assert first.value.__notes__ == ["1 more trajectories could not be written"]
    await store.flush()
    store.append("a", log[-1:], wait=False)
    await store.read("a")
    with pytest.raises(StoreError, match="another process"):
        store.append("a", [Rewarded(seq=len(log), at=1.0, value=1.0)])
    with pytest.raises(StoreError, match="another process"):  # what follows the lost one, which filled its place
        await store.append("a", [Rewarded(seq=len(log), at=1.0, value=1.0)])
    lease = await store.claim("a")  # who reads the log anew may go on
    await store.append("a", [Rewarded(seq=len(log), at=1.0, value=1.0)])
    store.release(lease)
    await store.close()


async def test_what_follows_a_lost_event_says_why_it_was_lost(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "runs.db", timeout=0.01)
    log = run_of("run", steps=2)
    await store.append("run", log[:4])
    locked = sqlite3.connect(tmp_path / "runs.db", isolation_level=None)
    locked.execute("BEGIN IMMEDIATE")
    store.append("run", log[4:5], wait=False)
    with pytest.raises(StoreError, match="locked"):
        await store.flush()
    locked.execute("ROLLBACK")
    locked.close()
    for event in log[5:7]:
        with pytest.raises(StoreError, match="locked"):
            await store.append("run", [event])
    assert await store.read("run") == log[:4]
    await store.append("run", log[4:])  # who reads what is there can go on
    assert await store.read("run") == log
    await store.close()


async def test_an_event_that_is_no_json_is_refused_and_the_rest_goes_on(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "runs.db")
    log = run_of("run")
    await store.append("run", log)
    with pytest.raises(
        StoreError, match="StateSet of trajectory 'run' could not be read back and was not written: Encoding"
    ):
        store.append("run", [StateSet(seq=len(log), at=1.0, key="k", value=object())])
    await store.append("run", [StateSet(seq=len(log), at=1.0, key="k", value=1)])
    await store.close()


async def test_an_event_is_stored_as_it_was_when_it_was_appended(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "runs.db")
    value = {"count": 1}
    log = run_of("run", status="running")
    await store.append("run", log)
    pending = store.append("run", [StateSet(seq=len(log), at=1.0, key="k", value=value)])
    value["count"] = 2
    await pending
    last = (await store.read("run"))[-1]
    assert isinstance(last, StateSet)
    assert last.value == {"count": 1}
    await store.close()


async def test_a_cancelled_wait_does_not_undo_the_append(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "runs.db")
    task = asyncio.ensure_future(store.append("run", run_of("run")))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await store.read("run") == run_of("run")
    await store.close()


async def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "runs.db")
    store.append("run", run_of("run"), wait=False)
    await store.close()
    await store.close()
    for attempt in (lambda: store.append("run", run_of("run")), lambda: store.delete("run")):
        with pytest.raises(StoreError, match="the store is closed"):
            await attempt()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs.db"]
    again = SQLiteStore(tmp_path / "runs.db")
    assert await again.read("run") == run_of("run")
    await again.close()


async def test_a_store_that_was_dropped_writes_what_is_queued_and_ends_its_thread(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "runs.db")
    await store.append("run", run_of("run")[:1])
    store.append("run", run_of("run")[1:], wait=False)
    thread = next(thread for thread in threading.enumerate() if str(tmp_path) in thread.name)
    gone = weakref.ref(store)
    del store
    gc.collect()
    assert gone() is None
    await asyncio.to_thread(thread.join, 5)
    assert not thread.is_alive()
    again = SQLiteStore(tmp_path / "runs.db")
    assert await again.read("run") == run_of("run")
    await again.close()


async def test_a_store_that_was_dropped_before_its_thread_began_writes_what_is_queued(tmp_path: Path) -> None:
    SQLiteStore(tmp_path / "runs.db").append("run", run_of("run"), wait=False)
    gc.collect()
    for thread in threading.enumerate():
        if str(tmp_path) in thread.name:
            await asyncio.to_thread(thread.join, 5)
    again = SQLiteStore(tmp_path / "runs.db")
    assert await again.read("run") == run_of("run")
    await again.close()


async def test_where_no_thread_can_begin_a_dropped_store_writes_what_is_queued_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SQLiteStore(tmp_path / "runs.db")
    store.append("run", run_of("run"), wait=False)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", _refuse)
        del store
        gc.collect()
    assert (tmp_path / "runs.db").exists()
    again = SQLiteStore(tmp_path / "runs.db")
    assert await again.read("run") == run_of("run")
    await again.close()


def _refuse(_: threading.Thread) -> None:
    """What Python does at the interpreter's end, from 3.12 on, and any system that is short of threads."""
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("awaited_before", [True, False])
def test_what_is_queued_is_written_when_the_interpreter_ends(tmp_path: Path, awaited_before: bool) -> None:
    code = f"""
import asyncio
from aworld.trajectory import open_store
from tests.strategies import run_of
store = open_store({str(tmp_path / "runs.db")!r})
async def main():
    if {awaited_before}:
        await store.append("before", run_of("before"))
    store.append("run", run_of("run"), wait=False)
asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
    store = SQLiteStore(tmp_path / "runs.db")
    assert asyncio.run(store.read("run")) == run_of("run")
    asyncio.run(store.close())


def _in_child(store: SQLiteStore) -> None:
    asyncio.run(_append_and_flush(store))
    os._exit(0)


async def _append_and_flush(store: SQLiteStore) -> None:
    await store.append("child", run_of("child"))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # that is the point
def test_a_forked_process_writes_with_a_thread_of_its_own(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "runs.db")
    asyncio.run(_append_and_flush(SQLiteStore(tmp_path / "other.db")))
    asyncio.run(_parent(store))
    child = multiprocessing.get_context("fork").Process(target=_in_child, args=(store,))
    child.start()
    child.join(20)
    assert child.exitcode == 0
    assert sorted(summary.id for summary in asyncio.run(store.query())) == ["child", "parent"]
    asyncio.run(store.close())


async def _parent(store: SQLiteStore) -> None:
    await store.append("parent", run_of("parent"))


async def test_a_file_that_is_not_there_reads_as_empty_and_is_not_made(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "runs.db")
    assert await store.query() == []
    assert await store.count(Query(status=("failed",))) == 0
    assert list(store.scan()) == []
    assert list(tmp_path.iterdir()) == []
    await store.close()


async def test_a_file_of_schema_version_1_is_read_and_written(tmp_path: Path) -> None:
    """The file was written by the first version; this test stays as it is when the schema goes on."""
    path = tmp_path / "old.db"
    with sqlite3.connect(path) as connection:
        connection.executescript(FIXTURE.read_text())
    connection.close()
    store = SQLiteStore(path)
    found = await store.query(Query(order="oldest"))
    assert [(summary.id, summary.status, summary.score) for summary in found] == [
        ("old-run", "finished", 1.0),
        ("old-fork", "failed", None),
    ]
    log = await store.read("old-fork")
    assert [event.seq for event in log] == list(range(len(log)))
    await store.append("old-fork", [Rewarded(seq=len(log), at=2e9, value=0.5)])
    await store.append("new", run_of("new"))
    assert await store.count(Query(min_score=0.5)) == 2
    await store.close()


async def test_an_older_file_is_brought_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = SQLiteStore(tmp_path / "runs.db")
    await old.append("run", run_of("run"))
    await old.close()
    steps = (*sqlite_file.MIGRATIONS, "ALTER TABLE trajectories ADD COLUMN colour TEXT DEFAULT 'blue'")
    monkeypatch.setattr(sqlite_file, "MIGRATIONS", steps)
    monkeypatch.setattr("aworld.trajectory.sqlite.MIGRATIONS", steps)
    new = SQLiteStore(tmp_path / "runs.db")
    assert await new.read("run") == run_of("run")
    await new.close()
    connection = sqlite3.connect(tmp_path / "runs.db")
    assert connection.execute("SELECT colour FROM trajectories").fetchall() == [("blue",)]
    assert connection.execute("PRAGMA user_version").fetchone() == (3,)
    connection.close()


async def test_a_newer_file_is_left_alone(tmp_path: Path) -> None:
    old = SQLiteStore(tmp_path / "runs.db")
    await old.append("run", run_of("run"))
    await old.close()
    with sqlite3.connect(tmp_path / "runs.db") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    store = SQLiteStore(tmp_path / "runs.db")
    for attempt in (lambda: store.read("run"), lambda: store.append("new", run_of("new"))):
        with pytest.raises(StoreError, match=r"runs.db .*newer AWorld \(schema version 99, known here: 2\); open it"):
            await attempt()
    await store.close()


def test_settings_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="synchronous='maybe'"):
        SQLiteStore(tmp_path / "runs.db", synchronous="maybe")


async def test_synchronous_full_is_taken(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "runs.db", synchronous="full")
    await store.append("run", run_of("run"))
    assert await asyncio.wrap_future(store._writer.call(_synchronous)) == 2
    await store.close()


def _synchronous(connection: sqlite3.Connection) -> int:
    return connection.execute("PRAGMA synchronous").fetchone()[0]


async def test_ten_thousand_waiting_appends_slow_down_who_need_not_wait(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "runs.db")
    log: list[Event] = run_of("run", status="running")
    await store.append("run", log)
    go_on = threading.Event()
    busy = store._writer.call(lambda _: go_on.wait())
    last = None
    for n in range(10_100):
        last = store.append("run", [StateSet(seq=len(log) + n, at=1.0, key="k", value=n)], wait=False)
    go_on.set()
    assert isinstance(last, asyncio.Future)
    await last
    assert busy.done()
    assert len(await store.read("run")) == len(log) + 10_100
    await store.close()


async def test_a_summary_is_the_same_after_the_writer_forgot_the_run(tmp_path: Path) -> None:
    log = run_of("run", steps=4, score=0.5)
    summaries: list[list[Summary]] = []
    for parts in (1, len(log)):
        path = tmp_path / f"{parts}.db"
        for part in range(parts):
            store = SQLiteStore(path)
            await store.append("run", log[part * len(log) // parts : (part + 1) * len(log) // parts])
            summaries.append(await store.query())
            await store.close()
    assert summaries[0] == summaries[-1]


async def test_a_closed_store_is_one_file(tmp_path: Path) -> None:
    store = SQLiteStore(str(tmp_path / "runs.db"))
    await store.append("run", run_of("run"))
    assert await store.count() == 1  # a reader, which could keep the log from being moved into the file
    await store.close()
    assert [path.name for path in tmp_path.iterdir()] == ["runs.db"]
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    (copy / "runs.db").write_bytes((tmp_path / "runs.db").read_bytes())
    opened = SQLiteStore(str(copy / "runs.db"))
    assert await opened.read("run") == run_of("run")
    await opened.close()
