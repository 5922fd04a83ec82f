"""What a local sandbox costs: time until it is ready, a command in it against the bare process, and many at once.

    python benchmarks/sandbox.py [--rounds 30] [--boxes 100] [--json FILE]

Each figure is the median of the rounds, in milliseconds; bare process and sandbox take turns, so that both meet the
same load. The bare process is `subprocess.run` of the interpreter that the sandbox has, with its output captured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from aworld.core.context.base import RunScope
from aworld.core.event import TaskInfo
from aworld.core.sandbox import Sandbox, SandboxLimits
from aworld.sandbox import SandboxPool, open_sandbox, profile

TARGETS = {"ready": 50.0, "python -c pass, ratio": 1.3}


async def clocked(work: Callable[[], Awaitable[object]]) -> float:
    """Milliseconds."""
    started = time.perf_counter()
    await work()
    return 1000 * (time.perf_counter() - started)


async def bare(argv: list[str]) -> None:
    subprocess.run(argv, capture_output=True, check=True)  # noqa: ASYNC221 - nothing else runs


async def opened_and_closed() -> tuple[float, float]:
    boxes: list[Sandbox] = []

    async def make() -> None:
        boxes.append(await open_sandbox("local"))

    ready = await clocked(make)
    return ready, await clocked(boxes[0].close)


async def single(rounds: int) -> dict[str, float]:
    """Figures of one sandbox."""
    python = profile.find_python(None, everyone=os.geteuid() == 0).path
    program = [python, "-c", "pass"]
    true = [shutil.which("true") or "/bin/true"]
    box = await open_sandbox("local")
    kinds: dict[str, Callable[[], Awaitable[object]]] = {
        "python -c pass, bare": lambda: bare(program),
        "python -c pass, sandbox": lambda: box.exec(program),
        "true, bare": lambda: bare(true),
        "true, sandbox": lambda: box.exec(true),
        "shell line, sandbox": lambda: box.exec("true"),
        "write 10 KB": lambda: box.write("file", b"x" * 10_000),
        "read 10 KB": lambda: box.read("file"),
    }
    times: dict[str, list[float]] = {name: [] for name in ("ready", "close", *kinds)}
    for _ in range(rounds):
        ready, closed = await opened_and_closed()
        times["ready"].append(ready)
        times["close"].append(closed)
        for name, work in kinds.items():
            times[name].append(await clocked(work))
    await box.close()
    figures = {name: statistics.median(found) for name, found in times.items()}
    figures["python -c pass, ratio"] = figures["python -c pass, sandbox"] / figures["python -c pass, bare"]
    return figures


async def many(boxes: int) -> dict[str, float]:
    """Figures of many sandboxes at once, and of a prepared one."""
    limits = SandboxLimits(memory_mb=256, disk_mb=32)
    names = [str(number) for number in range(boxes)]
    async with SandboxPool(lambda: open_sandbox("local", limits), size=boxes) as pool:
        runs = {name: pool.for_run(RunScope(name, TaskInfo(name))) for name in names}

        async def run(name: str) -> None:
            await (await runs[name].open()).exec(["true"])

        all_ready = await clocked(lambda: asyncio.gather(*map(run, names)))
        ended = await clocked(lambda: asyncio.gather(*(run.end_run() for run in runs.values())))
    async with SandboxPool(lambda: open_sandbox("local", limits), size=2, warm=1) as pool:
        first, second = (pool.for_run(RunScope(name, TaskInfo(name))) for name in ("first", "second"))
        await first.open()  # the second is prepared meanwhile
        await pool._warm[0]
        prepared = await clocked(second.open)
    return {
        f"{boxes} at once, with a command": all_ready,
        f"{boxes} destroyed": ended,
        "lease of a prepared one": prepared,
    }


def table(figures: dict[str, float]) -> str:
    lines = ["| what | ms | target |", "|---|---|---|"]
    for name, figure in figures.items():
        target = f"< {TARGETS[name]:g}" if name in TARGETS else ""
        lines.append(f"| {name} | {figure:.2f}{' ×' if 'ratio' in name else ''} | {target} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write the figures where told."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--boxes", type=int, default=100)
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "sandbox.json")
    options = parser.parse_args()
    figures = asyncio.run(single(options.rounds)) | asyncio.run(many(options.boxes))
    print(table(figures))
    rounded = {name: round(figure, 3) for name, figure in figures.items()}
    options.json.write_text(json.dumps({"unit": "ms, median", "figures": rounded}, indent=2) + "\n")
    missed = [name for name, target in TARGETS.items() if figures[name] >= target]
    if missed:
        raise SystemExit(f"over target: {', '.join(missed)}")


if __name__ == "__main__":
    main()
