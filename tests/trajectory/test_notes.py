"""Notes: by anybody, at any time, numbered by the store, and never in the way of the run."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from aworld.core.event import (
    Answered,
    Asked,
    Commanded,
    Labelled,
    Note,
    Noted,
    Rewarded,
    Unknown,
)
from aworld.core.exceptions import StoreError, TaskError
from aworld.trajectory import Query, TrajectoryStore, open_store
from aworld.trajectory.sqlite import SQLiteStore
from aworld.trajectory.summary import Tally
from tests.strategies import fork_of, run_of
from tests.trajectory.processes import bury, child, said, until


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[TrajectoryStore]:
    kind: str = request.param
    store = open_store("memory:" if kind == "memory" else str(tmp_path / "runs.db"))
    yield store
    await store.close()


def comment(name: str) -> Noted:
    return Noted(seq=-1, at=2e9, source="person", name=name)


async def test_notes_are_numbered_and_change_the_summary(store: TrajectoryStore) -> None:
    log = run_of("run", score=0.5)
    await store.append("run", log)
    assert await store.note("run", [comment("first"), Rewarded(seq=7, at=2e9, value=2.0, weight=0.25)]) == [0, 1]
    labelled = Labelled(seq=-1, at=2e9, labels={"split": "test", "no": None})
    raw = b'{"kind":"verdict","seq":-1,"at":2.0,"by":"a judge"}'
    unknown = Unknown(seq=-1, at=2.0, name="verdict", raw=raw)
    assert await store.note("run", [labelled, unknown]) == [2, 3]
    assert await store.note("run", []) == []
    notes = await store.notes("run")
    assert [note.seq for note in notes] == [0, 1, 2, 3]
    assert [type(note) for note in notes] == [Noted, Rewarded, Labelled, Unknown]
    assert await store.notes("run", after=2) == notes[3:]
    assert await store.notes("run", after=9) == []
    assert await store.read("run") == log
    (summary,) = await store.query(Query(labels={"split": "test"}))
    assert (summary.score, summary.notes, summary.status) == (1.0, 4, "finished")
    assert summary == Tally.of("run", log, notes).summary()


async def test_an_answer_from_outside_ends_the_waiting(store: TrajectoryStore) -> None:
    log = run_of("run", status="running")
    await store.append("run", [*log, Asked(seq=len(log), at=1.0, id="q", question="May I?")])
    assert (await store.query())[0].status == "waiting"
    await store.note("run", [Answered(seq=-1, at=1.0, id="q", answer="Yes.")])
    assert (await store.query())[0].status == "running"


async def test_a_run_goes_on_whatever_is_noted_meanwhile(store: TrajectoryStore) -> None:
    log = run_of("run", steps=3)
    lease = await store.claim("run", new=True)
    for event in log:
        await store.append("run", [event])
        await store.note("run", [comment(str(event.seq))])
    assert await store.read("run") == log
    assert [note.seq for note in lease.inbox] == list(range(len(log)))
    assert await store.notes("run") == list(lease.inbox)


async def test_the_inbox_begins_with_what_was_noted_before(store: TrajectoryStore) -> None:
    await store.append("run", run_of("run", status="running"))
    await store.note("run", [comment(str(n)) for n in range(4)])
    lease = await store.claim("run", notes_after=1)
    await store.note("run", [comment("4")])
    assert [note.seq for note in lease.inbox] == [2, 3, 4]


async def test_the_alarm_rings_in_the_loop_of_the_owner(store: TrajectoryStore) -> None:
    lease = await store.claim("run", new=True)
    await store.append("run", run_of("run")[:3])
    rung = asyncio.Event()
    lease.alarm = rung.set
    await asyncio.to_thread(asyncio.run, _cancel(store))
    async with asyncio.timeout(5):
        await rung.wait()
    (note,) = lease.inbox
    assert isinstance(note, Commanded)


async def _cancel(store: TrajectoryStore) -> None:
    await store.note("run", [Commanded(seq=-1, at=1.0, action="cancel")])


async def test_a_command_for_a_run_that_has_ended_is_refused(store: TrajectoryStore) -> None:
    await store.append("run", run_of("run", status="failed"))
    with pytest.raises(TaskError, match=r"'run' has ended \(failed\)"):
        await store.note("run", [comment("not even this"), Commanded(seq=-1, at=1.0, action="cancel")])
    assert await store.notes("run") == []
    assert await store.note("run", [comment("well done")]) == [0]


async def test_notes_about_nothing_are_refused(store: TrajectoryStore) -> None:
    await store.append("weather-paris", run_of("weather-paris"))
    for attempt in (lambda: store.note("weather-pari", [comment("?")]), lambda: store.notes("weather-pari")):
        with pytest.raises(TaskError, match="did you mean 'weather-paris'"):
            await attempt()


async def test_a_fork_has_notes_of_its_own(store: TrajectoryStore) -> None:
    log = run_of("parent")
    await store.append("parent", log)
    await store.note("parent", [comment("of the parent"), Rewarded(seq=-1, at=2e9, value=3.0)])
    await store.append("child", fork_of(log, "child", 4))
    assert await store.notes("child") == []
    assert await store.note("child", [comment("of the child")]) == [0]
    (summary,) = await store.query(Query(ids=("child",)))
    assert (summary.notes, summary.score) == (1, None)


async def test_notes_go_with_their_trajectory(store: TrajectoryStore) -> None:
    await store.append("run", run_of("run"))
    await store.note("run", [comment("gone")])
    await store.delete("run")
    await store.append("run", run_of("run"))
    assert await store.notes("run") == []
    assert await store.note("run", [comment("first again")]) == [0]


async def test_a_note_that_is_no_json_is_refused_alone(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "runs.db")
    await store.append("run", run_of("run"))
    bad = Noted(seq=-1, at=1.0, source="hook", name="object", data=object())
    with pytest.raises(
        StoreError, match="Noted of trajectory 'run' could not be read back and was not written: Encoding objects"
    ):
        await store.note("run", [bad])
    assert await store.note("run", [comment("good")]) == [0]
    await store.close()


async def test_the_summary_is_the_same_after_the_writer_forgot_the_run(tmp_path: Path) -> None:
    log = run_of("run", status="running")
    notes: list[Note] = [
        Rewarded(seq=0, at=2e9, value=None, error="The judge was away."),
        Labelled(seq=1, at=2e9, labels={"split": "test"}),
        Rewarded(seq=2, at=2e9, value=0.5, name="other"),
        Rewarded(seq=3, at=2e9, value=0.25),
    ]
    store = SQLiteStore(tmp_path / "runs.db")
    await store.append("run", log)
    for count, note in enumerate(notes, 1):
        await store.note("run", [note])
        await store.close()
        store = SQLiteStore(tmp_path / "runs.db")
        assert await store.query() == [Tally.of("run", log, notes[:count]).summary()]
    await store.close()


NOTER = """
    async def main():
        async def one(n):
            (number,) = await store.note("run", [Noted(seq=-1, at=1.0, source=sys.argv[2], name=str(n))])
            print(number, n)
        for first in range(0, 60, 20):
            await asyncio.gather(*(one(n) for n in range(first, first + 20)))
        await store.close()

    asyncio.run(main())
