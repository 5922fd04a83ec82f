"""Whoever follows runs sees what is stored of them, early or late, from here or from another process: all of it, once,
in order."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aworld.core.event import Event, Note, Noted
from aworld.core.output import TextOutput
from aworld.trajectory import Query, TrajectoryStore, hub, open_store
from aworld.trajectory.hub import NoteAdded
from aworld.trajectory.sqlite import SQLiteStore
from tests.strategies import fork_of, logs, run_of
from tests.trajectory.processes import bury, child, said, until


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[TrajectoryStore]:
    kind: str = request.param
    store = open_store("memory:" if kind == "memory" else str(tmp_path / "runs.db"))
    yield store
    await store.close()


class Follower:
    """What one follower has seen, by run."""

    def __init__(self, store: TrajectoryStore, ids: Any, **after: int) -> None:
        self.events: dict[str, list[Event]] = {}
        self.notes: dict[str, list[Note]] = {}
        self.outputs: list[str] = []
        self._news = asyncio.Event()
        self._task = asyncio.ensure_future(self._follow(store, ids, after))

    async def _follow(self, store: TrajectoryStore, ids: Any, after: dict[str, int]) -> None:
        async for id, entry in store.follow(ids, **after):
            if isinstance(entry, NoteAdded):
                self.notes.setdefault(id, []).append(entry.note)
            elif isinstance(entry, TextOutput):
                self.outputs.append(entry.text)
            else:
                assert not isinstance(entry, hub.Output)
                self.events.setdefault(id, []).append(entry)
            self._news.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not holds():
                self._news.clear()
                await self._news.wait()

    async def leave(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        assert self._task.cancelled(), self._task.exception()


def comment(name: str) -> Noted:
    return Noted(seq=-1, at=2e9, source="person", name=name)


def text(id: str, text: str) -> TextOutput:
    return TextOutput(trajectory_id=id, agent="lead", step=0, text=text)


async def test_early_and_late_followers_see_the_same(store: TrajectoryStore) -> None:
    log = run_of("run", steps=3)
    early, other = Follower(store, "run"), Follower(store, ["other"])
    await asyncio.sleep(0)
    await store.append("run", log[:5])
    store.append("run", log[5:8], wait=False)
    await store.note("run", [comment("a")])
    middle, resumed = Follower(store, ["run", "other"]), Follower(store, "run", after=6, notes_after=0)
    await asyncio.sleep(0)
    await store.append("run", log[8:])
    await store.note("run", [comment("b")])
    await store.append("other", run_of("other"))
    late = Follower(store, Query())
    notes = await store.notes("run")
    for follower in (early, middle, late):
        await follower.until(lambda f=follower: f.events.get("run") == log and f.notes.get("run") == notes)
    await resumed.until(lambda: resumed.events.get("run") == log[7:] and resumed.notes.get("run") == notes[1:])
    for follower in (other, middle, late):
        await follower.until(lambda f=follower: f.events.get("other") == run_of("other"))
    for follower in (early, middle, late, resumed, other):
        await follower.leave()
    assert not store.hub.topics
    assert not store.hub.expectant


async def test_runs_that_begin_later_are_followed_if_they_match(store: TrajectoryStore) -> None:
    await store.append("a-0", run_of("a-0"))
    await store.append("b-0", run_of("b-0"))
    follower = Follower(store, Query(prefix="a-"))
    await follower.until(lambda: "a-0" in follower.events)
    for n in range(1, 5):
        for name in ("a", "b"):
            await store.append(f"{name}-{n}", run_of(f"{name}-{n}")[:3])
    for n in range(1, 5):
        await store.append(f"a-{n}", run_of(f"a-{n}")[3:])
    expected = {f"a-{n}": run_of(f"a-{n}") for n in range(5)}
    await follower.until(lambda: follower.events == expected)
    await follower.leave()


async def test_a_fork_is_followed_with_what_it_shares(store: TrajectoryStore) -> None:
    log = run_of("parent")
    await store.append("parent", log)
    follower, resumed = Follower(store, "child"), Follower(store, "child", after=2)
    await asyncio.sleep(0)
    child = fork_of(log, "child", 5)
    for event in child:
        await store.append("child", [event])
    await follower.until(lambda: follower.events.get("child") == log[:5] + child)
    await resumed.until(lambda: resumed.events.get("child") == log[3:5] + child)
    await follower.leave()
    await resumed.leave()


async def test_outputs_that_are_not_stored_come_between_the_events(store: TrajectoryStore) -> None:
    log = run_of("run")
    store.hub.push("run", text("run", "nobody listens"))
    assert "run" not in store.hub.topics
    with store.hub.subscribe("run") as subscription:
        assert "run" in store.hub.topics
        await store.append("run", log[:2])
        store.hub.push("run", text("run", "Be"))
        store.hub.push("other", text("other", "not here"))
        store.hub.push("run", text("run", "cause"))
        await store.append("run", log[2:3])
        entries = [subscription.entries.popleft() for _ in range(5)]
        assert [entry for _, entry in entries] == [
            *log[:2], text("run", "Be"), text("run", "cause"), log[2]
        ]  # fmt: skip
        assert not subscription.entries
    assert "run" not in store.hub.topics


async def test_a_slow_follower_reads_what_it_has_missed(
    store: TrajectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "BACKLOG", 5)
    log = run_of("run", steps=6)
    seen: list[Any] = []
    async with asyncio.timeout(20):
        await store.append("run", log[:1])
        async for _, entry in store.follow("run"):
            seen.append(entry)
            if len(seen) == 1:  # all the rest comes while the follower is held up here
                for event in log[1:-1]:
                    await store.append("run", [event])
                await store.note("run", [comment("late")])
                store.hub.push("run", text("run", "one too many"))
                await store.append("run", log[-1:])
            if len(seen) == len(log) + 1:
                break
    assert [entry for entry in seen if not isinstance(entry, NoteAdded)] == log
    assert [entry.note for entry in seen if isinstance(entry, NoteAdded)] == await store.notes("run")


async def test_a_store_that_is_closed_lets_its_followers_go(store: TrajectoryStore) -> None:
    log = run_of("run")
    seen: list[Any] = []

    async def follow() -> None:
        async for _, entry in store.follow("run"):
            seen.append(entry)

    await store.append("run", log[:3])
    task = asyncio.ensure_future(follow())
    await until(lambda: len(seen) == 3)
    await store.append("run", log[3:])
    await store.close()
    async with asyncio.timeout(5):
        await task
    assert seen == log


async def test_followers_of_several_loops(store: TrajectoryStore) -> None:
    log = run_of("run", steps=4)
    counts: list[int] = []

    async def follow() -> None:
        async with asyncio.timeout(20):
            async for _, entry in store.follow("run"):
                if entry == log[-1]:
                    break
        counts.append(1)

    threads = [asyncio.to_thread(asyncio.run, follow()) for _ in range(3)]

    async def write() -> None:
        for event in log:
            await store.append("run", [event])

    await asyncio.gather(*threads, write())
    assert len(counts) == 3


@settings(max_examples=25, deadline=None)
@given(logs("run"), st.lists(st.integers(0, 3), min_size=1, max_size=12), st.data())
def test_what_followers_saw_is_the_stored_log(log: list[Event], moves: list[int], data: st.DataObject) -> None:
    """Events by this store object, notes by it and by another on the same file, and followers that come at any time."""

    async def main(store: TrajectoryStore, other: TrajectoryStore) -> None:
        followers: list[Follower] = []
        place = notes = 0
        for move in [*moves, 0]:
            end = data.draw(st.integers(place, len(log))) if move == 0 else place
            if end > place:
                await store.append("run", log[place:end])
                place = end
            elif move == 1 and place:
                await store.note("run", [comment("here")])
                notes += 1
            elif move == 2 and place:
                await other.note("run", [comment("there")])
                notes += 1
            elif move == 3:
                query = data.draw(st.booleans())
                followers.append(Follower(data.draw(st.sampled_from([store, other])), Query() if query else "run"))
                await asyncio.sleep(0)
        if place:
            followers.append(Follower(store, "run"))
            stored = await store.notes("run")
            assert len(stored) == notes
            for follower in followers:
                await follower.until(
                    lambda f=follower: (
                        len(f.events.get("run", [])) >= place and len(f.notes.get("run", [])) >= len(stored)
                    )
                )
                assert follower.events.get("run") == log[:place] == await store.read("run")
                assert follower.notes.get("run", []) == stored
        for follower in followers:
            await follower.leave()

    async def memory() -> None:
        store = open_store("memory:")
        await main(store, store)
        await store.close()

    async def sqlite(folder: str) -> None:
        one, two = SQLiteStore(f"{folder}/runs.db"), SQLiteStore(f"{folder}/runs.db")
        await main(one, two)
        await one.close()
        await two.close()

    asyncio.run(memory())
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(sqlite(folder))


RUNNER = """
    async def one(id):
        lease = await store.claim(id, new=True)
        for event in run_of(id, steps=10):
            await store.append(id, [event])
            await store.note(id, [Noted(seq=-1, at=1.0, source="child", name=str(event.seq))])

    async def main():
        await one("first")
        print("began")
        sys.stdin.readline()
        await asyncio.gather(*(one(f"run-{n}") for n in range(10)))
        await store.close()

    asyncio.run(main())
