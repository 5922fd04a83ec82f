"""When servers start, who shares them, and that nothing is left of them."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aworld.agents.llm_agent import Agent
from aworld.core.context.base import RunScope
from aworld.core.event import TaskInfo
from aworld.core.exceptions import ToolError
from aworld.core.model import ModelRequest
from aworld.core.task import Task
from aworld.models import FunctionModel, ScriptedModel
from aworld.models.doubles import call
from aworld.runner import Runners
from aworld.tools import mcp_process, mcp_session
from aworld.tools.mcp import mcp_tools
from aworld.tools.mcp_session import close_sessions, hubs_here
from tests.tools_mcp.conftest import Caller, config, gone, rough, stdio, tools_of

PIDS = ScriptedModel([call("pids"), "ok"])


def pids_in(response: Any) -> list[int]:
    return json.loads(response.trajectory[0]["observation"][0]["content"])


async def until_gone(*pids: int) -> None:
    """Wait for the ends of processes that need not be our children."""
    loop = asyncio.get_running_loop()
    for pid in pids:
        if gone(pid):
            continue
        over = asyncio.Event()
        handle = os.pidfd_open(pid)
        loop.add_reader(handle, over.set)
        async with asyncio.timeout(10):
            await over.wait()
        loop.remove_reader(handle)
        os.close(handle)


def open_files() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def children() -> set[str]:
    return set(Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split())


async def test_runs_and_agents_share_a_server_that_starts_at_the_first_need() -> None:
    servers = config(s=rough())
    agents = [Agent(name, model=PIDS, mcp_config=servers) for name in ("a", "b")]
    before = children()
    responses = [await Runners.run("go", agents[n % 2]) for n in range(3)]
    responses += (await Runners.run_task([Task("go", agent=agents[0]) for _ in range(20)])).values()
    assert len({pids_in(response)[0] for response in responses}) == 1
    assert len(children() - before) == 2, "the server, and the guard"
    await close_sessions()
    assert children() == before


async def test_a_second_task_finds_the_server_warm() -> None:
    agent = Agent("a", model=PIDS, mcp_config=config(s=rough()))
    await Runners.run("go", agent)
    hub = mcp_session.hubs_here()[0]
    hub._tools_changed()  # even if the tools must be asked for again
    started = time.perf_counter()
    await Runners.run("go", agent)
    assert time.perf_counter() - started < 0.1


async def test_a_stateful_server_is_each_runs_own() -> None:
    def think(request: ModelRequest) -> Any:
        name = request.messages[0].text
        return [call("note", text=name), call("read_notes"), "ok"][request.turn]

    agent = Agent(
        "a", model=FunctionModel(think), mcp_config=config(s=stdio(stateful=True, allowed_tools=["note", "read_notes"]))
    )
    before = children()
    responses = (await Runners.run_task([Task(name, agent=agent) for name in ("one", "two")])).values()
    kept = [[part["text"] for part in row.trajectory[1]["observation"][0]["content"]] for row in responses]
    assert [notes[0] for notes in kept] == ["one", "two"]
    assert kept[0][1] != kept[1][1], "a process each"
    await until_gone(*(int(notes[1]) for notes in kept))
    await close_sessions()
    assert children() == before


async def test_the_session_that_listed_a_stateful_servers_tools_goes_to_the_first_run(caller: Caller) -> None:
    (shared,) = mcp_tools(config(s=rough(stateful=True)))
    toolset, others = (RunScope(run, TaskInfo(run)).own(shared) for run in ("run-1", "run-2"))
    before = children()
    tools = {tool.name: tool for tool in await toolset.list_tools()}
    first = json.loads(await caller(tools["pids"]))
    assert len(children() - before) == 2, "the server, and the guard"
    other = Caller("run-2")
    tools = {tool.name: tool for tool in await others.list_tools()}
    second = json.loads(await other(tools["pids"]))
    assert first != second == json.loads(await other(tools["pids"]))
    await toolset.end_run()
    await until_gone(*first)
    assert json.loads(await other(tools["pids"])) == second, "the other run goes on"


async def test_fifty_starts_leave_no_process_and_no_file_descriptor(caller: Caller) -> None:
    async def cycle() -> list[int]:
        tools = await tools_of(s=rough("family"))
        pids = json.loads(await caller(tools["pids"]))
        await close_sessions()
        return pids

    await cycle()  # what is opened once, such as the selector's
    files, before = open_files(), children()
    started = [pid for _ in range(50) for pid in await cycle()]
    await until_gone(*started)
    assert len(started) == 100
    assert (open_files(), children()) == (files, before)


async def test_a_stubborn_server_is_killed_with_all_it_started(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp_process, "PATIENCE", 0.05)
    tools = await tools_of(s=rough("stubborn", "family"))
    pids = json.loads(await caller(tools["pids"]))
    await close_sessions()
    await until_gone(*pids)


async def test_a_server_whose_child_holds_its_pipes_is_seen_to_end(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mcp_process, "_LINGER", 0.01)
    tools = await tools_of(s=rough("family"))
    with pytest.raises(ToolError, match="exit code 1"):
        await caller(tools["crash"])


async def test_closing_ends_calls_in_flight(caller: Caller) -> None:
    tools = await tools_of(s=rough())
    hanging = asyncio.create_task(caller(tools["swallow"]))
    await caller(tools["echo"], text="read")
    await close_sessions()
    with pytest.raises(ToolError, match="ended before it answered"):
        await hanging
    assert await caller(tools["echo"], text="anew") == "anew"


async def test_closing_ends_a_wait_for_the_server_to_come_back(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp_process, "MAX_LINE", 1 << 20)
    monkeypatch.setattr(mcp_process, "PATIENCE", 0.3)
    before = children()
    tools = await tools_of(s=rough("stubborn"))
    with pytest.raises(ToolError, match="more than 1 MB"):
        await caller(tools["echo"], text="x" * (3 << 20))
    waiting = asyncio.create_task(caller(tools["pids"]))  # until the old process is killed
    await asyncio.sleep(0.05)
    await close_sessions()
    with pytest.raises(ToolError, match="was closed"):
        await waiting
    assert children() <= before


async def test_closing_ends_a_listing() -> None:
    (toolset,) = mcp_tools(config(s=rough("shy")))
    waiting = asyncio.create_task(toolset.list_tools())
    while not any(hub.session.link for hub in hubs_here()):  # noqa: ASYNC110 - tells nobody
        await asyncio.sleep(0.01)
    await close_sessions()
    with pytest.raises(ToolError, match="was closed"):  # nobody has cancelled it
        await waiting


async def test_who_gives_up_waiting_for_a_start_stops_nobody_else(caller: Caller) -> None:
    (toolset,) = mcp_tools(config(s=rough()))
    impatient, patient = (asyncio.create_task(toolset.list_tools()) for _ in range(2))
    await asyncio.sleep(0)
    impatient.cancel()
    tools = {tool.name: tool for tool in await patient}
    assert await caller(tools["echo"], text="up") == "up"
    await close_sessions()  # and again, with calls instead of listings
    first, second = (asyncio.create_task(caller(tools["echo"], text=name)) for name in ("first", "second"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    first.cancel()
    assert await second == "second"


async def test_a_start_that_is_broken_off_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = mcp_process.GUARD.watch
    before = children()
    (toolset,) = mcp_tools(config(s=rough("mute")))
    waiting = asyncio.create_task(toolset.list_tools())
    watched = asyncio.Event()

    def seen(group: int) -> None:
        watch(group)
        watched.set()

    monkeypatch.setattr(mcp_process.GUARD, "watch", seen)
    await watched.wait()
    await close_sessions()
    with pytest.raises(ToolError, match="was closed"):
        await waiting
    assert children() == before


def test_every_sync_run_ends_its_servers() -> None:
    agent = Agent("a", model=PIDS, mcp_config=config(s=rough()))
    before = children()
    first, second = (pids_in(Runners.sync_run("go", agent)) for _ in range(2))
    assert first != second
    assert children() == before


def test_a_sync_run_waits_for_the_end_of_a_stubborn_server(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mcp_process, "PATIENCE", 0.4)
    agent = Agent("a", model=PIDS, mcp_config=config(s=rough("stubborn")))
    before = children()
    response = Runners.sync_run("go", agent)
    assert response.success
    assert gone(pids_in(response)[0])
    assert children() == before
    assert "left behind" not in caplog.text


async def test_the_guard_itself_may_be_killed(caller: Caller) -> None:
    tools = await tools_of(s=rough())
    first = mcp_process.GUARD._pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)  # noqa: ASYNC222 - it is dead
    tools |= await tools_of(other=rough("babble"))
    assert mcp_process.GUARD._pid not in (None, first), "another one has taken over"
    await close_sessions()
    assert mcp_process.GUARD._pid is None


class Runtime:
    """A process that uses a server."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-X", "dev", "-m", "tests.tools_mcp.runtime", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": os.getcwd()},
        )  # fmt: skip
        assert self.process.stdout is not None
        self.pids: list[int] = json.loads(self.process.stdout.readline())

    def end(self) -> tuple[int, str]:
        _, errors = self.process.communicate(timeout=20)
        return self.process.returncode, errors