"""


async def test_of_many_notes_by_three_processes_none_is_lost_and_none_doubled(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    store = SQLiteStore(path)
    log = run_of("run", steps=30)
    lease = await store.claim("run", new=True)
    await store.append("run", log[:1])
    processes = [child(NOTER, path, name) for name in ("a", "b", "c")]
    try:
        for event in log[1:-1]:  # the run goes on meanwhile, and notes something itself
            await store.append("run", [event])
            await store.note("run", [comment(str(event.seq))])
        told: dict[int, tuple[str, str]] = {}
        for name, process in zip("abc", processes):
            output, _ = await asyncio.to_thread(process.communicate, timeout=60)
            told.update({int(line.split()[0]): (name, line.split()[1]) for line in output.splitlines()})
        told_by_us = len(log) - 2
        notes = await store.notes("run")
        assert [note.seq for note in notes] == list(range(180 + told_by_us))
        assert len(told) == 180
        for number, (source, name) in told.items():
            note = notes[number]
            assert isinstance(note, Noted)
            assert (note.source, note.name) == (source, name)
        await until(lambda: len(lease.inbox) >= len(notes))
        assert list(lease.inbox) == notes
        assert (await store.query())[0].notes == len(notes)
        await store.append("run", log[-1:])
        assert await store.read("run") == log
    finally:
        bury(*processes)
    await store.close()


KILLED = """
    async def main():
        await store.append("run", run_of("run"))
        n = 0
        while True:
            await store.note("run", [Noted(seq=-1, at=1.0, source="child", name=str(n))])
            digest = await store.put_blob(b"x" * n)
            print(n, digest)
            n += 1

    asyncio.run(main())
"""


async def test_what_was_noted_survives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    process = child(KILLED, path)
    lines = [said(process) for _ in range(40)]
    process.send_signal(signal.SIGKILL)
    bury(process)
    store = SQLiteStore(path)
    names: list[Any] = [note.name for note in await store.notes("run") if isinstance(note, Noted)]
    for line in lines:
        number, digest = line.split()
        assert names[int(number)] == number
        assert await store.blob(digest) == b"x" * int(number)
    assert await store.note("run", [comment("after")]) == [len(names)]
    await store.close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
