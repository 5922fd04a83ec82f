"""Two at work on one run, files that are moved, full disks: nobody is told of an end that is not there."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import stat
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from aworld.core.event import Event, Rewarded, StateSet
from aworld.core.exceptions import LeaseError, StoreError
from aworld.trajectory import Query, open_store
from aworld.trajectory.sqlite import SQLiteStore
from aworld.trajectory.sqlite_file import connect
from tests.strategies import run_of
from tests.trajectory.processes import bury, child, said, until


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "runs.db"


def other(log: list[Event], first: int, end: int) -> list[Event]:
    """As many events as those of the log, of another owner."""
    return [StateSet(seq=seq, at=1.0, key="by", value="the other") for seq in range(first, end)]


async def outcomes(*pending: Awaitable[Any]) -> list[str]:
    """What came of each: `""`, or what the error says."""
    done = await asyncio.gather(*pending, return_exceptions=True)
    return [str(error) if isinstance(error, BaseException) else "" for error in done]


async def test_what_follows_a_lost_event_is_refused_though_somebody_filled_its_place(path: Path) -> None:
    log = run_of("run", steps=4)
    one, two = SQLiteStore(path), SQLiteStore(path)
    await one.append("run", log[:5])
    await two.append("run", other(log, 5, 9))  # as many as the first owner now loses
    (lost,) = await outcomes(one.append("run", log[5:9]))
    assert "'run' has event 5 already" in lost
    for first, end in ((9, 10), (10, 12), (12, len(log))):
        assert await outcomes(one.append("run", log[first:end])) == [lost]
    assert await two.read("run") == [*log[:5], *other(log, 5, 9)]
    await one.close()
    await two.close()


async def test_all_in_one_batch_and_nobody_waits(path: Path) -> None:
    log = run_of("run", steps=4)
    one, two = SQLiteStore(path), SQLiteStore(path)
    await one.append("run", log[:5])
    await two.append("run", other(log, 5, 9))
    go_on = threading.Event()
    one._writer.call(lambda _: go_on.wait())  # so that all of it is written in one transaction
    one.append("run", log[5:9], wait=False)
    pending = [one.append("run", log[9:10]), one.append("other", run_of("other")), one.append("run", log[10:12])]
    go_on.set()
    assert ["has event 5 already" in text for text in await outcomes(*pending)] == [True, False, True]
    await one.flush()  # who waited was told: nothing is left to tell
    one.append("run", log[12:13], wait=False)
    await one.read("other")
    with pytest.raises(StoreError, match="has event 5 already"):
        one.append("run", log[13:14])  # nobody waited for the one before: it is told now, and this one is lost, too
    assert "has event 5 already" in (await outcomes(one.append("run", log[14:])))[0]
    assert await two.read("run") == [*log[:5], *other(log, 5, 9)]
    await one.close()
    await two.close()


OWNER = """
    async def main():
        lease = await store.claim("run", new=True)
        log = run_of("run", steps=4)
        await store.append("run", log[:5])
        print("begun", flush=True)
        sys.stdin.readline()
        for first, end in ((5, 9), (9, 12), (12, len(log))):
            try:
                await store.append("run", log[first:end])
                print("written")
            except Exception as error:
                print(type(error).__name__)
        print("lost" if lease.lost else "held")

    asyncio.run(main())
