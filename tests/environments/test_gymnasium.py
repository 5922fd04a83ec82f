"""Gymnasium environments, with the real package: what a model is told, what it may do, what it is rewarded for."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Callable, Mapping
from importlib import reload
from typing import Any, cast

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from aworld.agents.llm_agent import Agent
from aworld.core.exceptions import ConfigError, ToolError
from aworld.core.message import Content, Image, Text, ToolCall
from aworld.core.model import ModelRequest
from aworld.core.task import TaskResponse
from aworld.environments import Environment
from aworld.environments.adapters import gymnasium as adapter
from aworld.environments.adapters.gymnasium import action_of, gymnasium_environment, jsonable, schema, words
from aworld.models.doubles import FunctionModel, Said, call
from aworld.runner import Runners

ICE = {"is_slippery": False}
NAMES = ("left", "down", "right", "up")
HOME = ("down", "down", "right", "down", "right", "right")


async def play(environment: Environment, policy: Callable[[ModelRequest], Said], n: int = 1) -> TaskResponse:
    task = environment.task(environment.problems("test", n)[-1], Agent("player", model=FunctionModel(policy)))
    return (await Runners.run_task(task))[task.id]


def lake(**given: Any) -> Environment:
    return gymnasium_environment("FrozenLake-v1", make=ICE, actions=NAMES, **given)


async def test_a_walk_over_the_ice_is_rewarded_step_by_step_and_ends_with_the_episode() -> None:
    response = await play(lake(), lambda request: call("act", action=HOME[request.turn]))
    assert response.success
    assert response.answer == "The episode has ended. Return: 1."
    steps = [row["reward"]["rewards"][0] for row in response.trajectory]
    assert [reward["value"] for reward in steps] == [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    assert response.record.score == 1.0
    assert response.trajectory[0]["observation"][0]["content"] == "4"
    (tool,) = response.trajectory[0]["state"]["tools"]
    assert tool["function"]["parameters"]["properties"]["action"] == {"type": "string", "enum": list(NAMES)}


async def test_the_model_is_told_of_the_environment_and_the_first_observation() -> None:
    response = await play(lake(), lambda request: "I would rather not.")
    told: str = response.trajectory[0]["state"]["messages"][-1]["content"]
    assert "one of left, down, right, up" in told
    assert "0: Move left" in told, "what the environment's own documentation says"
    assert told.endswith("First observation: 0")
    assert response.record.score == 0.0, "an agent that never acts has returned nothing, which is known"


async def test_a_wrong_action_is_told_to_the_model_and_takes_no_step() -> None:
    def policy(request: ModelRequest) -> Said:
        return [call("act", action="jump"), ToolCall("", "act", "north"), call("act"), "I stop."][request.turn]

    response = await play(lake(), policy)
    told = [row["observation"][0]["content"] for row in response.trajectory[:3]]
    assert "must be one of left, down, right, up" in told[0]
    assert "no JSON" in told[1]
    assert '{"action": …}' in told[2]
    assert response.record.score == 0.0


async def test_several_actions_of_one_turn_are_taken_in_their_order_and_not_after_the_end() -> None:
    response = await play(
        lake(), lambda _: [ToolCall(f"c{n}", "act", json.dumps({"action": a})) for n, a in enumerate((*HOME, "up"))]
    )
    told = [result["content"] for result in response.trajectory[0]["observation"]]
    assert told[:5] == ["4", "8", "9", "13", "14"]
    assert "was not taken" in told[6]
    assert response.record.score == 1.0


async def test_the_limit_of_gymnasium_truncates() -> None:
    environment = lake(inline=True)
    response = await play(environment, lambda _: call("act", action="left"))
    assert len(response.trajectory) == 100
    assert str(response.answer).startswith("The episode was cut off")


async def test_the_seed_of_a_problem_decides_the_episode_and_seeds_of_the_splits_never_meet() -> None:
    cart = gymnasium_environment("CartPole-v1", inline=True)

    async def first(n: int) -> str:
        response = await play(cart, lambda _: "No.", n)
        return response.trajectory[0]["state"]["messages"][-1]["content"].rpartition(": ")[2]

    assert await first(1) == await first(1) != await first(2)
    assert len(json.loads(await first(1))) == 4
    train = [cart.problems("train", 500, seed) for seed in (0, 1)]
    test = cart.problems("test", 200, 0)
    seeds = [{problem.data["seed"] for problem in split} for split in (*train, test)]
    assert [len(found) for found in seeds] == [500, 500, 200]
    assert not (seeds[0] | seeds[1]) & seeds[2]
    assert cart.problems("train", 3, 0) == train[0][:3]


async def test_box_actions_are_lists_of_numbers() -> None:
    pendulum = gymnasium_environment("Pendulum-v1", inline=True)
    response = await play(pendulum, lambda r: [call("act", action=[3.0]), call("act", action=[0.5]), "Enough."][r.turn])
    first, second, _ = response.trajectory
    assert "must be a list of 1 numbers from -2 to 2" in first["observation"][0]["content"]
    assert len(json.loads(second["observation"][0]["content"])) == 3
    assert second["reward"]["score"] < 0


class Tally(gymnasium.Env[Any, Any]):
    """Counts, in words, and breaks when told to; notes on which threads it ran."""

    def __init__(self) -> None:
        self.action_space = spaces.Text(12, charset="abcdefghijklmnopqrstuvwxyz")
        self.observation_space = spaces.Dict({"said": spaces.Text(100), "n": spaces.Discrete(100)})
        self.threads: set[str] = set()
        self.closed = 0
        self.n = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return {"said": "", "n": np.int64(0)}, {"hidden": "xyzzy"}

    def step(self, action: str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.threads.add(threading.current_thread().name)
        if action == "break":
            raise RuntimeError("the simulator has crashed")
        self.n += 1
        return {"said": action, "n": np.int64(self.n)}, float("nan") if action == "nan" else 1.0, False, False, {}

    def close(self) -> None:
        self.closed += 1


async def test_an_environment_that_breaks_in_mid_episode_fails_the_run_and_is_closed() -> None:
    made: list[Tally] = []

    def tally() -> Tally:
        made.append(Tally())
        return made[-1]

    for word, why in (("break", "RuntimeError: the simulator has crashed"), ("nan", "reward nan")):
        response = await play(gymnasium_environment(tally), lambda _, word=word: call("act", action=word))
        assert response.status == "failed"
        assert why in response.msg
        assert response.record.score in (None, 0.0)
    assert [env.closed for env in made] == [1, 1, 1, 1], "the one that was looked at, and the one of the episode, each"


@pytest.mark.parametrize("inline", [False, True])
async def test_steps_run_off_the_event_loop_unless_inline(inline: bool) -> None:
    made: list[Tally] = []

    def tally() -> Tally:
        made.append(Tally())
        return made[-1]

    environment = gymnasium_environment(tally, inline=inline)
    response = await play(environment, lambda r: call("act", action="abc") if r.turn == 0 else "Done.")
    assert json.loads(response.trajectory[0]["observation"][0]["content"]) == {"said": "abc", "n": 1}
    assert made[-1].threads == {threading.current_thread().name} if inline else "MainThread" not in made[-1].threads
    assert "xyzzy" not in json.dumps(response.trajectory), "info may hold what a player must not know"


async def test_describe_tells_of_observations_in_words_and_pictures() -> None:
    def describe(observation: Any, info: Mapping[str, Any]) -> Content:
        return (Text(f"n={observation['n']} "), Image("data:image/png;base64,AAAA"))

    environment = gymnasium_environment(Tally, describe=describe, instructions="Say words.")
    response = await play(environment, lambda r: call("act", action="abc") if r.turn == 0 else "Done.")
    first = response.trajectory[0]["state"]["messages"][-1]["content"]
    assert [part["type"] for part in first] == ["text", "text", "image_url"]
    assert first[0]["text"].startswith("Say words.")


async def test_many_episodes_at_once_do_not_mix() -> None:
    """Each walks its own number of steps to the left of the edge; all report their own return."""
    environment = gymnasium_environment(Tally)
    problems = environment.problems("train", 60)
    agents = [
        Agent(f"a{n}", model=FunctionModel(lambda r, n=n: call("act", action="go") if r.turn < n % 7 else "Done."))
        for n in range(60)
    ]
    tasks = [environment.task(problem, agent) for problem, agent in zip(problems, agents)]
    responses = await Runners.run_task(tasks)
    assert [responses[task.id].record.score for task in tasks] == [float(n % 7) for n in range(60)]


@given(st.data())
def test_what_a_schema_allows_is_an_action_of_its_space(data: st.DataObject) -> None:
    space = data.draw(
        st.sampled_from([
            spaces.Discrete(5, start=-2), spaces.Box(-1.0, 1.0, (2, 2)), spaces.Box(0, 255, (3,), dtype=np.uint8),
            spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3), spaces.Text(5, min_length=1, charset="ab"),
            cast("spaces.Space[Any]", spaces.Tuple((spaces.Discrete(2), spaces.Text(3, charset="x")))),
            spaces.Dict({"go": spaces.Discrete(2), "force": spaces.Box(-np.inf, np.inf, (1,))}),
        ])
    )  # fmt: skip
    space.seed(data.draw(st.integers(0, 1000)))
    written = json.loads(json.dumps(jsonable(space.sample())))
    assert space.contains(action_of(space, written))
    assert schema(space)["type"] in ("integer", "array", "string", "object")
    assert words(space)


@pytest.mark.parametrize("wrong", [7, -1, 1.5, "1", None, True, [1]])
def test_what_is_no_action_is_refused_in_words(wrong: Any) -> None:
    with pytest.raises(ToolError, match="must be an integer from 0 to 3"):
        action_of(spaces.Discrete(4), wrong)


def test_what_a_model_cannot_play_is_refused_when_it_is_made() -> None:
    class Screen(Tally):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space = spaces.Box(0, 255, (64, 64, 3), dtype=np.uint8)

    with pytest.raises(ConfigError, match=r"12,288 numbers.*describe="):
        gymnasium_environment(Screen)
    with pytest.raises(ConfigError, match="actions has 2 names; the environment has 4 actions"):
        gymnasium_environment("FrozenLake-v1", actions=["a", "b"])
    with pytest.raises(ConfigError, match=r"gymnasium.make\('NoSuchThing-v0'\)"):
        gymnasium_environment("NoSuchThing-v0")
    with pytest.raises(ConfigError, match="Sequence values"):
        schema(spaces.Sequence(spaces.Discrete(2)))


def test_without_the_package_the_package_to_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "gymnasium", None)
        with pytest.raises(ConfigError, match=r'pip install "gymnasium>=1\.0"'):
            reload(adapter)
    reload(adapter)


async def test_a_step_that_is_cut_off_ends_the_episode_as_failed() -> None:
    release = threading.Event()

    class Slow(Tally):
        def step(self, action: str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            release.wait(20)
            return super().step(action)

    environment = gymnasium_environment(Slow, conf={"tool_timeout": 0.05})
    try:
        response = await asyncio.wait_for(play(environment, lambda _: call("act", action="go")), 10)
    finally:
        release.set()
    assert response.status == "failed"
    assert "cut off before it ended" in response.msg
