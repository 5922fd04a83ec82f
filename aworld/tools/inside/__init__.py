"""Programs that run inside a sandbox or a page, never in the runtime. They need no packages, and are sent as text."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def source(name: str, kind: str = "py") -> str:
    """The text of one of these programs: for `python3 -c`, or (`js`) for a page."""
    return (Path(__file__).with_name(f"{name}.{kind}")).read_text(encoding="utf-8")
