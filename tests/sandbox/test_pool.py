"""A pool gives each run a sandbox of its own, within bounds, and destroys it whatever happens."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from aworld.config.errors import ConfigError
from aworld.core.sandbox import ExecResult, FileInfo, Sandbox, SandboxError, SandboxProcess, SandboxSource
from aworld.sandbox import SandboxPool, open_sandbox
from tests.sandbox.places import SMALL, NamedPool, needs_bubblewrap


class Paper:
    """A sandbox that is none, for tests of the pool alone."""

    limits_by = "counting"

    def __init__(self, number: int, kin: Factory) -> None:
        self.id = f"paper-{number}"
        self.limits = SMALL
        self.kin = kin
        self.alive = True

    async def close(self) -> None:
        if self.alive:
            await asyncio.sleep(0)
            self.alive = False
            self.kin.living -= 1
            if self.kin.close_error is not None:
                raise self.kin.close_error

    async def exec(self, command: object, **_: object) -> ExecResult:
        raise NotImplementedError

    async def open_process(self, command: object, **_: object) -> SandboxProcess:
        raise NotImplementedError

    async def read(self, path: str) -> bytes:
        raise NotImplementedError

    async def write(self, path: str, data: bytes) -> None:
        raise NotImplementedError

    async def list(self, path: str = ".") -> list[FileInfo]:
        raise NotImplementedError

    async def upload(self, source: Path | str, path: str) -> None:
        raise NotImplementedError

    async def snapshot(self) -> bytes:
        raise NotImplementedError

    async def restore(self, snapshot: bytes) -> None:
        raise NotImplementedError


class Factory:
    """Makes paper sandboxes when `gate` is open, and counts them."""

    def __init__(self) -> None:
        self.made = self.living = self.most = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.errors: list[Exception] = []
        self.close_error: Exception | None = None

    async def __call__(self) -> Sandbox:
        if self.errors:
            raise self.errors.pop(0)
        self.made += 1
        self.living += 1
        self.most = max(self.most, self.living)
        paper = Paper(self.made, self)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            await paper.close()
            raise
        return paper


async def settled(condition: Callable[[], bool]) -> None:
    """Let the tasks of the pool run until something holds."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - a turn of the loop: the pool has no event for each thing it does
            await asyncio.sleep(0)


async def test_it_is_a_source_that_runs_let_go() -> None:
    source: SandboxSource = SandboxPool(Factory())
    assert callable(source.for_run)


async def test_one_run_has_one_sandbox() -> None:
    factory = Factory()
    async with NamedPool(factory, size=4) as pool:
        one, same = await asyncio.gather(pool.lease("a"), pool.lease("a"))
        other = await pool.lease("b")
        assert one is same
        assert one is not other
        await pool.end_run("a")
        assert not one.alive
        await pool.end_run("a")
        await pool.end_run("never seen")
        again = await pool.lease("a")
        assert again is not one
    assert factory.made == 3
    assert factory.living == 0
    with pytest.raises(SandboxError, match="closed"):
        await pool.lease("c")


async def test_prepared_ones_are_taken_and_replaced() -> None:
    factory = Factory()
    async with NamedPool(factory, size=4, warm=2) as pool:
        await settled(lambda: factory.made == 2)
        first = await pool.lease("a")
        assert first.id == "paper-1"
        await settled(lambda: factory.made == 3)
        await asyncio.gather(pool.lease("b"), pool.lease("c"), pool.lease("d"))
        assert factory.most == 4
        await pool.end_run("a")
        await settled(lambda: factory.living == 4)  # its place is used to prepare
        assert factory.most == 4
    assert factory.living == 0


async def test_the_bound_holds_and_who_came_first_is_served_first() -> None:
    factory = Factory()
    async with NamedPool(factory, size=2, warm=1) as pool:
        served: list[str] = []

        async def work(name: str) -> None:
            await pool.lease(name)
            served.append(name)
            await asyncio.sleep(0)
            await pool.end_run(name)

        names = [str(number) for number in range(50)]
        tasks = [asyncio.create_task(work(name)) for name in names]
        await asyncio.gather(*tasks)
        assert served == names
    assert factory.most == 2
    assert factory.living == 0


async def test_cancelled_while_waiting() -> None:
    factory = Factory()
    async with NamedPool(factory, size=1) as pool:
        await pool.lease("a")
        waiting = asyncio.create_task(pool.lease("b"))
        later = asyncio.create_task(pool.lease("c"))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await pool.end_run("b")
        await pool.end_run("a")
        assert (await later).alive
    assert factory.living == 0


async def test_ended_while_it_is_made() -> None:
    factory = Factory()
    factory.gate.clear()
    async with NamedPool(factory, size=1) as pool:
        leasing = asyncio.create_task(pool.lease("a"))
        await settled(lambda: factory.living == 1)
        await pool.end_run("a")
        with pytest.raises(SandboxError, match="the run ended"):
            await leasing
        assert factory.living == 0
        factory.gate.set()
        assert (await pool.lease("b")).alive
    assert factory.living == 0


