"""The MCP sample of the README of the seeds, as it is written, with the server that it names, over every transport."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest

from aworld.core.model import ModelRequest
from aworld.core.task import TaskResponse
from aworld.models import FunctionModel
from aworld.models.doubles import Said, call
from aworld.runner import Runners
from aworld.server import ModelServer

ROOT = Path(__file__).parents[2]
STDIO = """            "type": "stdio",
            "command": "python",
            "args": ["examples/BFCL/mcp_tools/gorilla_file_system.py"],
"""

SAMPLE = """
import os

from aworld.agents.llm_agent import Agent
from aworld.runner import Runners

mcp_config = {
    "mcpServers": {
        "GorillaFileSystem": {
            "type": "stdio",
            "command": "python",
            "args": ["examples/BFCL/mcp_tools/gorilla_file_system.py"],
        },
    }
}

file_sys = Agent(
    name="file_sys_agent",
    system_prompt=(
        "You are a helpful agent to use "
        "the standard file system to perform file operations."
    ),
    mcp_servers=mcp_config.get("mcpServers", []).keys(),
    mcp_config=mcp_config,
)

result = Runners.sync_run(
    input=(
        "use mcp tools in the GorillaFileSystem server "
        "to perform file operations: "
        "write the content 'AWorld' into "
        "the hello_world.py file with a new line "
        "and keep the original content of the file. "
        "Make sure the new and old "
        "content are all in the file; "
        "and display the content of the file"
    ),
    agent=file_sys,
)
"""


def think(request: ModelRequest) -> Said:
    """Read the file, write it with the new line, read it again, and say what is in it."""
    assert {"cat", "echo", "ls", "mv", "grep"} <= {tool.name for tool in request.tools}
    match request.turn:
        case 0 | 2:
            return call("cat", file_name="hello_world.py")
        case 1:
            return call("echo", content='print("Hello, World!")\nAWorld', file_name="hello_world.py")
        case _:
            return request.messages[-1].text


@asynccontextmanager
async def served(transport: str) -> AsyncGenerator[str]:
    """The server in a process of its own; how the sample names it."""
    if transport == "stdio":
        yield STDIO
        return
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script = ROOT / "examples/BFCL/mcp_tools/gorilla_file_system.py"
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), "--transport", transport, "--port", str(port)
    )
    try:
        async with asyncio.timeout(60):
            while not await answers(port):  # it says nothing when it is ready
                assert process.returncode is None, "the server ended"
                await asyncio.sleep(0.05)
        yield f'"type": "{transport}", "url": "http://127.0.0.1:{port}/{"sse" if transport == "sse" else "mcp"}",\n'
    finally:
        process.kill()
        await process.wait()


async def answers(port: int) -> bool:
    """Whether somebody listens there."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


@pytest.mark.parametrize("transport", ["stdio", "sse", "streamable-http"])
async def test_the_sample_runs_as_it_is_written(transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert STDIO in SAMPLE
    async with ModelServer(FunctionModel(think)) as model, served(transport) as named:
        monkeypatch.setenv("LLM_MODEL_NAME", "any")
        monkeypatch.setenv("LLM_API_KEY", "any")
        monkeypatch.setenv("LLM_BASE_URL", model.base_url)
        names: dict[str, object] = {}
        await asyncio.to_thread(exec, SAMPLE.replace(STDIO, named), names)
    result = cast("TaskResponse", names["result"])
    assert result.status == "finished", result.msg
    assert "Hello, World!" in str(result.answer)
    assert "AWorld" in str(result.answer)
    assert Runners is names["Runners"]
