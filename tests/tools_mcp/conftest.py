"""Servers as processes, ways to call their tools, and a check that none is left behind."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aworld.core.context.base import Context
from aworld.core.event import TaskInfo
from aworld.core.tool.base import Tool, ToolContext
from aworld.tools.mcp import mcp_tools
from aworld.tools.mcp_session import close_sessions

HERE = Path(__file__).parent


def stdio(**settings: Any) -> dict[str, Any]:
    """The server written with the SDK, over stdio."""
    return {"type": "stdio", "command": sys.executable, "args": [str(HERE / "servers.py"), "stdio"], **settings}


def rough(*modes: str, **settings: Any) -> dict[str, Any]:
    """The server that starts in an instant and misbehaves."""
    return {"command": sys.executable, "args": ["-SE", str(HERE / "rough.py"), *modes], **settings}


def config(**servers: dict[str, Any]) -> dict[str, Any]:
    """A configuration as it is written."""
    return {"mcpServers": servers}


@dataclass
class Caller:
    """Somebody who calls tools in a run, and hears what they tell."""

    run: str = "run-1"
    heard: list[tuple[str, Any]] = field(default_factory=list[tuple[str, Any]])
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def hear(self, kind: str, data: Any) -> None:
        self.heard.append((kind, data))
        self.news.set()

    def context(self) -> ToolContext:
        state: dict[str, Any] = {}
        context = Context(self.run, TaskInfo("task"), state, state.__setitem__)
        return ToolContext(self.run, "bob", 0, "call", context, notify=self.hear)

    async def __call__(self, tool: Tool, **arguments: Any) -> Any:
        return await asyncio.create_task(tool.invoke(msgspec.json.encode(arguments).decode(), self.context()))

    async def until(self, kind: str) -> Any:
        """The first of this kind that is heard."""
        async with asyncio.timeout(20):
            while True:
                found = next((data for heard, data in self.heard if heard == kind), None)
                if found is not None:
                    return found
                self.news.clear()
                await self.news.wait()


async def tools_of(**servers: dict[str, Any]) -> dict[str, Tool]:
    """The tools of servers, by the names that a model sees."""
    (toolset,) = mcp_tools(config(**servers))
    return {tool.name: tool for tool in await toolset.list_tools()}


@pytest.fixture(autouse=True)
async def closed_sessions() -> AsyncIterator[None]:
    yield
    await close_sessions()


def gone(pid: int) -> bool:
    """Whether a process has ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.fixture
def caller() -> Caller:
    return Caller()


@pytest.fixture(scope="module")
def addresses() -> Iterator[dict[str, str]]:
    """Where the SDK's server listens, by transport; started once for a module."""
    command = [sys.executable, str(HERE / "servers.py")]
    kinds = ("sse", "streamable-http")
    quiet = subprocess.DEVNULL
    running = [subprocess.Popen([*command, kind], stdout=subprocess.PIPE, stderr=quiet, text=True) for kind in kinds]
    found: dict[str, str] = {}
    for kind, process in zip(kinds, running):
        assert process.stdout is not None
        found[kind] = process.stdout.readline().strip()
    yield found
    for process in running:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
