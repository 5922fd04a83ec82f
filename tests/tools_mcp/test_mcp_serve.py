"""`aworld mcp serve`, used by the SDK's own client and by our own."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import socket
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, TextContent

from aworld.core.model import ModelRequest
from aworld.models import FunctionModel
from aworld.models.doubles import call
from aworld.server import ModelServer
from aworld.trajectory import Query, open_store
from tests.tools_mcp.conftest import Caller, config, rough, tools_of

UNITS = [f"tests.tools_mcp.served:{name}" for name in ("calculator", "typed", "waiter", "failing", "team")]
UNSET = "set LLM_MODEL_NAME, or llm_model_name in the settings of the agent"
ROOT = Path(__file__).parents[2]


def command(folder: Path, *options: str) -> list[str]:
    return ["-m", "aworld", "mcp", "serve", *UNITS, "--store", f"sqlite:///{folder}/runs.db", *options]


def environment(folder: Path, **more: str) -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "CANCELLED": str(folder / "cancelled"), **more}


def text_of(result: CallToolResult) -> str:
    assert isinstance(result.content[0], TextContent)
    return result.content[0].text


async def test_the_sdks_client_uses_agents_and_a_team(tmp_path: Path) -> None:
    server = StdioServerParameters(command=sys.executable, args=command(tmp_path), env=environment(tmp_path))
    told: list[str | None] = []

    async def listen(progress: float, total: float | None, message: str | None) -> None:
        told.append(message)

    async with Client(server) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert list(tools) == ["calculator", "typed_one", "waiter", "failing", "team"]
        assert tools["calculator"].description == "Adds."
        assert tools["calculator"].input_schema["required"] == ["input"]

        added = await client.call_tool("calculator", {"input": "1 + 2?"}, progress_callback=listen)
        assert text_of(added) == "It is 3."
        assert told == ["calculator: step 1", "calculator calls add", "calculator: step 2"]

        shaped = await client.call_tool("typed_one", {"input": "1 + 2?"})
        assert shaped.structured_content == {"total": 3}
        assert text_of(await client.call_tool("team", {"input": "hello"})) == "HELLO!"

        failed = await client.call_tool("failing", {"input": "go"})
        assert failed.is_error
        assert "failed: " in text_of(failed)
        assert "no such model" in text_of(failed)
        assert (await client.call_tool("calculator", {})).is_error

        begun = asyncio.Event()

        async def heard(progress: float, total: float | None, message: str | None) -> None:
            if message == "waiter calls wait":
                begun.set()

        waiting = asyncio.create_task(client.call_tool("waiter", {"input": "wait"}, progress_callback=heard))
        await begun.wait()
        waiting.cancel()
        assert text_of(await client.call_tool("calculator", {"input": "still there?"})) == "It is 3."
    store = open_store(f"sqlite:///{tmp_path}/runs.db")
    statuses = sorted([run.status for run in await store.query(Query())])
    await store.close()
    assert (tmp_path / "cancelled").read_text() == "cancelled"
    assert statuses == ["cancelled", "failed", "finished", "finished", "finished", "finished"]


@pytest.mark.parametrize(("unit", "questions", "answer"), [("asker", 1, "Off to Ghent."), ("twice", 2, "Booked.")])
async def test_what_the_caller_of_a_waiting_run_is_told_works(
    unit: str, questions: int, answer: str, tmp_path: Path
) -> None:
    store = f"sqlite:///{tmp_path}/its runs.db"
    arguments = ["-m", "aworld", "mcp", "serve", f"tests.tools_mcp.served:{unit}", "--store", store]
    server = StdioServerParameters(command=sys.executable, args=arguments, env=environment(tmp_path))
    async with Client(server) as client:
        told = text_of(await client.call_tool(unit, {"input": "go"}))
    assert "The run waits for a person: Where" in told
    answers, _, resume = told.partition("Answer with: ")[2].partition(", then go on with: ")
    commands = [*answers.split(" and "), resume]
    assert [line.split()[1] for line in commands] == ["answer"] * questions + ["resume"]
    out = b""
    for line in commands:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *shlex.split(line), env=environment(tmp_path),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
    assert answer in out.decode()


@asynccontextmanager
async def served(folder: Path, **more: str) -> AsyncGenerator[tuple[asyncio.subprocess.Process, str]]:
    """Our server over HTTP, and where it is."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command(folder, "--http", "--port", "0"),
        env=environment(folder, **more), stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    line = (await process.stderr.readline()).decode()
    try:
        yield process, line.split()[-1]
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        await process.communicate()


