"""What every test of the ready tools needs: connections closed, an environment without keys."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aworld.models import close_transports
from aworld.trajectory import TrajectoryStore, open_store


@pytest.fixture(autouse=True)
async def closed_connections() -> AsyncIterator[None]:
    yield
    await close_transports()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[TrajectoryStore]:
    opened = open_store(f"sqlite:///{tmp_path}/runs.db")
    yield opened
    await opened.close()
