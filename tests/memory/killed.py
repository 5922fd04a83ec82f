"""Adds items to a memory until it is killed; prints the number of each that was acknowledged."""

from __future__ import annotations

import asyncio
import itertools
import sys

from aworld.core.memory import MemoryConfig
from aworld.memory.main import Memory
from aworld.memory.models import MemoryHumanMessage, MessageMetadata


async def main(path: str, user: str) -> None:
    memory = Memory(MemoryConfig(path=path))

    async def keep_adding(first: int) -> None:
        for number in itertools.count(first, 3):
            about = MessageMetadata(user_id=user, session_id="s")
            item = await memory.add(MemoryHumanMessage(content=f"{user} number n{number}", metadata=about))
            sys.stdout.write(f"{number} {item.id}\n")
            sys.stdout.flush()

    await asyncio.gather(*map(keep_adding, range(3)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
