"""`kill -9` at random moments of 200 running tasks, and Ctrl-C."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from aworld.core import event as ev
from aworld.core.model import ModelRequest
from aworld.core.trajectory import Trajectory
from aworld.models import FunctionModel
from aworld.trajectory import open_store
from tests.runners.scenes import Gate, RecordingServer, assert_sound

ROOT = Path(__file__).parents[2]


async def start(*arguments: str, cwd: Path = ROOT) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=pipe, stderr=pipe, cwd=cwd)


@asynccontextmanager
async def process(*arguments: str, cwd: Path = ROOT) -> AsyncGenerator[asyncio.subprocess.Process]:
    """A process that does not outlive the test."""
    child = await start(*arguments, cwd=cwd)
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


async def lines_until(child: asyncio.subprocess.Process, count: int) -> list[str]:
    """The first `count` lines that the process prints, fewer if it ends before."""
    assert child.stdout is not None
    lines: list[str] = []
    while len(lines) < count and (line := await child.stdout.readline()):
        lines.append(line.decode().strip())
    return lines


async def logs_of(url: str) -> dict[str, list[ev.Event]]:
    store = open_store(url)
    try:
        return {summary.id: await store.read(summary.id) for summary in await store.query()}
    finally:
        await store.close()


def assert_effects_on_record(effects: str, logs: dict[str, list[ev.Event]]) -> None:
    """An action is on record before it has an effect, and has it once."""
    counted = Counter(effects.splitlines())
    assert [line for line, count in counted.items() if count > 1] == []
    for line in counted:
        id, step, call_id, _ = line.split(" ")
        assert any(
            isinstance(event, ev.ToolCalled) and (str(event.step), event.call_id) == (step, call_id)
            for event in logs[id]
        ), f"{line} was done, but nobody knows"


@pytest.mark.parametrize("seed", [1])
async def test_kill_nine_at_random_moments_of_200_running_tasks(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    url, effects = f"sqlite:///{tmp_path}/runs.db", tmp_path / "effects"
    child_of = ("-m", "tests.runners.killed", url, str(effects))
    before: dict[str, list[ev.Event]] = {}
    ended: set[str] = set()
    for round_ in range(6):
        child = await start(*child_of, "begin" if round_ == 0 else "resume")
        lines = await lines_until(child, chance.randrange(10, 90))
        child.kill()
        rest, errors = await child.communicate()
        assert child.returncode == -signal.SIGKILL, errors.decode()
        acknowledged = [line.split(" ") for line in [*lines, *rest.decode().splitlines()] if line.startswith("ended")]
        ended |= {id for _, id, status in acknowledged if status == "finished"}

        logs = await logs_of(url)
        assert before.keys() <= logs.keys()
        for id, events in logs.items():
            assert events[: len(before.get(id, []))] == before.get(id, [])  # nothing is lost or changed
        assert all(isinstance(logs[id][-1], ev.Finished) for id in ended)
        assert_effects_on_record(effects.read_text(), logs)
        before = logs

    child = await start(*child_of, "resume")
    output, errors = await child.communicate()
    assert child.returncode == 0, errors.decode()
    finished = sum(1 for events in before.values() if isinstance(events[-1], ev.Finished))
    assert f"report {len(before) - finished} 0 0" in output.decode()
    logs = await logs_of(url)
    assert_effects_on_record(effects.read_text(), logs)
    interrupted = 0
    for id, events in logs.items():
        assert events[: len(before[id])] == before[id]
        if isinstance(before[id][-1], ev.Finished):
            assert len(events) == len(before[id])  # what had ended was left alone
        record = Trajectory.of(id, events)
        assert (record.status, record.answer) == ("finished", "8 answers")
        assert_sound(record)
        results = [event for event in events if isinstance(event, ev.ToolReturned)]
        assert {result.name for result in results if result.error} <= {"pay"}
        interrupted += sum(result.error == "interrupted" for result in results)
    assert interrupted > 0


_MANY = """
import asyncio, os, sys, time
from aworld.config import RunConfig
from aworld.core.task import Task
from aworld.core.tool.func_to_tool import tool
from aworld.models.doubles import call
from aworld.runner import Runners
from tests.runners.scenes import add, scripted, thinking

begun = 0

def arrived():
    global begun
    begun += 1
    if begun == 100:
        os.write(1, b"all are running\\n")

@tool
async def wait() -> str:
    "Wait."
    arrived()
    await asyncio.Event().wait()

