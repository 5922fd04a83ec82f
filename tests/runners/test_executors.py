"""The same call, results and logs in worker processes."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from aworld.agents.llm_agent import Agent
from aworld.config import AgentConfig, RunConfig
from aworld.config.conf import EngineName
from aworld.core.exceptions import ConfigError, TaskError
from aworld.core.output import RunFinished
from aworld.core.task import Task
from aworld.models import FunctionModel
from aworld.runner import Runners
from aworld.runners.local import RunProgress, load, store_of
from aworld.server import ModelServer
from aworld.trajectory import MemoryStore, Query
from tests.runners.scenes import adder, assert_sound, facts
from tests.runners.travelling import place, shop_of, team, traveller

ROOT = Path(__file__).parents[2]


def conf(tmp_path: Path | None, **more: Any) -> RunConfig:
    store = None if tmp_path is None else f"sqlite:///{tmp_path}/runs.db"
    return RunConfig(engine_name=EngineName.PROCESSES, worker_num=2, store=store, **more)


async def test_many_tasks_run_in_two_processes_with_the_same_logs(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []

    def watch(progress: RunProgress) -> None:
        steps.append((progress.done, progress.total))

    tasks = [Task(f"place city{n}", traveller, labels={"n": str(n)}) for n in range(12)]
    tasks.append(Task("place Rome", swarm=team))
    async with asyncio.timeout(60):
        responses = await Runners.run_task(tasks, conf(tmp_path, on_progress=watch))
    assert list(responses) == [task.id for task in tasks]
    assert all(response.success for response in responses.values())
    pids = {re.findall(r"process (\d+)", str(response.answer))[0] for response in responses.values()}
    assert len(pids) == 2
    assert str(os.getpid()) not in pids
    assert steps[-1] == (13, 13)
    here = await Runners.run("place city0", traveller)
    blind = [re.sub(r"\d+", "#", str(facts(r.record))) for r in (here, responses[tasks[0].id])]
    assert blind[0] == blind[1]
    assert responses[tasks[3].id].record.labels == {"n": "3"}
    for response in responses.values():
        assert_sound(response.record)


async def test_an_agent_that_no_module_has_travels_as_its_definition(tmp_path: Path) -> None:
    """With its key, which stands in no log."""
    model = FunctionModel(lambda request: f"{request.messages[0].text} by {os.getpid()}")
    async with ModelServer(model, token="sk-a-key-of-its-own") as server:
        conf_ = AgentConfig(llm_model_name="served", llm_base_url=server.base_url, llm_api_key="sk-a-key-of-its-own")
        made_here = Agent("made-here", conf_, system_prompt="Hello", tools=[place])
        async with asyncio.timeout(60):
            responses = await Runners.run_task(Task("x", made_here), conf(tmp_path))
    (response,) = responses.values()
    assert response.success, response.msg
    assert response.answer.startswith("Hello by")
    assert response.record.agents["made-here"]["system_prompt"] == "Hello"
    assert b"sk-a-key" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


async def test_without_a_store_the_responses_have_it() -> None:
    task = Task("place Oslo", traveller)
    async with asyncio.timeout(60):
        responses = await Runners.run_task(task, conf(None))
    response = responses[task.id]
    assert response.success
    await response.reward(1.0)
    assert response.record.score == 1.0


async def test_a_worker_that_is_killed_loses_nothing(tmp_path: Path) -> None:
    tasks = [Task(f"place city{n}", traveller) for n in range(20)]
    tasks[7:7] = [Task(f"mark {tmp_path}/mark", traveller, id="marked")]
    async with asyncio.timeout(60):
        responses = await Runners.run_task(tasks, conf(tmp_path))
    assert all(response.success for response in responses.values()), {r.msg for r in responses.values()}
    assert responses["marked"].answer == "alive"
    store = store_of(f"sqlite:///{tmp_path}/runs.db")
    assert await store.count(Query(status=("finished",))) == 21
    for response in responses.values():
        assert_sound(response.record)


async def test_a_task_that_kills_every_worker_is_given_up(tmp_path: Path) -> None:
    task = Task("die", traveller, id="deadly")
    async with asyncio.timeout(60):
        responses = await Runners.run_task([task, Task("place Oslo", traveller)], conf(tmp_path))
    first, second = responses.values()
    # The call is closed as interrupted when it is taken up again, so the agent hears of it and ends.
    assert first.status in ("finished", "interrupted")
    assert second.success


async def test_a_follower_sees_the_runs_of_workers(tmp_path: Path) -> None:
    tasks = [Task(f"place city{n}", traveller, group_id="g") for n in range(4)]
    store = store_of(f"sqlite:///{tmp_path}/runs.db")
    ends: list[Any] = []

    async def watch() -> None:
        outputs = Runners.follow([task.id for task in tasks], store=store)
        ends.extend([output.response.answer async for output in outputs if isinstance(output, RunFinished)])

    watching = asyncio.create_task(watch())
    async with asyncio.timeout(60):
        responses = await Runners.run_task(tasks, conf(tmp_path))
        await watching
    assert sorted(ends) == sorted(str(response.answer) for response in responses.values())


async def test_leaving_cancels_what_runs(tmp_path: Path) -> None:
    tasks = [Task("hang", traveller) for _ in range(4)]
    running = asyncio.create_task(Runners.run_task(tasks, conf(tmp_path)))
    store = store_of(f"sqlite:///{tmp_path}/runs.db")
    seen = 0
    async with asyncio.timeout(60):
        async for _, entry in store.follow([task.id for task in tasks]):
            seen += type(entry).__name__ == "ToolCalled"
            if seen == 4:
                break
    since = time.monotonic()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert time.monotonic() - since < 2
    assert {(await load(task.id, store)).status for task in tasks} == {"cancelled"}


_MAIN = """
import asyncio, sys
from aworld.agents.llm_agent import Agent
from aworld.config import AgentConfig, RunConfig
from aworld.core.task import Task
from aworld.models import FunctionModel
from aworld.runner import Runners
from tests.runners.travelling import traveller
import aworld.agents.llm_agent as a
from aworld.models import ScriptedModel
own = a.Agent("own", model=ScriptedModel(["hello"]))
if __name__ == "__main__":
    tasks = [Task("x", own), *(Task("hang", traveller) for _ in range(int(sys.argv[2])))]
    conf = RunConfig(engine_name="processes", worker_num=2, store=sys.argv[1])
    print([r.answer for r in Runners.sync_run_task(tasks, conf).values()])
