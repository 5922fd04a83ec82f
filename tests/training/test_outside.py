"""Episodes whose policy is sampled by somebody else, and the bridge that carries the calls to another process."""

from __future__ import annotations

import ast
import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

import aworld
from aworld.agents.llm_agent import Agent
from aworld.core.exceptions import ConfigError
from aworld.core.message import Message, ToolCall
from aworld.core.model import ModelRequest
from aworld.core.task import TaskResponse
from aworld.core.tool import tool
from aworld.environments import Environment, Problem, ScoredEpisode, Session
from aworld.models import ScriptedModel
from aworld.training.bridge import Bridge
from aworld.training.outside import OutsideEnd, OutsidePrompt, OutsideReply, OutsideRollouts
from aworld.trajectory.memory import MemoryStore
from aworld.trajectory.sequences import sequences

PROBLEMS = {
    "sum": Problem(id="sum", input="What is 2 plus 3?", answer="5"),
    "odd": Problem(id="odd", input="Broken?", answer="?"),
}


class Calculator(Session):
    @tool(inline=True)
    def add(self, a: int, b: int) -> int:
        """Add two numbers."""
        return a + b


def exact(episode: ScoredEpisode) -> float:
    if episode.problem.id == "odd":
        raise RuntimeError("nobody knows")
    return float(episode.text == episode.problem.answer)


def parse(text: str, request: ModelRequest) -> Message:
    if text.startswith("add "):
        a, b = text.split()[1:]
        call = ToolCall(f"call_{request.turn}", "add", json.dumps({"a": int(a), "b": int(b)}))
        return Message("assistant", tool_calls=(call,))
    return Message("assistant", text)


ended: list[tuple[OutsideEnd, TaskResponse]] = []


@pytest.fixture
def rollouts() -> OutsideRollouts:
    ended.clear()
    environment = Environment(
        "sums", train=PROBLEMS.values(), session=Calculator, rubric=exact, system_prompt="Calculate."
    )
    return OutsideRollouts(
        environment, Agent("pupil", model=ScriptedModel([])), PROBLEMS, parse=parse, name="policy", run="test",
        store=MemoryStore(), on_end=lambda end, response: ended.append((end, response)),
    )  # fmt: skip


async def test_a_trainer_that_samples_itself_is_asked_turn_by_turn(rollouts: OutsideRollouts) -> None:
    first = await rollouts.begin("a", "sum")
    assert isinstance(first, OutsidePrompt)
    assert [(m["role"], m["content"]) for m in first.messages] == [
        ("system", "Calculate."), ("user", "What is 2 plus 3?"),
    ]  # fmt: skip
    assert [each["function"]["name"] for each in first.tools] == ["add"]
    second = await rollouts.say("a", OutsideReply("add 2 3", (1, 2), (10, 11), (-0.5, -0.25)))
    assert isinstance(second, OutsidePrompt)
    assert second.messages[:2] == first.messages
    assert second.messages[-1]["content"] == "5"
    end = await rollouts.say("a", OutsideReply("5", (1, 2, 10, 11, 3), (12,), (-0.125,)))
    assert end == OutsideEnd("test-0000-sum-0", "finished", 1.0, 2)
    rows = sequences(ended[0][1].record)
    assert (rows.drift, rows.complete, len(rows.rows)) == (0, True, 1)
    assert rows.rows[0].ids == (1, 2, 10, 11, 3, 12)
    assert rows.rows[0].mask == (0, 0, 1, 1, 0, 1)
    assert rows.rows[0].policy_versions == ("0", "0")


async def test_samples_of_a_problem_share_a_group_and_a_step(rollouts: OutsideRollouts) -> None:
    for id in ("a", "b"):
        await rollouts.begin(id, "sum")
        await rollouts.say(id, OutsideReply("5", (1,), (2,)))
    rollouts.step, rollouts.version = 1, "policy-1"
    await rollouts.begin("c", "sum")
    await rollouts.say("c", OutsideReply("6", (1,), (2,)))
    assert [end.trajectory for end, _ in ended] == ["test-0000-sum-0", "test-0000-sum-1", "test-0001-sum-0"]
    assert [response.record.task.group_id for _, response in ended] == [
        "test-0000-sum", "test-0000-sum", "test-0001-sum",
    ]  # fmt: skip
    assert [end.score for end, _ in ended] == [1.0, 1.0, 0.0]
    labels = [response.record.task.labels for _, response in ended]
    assert labels[2] == {"run": "test", "problem": "sum", "sample": "0", "step": "1"}
    assert [each["sample"] for each in labels] == ["0", "1", "0"]


async def test_a_reward_that_cannot_be_computed_is_unknown(rollouts: OutsideRollouts) -> None:
    await rollouts.begin("a", "odd")
    end = await rollouts.say("a", OutsideReply("?", (1,), (2,)))
    assert isinstance(end, OutsideEnd)
    assert (end.status, end.score) == ("finished", None)


