"""Budgets that many runs share: used to their end, told by name, and what is left goes on with a larger one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aworld.agents.llm_agent import Agent
from aworld.config import AgentConfig, RunConfig, TaskConfig
from aworld.core.agent.swarm import WorkflowSwarm
from aworld.core.exceptions import ConfigError
from aworld.core.message import Message, Usage
from aworld.core.model import ModelReply, ModelRequest
from aworld.core.output import RunFinished
from aworld.core.task import Task
from aworld.models.doubles import FunctionModel, call
from aworld.runner import Runners
from aworld.trajectory import TrajectoryStore
from tests.runners.scenes import add, thinking


def costly(request: ModelRequest) -> ModelReply:
    """Two steps of 10 cents and 100 tokens each."""
    said = Message("assistant", tool_calls=(call("add", a=1, b=2),)) if request.turn == 0 else Message("assistant", "3")
    return ModelReply(said, usage=Usage(90, 10, 100, cost=0.1))


def tasks_of(number: int, agent: Agent) -> list[Task]:
    return [Task(f"What is {n}?", agent, id=f"q{n}") for n in range(number)]


@pytest.mark.parametrize("limit", [{"max_cost": 1.0}, {"max_tokens": 1000}])
async def test_a_budget_is_used_up_in_mid_batch_and_all_of_it_goes_on(
    store: TrajectoryStore, limit: dict[str, Any]
) -> None:
    agent = thinking(costly, tools=[add])
    conf = RunConfig(store=store, max_concurrency=4, **limit)
    responses = await Runners.run_task(tasks_of(20, agent), conf)
    assert list(responses) == [f"q{n}" for n in range(20)]
    spent = sum(response.usage.total_tokens or 0 for response in responses.values())
    assert spent == 1000  # to the end, and no further
    ended = [response for response in responses.values() if response.success]
    cut = [response for response in responses.values() if response.status == "limit_reached"]
    begun = [response for response in cut if response.record.events]
    assert len(ended) + len(cut) == 20
    assert len(begun) <= 4
    (name,) = limit
    assert all(f"RunConfig({name}={limit[name]}) reached" in response.msg for response in cut)
    assert all("It was not begun" in response.msg for response in cut if response not in begun)
    assert await store.count() == len(ended) + len(begun)

    resumed = await Runners.resume_all(store, [agent], RunConfig(max_cost=100))
    assert (resumed.finished, resumed.failed, resumed.left) == (len(begun), 0, 0)
    waiting = [task for task in tasks_of(20, agent) if not responses[task.id].record.events]
    rest = await Runners.run_task(waiting, RunConfig(store=store, max_cost=100))
    assert all(response.success for response in rest.values())
    assert await store.count() == 20


async def test_calls_side_by_side_are_as_many_as_fit_in() -> None:
    at_once, most, served = 0, 0, 0

    async def think(request: ModelRequest) -> ModelReply:
        nonlocal at_once, most, served
        at_once, served = at_once + 1, served + 1
        most = max(most, at_once)
        for _ in range(5):
            await asyncio.sleep(0)
        at_once -= 1
        return ModelReply(Message("assistant", "done"), usage=Usage(5, 5, 10))

    responses = await Runners.run_task(tasks_of(50, thinking(think)), RunConfig(max_tokens=95))
    assert (served, most) == (10, 8)  # one alone, then eight that fit into 85, and the one that passes it
    assert sum(response.success for response in responses.values()) == 10


async def test_a_run_without_a_model_call_holds_up_nobody() -> None:
    quick = thinking(lambda _: "done")
    with pytest.raises(ConfigError, match=r"max_tokens"):
        RunConfig(max_tokens=0)
    responses = await Runners.run_task(tasks_of(3, quick), RunConfig(max_tokens=10_000))
    assert all(response.success for response in responses.values())


async def test_a_batch_of_unreported_usage_stops_and_says_why(store: TrajectoryStore) -> None:
    agent = thinking(lambda _: ModelReply(Message("assistant", "done")))
    responses = await Runners.run_task(tasks_of(10, agent), RunConfig(store=store, max_tokens=100))
    first, *rest = responses.values()
    assert first.success
    assert {response.status for response in rest} == {"usage_unknown"}
    assert "function reported no usage for step 0: leave max_tokens out" in rest[0].msg


async def test_an_unknown_price_is_an_error_before_the_first_call() -> None:
    agent = Agent("a", AgentConfig(llm_model_name="my-own", llm_api_key="k"))
    for conf, task_conf in ((RunConfig(max_cost=1), None), (RunConfig(), TaskConfig(max_cost=1))):
        with pytest.raises(ConfigError, match="no price of openai:my-own is known: set llm_input_price"):
            await Runners.run_task(Task("x", agent, conf=task_conf), conf)
    second = Agent("a", AgentConfig(llm_api_key="k"), model=["openai:gpt-4o", "openai:my-own"])
    with pytest.raises(ConfigError, match="no price of openai:my-own is known"):
        await Runners.run("x", second, conf={"max_cost": 1})
    with pytest.raises(ConfigError, match="no price of openai:my-own"):
        await Runners.run("x", agent, run_conf=RunConfig(max_cost=1))


async def test_doubles_say_what_they_used() -> None:
    agent = Agent("a", model=FunctionModel(lambda _: "12345678"))
    response = await Runners.run("0123456789abcdef", agent, conf={"max_cost": 1.0, "max_tokens": 100})
    assert response.success
    assert response.usage == Usage(4, 2, 6, cost=0.0, estimated=True)


async def test_a_first_call_that_is_cut_off_teaches_nothing() -> None:
    at_once = most = 0

    async def think(request: ModelRequest) -> ModelReply:
        nonlocal at_once, most
        if request.trajectory_id == "q0":
            await asyncio.Event().wait()
        at_once += 1
        most = max(most, at_once)
        for _ in range(5):
            await asyncio.sleep(0)
        at_once -= 1
        return ModelReply(Message("assistant", "done"), usage=Usage(5, 5, 10))

    tasks = [Task("x", thinking(think), id=f"q{n}", timeout=0.1 if n == 0 else 30) for n in range(5)]
    async with asyncio.timeout(10):
        responses = await Runners.run_task(tasks, RunConfig(max_tokens=20))
    assert most == 1
    assert [response.status for response in responses.values()].count("finished") == 2


async def test_a_stream_ends_where_a_budget_does(store: TrajectoryStore) -> None:
    agent = thinking(costly, tools=[add])
    task = Task("What?", agent, id="run")
    outputs = [o async for o in Runners.streamed_run_task(task, RunConfig(store=store, max_cost=0.05)).stream_events()]
    last = outputs[-1]
    assert isinstance(last, RunFinished)
    assert (last.response.status, len(last.response.record.calls)) == ("limit_reached", 1)
    response = await Runners.resume("run", agent, store=store)
    assert (response.answer, response.usage.cost) == ("3", 0.2)
    assert (await Runners.replay("run", agent, store=store)).same


async def test_a_step_within_a_budget_and_members_of_a_team() -> None:
    agent = thinking(costly, tools=[add])
    task, conf = Task("What?", agent), RunConfig(max_cost=0.05)
    over, _, response = await Runners.step(task, conf)
    assert (over, response.status) == (False, "running")
    over, _, response = await Runners.step(task, conf)
    assert (over, response.status) == (True, "limit_reached")
    team = WorkflowSwarm([thinking(costly, tools=[add], name=f"m{n}") for n in range(4)])
    cut = await Runners.run("What?", swarm=team, run_conf=RunConfig(max_cost=0.5))
    assert (cut.status, cut.usage.cost) == ("limit_reached", pytest.approx(0.5))
    whole = await Runners.run("What?", swarm=team, run_conf=RunConfig(max_cost=5))
    assert whole.success
