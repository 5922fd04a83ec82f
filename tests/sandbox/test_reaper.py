"""What a dead runtime left behind is found and destroyed; what a living one has is left alone."""

from __future__ import annotations

import logging
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from aworld.core.sandbox import SandboxError
from aworld.sandbox import open_sandbox, reaper
from aworld.sandbox.kinds import KINDS
from aworld.sandbox.reaper import Record, forget, reap, record
from tests.sandbox.places import SMALL, NamedPool, gone, marked, needs_bubblewrap, new_mark


@pytest.fixture
def base(records: Path) -> Path:
    return records


def left_behind(base: Path, kind: str = "folder", id: str = "aworld-dead") -> Path:
    """The record of a runtime that is dead."""
    place = base / "1-dead" / id
    place.mkdir(parents=True)
    base.chmod(0o700)
    (place.parent / "lock").touch()
    (place / "record.json").write_bytes(msgspec.json.encode(Record(id, kind, 1, 0.0)))
    return place


@needs_bubblewrap
async def test_a_killed_runtime_leaves_nothing(base: Path) -> None:
    mark = new_mark()
    runtime = subprocess.Popen(  # noqa: ASYNC220 - there is nothing else to do meanwhile
        [sys.executable, "-m", "tests.sandbox.crashing", mark],
        stdout=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(base.parent)},
        cwd=Path(__file__).parents[2],
    )
    assert runtime.stdout is not None
    assert runtime.stdout.readline() == b"ready\n"
    left = [pid for pid in marked(mark) if pid != runtime.pid]
    boxes = children(runtime.pid)
    assert len(left) >= 5
    assert len(boxes) == 6  # three in use and a prepared one; two workers without a box
    assert await reap() == []  # it lives
    runtime.kill()
    runtime.wait()
    runtime.stdout.close()
    assert gone(left + boxes)
    assert marked(mark) == []
    assert len(list(base.glob("*/*/work/left"))) == 2
    async with NamedPool(lambda: open_sandbox("none", SMALL)) as pool:  # which begins by reaping
        await pool.lease("a")
        await pool.end_run("a")
    assert list(base.iterdir()) == []


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


async def test_records_come_and_go(base: Path) -> None:
    folder = record("aworld-one", "folder")
    (folder / "file").touch()
    record("aworld-two", "container", {"engine": "unix:///x"})
    assert await reap() == []  # they are our own
    (runtime,) = base.iterdir()
    stored = msgspec.json.decode((runtime / "aworld-two" / "record.json").read_bytes(), type=Record)
    assert (stored.kind, stored.pid, stored.detail) == ("container", os.getpid(), {"engine": "unix:///x"})
    await forget("aworld-one")
    assert not folder.exists()
    await forget("aworld-one")
    await forget("aworld-two")
    assert list(base.iterdir()) == []


async def test_orphans_are_destroyed_by_their_kind(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = left_behind(base, kind="tests")
    destroyed: list[str] = []

    class Paper:
        @staticmethod
        async def destroy(found: Record) -> None:
            destroyed.append(found.id)

    monkeypatch.setitem(KINDS, "tests", f"{__name__}:Paper")
    monkeypatch.setattr(sys.modules[__name__], "Paper", Paper, raising=False)
    assert await reap() == ["aworld-dead"]
    assert destroyed == ["aworld-dead"]
    assert not place.parent.exists()


async def test_what_cannot_be_destroyed_is_kept_and_told(
    base: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place = left_behind(base, kind="tests")

    class Paper:
        @staticmethod
        async def destroy(_: Record) -> None:
            raise SandboxError("the engine does not answer")

    monkeypatch.setitem(KINDS, "tests", f"{__name__}:Paper")
    monkeypatch.setattr(sys.modules[__name__], "Paper", Paper, raising=False)
    with caplog.at_level(logging.WARNING):
        assert await reap() == []
    assert "the engine does not answer" in caplog.text
    assert place.exists()


@pytest.mark.parametrize("text", [b"{", b'{"id": "x", "kind": "unheard of", "pid": 1, "at": 0}'])
async def test_a_strange_record_stops_nothing(base: Path, text: bytes, caplog: pytest.LogCaptureFixture) -> None:
    place = left_behind(base)
    (place / "record.json").write_bytes(text)
    (place.parent / "aworld-unwritten").mkdir()
    with caplog.at_level(logging.WARNING):
        assert await reap() == ["aworld-unwritten"]
    assert "aworld-dead" in caplog.text


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # this process has threads; the fork needs none
async def test_a_fork_does_not_keep_its_dead_parent_alive(base: Path) -> None:
    record("aworld-parent", "folder")
    child = multiprocessing.get_context("fork").Process(target=_fork_has_no_lock, args=(str(base),))
    child.start()
    child.join()
    assert child.exitcode == 0
    await forget("aworld-parent")


def _fork_has_no_lock(base: str) -> None:
    locks = [os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if name.isdigit()
             and os.path.islink(f"/proc/self/fd/{name}")]  # fmt: skip
    assert not any(target.startswith(base) for target in locks), locks
    assert not reaper._runtimes


async def test_a_folder_of_somebody_else_is_refused(base: Path) -> None:
    base.mkdir(mode=0o777)
    base.chmod(0o777)
    with pytest.raises(SandboxError, match="set TMPDIR"):
        await reap()
    base.rmdir()
    base.symlink_to(base.parent / "elsewhere")
    (base.parent / "elsewhere").mkdir(mode=0o700)
    with pytest.raises(SandboxError, match="set TMPDIR"):
        record("aworld-x", "folder")
