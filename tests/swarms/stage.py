"""Agents that are pure functions of what they see, and ways to drive one swarm in several manners and compare."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from aworld.agents.llm_agent import Agent
from aworld.config.conf import RunConfig
from aworld.core import event as ev
from aworld.core.agent.flow import Unit
from aworld.core.message import Message, ToolCall, chat_format
from aworld.core.model import ModelRequest
from aworld.core.task import Task, TaskResponse
from aworld.core.tool.func_to_tool import tool
from aworld.core.trajectory import Trajectory
from aworld.models import FunctionModel
from aworld.models.doubles import Said
from aworld.runner import Runners
from aworld.trajectory import MemoryStore
from tests.runners.scenes import assert_answered

Make = Callable[[], Unit]
"""Builds a fresh swarm: another process would have other objects."""


def says(name: str, think: Callable[[ModelRequest], Said | Awaitable[Said]], **settings: Any) -> Agent:
    """An agent whose model is a function."""
    return Agent(name, model=FunctionModel(think, name), **settings)


def echo(name: str, **settings: Any) -> Agent:
    """An agent that tells what it heard."""
    return says(name, lambda request: f"{name}({request.messages[-1].text})", **settings)


def fails(name: str, text: str = "boom", **settings: Any) -> Agent:
    """An agent whose model never answers."""

    def think(_: ModelRequest) -> Said:
        raise ValueError(text)

    return says(name, think, **settings)


def heard(request: ModelRequest) -> str:
    """The newest message."""
    return request.messages[-1].text


def asks(tool_name: str, id: str, **arguments: Any) -> ToolCall:
    """A tool call with an id of its own."""
    return ToolCall(id, tool_name, json.dumps(arguments))


def digest(messages: Sequence[Message]) -> str:
    """A short text that differs when anything in a prompt does."""
    return f"{zlib.crc32(json.dumps([chat_format(m) for m in messages]).encode()):08x}"


async def yields(count: int) -> None:
    """Let others go first, `count` times."""
    for _ in range(count):
        await asyncio.sleep(0)


@tool(idempotent=True, inline=True)
def double(text: str) -> str:
    """Say it twice."""
    return f"{text} {text}"


class Cuts(MemoryStore):
    """A store that knows where each append ended: a killed run's log ends at one of these."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[int] = []

    def append(self, trajectory_id: str, events: Sequence[ev.Event], *, wait: bool = True) -> Awaitable[None]:
        if events:
            self.ends.append(events[-1].seq + 1)
        return super().append(trajectory_id, events, wait=wait)


async def ran(unit: Unit, input: Any = "Q", **task: Any) -> tuple[TaskResponse, list[int]]:
    """Run to the end; the response, and where the log may end after a kill."""
    store = Cuts()
    response = await Runners.run(input, swarm=unit, run_conf=RunConfig(store=store), **task)
    return response, store.ends[:-1]


async def streamed(unit: Unit, input: Any = "Q") -> tuple[TaskResponse, list[int], list[Any]]:
    """The same, read while it goes on: the log is written more often."""
    store = Cuts()
    outputs: list[Any] = [o async for o in Runners.streaming_run(input, swarm=unit, run_conf=RunConfig(store=store))]
    return outputs[-1].response, store.ends[:-1], outputs


async def stepped(unit: Unit, input: Any = "Q", most: int = 500, **task: Any) -> TaskResponse:
    """Step to the end."""
    work = Task(input, swarm=unit, **task)
    for _ in range(most):
        over, _, response = await Runners.step(work)
        if over:
            response.step = None
            return response
    raise AssertionError(f"no end after {most} steps")


async def revived(unit: Unit, record: Trajectory, cut: int) -> tuple[TaskResponse, list[int]]:
    """What becomes of a run that was killed after event `cut`; and where it may be killed again."""
    store = Cuts()
    store.append(record.id, record.events[:cut])
    response = await Runners.resume(record.id, swarm=unit, store=store)
    return response, [end for end in store.ends[1:-1] if end > cut]


def calls(record: Trajectory) -> Counter[tuple[str, str, str]]:
    """Who was asked what and said what, times and order left out."""
    found: Counter[tuple[str, str, str]] = Counter()
    for call in record.calls.values():
        prompt = json.dumps([chat_format(message) for message in record.path(call.prompt)])
        reply = call.error or ""
        if call.reply is not None:
            reply = json.dumps(chat_format(record.messages[call.reply].message))
        found[call.agent, prompt, reply] += 1
    return found


def outcome(response: TaskResponse) -> tuple[Any, ...]:
    """How a run ended and all that was said in it."""
    return response.status, response.answer, response.msg, calls(response.record)


def assert_whole(record: Trajectory, *, complete: bool = True) -> None:
    """The invariants of the log of a swarm that has ended."""
    assert [event.seq for event in record.events] == list(range(len(record.events)))
    assert [e.seq for e in record.events if isinstance(e, ev.Finished)] == [len(record.events) - 1]
    follower = Trajectory(record.id)
    ended: set[int] = set()
    for event in record.events:
        if isinstance(event, ev.ModelCalled):
            assert not follower.activations[event.activation].open_calls
            assert event.activation not in ended
        if isinstance(event, ev.AgentFinished):
            assert event.activation not in ended
            assert not follower.activations[event.activation].open_calls
            ended.add(event.activation)
        follower.apply(event)
    assert not any(activation.open_calls for activation in follower.activations.values())
    if record.status == "finished":
        assert ended == record.activations.keys()
    for activation in record.activations.values():
        assert activation.caller is None or activation.caller < activation.id
    for number in record.calls:
        assert_answered(record, number)
    if complete:
        assert record.complete