"""


@pytest.mark.parametrize("how", [None, signal.SIGINT, signal.SIGKILL])
async def test_a_program_of_its_own(tmp_path: Path, how: signal.Signals | None) -> None:
    (tmp_path / "program.py").write_text(_MAIN)
    url = f"sqlite:///{tmp_path}/runs.db"
    program = await asyncio.create_subprocess_exec(
        sys.executable, str(tmp_path / "program.py"), url, "0" if how is None else "2",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    store = store_of(url)
    async with asyncio.timeout(60):
        if how is not None:
            called = 0
            async for _, entry in store.follow(Query()):
                called += type(entry).__name__ == "ToolCalled"
                if called == 2:
                    break
            program.send_signal(how)
        output, errors = await program.communicate()
        if how is None:
            assert output == b"['hello']\n", errors
            return
        left = ["running"]
        while left:  # workers end when their parent has gone; the runs of one that was killed go on elsewhere
            if how is signal.SIGKILL:
                await Runners.resume_all(store, [traveller])
            left = [run.id for run in await store.query(Query(status=("running",)))]
            await asyncio.sleep(0.02)
    ended = {run.status for run in await store.query()}
    assert ended == ({"finished"} if how is signal.SIGKILL else {"finished", "cancelled"})


async def test_what_a_tool_starts_does_not_read_the_tasks_of_others(tmp_path: Path) -> None:
    tasks = [Task("listen", traveller), *(Task(f"place city{n}", traveller) for n in range(9))]
    async with asyncio.timeout(60):
        responses = await Runners.run_task(tasks, conf(tmp_path, max_concurrency=2))
    assert all(response.success for response in responses.values())
    assert responses[tasks[0].id].answer == "heard ''"


async def test_a_task_that_cannot_be_made_in_a_worker_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWORLD_TEST_SHOP", "open")
    environment = shop_of("AWORLD_TEST_SHOP")
    task = environment.task(environment.problems("train", 1, seed=0)[0], traveller)
    monkeypatch.delenv("AWORLD_TEST_SHOP")
    with pytest.raises(TaskError, match="could not begin the task: KeyError"):
        async with asyncio.timeout(60):
            await Runners.run_task(task, conf(tmp_path))


async def test_a_worker_that_cannot_start_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(TaskError, match="could not be started"):
        await Runners.run_task(Task("place Oslo", traveller), conf(tmp_path))


async def test_what_cannot_travel_is_refused_before_anything_begins(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"Agent 'adder' cannot travel.*module:name"):
        await Runners.run_task([Task("place Oslo", traveller), Task("x", adder())], conf(tmp_path))
    with pytest.raises(ConfigError, match="store"):
        await Runners.run_task(Task("x", traveller), {**conf(None).model_dump(), "store": MemoryStore()})
    with pytest.raises(ConfigError, match="ray"):
        await Runners.run_task(Task("x", traveller), {"engine_name": "ray"})
    assert await store_of(f"sqlite:///{tmp_path}/runs.db").count() == 0
