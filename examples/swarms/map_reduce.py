"""Map and reduce: one agent for many parts side by side, another for the whole.

python examples/swarms/map_reduce.py
"""

from __future__ import annotations

import asyncio

from stand_in import Role, heard, model, tell

from aworld.agents.llm_agent import Agent
from aworld.agents.patterns import map_reduce
from aworld.core.model import ModelRequest
from aworld.runner import Runners

STORY = """A crow was thirsty and found a jar.

The water stood too low for its beak.

It dropped pebbles until the water rose, and drank."""

reader = Agent("reader", system_prompt="You shorten a paragraph to its last three words.")
editor = Agent("editor", system_prompt="You join summaries to one line, separated by slashes.")


def paragraphs(text: str) -> list[str]:
    """The parts of the input."""
    return text.split("\n\n")


summary = map_reduce(reader, editor, over=paragraphs, max_parallel=10, name="summary")


def join(request: ModelRequest) -> str:
    """The stand-in of the editor: the lines between the tags of the results."""
    return " / ".join(line for line in heard(request).splitlines() if line and not line.startswith("<"))


ROLES: dict[str, Role] = {"shorten": lambda request: " ".join(heard(request).split()[-3:]), "join": join}


async def main() -> None:
    async with model(ROLES):
        tell(await Runners.run(STORY, swarm=summary))


if __name__ == "__main__":
    asyncio.run(main())
