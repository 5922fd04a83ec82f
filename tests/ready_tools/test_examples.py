"""The examples run without a key."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from aworld.core.exceptions import ConfigError
from aworld.tools.browser import find_chromium
from tests.ready_tools.folder_sandbox import FolderSandbox

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


async def test_the_folder_assistant_works_on_a_copy(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text("a\n")
    (folder / "deep/b.txt").write_text("b\n")
    (folder / "out").symlink_to("/etc/passwd")
    assistant = example("folder_assistant")
    box = FolderSandbox(tmp_path / "box")
    response, changed = await assistant.assist("Write a table of contents.", folder, box)
    assert response.success, response.msg
    assert changed == {"CONTENTS.md": b"# Contents\n\n- a.txt\n- deep/\n"}
    assert not (folder / "CONTENTS.md").exists()
    assert "+- a.txt\n" in assistant.difference("CONTENTS.md", b"", changed["CONTENTS.md"])
    assistant.take_over(folder, changed)
    assert (folder / "CONTENTS.md").read_bytes() == changed["CONTENTS.md"]
    with pytest.raises(ValueError, match="leads out"):
        assistant.take_over(folder, {"../evil": b""})


async def test_the_browser_agent_finds_a_price() -> None:
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("Playwright is not installed (pip install playwright)")
    try:
        find_chromium()
    except ConfigError as missing:
        pytest.skip(str(missing))
    response = await example("browser_agent").surf("What does a mango cost?")
    assert response.answer == "One mango costs 2.25 euros."
