"""A place without isolation is had only by asking for it; time, output and its own processes are kept all the same."""

from __future__ import annotations

import gc
import logging
import os
import signal
from pathlib import Path

import pytest

from aworld.config.errors import ConfigError
from aworld.core.sandbox import SandboxError
from aworld.sandbox import open_sandbox
from aworld.sandbox.local_sandbox import LocalSandbox, UnisolatedSandbox
from tests.sandbox.places import SMALL, gone, local, marked, new_mark


async def test_it_warns_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UnisolatedSandbox, "_warned", False)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            await (await open_sandbox("none", SMALL)).close()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "isolation=none" in caplog.text


async def test_commands_files_and_snapshots(records: Path) -> None:
    async with local(isolation="none", env={"SIZE": "9"}) as box:
        await box.write("a/b", b"one")
        assert (await box.exec("cat a/b; echo $SIZE; env | grep -c PYTEST")).stdout == b"one9\n0\n"
        kept = await box.snapshot()
        await box.write("c", b"")
        await box.restore(kept)
        assert [entry.name for entry in await box.list()] == ["a"]
        (work,) = records.glob("*/*/work")
        assert (work / "a" / "b").read_bytes() == b"one"
    assert list(records.iterdir()) == []


async def test_its_processes_end_with_it() -> None:
    mark, other_mark = new_mark(), new_mark()
    async with local(isolation="none") as box:
        late = await box.exec(f"setsid sleep {mark} & trap '' TERM; sleep {mark}", timeout=0.3)
        assert late.timed_out
        assert gone(marked(mark))
        await box.exec(f"setsid nohup sleep {other_mark} >/dev/null 2>&1 &")
        left = marked(other_mark)
    assert left
    assert gone(left, 0)


@pytest.mark.parametrize("keep", [False, True])
async def test_a_worker_that_died_unnoticed_is_told_by_the_next_command(
    keep: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with local(isolation="none") as box:
        await box.exec("true")
        before = len(os.listdir("/proc/self/fd"))
        os.kill(box.pid, signal.SIGKILL)
        assert gone([box.pid])  # the loop is busy here, so it has not heard of it
        assert box.alive
        with pytest.raises(SandboxError, match="cannot be reached"):
            await (box.open_process(["true"]) if keep else box.exec("true", stdin=b"x"))
        assert len(os.listdir("/proc/self/fd")) < before
        with pytest.raises(SandboxError, match="cannot be reached"):
            await box.exec("true")
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_what_its_processes_locked_is_deleted(records: Path) -> None:
    async with local(isolation="none") as box:
        await box.exec("mkdir -p a/b; echo x > a/b/c; chmod 0 a/b; chmod 500 a")
    assert list(records.iterdir()) == []


async def test_paths_that_lead_out_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("host")
    async with local(isolation="none") as box:
        await box.exec(f"ln -s {tmp_path} out; ln -s {tmp_path}/new made")
        for path in ("out/secret", f"{tmp_path}/secret", "../record.json"):
            with pytest.raises(SandboxError, match="leads out"):
                await box.read(path)
        for path in ("out/new", "made", "../new"):
            with pytest.raises(SandboxError, match="leads out"):
                await box.write(path, b"x")
    assert not (tmp_path / "new").exists()


async def test_what_it_cannot_do_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="readonly="):
        await LocalSandbox.open(isolation="none", readonly={"/x": tmp_path})
    with pytest.raises(FileNotFoundError):
        await LocalSandbox.open(isolation="none", python="/no/python")
    assert list(tmp_path.glob("*/*/aworld-*")) == []
