"""The blocks of `docs/memory.md` run, in order, and print what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "memory.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_blocks_print_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert {kind for kind, _ in BLOCKS} == {"python", "text"}
    names: dict[str, Any] = {"__name__": "page"}
    for (kind, block), (after, output) in zip(BLOCKS, [*BLOCKS[1:], ("", "")], strict=True):
        if kind == "python":
            exec(compile(block, str(PAGE), "exec"), names)
            printed = capsys.readouterr().out
            assert printed == (output if after == "text" else ""), block
