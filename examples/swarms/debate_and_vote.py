"""A debate with a judge, a majority vote and the best of n: three ways to a better answer.

python examples/swarms/debate_and_vote.py
"""

from __future__ import annotations

import asyncio

from stand_in import Role, heard, model, tell

from aworld.agents.llm_agent import Agent
from aworld.agents.patterns import best_of_n, debate, majority_vote
from aworld.core.model import ModelRequest
from aworld.runner import Runners

QUESTION = "How many r are in strawberry?"

ann = Agent("ann", system_prompt="You are Ann and count letters one by one. Answer briefly.")
ben = Agent("ben", system_prompt="You are Ben and trust your first impression. Answer briefly.")
cleo = Agent("cleo", system_prompt="You are Cleo and count letters backwards. Answer briefly.")
judge = Agent("judge", system_prompt="You judge a debate.")


def hasty(request: ModelRequest) -> str:
    """The stand-in of Ben: wrong at first, but he listens."""
    return "3" if "3" in heard(request) else "2"


def rule(request: ModelRequest) -> str:
    """The stand-in of the judge: what was said most often."""
    said = [line for line in heard(request).splitlines() if line.isdigit()]
    return f"It is {max(said, key=said.count)}; {len(said)} debaters were heard."


def brevity(answer: str) -> float:
    """The shorter, the better."""
    return -len(answer)


ROLES: dict[str, Role] = {
    "Ann": lambda request: "3",
    "Ben": hasty,
    "Cleo": lambda request: "3",
    "judge": rule,
}


async def main() -> None:
    async with model(ROLES):
        tell(await Runners.run(QUESTION, swarm=debate([ann, ben], judge, rounds=2)))
        tell(await Runners.run(QUESTION, swarm=majority_vote([ann, ben, cleo])))
        tell(await Runners.run(QUESTION, swarm=best_of_n(ann, 3, scorer=brevity)))


if __name__ == "__main__":
    asyncio.run(main())
