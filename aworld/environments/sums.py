"""Sums: one tool call. "What is 37 plus 25?" is answered with the right tool, its result told as the answer.

Small enough to be learnt within a minute by the embedded policy, which comes with the habit of taking the wrong tool.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from aworld.core.tool import tool
from aworld.environments.environment import Environment, factory
from aworld.environments.problem import Problem, split_by_hash, taken
from aworld.environments.rubric import Part, Rubric, ScoredEpisode
from aworld.environments.session import Session

WORDS = {"plus": "add", "minus": "subtract", "times": "multiply"}
"""The word of a question, and the tool that it asks for."""
HELD_OUT = 400
"""Problems of the held-out set."""


def generate(seed: int) -> Iterator[Problem]:
    """Problems without end: two numbers of two digits, the larger first, and one of three words."""
    draw = random.Random(seed)
    while True:
        word = draw.choice(list(WORDS))
        a, b = sorted((draw.randint(10, 99), draw.randint(10, 99)), reverse=True)
        answer = {"plus": a + b, "minus": a - b, "times": a * b}[word]
        yield Problem(f"{a}-{word}-{b}", f"What is {a} {word} {b}?", str(answer))


class Calculator(Session):
    """Three tools without state."""

    @tool(inline=True)
    def add(self, a: int, b: int) -> int:
        """The sum of two numbers."""
        return a + b

    @tool(inline=True)
    def subtract(self, a: int, b: int) -> int:
        """The first number less the second."""
        return a - b

    @tool(inline=True)
    def multiply(self, a: int, b: int) -> int:
        """The product of two numbers."""
        return a * b


def exact(episode: ScoredEpisode) -> bool:
    """Whether the answer is the number and nothing else, and was computed by a tool."""
    called = any(call.reply is not None for call in episode.record.calls.values()) and len(episode.record.calls) > 1
    return called and episode.text == episode.problem.answer


@factory
def sums() -> Environment:
    """The environment: endless training problems, 400 held-out ones that are never among them."""
    train, test = split_by_hash(generate)
    return Environment(
        "sums",
        train=train,
        test=taken(test, HELD_OUT, 0, "test of sums"),
        session=Calculator,
        rubric=Rubric(Part("exact", exact, inline=True)),
        conf={"max_steps": 4},
    )
