"""A team that a YAML file describes, loaded, run and written back.

python examples/swarms/newsroom.py
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stand_in import Role, heard, model, tell

from aworld.agents.files import dump, load
from aworld.core.agent.picture import tree
from aworld.core.model import ModelRequest
from aworld.runner import Runners


def is_short(state: Mapping[str, Any], text: str) -> bool:
    """What the file names as `until: newsroom:is_short`."""
    return len(text.split()) <= 6


def write(request: ModelRequest) -> str:
    """The stand-in of the writer: long at first."""
    return "Tea wakes you." if "round 1" in heard(request) else "It can be said that tea does wake you up."


ROLES: dict[str, Role] = {"research": lambda request: "Tea has caffeine.", "write": write}


async def main() -> None:
    team = load(Path(__file__).with_suffix(".yaml"))
    assert dump(load(dump(team))) == dump(team)
    print(tree(team))
    async with model(ROLES):
        tell(await Runners.run("Is tea good for us?", swarm=team))


if __name__ == "__main__":
    asyncio.run(main())
