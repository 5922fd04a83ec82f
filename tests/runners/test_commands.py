"""Who works on a run, and what others may want of it: cancel, steer, pause, an answer, from any process."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from aworld.agents.llm_agent import Agent
from aworld.config import RunConfig
from aworld.core.exceptions import LeaseError, TaskError
from aworld.core.task import Task
from aworld.core.tool.func_to_tool import tool
from aworld.models.doubles import Said, call
from aworld.runner import Runners
from aworld.runners.local import load
from aworld.tools.human import ask
from aworld.trajectory import Query, TrajectoryStore, open_store
from tests.runners.scenes import Gate, add, adder, assert_sound, scripted, thinking


def held(gate: Gate, turns: int = 2) -> Agent:
    """An agent that decides when the gate is open."""

    async def think(request: Any) -> Said:
        await gate.pass_through()
        return call("add", a=request.turn, b=1) if request.turn < turns else "done"

    return thinking(think, tools=[add], name="held")


async def begun(store: TrajectoryStore, gate: Gate) -> asyncio.Task[Any]:
    running = asyncio.create_task(Runners.run("x", held(gate), id="run", run_conf=RunConfig(store=store)))
    await gate.until(1)
    return running


async def test_a_run_is_cancelled_by_its_id_within_a_second(store: TrajectoryStore) -> None:
    running = await begun(store, Gate())
    since = time.monotonic()
    await Runners.cancel("run", reason="enough", store=store)
    async with asyncio.timeout(5):
        response = await running  # no CancelledError: it was not its caller
    assert time.monotonic() - since < 1
    assert response.status == "cancelled"
    assert "enough" in response.msg
    assert_sound(response.record)
    with pytest.raises(TaskError, match="has ended"):
        await Runners.cancel("run", store=store)
    with pytest.raises(TaskError, match="has ended"):
        await Runners.steer("run", "go on", store=store)


async def test_a_steered_agent_reads_it_before_its_next_decision(store: TrajectoryStore) -> None:
    gate = Gate()
    running = await begun(store, gate)
    await Runners.steer("run", "Be brief.", store=store)
    gate.open.set()
    response = await running
    assert response.answer == "done"
    assert [m["content"] for m in response.trajectory[1]["state"]["messages"]][-1] == "Be brief."
    assert "Be brief." not in str(response.trajectory[0]["state"])
    assert_sound(response.record)


async def test_a_paused_run_goes_on_when_it_is_resumed(store: TrajectoryStore) -> None:
    gate = Gate()
    running = await begun(store, gate)
    await Runners.pause("run", store=store)
    gate.open.set()
    response = await running
    assert response.status == "waiting"
    assert "resume" in response.msg
    record = await load("run", store)
    assert (record.status, len(record.calls)) == ("waiting", 1)
    assert [summary.status for summary in await store.query(Query(ids=("run",)))] == ["waiting"]
    resumed = await Runners.resume("run", held(gate), store=store)
    assert resumed.answer == "done", resumed.msg
    assert [summary.status for summary in await store.query(Query(ids=("run",)))] == ["finished"]
    assert_sound(resumed.record)


async def test_a_run_that_a_live_owner_works_on_is_not_taken_over(store: TrajectoryStore, tmp_path: Path) -> None:
    gate = Gate()
    running = await begun(store, gate)
    with pytest.raises(LeaseError):
        await Runners.resume("run", held(gate), store=store)
    left = await Runners.resume_all(store, [held(gate)])
    assert left.left == 1
    assert "run" in left.errors
    gate.open.set()
    assert (await running).answer == "done"


async def test_what_was_wanted_while_nobody_was_there_is_done_when_it_goes_on(store: TrajectoryStore) -> None:
    task = Task("x", adder(), id="run")
    await Runners.step(task, RunConfig(store=store))
    await Runners.steer("run", "In words, please.", store=store)
    response = await Runners.resume("run", adder(), store=store)
    assert "In words, please." in str(response.trajectory[-1]["state"]["messages"])
    again = Task("x", adder(), id="other")
    await Runners.step(again, RunConfig(store=store))
    await Runners.cancel("other", store=store)
    assert (await load("other", store)).status == "cancelled"


async def test_a_member_goes_on_with_an_answer_while_another_is_at_work(store: TrajectoryStore) -> None:
    gate = Gate()

    @tool
    async def wait() -> str:
        """Wait."""
        await gate.pass_through()
        return "waited"

    agent = scripted([call("ask", question="Where?"), call("wait")], "done", tools=[ask, wait])
    running = asyncio.create_task(Runners.run("x", agent, id="run", run_conf=RunConfig(store=store)))
    await gate.until(1)
    async with asyncio.timeout(5):
        while not (await load("run", store)).questions:  # noqa: ASYNC110 - the log is what is asked for
            await asyncio.sleep(0.01)
    await Runners.answer("run", "Oslo", store=store)
    gate.open.set()
    response = await running
    assert response.status == "finished", response.msg
    assert "Oslo" in str(response.trajectory[0]["observation"])
    assert_sound(response.record)


_WANT = """
import asyncio, sys
from aworld.runner import Runners
async def main():
    what, *args = sys.argv[2:]
    if what == "reward_it":
        await Runners.reward("run", float(args[0]), store=sys.argv[1])
    else:
        await getattr(Runners, what)("run", *args, store=sys.argv[1])
asyncio.run(main())
"""


async def elsewhere(store: TrajectoryStore, what: str, *args: str) -> None:
    other = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _WANT, store.url, what, *args, cwd=Path(__file__).parents[2]
    )
    assert await other.wait() == 0


async def test_another_process_cancels_steers_and_rewards(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/runs.db")
    gate = Gate()
    running = await begun(store, gate)
    await elsewhere(store, "reward_it", "0.5")
    await elsewhere(store, "steer", "Be brief.")
    async with asyncio.timeout(5):
        while len(await store.notes("run")) < 2:  # noqa: ASYNC110 - the store is what is asked
            await asyncio.sleep(0.01)
    assert not running.done()
    await elsewhere(store, "cancel")
    async with asyncio.timeout(1):
        response = await running
    assert response.status == "cancelled"
    record = await load("run", store)
    assert record.score == 0.5
    assert_sound(record)
    await store.close()


async def test_a_lost_lease_stops_the_run_at_once(tmp_path: Path) -> None:
    store, other = (open_store(f"sqlite:///{tmp_path}/runs.db") for _ in range(2))
    gate = Gate()
    running = await begun(store, gate)
    await store.flush()
    await other.delete("run")
    async with asyncio.timeout(5):
        response = await running
    assert response.status == "interrupted"
    with pytest.raises(TaskError, match="no trajectory"):
        await other.read("run")
    await store.close()
    await other.close()


@pytest.mark.parametrize("run", [None, 5, b"run"])
async def test_what_names_no_run_is_refused_in_words(run: Any) -> None:
    for want in (Runners.cancel(run), Runners.pause(run), Runners.reward(run, 1.0)):
        with pytest.raises(TaskError, match=r"; give (a Task, )?text, a Trajectory(,| or) a TaskResponse"):
            await want
    with pytest.raises(TaskError, match=r"; give (a Task, )?text, a Trajectory(,| or) a TaskResponse"):
        Runners.follow(run)
    assert [output async for output in Runners.follow([])] == []
