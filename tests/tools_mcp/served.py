"""Agents and a team for the tests of `aworld mcp serve`; their models need no network."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from aworld.agents.llm_agent import Agent
from aworld.core.agent.swarm import Swarm
from aworld.core.model import ModelRequest
from aworld.models import FunctionModel, ScriptedModel
from aworld.models.doubles import call
from aworld.tools.human import ask


def add(a: int, b: int) -> int:
    """Add two numbers."""
    os.write(1, b"a tool that prints where only the protocol may\n")
    return a + b


class Sum(BaseModel):
    total: int


async def wait() -> str:
    """Never ends; leaves a file when it is cancelled."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        Path(os.environ["CANCELLED"]).write_text("cancelled")
        raise
    return "never"


def broken(request: ModelRequest) -> Any:
    """A model that cannot be asked."""
    raise RuntimeError("no such model")


calculator = Agent("calculator", model=ScriptedModel([call("add", a=1, b=2), "It is 3."]), tools=[add], desc="Adds.")
typed = Agent("typed one", model=ScriptedModel(['{"total": 3}']), output_type=Sum)
waiter = Agent("waiter", model=ScriptedModel([call("wait"), "done"]), tools=[wait])
failing = Agent("failing", model=FunctionModel(broken))
modelless = Agent("modelless")
first = Agent("first", model=FunctionModel(lambda request: request.messages[-1].text.upper()))
second = Agent("second", model=FunctionModel(lambda request: request.messages[-1].text + "!"))
asker = Agent("asker", model=ScriptedModel([call("ask", question="Where to?"), "Off to Ghent."]), tools=[ask])
twice = Agent(
    "twice",
    model=ScriptedModel([[call("ask", question="Where?"), call("ask", question="When?")], "Booked."]),
    tools=[ask],
)
team = Swarm(first, second, name="team")
