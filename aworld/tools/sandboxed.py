"""All tools that work in a sandbox, as `Agent(sandbox=...)` gives them to an agent."""

from __future__ import annotations

from aworld.core.sandbox import Sandbox, SandboxSource
from aworld.core.tool.base import Tool
from aworld.tools.files import file_tools
from aworld.tools.place import Place
from aworld.tools.python import python_tool
from aworld.tools.shell import shell_tool


def sandbox_tools(sandbox: Sandbox | SandboxSource) -> list[Tool]:
    """`python`, `shell` and the tools for files, all in one place.

    From a source each run has a sandbox of its own, which agents of a team share, and which is destroyed when the run
    is over. A sandbox given as such stays open, and is its opener's to close.
    """
    place = Place(sandbox)
    return [python_tool(place), shell_tool(place), *file_tools(place)]
