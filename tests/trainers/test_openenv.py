"""OpenEnv with the real package: its servers as our environments, our server for its clients, its class for our export.

Run by `make test-trainers`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Generator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

openenv: Any = pytest.importorskip("openenv.core")

from aworld.agents.llm_agent import Agent  # noqa: E402 - where OpenEnv is missing, there is nothing to test
from aworld.core.exceptions import ConfigError  # noqa: E402
from aworld.core.message import Tokens  # noqa: E402
from aworld.core.model import ModelRequest  # noqa: E402
from aworld.core.task import TaskResponse  # noqa: E402
from aworld.environments import Environment, Problem  # noqa: E402
from aworld.environments.adapters.openenv import openenv_environment  # noqa: E402
from aworld.models.doubles import FunctionModel, Said, call  # noqa: E402
from aworld.runner import Runners  # noqa: E402
from tests.environments.served import vault  # noqa: E402
from tests.environments.test_env_serve import serving  # noqa: E402
from tests.trajectory.test_openenv_export import document, two_turns  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")  # what OpenEnv and its dependencies warn of is theirs


@contextlib.contextmanager
def server(kind: str) -> Generator[str, None, None]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-m", "tests.trainers.openenv_setting", kind, str(port)], cwd=root)
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 90
        while True:
            assert process.poll() is None, "the server did not start"
            assert time.monotonic() < deadline
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=1):
                break
            time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def counter() -> Generator[str, None, None]:
    with server("counter") as url:
        yield url


async def play(
    environment: Environment, policy: Callable[[ModelRequest], Said], problem: Problem | None = None
) -> TaskResponse:
    problem = problem or environment.problems("test", 1)[0]
    task = environment.task(problem, Agent("player", model=FunctionModel(policy)))
    return (await Runners.run_task(task))[task.id]


def goal_of(request: ModelRequest) -> int:
    return json.loads(request.messages[-1].text.rpartition("observation: ")[2])["goal"] if request.turn == 0 else 0


async def test_an_environment_with_an_action_of_its_own(counter: str) -> None:
    environment = openenv_environment(counter)
    response = await play(environment, lambda r: call("act", amount=goal_of(r)))
    (row,) = response.trajectory
    assert row["state"]["tools"][0]["function"]["parameters"]["properties"]["amount"]["type"] == "integer"
    assert response.record.score == 1.0
    assert json.loads(response.answer)["count"] == json.loads(response.answer)["goal"]
    train, test = environment.problems("train", 50), environment.problems("test", 20)
    assert not {p.id for p in train} & {p.id for p in test}


async def test_the_seed_of_a_problem_reaches_the_server(counter: str) -> None:
    environment = openenv_environment(counter)
    for problem in environment.problems("train", 5, 3):
        response = await play(environment, lambda r: str(goal_of(r)), problem)
        assert response.answer == str(problem.data["reset"]["seed"] % 5 + 1)
        assert response.record.score == 0.0


async def test_wrong_actions_are_told_to_the_model_and_a_crash_fails_the_run(counter: str) -> None:
    environment = openenv_environment(counter)
    response = await play(environment, lambda r: [call("act", amount="many"), call("act"), "I stop."][r.turn])
    assert all("does not take this action" in row["observation"][0]["content"] for row in response.trajectory[:2])
    assert response.success
    response = await play(environment, lambda r: call("act", amount=13))
    assert response.record.surroundings_failed
    assert "thirteen breaks the counter" in response.msg


async def test_words_can_be_an_action(counter: str) -> None:
    environment = openenv_environment(counter, say=lambda text: {"amount": int(text)})
    response = await play(environment, lambda r: "1")
    assert (
        len(response.trajectory)
        == json.loads(response.trajectory[0]["state"]["messages"][-1]["content"].rpartition("observation: ")[2])["goal"]
    )
    assert response.record.score == 1.0


async def test_twenty_episodes_at_once(counter: str) -> None:
    environment = openenv_environment(counter)
    tasks = [
        environment.task(problem, Agent(f"a{n}", model=FunctionModel(lambda r: call("act", amount=goal_of(r)))))
        for n, problem in enumerate(environment.problems("train", 20))
    ]
    responses = await Runners.run_task(tasks)
    assert [responses[task.id].record.score for task in tasks] == [1.0] * 20


async def test_its_tasks_are_the_problems() -> None:
    with server("tasks") as url:
        environment = openenv_environment(url)
        assert [len(environment.problems(split)) for split in ("train", "test")] == [3, 2]
        problem = environment.problems("test")[1]
        response = await play(environment, lambda r: call("act", amount=goal_of(r)), problem)
        assert json.loads(response.answer)["goal"] == 7
    response = await play(environment, lambda r: "1", problem)
    assert response.record.surroundings_failed, "the server is gone"


def test_tasks_with_nothing_to_learn_from() -> None:
    with server("exam") as url:
        environment = openenv_environment(url)
        assert [len(environment.problems(split)) for split in ("train", "test")] == [0, 2]


async def test_its_tools_by_mcp_are_the_tools() -> None:
    with server("shelf") as url:
        environment = openenv_environment(url)

        def policy(request: ModelRequest) -> Said:
            return [call("put", thing="a book"), call("put", thing="a cup"), call("drop"), "Done."][request.turn]

        response = await play(environment, policy)
        told = [row["observation"][0] for row in response.trajectory[:3]]
        assert json.loads(told[1]["content"]) == ["a book", "a cup"]
        assert "screwed to the wall" in told[2]["content"]
        assert [tool["function"]["name"] for tool in response.trajectory[0]["state"]["tools"]] == ["put", "drop"]


def test_where_nothing_is_served_that_is_said() -> None:
    with pytest.raises(ConfigError, match="no environment is served there"):
        openenv_environment("http://127.0.0.1:9")


async def test_its_generic_client_plays_on_our_server() -> None:
    generic: Any = import_module("openenv.core.generic_client").GenericEnvClient
    with serving(vault, token="t0ken") as ours:
        headers = {"Authorization": "Bearer t0ken"}
        async with generic(base_url=ours.url, headers=headers) as client:
            code = vault.problems("test", 3, 5)[2].answer
            begun = await client.reset(split="test", order=5, index=2, seed=1)
            assert begun.observation["content"].endswith("doors.")
            assert begun.done is False
            listed = await client.step({"type": "list_tools"})
            assert [tool["name"] for tool in listed.observation["tools"]] == ["look", "wait", "shut"]
            looked = await client.step({"type": "call_tool", "tool_name": "look", "arguments": {"door": 0}})
            assert (looked.reward, looked.done) == (0.25, False)
            assert json.loads(looked.observation["result"])["digit"] == code[0]
            asked = await client.step({"type": "message", "content": "Well."})
            assert (asked.observation["content"], asked.done) == ("Digits only, please.", False)
            ended = await client.step({"type": "message", "content": code})
            assert (ended.reward, ended.done) == (2.0, True)
            assert ended.metadata["score"] == 2.25
            assert (await client.state())["step_count"] == 3
            again = await client.reset(seed=4)
            assert again.done is False
        with pytest.raises(ConnectionError):
            await generic(base_url=ours.url).connect()


async def test_its_tool_client_plays_on_our_server() -> None:
    client_of: Any = import_module("openenv.core.mcp_client").MCPToolClient
    types: Any = import_module("openenv.core.env_server.mcp_types")
    with serving(vault) as ours:
        async with client_of(base_url=ours.url) as client:
            await client.reset(split="train", index=0)
            assert [tool.name for tool in await client.list_tools()] == ["look", "wait", "shut"]
            code = vault.problems("train", 1)[0].answer
            assert json.loads(await client.call_tool("look", door=1))["digit"] == code[1]
            with pytest.raises(RuntimeError, match="There is no door 9"):
                await client.call_tool("look", door=9)
            ended = await client.step(types.CallToolAction(tool_name="shut", arguments={"code": code}))
            assert (ended.reward, ended.done) == (2.0, True)
        await asyncio.sleep(0)
        assert not ours.places


async def test_its_clients_do_not_mix_on_our_server() -> None:
    generic: Any = import_module("openenv.core.generic_client").GenericEnvClient
    with serving(vault) as ours:
        clients = [generic(base_url=ours.url) for _ in range(20)]
        await asyncio.gather(*(client.connect() for client in clients))
        await asyncio.gather(*(client.reset(split="train", index=n) for n, client in enumerate(clients)))
        action = {"type": "call_tool", "tool_name": "look", "arguments": {"door": 0}}
        seen = await asyncio.gather(*(client.step(action) for client in clients))
        codes = [problem.answer for problem in vault.problems("train", 20)]
        assert [json.loads(each.observation["result"])["digit"] for each in seen] == [code[0] for code in codes]
        await asyncio.gather(*(client.close() for client in clients))


def test_its_class_takes_our_training_traces() -> None:
    trace_of: Any = import_module("openenv.core.harness").TrainingTrace
    exported = document(two_turns(Tokens((5,), (6,), (-0.25,), base=0, policy_version="v1")))
    trace = trace_of.model_validate_json(json.dumps(exported))
    assert [turn.completion_token_ids for turn in trace.turns] == [[3, 4], [6]]
    assert trace.turns[1].loss_mask == [0, 0, 0, 0, 0, 1]
    assert trace.to_trace_entries()[0]["metadata"]["score"] == 2.5
    exported["turns"][0]["loss_mask"].append(1)
    with pytest.raises(ValueError, match="loss_mask"):
        trace_of.model_validate_json(json.dumps(exported))
