"""A help desk: control moves along the edges, and the receiver sees the conversation so far.

python examples/swarms/handoff_helpdesk.py
"""

from __future__ import annotations

import asyncio

from stand_in import Role, heard, model, tell

from aworld.agents.llm_agent import Agent
from aworld.core.agent.swarm import HandoffSwarm
from aworld.core.model import ModelRequest
from aworld.models.doubles import Said, call
from aworld.runner import Runners


def refund(order: int) -> str:
    """Pay an order back.

    Args:
        order: Number of the order.
    """
    return f"order {order}: 20 euros on their way"


triage = Agent("triage", desc="Finds out who can help.", system_prompt="You triage: hand over to who can help.")
billing = Agent("billing", desc="Money and refunds.", system_prompt="You do billing.", tools=[refund])
repair = Agent("repair", desc="Broken things.", system_prompt="You repair.")
desk = HandoffSwarm(
    (triage, billing), (triage, repair), (billing, repair), (repair, billing), history="full", name="desk"
)


def sort(request: ModelRequest) -> Said:
    """The stand-in of triage."""
    other = "billing" if "money" in heard(request) else "repair"
    return call(
        f"handoff_to_{other}", message="The customer wants " + ("money back." if other == "billing" else "help.")
    )


def bill(request: ModelRequest) -> Said:
    """The stand-in of billing: it has read the first message, pays back and hands over what is left."""
    if request.messages[-1].role != "tool" or "Control" in heard(request):
        return call("refund", order=17)
    return call("handoff_to_repair", message=f"Paid ({heard(request)}); the kettle still leaks.")


ROLES: dict[str, Role] = {
    "triage": sort,
    "billing": bill,
    "repair": lambda request: "Your money is on its way, and a new lid is in the mail.",
}


async def main() -> None:
    async with model(ROLES):
        tell(await Runners.run("My kettle from order 17 leaks, I want my money back and a new lid.", swarm=desk))


if __name__ == "__main__":
    asyncio.run(main())
