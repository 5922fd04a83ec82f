"""A chain: each member is told what the one before it said. A list stands for members side by side.

python examples/swarms/chain.py
"""

from __future__ import annotations

import asyncio

from stand_in import Role, heard, model, tell

from aworld.agents.llm_agent import Agent
from aworld.core.agent.swarm import Swarm
from aworld.core.model import ModelRequest
from aworld.runner import Runners

researcher = Agent("researcher", system_prompt="You research: say what is known of the question, in one sentence.")
optimist = Agent("optimist", system_prompt="You see the good side of what you read, in one sentence.")
sceptic = Agent("sceptic", system_prompt="You see the weak side of what you read, in one sentence.")
writer = Agent("writer", system_prompt="You write one paragraph that weighs the results you are given.")

newsroom = Swarm(researcher, [optimist, sceptic], writer, name="newsroom")


def write(request: ModelRequest) -> str:
    """The stand-in of the writer: it has read both."""
    both = [name for name in ("optimist", "sceptic") if f'<result from="{name}">' in heard(request)]
    return f"Having heard {' and '.join(both)}: tea is fine, in measure."


ROLES: dict[str, Role] = {
    "research": lambda request: f"On '{heard(request)}': tea has caffeine.",
    "good side": lambda request: "Tea keeps you awake.",
    "weak side": lambda request: "Tea keeps you awake at night.",
    "paragraph": write,
}


async def main() -> None:
    async with model(ROLES):
        print(newsroom.draw(style="tree"))
        tell(await Runners.run("Is tea good for us?", swarm=newsroom))


if __name__ == "__main__":
    asyncio.run(main())
