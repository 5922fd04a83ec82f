"""No test of swarms reads settings of the machine that it runs on, and each closes its connections."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from aworld.models import close_transports


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("PROVIDER", "MODEL_NAME", "API_KEY", "BASE_URL", "TEMPERATURE"):
        monkeypatch.delenv(f"LLM_{variable}", raising=False)
        monkeypatch.delenv(f"OPENAI_{variable}", raising=False)


@pytest.fixture(autouse=True)
async def closed_connections() -> AsyncIterator[None]:
    yield
    await close_transports()
