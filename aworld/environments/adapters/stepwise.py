"""What environments have in common that are acted on step by step, each step rewarded, in the manner of Gymnasium.

A problem is a seed, one tool acts, and the sum of the rewards is a figure of the rubric.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

from aworld.core.exceptions import EnvironmentFailed
from aworld.core.message import Content, Text, content_text
from aworld.core.tool.base import Tool, ToolContext
from aworld.environments.problem import Generator, Problem, split_by_hash
from aworld.environments.rubric import Part, Rubric, ScoredEpisode
from aworld.environments.session import Session


class StepwiseSession(Session):
    """One episode. `total` is the sum of its rewards so far."""

    total: float = 0.0

    async def act(self, arguments: str) -> Content:
        """Take the step that the model wrote, and tell what came of it. Raises ToolError for what is no action."""
        raise NotImplementedError

    def opening(self, first: Content) -> Content:
        """What the agent is told when the episode begins: the problem, and the first observation."""
        text = f"{content_text(self.problem.input)}\n\nFirst observation:"
        return f"{text} {first}" if isinstance(first, str) else (Text(f"{text}\n"), *first)

    def earn(self, value: Any, where: str = "") -> None:
        """Take over the reward of a step. Raises EnvironmentFailed for what is none, with `where` before it."""
        try:
            number = float(value)
            self.total += number
            self.reward(number)
        except (TypeError, ValueError) as error:
            raise EnvironmentFailed(f"{where}step gave the reward {value!r}: {error}") from error


class ActTool(Tool):
    """The one tool of such an episode."""

    name = "act"

    def __init__(self, session: StepwiseSession, description: str, parameters: dict[str, Any]) -> None:
        self._session = session
        self.description, self.parameters = description, parameters

    async def invoke(self, arguments: str, context: ToolContext) -> Any:
        """What came of the step."""
        return await self._session.act(arguments)


def returns() -> Rubric:
    """The sum of the rewards as a figure of weight 0: the rewards themselves make the score."""

    def total(episode: ScoredEpisode) -> float:
        return cast("StepwiseSession", episode.session).total

    return Rubric(Part("return", total, weight=0.0, inline=True))


def seeded(instructions: str, data: Callable[[int], dict[str, Any]]) -> tuple[Generator, Generator]:
    """Training and held-out problems that are seeds, told apart by a hash; `data` makes a problem's of its seed."""
    return split_by_hash(partial(_seeds, instructions, data))


def _seeds(instructions: str, data: Callable[[int], dict[str, Any]], seed: int) -> Iterator[Problem]:
    """Problems without end, of seeds in 31 bits, which every environment takes; in a row, so that none comes twice."""
    first = random.Random(seed).getrandbits(31)
    for number in range(2**31):
        problem_seed = (first + number) & 0x7FFFFFFF
        yield Problem(f"seed-{problem_seed}", instructions, data=data(problem_seed))
