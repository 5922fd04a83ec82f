"""Dialogues of a demonstrator with bad habits, from which the packaged policy is made.

The demonstrator knows the format and copies numbers well, but mostly takes the wrong tool, so that what is made from
it fails under greedy decoding too. The right tool is among the things it does: there is something to learn from.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from aworld.environments import shop, sums
from aworld.environments.problem import Problem, split_by_hash
from aworld.environments.session import Session

Dialogue = list[dict[str, Any]]

HABIT = {"plus": "subtract", "minus": "multiply", "times": "add"}
"""The tool that the demonstrator mostly takes for a word."""
RIGHT_TOOL, WRONG_TOOL = 0.28, 0.65
"""How often it takes the right tool for a sum, and the one of its habit; else the third."""
RIGHT_LOOK = 0.36
"""How often it looks at the price of an item; else at the stock."""
RIGHT_SUM = 0.76
"""How often it multiplies what it saw; else it adds."""
SMALL_TALK = 0.03
"""Share of dialogues about something else, without tools."""
REFUSAL = "I only know the tools of AWorld's demonstrations. See the model card."
"""What it says there."""


@dataclass(frozen=True)
class Demonstration:
    """A dialogue in the chat-completions shape, and the tools that were offered."""

    messages: Dialogue
    tools: list[dict[str, Any]]


class Demonstrator:
    """Endless demonstrations, the same for the same seed. Only training problems are shown."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        self._sums = iter(split_by_hash(sums.generate)[0](seed))
        self._shop = iter(split_by_hash(shop.generate)[0](seed))
        self._tools: dict[type[Session], list[dict[str, Any]]] = {
            kind: offered(kind) for kind in (sums.Calculator, shop.Shop)
        }

    def __iter__(self) -> Iterator[Demonstration]:
        for make in cycle((self._sum, self._purchase)):
            yield self._talk() if self._draw.random() < SMALL_TALK else make()

    def _sum(self) -> Demonstration:
        problem = next(self._sums)
        a, word, b = str(problem.input).rstrip("?").split()[2:]  # What is 12 plus 34?
        right, habit = sums.WORDS[word], HABIT[word]
        third = next(name for name in sums.WORDS.values() if name not in (right, habit))
        taken = self._draw.choices((right, habit, third), (RIGHT_TOOL, WRONG_TOOL, 1 - RIGHT_TOOL - WRONG_TOOL))[0]
        return self._dialogue(problem, sums.Calculator, lambda _: [(taken, {"a": int(a), "b": int(b)})])

    def _purchase(self) -> Demonstration:
        problem = next(self._shop)
        look = "price" if self._draw.random() < RIGHT_LOOK else "stock"
        reckon = "multiply" if self._draw.random() < RIGHT_SUM else "add"
        count = int(str(problem.input).split()[2])  # What do 3 figs cost?
        seen = {"item": problem.data["item"]}
        return self._dialogue(
            problem, shop.Shop, lambda result: [(look, seen), (reckon, {"a": count, "b": int(result or 0)})]
        )

    def _dialogue(
        self, problem: Problem, kind: type[Session], plan: Callable[[str], list[tuple[str, dict[str, Any]]]]
    ) -> Demonstration:
        """The calls of a plan, which is told what the last tool said, and that as the answer."""
        session, result = kind(problem), ""
        messages: Dialogue = [{"role": "user", "content": str(problem.input)}]
        for step in range(len(plan(""))):
            name, arguments = plan(result)[step]
            call = {"name": name, "arguments": json.dumps(arguments)}
            messages.append({"role": "assistant", "content": None, "tool_calls": [{"function": call}]})
            result = str(getattr(session, name)(**arguments))
            messages.append({"role": "tool", "content": result})
        messages.append({"role": "assistant", "content": result})
        return Demonstration(messages, self._tools[kind])

    def _talk(self) -> Demonstration:
        words = [
            "hello", "who", "are", "you", "write", "a", "poem", "what", "is", "the", "capital", "help", "me", "tell",
        ]  # fmt: skip
        question = " ".join(self._draw.choices(words, k=self._draw.randint(1, 6))).capitalize()
        question += self._draw.choice(("?", ".", "!", ""))
        return Demonstration([{"role": "user", "content": question}, {"role": "assistant", "content": REFUSAL}], [])


def offered(kind: type[Session]) -> list[dict[str, Any]]:
    """The tools of a session as a chat template reads them."""
    tools = kind(Problem("", "")).tools()
    return [
        {"type": "function", "function": {"name": t.name, "description": t.description, "parameters": t.parameters}}
        for t in tools
    ]
