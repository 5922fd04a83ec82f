"""Agents, tools, servers and questions to a log that the tests of the runtime share."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import msgspec
from fastapi import Request, Response

from aworld.agents.llm_agent import Agent
from aworld.config.conf import AgentConfig
from aworld.core import event as ev
from aworld.core.message import chat_format
from aworld.core.model import ModelRequest
from aworld.core.rows import rows
from aworld.core.tool.func_to_tool import tool
from aworld.core.trajectory import Trajectory
from aworld.models import FunctionModel, ScriptedModel
from aworld.models.doubles import Said, call
from aworld.server import ModelServer


@tool(inline=True)
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@tool(inline=True)
def search(query: str) -> str:
    """Look it up."""
    return f"nothing on {query}"


def scripted(*replies: Said, tools: Sequence[Any] = (add, search), name: str = "agent", **settings: Any) -> Agent:
    """An agent that says `replies`, in order, in every run."""
    return Agent(name, model=ScriptedModel(replies), tools=tools, **settings)


def adder(name: str = "adder") -> Agent:
    """An agent that asks for one sum and says it."""
    return scripted(call("add", a=1, b=2), "It is 3.", name=name, system_prompt="You add.")


def thinking(
    think: Callable[[ModelRequest], Said | Awaitable[Said]],
    *,
    tools: Sequence[Any] = (),
    name: str = "agent",
    **settings: Any,
) -> Agent:
    """An agent whose model is a function of the request."""
    return Agent(name, model=FunctionModel(think), tools=tools, **settings)


def looping(name: str = "looper") -> Agent:
    """An agent that never stops calling its tool."""
    return thinking(lambda request: call("add", a=request.turn, b=1), tools=(add,), name=name)


class RecordingServer(ModelServer):
    """A model server that keeps what it received, as it came over the wire."""

    bodies: list[dict[str, Any]]
    headers: list[dict[str, str]]

    async def __aenter__(self) -> RecordingServer:
        await self.start()
        return self

    async def start(self) -> None:
        self.bodies, self.headers = [], []
        await super().start()

    async def _complete(self, http: Request) -> Response:
        self.bodies.append(json.loads(await http.body()))
        self.headers.append({name.title(): value for name, value in http.headers.items()})
        return await super()._complete(http)

    def agent(self, name: str = "agent", *, tools: Sequence[Any] = (add, search), **settings: Any) -> Agent:
        """An agent that asks this server."""
        conf = AgentConfig(
            llm_base_url=self.base_url, llm_model_name="served", llm_api_key="sk-of-the-test", llm_max_retries=0
        )
        return Agent(name, conf, tools=tools, **settings)

    def assert_exact(self, record: Trajectory, bodies: Sequence[dict[str, Any]] | None = None) -> None:
        """Every row, and every path of a model call in the log, is what the server received."""
        received = self.bodies if bodies is None else bodies
        shown = rows(record)
        assert len(shown) == len(received) == len(record.calls)
        for row, call_, body in zip(shown, record.calls.values(), received):
            assert row["state"]["messages"] == body["messages"]
            assert row["state"]["tools"] == body.get("tools", [])
            assert [chat_format(message) for message in record.path(call_.prompt)] == body["messages"]


def server_of(*replies: Said) -> RecordingServer:
    """A server whose model says `replies` in order: the number of a reply is that of the turn."""

    def reply(request: ModelRequest) -> Said:
        return replies[request.turn]

    return RecordingServer(FunctionModel(reply, "served"))


class Gate:
    """Lets a test see how many have arrived somewhere, and decide when they go on."""

    def __init__(self) -> None:
        self.arrived = 0
        self.inside = 0
        self.most = 0
        self.open = asyncio.Event()
        self._news = asyncio.Condition()

    async def pass_through(self) -> None:
        """Wait until the gate is open."""
        async with self._news:
            self.arrived += 1
            self.inside += 1
            self.most = max(self.most, self.inside)
            self._news.notify_all()
        try:
            await self.open.wait()
        finally:
            self.inside -= 1

    async def until(self, count: int) -> None:
        """Return when `count` have arrived."""
        async with self._news, asyncio.timeout(10):
            await self._news.wait_for(lambda: self.arrived >= count)


def kinds(record: Trajectory) -> list[str]:
    """The kinds of a log's events, in order."""
    return [str(event.__struct_config__.tag) for event in record.events]


_TIMES = {"at", "started", "ended", "first_token", "queued", "duration"}


def facts(record: Trajectory) -> list[dict[str, Any]]:
    """The events without times and names of the run."""
    plain: list[dict[str, Any]] = [msgspec.to_builtins(event) for event in record.events]
    kept = [{key: value for key, value in event.items() if key not in _TIMES} for event in plain]
    for event in kept:
        if event["kind"] == "started":
            event.pop("trajectory_id")
            event.pop("task")
            event.pop("conf", None)
    return kept


def assert_sound(record: Trajectory) -> None:
    """The invariants of a log that has ended."""
    assert [event.seq for event in record.events] == list(range(len(record.events)))
    ends = [event.seq for event in record.events if isinstance(event, ev.Finished)]
    assert len(ends) == 1
    assert all(isinstance(event, ev.Rewarded) for event in record.events[ends[0] + 1 :])
    follower = Trajectory(record.id)
    for event in record.events:
        if isinstance(event, ev.ModelCalled | ev.Finished):
            assert not any(activation.open_calls for activation in follower.activations.values())
        follower.apply(event)
    assert record.complete
    for number in record.calls:
        assert_answered(record, number)
    json.dumps(rows(record))


def assert_answered(record: Trajectory, step: int) -> None:
    """In what was sent, every tool call is followed by its answers, in the order of the calls."""
    messages = record.path(record.calls[step].prompt)
    due: list[str] = []
    for message in messages:
        if message.role == "tool":
            assert message.tool_call_id == due.pop(0)
        else:
            assert due == []
            due = [call_.id for call_ in message.tool_calls]
    assert due == []


def statuses(responses: Iterable[Any]) -> list[str]:
    """How runs ended."""
    return [response.status for response in responses]
