"""Pages of the documentation whose blocks run, in order, and print what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[1] / "docs"


def check_page(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Run the blocks of Python of a page as one program; each prints the block of text that follows it, or nothing."""
    page = DOCS / name
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert {kind for kind, _ in blocks} == {"python", "text"}
    names: dict[str, Any] = {"__name__": "page"}
    for (kind, block), (after, output) in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        if kind == "python":
            exec(compile(block, str(page), "exec"), names)
            printed = capsys.readouterr().out
            assert printed == (output if after == "text" else ""), block
