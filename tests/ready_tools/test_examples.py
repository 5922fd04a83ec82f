"""The examples run without a key."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from aworld.core.exceptions import ConfigError
from aworld.tools.browser import find_chromium

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLM_MODEL_NAME", raising=False)


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


async def test_the_browser_agent_finds_a_price() -> None:
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("Playwright is not installed (pip install playwright)")
    try:
        find_chromium()
    except ConfigError as missing:
        pytest.skip(str(missing))
    response = await example("browser_agent").surf("What does a mango cost?")
    assert response.answer == "One mango costs 2.25 euros."