"""


async def test_runs_of_another_process_are_followed(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    store = SQLiteStore(path)
    waiting = Follower(store, "run-3")  # the file is not there yet
    process = child(RUNNER, path)
    try:
        assert said(process) == "began"
        every, one = Follower(store, Query()), Follower(store, ["first", "run-7"], after=3)
        await every.until(lambda: every.events.get("first") == run_of("first", steps=10))
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        expected = {f"run-{n}": run_of(f"run-{n}", steps=10) for n in range(10)}
        expected["first"] = run_of("first", steps=10)
        await every.until(lambda: every.events == expected)
        await one.until(lambda: one.events == {id: expected[id][4:] for id in ("first", "run-7")})
        await waiting.until(lambda: waiting.events == {"run-3": expected["run-3"]})
        for id, events in expected.items():
            await every.until(lambda id=id, events=events: len(every.notes.get(id, [])) == len(events))
            assert every.notes[id] == await store.notes(id)
        for follower in (every, one, waiting):
            await follower.leave()
    finally:
        bury(process)
    await store.close()


async def test_nothing_is_watched_without_followers_and_claims(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "runs.db")
    await store.append("run", run_of("run"))
    watch = store._writer._watch
    assert watch.pause() is None
    follower = Follower(store, "run")
    await follower.until(lambda: bool(follower.events))
    assert watch.pause() is not None
    await follower.leave()
    assert watch.pause() is None
    lease = await store.claim("run")
    assert watch.pause() is not None
    store.release(lease)
    await store.flush()
    assert watch.pause() is None
    await store.close()
