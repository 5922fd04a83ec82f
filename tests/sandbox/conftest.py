"""Fixtures of the tests of sandboxes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from aworld.sandbox import reaper


@pytest.fixture(autouse=True)
def own_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records go where the test's TMPDIR says, also when an earlier test of this process left a sandbox open."""
    monkeypatch.setattr(reaper, "_runtimes", dict[int, object]())


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user can read: a runtime that is root starts sandboxes as another user."""
    with tempfile.TemporaryDirectory(prefix="aworld-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)