async def test_what_is_not_one_conversation_is_refused(rollouts: OutsideRollouts) -> None:
    await rollouts.begin("a", "sum")
    stranger = rollouts.ask(ModelRequest((Message("user", "Me too!"),), agent="other", trajectory_id="test-0000-sum-0"))
    with pytest.raises(Exception, match="does not go on from the model's last answer"):
        await stranger
    with pytest.raises(Exception, match="only inside the episodes of its trainer"):
        await rollouts.ask(ModelRequest((Message("user", "Hello?"),)))
    await rollouts.close()


async def test_episodes_that_are_not_there(rollouts: OutsideRollouts) -> None:
    with pytest.raises(ConfigError, match="no problem 'missing' in environment 'sums'"):
        await rollouts.begin("a", "missing")
    with pytest.raises(ConfigError, match="no open episode 'a'"):
        await rollouts.say("a", OutsideReply("?"))
    await rollouts.begin("a", "sum")
    with pytest.raises(ConfigError, match="begun already"):
        await rollouts.begin("a", "sum")
    await rollouts.close()


@pytest.fixture
async def bridge(rollouts: OutsideRollouts) -> AsyncIterator[tuple[Bridge, list[Any]]]:
    heard: list[Any] = []
    async with Bridge(rollouts, lambda step, figures: heard.append((step, figures))) as bridge:
        yield bridge, heard


async def told(bridge: Bridge, op: str, token: str | None = None, **fields: Any) -> dict[str, Any]:
    """The answer to an exchange, also that which refuses it."""
    headers = {"Authorization": f"Bearer {token or bridge.token}"}
    async with aiohttp.ClientSession() as http, http.post(f"{bridge.url}/{op}", json=fields, headers=headers) as reply:
        return await reply.json(content_type=None)


async def test_the_bridge_carries_an_episode(bridge: tuple[Bridge, list[Any]]) -> None:
    server, heard = bridge
    asked = await told(server, op="begin", id="a", problem="sum")
    assert asked["messages"][-1] == {"role": "user", "content": "What is 2 plus 3?"}
    asked = await told(server, op="said", id="a", text="add 2 3", prompt_ids=[1], completion_ids=[2], logprobs=None)
    assert asked["messages"][-1]["role"] == "tool"
    asked = await told(server, op="said", id="a", text="5", prompt_ids=[1, 2, 3], completion_ids=[4])
    assert asked["end"]["score"] == 1.0
    assert await told(server, op="log", step=1, figures={"loss": 0.5}) == {}
    assert heard == [(1, {"loss": 0.5})]


async def test_the_bridge_says_what_is_wrong(bridge: tuple[Bridge, list[Any]]) -> None:
    server, _ = bridge
    assert "Show the token" in (await told(server, op="begin", token="guessed"))["detail"]
    assert "no problem 'x'" in (await told(server, op="begin", id="a", problem="x"))["detail"]
    assert "no operation of the bridge" in (await told(server, op="dance"))["detail"]
    assert "detail" in await told(server, op="said", id="a", text=1)
    assert "field 'id' is missing" in (await told(server, op="begin"))["detail"]
    assert server.variables["AWORLD_BRIDGE"].startswith("http://127.0.0.1:")


async def test_closing_the_bridge_ends_what_is_open(rollouts: OutsideRollouts) -> None:
    async with Bridge(rollouts, lambda step, figures: None) as bridge:
        await told(bridge, op="begin", id="a", problem="sum")
    with pytest.raises(ConfigError, match="no open episode"):
        await rollouts.say("a", OutsideReply("5"))


async def test_the_trainers_end_speaks_to_the_bridge_with_the_standard_library_alone(
    bridge: tuple[Bridge, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plugin itself can be imported only inside ms-swift."""
    (plugin,) = Path(aworld.__file__).parent.glob("training/**/swift_plugin.py")
    definitions = ast.parse(plugin.read_text()).body
    (ask,) = (each for each in definitions if isinstance(each, ast.AsyncFunctionDef) and each.name == "ask")
    names: dict[str, Any] = {"asyncio": asyncio, "json": json, "os": os, "urlsplit": urlsplit, "Any": Any}
    exec(compile(ast.Module([ask], []), plugin, "exec"), names)
    server, _ = bridge
    for name, value in server.variables.items():
        monkeypatch.setenv(name, value)
    prompt = await names["ask"]("begin", id="a", problem="sum")
    assert prompt["messages"][-1]["content"] == "What is 2 plus 3?"
    with pytest.raises(RuntimeError, match=r"AWorld refuses 'begin': .* begun already"):
        await names["ask"]("begin", id="a", problem="sum")
    monkeypatch.setenv("AWORLD_BRIDGE_TOKEN", "guessed")
    with pytest.raises(RuntimeError, match="Show the token"):
        await names["ask"]("log", step=1, figures={})
