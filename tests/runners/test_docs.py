"""The blocks of `docs/running.md` run, in order, and print what the page says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pages import check_page


def test_blocks_print_what_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    check_page("running.md", capsys)
