"""The place where the tools of a run work: a sandbox that was given, or the one that its source keeps for the run."""

from __future__ import annotations

from typing import cast

from aworld.core.exceptions import ConfigError, ToolError
from aworld.core.sandbox import Sandbox, SandboxSource
from aworld.core.tool.base import ToolContext

LONGEST = 20_000
"""Characters of output shown to a model, about 5,000 tokens; the middle of more is cut."""
LOST = (
    "The sandbox of this run is gone with the process that it belonged to: it is empty now, files and variables are "
    "lost. This call was not carried out. Make again what you need."
)


class Place:
    """Where the tools of a run work.

    From a source of sandboxes each run has its own, for as long as the run lasts. A sandbox that is given as such is
    used by every run and belongs to whoever opened it. Tools that share a sandbox share a place.
    """

    @classmethod
    def of(cls, given: Sandbox | SandboxSource | Place) -> Place:
        """A place for what was given, which may be one already. Raises ConfigError for anything else."""
        return given if isinstance(given, Place) else cls(given)

    def __init__(self, given: Sandbox | SandboxSource) -> None:
        self._source: SandboxSource | None = None
        self._sandbox: Sandbox | None = None
        self._lost: set[str] = set()
        """Runs that go on without what they had, and whose model was not told yet."""
        if hasattr(given, "lease"):
            self._source = cast("SandboxSource", given)
        elif hasattr(given, "exec") and hasattr(given, "read"):
            self._sandbox = cast("Sandbox", given)
        else:
            kind = repr(given) if isinstance(given, str) else '"local"'
            shown = kind if isinstance(given, str) else type(given).__name__
            raise ConfigError(
                f"sandbox: {shown} is neither a source of sandboxes nor a sandbox. Give each run its own with "
                f"SandboxPool(lambda: open_sandbox({kind})), or one to all with await open_sandbox({kind})."
            )

    @property
    def uses(self) -> tuple[SandboxSource, ...]:
        """What is told when a run is over; see `Tool.uses`."""
        return () if self._source is None else (self._source,)

    async def sandbox(self, at: ToolContext) -> Sandbox:
        """The sandbox of the run that makes a call. Raises SandboxError, and ToolError for the news that it is new."""
        if at.trajectory_id in self._lost:
            self._lost.discard(at.trajectory_id)
            raise ToolError(LOST)
        if self._source is not None:
            return await self._source.lease(at.trajectory_id)
        assert self._sandbox is not None  # one of the two is given
        return self._sandbox

    async def rest(self, trajectory_id: str) -> None:
        """The source puts aside what it may."""

    def go_on(self, trajectory_id: str) -> None:
        """The run goes on: where its sandbox is gone, the model is told at its next call."""
        if self._source is not None and not self._source.holds(trajectory_id):
            self._lost.add(trajectory_id)

    async def end_run(self, trajectory_id: str) -> None:
        """The run is over."""
        self._lost.discard(trajectory_id)


def time_of(sandbox: Sandbox, timeout: float) -> tuple[float, str]:
    """The seconds that a call may take, and which limit that is: the shorter of its time-out and the sandbox's."""
    wall = sandbox.limits.wall_seconds
    return (wall, "wall_seconds of the sandbox") if wall < timeout else (timeout, "timeout")


def shown(data: bytes | str, limit: int = LONGEST) -> str:
    """Output as text for a model: what is no text is only named, and of a long text the middle is cut."""
    if isinstance(data, bytes):
        if b"\0" in data:
            return f"[{len(data):,} bytes that are not text]"
        data = data.decode("utf-8", "backslashreplace")
    elif "\0" in data:
        return "[output that is not text]"
    if len(data) <= limit:
        return data
    head = limit * 2 // 3
    tail = limit - head
    return f"{data[:head]}\n[{len(data) - limit:,} characters cut]\n{data[-tail:]}"
