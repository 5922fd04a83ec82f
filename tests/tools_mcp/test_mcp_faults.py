"""Servers that misbehave: what the model is told, what happens to the others, and what comes back."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from aworld.agents.llm_agent import Agent
from aworld.core.exceptions import ToolError
from aworld.core.model import ModelRequest
from aworld.core.output import RunFinished, ToolNoteOutput
from aworld.models import FunctionModel, ScriptedModel
from aworld.models.doubles import call
from aworld.runner import Runners
from aworld.tools import mcp_session
from aworld.tools.mcp import mcp_tools
from aworld.tools.mcp_session import close_sessions
from tests.tools_mcp.conftest import HERE, Caller, config, rough, stdio, tools_of

KEY = "sk-very-secret-91"


async def pid_of(tools: dict[str, Any], caller: Caller) -> int:
    return json.loads(await caller(tools["pids"]))[0]


async def test_a_crash_in_mid_call_is_told_and_the_next_call_starts_it_anew(caller: Caller) -> None:
    tools = await tools_of(s=rough())
    first = await pid_of(tools, caller)
    with pytest.raises(ToolError, match=r"'s' ended before it answered, exit code 1, its last words: cannot go on"):
        await caller(tools["crash"])
    assert await pid_of(tools, caller) != first


async def test_a_kill_in_mid_call_ends_that_call_and_all_others_in_flight(caller: Caller) -> None:
    tools = await tools_of(s=rough())
    pid = await pid_of(tools, caller)
    waiting = [asyncio.create_task(caller(tools["swallow"])) for _ in range(5)]
    await pid_of(tools, caller)  # it has read the five
    os.kill(pid, signal.SIGKILL)
    for task in waiting:
        with pytest.raises(ToolError, match=r"killed by signal 9.*may or may not have taken effect"):
            await task
    assert await pid_of(tools, caller) != pid


async def test_a_death_between_calls_is_nobodys_trouble(caller: Caller) -> None:
    tools = await tools_of(s=rough())
    pid = await pid_of(tools, caller)
    hub = mcp_session.hubs_here()[0]
    os.kill(pid, signal.SIGKILL)
    link = hub.session.link
    assert link is not None
    await link.ended.wait()
    assert await caller(tools["echo"], text="still here") == "still here"


async def test_one_that_dies_all_the_time_is_left_alone_for_a_while(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mcp_session, "BACKOFF", 60.0)
    tools = await tools_of(s=rough())
    for _ in range(2):  # at once after the first death, not after the second
        with pytest.raises(ToolError, match="ended before it answered"):
            await caller(tools["crash"])
    with pytest.raises(ToolError, match=r"'s' is down \(it ended, exit code 1.*Tried again in \d+\.\d s\."):
        await caller(tools["echo"])
    loop = asyncio.get_running_loop()
    now = loop.time
    monkeypatch.setattr(loop, "time", lambda: now() + 61.0)
    assert await caller(tools["echo"], text="back") == "back"


async def test_a_tool_that_is_none_takes_no_other_with_it(caller: Caller, caplog: pytest.LogCaptureFixture) -> None:
    tools = await tools_of(s=rough("broken"))
    assert await caller(tools["echo"], text="here") == "here"
    assert not {"bad", "none"} & tools.keys()
    assert "its tool 'bad' is left out: inputSchema.properties: Input should be a valid dictionary" in caplog.text
    assert "its tool 'none' is left out: inputSchema: Field required" in caplog.text


async def test_an_answer_that_is_no_message_ends_its_call_at_once(caller: Caller) -> None:
    tools = await tools_of(s=rough())
    async with asyncio.timeout(20):
        with pytest.raises(ToolError, match="'s': its answer is not what the protocol says"):
            await caller(tools["half"])
    assert await caller(tools["echo"], text="on") == "on"


async def test_a_list_of_tools_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ToolError, match=r"'s' lists more than 1,000 tools or 64 MB of them"):
        await tools_of(s=rough("many"))
    monkeypatch.setattr("aworld.tools.mcp_client.MOST_BYTES", 5000)
    monkeypatch.setattr("aworld.tools.mcp_client.MOST_TOOLS", 10**9)
    with pytest.raises(ToolError, match="lists more than"):
        await tools_of(s=rough("many", timeout=61))


async def test_a_server_that_hangs_is_stopped_by_the_tools_deadline() -> None:
    server = rough(call_timeout=0.3)
    agent = Agent(
        "a", model=ScriptedModel([call("swallow"), call("echo", text="alive"), "ok"]), mcp_config=config(s=server)
    )
    response = await Runners.run("go", agent)
    results = [row["observation"][0] for row in response.trajectory[:2]]
    assert "No answer within 0.3 s" in results[0]["error"]
    assert results[1]["content"] == "alive"


async def test_a_server_that_never_answers_is_given_up(caller: Caller) -> None:
    with pytest.raises(ToolError, match=r"cannot be started: no answer within 0\.5 s \(timeout\)"):
        await tools_of(s=rough("mute", timeout=0.5))
    with pytest.raises(ToolError, match=r"did not list its tools within 0\.5 s"):
        await tools_of(s=rough("shy", timeout=0.5))


@pytest.mark.parametrize("mode", ["loud", "babble"])
async def test_noise_does_not_disturb_the_conversation(
    mode: str, caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    tools = await tools_of(s=rough(mode))
    assert [await caller(tools["echo"], text=str(n)) for n in range(20)] == [str(n) for n in range(20)]
    process = mcp_session.hubs_here()[0].session._process
    assert process is not None
    assert len(process._errors) < 1000, "of what it floods us with, only the end is kept"
    warnings = [record for record in caplog.records if "not MCP" in record.message]
    assert (0 < len(warnings) < 20) == (mode == "babble"), "told, but not for every line"


async def test_half_an_answer_is_passed_over(caller: Caller) -> None:
    tools = await tools_of(s=rough())
    assert await caller(tools["garble"]) == "garbled, then clear"


async def test_a_message_without_end_is_cut_off(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aworld.tools.mcp_process.MAX_LINE", 1 << 20)
    tools = await tools_of(s=rough())
    with pytest.raises(ToolError, match="it sent a message of more than 1 MB"):
        await caller(tools["echo"], text="x" * (3 << 20))
    assert await caller(tools["echo"], text="x" * 100_000) == "x" * 100_000


async def test_of_a_message_without_end_no_more_is_held(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aworld.tools.mcp_process.MAX_LINE", 1 << 20)
    monkeypatch.setattr("aworld.tools.mcp_process.PATIENCE", 0.3)
    tools = await tools_of(s=rough("endless"))
    process = mcp_session.hubs_here()[0].session._process
    assert process is not None
    with pytest.raises(ToolError, match="it sent a message of more than 1 MB"):
        await caller(tools["echo"])
    await close_sessions()
    assert process._partial_size < 2 << 20


async def test_a_tool_that_is_listed_twice_is_one_tool() -> None:
    assert list(await tools_of(s=rough("twice"))) == list(await tools_of(s=rough()))


async def test_one_dead_server_does_not_stop_an_agent_that_has_others(caplog: pytest.LogCaptureFixture) -> None:
    servers = config(dead=rough("dead"), missing={"command": "no-such-program"}, alive=rough())
    agent = Agent("a", model=ScriptedModel([call("echo", text="here"), "ok"]), mcp_config=servers)
    outputs = [output async for output in Runners.streaming_run("go", agent)]
    notes = [(note.kind, note.data["server"]) for note in outputs if isinstance(note, ToolNoteOutput)]
    assert notes == [("mcp_server_down", "dead"), ("mcp_server_down", "missing")]
    assert isinstance(outputs[-1], RunFinished)
    assert outputs[-1].response.success
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2, "each once"
    assert told[0].startswith("server=dead | its tools are missing: MCP server 'dead' cannot be started: ")
    assert "exit code 2, its last words: no licence" in told[0]
    assert "No such file or directory: no-such-program" in told[1]


async def test_with_all_servers_dead_the_run_fails_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    agent = Agent("a", model=ScriptedModel(["never asked"]), mcp_config=config(s=rough("dead")))
    response = await Runners.run("go", agent)
    assert response.status == "failed"
    assert "MCP server 's' cannot be started" in (response.error or "")
    assert "no licence" in (response.error or "")
    assert not caplog.records, "the run says it already"


async def test_tools_of_a_server_that_was_up_stay_when_it_is_down(caller: Caller, tmp_path: Path) -> None:
    program = tmp_path / "server.py"
    program.write_text((HERE / "rough.py").read_text())
    (toolset,) = mcp_tools(config(s={"command": sys.executable, "args": [str(program)]}))
    tools = {tool.name: tool for tool in await toolset.list_tools()}
    program.write_text("raise SystemExit('gone for good')")
    with pytest.raises(ToolError):
        await caller(tools["crash"])
    for hub in mcp_session.hubs_here():
        hub._tools_changed()
    assert [tool.name for tool in await toolset.list_tools()] == list(tools)
    with pytest.raises(ToolError, match="gone for good"):
        await caller(tools["echo"])


@pytest.mark.parametrize("kind", ["sse", "streamable-http"])
async def test_an_http_server_may_be_killed_and_come_back(kind: str, caller: Caller) -> None:
    command = [str(HERE / "servers.py"), kind]

    async def serve(*port: str) -> tuple[asyncio.subprocess.Process, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command, *port, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        assert process.stdout is not None
        return process, (await process.stdout.readline()).decode().strip()

    process, url = await serve()
    tools = await tools_of(s={"type": kind, "url": url})
    assert await caller(tools["add"], a=1) == "2"
    hanging = [asyncio.create_task(caller(tools["hang"])) for _ in range(2)]
    await caller.until("progress")
    process.kill()
    await process.wait()
    for task in hanging:
        with pytest.raises(ToolError, match="'s'"):
            await task
    with pytest.raises(ToolError, match="'s'"):
        await caller(tools["add"], a=1)
    port = url.split(":")[2].split("/")[0]
    process, _ = await serve(port)
    mcp_session.hubs_here()[0].session._not_before = 0.0  # as if we had waited
    assert await caller(tools["add"], a=2) == "3"
    process.kill()
    await process.wait()


class Forgetful:
    """A streamable HTTP server of 2025 that keeps sessions, until it is started anew."""

    def __init__(self) -> None:
        self.sessions: set[str] = set()
        self.calls = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.method != "POST":
            return web.Response(status=405)
        message = await request.json()
        session = request.headers.get("mcp-session-id")
        result: dict[str, Any] = {}
        headers: dict[str, str] = {}
        match message["method"]:
            case "initialize":
                headers["mcp-session-id"] = f"session-{len(self.sessions)}"
                self.sessions.add(headers["mcp-session-id"])
                version = message["params"]["protocolVersion"]
                about = {"name": "forgetful", "version": "1"}
                result = {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": about}
            case "tools/list" | "tools/call" if session not in self.sessions:
                return web.Response(status=404)
            case "tools/list":
                result = {"tools": [{"name": "count", "inputSchema": {"type": "object"}}]}
            case "tools/call":
                self.calls += 1
                result = {"content": [{"type": "text", "text": str(self.calls)}]}
            case _:
                unknown = {"code": -32601, "message": "unknown"}
                answer = {"jsonrpc": "2.0", "id": message["id"], "error": unknown} if "id" in message else None
                return web.json_response(answer) if answer else web.Response(status=202)
        return web.json_response({"jsonrpc": "2.0", "id": message["id"], "result": result}, headers=headers)


async def test_a_session_that_the_server_has_forgotten_is_opened_anew(caller: Caller) -> None:
    server = Forgetful()
    app = web.Application()
    app.router.add_route("*", "/mcp", server.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    (toolset,) = mcp_tools(config(s={"url": f"http://{host}:{port}/mcp"}))
    (tool,) = await toolset.list_tools()
    assert await caller(tool) == "1"
    server.sessions = {"another's"}
    assert await caller(tool) == "2", "the first try was not a call"
    server.sessions = {"another's", "and another's"}
    for hub in mcp_session.hubs_here():
        hub._tools_changed()
    assert [again.name for again in await toolset.list_tools()] == ["count"]
    await close_sessions()
    await runner.cleanup()


async def test_a_refusal_over_http_shows_no_key(addresses: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    base = addresses["streamable-http"].rpartition("/")[0]
    for kind in ("sse", "streamable-http"):
        with pytest.raises(ToolError) as refused:
            await tools_of(s={"type": kind, "url": f"{base}/nowhere?key={KEY}", "headers": {"X-Auth": f"Bearer {KEY}"}})
        assert KEY not in str(refused.value)
        assert "404" in str(refused.value)
    assert KEY not in caplog.text


async def test_a_key_never_leaves_the_configuration(
    caller: Caller, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MY_SERVICE_KEY", KEY)
    monkeypatch.setenv("LLM_API_KEY", "sk-the-models-own")
    server = rough(env={"SERVICE_API_KEY": "${MY_SERVICE_KEY}", "PLAIN": "seen"})
    tools = await tools_of(s=server)
    environment = json.loads(await caller(tools["echo"]))
    assert environment["SERVICE_API_KEY"] == "***", "it is given to the server, and hidden when the server shows it"
    assert environment["PLAIN"] == "seen"
    assert not environment.keys() & {"LLM_API_KEY", "MY_SERVICE_KEY", "PYTEST_CURRENT_TEST", "PYTHONPATH"}
    with pytest.raises(ToolError, match=r"key=\*\*\*"):
        await caller(tools["crash"])
    assert KEY not in caplog.text
    agent = Agent("a", model=ScriptedModel([call("echo"), call("crash"), "ok"]), mcp_config=config(s=server))
    response = await Runners.run("go", agent)
    shown = json.dumps(response.trajectory) + repr(response.record.events) + repr(agent.settings()) + repr(agent)
    assert KEY not in shown
    assert response.success


async def test_a_server_of_2025_asks_and_tells_too() -> None:
    def think(request: ModelRequest) -> Any:
        if request.messages[-1].text == "hello?":
            return "hi"
        return [call("sample"), call("elicit"), "ok"][request.turn]

    agent = Agent("a", model=FunctionModel(think), mcp_config=config(s=rough(sampling=True)))
    response = await Runners.run("go", agent)
    sampled, elicited = (json.loads(row["observation"][0]["content"]) for row in response.trajectory[:2])
    assert sampled["content"] == {"type": "text", "text": "hi"}
    assert elicited["action"] == "decline"


async def test_what_a_server_logs_is_not_heard_by_another_run(caller: Caller) -> None:
    tools = await tools_of(s=rough())
    other = Caller("run-2")
    hanging = asyncio.create_task(other(tools["swallow"]))
    await pid_of(tools, other)
    await caller(tools["log"], text="for one of you")
    assert not [kind for kind, _ in caller.heard + other.heard if kind == "log"], "it might be either's"
    hanging.cancel()
    await asyncio.wait((hanging,))
    await caller(tools["log"], text="for you")
    assert (await caller.until("log"))["message"] == "for you"


async def test_a_server_that_crashes_takes_no_other_server_with_it(caller: Caller) -> None:
    tools = await tools_of(s=rough(), other=stdio(allowed_tools=["add"]))
    with pytest.raises(ToolError):
        await caller(tools["crash"])
    assert await caller(tools["add"], a=1) == "2"
