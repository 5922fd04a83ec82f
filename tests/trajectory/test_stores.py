"""What every store promises, in memory and in SQLite."""

from __future__ import annotations

import asyncio
import gc
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aworld.core.event import Event, Fork, Rewarded, Started, StateSet, TaskInfo
from aworld.core.exceptions import ConfigError, StoreError, TaskError
from aworld.trajectory import MemoryStore, Query, Summary, TrajectoryStore, WeakStore, open_store
from aworld.trajectory.sqlite import SQLiteStore
from aworld.trajectory.summary import Tally
from tests.strategies import fork_of, logs, run_of


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[TrajectoryStore]:
    kind: str = request.param
    store = open_store("memory:" if kind == "memory" else str(tmp_path / "runs.db"))
    yield store
    await store.close()


async def filled(store: TrajectoryStore) -> TrajectoryStore:
    """Twelve runs: three groups, four statuses, scores from 0 to 1 and unknown."""
    statuses: list[Any] = ["finished", "failed", "running", "cancelled"]
    for n in range(12):
        task = TaskInfo(f"task-{n % 6}", "A task", f"session-{n % 2}", "user", f"group-{n % 3}")
        score = None if n % 4 == 3 else n / 10
        log = run_of(f"run-{n:02}", task, steps=n % 3 + 1, status=statuses[n % 4], score=score, at=1000.0 + 100 * n)
        await store.append(f"run-{n:02}", log)
    return store


async def test_what_was_appended_is_read(store: TrajectoryStore) -> None:
    log = run_of("run", steps=3)
    await store.append("run", log[:4])
    store.append("run", log[4:7], wait=False)
    store.append("run", log[7:], wait=False)
    await store.append("run", [])
    assert await store.read("run") == log
    assert await store.query() == [Tally.of("run", log).summary()]


async def test_rewards_long_after_the_run_change_the_score(store: TrajectoryStore) -> None:
    log = run_of("run", score=0.5)
    await store.append("run", log)
    await store.append("run", [Rewarded(seq=len(log), at=2e9, value=2.0, weight=0.25)])
    (summary,) = await store.query()
    assert (summary.score, summary.status, summary.answer) == (1.0, "finished", "Because.")


async def test_one_id_begins_once(store: TrajectoryStore) -> None:
    await store.append("run", run_of("run"))
    with pytest.raises(TaskError, match=r"'run' is already in store .*; pick another id, or .*Runners\.resume"):
        await store.append("run", run_of("run")[:1])
    assert len(await store.read("run")) == len(run_of("run"))


async def test_an_unknown_id_is_an_error_that_names_the_nearest(store: TrajectoryStore) -> None:
    await store.append("weather-paris", run_of("weather-paris"))
    for attempt in (store.read, store.delete):
        with pytest.raises(TaskError, match="did you mean 'weather-paris'"):
            await attempt("weather-pari")
    with pytest.raises(TaskError, match=r"no trajectory 'z'.*aworld trajectories list"):
        await store.append("z", [StateSet(seq=0, at=1.0, key="a")])


async def test_events_that_were_written_already_mean_that_another_process_runs_it(store: TrajectoryStore) -> None:
    log = run_of("run")
    await store.append("run", log)
    with pytest.raises(StoreError, match="another process is running it"):
        await store.append("run", log[-1:])
    with pytest.raises(StoreError, match=f"event 99 came where {len(log)} was due"):
        await store.append("run", [StateSet(seq=99, at=1.0, key="a")])
    with pytest.raises(StoreError, match="event 3 came where 0 was due"):
        await store.append("new", [Started(seq=3, at=1.0, trajectory_id="new", task=TaskInfo("new"))])
    assert await store.count() == 1


@settings(max_examples=40)
@given(logs("parent"), st.data())
def test_a_fork_reads_as_the_shared_prefix_and_its_own_events(log: list[Event], data: st.DataObject) -> None:
    first = data.draw(st.integers(1, len(log)))
    child = fork_of(log, "child", first)
    whole = log[:first] + child
    second = data.draw(st.integers(1, len(whole)))
    grandchild = fork_of(whole, "grandchild", second, of="child")

    async def main(store: TrajectoryStore) -> None:
        await store.append("parent", log)
        await store.append("child", child)
        await store.append("grandchild", grandchild[:1])
        await store.append("grandchild", grandchild[1:])
        expected = {"parent": log, "child": whole, "grandchild": whole[:second] + grandchild}
        for id, events in expected.items():
            assert await store.read(id) == events
            assert await store.query(Query(ids=(id,))) == [Tally.of(id, events).summary()]
        assert {summary.id: events for summary, events in store.scan()} == expected
        await store.close()

    asyncio.run(main(MemoryStore()))
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(SQLiteStore(f"{folder}/runs.db")))


