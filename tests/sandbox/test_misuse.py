"""What a caller gets wrong is told in words of ours, before anything is done."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from aworld.config.errors import ConfigError
from aworld.core.sandbox import Sandbox, SandboxLimits
from aworld.sandbox import SandboxPool, open_sandbox
from aworld.tools.python import python_tool
from aworld.tools.sandboxed import shell_tool
from aworld.tools.search import search_tool
from tests.sandbox.places import SMALL, local


@pytest.mark.parametrize(
    ("limits", "options", "why"),
    [
        ({"wall_seconds": 3}, {}, "open_sandbox 'none': limits=dict(...); give a SandboxLimits"),
        (
            None,
            {"isolation": "x"},
            "isolation= | not an option of open_sandbox('none'); there are python, readonly, env",
        ),
        (None, {"colour": "red"}, "colour= | not an option of open_sandbox('none')"),
    ],
)
async def test_opening(limits: Any, options: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(why)):
        await open_sandbox("none", limits, **options)


async def test_text_in_place_of_bytes() -> None:
    async with local(isolation="none") as box:
        place: Any = box
        with pytest.raises(ConfigError, match=r"data \| must be bytes, not str; encode it: data.encode\(\)"):
            await place.write("c", "abc")
        with pytest.raises(ConfigError, match=r"stdin \| must be bytes, not str"):
            await place.exec("cat", stdin="abc")
        with pytest.raises(ConfigError, match=r"snapshot \| must be bytes, not .*Path; give bytes"):
            await place.restore(Path("x"))
        assert await box.list() == []


async def test_a_time_that_is_none() -> None:
    async with local(isolation="none") as box:
        for bad in (-1, 0, float("nan"), "3"):
            with pytest.raises(ConfigError, match=r"timeout=.*: a number, more than zero"):
                await box.exec("sleep 30", timeout=bad)  # pyright: ignore[reportArgumentType]


async def test_the_source_of_an_upload_may_be_text(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_bytes(b"1")
    async with local(isolation="none") as box:
        await box.upload(str(folder), "x")
        await box.upload(str(folder / "a"), "y")
        assert (await box.read("x/a"), await box.read("y")) == (b"1", b"1")


async def _never() -> Sandbox:
    raise AssertionError


def test_sizes_of_a_pool() -> None:
    for options in ({"size": "a"}, {"size": 0}, {"size": 2, "warm": 3}, {"warm": "a"}, {"size": True}):
        with pytest.raises(ConfigError, match=r"size=.*, warm=.* \| a pool needs whole numbers"):
            SandboxPool(_never, **options)  # pyright: ignore[reportArgumentType]


async def test_times_of_tools() -> None:
    async with SandboxPool(lambda: open_sandbox("none", SMALL)) as pool:
        for make in (python_tool, shell_tool):
            with pytest.raises(ConfigError, match="timeout=-1"):
                make(pool, timeout=-1)
    with pytest.raises(ConfigError, match="timeout=-1"):
        search_tool("searxng", timeout=-1)


class PaperSandbox:
    """What a package might add."""

    @classmethod
    async def open(cls, limits: SandboxLimits | None = None, *, colour: str = "white") -> str:
        return f"{colour} paper"


async def test_a_package_adds_a_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "paper-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: paper\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(f"[aworld.sandboxes]\npaper = {__name__}:PaperSandbox\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    opened: Any = await open_sandbox("paper", colour="red")
    assert opened == "red paper"
    with pytest.raises(ConfigError, match=r"size= \| not an option of open_sandbox\('paper'\); there are colour"):
        await open_sandbox("paper", size=3)
    for name in ("paper:A4", "stone", "container", "local:x"):
        with pytest.raises(ConfigError, match=f"sandbox='{name}' . not a kind of sandbox; use local, none, container:"):
            await open_sandbox(name)
