"""Where tools work: in a sandbox that all runs share, or in the one that a source has for each run."""

from __future__ import annotations

from copy import copy
from typing import cast

from aworld.core.context.base import RunScope
from aworld.core.exceptions import ConfigError, ToolError
from aworld.core.sandbox import RunSandbox, Sandbox, SandboxError, SandboxSource

LONGEST = 20_000
"""Characters of output shown to a model, about 5,000 tokens; the middle of more is cut."""
LOST = (
    "The sandbox of this run is gone with the process that it belonged to: it is empty now, files and variables are "
    "lost. This call was not carried out. Make again what you need."
)


class ToolSandbox:
    """Where the tools of a run work.

    From a source of sandboxes each run has its own, for as long as the run lasts. A sandbox that is given as such is
    used by every run and belongs to whoever opened it. Tools that share a sandbox share one of these.
    """

    @classmethod
    def of(cls, sandbox: Sandbox | SandboxSource | ToolSandbox, *tools: str) -> ToolSandbox:
        """For a sandbox or a source, or the same one again, in which tools of these names work. Raises ConfigError."""
        place = sandbox if isinstance(sandbox, ToolSandbox) else cls(sandbox)
        place._tools.update(tools)
        return place

    def __init__(self, sandbox: Sandbox | SandboxSource) -> None:
        self._tools: set[str] = set()
        self._source: SandboxSource | None = None
        self._sandbox: Sandbox | None = None
        self._run: RunSandbox | None = None
        self._scope: RunScope | None = None
        """Of the run, until its model has been told what became of what it had."""
        if hasattr(sandbox, "for_run"):
            self._source = cast("SandboxSource", sandbox)
        elif hasattr(sandbox, "exec") and hasattr(sandbox, "read"):
            self._sandbox = cast("Sandbox", sandbox)
        else:
            kind = repr(sandbox) if isinstance(sandbox, str) else '"local"'
            shown = kind if isinstance(sandbox, str) else type(sandbox).__name__
            raise ConfigError(
                f"sandbox: {shown} is neither a source of sandboxes nor a sandbox. Give each run its own with "
                f"SandboxPool(lambda: open_sandbox({kind})), or one to all with await open_sandbox({kind})."
            )

    def for_run(self, scope: RunScope) -> ToolSandbox:
        """The run's own; a sandbox that is given as such is the same for all."""
        if self._source is None:
            return self
        own_copy = copy(self)
        own_copy._run, own_copy._scope = scope.own(cast("RunSandbox", self._source)), scope
        return own_copy

    async def sandbox(self) -> Sandbox:
        """The sandbox. Raises SandboxError, and ToolError for the news that it is not the one that the run had."""
        if self._sandbox is not None:
            return self._sandbox
        if self._run is None:
            raise SandboxError("a source has a sandbox for each run: call its tools within one, as an agent does")
        scope, self._scope = self._scope, None
        # Only now: when the copy was made, wrappers had not yet told under which names the log knows the tools.
        if scope is not None and self._run.lost and not scope.used.isdisjoint(self._tools):
            raise ToolError(LOST)
        return await self._run.open()


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
