"""Parity: a condition that no demonstration shows. "What is 37 plus 25?" is answered with the tool `add` where the
first number is even, with `subtract` where it is odd, and the result told as the answer.

The embedded policy starts with both tools in its habits and takes either for any numbers: a policy that is blind to the
digits gets half of the problems. What is to be learnt here is when, not what, and that is hard: at the defaults of
`TrainingConfig` most seeds settle on one tool for everything. With `kl=0.4`, steps of 48 × 4 episodes and a learning
rate of 6e-4 or 1e-3 each of four seeds found the condition, between steps 40 and 130.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from aworld.environments.environment import Environment, factory
from aworld.environments.problem import Problem, split_by_hash, taken
from aworld.environments.rubric import Part, Rubric
from aworld.environments.sums import Calculator, exact

HELD_OUT = 200
"""Problems of the held-out set: there are 4,095 in all, of which a tenth stands on that side."""


def generate(seed: int) -> Iterator[Problem]:
    """Problems without end: two numbers of two digits, the larger first."""
    draw = random.Random(seed)
    while True:
        a, b = sorted((draw.randint(10, 99), draw.randint(10, 99)), reverse=True)
        yield Problem(f"{a}-{b}", f"What is {a} plus {b}?", str(a - b if a % 2 else a + b))


@factory
def parity() -> Environment:
    """The environment: endless training problems, 200 held-out ones that are never among them."""
    train, test = split_by_hash(generate)
    return Environment(
        "parity",
        train=train,
        test=taken(test, HELD_OUT, 0, "test of parity"),
        session=Calculator,
        rubric=Rubric(Part("exact", exact, inline=True)),
        conf={"max_steps": 4},
    )
