"""Programs that run inside a sandbox, never in the runtime. They need nothing but Python, and are sent as text."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def source(name: str) -> str:
    """The text of one of these programs, for `python3 -c`."""
    return (Path(__file__).with_name(f"{name}.py")).read_text(encoding="utf-8")
