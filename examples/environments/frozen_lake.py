"""A Gymnasium environment, played by a rule: over the ice, along a way that is looked up by where one stands.

    python examples/environments/frozen_lake.py

Needs no key. In place of the rule stands any model that calls tools: `Agent("walker")` asks the one in LLM_MODEL_NAME.
"""

from __future__ import annotations

import asyncio

from aworld.agents.llm_agent import Agent
from aworld.core.model import ModelRequest
from aworld.environments import Report, rollouts
from aworld.environments.adapters.gymnasium import gymnasium_environment
from aworld.models.doubles import FunctionModel, Said, call

lake = gymnasium_environment(
    "FrozenLake-v1",
    make={"is_slippery": True},
    actions=("left", "down", "right", "up"),
    inline=True,  # a step takes 3 µs: not worth a thread
)

WAY = (
    "left",
    "up",
    "up",
    "up",
    "left",
    "left",
    "left",
    "left",
    "up",
    "down",
    "left",
    "left",
    "left",
    "right",
    "down",
    "left",
)
"""The best action at each place of the 4 × 4 lake, on which one slips to the side two times in three."""


def rule(request: ModelRequest) -> Said:
    """Walk by the place that was told last."""
    place = request.messages[-1].text.rpartition("First observation: ")[2]
    return call("act", action=WAY[int(place)])


async def main() -> None:
    """Play a hundred episodes, a seed each."""
    report = Report(lake)
    async for rollout in rollouts(lake, Agent("walker", model=FunctionModel(rule)), lake.problems("test", 100)):
        report.add(rollout)
    print(f"{report.episodes} episodes on {lake.name}, got over in {report.pass_at(1):.0%}")


if __name__ == "__main__":
    asyncio.run(main())