@pytest.fixture
def started() -> Iterator[list[Runtime]]:
    runtimes: list[Runtime] = []
    yield runtimes
    for runtime in runtimes:
        runtime.process.kill()
        runtime.process.communicate()


async def test_servers_die_with_a_runtime_that_is_killed(started: list[Runtime]) -> None:
    started.append(runtime := Runtime("kill", "stubborn", "family"))
    assert len(runtime.pids) == 2
    assert not any(map(gone, runtime.pids))
    runtime.process.kill()
    runtime.end()
    await until_gone(*runtime.pids)


async def test_servers_die_with_a_runtime_that_crashes(started: list[Runtime]) -> None:
    started.append(runtime := Runtime("crash", "stubborn", "family"))
    assert runtime.end()[0] == 7
    await until_gone(*runtime.pids)


async def test_ctrl_c_ends_the_run_and_its_servers(started: list[Runtime]) -> None:
    started.append(runtime := Runtime("sync", "family"))
    runtime.process.send_signal(signal.SIGINT)
    code, errors = runtime.end()
    assert code == -signal.SIGINT
    assert "KeyboardInterrupt" in errors
    assert "Warning" not in errors
    assert all(map(gone, runtime.pids)), "they are gone before the runtime is"


@pytest.mark.parametrize("way", ["leave", "old"])
async def test_a_loop_that_ends_takes_its_servers_with_it(way: str, started: list[Runtime]) -> None:
    started.append(runtime := Runtime(way, "family"))
    code, errors = runtime.end()
    # asyncio in debug mode tells of steps that took long, which on a busy machine any may
    assert (code, [line for line in errors.splitlines() if not line.startswith("Executing ")]) == (0, [])
    assert all(map(gone, runtime.pids))
