"""A typed agent: what it works with, what it is told, and what it answers, all of it known to a type checker.

The database is given to the run (`deps=`), never stored; a tool and the instructions read it from their `ToolContext`.
`mypy --strict` and pyright follow it: `answer.advise` would be an error, and so would `deps=3`, or `grop_id=`. Without
LLM_MODEL_NAME a few rules stand in for the model, so that no key is needed.

    python examples/typed.py
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from pydantic import BaseModel

from aworld import Agent, Runners, ToolContext
from aworld.core.message import ToolCall
from aworld.core.model import ModelRequest
from aworld.models import FunctionModel
from aworld.models.doubles import call


@dataclass
class Database:
    """Customers and their balances; a real one would hold a connection."""

    customer: str
    balances: dict[str, float] = field(default_factory=lambda: {"Ada": 120.5})

    def balance(self, customer: str) -> float:
        """What somebody has, in euros."""
        return self.balances[customer]


class Advice(BaseModel):
    """What the desk answers."""

    text: str
    block_card: bool


def database() -> Iterator[Database]:
    """The database of one run: made again by whoever resumes it, and closed at its end."""
    opened = Database("Ada")
    yield opened
    opened.balances.clear()


def brief(context: ToolContext[Database]) -> str:
    """The system prompt of each call."""
    return f"You work at the desk of a bank. The customer's name is {context.deps.customer}."


async def balance(pending: bool, context: ToolContext[Database]) -> float:
    """The customer's balance in euros, with or without what is pending."""
    have = context.deps.balance(context.deps.customer)
    return have - 20 if pending else have


def stand_in(request: ModelRequest) -> str | ToolCall:
    """What a model would do."""
    if request.turn == 0:
        return call("balance", pending=True)
    name = request.messages[0].text.removesuffix(".").split()[-1]
    return Advice(text=f"{name}, you have {request.messages[-1].text} euros.", block_card=True).model_dump_json()


desk = Agent(
    "desk",
    system_prompt=brief,
    tools=[balance],
    deps_type=Database,
    output_type=Advice,
    model=None if os.environ.get("LLM_MODEL_NAME") else FunctionModel(stand_in),
)


def main() -> None:
    """Ask once."""
    response = Runners.sync_run("I have lost my card. What have I got?", desk, deps=database)
    if response.success:
        print(response.answer.text, "Blocked." if response.answer.block_card else "")
    else:
        print(f"{response.status}: {response.msg}")


if __name__ == "__main__":
    main()
