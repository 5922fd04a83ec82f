"""A solver and a verifier: the solver tries again with the verifier's remarks until it accepts.

python examples/swarms/solver_verifier.py
"""

from __future__ import annotations

import asyncio

from pydantic import BaseModel
from stand_in import heard, model, tell

from aworld.agents.llm_agent import Agent
from aworld.agents.patterns import solver_verifier
from aworld.core.model import ModelRequest
from aworld.runner import Runners


class Verdict(BaseModel):
    """What a verifier finds."""

    accepted: bool
    remarks: str


solver = Agent("solver", system_prompt="You solve problems of mathematics. Give the number only.")
verifier = Agent("verifier", system_prompt="You verify solutions, step by step.", output_type=Verdict)
guard = solver_verifier(solver, verifier, max_rounds=4, name="guard")


def solve(request: ModelRequest) -> str:
    """The stand-in of the solver: it guesses higher when it is told to."""
    text = heard(request)
    return str(int(text.split('last solution">\n')[1].split("\n")[0]) + 1) if "last solution" in text else "10"


def verify(request: ModelRequest) -> str:
    """The stand-in of the verifier: 144 is the square of 12."""
    number = int(heard(request).split('<result from="solver">\n')[1].split("\n")[0])
    verdict = Verdict(accepted=number**2 == 144, remarks=f"The square of {number} is {number**2}.")
    return verdict.model_dump_json()


async def main() -> None:
    async with model({"solve problems": solve, "verify": verify}):
        tell(await Runners.run("Which natural number has the square 144?", swarm=guard))


if __name__ == "__main__":
    asyncio.run(main())