async def test_a_fork_must_begin_where_its_parent_has_events(store: TrajectoryStore) -> None:
    log = run_of("parent")
    await store.append("parent", log)
    for seq, of in ((99, 99), (5, 4)):
        started = Started(
            seq=seq, at=1.0, trajectory_id="child", task=TaskInfo("child"), forked_from=Fork("parent", of)
        )
        with pytest.raises(TaskError, match="which has"):
            await store.append("child", [started])
    with pytest.raises(TaskError, match="did you mean 'parent'"):
        await store.append(
            "child", [Started(seq=2, at=1.0, trajectory_id="c", task=TaskInfo("c"), forked_from=Fork("parents", 2))]
        )
    assert await store.count() == 1


async def test_a_parent_is_deleted_with_its_forks_only_when_asked(store: TrajectoryStore) -> None:
    log = run_of("parent", steps=2)
    await store.append("parent", log)
    child = fork_of(log, "child", 6)
    await store.append("child", child)
    await store.append("grandchild", fork_of(log[:6] + child, "grandchild", 8, of="child"))
    await store.append("other", run_of("other"))
    with pytest.raises(StoreError, match=r"shares its beginning with child; .*forks=True"):
        await store.delete("parent")
    assert await store.delete("grandchild") == 1
    await store.append("grandchild", fork_of(log[:6] + child, "grandchild", 8, of="child"))
    assert await store.delete("parent", forks=True) == 3
    assert [summary.id for summary in await store.query()] == ["other"]
    with pytest.raises(TaskError):
        await store.append("child", [StateSet(seq=9, at=1.0, key="late")])
    await store.vacuum()
    assert await store.read("other") == run_of("other")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (Query(), [11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),
        (Query(order="oldest", limit=3, offset=2), [2, 3, 4]),
        (Query(group="group-1"), [10, 7, 4, 1]),
        (Query(task="task-5"), [11, 5]),
        (Query(session="session-1", status=("failed",)), [9, 5, 1]),
        (Query(status=("running", "cancelled")), [11, 10, 7, 6, 3, 2]),
        (Query(agent="lead", limit=1), [11]),
        (Query(agent="nobody"), []),
        (Query(min_score=0.9), [10, 9]),
        (Query(max_score=0.1, order="best"), [1, 0]),
        (Query(since=1000.0 + 1000, until=1000.0 + 1100), [10]),
        (Query(prefix="run-0", order="oldest", limit=2), [0, 1]),
        (Query(prefix="RUN"), []),
        (Query(ids=("run-03", "run-07", "nobody")), [7, 3]),
        (Query(ids=()), []),
        (Query(order="best", limit=4), [10, 9, 8, 6]),
        (Query(order="worst"), [0, 1, 2, 4, 5, 6, 8, 9, 10, 3, 7, 11]),
        (Query(order="best", offset=9), [11, 7, 3]),
        (Query(after="run-09", limit=2), [8, 7]),
        (Query(order="oldest", after="run-09"), [10, 11]),
        (Query(order="best", after="run-00"), [11, 7, 3]),
        (Query(order="worst", after="run-10", limit=1), [3]),
        (Query(limit=0), []),
    ],
)
async def test_queries(store: TrajectoryStore, query: Query, expected: list[int]) -> None:
    await filled(store)
    found = await store.query(query)
    assert [int(summary.id[-2:]) for summary in found] == expected
    assert [summary.id for summary, _ in store.scan(query)] == [summary.id for summary in found]
    if query.limit is None and query.after is None and not query.offset:
        assert await store.count(query) == len(expected)


@pytest.mark.parametrize("order", ["newest", "oldest", "best", "worst"])
async def test_pages_add_up_to_the_whole(store: TrajectoryStore, order: Any) -> None:
    await filled(store)
    whole = await store.query(Query(order=order))
    paged: list[Summary] = []
    after = None
    while page := await store.query(Query(order=order, limit=5, after=after)):
        paged += page
        after = page[-1].id
    assert paged == whole


async def test_a_scan_may_be_left_early_and_used_again(store: TrajectoryStore) -> None:
    await filled(store)
    assert next(iter(store.scan()))[0].id == "run-11"
    assert sum(1 for _ in store.scan(Query(limit=7))) == 7