async def test_our_own_client_uses_it_over_http(tmp_path: Path, caller: Caller) -> None:
    async with served(tmp_path) as (process, url):
        assert url.startswith("http://127.0.0.1:")
        tools = await tools_of(agents={"url": url})
        assert await caller(tools["calculator"], input="1 + 2?") == "It is 3."
        assert next(data["message"] for kind, data in caller.heard if kind == "progress") == "calculator: step 1"
    assert process.returncode == 130


async def test_a_token_is_asked_for_where_it_is_set(tmp_path: Path, caller: Caller) -> None:
    async with served(tmp_path, AWORLD_TOKEN="open-sesame") as (_, url):
        tools = await tools_of(agents={"url": url, "headers": {"Authorization": "Bearer open-sesame"}})
        assert await caller(tools["team"], input="hi") == "HI!"
        async with httpx2.AsyncClient() as http:
            for headers in ({}, {"Authorization": "Bearer wrong"}):
                assert (await http.post(url, headers=headers, json={})).status_code == 401
            with pytest.raises(Exception):  # noqa: B017 - the SDK's client has no error of its own for it
                async with Client(streamable_http_client(url, http_client=http)):
                    pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tests.tools_mcp.served:nobody"], "has no 'nobody'"),
        (["tests.tools_mcp.served:add"], "name an agent or a swarm"),
        (["tests.tools_mcp.served:modelless"], f"No model name: {UNSET}"),
        ([UNITS[0], UNITS[0]], "Two of those to be served are named 'calculator'"),
        ([UNITS[0], "--http", "--host", "0.0.0.0"], "set AWORLD_TOKEN"),
        ([UNITS[0], "--port", "99"], "aworld: --port says where --http listens, and without it nothing does"),
        ([UNITS[0], "--host", "::1"], "aworld: --host says where --http listens, and without it nothing does"),
        ([UNITS[0], "--http", "--port", "99999"], "aworld: --port 99999: a port is 0 to 65535"),
        ([UNITS[0], "--http", "--port", "{taken}"], "aworld: --port {taken}: something listens there already"),
        ([UNITS[0], "--http", "--host", "nowhere.invalid"], "aworld: --host nowhere.invalid: no address of that name"),
    ],
)
async def test_misuse_is_told_and_nothing_is_served(arguments: list[str], message: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = str(other.getsockname()[1])
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "aworld", "mcp", "serve", "--store", "memory:",
            *(each.replace("{taken}", taken) for each in arguments),
            env={**environment(tmp_path), "AWORLD_TOKEN": "secret" if "nowhere.invalid" in arguments else ""},
            stderr=asyncio.subprocess.PIPE, stdin=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        _, errors = await process.communicate()
    assert process.returncode == 2
    assert message.replace("{taken}", taken) in errors.decode()
    assert len(errors.splitlines()) == 1, errors.decode()


async def test_the_command_line_gives_an_agent_the_tools_of_a_file(tmp_path: Path) -> None:
    def think(request: ModelRequest) -> Any:
        return call("echo", text="from a file") if request.turn == 0 else request.messages[-1].text

    (tmp_path / "mcp.json").write_bytes(msgspec.json.encode(config(s=rough())))
    async with ModelServer(FunctionModel(think)) as model:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "aworld", "run", "go", "--mcp", "mcp.json", "--store", "memory:",
            cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env=environment(tmp_path, LLM_MODEL_NAME="m", LLM_API_KEY="k", LLM_BASE_URL=model.base_url),
        )  # fmt: skip
        output, errors = await process.communicate()
    assert output.decode().strip() == "from a file", errors.decode()
