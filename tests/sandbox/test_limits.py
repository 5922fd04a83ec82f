"""What the limits of a sandbox may be."""

from __future__ import annotations

import re
from typing import Any

import pytest

from aworld.config.errors import ConfigError
from aworld.core.sandbox import SandboxLimits


@pytest.mark.parametrize(
    ("limit", "why"),
    [
        ({"memory_mb": -1}, "memory_mb=-1; give a whole number from 1."),
        ({"memory_mb": 1.5}, "memory_mb=1.5; give a whole number from 1."),
        ({"disk_mb": 0}, "disk_mb=0; give"),
        ({"processes": True}, "processes=True; give"),
        ({"wall_seconds": 0}, "wall_seconds=0; give a number of seconds above 0."),
        ({"wall_seconds": float("inf")}, "wall_seconds=inf; give"),
        ({"wall_seconds": None}, "wall_seconds=None; give"),
        ({"cpu_seconds": "x"}, "cpu_seconds='x'; give"),
        ({"cpu_seconds": float("nan")}, "cpu_seconds=nan; give"),
        ({"network": "no"}, "network='no'; give True or False."),
    ],
)
def test_what_cannot_be_a_limit_is_refused_when_it_is_given(limit: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"SandboxLimits: {why}")):
        SandboxLimits(**limit)


def test_seconds_may_be_whole_or_not() -> None:
    assert SandboxLimits(cpu_seconds=0.5, wall_seconds=3) == SandboxLimits(cpu_seconds=0.5, wall_seconds=3.0)
