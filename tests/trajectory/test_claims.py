"""Who may work on a run: one at a time, until it has ended, is given back, or its process is dead."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from aworld.core.event import Commanded, Noted, Rewarded, StateSet
from aworld.core.exceptions import LeaseError, TaskError
from aworld.trajectory import TrajectoryStore, open_store
from aworld.trajectory import sqlite_watch as watch
from aworld.trajectory.sqlite import SQLiteStore
from aworld.trajectory.sqlite_owner import Owner, is_alive
from tests.strategies import run_of
from tests.trajectory.processes import bury, child, said, slay, until


@pytest.fixture(params=["memory", "weak", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[TrajectoryStore]:
    kind: str = request.param
    store = open_store(str(tmp_path / "runs.db") if kind == "sqlite" else f"{kind}:")
    yield store
    await store.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


def owner_of(path: Path, id: str = "run") -> str | None:
    with sqlite3.connect(path) as connection:
        row = connection.execute("SELECT owner FROM trajectories WHERE id = ?", (id,)).fetchone()
    connection.close()
    return row[0]


def change(path: Path, statement: str, *values: object) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(statement, values)
    connection.close()


async def refused(act: Callable[[], Awaitable[object]], match: str) -> None:
    with pytest.raises(LeaseError, match=match):
        await act()


async def test_a_run_is_claimed_once_until_it_ends(store: TrajectoryStore) -> None:
    log = run_of("run")
    lease = await store.claim("run", new=True)
    assert (lease.id, list(lease.inbox), lease.lost, lease.alarm) == ("run", [], None, None)
    await refused(lambda: store.claim("run"), "another run of this process is running trajectory 'run'; follow it, can")
    with pytest.raises(TaskError, match="already in store"):
        await store.claim("run", new=True)
    await store.append("run", log[:-1])
    await refused(lambda: store.claim("run"), "is running trajectory 'run'")
    await store.append("run", log[-1:])
    again = await store.claim("run")
    await store.append("run", [Rewarded(seq=len(log), at=2e9, value=1.0)])
    assert lease.lost is again.lost is None


async def test_a_released_run_is_claimed_by_the_next(store: TrajectoryStore) -> None:
    log = run_of("run")
    first = await store.claim("run", new=True)
    store.append("run", log[:3], wait=False)
    store.release(first)
    second = await store.claim("run")
    assert await store.read("run") == log[:3]
    await store.append("run", log[3:])
    assert await store.read("run") == log
    assert second.lost is None


async def test_a_dropped_lease_is_released() -> None:
    store = open_store("memory:")
    lease = await store.claim("run", new=True)
    await store.append("run", run_of("run")[:3])
    del lease
    gc.collect()
    assert (await store.claim("run")).lost is None


async def test_a_run_that_is_deleted_is_lost(store: TrajectoryStore) -> None:
    log = run_of("run")
    lease = await store.claim("run", new=True)
    rung = asyncio.Event()
    lease.alarm = rung.set
    await store.append("run", log[:3])
    await store.delete("run")
    async with asyncio.timeout(5):
        await rung.wait()
    assert lease.lost == "was deleted"

    async def go_on() -> None:
        await store.append("run", log[3:4])

    await refused(go_on, "trajectory 'run' was deleted; nothing more was written")
    assert await store.count() == 0


async def test_the_file_says_whose_a_run_is_and_when_nobody_is_at_work(path: Path) -> None:
    store = SQLiteStore(path)
    log = run_of("run")
    lease = await store.claim("run", new=True)
    await store.append("run", log[:3])
    assert (owner_of(path) or "").split()[3] == str(os.getpid())
    await store.append("run", log[3:])
    assert owner_of(path) is None
    assert lease.ended
    await store.append("unclaimed", run_of("unclaimed")[:3])
    assert owner_of(path, "unclaimed") is None
    whole = await store.claim("whole", new=True)
    await store.append("whole", run_of("whole"))
    assert owner_of(path, "whole") is None
    assert whole.ended
    await store.claim("unclaimed")
    await store.close()
    assert owner_of(path, "unclaimed") is None


async def test_a_claim_makes_no_file(path: Path) -> None:
    store = SQLiteStore(path)
    for new in (True, False):
        store.release(await store.claim("run", new=new))
    assert not path.exists()
    await store.close()


async def test_another_store_object_is_held_off_until_the_first_is_closed_or_dropped(path: Path) -> None:
    one = SQLiteStore(path)
    others = [SQLiteStore(path)]
    log = run_of("run")
    lease = await one.claim("run", new=True)
    await one.append("run", log[:3])
    await refused(lambda: others[0].claim("run"), "another store object of this process is running trajectory 'run'")

    async def append() -> None:
        await others[0].append("run", log[3:4])

    await refused(append, "another store object of this process is running")
    await others[0].note("run", [Noted(seq=-1, at=1.0, source="person", name="anybody may note")])
    await refused(append, "another store object of this process is running")
    await one.close()
    second = await others[0].claim("run")
    await append()
    assert lease.lost is None
    three = SQLiteStore(path)
    others.clear()
    gc.collect()
    third = None
    async with asyncio.timeout(10):
        while third is None:  # until the thread of the dropped one has written what it has, and ended
            with suppress(LeaseError):
                third = await three.claim("run")
    await three.append("run", log[4:])
    assert await three.read("run") == log
    assert second.lost is third.lost is None
    await three.close()


OWNER = """
    async def main():
        lease = await store.claim("run", new=True)
        await store.append("run", run_of("run")[:3])
        print("began")
        rung = asyncio.Event()
        lease.alarm = rung.set
        while True:
            await rung.wait()
            rung.clear()
            while lease.inbox:
                print(lease.inbox.popleft().action)
            if lease.lost:
                print(lease.lost)

    asyncio.run(main())
