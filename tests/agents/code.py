"""Code that definitions name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from aworld.agents.llm_agent import Agent
from aworld.core.agent.base import BaseAgent
from aworld.core.agent.flow import Topology, Unit
from aworld.core.common import ActionModel, Observation
from aworld.core.tool.func_to_tool import tool


class Report(BaseModel):
    """A typed answer."""

    title: str


@tool
def lookup(word: str) -> str:
    """Look a word up."""
    return f"{word} is a word"


def is_long(state: Mapping[str, Any], output: Any) -> bool:
    """Whether to stop."""
    return len(str(output)) > 3


def shout(text: str) -> str:
    """Louder."""
    return text.upper()


class Counter(BaseAgent):
    """A rule-based agent with an argument of its own."""

    def __init__(self, name: str, least: int, *, words: Callable[[str], Any] = str.split, tools: Any = ()) -> None:
        super().__init__(name, tools=tools)
        self.least = least
        self.words = words

    async def policy(self, observation: Observation) -> ActionModel:
        """Answer with the number of words."""
        return ActionModel(content=str(max(self.least, len(self.words(str(observation.content))))))


class Stubborn(BaseAgent):
    """Takes no notice of what it is to be called."""

    def __init__(self, name: str = "stubborn") -> None:
        super().__init__("stubborn")


class Polite(Agent):
    """An agent of somebody's own that asks a model."""

    def __init__(self, name: str, manner: str = "please", **rest: Any) -> None:
        super().__init__(name, **rest)
        self.manner = manner


class Twice(Topology):
    """A team of somebody's own."""

    def __init__(self, worker: Unit, helpers: Sequence[Unit] = (), name: str = "twice") -> None:
        super().__init__(name)
        self.worker = worker
        self.helpers = list(helpers)

    def members(self) -> list[Unit]:
        """All that work in it."""
        return [self.worker, *self.helpers]
