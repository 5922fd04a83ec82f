"""An environment with hidden state, to be served: the digits of a code are behind doors, one a door."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import Any

from aworld.core.exceptions import EnvironmentFailed, ToolError
from aworld.core.message import Content, Message
from aworld.core.tool.func_to_tool import tool
from aworld.environments import Environment, Part, Problem, Rubric, ScoredEpisode, Session, split_by_hash

DIGITS = 3


def codes(seed: int) -> Iterator[Problem]:
    chance = random.Random(seed)
    while True:
        code = f"{chance.randrange(10**DIGITS):0{DIGITS}}"
        number = chance.getrandbits(40)
        yield Problem(f"vault-{number}", f"What is the code of vault {number}?", code, {"code": code, "number": number})


class Vault(Session):
    """The doors that were opened are hidden state; an answer in the wrong form is asked for again."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.opened: list[int] = []
        self.asked_again = False
        self.closed = False

    async def start(self) -> Content:
        return f"{self.problem.input} It has {DIGITS} doors."

    @tool(inline=True)
    def look(self, door: int) -> dict[str, Any]:
        """Open a door.

        Args:
            door: Its number, from 0.
        """
        if door == 99:
            raise EnvironmentFailed("the building has burnt down")
        if not 0 <= door < DIGITS:
            raise ToolError(f"There is no door {door}.")
        self.opened.append(door)
        self.reward(0.25, "opened", detail={"door": door})
        return {"digit": self.problem.data["code"][door], "opened": list(self.opened)}

    @tool
    async def wait(self) -> str:
        """Wait for long."""
        await asyncio.sleep(30)
        return "That was long."

    @tool(inline=True)
    def shut(self, code: str) -> str:
        """Try the code and end."""
        self.finish(code)
        return "It is shut."

    async def respond(self, message: Message) -> Content | None:
        if message.text.isdecimal() or self.asked_again:
            return None
        self.asked_again = True
        return "Digits only, please."


def correct(episode: ScoredEpisode) -> float:
    return float(episode.text == episode.problem.answer)


def looked(episode: ScoredEpisode) -> int:
    return len(episode.session.opened) if isinstance(episode.session, Vault) else -1


def broken(episode: ScoredEpisode) -> float:
    raise ValueError("this figure cannot be had")


train, test = split_by_hash(codes, test=0.3)
vault = Environment(
    "vault",
    train=train,
    test=test,
    session=Vault,
    rubric=Rubric(Part("correct", correct, 2.0), Part("looked", looked, 0.0), Part("broken", broken, 0.0)),
    system_prompt="You open vaults.",
    conf={"max_steps": 8},
)


def fixed() -> Environment:
    """A list, for `MODULE:FUNCTION`."""
    return Environment("fixed", train=[{"id": "a", "input": "A?"}], test=[{"id": "b", "input": "B?"}], rubric=correct)