"""


async def test_an_owner_of_another_process_is_told_when_its_run_was_taken_over(path: Path) -> None:
    process = child(OWNER, path)
    try:
        assert said(process) == "begun"
        with sqlite3.connect(path) as connection:  # its machine was out of reach, and its lease has run out
            connection.execute("UPDATE trajectories SET owner = 'far boot ns 1 - mark', lease_until = 0")
        connection.close()
        store = SQLiteStore(path)
        lease = await store.claim("run")
        log = run_of("run", steps=4)
        await store.append("run", other(log, 5, 9))
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        assert [said(process) for _ in range(4)] == ["LeaseError", "LeaseError", "LeaseError", "lost"]
        await store.append("run", other(log, 9, 10))
        assert lease.lost is None
        assert await store.read("run") == [*log[:5], *other(log, 5, 10)]
        await store.close()
    finally:
        bury(process)


async def test_fifty_judges_at_once(path: Path) -> None:
    await _run(path)
    store = open_store(str(path))
    numbers = await asyncio.gather(*(store.note("run", [reward(f"judge-{n}")]) for n in range(50)))
    assert sorted(number for (number,) in numbers) == list(range(50))
    (summary,) = await store.query(Query(ids=("run",)))
    assert (summary.score, summary.notes) == (50.0, 50)
    await store.close()


JUDGES = """
    async def main():
        print("ready", flush=True)
        sys.stdin.readline()
        rewards = [Rewarded(seq=-1, at=1.0, value=1.0, name=f"{sys.argv[2]}-{n}") for n in range(20)]
        await asyncio.gather(*(store.note("run", [reward]) for reward in rewards))
        await store.close()
        print("done")

    asyncio.run(main())
