"""What every test of environments needs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aworld.trajectory import TrajectoryStore, open_store


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[TrajectoryStore]:
    opened = open_store(f"sqlite:///{tmp_path}/runs.db")
    yield opened
    await opened.close()
