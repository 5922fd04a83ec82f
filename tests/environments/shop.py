"""A small world that the tests of environments share: a shop whose prices only its clerk knows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

from aworld.agents.llm_agent import Agent
from aworld.core.message import Message
from aworld.core.model import ModelRequest
from aworld.core.task import Task, TaskResponse
from aworld.core.tool.func_to_tool import tool
from aworld.environments import Environment, EnvironmentFailed, Part, Problem, ScoredEpisode, Session
from aworld.models import FunctionModel
from aworld.models.doubles import Said, call
from aworld.runner import Runners


class Shop(Session):
    """One visit. `closed` counts the visits that are over, by problem."""

    closed: ClassVar[list[str]] = []

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.price: int = problem.data["price"]
        self.asked = 0

    @tool(inline=True)
    def ask_price(self, item: str) -> int:
        """Ask the clerk.

        Args:
            item: What you want.
        """
        self.asked += 1
        if item == "nothing":
            raise ValueError("the clerk does not understand")
        if item == "fire":
            raise EnvironmentFailed("the shop has burnt down")
        return self.price

    @tool
    def praise(self, word: str) -> str:
        """Say something kind; it is rewarded, from a thread."""
        self.reward(0.25, "kindness", detail={"word": word})
        return "thank you"

    @tool(inline=True)
    def leave(self) -> str:
        """Go home; the visit is over."""
        self.finish("bye")
        return "the door closes"

    async def close(self) -> None:
        type(self).closed.append(self.problem.id)


def correct(episode: ScoredEpisode) -> float:
    """1 for the price."""
    return float(episode.text == str(episode.problem.answer))


def problem(number: int) -> Problem:
    return Problem(str(number), f"What does item {number} cost?", number * 3, {"price": number * 3})


def stream(seed: int) -> Iterator[Problem]:
    """Problems without end."""
    number = seed * 1_000_000
    while True:
        yield problem(number)
        number += 1


def shop(*parts: Part | Callable[[ScoredEpisode], Any], **settings: Any) -> Environment:
    """An environment of ten problems to learn from and five held out."""
    given: dict[str, Any] = {
        "train": [problem(number) for number in range(10)],
        "test": [problem(number) for number in range(100, 105)],
        "session": Shop,
        "rubric": parts or (Part("correct", correct, inline=True),),
    }
    return Environment("shop", **{**given, **settings})


def buying(request: ModelRequest) -> Said:
    """Asks, and says what it heard."""
    if request.messages[-1].role != "tool":
        return call("ask_price", item="it")
    return request.messages[-1].text


def agent_of(think: Callable[[ModelRequest], Any] = buying, **settings: Any) -> Agent:
    return Agent("buyer", model=FunctionModel(think), **settings)


def saying(*replies: Said) -> Agent:
    """An agent that says these, in order."""
    return agent_of(lambda request: replies[request.turn])


async def run(task: Task, **conf: Any) -> TaskResponse:
    return (await Runners.run_task(task, conf or None))[task.id]


def said(messages: Sequence[Message]) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in messages]