"""


async def test_three_processes_of_judges_while_the_run_goes_on(path: Path) -> None:
    log = run_of("run", steps=6)
    store = SQLiteStore(path)
    lease = await store.claim("run", new=True)
    await store.append("run", log[:1])
    processes = [child(JUDGES, path, name) for name in "abc"]
    try:
        assert [said(process) for process in processes] == ["ready"] * 3
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for event in log[1:-1]:
            await store.append("run", [event])
        assert [said(process) for process in processes] == ["done"] * 3
    finally:
        bury(*processes)
    await until(lambda: len(lease.inbox) == 60)
    await store.append("run", log[-1:])
    assert lease.lost is None
    assert await store.read("run") == log
    assert [note.seq for note in await store.notes("run")] == list(range(60))
    assert (await store.query())[0].notes == 60
    await store.close()


def reward(name: str) -> Rewarded:
    return Rewarded(seq=-1, at=1.0, value=1.0, name=name)


async def _run(path: Path) -> None:
    store = SQLiteStore(path)
    await store.append("run", run_of("run"))
    await store.close()


def _remove(path: Path) -> None:
    shutil.rmtree(path.parent)


def _remove_file(path: Path) -> None:
    for name in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        name.unlink()


def _move(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))


def _replace(path: Path) -> None:
    _move(path)
    connect(str(path)).close()


@pytest.mark.parametrize("harm", [_remove, _remove_file, _move, _replace])
@pytest.mark.parametrize("runs", [1, 5])
async def test_an_end_is_not_acknowledged_when_the_file_is_gone(
    path: Path, harm: Callable[[Path], None], runs: int
) -> None:
    log = run_of("run", steps=3)
    store = SQLiteStore(path)
    ids = [f"run-{n}" for n in range(runs)]
    leases = [await store.claim(id, new=True) for id in ids]
    await asyncio.gather(*(store.append(id, run_of(id, steps=3)[:-1]) for id in ids))
    assert await store.count() == runs
    harm(path)
    ends = await outcomes(*(store.append(id, run_of(id, steps=3)[-1:]) for id in ids))
    assert all("removed or replaced" in text or "a file that is no more" in text for text in ends)
    assert {lease.lost for lease in leases} == {"was in a file that is no more"}
    for id in ids:
        with pytest.raises(LeaseError, match="was in a file that is no more"):
            await store.append(id, run_of(id, steps=3)[-1:])
    new = await store.claim("run", new=True)  # and what begins now is written to a file that is there
    await store.append("run", log)
    assert new.ended
    assert await store.read("run") == log
    assert [summary.id for summary in await store.query()] == ["run"]
    await store.close()
    again = SQLiteStore(path)
    assert await again.read("run") == log
    await again.close()


async def test_readers_and_claims_are_told_that_the_file_is_gone(path: Path) -> None:
    store = SQLiteStore(path)
    lease = await store.claim("run", new=True)
    rung = asyncio.Event()
    lease.alarm = rung.set
    await store.append("run", run_of("run")[:-1])
    assert await store.count() == 1
    _move(path)
    with pytest.raises(StoreError, match="the file or its -wal was moved, removed or replaced while it was open"):
        await store.read("run")
    async with asyncio.timeout(10):
        await rung.wait()  # the watcher of the file has seen it, without any append
    assert lease.lost == "was in a file that is no more"
    await store.close()


async def test_a_log_beside_the_file_that_is_removed_is_written_back(path: Path) -> None:
    store = SQLiteStore(path)
    log = run_of("run", steps=3)
    lease = await store.claim("run", new=True)
    await store.append("run", log[:-1])
    assert await store.count() == 1
    Path(f"{path}-wal").unlink()
    await store.append("run", log[-1:])
    assert lease.ended
    assert await store.read("run") == log
    assert await store.count() == 1
    copy = path.with_name("copy.db")
    await store.close()
    shutil.copy(path, copy)
    again = SQLiteStore(copy)
    assert await again.read("run") == log
    await again.close()


async def test_a_log_beside_the_file_that_another_removed_is_named(path: Path) -> None:
    writer = SQLiteStore(path)
    await writer.append("run", run_of("run"))
    Path(f"{path}-wal").unlink()
    reader = SQLiteStore(path)
    with pytest.raises(StoreError, match="the -wal beside it was removed or cut off while it was open"):
        await reader.count()
    await writer.append("other", run_of("other"))
    assert await reader.count() == 2
    await reader.close()
    await writer.close()


async def test_what_is_stored_is_its_owner_s_alone(path: Path) -> None:
    mask = os.umask(0o022)
    try:
        store = SQLiteStore(path.parent / "deeper" / "runs.db")
        await store.append("run", run_of("run"))
    finally:
        os.umask(mask)
    names = [path.parent, path.parent / "deeper", *(path.parent / "deeper").iterdir()]
    assert [stat.S_IMODE(name.stat().st_mode) for name in names] == [0o700, 0o700, 0o600, 0o600, 0o600]
    await store.close()


FULL = """
    from aworld.trajectory import sqlite_writer
    from aworld.trajectory.sqlite_file import connect

    def limited(path, **settings):
        connection = connect(path, **settings)
        connection.execute("PRAGMA max_page_count = 150")  # SQLite's own limit stands for a small disk
        return connection

    async def run(id):
        log = run_of(id, steps=40)
        await store.claim(id, new=True)
        for place in range(0, len(log), 4):
            for attempt in (
                lambda: store.append(id, log[place : place + 2], wait=False),
                lambda: store.append(id, log[place + 2 : place + 4]),
                lambda: store.note(id, [Noted(seq=-1, at=1.0, source="s", name="n", data="x" * 100)]),
            ):
                try:
                    await attempt()
                except Exception as error:
                    print(error)

    async def main():
        sqlite_writer.connect = limited
        await asyncio.gather(*(run(f"run-{n}") for n in range(100)))

    asyncio.run(main())
"""


async def test_a_full_disk_is_called_so_by_all_that_meet_it(tmp_path: Path) -> None:
    process = child(FULL, tmp_path / "runs.db")
    try:
        lines = process.communicate(timeout=60)[0].splitlines()
    finally:
        bury(process)
    full = [line for line in lines if "the disk is full; make room" in line]
    unknown = [line for line in lines if "no trajectory 'run-" in line]  # the notes of those that did not begin
    assert len(full) > 1000
    assert [line for line in lines if line not in full and line not in unknown] == []


async def test_git_leaves_the_folder_of_stores_out(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/.aworld/runs.db")
    await store.append("run", run_of("run"))
    await store.close()
    assert (tmp_path / ".aworld" / ".gitignore").read_text() == "*\n"
