"""What many runs share is stored once, by digest, and is there again when they are read."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from aworld.core.event import Event, Started, TaskInfo, ToolsetOffered
from aworld.core.exceptions import TaskError
from aworld.trajectory import Query, TrajectoryStore, open_store
from aworld.trajectory.sqlite import SQLiteStore
from tests.strategies import fork_of, run_of

BODY = {"system_prompt": "Be brief. " * 100, "model": "model-1"}


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[TrajectoryStore]:
    kind: str = request.param
    store = open_store("memory:" if kind == "memory" else str(tmp_path / "runs.db"))
    yield store
    await store.close()


def defined(id: str, **changes: Any) -> list[Event]:
    """A run whose agent is named by a digest, beside one that is not."""
    started, *rest = run_of(id)
    assert isinstance(started, Started)
    agents = {"lead": BODY, "plain": {"system_prompt": "Hello."}}
    return [replace(started, **{"agents": agents, "definitions": {"lead": "d1"}, **changes}), *rest]


async def test_an_event_reads_as_it_was(store: TrajectoryStore) -> None:
    log = defined("run")
    await store.append("run", log)
    assert await store.read("run") == log
    assert await store.read("run", after=3) == log[4:]
    assert [events for _, events in store.scan()] == [log]
    assert await store.definition("d1") == BODY
    assert [dict(tool) for tool in await store.definition("t1")] == [dict(tool) for tool in _tools(log)]
    await store.append("fork", fork_of(log, "fork", 5, of="run"))
    assert (await store.read("fork"))[:5] == log[:5]


def _tools(log: list[Event]) -> tuple[dict[str, Any], ...]:
    return next(event.tools for event in log if isinstance(event, ToolsetOffered))


async def test_an_event_may_come_without_what_the_file_has(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "runs.db")
    await store.append("first", defined("first"))
    log = defined("run", agents={})
    log[1] = replace(log[1], tools=())
    await store.append("run", log)
    assert await store.read("run") == defined("run", agents={"lead": BODY})
    assert (await store.query(Query(ids=("run",))))[0].version == "d1"
    await store.close()


async def test_what_nobody_defined_stays_absent(store: TrajectoryStore) -> None:
    log = defined("run", agents={"plain": {}}, definitions={"lead": "unheard-of"})
    await store.append("run", log)
    assert await store.read("run") == log
    for attempt in (store.definition, store.blob):
        with pytest.raises(TaskError, match="with the digest 'unheard-of'; it was never stored here"):
            await attempt("unheard-of")


async def test_blobs_are_kept_by_their_content(store: TrajectoryStore) -> None:
    digest = await store.put_blob(b"a picture")
    assert await store.put_blob(b"a picture") == digest
    assert len(digest) == 64
    assert await store.blob(digest) == b"a picture"
    assert await store.blob(await store.put_blob(b"")) == b""


async def test_each_body_is_stored_once(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    for round in range(2):  # the second store object does not know what the first has written
        store = SQLiteStore(path)
        for n in range(10):
            await store.append(f"run-{round}-{n}", defined(f"run-{round}-{n}"))
        assert await store.read("run-0-0") == defined("run-0-0")
        await store.close()
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT digest FROM definitions ORDER BY 1").fetchall() == [("d1",), ("t1",)]
    ((largest, events),) = connection.execute("SELECT max(length(data)), count(*) FROM events")
    assert largest < 500 < len(str(BODY))
    assert events == 20 * len(defined("run"))
    connection.close()


async def test_a_refused_run_leaves_its_definitions_to_the_next(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "runs.db")
    await store.append("run", run_of("run"))
    with pytest.raises(TaskError, match="already in store"):
        await store.append("run", defined("run"))
    await store.append("other", defined("other"))
    assert await store.read("other") == defined("other")
    await store.close()


async def test_the_store_says_what_it_was_given_though_it_changes_later(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "runs.db")
    body: dict[str, Any] = {"system_prompt": "Be brief."}
    started = Started(
        seq=0, at=1.0, trajectory_id="run", task=TaskInfo("run"), agents={"lead": body}, definitions={"lead": "d2"}
    )
    pending = store.append("run", [started])
    body["system_prompt"] = "Be long."
    await pending
    (again,) = await store.read("run")
    assert isinstance(again, Started)
    assert again.agents == {"lead": {"system_prompt": "Be brief."}}
    await store.close()
