"""Rewards: on a step or on the whole, during the run or long after, from code, by id or by response."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from fractions import Fraction
from typing import Any

import pytest

from aworld.config import RunConfig
from aworld.core.exceptions import TaskError
from aworld.core.task import Task
from aworld.models.doubles import call
from aworld.runner import Runners
from aworld.runners.local import load
from aworld.trajectory import MemoryStore, TrajectoryStore, open_store
from tests.runners.scenes import Gate, add, adder, assert_sound, scripted, thinking
from tests.runners.test_kill import process


async def test_a_reward_of_the_whole_stands_on_the_last_row(store: TrajectoryStore) -> None:
    response = await Runners.run("x", adder(), run_conf=RunConfig(store=store))
    assert response.record.score is None
    assert [row["reward"]["score"] for row in response.trajectory] == [None, None]

    await response.reward(1.0, name="correct", source="judge", detail={"why": "3 is right"})
    assert [row["reward"]["score"] for row in response.trajectory] == [None, 1.0]
    assert response.record.score == 1.0
    assert_sound(response.record)
    stored = await load(response.id, store)
    assert stored.rewards == response.record.rewards
    assert stored.rewards[0].detail == {"why": "3 is right"}


async def test_a_reward_by_id_long_after_the_run(store: TrajectoryStore) -> None:
    response = await Runners.run("x", adder(), run_conf=RunConfig(store=store))
    await Runners.reward(response.id, 0.25, step=0, store=store)
    await Runners.reward(response.id, -1, name="cost", weight=0.5, store=store)
    record = await load(response.id, store)
    assert [(reward.step, reward.value, reward.weight) for reward in record.rewards] == [
        (0, 0.25, 1.0),
        (None, -1.0, 0.5),
    ]
    assert record.score == -0.25
    assert (await store.query())[0].score == -0.25
    assert_sound(record)


async def test_rewards_by_id_and_by_response_meet_in_one_log(store: TrajectoryStore) -> None:
    response = await Runners.run("x", adder(), run_conf=RunConfig(store=store))
    await Runners.reward(response.id, 0.25, store=store)
    await response.reward(0.5)
    record = await load(response.id, store)
    assert {reward.value for reward in record.rewards} == {0.25, 0.5}


async def test_a_reward_by_response_needs_no_store() -> None:
    response = await Runners.run("x", adder())
    await Runners.reward(response, 0.5, step=1)
    assert response.trajectory[1]["reward"]["score"] == 0.5


async def test_a_reward_by_task_after_its_run() -> None:
    task = Task("x", adder())
    response = (await Runners.run_task(task))[task.id]
    await Runners.reward(task, 0.5)
    assert response.record.score == 0.5


async def test_a_reward_by_id_without_a_store() -> None:
    response = await Runners.run("x", adder())
    await Runners.reward(response.id, 0.5)
    assert response.record.score == 0.5


async def test_a_reward_of_a_stepped_task_by_the_task() -> None:
    task = Task("x", adder())
    await Runners.step(task)
    await Runners.reward(task, 0.5, step=0)
    _, _, response = await Runners.step(task)
    assert response.record.score == 0.5


async def test_a_reward_while_the_run_goes_on(store: TrajectoryStore) -> None:
    gate = Gate()

    async def think(request: Any) -> Any:
        if request.turn == 0:
            return call("add", a=1, b=2)
        await gate.pass_through()
        return "done"

    conf = RunConfig(store=store)
    running = asyncio.create_task(Runners.run("x", thinking(think, tools=[add]), id="run", run_conf=conf))
    await gate.until(1)
    await Runners.reward("run", 0.5, step=0, store=store)
    gate.open.set()
    response = await running
    assert response.success, response.msg
    assert (await load("run", store)).score == 0.5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), "1", None, [1], 1j, "nan"])
async def test_what_no_sum_can_use_is_refused(value: Any, store: TrajectoryStore) -> None:
    response = await Runners.run("x", adder(), run_conf=RunConfig(store=store))
    events = len(response.record.events)
    with pytest.raises(ValueError, match="finite number"):
        await response.reward(value)
    with pytest.raises(ValueError, match="finite number"):
        await Runners.reward(response.id, value, store=store)
    with pytest.raises(ValueError, match="weight"):
        await response.reward(1.0, weight=value)
    assert len(response.record.events) == len(await store.read(response.id)) == events


@pytest.mark.parametrize("value", [1, True, 0.0, Fraction(1, 2), -3])
async def test_every_finite_real_number_is_a_reward(value: Any) -> None:
    response = await Runners.run("x", adder())
    await response.reward(value)
    assert response.record.score == float(value)


async def test_a_step_that_is_not_there_is_refused() -> None:
    response = await Runners.run("x", adder())
    with pytest.raises(ValueError, match="no step 2; it has 2, from 0"):
        await Runners.reward(response, 1.0, step=2)
    with pytest.raises(TaskError, match="no trajectory 'nobody'"):
        await Runners.reward("nobody", 1.0)


async def test_a_failed_run_may_be_rewarded(store: TrajectoryStore) -> None:
    response = await Runners.run("x", scripted(RuntimeError("no")), run_conf=RunConfig(store=store))
    await response.reward(0.0)
    assert response.record.score == 0.0
    assert (await store.query())[0].score == 0.0


async def test_rewards_from_code_of_a_thousand_runs() -> None:
    store = MemoryStore()
    tasks = [Task(str(n), adder(), group_id="sums") for n in range(200)]
    responses = await Runners.run_task(tasks, RunConfig(store=store))
    await asyncio.gather(*(response.reward(n / 10) for n, response in enumerate(responses.values())))
    assert sum(summary.score or 0 for summary in await store.query()) == pytest.approx(1990)


async def test_a_detail_that_is_no_json_is_refused(store: TrajectoryStore) -> None:
    response = await Runners.run("x", adder(), run_conf=RunConfig(store=store))
    with pytest.raises((TypeError, ValueError)):
        await response.reward(1.0, detail=object())
    await response.reward(0.5)
    assert (await load(response.id, store)).score == 0.5


JUDGE = """
import asyncio, sys
from aworld.runner import Runners
from aworld.trajectory import open_store

