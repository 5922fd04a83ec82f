"""A shell in a sandbox: one line of commands, and what came of it."""

from __future__ import annotations

from aworld.core.exceptions import ToolError
from aworld.core.sandbox import Sandbox, SandboxSource, check_amount
from aworld.core.tool.base import Tool, ToolContext
from aworld.core.tool.func_to_tool import FunctionTool
from aworld.tools.place import LONGEST, Place, shown, time_of

LONGEST_RUN = 600.0
"""Seconds that a model may give a command."""


def shell_tool(sandbox: Sandbox | SandboxSource | Place, *, timeout: float = 60.0) -> Tool:
    """The tool `shell` for a sandbox, or for that of each run.

    A command has `timeout` seconds unless the call says, and never more than the sandbox's `wall_seconds`.
    """
    check_amount("timeout", timeout)
    place = Place.of(sandbox)
    default = timeout

    async def shell(command: str, at: ToolContext, timeout: float | None = None) -> str:
        """Run a shell command in the sandbox and return its output and exit code.

        Each command starts in the work folder, in a shell of its own; files stay, variables do not.

        Args:
            command: A line for the shell; several lines are a script.
            timeout: Seconds after which it is killed, at most 600 and what the sandbox allows.
        """
        seconds = default if timeout is None else timeout
        if not 0 < seconds <= LONGEST_RUN:
            raise ToolError(f"timeout={seconds:g}: give between 0 and {LONGEST_RUN:g} seconds.")
        sandbox = await place.sandbox(at)
        seconds, limit = time_of(sandbox, seconds)
        done = await sandbox.exec(command, timeout=seconds)
        parts = [shown(done.stdout, LONGEST)] if done.stdout else []
        if done.stderr:
            parts.append(f"[standard error]\n{shown(done.stderr, LONGEST // 2)}")
        if done.truncated:
            parts.append("[there was more output than is kept; write it to a file to see all]")
        if done.timed_out:
            parts.append(f"[killed after {seconds:g} s (limit: {limit})]")
        elif done.limit is not None:
            parts.append(f"[killed (limit: {done.limit}={getattr(sandbox.limits, done.limit)} of the sandbox)]")
        elif done.exit_code < 0:
            parts.append(f"[killed by signal {-done.exit_code}]")
        parts.append(f"[exit code {done.exit_code}]")
        return "\n".join(part.rstrip("\n") for part in parts)

    made = FunctionTool(shell, timeout=LONGEST_RUN + 15)  # the sandbox's own limit speaks first
    made.uses = (place,)
    return made
