"""The client process of a measurement: runs one case with one peer and prints what it cost, as JSON.

    python measure.py PEER CASE BASE_URL [CPU_SECONDS]

Started by `overhead.py`, afresh for each measurement and by the interpreter of the peer's environment. CPU is what
this process used in all its threads, and its children, after a warm-up; how many tasks are run follows from
a trial, so that a measurement takes about CPU_SECONDS whatever the peer costs.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import os
import resource
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_server import answer, model_name
from peers import PEERS


@dataclass(frozen=True)
class Case:
    """One kind of work."""

    calls: int
    """Tool calls of a task; model calls are one more."""
    in_flight: int = 1
    latency: float = 0
    """Seconds that the server takes for a reply."""
    chunks: int = 1
    stream: bool = False
    tasks: int | None = None
    """How many tasks; by default as many as the CPU time given allows."""

    @property
    def ideal(self) -> float:
        """Wall seconds if the client took no time."""
        return (self.calls + 1) * self.latency


CASES: dict[str, Case] = {
    "k4x1": Case(4),
    "k4x32": Case(4, in_flight=32),
    "wide": Case(2, in_flight=1000, latency=1, tasks=1000),
    "k80": Case(80),
    "k80x32": Case(80, in_flight=32),
    "stream": Case(0, in_flight=32, chunks=50, stream=True),
}
"""`stream` has no tool calls: every model call is an answer in 50 chunks, and bears the cost of a whole task.
With one task in flight each step of `bare` and AWorld is a commit of its own; 32 share them."""

DEFAULT_CASES = ("k4x1", "k4x32", "wide", "k80", "stream")
"""`k80x32` takes minutes of CPU with a framework that pays for the whole history at each call."""

RunMany = Callable[[str, int, int], Awaitable[list[str]]]


def runner(adapter: Any, base_url: str, stream: bool) -> RunMany:
    """Make a function of model, number of tasks and number in flight that runs them and returns their answers."""
    run_one = adapter.stream_one if stream else adapter.run_one

    async def workers(model: str, tasks: int, in_flight: int) -> list[str]:
        left = iter(range(tasks))

        async def work() -> list[str]:
            return [await run_one(base_url, model) for _ in left]

        lists = await asyncio.gather(*(work() for _ in range(min(in_flight, tasks))))
        return [text for texts in lists for text in texts]

    async def own_way(model: str, tasks: int, in_flight: int) -> list[str]:
        return await adapter.run_many(base_url, model, tasks, in_flight)

    has_own_way = hasattr(adapter, "run_many") and not stream
    return lambda model, tasks, in_flight: (own_way if has_own_way and in_flight > 1 else workers)(
        model, tasks, in_flight
    )


async def measure(peer_name: str, case: Case, base_url: str, budget: float) -> dict[str, float]:
    """Warm up, find how many tasks fit the budget of CPU seconds, run them, check the answers."""
    peer = PEERS[peer_name]
    adapter = importlib.import_module(f"peers.{peer.module}")
    run = runner(adapter, base_url, case.stream)
    model = model_name(case.calls, 0, case.chunks, peer.final)
    small = min(case.in_flight, 32)
    await run(model, 2 * small, small)
    tasks = case.tasks or await _tasks_within(budget, run, model, small)
    model = model_name(case.calls, case.latency, case.chunks, peer.final)
    gc.collect()
    served, memory = _served(base_url), _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    cpu, wall = _cpu(), time.perf_counter()
    answers = await run(model, tasks, case.in_flight)
    cpu, wall = _cpu() - cpu, time.perf_counter() - wall
    grown = _memory("VmHWM") - memory
    served = _served(base_url) - served
    if hasattr(adapter, "close"):
        await adapter.close()
    calls = tasks * (case.calls + 1)
    wrong = sum(text.strip() != answer(model) for text in answers) + abs(tasks - len(answers))
    figures = {
        "cpu_ms": 1000 * cpu / calls,
        "wall_s": wall,
        "tasks": tasks,
        "calls": calls,
        "extra_calls": served - calls,
        "wrong": wrong,
        "grown_kb": grown,
    }
    return figures | ({"kb_per_task": grown / tasks} if case.in_flight == tasks else {})


async def _tasks_within(budget: float, run: RunMany, model: str, in_flight: int) -> int:
    """How many tasks take the budget of CPU seconds, judged by a trial; but no fewer than are in flight twice over."""
    started = _cpu()
    await run(model, 2 * in_flight, in_flight)
    fits = budget / ((_cpu() - started) / (2 * in_flight))
    return int(min(max(fits, 2 * in_flight), 20_000))


def _cpu() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _memory(field: str) -> int:
    """KB of resident memory: `VmRSS` now, `VmHWM` at its highest."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0])


def _served(base_url: str) -> int:
    with urllib.request.urlopen(base_url.removesuffix("/v1") + "/count") as reply:
        return json.load(reply)["served"]


def main() -> None:
    """Measure what the command line names and print it."""
    peer, case, base_url = sys.argv[1:4]
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    budget = float(sys.argv[4]) if len(sys.argv) > 4 else 1.5
    result = asyncio.run(measure(peer, CASES[case], base_url, budget))
    print(f"\n{json.dumps(result)}", flush=True)  # on a line of its own, whatever a peer printed
    os._exit(0)  # some peers leave threads and clients behind, whose end is not measured


if __name__ == "__main__":
    main()
