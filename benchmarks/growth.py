"""Bytes that AWorld stores for a step, early and late in long runs: the same, as each message is stored once.

    python benchmarks/growth.py [--tasks 20] [--json FILE]

Runs tasks of 10, 20, 40 and 80 tool calls, each length into a store of its own, and compares the files.
A store that wrote the whole conversation at each call would show a step of a long run some times larger.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sqlite3
import tempfile
from itertools import pairwise
from pathlib import Path

from model_server import model_name
from overhead import server
from peers.aworld_ import task_for

from aworld.config.conf import RunConfig
from aworld.runner import Runners
from aworld.trajectory import open_store

LENGTHS = (10, 20, 40, 80)
Sizes = dict[int, tuple[float, float]]
"""By number of tool calls, the bytes of a run: in its events, and in the file."""


async def stored(base_url: str, calls: int, tasks: int, path: Path) -> tuple[float, float]:
    """Run tasks into a new store; bytes of events and of the file, a task."""
    store = open_store(f"sqlite:///{path}")
    given = [task_for(base_url, model_name(calls)) for _ in range(tasks)]
    responses = await Runners.run_task(given, RunConfig(store=store, max_concurrency=tasks))
    await store.close()
    failed = [response.msg for response in responses.values() if not response.success]
    if failed:
        raise RuntimeError(f"{len(failed)} of {tasks} tasks failed: {failed[0]}")
    base = sqlite3.connect(path)
    events: int = base.execute("SELECT sum(length(data)) FROM events").fetchone()[0]
    base.close()
    return events / tasks, path.stat().st_size / tasks


def per_step(sizes: Sizes) -> dict[str, dict[str, float]]:
    """Bytes of each further step, between two lengths next to each other."""
    table: dict[str, dict[str, float]] = {}
    for short, long in pairwise(LENGTHS):
        events, file = ((b - a) / (long - short) for a, b in zip(sizes[short], sizes[long]))
        table[f"steps {short}-{long}"] = {"event_bytes": round(events), "file_bytes": round(file)}
    return table


async def measure(tasks: int) -> dict[str, dict[str, float]]:
    """Bytes a step in each part of a run."""
    with server() as base_url, tempfile.TemporaryDirectory() as folder:
        sizes = {n: await stored(base_url, n, tasks, Path(folder) / f"{n}.db") for n in LENGTHS}
    return per_step(sizes)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    figures = asyncio.run(measure(options.tasks))
    for part, sizes in figures.items():
        print(f"{part}: {sizes['event_bytes']:.0f} bytes of events a step, {sizes['file_bytes']:.0f} in the file")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
