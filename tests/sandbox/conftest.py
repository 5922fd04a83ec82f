"""Fixtures of the tests of sandboxes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import pytest

from aworld.sandbox import reaper
from aworld.sandbox.local_sandbox import LimitsBy
from tests.sandbox.e2b_server import Server, served
from tests.sandbox.places import needs_group

SHARED = tempfile.gettempdir()


@pytest.fixture(autouse=True)
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of records, each test's own. Every test must have destroyed what it made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(reaper, "_runtimes", dict[int, object]())  # whatever other tests of this process left open
    yield tmp_path / f"aworld-sandboxes-{os.geteuid()}"
    assert not reaper._runtimes


@pytest.fixture
async def e2b(monkeypatch: pytest.MonkeyPatch, open_folder: Path) -> AsyncGenerator[Server]:
    """A server that speaks what E2B's does, for the SDK."""
    async with served(monkeypatch, open_folder) as server:
        yield server


@pytest.fixture(params=["cgroup", "counting"])
def way(request: pytest.FixtureRequest) -> LimitsBy:
    """Each way of keeping limits that can be had here."""
    if request.param == "cgroup":
        needs_group()
    return request.param


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user can read: a runtime that is root starts sandboxes as another user."""
    with tempfile.TemporaryDirectory(prefix="aworld-test-", dir=SHARED) as name:
        Path(name).chmod(0o755)
        yield Path(name)
