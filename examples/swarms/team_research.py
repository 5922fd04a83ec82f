"""A team: the leader calls its members as tools, several at once, and ends the work.

python examples/swarms/team_research.py
"""

from __future__ import annotations

import asyncio

from stand_in import Role, heard, model, tell

from aworld.agents.llm_agent import Agent
from aworld.core.agent.swarm import TeamSwarm
from aworld.core.model import ModelRequest
from aworld.models.doubles import Said, call
from aworld.runner import Runners

POPULATION = {"Iceland": 390_000, "Malta": 550_000}


async def population(country: str) -> int:
    """How many people live in a country.

    Args:
        country: Its English name.
    """
    return POPULATION[country]


leader = Agent("leader", system_prompt="You lead: ask your members for what you need, all at once, then compare.")
counter = Agent("counter", desc="Looks up populations.", system_prompt="You look numbers up.", tools=[population])
historian = Agent("historian", desc="Knows history.", system_prompt="You know when countries became independent.")
team = TeamSwarm(leader, counter, historian, name="research")


def lead(request: ModelRequest) -> Said:
    """The stand-in of the leader: it asks both, one of them twice, then answers with what came back."""
    results = [message.text for message in request.messages if message.role == "tool"]
    if results:
        return f"Compared: {'; '.join(results)}"
    return [call("counter", input="Iceland"), call("counter", input="Malta"), call("historian", input="both")]


def count(request: ModelRequest) -> Said:
    """The stand-in of the counter: its tool, then the tool's answer."""
    if request.messages[-1].role == "tool":
        return f"{request.messages[1].text} has {heard(request)}"
    return call("population", country=heard(request))


ROLES: dict[str, Role] = {"lead": lead, "numbers": count, "independent": lambda request: "1944 and 1964"}


async def main() -> None:
    async with model(ROLES):
        tell(await Runners.run("Compare Iceland and Malta.", swarm=team))


if __name__ == "__main__":
    asyncio.run(main())
