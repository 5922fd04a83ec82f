"""Speed of a memory: adding an item, and searching many with words, vectors and filters.

    python benchmarks/memory.py [--items 100000] [--dimensions 384]

Milliseconds of CPU, of all threads. Vectors are random: the work is the same. The file has 400 MB with the default.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from aworld.core.memory import MemoryConfig, MemoryItem
from aworld.memory.main import Memory
from aworld.memory.models import MemoryHumanMessage, MessageMetadata

ADD_MS, SEARCH_MS = 0.2, 15.0
WORDS = [f"word{n}" for n in range(20_000)]


class RandomEmbedder:
    model = "random"

    def __init__(self, dimensions: int) -> None:
        self._dimensions = dimensions
        self._draw = random.Random(3)

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        return [[self._draw.random() - 0.5 for _ in range(self._dimensions)] for _ in texts]


def turn(draw: random.Random, number: int) -> MemoryItem:
    # Words as language has them: few are frequent, most are rare.
    text = " ".join(WORDS[min(int(draw.paretovariate(0.6)), len(WORDS)) - 1] for _ in range(20))
    about = MessageMetadata(user_id=f"user{number % 10}", session_id=f"session{number % 500}")
    return MemoryHumanMessage(content=text, metadata=about)


async def adding(path: Path, count: int) -> tuple[float, float]:
    """Milliseconds of an add, one after the other, and of 50 callers at once, without vectors."""
    memory, draw = Memory(MemoryConfig(path=str(path))), random.Random(1)
    await memory.recent()
    items = [turn(draw, number) for number in range(2 * count)]
    begin = time.process_time()
    for item in items[:count]:
        await memory.add(item)
    between = time.process_time()

    async def caller(share: list[MemoryItem]) -> None:
        for item in share:
            await memory.add(item)

    await asyncio.gather(*(caller(items[count + n :: 50]) for n in range(50)))
    end = time.process_time()
    await memory.close()
    return (between - begin) / count * 1000, (end - between) / count * 1000


async def searching(path: Path, count: int, dimensions: int) -> dict[str, list[float]]:
    memory, draw = Memory(MemoryConfig(path=str(path)), embedder=RandomEmbedder(dimensions)), random.Random(2)
    for start in range(0, count, 1000):
        await memory.add(*(turn(draw, number) for number in range(start, min(start + 1000, count))))
    queries = [" ".join(draw.sample(WORDS[50:400], 6)) for _ in range(40)]
    times: dict[str, list[float]] = {}
    for name, owners in (
        ("all", {}),
        ("of a user", {"user_id": "user3"}),
        ("of a session", {"session_id": "session7"}),
    ):
        await memory.search(queries[0], **owners)
        times[name] = []
        for query in queries:
            await memory._vector_of(query, memory._embedder)  # the model's time is not ours
            begin = time.process_time()
            await memory.search(query, **owners)
            times[name].append((time.process_time() - begin) * 1000)
    await memory.close()
    return times


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--items", type=int, default=100_000)
    options.add_argument("--dimensions", type=int, default=384)
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        alone, together = asyncio.run(adding(Path(folder) / "add.db", 2000))
        print(f"add: {alone:.3f} ms one after the other, {together:.3f} ms with 50 callers (at most {ADD_MS})")
        times = asyncio.run(searching(Path(folder) / "search.db", arguments.items, arguments.dimensions))
        for name, values in times.items():
            print(
                f"search, {arguments.items} items, {name}: {statistics.median(values):.1f} ms (at most {SEARCH_MS:g})"
            )


if __name__ == "__main__":
    main()
