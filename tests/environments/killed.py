"""The process that the kill test kills: a rollout into a store, or going on with it.

It prints a line for every episode that was yielded, and one for every visit to a model.
"""

from __future__ import annotations

import asyncio
import os
import sys

from aworld.config import RunConfig
from aworld.core.model import ModelRequest
from aworld.environments import rollouts
from aworld.models.doubles import Said
from tests.environments.shop import agent_of, buying, problem, shop

PROBLEMS, SAMPLES = 50, 4


def tell(line: str) -> None:
    """One write, so that a kill leaves whole lines."""
    os.write(1, f"{line}\n".encode())


async def think(request: ModelRequest) -> Said:
    """Takes its time."""
    if request.turn == 0:
        tell(f"asked {request.trajectory_id} {request.params['seed']}")
    await asyncio.sleep(0.01)
    return buying(request)


world = shop()
agent = agent_of(think)


async def main() -> None:
    """Begin, or go on."""
    problems = [problem(number) for number in range(PROBLEMS)]
    conf = RunConfig(store=sys.argv[1], engine_name=sys.argv[2], worker_num=2, max_concurrency=16)  # pyright: ignore[reportArgumentType]
    episodes = rollouts(world, agent, problems, samples=SAMPLES, run="killed", conf=conf)
    async for rollout in episodes:
        tell(f"ended {rollout.id} {rollout.status} {rollout.score}")


if __name__ == "__main__":
    asyncio.run(main())