@pytest.mark.parametrize("order", ["newest", "oldest", "best", "worst"])
async def test_what_a_scan_has_seen_may_be_deleted_meanwhile(
    store: TrajectoryStore, order: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aworld.trajectory.sqlite_reader.PAGE", 5)
    await filled(store)
    whole = [summary.id for summary in await store.query(Query(order=order))]
    seen: list[str] = []
    for summary, _ in store.scan(Query(order=order)):
        seen.append(summary.id)
        if len(seen) % 5 == 0:  # the last of a page, after which the next one begins
            await store.delete(summary.id)
    assert seen == whole
    assert await store.count() == 10


async def test_a_scan_leaves_out_what_was_deleted_before_its_turn(store: TrajectoryStore) -> None:
    await filled(store)
    scan = store.scan(Query(order="oldest", limit=4))
    assert next(scan)[0].id == "run-00"
    await store.delete("run-01")
    assert [summary.id for summary, _ in scan] == ["run-02", "run-03"]


async def test_a_page_after_one_that_is_unknown_is_an_error_and_not_the_first_page(store: TrajectoryStore) -> None:
    await filled(store)
    query = Query(after="run-9")
    with pytest.raises(TaskError, match=r"no trajectory 'run-9' in store .* did you mean 'run-09'"):
        await store.query(query)
    with pytest.raises(TaskError, match="no trajectory 'run-9'"):
        next(store.scan(query))
    assert await store.count(query) == 12


async def test_the_weak_store_knows_a_run_as_long_as_its_lease_is_held() -> None:
    store = WeakStore()
    log = run_of("run", score=1.0)
    lease = await store.claim("run", new=True)
    await store.append("run", log)
    assert await store.read("run") == log
    assert [summary.score for summary in await store.query(Query(min_score=1.0))] == [1.0]
    assert await store.count() == 1
    store.release(lease)
    resumed = await store.claim("run")  # a resumed run goes on with another lease
    del lease
    gc.collect()
    assert await store.read("run") == log
    del resumed
    gc.collect()
    assert await store.count() == 0
    with pytest.raises(TaskError, match="as long as its response is held"):
        await store.read("run")
    await store.append("run", run_of("run"))
    assert await store.count() == 0


async def test_the_weak_store_refuses_an_id_as_long_as_its_run_goes_on() -> None:
    store = WeakStore()
    log = run_of("run")
    lease = await store.claim("run", new=True)
    await store.append("run", log[:-1])
    with pytest.raises(TaskError, match="already in store"):
        store.append("run", run_of("run")[:1])
    with pytest.raises(TaskError, match="already in store"):
        await store.claim("run", new=True)
    await store.append("run", log[-1:])
    again = await store.claim("run", new=True)  # what has ended gives way
    await store.append("run", log[:1])
    assert await store.read("run") == log[:1]
    assert lease.lost is again.lost is None


async def test_a_fork_in_the_weak_store_outlives_its_parent() -> None:
    store = WeakStore()
    log = run_of("parent")
    parent = await store.claim("parent", new=True)
    await store.append("parent", log)
    child = fork_of(log, "child", 4)
    lease = await store.claim("child", new=True)
    await store.append("child", child)
    assert await store.delete("parent") == 1
    assert parent.lost == "was deleted"
    del parent
    gc.collect()
    assert await store.read("child") == log[:4] + child
    assert await store.read("child", after=5) == (log[:4] + child)[6:]
    assert lease.lost is None


def test_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = {
        "sqlite:///runs.db": tmp_path / "runs.db",
        "sqlite:///deep/er/runs%20a.db?synchronous=full": tmp_path / "deep/er/runs a.db",
        f"sqlite:///{tmp_path}/x.data": tmp_path / "x.data",
        "runs.sqlite": tmp_path / "runs.sqlite",
        f"{tmp_path}/y.db?timeout=1": tmp_path / "y.db",
    }
    for url, path in expected.items():
        store = open_store(url)
        assert isinstance(store, SQLiteStore)
        assert store.path == str(path)
        again = open_store(store.url)
        assert isinstance(again, SQLiteStore)
        assert again.path == store.path
    assert isinstance(open_store("memory:"), MemoryStore)
    assert isinstance(open_store("weak:"), WeakStore)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql://me:s3cret@host/db", "PostgreSQL comes in a later version"),
        ("mysql://me:s3cret@host/db", "not an address of a store; use memory:"),
        ("runs.txt", "a path ending in .db"),
        ("sqlite:///", "not an address"),
        ("sqlite://", "not an address"),
        ("sqlite:///:memory:", "memory:"),
        ("runs.db?synchronous=off", "use normal or full"),
        ("runs.db?cache=1", "unknown option cache"),
        ("runs.db?timeout=soon", "timeout='soon' is not a number of seconds"),
    ],
)
def test_addresses_that_cannot_be(url: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as error:
        open_store(url)
    assert "s3cret" not in str(error.value)
