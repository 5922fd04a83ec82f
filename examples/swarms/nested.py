"""Nested: a team whose member is a workflow, inside a workflow that ends with a plain function; taken step by step.

python examples/swarms/nested.py
"""

from __future__ import annotations

import asyncio

from stand_in import Role, heard, model, tell

from aworld.agents.llm_agent import Agent
from aworld.agents.patterns import function_agent
from aworld.core.agent.swarm import Swarm, TeamSwarm
from aworld.core.context.base import Context
from aworld.core.model import ModelRequest
from aworld.core.task import Task
from aworld.models.doubles import Said, call
from aworld.runner import Runners


def measure(text: str, context: Context) -> dict[str, int]:
    """A member without a model: it counts, and leaves the count in the state of the task."""
    context.set("words", len(text.split()))
    return {"words": len(text.split())}


planner = Agent("planner", system_prompt="You plan: one line.")
chief = Agent("chief", system_prompt="You are the chief: let the desk write, then hand in what it wrote.")
draft = Agent("draft", system_prompt="You draft a text.")
polish = Agent("polish", system_prompt="You polish a text.")

desk = Swarm(draft, polish, name="desk", desc="Writes a polished text.")
office = Swarm(planner, TeamSwarm(chief, desk, name="writers"), function_agent(measure), name="office")


def lead(request: ModelRequest) -> Said:
    """The stand-in of the chief: it asks the desk, and hands in what comes back."""
    return heard(request) if request.messages[-1].role == "tool" else call("desk", input=heard(request))


ROLES: dict[str, Role] = {
    "plan": lambda request: "Write of the sea.",
    "chief": lead,
    "draft": lambda request: "the sea is wide",
    "polish": lambda request: heard(request).capitalize() + ".",
}


async def main() -> None:
    async with model(ROLES):
        print(office.draw())
        task = Task("A text, please.", swarm=office)
        finished, response = False, None
        while not finished:  # one turn of one agent at a time
            finished, observation, response = await Runners.step(task)
            print(f"step {response.step}: next is {observation.content!r}")
        assert response is not None  # there is at least one step
        print(f"state: {dict(response.context or {})}, answer: {response.answer}")
        tell(await Runners.fork(response, swarm=office, at=3))


if __name__ == "__main__":
    asyncio.run(main())
