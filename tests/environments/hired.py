"""What worker processes find by name: a shop, its buyers, and hooks."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import msgspec

from aworld.agents.llm_agent import Agent
from aworld.core.hooks import HookContext, Hooks
from aworld.core.model import ModelRequest
from aworld.environments import Environment, Part, ScoredEpisode, factory
from aworld.models import FunctionModel
from aworld.models.doubles import Said, call
from tests.environments.shop import Shop, buying, correct, problem


def process(_: ScoredEpisode) -> float:
    """Which process scored it."""
    return float(os.getpid())


@factory
def hired_shop(first: int, *, prompt: str = "You buy things.") -> Environment:
    """Ten problems from a number on."""
    return Environment(
        "hired",
        train=[problem(number) for number in range(first, first + 10)],
        session=Shop,
        rubric=[Part("correct", correct, inline=True), Part("process", process, weight=0.0)],
        system_prompt=prompt,
    )


@factory
def leaving(parent: int) -> Environment:
    """A maker that leaves every process but its own."""
    if os.getpid() != parent:
        raise SystemExit(3)
    return Environment("leaving", train=[problem(1)], session=Shop)


def unmarked() -> Environment:
    """Made by a function that says nothing of it."""
    return Environment("unmarked", train=[problem(1)], session=Shop)


at_the_top = unmarked()


async def dying(request: ModelRequest) -> Said:
    """Takes its process down the first time that a problem is asked which has a mark to leave."""
    mark = Path(os.environ["AWORLD_TEST_MARK"])
    if request.turn == 0 and request.messages[-1].text == "What does item 3 cost?" and not mark.exists():
        mark.write_text(str(os.getpid()))
        await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGKILL)
    return buying(request)


def always_dying(request: ModelRequest) -> Said:
    """Takes its process down whenever this problem is asked."""
    if "item 3 " in request.messages[-1].text:
        os.kill(os.getpid(), signal.SIGKILL)
    return buying(request)


class Watching(Hooks):
    """Asks the model in another way: the log shows it."""

    async def before_model(self, at: HookContext, request: ModelRequest) -> ModelRequest:
        return msgspec.structs.replace(request, params={**request.params, "top_k": 3})


watching = Watching()
buyer = Agent("buyer", model=FunctionModel(buying), system_prompt="Be quick.")
mortal = Agent("mortal", model=FunctionModel(dying))
poisoned = Agent("poisoned", model=FunctionModel(always_dying))

WAY = ("down", "down", "right", "right", "down", "right")


def walking(request: ModelRequest) -> Said:
    """Walks over the ice that does not slip."""
    return call("act", action=WAY[request.turn]) if request.turn < len(WAY) else "There."


walker = Agent("walker", model=FunctionModel(walking))
