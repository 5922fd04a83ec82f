"""The blocks of `docs/models.md` run, in order, and print what the page says."""

from __future__ import annotations

import pytest

from tests.pages import check_page


def test_blocks_print_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    check_page("models.md", capsys)