"""


async def test_a_killed_owner_is_followed_at_once_and_a_live_one_never(path: Path) -> None:
    process = child(OWNER, path)
    try:
        assert said(process) == "began"
        store = SQLiteStore(path)
        log = run_of("run")
        process.send_signal(signal.SIGSTOP)  # alive, though it renews nothing
        change(path, "UPDATE trajectories SET lease_until = 1")
        await refused(
            lambda: store.claim("run"), rf"another process \(pid {process.pid} on .*\) is running trajectory 'run'"
        )

        async def append() -> None:
            await store.append("run", log[3:4])

        await refused(append, "another process")
        slay(process)
        before = time.monotonic()
        lease = await store.claim("run")
        assert time.monotonic() - before < 1
        assert await store.read("run") == log[:3]
        await store.append("run", log[3:])
        assert lease.lost is None
        await store.close()
    finally:
        bury(process)


async def test_a_command_reaches_the_owner_in_another_process_within_a_second(path: Path) -> None:
    process = child(OWNER, path)
    try:
        assert said(process) == "began"
        store = SQLiteStore(path)
        for action in ("pause", "cancel"):
            before = time.monotonic()
            await store.note("run", [Commanded(seq=-1, at=1.0, action=action)])
            assert await asyncio.to_thread(said, process) == action
            assert time.monotonic() - before < 1
        await store.delete("run")
        assert await asyncio.to_thread(said, process) == "was deleted"
        await store.close()
    finally:
        bury(process)


def foreign(path: Path, until: float) -> str:
    """Let a run be owned by a process of another machine."""
    owner = "elsewhere another-boot pid:[1] 7 70 abcdef"
    change(path, "UPDATE trajectories SET owner = ?, lease_until = ?", owner, until)
    return owner


async def test_an_owner_of_another_machine_is_waited_for_as_long_as_its_lease(path: Path) -> None:
    store = SQLiteStore(path)
    await store.append("run", run_of("run")[:3])
    assert is_alive(foreign(path, time.time() + 60)) is None
    await refused(lambda: store.claim("run"), r"another process \(pid 7 on elsewhere\)")
    foreign(path, time.time() - 1)
    assert (await store.claim("run")).lost is None
    assert (owner_of(path) or "").split()[3] == str(os.getpid())
    await store.close()


@pytest.mark.parametrize("at_work", [True, False])
async def test_a_run_that_was_taken_over_is_lost_and_nothing_more_is_written(path: Path, at_work: bool) -> None:
    store = SQLiteStore(path)
    log = run_of("run")
    lease = await store.claim("run", new=True)
    rung = asyncio.Event()
    lease.alarm = rung.set
    await store.append("run", log[:3])
    foreign(path, time.time() + 60)

    async def append() -> None:
        await store.append("run", log[3:4])

    if not at_work:  # it is told also while it waits for something else
        async with asyncio.timeout(5):
            await rung.wait()
    await refused(append, r"'run' was taken over by another process \(pid 7 on elsewhere\); nothing more was written")
    async with asyncio.timeout(5):
        await rung.wait()
    assert lease.lost == "was taken over by another process (pid 7 on elsewhere)"
    assert await store.read("run") == log[:3]
    assert owner_of(path) == "elsewhere another-boot pid:[1] 7 70 abcdef"
    await store.close()
    assert owner_of(path) == "elsewhere another-boot pid:[1] 7 70 abcdef"


async def test_all_claims_are_renewed_by_one_statement_long_before_they_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "RENEWAL", 0.01)
    monkeypatch.setattr(watch, "CLAIMING", 0.01)
    store = SQLiteStore(path)
    leases = [await store.claim(f"run-{n}", new=True) for n in range(20)]
    for lease in leases:
        await store.append(lease.id, run_of(lease.id)[:3])
    store.release(leases.pop())
    change(path, "UPDATE trajectories SET lease_until = 5 WHERE owner IS NOT NULL")
    await until(lambda: _ends(path) == {5.0: 0, None: 1, "later": 19})
    assert [lease.lost for lease in leases] == [None] * 19
    await store.close()


def _ends(path: Path) -> dict[object, int]:
    with sqlite3.connect(path) as connection:
        ends = [end for (end,) in connection.execute("SELECT lease_until FROM trajectories")]
    connection.close()
    return {5.0: ends.count(5.0), None: ends.count(None), "later": sum(end is not None and end > 5 for end in ends)}


async def test_leases_that_nobody_holds_any_more_are_given_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "RENEWAL", 0.01)
    store = SQLiteStore(path)
    lease = await store.claim("run", new=True)
    await store.append("run", run_of("run")[:3])
    del lease
    gc.collect()
    await until(lambda: owner_of(path) is None)
    await store.close()


def test_an_owner_lives_as_long_as_its_store_object() -> None:
    owner = Owner()
    text = owner.text
    assert is_alive(text) is True
    del owner
    gc.collect()
    assert is_alive(text) is False
    assert is_alive("something newer") is None


async def test_a_claim_that_nobody_waits_for_any_more_holds_nobody_off(path: Path) -> None:
    store = SQLiteStore(path)
    await store.append("run", run_of("run")[:3])
    claim = asyncio.ensure_future(store.claim("run"))
    await asyncio.sleep(0)
    claim.cancel()
    with pytest.raises(asyncio.CancelledError):
        await claim
    assert (await store.claim("run")).lost is None
    await store.append("run", [StateSet(seq=3, at=1.0, key="k")])
    await store.close()
