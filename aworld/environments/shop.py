"""Shop: dependent calls with a hidden state. The price of an item is known only to the shop; what several of them cost
takes a look at the price, and then a sum with the number that was seen.

A guess is worth nothing: the price is drawn anew for every problem, and no prompt shows it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from aworld.core.exceptions import ToolError
from aworld.core.tool import tool
from aworld.environments.environment import Environment, factory
from aworld.environments.problem import Problem, split_by_hash, taken
from aworld.environments.rubric import Part, Rubric
from aworld.environments.session import Session
from aworld.environments.sums import HELD_OUT, exact

ITEMS = (
    "apple", "bean", "bun", "cake", "date", "egg", "fig", "grape", "kiwi", "leek", "lemon", "lime", "mango", "melon",
    "nut", "oat", "olive", "onion", "pea", "pear", "pie", "plum", "roll", "yam",
)  # fmt: skip
"""What the shop has."""
HELD_OUT_ITEMS = 0.25
"""Share of them that only held-out problems are about."""


def generate(seed: int) -> Iterator[Problem]:
    """Problems without end. `data` holds the hidden price and the number in stock, which is beside the point."""
    draw = random.Random(seed)
    while True:
        item, count = draw.choice(ITEMS), draw.randint(2, 9)
        price, stock = draw.randint(10, 99), draw.randint(10, 99)
        problem = f"{count}-{item}-{price}-{stock}"
        question = f"What do {count} {item}s cost?"
        yield Problem(problem, question, str(count * price), {"item": item, "price": price, "stock": stock})


class Shop(Session):
    """The shop of one episode."""

    @tool(inline=True)
    def price(self, item: str) -> int:
        """What one costs."""
        return self._of(item, "price")

    @tool(inline=True)
    def stock(self, item: str) -> int:
        """How many there are."""
        return self._of(item, "stock")

    @tool(inline=True)
    def add(self, a: int, b: int) -> int:
        """The sum of two numbers."""
        return a + b

    @tool(inline=True)
    def multiply(self, a: int, b: int) -> int:
        """The product of two numbers."""
        return a * b

    def _of(self, item: str, what: str) -> int:
        if item != self.problem.data["item"]:
            raise ToolError(f"no {item} here")
        return self.problem.data[what]


def _item(problem: Problem) -> str:
    return problem.data["item"]


@factory
def shop() -> Environment:
    """The environment: endless training problems, and 400 held-out ones of items that are in none of those."""
    shown, hidden = split_by_hash(generate)  # the demonstrations of the embedded policy are of the first side
    train, _ = split_by_hash(shown, test=HELD_OUT_ITEMS, key=_item)
    _, test = split_by_hash(hidden, test=HELD_OUT_ITEMS, key=_item)
    return Environment(
        "shop",
        train=train,
        test=taken(test, HELD_OUT, 0, "test of shop"),
        session=Shop,
        rubric=Rubric(Part("exact", exact, inline=True)),
        conf={"max_steps": 6},
    )
