"""Who gives up waiting for a SQLite store harms nobody else, and whoever waits is told."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from aworld.core.exceptions import StoreError
from aworld.trajectory import sqlite_writer
from aworld.trajectory.sqlite import Pending, SQLiteStore
from aworld.trajectory.sqlite_tables import remove
from tests.strategies import run_of


@pytest.fixture
def go_on() -> Iterator[threading.Event]:
    """Set at the end at the latest, so that a test that fails leaves no thread behind."""
    event = threading.Event()
    yield event
    event.set()


async def give_up(wait: Awaitable[object]) -> None:
    """Begin to wait, and be cancelled."""
    task = asyncio.ensure_future(wait)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


ASKED: dict[str, Callable[[SQLiteStore], Awaitable[object]]] = {
    "read": lambda store: store.read("run"),
    "count": lambda store: store.count(),
    "flush": lambda store: store.flush(),
    "delete": lambda store: store.delete("run"),
    "vacuum": lambda store: store.vacuum(),
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
async def test_who_gives_up_while_the_writer_is_busy_asked_for_nothing(
    tmp_path: Path, go_on: threading.Event, ask: Callable[[SQLiteStore], Awaitable[object]]
) -> None:
    store = SQLiteStore(tmp_path / "runs.db")
    await store.append("run", run_of("run"))
    store._writer.call(lambda _: go_on.wait())
    await give_up(ask(store))
    behind = store.append("behind", run_of("behind"))
    go_on.set()
    async with asyncio.timeout(5):
        await behind
    await store.append("later", run_of("later"))
    assert sorted(summary.id for summary in await store.query()) == ["behind", "later", "run"]
    await store.close()


async def test_a_delete_under_way_is_done_though_nobody_waits_any_more(
    tmp_path: Path, go_on: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = threading.Event()

    def slow(connection: sqlite3.Connection, url: str, id: str, forks: bool) -> list[str]:
        began.set()
        go_on.wait()
        return remove(connection, url, id, forks)

    monkeypatch.setattr(sqlite_writer, "remove", slow)
    store = SQLiteStore(tmp_path / "runs.db")
    await store.append("run", run_of("run"))
    delete = asyncio.ensure_future(store.delete("run"))
    await asyncio.to_thread(began.wait, 5)
    await give_up(delete)
    go_on.set()
    assert await store.count() == 0
    await store.close()


def test_an_append_of_plain_code_can_be_waited_for_again(tmp_path: Path, go_on: threading.Event) -> None:
    store = SQLiteStore(tmp_path / "runs.db")
    store._writer.call(lambda _: go_on.wait())
    given_up, behind = store.append("run", run_of("run")), store.append("behind", run_of("behind"))
    assert isinstance(given_up, Pending)
    assert isinstance(behind, Pending)
    asyncio.run(give_up(given_up))
    go_on.set()
    behind.result(5)
    given_up.result(5)
    assert asyncio.run(store.count()) == 2
    asyncio.run(store.close())


async def test_a_mistake_of_ours_in_a_call_is_told_to_its_caller_alone(tmp_path: Path, go_on: threading.Event) -> None:
    store = SQLiteStore(tmp_path / "runs.db")
    writer = store._writer
    writer.call(lambda _: go_on.wait())
    mistaken = writer.call(lambda _: 1 / 0)
    given_up = writer.call(None)
    given_up.cancel()
    behind = [store.append("run", run_of("run")), asyncio.wrap_future(writer.call(None))]
    go_on.set()
    with pytest.raises(StoreError, match=r"the writer failed: ZeroDivisionError.*this is a bug"):
        async with asyncio.timeout(5):
            await asyncio.wrap_future(mistaken)
    for waiting in behind:
        async with asyncio.timeout(5):
            await waiting
    assert await store.read("run") == run_of("run")
    await store.close()
