"""The context of a task: state that its agents and tools share, and the scope of its run.

Every write of the state is an event of the log.

Members of a team that work side by side may not write the same key, unless the team says how such writes are joined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

from aworld.core.event import ArtifactKept, TaskInfo

T = TypeVar("T")


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


NOT_KEPT = "not_kept"
"""What the log notes of a changed file that cannot be kept: its name, and the error."""


class Blobs(Protocol):
    """Contents by their digest, as a store keeps them."""

    async def put_blob(self, data: bytes) -> str:
        """Store some bytes, once, and return their SHA-256 digest."""
        ...

    async def blob(self, digest: str) -> bytes:
        """What `put_blob` was given. Raises `TaskError` if unknown."""
        ...


class ArtifactSource(Protocol):
    """What has files of a run that are to be kept with its log."""

    async def artifacts(self) -> list[dict[str, Any]]:
        """The fields of `ArtifactKept` of each file that has changed since the last call, its content in the blobs; or
        `name` and `error` of one that cannot be kept."""
        ...


class RunScope:
    """What one run holds: what lives as long as it does, such as a sandbox, a browser or a memory.

    A tool, toolset, environment or memory that holds something for a run says so by `for_run(scope)`, which returns the
    run's own copy of it. The copy may define `async end_run()` (the run is over, whatever its status) and
    `async rest()` (the run waits for a person, maybe for days). Nothing is kept by run id. Made by the runtime.
    A copy that changes files which are to outlive the run puts itself into `sources`.
    """

    __slots__ = ("_copies", "artifacts", "blobs", "sources", "task", "trajectory_id", "used")

    def __init__(
        self,
        trajectory_id: str,
        task: TaskInfo,
        used: frozenset[str] = frozenset(),
        artifacts: dict[tuple[str, str], ArtifactKept] | None = None,
        blobs: Blobs | None = None,
    ) -> None:
        self.trajectory_id = trajectory_id
        self.task = task
        self.used = used
        """Names of the tools that the run had called before it went on here; empty for one that begins. What such a
        tool had put aside when the run rested is to be restored."""
        self.artifacts = {} if artifacts is None else artifacts
        """What the log has of files, by folder and name; where the run goes on elsewhere, it is to be restored."""
        self.blobs = blobs
        """Their contents; None outside of a run."""
        self.sources: list[ArtifactSource] = []
        """Asked for changed files at the end of each step."""
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
