"""Tools that work in a sandbox: the shell, and all of them as `Agent(sandbox=...)` gives them to an agent."""

from __future__ import annotations

from aworld.core.checks import positive
from aworld.core.context.base import RunScope
from aworld.core.exceptions import ToolError
from aworld.core.sandbox import Sandbox, SandboxSource
from aworld.core.tool.base import Tool
from aworld.core.tool.func_to_tool import tool
from aworld.tools.files import file_tools
from aworld.tools.python import python_tool
from aworld.tools.tool_sandbox import LONGEST, ToolSandbox, shown, time_of

LONGEST_RUN = 600.0
"""Seconds that a model may give a command."""


def sandbox_tools(sandbox: Sandbox | SandboxSource) -> list[Tool]:
    """`python`, `shell` and the tools for files, all in one place.

    From a source each run has a sandbox of its own, which agents of a team share, and which is destroyed when the run
    is over. A sandbox given as such stays open, and is its opener's to close.
    """
    place = ToolSandbox(sandbox)
    return [python_tool(place), shell_tool(place), *file_tools(place)]


class Shell:
    """The tool `shell`: one line of commands, and what came of it."""

    def __init__(self, place: ToolSandbox, timeout: float) -> None:
        self._place = place
        self._timeout = timeout

    def for_run(self, scope: RunScope) -> Shell:
        """The run's own."""
        return Shell(scope.own(self._place), self._timeout)

    @tool
    async def shell(self, command: str, timeout: float | None = None) -> str:
        """Run a shell command in the sandbox and return its output and exit code.

        Each command starts in the work folder, in a shell of its own; files stay, variables do not.

        Args:
            command: A line for the shell; several lines are a script.
            timeout: Seconds after which it is killed, at most 600 and what the sandbox allows.
        """
        seconds = self._timeout if timeout is None else timeout
        if not 0 < seconds <= LONGEST_RUN:
            raise ToolError(f"timeout={seconds:g}: give between 0 and {LONGEST_RUN:g} seconds.")
        sandbox = await self._place.sandbox()
        seconds, limit = time_of(sandbox, seconds)
        result = await sandbox.exec(command, timeout=seconds)
        parts = [shown(result.stdout, LONGEST)] if result.stdout else []
        if result.stderr:
            parts.append(f"[standard error]\n{shown(result.stderr, LONGEST // 2)}")
        if result.truncated:
            parts.append("[there was more output than is kept; write it to a file to see all]")
        if result.timed_out:
            parts.append(f"[killed after {seconds:g} s (limit: {limit})]")
        elif result.limit is not None:
            parts.append(f"[killed (limit: {result.limit}={getattr(sandbox.limits, result.limit)} of the sandbox)]")
        elif result.exit_code < 0:
            parts.append(f"[killed by signal {-result.exit_code}]")
        parts.append(f"[exit code {result.exit_code}]")
        return "\n".join(part.rstrip("\n") for part in parts)


def shell_tool(sandbox: Sandbox | SandboxSource | ToolSandbox, *, timeout: float = 60.0) -> Tool:
    """The tool `shell` for a sandbox, or for that of each run.

    A command has `timeout` seconds unless the call says, and never more than the sandbox's `wall_seconds`.
    """
    positive("timeout", timeout)
    shell = Shell(ToolSandbox.of(sandbox, "shell"), timeout).shell
    shell.timeout = LONGEST_RUN + 15  # the sandbox's own limit speaks first
    return shell
