"""The MCP sample of the README of the seeds, as it is written, with a small server in the place of the one it names."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from aworld.core.model import ModelRequest
from aworld.core.task import TaskResponse
from aworld.models import FunctionModel, ModelServer
from aworld.models.doubles import Said, call
from aworld.runner import Runners

SERVER = '''
from mcp.server.mcpserver import MCPServer

server = MCPServer("GorillaFileSystem")
files = {"hello_world.py": "print('hello')"}


@server.tool()
def cat(file_name: str) -> dict[str, str]:
    """Display the contents of a file."""
    return {"file_content": files[file_name]}


@server.tool()
def echo(content: str, file_name: str | None = None) -> dict[str, str | None]:
    """Write content to a file, or display it."""
    files[file_name or ""] = content
    return {"terminal_output": None if file_name else content}


server.run()
'''

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
    assert [tool.name for tool in request.tools] == ["cat", "echo"]
    match request.turn:
        case 0 | 2:
            return call("cat", file_name="hello_world.py")
        case 1:
            return call("echo", content="print('hello')\nAWorld", file_name="hello_world.py")
        case _:
            return request.messages[-1].text


async def test_the_sample_runs_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "examples/BFCL/mcp_tools"
    folder.mkdir(parents=True)
    (folder / "gorilla_file_system.py").write_text(SERVER)
    monkeypatch.chdir(tmp_path)
    async with ModelServer(FunctionModel(think)) as model:
        monkeypatch.setenv("LLM_MODEL_NAME", "any")
        monkeypatch.setenv("LLM_API_KEY", "any")
        monkeypatch.setenv("LLM_BASE_URL", model.base_url)
        names: dict[str, object] = {}
        await asyncio.to_thread(exec, SAMPLE, names)
    result = names["result"]
    assert isinstance(result, TaskResponse)
    assert result.status == "finished", result.msg
    assert "print('hello')\\nAWorld" in str(result.answer)
    assert Runners is names["Runners"]