@pytest.mark.parametrize("steps", range(8))
async def test_cancelled_at_any_moment_nothing_is_lost(steps: int) -> None:
    factory = Factory()
    pool = NamedPool(factory, size=2, warm=1)
    tasks = [asyncio.create_task(pool.lease(name)) for name in "abc"]
    for _ in range(steps):
        await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.gather(*(pool.end_run(name) for name in "abc"))
    assert [(await pool.lease(name)).alive for name in "xy"] == [True, True]  # both places are there
    await pool.close()
    assert factory.living == 0
    assert factory.most <= 2


async def test_a_failure_is_told_to_the_run_and_costs_no_place(caplog: pytest.LogCaptureFixture) -> None:
    factory = Factory()
    async with NamedPool(factory, size=1) as pool:
        factory.errors = [SandboxError("no room"), ValueError("a bug")]
        with pytest.raises(SandboxError, match="no room"):
            await pool.lease("a")
        with pytest.raises(ValueError, match="a bug"):
            await pool.lease("a")
        assert (await pool.lease("a")).alive
        factory.close_error = SandboxError("the engine is away")
        with caplog.at_level(logging.WARNING):
            await pool.end_run("a")
        assert "the engine is away" in caplog.text
        factory.close_error = None
        assert (await pool.lease("b")).alive


async def test_a_prepared_one_that_failed_or_died_is_not_given(caplog: pytest.LogCaptureFixture) -> None:
    factory = Factory()
    factory.errors = [SandboxError("no room yet")]
    async with NamedPool(factory, size=3, warm=1) as pool:
        with caplog.at_level(logging.WARNING):
            assert (await pool.lease("a")).alive
        assert "no room yet" in caplog.text
        await settled(lambda: factory.made == 2)
        await asyncio.sleep(0)
        prepared = await pool.lease("b")
        assert isinstance(prepared, Paper)
        await settled(lambda: factory.made == 3)
        dead = pool._warm[0]
        await settled(dead.done)
        await dead.result().close()
        assert (await pool.lease("c")).alive
    assert factory.living == 0


def test_a_pool_belongs_to_one_loop_while_it_has_sandboxes() -> None:
    """As an agent of a module has it, which one `sync_run` after the other uses."""
    pool, factory = NamedPool(open_sandbox), Factory()
    pool._make = factory

    async def use(name: str, *, ends: bool = True) -> None:
        await pool.lease(name)
        if ends:
            await pool.end_run(name)

    asyncio.run(use("a"))
    asyncio.run(use("b", ends=False))
    with pytest.raises(SandboxError, match="one event loop"):
        asyncio.run(use("c"))


@pytest.mark.parametrize(("size", "warm"), [(0, 0), (2, 3), (1, -1)])
def test_impossible_sizes(size: int, warm: int) -> None:
    with pytest.raises(ConfigError, match=f"size={size}, warm={warm}"):
        NamedPool(open_sandbox, size=size, warm=warm)


@needs_bubblewrap
async def test_a_hundred_runs_at_once() -> None:
    pids: list[int] = []
    async with NamedPool(lambda: open_sandbox("local", SMALL), size=100, warm=5) as pool:

        async def work(name: str) -> bytes:
            sandbox = await pool.lease(name)
            pids.append(sandbox.pid)  # pyright: ignore  # of local ones
            await sandbox.write("name", name.encode())
            result = await sandbox.exec("cat name; sleep 100 &")
            await pool.end_run(name)
            return result.stdout

        names = [f"run-{number}" for number in range(100)]
        assert await asyncio.gather(*map(work, names)) == [name.encode() for name in names]
    assert len(set(pids)) == 100
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


@needs_bubblewrap
async def test_what_a_waiting_run_left_is_deleted_when_it_is_over(tmp_path: Path) -> None:
    async with NamedPool(lambda: open_sandbox("local", SMALL), size=1, keep=tmp_path / "kept") as pool:
        await (await pool.lease("a/run")).write("plan.txt", b"fly")
        await pool.rest("a/run")
        assert pool.holds("a/run")
        assert len(list((tmp_path / "kept").iterdir())) == 1
        await pool.end_run("a/run")  # it was cancelled, and never asked for its sandbox again
        assert not pool.holds("a/run")
        assert not list((tmp_path / "kept").iterdir())
        assert await (await pool.lease("a/run")).list() == []


async def test_a_sandbox_whose_files_cannot_be_kept_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "kept").write_text("a file, where a folder is wanted")
    async with NamedPool(lambda: open_sandbox("none", SMALL), size=1, keep=tmp_path / "kept") as pool:
        box = await pool.lease("run")
        await pool.rest("run")
        assert "its files cannot be kept" in caplog.text
        assert await pool.lease("run") is box