async def main():
    store = open_store(sys.argv[1])
    names = (f"{sys.argv[3]} {number}" for number in range(20))
    await asyncio.gather(*(Runners.reward(sys.argv[2], 1.0, name=name, store=store) for name in names))
    await store.close()

asyncio.run(main())
"""


async def judge_in_processes(url: str, id: str, judges: int) -> None:
    """Give 20 rewards in each of some processes."""
    async with asyncio.timeout(60), AsyncExitStack() as children:
        judged = [await children.enter_async_context(process("-c", JUDGE, url, id, str(n))) for n in range(judges)]
        for child in judged:
            _, errors = await child.communicate()
            assert child.returncode == 0, errors.decode()


async def test_fifty_judges_at_once_and_sixty_in_three_processes(store: TrajectoryStore) -> None:
    response = await Runners.run("x", adder(), run_conf=RunConfig(store=store))
    names = [f"here {number}" for number in range(50)]
    await asyncio.gather(*(Runners.reward(response.id, 1.0, name=name, store=store) for name in names))
    await asyncio.gather(*(Runners.reward(response, 1.0, name=name) for name in names))
    await judge_in_processes(store.url, response.id, 3)
    record = await load(response.id, store)
    assert len(record.rewards) == 160
    assert [note.seq for note in record.notes] == list(range(160))
    assert {reward.name for reward in record.rewards} >= {*names, *(f"{n} {m}" for n in range(3) for m in range(20))}
    assert (await store.query())[0].score == record.score == 160


async def test_a_live_run_takes_rewards_from_other_processes_and_goes_on(store: TrajectoryStore) -> None:
    gate = Gate()

    async def think(request: Any) -> Any:
        if request.turn == 0:
            return call("add", a=1, b=2)
        await gate.pass_through()
        return "done"

    conf = RunConfig(store=store)
    running = asyncio.create_task(Runners.run("x", thinking(think, tools=[add]), id="run", run_conf=conf))
    await gate.until(1)
    await judge_in_processes(store.url, "run", 2)
    other = open_store(store.url)
    await Runners.reward("run", 1.0, name="other object", store=other)
    await other.close()
    gate.open.set()
    response = await running
    assert (response.status, response.answer) == ("finished", "done"), response.msg
    record = await load("run", store)
    assert (len(record.rewards), record.score) == (41, 41)
    assert record.events == response.record.events


@pytest.mark.parametrize(
    "field",
    [{"name": 5}, {"name": None}, {"source": 5}, {"source": b"x"}, {"step": True}, {"step": "0"}, {"step": 0.5}],
)
async def test_a_field_of_a_wrong_type_is_refused(field: dict[str, Any], store: TrajectoryStore) -> None:
    response = await Runners.run("x", adder(), run_conf=RunConfig(store=store))
    with pytest.raises(ValueError, match=f"Runners.reward: {next(iter(field))}=.*; give"):
        await Runners.reward(response.id, 1.0, store=store, **field)
    assert (await load(response.id, store)).notes == []
