"""The scope of a run: what lives as long as it does, such as a sandbox, a browser or a memory.

A tool, toolset, environment or memory that holds something for a run says so by `for_run(scope)`, which returns the
run's own copy of it. The copy may define `async end_run()` (the run is over, whatever its status) and `async rest()`
(the run waits for a person, maybe for days). Nothing is kept by run id.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar, runtime_checkable

from aworld.core.event import TaskInfo

T = TypeVar("T")


@runtime_checkable
class ForRun(Protocol):
    """Something shared of which each run gets its own copy."""

    def for_run(self, scope: RunScope) -> Any:
        """The run's own copy. What it works through in turn, it gets by `scope.own`."""
        ...


class RunScope:
    """What one run holds. Made by the runtime."""

    __slots__ = ("_copies", "task", "trajectory_id", "used")

    def __init__(self, trajectory_id: str, task: TaskInfo, used: frozenset[str] = frozenset()) -> None:
        self.trajectory_id = trajectory_id
        self.task = task
        self.used = used
        """Names of the tools that the run had called before it went on here; empty for one that begins. What such a
        tool had put aside when the run rested is to be restored."""
        self._copies: dict[int, tuple[Any, Any]] = {}

    def own(self, shared: T) -> T:
        """The run's own copy of something shared, the same one each time; `shared` itself if it has no `for_run`."""
        for_run = getattr(shared, "for_run", None)
        if for_run is None:
            return shared
        known = self._copies.get(id(shared))
        if known is None:
            known = self._copies[id(shared)] = (shared, for_run(self))
        return known[1]

    def copies(self) -> list[Any]:
        """The run's own copies, each once, the latest first."""
        held = {id(copy): copy for shared, copy in reversed(self._copies.values()) if copy is not shared}
        return list(held.values())
