"""A sandbox of E2B: its SDK, and a server on this machine that speaks the same."""

from __future__ import annotations

import os
import sys

import pytest

from aworld.config.errors import ConfigError
from aworld.core.sandbox import FileInfo, SandboxError
from aworld.sandbox import open_sandbox
from aworld.sandbox.e2b import E2BSandbox
from aworld.sandbox.reaper import Record
from tests.sandbox.e2b_server import Server
from tests.sandbox.places import SMALL, keeps_variables, needs_e2b


async def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "e2b", None)
    with pytest.raises(ConfigError, match=r'pip install "e2b>=2\.63"'):
        await open_sandbox("e2b")


async def test_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "e2b", os)  # any module will do: the key is asked for first
    monkeypatch.delenv("E2B_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="E2B_API_KEY"):
        await open_sandbox("e2b:base")


@needs_e2b
async def test_commands_and_files(e2b: Server) -> None:
    box = await open_sandbox("e2b:base", SMALL)
    assert [(made["templateID"], made["allow_internet_access"]) for made in e2b.made] == [("base", False)]
    try:
        result = await box.exec("printf '\\377'; cat; echo oops >&2; exit 3", stdin=b"in")
        assert (result.exit_code, result.stdout, result.stderr) == (3, b"\xffin", b"oops\n")
        await box.write("a/b", bytes(range(256)))
        assert await box.read("a/b") == bytes(range(256))
        assert await box.list() == [FileInfo("a", True, 0)]
        kept = await box.snapshot()
        await box.exec("rm -r a; touch c")
        await box.restore(kept)
        assert [entry.name for entry in await box.list()] == ["a"]
        with pytest.raises(SandboxError, match="ended with"):
            await box.restore(b"no archive" + bytes(1024))
        late = await box.exec("trap '' TERM; sleep 60", timeout=0.3)
        assert (late.timed_out, late.limit) == (True, "wall_seconds")
        busy = await box.exec("ulimit -t 100; while :; do :; done", timeout=60)
        assert busy.limit == "cpu_seconds"
        assert (await box.exec("head -c 1000000 /dev/zero")).truncated
        with pytest.raises(FileNotFoundError):
            await box.read("missing")
        with pytest.raises(SandboxError, match="leads out"):
            await box.read("../.bashrc")
    finally:
        await box.close()
    assert e2b.killed == ["box1"]
    with pytest.raises(SandboxError, match="closed"):
        await box.exec("true")


@needs_e2b
async def test_an_orphan_is_killed_by_a_later_runtime(e2b: Server) -> None:
    await E2BSandbox.destroy(Record("aworld-1", "e2b", 1, 0.0, {"sandbox": "box7"}))
    assert e2b.killed == ["box7"]


@needs_e2b
async def test_python_keeps_its_variables(e2b: Server) -> None:
    await keeps_variables("e2b")
