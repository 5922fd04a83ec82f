"""What the tests of tools share."""

from __future__ import annotations

from typing import Any

import pytest

from aworld.core.context.base import Context
from aworld.core.event import TaskInfo
from aworld.core.tool import ToolContext


@pytest.fixture
def context() -> ToolContext:
    """The context of a call, whose state is a plain dictionary."""
    state: dict[str, Any] = {}
    return ToolContext("run-1", "bob", 0, "call-1", Context("run-1", TaskInfo("task-1"), state, state.__setitem__))
