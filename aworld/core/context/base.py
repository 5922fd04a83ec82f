"""The context of a task: state that its agents and tools share. Every write is an event of the log.

Members of a team that work side by side may not write the same key, unless the team says how such writes are joined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from aworld.core.event import TaskInfo


class Context(Mapping[str, Any]):
    """State of one run: read like a mapping, written with `set`. Values are JSON-able."""

    __slots__ = ("_state", "_write", "task", "trajectory_id")

    def __init__(
        self,
        trajectory_id: str,
        task: TaskInfo,
        state: dict[str, Any],
        write: Callable[[str, Any], None],
    ) -> None:
        self.trajectory_id = trajectory_id
        self.task = task
        self._state = state
        self._write = write

    def set(self, key: str, value: Any) -> None:
        """Set a key for all agents and tools of the task. The value must be JSON-able."""
        self._write(key, value)

    def __getitem__(self, key: str) -> Any:
        return self._state[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)

    def __repr__(self) -> str:
        return f"<Context of {self.trajectory_id}: {self._state!r}>"
