"""Agents and tools at the top of a module, as worker processes find them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

from aworld.agents.llm_agent import Agent
from aworld.core.agent.swarm import Swarm
from aworld.core.message import Message, Usage
from aworld.core.model import ModelReply, ModelRequest
from aworld.core.tool.base import ToolContext
from aworld.core.tool.func_to_tool import tool
from aworld.environments import Environment, Problem, factory
from aworld.models import FunctionModel
from aworld.models.doubles import Said, call


@tool
async def place(city: str) -> str:
    """Where this is done."""
    await asyncio.sleep(0)
    return f"{city} in process {os.getpid()}"


@tool(idempotent=True)
async def die_once(mark: str) -> str:
    """Take the process down, the first time."""
    path = Path(mark)
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


@tool
async def die() -> str:
    """Take the process down."""
    os.kill(os.getpid(), signal.SIGKILL)
    return "never"


@tool
async def hang() -> str:
    """Wait for ever."""
    await asyncio.Event().wait()
    return "never"


@tool
def listen() -> str:
    """What a program hears that reads its standard input for a second."""
    code = "import select, sys; print(select.select([0], [], [], 1)[0] and sys.stdin.read(), end='')"
    heard = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False)
    return f"heard {heard.stdout!r}"


@factory
def shop_of(variable: str) -> Environment:
    """Sums, where a variable is set."""
    return Environment(os.environ[variable], train=[Problem("one", "What is one and one?", 2)])


def _think(request: ModelRequest) -> Said:
    asked = next(m.text for m in request.messages if m.role == "user")
    if request.turn:
        return request.messages[-1].text
    name, _, argument = asked.partition(" ")
    if name == "mark":
        return call("die_once", mark=argument)
    return call(name, **({"city": argument} if name == "place" else {}))


traveller = Agent("traveller", model=FunctionModel(_think), tools=[place, die_once, die, hang, listen])
team = Swarm(Agent("first", model=FunctionModel(_think), tools=[place]))


def _spend(request: ModelRequest) -> ModelReply:
    """Two steps of a hundred tokens and ten cents each."""
    if request.turn == 0:
        return ModelReply(
            Message("assistant", tool_calls=(call("place", city="Rome"),)), usage=Usage(90, 10, 100, cost=0.1)
        )
    return ModelReply(Message("assistant", "done"), usage=Usage(90, 10, 100, cost=0.1))


spender = Agent("spender", model=FunctionModel(_spend), tools=[place])


class Shelf:
    """What tools work with that is made in each process."""

    def __init__(self, boxes: int) -> None:
        self.boxes = boxes


def shelf() -> Shelf:
    """A shelf of this process."""
    return Shelf(os.getpid())


def no_shelf() -> Shelf:
    """Fails."""
    raise OSError("the door is locked")


def take(n: int, context: ToolContext[Shelf]) -> str:
    """Take a box."""
    return f"{n} of {context.deps.boxes}"


clerk = Agent(
    "clerk",
    model=FunctionModel(lambda request: request.messages[-1].text if request.turn else call("take", n=1)),
    tools=[take],
    deps_type=Shelf,
)
