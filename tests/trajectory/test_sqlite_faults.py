"""Processes killed, disks full, files locked, damaged or not ours: clear errors, and nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest

from aworld.core.event import Rewarded, StateSet
from aworld.core.exceptions import StoreError
from aworld.core.trajectory import Trajectory
from aworld.trajectory.sqlite import SQLiteStore
from aworld.trajectory.sqlite_file import connect
from aworld.trajectory.sqlite_tables import write_tallies
from tests.strategies import run_of


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python process of its own; its standard output is read here line by line."""
    text = textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-u", "-c", text, *map(str, arguments)], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )


def whole(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        orphans = "SELECT count(*) FROM events WHERE key >> 24 NOT IN (SELECT key FROM trajectories)"
        assert connection.execute(orphans).fetchone() == (0,)
    connection.close()


WRITER = """
    import asyncio, sys
    from aworld.trajectory import open_store
    from tests.strategies import run_of

    async def run(store, id):
        for event in run_of(id, steps=6):
            await store.append(id, [event])
            print(id, event.seq)

    async def tasks(store, name):
        for n in range(10_000):
            await run(store, f"{name}-{n}")

    async def main():
        store = open_store(sys.argv[1])
        await asyncio.gather(*(tasks(store, f"{sys.argv[2]}-{name}") for name in range(50)))

    asyncio.run(main())
"""


@pytest.mark.parametrize("attempt", range(3))
async def test_what_was_acknowledged_survives_kill_9(tmp_path: Path, attempt: int) -> None:
    path = tmp_path / "runs.db"
    acknowledged: dict[str, int] = {}
    for round in range(2):  # the second process goes on in the file that the first left behind
        process = child(WRITER, path, round)
        assert process.stdout is not None
        die_after = random.randint(1, 4000)
        for number, line in enumerate(process.stdout):
            if number == die_after:
                process.send_signal(signal.SIGKILL)
            if line.endswith("\n"):
                id, seq = line.split()
                acknowledged[id] = int(seq)
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
    store = SQLiteStore(path)
    found = {summary.id: events for summary, events in store.scan()}
    for id, seq in acknowledged.items():
        assert len(found[id]) > seq
    for id, events in found.items():
        assert events == run_of(id, steps=6)[: len(events)]
        Trajectory.of(id, events)
    id = next(id for id, events in found.items() if len(events) < len(run_of(id, steps=6)))
    await store.append(id, run_of(id, steps=6)[len(found[id]) :])
    assert await store.read(id) == run_of(id, steps=6)
    await store.close()
    whole(path)


async def test_two_processes_on_one_store(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    code = """
        import asyncio, sys
        from aworld.trajectory import open_store
        from tests.strategies import run_of

        async def run(store, id):
            for event in run_of(id, steps=3):
                await store.append(id, [event])

        async def main():
            store = open_store(sys.argv[1])
            await asyncio.gather(*(run(store, f"{sys.argv[2]}-{n}") for n in range(40)))
            await store.close()
            print("done")

        asyncio.run(main())
    """
    processes = [child(code, path, name) for name in ("a", "b")]
    for process in processes:
        assert process.communicate(timeout=60)[0] == "done\n"
    store = SQLiteStore(path)
    assert await store.count() == 80
    assert all(events == run_of(summary.id, steps=3) for summary, events in store.scan())
    await store.close()
    whole(path)


async def test_two_processes_on_one_run(tmp_path: Path) -> None:
    """Two store objects stand for the processes: they share nothing but the file."""
    log = run_of("run", steps=3)
    one, two = SQLiteStore(tmp_path / "runs.db"), SQLiteStore(tmp_path / "runs.db")
    await one.append("run", log[:5])
    resumed = await two.read("run")
    await two.append("run", log[len(resumed) : 9])
    with pytest.raises(
        StoreError, match=r"'run' has event 5 already: another process is running it; stop one of the two"
    ):
        await one.append("run", log[5:9])
    await two.append("run", log[9:])
    reward = Rewarded(seq=len(log), at=2e9, value=1.0)
    await one.append("run", [reward])  # whoever knows the end may go on
    assert await two.read("run") == [*log, reward]
    assert await two.query() == await one.query()
    await one.close()
    await two.close()


FULL = """
    import asyncio, resource, sys
    from aworld.core.event import Rewarded, StateSet
    from aworld.core.exceptions import StoreError
    from aworld.trajectory import open_store
    from tests.strategies import run_of

    async def main():
        store = open_store(sys.argv[1])
        await store.append("before", run_of("before"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
        written = []
        try:
            for n in range(10_000):
                await store.append(f"run-{n}", run_of(f"run-{n}", steps=5))
                written.append(f"run-{n}")
        except StoreError as error:
            print(error)
        several = await asyncio.gather(*(store.append(f"m-{n}", run_of(f"m-{n}", steps=5)) for n in range(5)),
                                       return_exceptions=True)
        written += [f"m-{n}" for n, outcome in enumerate(several) if outcome is None]
        assert all(isinstance(outcome, (StoreError, type(None))) for outcome in several), several
        assert len(await store.read("before")) == len(run_of("before"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        await store.append("after", run_of("after"))
        await store.append("before", [Rewarded(seq=len(run_of("before")), at=2e9, value=1.0)])
        await store.close()
        print(*written)

    asyncio.run(main())
"""


async def test_a_disk_that_takes_no_more(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: the write really fails, in the middle of a batch."""
    path = tmp_path / "runs.db"
    output, _ = child(FULL, path).communicate(timeout=60)
    error, written = output.splitlines()
    assert error.startswith(f"store={path} | ")
    assert "full" in error
    whole(path)
    store = SQLiteStore(path)
    found = {summary.id: events for summary, events in store.scan()}
    assert set(found) == {*written.split(), "before", "after"}
    assert all(events == run_of(id, steps=5) for id, events in found.items() if id not in ("before", "after"))
    await store.close()


async def test_one_event_too_large_for_the_file_does_not_take_its_neighbours_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite's own limit on pages stands for a disk that is nearly full."""

    def limited(path: str, **settings: Any) -> sqlite3.Connection:
        connection = connect(path, **settings)
        connection.execute("PRAGMA max_page_count = 200")
        return connection

    monkeypatch.setattr("aworld.trajectory.sqlite_writer.connect", limited)
    store = SQLiteStore(tmp_path / "runs.db")
    await store.append("first", run_of("first"))
    huge = run_of("huge", status="running")
    huge.append(StateSet(seq=len(huge), at=1.0, key="k", value="x" * 2_000_000))
    small = store.append("small", run_of("small"))
    too_large = store.append("huge", huge)
    also_small = store.append("also-small", run_of("also-small"))
    await small
    await also_small
    with pytest.raises(StoreError, match="the disk is full; make room"):
        await too_large
    assert sorted(summary.id for summary in await store.query()) == ["also-small", "first", "small"]
    room = store._writer.call(lambda connection: connection.execute("PRAGMA max_page_count = 100000").fetchone())
    await asyncio.wrap_future(room)
    await store.append("huge", huge)
    assert await store.read("huge") == huge
    await store.close()
    whole(tmp_path / "runs.db")


READ_ONLY = """
    import asyncio, concurrent.futures.thread, os, sys
    from aworld.core.exceptions import StoreError
    from aworld.trajectory import open_store
    from aworld.trajectory.sqlite import SQLiteStore  # all now: later it may be out of reach
    from tests.strategies import run_of

    if os.getuid() == 0:
        os.setgroups([]); os.setgid(65534); os.setuid(65534)

    async def main():
        store = open_store(sys.argv[1])
        print(len(await store.read("run")), await store.count())
        try:
            await store.append("new", run_of("new"))
        except StoreError as error:
            print(error)
        print(len(await store.read("run")))
        await store.close()

    asyncio.run(main())
"""


@pytest.mark.parametrize("folder_too", [True, False])
async def test_a_store_that_cannot_be_written(folder_too: bool) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to the child's user
        Path(name).chmod(0o755)
        await _cannot_be_written(Path(name) / "folder" / "runs.db", folder_too)


async def _cannot_be_written(path: Path, folder_too: bool) -> None:
    store = SQLiteStore(path)
    log = run_of("run")
    await store.append("run", log)
    await store.close()
    path.chmod(0o444)
    path.parent.chmod(0o555 if folder_too else 0o777)
    try:
        output, _ = child(READ_ONLY, path).communicate(timeout=60)
    finally:
        path.parent.chmod(0o755)
    before, error, after = output.splitlines()
    assert before == f"{len(log)} 1"
    assert error.startswith(f"store={path} | ")
    assert "cannot be written" in error or "cannot be opened" in error
    assert after == str(len(log))


async def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("I am no folder.")
    store = SQLiteStore(tmp_path / "file" / "runs.db")
    with pytest.raises(StoreError, match=r"file/runs.db .*the folder cannot be made or used"):
        await store.append("run", run_of("run"))
    await store.close()


async def test_missing_folders_are_made(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "a" / "b" / "runs.db")
    await store.append("run", run_of("run"))
    assert await store.count() == 1
    await store.close()


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    path.write_text("These are my notes, not a database.\n" * 100)
    store = SQLiteStore(path)
    for attempt in (lambda: store.append("run", run_of("run")), lambda: store.read("run"), store.query):
        with pytest.raises(StoreError, match=r"notes.db .*not a SQLite file; give the store a path of its own"):
            await attempt()
    await store.close()
    assert path.read_text().startswith("These are my notes")


async def test_a_database_of_another_program(tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE events (when_it_was TEXT)")
    connection.close()
    store = SQLiteStore(path)
    for attempt in (lambda: store.append("run", run_of("run")), store.query):
        with pytest.raises(StoreError, match="of another program"):
            await attempt()
    await store.close()


async def test_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    store = SQLiteStore(path)
    for n in range(50):
        await store.append(f"run-{n}", run_of(f"run-{n}"))
    await store.close()
    content = bytearray(path.read_bytes())
    content[4096 * 2 :] = os.urandom(len(content) - 4096 * 2)
    path.write_bytes(content)
    store = SQLiteStore(path)
    with pytest.raises(StoreError, match=r"runs.db .*damaged"):
        sum(1 for _ in store.scan())
    with pytest.raises(StoreError, match=r"runs.db .*damaged"):
        await store.append("new", run_of("new"))
    await store.close()


async def test_an_event_that_cannot_be_decoded_names_its_run(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "runs.db")
    await store.append("bad", run_of("bad"))
    await store.append("good", run_of("good"))
    await asyncio.wrap_future(
        store._writer.call(lambda c: c.execute("UPDATE events SET data = '{' WHERE key = 1 << 24 | 2"))
    )
    with pytest.raises(StoreError, match="the log of 'bad' cannot be read"):
        await store.read("bad")
    assert await store.read("good") == run_of("good")
    assert await store.delete("bad") == 1
    await store.close()


async def test_a_file_that_another_process_keeps_locked(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    store = SQLiteStore(path, timeout=0.05)
    await store.append("run", run_of("run")[:1])
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match=r"another process holds the file locked; .*timeout="):
        await store.append("run", run_of("run")[1:2])
    assert len(await store.read("run")) == 1  # readers are never locked out
    other.execute("ROLLBACK")
    other.close()
    await store.append("run", run_of("run")[1:])
    assert await store.read("run") == run_of("run")
    await store.close()


async def test_a_mistake_of_ours_in_the_writer_leaves_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SQLiteStore(tmp_path / "runs.db")
    await store.append("run", run_of("run")[:1])

    def divides(connection: sqlite3.Connection, touched: dict[str, Any]) -> None:
        if "run" in touched:
            raise ZeroDivisionError
        write_tallies(connection, touched)

    monkeypatch.setattr("aworld.trajectory.sqlite_writer.write_tallies", divides)
    go_on = threading.Event()
    store._writer.call(lambda _: go_on.wait())  # so that all of it is written in one transaction
    failing = store.append("run", run_of("run")[1:2])
    behind = [store.append(f"other-{n}", run_of(f"other-{n}")) for n in range(3)]
    go_on.set()
    with pytest.raises(StoreError, match=r"the writer failed: ZeroDivisionError.*this is a bug"):
        await failing
    for other in behind:
        await other
    monkeypatch.undo()
    await store.append("run", run_of("run")[1:])
    assert await store.read("run") == run_of("run")
    assert await store.count() == 4
    await store.close()