@tool
def sleep() -> str:
    "Sleep."
    arrived()
    time.sleep(60)

agent = scripted(call("add", a=1, b=2), [call("add", a=2, b=2), call(sys.argv[2])], "done", tools=[add, wait, sleep])
conf = RunConfig(store=sys.argv[1])
if sys.argv[3] == "task":
    Runners.sync_run_task([Task("x", agent, id=f"t{n}") for n in range(100)], conf)
elif sys.argv[3] == "one":
    begun = 99
    Runners.sync_run("x", agent, run_conf=conf)
else:
    async def main():
        begun_ = Runners.sync_run("x", agent, run_conf=conf)
    begun = 99
    asyncio.run(main())
"""


async def interrupt(child: asyncio.subprocess.Process) -> tuple[float, str]:
    """Ctrl-C. Returns the seconds until the process ended, and what it said on standard error."""
    began = time.perf_counter()
    child.send_signal(signal.SIGINT)
    async with asyncio.timeout(2.5):
        _, errors = await child.communicate()
    return time.perf_counter() - began, errors.decode()


async def assert_cancelled(url: str, runs: int) -> None:
    logs = await logs_of(url)
    assert len(logs) == runs
    for id, events in logs.items():
        record = Trajectory.of(id, events)
        assert record.status == "cancelled"
        assert len(record.calls) == 2
        assert_sound(record)


@pytest.mark.parametrize(("tool", "how"), [("wait", "task"), ("sleep", "one"), ("wait", "one")])
async def test_ctrl_c_ends_every_run_as_cancelled_within_two_seconds(tmp_path: Path, tool: str, how: str) -> None:
    url = f"sqlite:///{tmp_path}/runs.db"
    async with process("-c", _MANY, url, tool, how) as child:
        assert await lines_until(child, 1) == ["all are running"]
        seconds, errors = await interrupt(child)
    assert seconds < 2
    assert child.returncode in (1, 130, -signal.SIGINT)
    assert "KeyboardInterrupt" in errors
    await assert_cancelled(url, 100 if how == "task" else 1)


async def test_ctrl_c_of_sync_run_inside_a_loop_cancels_the_run(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/runs.db"
    async with process("-c", _MANY, url, "wait", "nested") as child:
        assert await lines_until(child, 1) == ["all are running"]
        seconds, _ = await interrupt(child)
    assert seconds < 2
    await assert_cancelled(url, 1)


async def test_ctrl_c_of_the_command_line(tmp_path: Path) -> None:
    gate = Gate()

    async def hang(_: ModelRequest) -> str:
        await gate.pass_through()
        return "done"

    async with RecordingServer(FunctionModel(hang)) as server:
        command = ("run", *(f"question {n}" for n in range(20)), "--model", "m", "--base-url", server.base_url)
        async with process("-m", "aworld", *command, cwd=tmp_path) as child:
            await gate.until(20)
            seconds, errors = await interrupt(child)
        gate.open.set()
    assert seconds < 2
    assert child.returncode == 130, errors
    assert "cancelled" in errors
    logs = await logs_of(f"sqlite:///{tmp_path}/.aworld/trajectories.db")
    assert {Trajectory.of(id, events).status for id, events in logs.items()} == {"cancelled"}
    assert len(logs) == 20


_STUBBORN = """
import asyncio, sys
from aworld.config import RunConfig
from aworld.core.tool.func_to_tool import tool
from aworld.models.doubles import call
from aworld.runner import Runners
from tests.runners.scenes import scripted

@tool
async def stay() -> str:
    "Stays."
    print("here", flush=True)
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass

response = Runners.sync_run("x", scripted(call("stay"), tools=[stay]), timeout=0.2 if sys.argv[2] == "late" else None,
                            run_conf=RunConfig(store=sys.argv[1]))
print(response.status)
"""


async def test_sync_run_returns_although_a_tool_ignores_its_cancellation(tmp_path: Path) -> None:
    async with process("-c", _STUBBORN, f"sqlite:///{tmp_path}/runs.db", "late") as child:
        async with asyncio.timeout(10):  # for ever, without the remedy
            output, _ = await child.communicate()
    assert output.decode().splitlines() == ["here", "timeout"]


async def test_ctrl_c_although_a_tool_ignores_its_cancellation(tmp_path: Path) -> None:
    async with process("-c", _STUBBORN, f"sqlite:///{tmp_path}/runs.db", "never") as child:
        assert await lines_until(child, 1) == ["here"]
        seconds, _ = await interrupt(child)
    assert seconds < 2
