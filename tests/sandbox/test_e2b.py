"""A sandbox of E2B. Needs the extra `e2b` and a key in E2B_API_KEY."""

from __future__ import annotations

import importlib.util
import os
import sys

import pytest

from aworld.config.errors import ConfigError
from aworld.core.sandbox import FileInfo, SandboxError
from aworld.sandbox import open_sandbox
from tests.sandbox.places import SMALL

needs_e2b = pytest.mark.skipif(
    importlib.util.find_spec("e2b") is None or not os.environ.get("E2B_API_KEY"),
    reason="needs the extra e2b and a key in E2B_API_KEY",
)


async def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "e2b", None)
    with pytest.raises(ConfigError, match=r"pip install 'aworld\[e2b\]'"):
        await open_sandbox("e2b")


async def test_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "e2b", os)  # any module will do: the key is asked for first
    monkeypatch.delenv("E2B_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="E2B_API_KEY"):
        await open_sandbox("e2b:base")


@needs_e2b
async def test_commands_and_files() -> None:
    box = await open_sandbox("e2b", SMALL)
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
        late = await box.exec("trap '' TERM; sleep 60", timeout=1)
        assert late.timed_out
        assert (await box.exec("head -c 1000000 /dev/zero")).truncated
        with pytest.raises(FileNotFoundError):
            await box.read("missing")
        with pytest.raises(SandboxError, match="leads out"):
            await box.read("../.bashrc")
        assert (await box.exec("curl -m 3 https://example.com")).exit_code != 0
    finally:
        await box.close()
