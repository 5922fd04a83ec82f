"""An episode driven by hand: reset and step."""

from __future__ import annotations

import math
from typing import Any

import pytest

from aworld.core.exceptions import EnvironmentFailed, TaskError
from aworld.core.message import Message, ToolCall
from aworld.environments import EpisodeEnv, Part
from aworld.models.doubles import call
from aworld.trajectory import TrajectoryStore
from tests.environments.shop import Shop, correct, problem, said, shop, stream


async def test_reset_and_step(store: TrajectoryStore) -> None:
    async with EpisodeEnv(shop(system_prompt="Be brief."), store=store) as env:
        observation, info = await env.reset(problem=problem(4))
        assert observation.content == "What does item 4 cost?"
        assert (info["problem_id"], info["tools"][0]["function"]["name"]) == ("4", "ask_price")
        assert [tool.name for tool in env.tools] == ["ask_price", "praise", "leave"]
        observation, reward, terminated, truncated, info = await env.step(call("ask_price", item="it"))
        assert [result.content for result in observation.results] == ["12"]
        assert (reward, terminated, truncated, info["status"]) == (0.0, False, False, "running")
        observation, reward, *_ = await env.step(
            {"content": "nice", "tool_calls": [{"name": "praise", "arguments": {"word": "x"}}]}
        )
        assert reward == 0.25
        observation, reward, terminated, truncated, info = await env.step("12")
        assert (observation.content, reward, terminated, truncated) == ("12", 1.0, True, False)
        assert (info["score"], info["rewards"]) == (1.25, [{"name": "correct", "value": 1.0, "weight": 1.0}])
        assert said(env.messages)[0] == ("system", "Be brief.")
        with pytest.raises(TaskError, match="begin another with reset"):
            await env.step("12")
    summary = (await store.query())[0]
    assert (summary.status, summary.score, summary.steps) == ("finished", 1.25, 3)


async def test_the_seed_chooses_the_problem() -> None:
    for environment in (shop(), shop(train=stream)):
        env = EpisodeEnv(environment)
        first, _ = await env.reset(seed=3)
        again, _ = await env.reset(seed=3)
        others = [(await env.reset(seed=seed))[0] for seed in range(20)]
        assert first == again
        assert len({str(each.content) for each in others}) > 3
        await env.close()


async def test_a_limit_truncates_at_once() -> None:
    env = EpisodeEnv(shop(conf={"max_steps": 2}))
    await env.reset(problem=problem(1))
    assert (await env.step(call("ask_price", item="it")))[2:4] == (False, False)
    _, reward, terminated, truncated, info = await env.step(call("ask_price", item="it"))
    assert (reward, terminated, truncated, info["status"]) == (0.0, False, True, "limit_reached")
    assert "max_steps=2" in info["error"]


async def test_a_reset_in_mid_episode_cancels_it_and_closes_its_session(store: TrajectoryStore) -> None:
    Shop.closed.clear()
    env = EpisodeEnv(shop(), store=store)
    await env.reset(problem=problem(1))
    await env.reset(problem=problem(2))
    assert Shop.closed == ["1"]
    await env.close()
    await env.close()
    assert Shop.closed == ["1", "2"]
    assert [summary.status for summary in await store.query()] == ["cancelled", "cancelled"]


async def test_a_session_that_dies_is_raised() -> None:
    env = EpisodeEnv(shop())
    await env.reset(problem=problem(1))
    with pytest.raises(EnvironmentFailed, match="burnt down"):
        await env.step(call("ask_price", item="fire"))

    class Closed(Shop):
        async def start(self) -> None:
            raise OSError("closed today")

    with pytest.raises(EnvironmentFailed, match="closed today"):
        await EpisodeEnv(shop(session=Closed)).reset()


async def test_a_failed_scorer_gives_no_number() -> None:
    def broken(episode: Any) -> float:
        raise ValueError("oops")

    env = EpisodeEnv(shop(Part("correct", correct), Part("broken", broken)))
    await env.reset(problem=problem(1))
    _, reward, terminated, _, info = await env.step("3")
    assert math.isnan(reward)
    assert terminated
    assert info["score"] is None
    assert info["rewards"][1]["error"] == "ValueError: oops"


@pytest.mark.parametrize(
    "action",
    [
        ToolCall("a", "ask_price", '{"item": "it"}'),
        [ToolCall("", "ask_price", '{"item": "it"}'), ToolCall("", "ask_price", '{"item": "it"}')],
        Message("assistant", "hm", tool_calls=(ToolCall("b", "ask_price", '{"item": "it"}'),)),
        {"name": "ask_price", "arguments": {"item": "it"}},
        {
            "tool_calls": [
                {"id": "c", "type": "function", "function": {"name": "ask_price", "arguments": '{"item": "it"}'}}
            ]
        },
    ],
)
async def test_what_an_action_may_be(action: Any) -> None:
    env = EpisodeEnv(shop())
    await env.reset(problem=problem(2))
    observation, *_ = await env.step(action)
    assert {result.content for result in observation.results} == {"6"}
    assert len({result.tool_call_id for result in observation.results}) == len(observation.results)
    await env.close()


NO_ACTIONS: list[Any] = [{}, {"tool_calls": [{"function": {}}]}, 3, [1]]


@pytest.mark.parametrize("action", NO_ACTIONS)
async def test_what_it_may_not_be(action: Any) -> None:
    env = EpisodeEnv(shop())
    with pytest.raises(TaskError, match="call reset"):
        await env.step("x")
    await env.reset()
    with pytest.raises(TaskError):
        await env.step(action)
    await env.close()
