"""The place where the tools of a run work: a sandbox that was given, or the one that its source keeps for the run."""

from __future__ import annotations

from typing import cast

from aworld.core.exceptions import ConfigError
from aworld.core.sandbox import Sandbox, SandboxSource
from aworld.core.tool.base import ToolContext

LONGEST = 20_000
"""Characters of output shown to a model, about 5,000 tokens; the middle of more is cut."""


class Place:
    """Where the tools of a run work.

    From a source of sandboxes each run has its own, for as long as the run lasts. A sandbox that is given as such is
    used by every run and belongs to whoever opened it.
    """

    def __init__(self, given: Sandbox | SandboxSource) -> None:
        self._source: SandboxSource | None = None
        self._sandbox: Sandbox | None = None
        if hasattr(given, "lease"):
            self._source = cast("SandboxSource", given)
        elif hasattr(given, "exec") and hasattr(given, "read"):
            self._sandbox = cast("Sandbox", given)
        else:
            raise ConfigError(f"A sandbox or a source of sandboxes is needed; got {type(given).__name__}.")

    @property
    def uses(self) -> tuple[SandboxSource, ...]:
        """What is told when a run is over; see `Tool.uses`."""
        return () if self._source is None else (self._source,)

    async def sandbox(self, at: ToolContext) -> Sandbox:
        """The sandbox of the run that makes a call. Raises SandboxError."""
        if self._source is not None:
            return await self._source.lease(at.trajectory_id)
        assert self._sandbox is not None  # one of the two is given
        return self._sandbox


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
