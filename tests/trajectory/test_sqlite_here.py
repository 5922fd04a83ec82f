"""What a run that is alone waits for is written by its own thread, unless that would make it wait."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aworld.core.event import Event, StateSet
from aworld.core.exceptions import StoreError
from aworld.trajectory import sqlite_writer
from aworld.trajectory.sqlite import SQLiteStore
from aworld.trajectory.sqlite_tables import write_tallies
from tests.strategies import run_of


@pytest.fixture
def written_here(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each commit, whether this thread made it."""
    seen: list[bool] = []
    here = threading.get_ident()

    def noted(*given: Any) -> None:
        seen.append(threading.get_ident() == here)
        write_tallies(*given)

    monkeypatch.setattr(sqlite_writer, "write_tallies", noted)
    return seen


async def idle(store: SQLiteStore) -> None:
    """Wait until the thread, which tells who waits before it lets go, has let go."""
    await asyncio.to_thread(store._writer._pen.acquire)
    store._writer._pen.release()


def states(first: int, count: int = 1, size: int = 1) -> list[Event]:
    return [StateSet(seq=first + n, at=1.0, key="k", value="x" * size) for n in range(count)]


async def test_a_run_that_is_alone_writes_itself(tmp_path: Path, written_here: list[bool]) -> None:
    store = SQLiteStore(tmp_path / "runs.db")
    log = run_of("run", steps=3)
    await store.append("run", log[:1])
    await idle(store)
    assert written_here == [False]  # the thread opens the file
    written_here.clear()
    for n in range(1, len(log), 2):
        store.append("run", log[n : n + 1], wait=False)
        done = store.append("run", log[n + 1 : n + 2] or states(len(log)))
        assert isinstance(done, asyncio.Future)
        assert done.done()
    assert written_here == [True] * (len(log) // 2)
    assert (await store.read("run"))[: len(log)] == log
    await store.close()


async def test_runs_that_take_turns_share_commits(tmp_path: Path, written_here: list[bool]) -> None:
    store = SQLiteStore(tmp_path / "runs.db")
    for n in range(4):
        log = run_of(f"run-{n}")
        await store.append(f"run-{n}", log[:3])
        await idle(store)
        await store.append(f"run-{n}", log[3:])
    assert written_here == [False, *[True] * 7]
    written_here.clear()
    a, b = run_of("a"), run_of("b")
    await store.append("a", a[:1])
    await idle(store)
    await store.append("b", b[:1])
    await idle(store)
    await store.append("a", a[1:2])
    await idle(store)
    await store.append("a", a[2:])
    assert written_here == [True, False, False, True]
    await store.close()


@pytest.mark.parametrize(
    ("settings", "events"),
    [({}, states(1, count=51)), ({}, states(1, size=70_000)), ({"synchronous": "full"}, states(1))],
    ids=["many", "large", "with a wait for the disk"],
)
async def test_what_would_hold_up_the_loop_is_left_to_the_thread(
    tmp_path: Path, written_here: list[bool], settings: dict[str, Any], events: list[Event]
) -> None:
    store = SQLiteStore(tmp_path / "runs.db", **settings)
    await store.append("run", run_of("run")[:1])
    await store.append("run", events)
    assert written_here == [False, False]
    assert len(await store.read("run")) == 1 + len(events)
    await store.close()


async def test_a_lock_of_another_process_does_not_hold_up_the_loop(tmp_path: Path, written_here: list[bool]) -> None:
    store = SQLiteStore(tmp_path / "runs.db")
    log = run_of("run")
    await store.append("run", log[:1])
    await idle(store)
    await store.append("run", log[1:2])
    other = sqlite3.connect(tmp_path / "runs.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    waiting = store.append("run", log[2:3])  # returns at once
    assert isinstance(waiting, asyncio.Future)
    assert not waiting.done()
    behind = store.append("run", log[3:4])  # while the thread waits for the lock
    other.execute("ROLLBACK")
    other.close()
    await asyncio.gather(waiting, behind)
    await idle(store)
    await store.append("run", log[4:])
    assert await store.read("run") == log
    assert written_here[:2] == [False, True]
    assert written_here[-1] is True
    await store.close()


async def test_what_is_refused_is_told_to_who_waits(tmp_path: Path, written_here: list[bool]) -> None:
    store = SQLiteStore(tmp_path / "runs.db")
    log = run_of("run")
    await store.append("run", log[:3])
    await idle(store)
    store.append("other", run_of("other"), wait=False)
    with pytest.raises(StoreError, match="another process is running it"):
        await store.append("run", log[1:2])
    await store.append("run", log[3:])
    assert written_here == [False, True, True]
    assert await store.read("run") == log
    assert await store.read("other") == run_of("other")
    await store.close()


async def test_a_failure_here_is_left_to_the_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SQLiteStore(tmp_path / "runs.db")
    log = run_of("run")
    await store.append("run", log[:1])
    here = threading.get_ident()

    def fails_here(*given: Any) -> None:
        if threading.get_ident() == here:
            raise sqlite3.OperationalError("disk I/O error")
        write_tallies(*given)

    monkeypatch.setattr(sqlite_writer, "write_tallies", fails_here)
    for n in range(1, len(log)):
        await store.append("run", log[n : n + 1])
    assert await store.read("run") == log
    await store.close()


async def test_the_log_beside_the_file_begins_anew(
    tmp_path: Path, written_here: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_writer, "LOG_PAGES", 100)
    store = SQLiteStore(tmp_path / "runs.db")
    await store.append("run", run_of("run")[:1])
    copied: list[bool] = []
    monkeypatch.setattr(store._writer, "_copy_back", _noting(store._writer._copy_back, copied))
    for n in range(500):
        await store.append("run", states(1 + n, size=4000))
    beside = (tmp_path / "runs.db-wal").stat().st_size
    assert beside < 300 * 4096  # 500 appends have written more than 1,500 pages
    assert copied
    assert not any(copied)
    assert any(written_here)
    await store.close()


def _noting(do: Callable[[], None], seen: list[bool]) -> Callable[[], None]:
    here = threading.get_ident()

    def noted() -> None:
        seen.append(threading.get_ident() == here)
        do()

    return noted
