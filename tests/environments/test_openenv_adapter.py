"""The adapter to OpenEnv on our own server, which speaks its protocol: OpenEnv itself need not be installed here."""

from __future__ import annotations

import asyncio
import json

import pytest

from aworld.core.exceptions import ConfigError
from aworld.core.model import ModelRequest
from aworld.environments import Environment
from aworld.environments.adapters.openenv import openenv_environment
from aworld.models.doubles import Said, call
from tests.environments.served import DIGITS, Vault, codes, correct, vault
from tests.environments.test_env_serve import POLICIES, emptied, play, serving


async def test_step_rewards_and_the_end_come_from_the_server() -> None:
    with serving() as server:
        environment = await asyncio.to_thread(openenv_environment, server.url)
        response = await play(environment, POLICIES["one door at a time"])
        assert response.status == "finished"
        assert response.answer.isdecimal()
        opened = [reward.value for reward in response.record.rewards if reward.step is not None]
        assert opened == [0.25] * DIGITS
        assert response.record.score == 0.25 * DIGITS, "the return itself weighs nothing"
        assert {reward.name: reward.value for reward in response.record.rewards}["return"] == 0.25 * DIGITS
        shut = await play(environment, POLICIES["ends by a tool"])
        assert shut.status == "finished"
        assert len(shut.record.calls) == 1
        await emptied(server)


async def test_words_are_an_action_where_the_caller_says_so() -> None:
    with serving() as server:
        environment = await asyncio.to_thread(
            lambda: openenv_environment(server.url, say=lambda text: {"type": "message", "content": text})
        )
        response = await play(environment, POLICIES["a wrong answer first"])
        assert len(response.record.calls) == 2, "the first one was asked for again"


async def test_a_failed_call_that_ends_the_episode_ends_it_here() -> None:
    """The server's limit is reached by a call that fails: no further call is made."""
    short = Environment("short", train=codes, session=Vault, rubric=correct, conf={"max_steps": 1})

    def policy(request: ModelRequest) -> Said:
        assert request.turn == 0, "the episode is over"
        return call("look", door=7)

    with serving(short) as server:
        environment = await asyncio.to_thread(openenv_environment, server.url)
        response = await play(environment, policy, environment.problems("train", 1)[0])
        assert response.status == "finished"
        assert "There is no door 7" in json.dumps(response.trajectory[0]["observation"])


async def test_a_server_that_is_gone_is_no_failure_of_the_agent() -> None:
    with serving() as server:
        environment = await asyncio.to_thread(openenv_environment, server.url)
    response = await play(environment)
    assert response.record.surroundings_failed


def test_problems_are_seeds_and_the_splits_never_meet() -> None:
    with serving(vault) as server:
        environment = openenv_environment(server.url)
        train, test = environment.problems("train", 50), environment.problems("test", 20)
        assert not {problem.id for problem in train} & {problem.id for problem in test}
        assert train == environment.problems("train", 50)


def test_where_nothing_is_served_that_is_said() -> None:
    with pytest.raises(ConfigError, match="no environment is served there"):
        openenv_environment("http://127.0.0.1:9")
