"""Speed and memory of the SQLite store: events written, read back and exported.

    python benchmarks/store.py [--events 1000000] [--one-core] [--json FILE]

Writes logs of tool-using runs (events of 300 B to 2 KB) the way the runtime does, then reads everything back. Prints
a table; CPU is of the whole process, the writing thread included.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from aworld.core import event as ev
from aworld.core.message import Message, ToolCall, Usage
from aworld.trajectory import TrajectoryStore, open_store
from aworld.trajectory.export import export

STEPS = 10
TASKS = 200
WORDS = (
    "the",
    "store",
    "keeps",
    "every",
    "message",
    "once",
    "and",
    "a",
    "training",
    "sample",
    "is",
    "path",
    "through",
    "graph",
    "of",
    "them",
)


def text(seed: int, length: int) -> str:
    """Some `length` characters that differ from one seed to the next."""
    words: list[str] = []
    while length > 0:
        seed = (seed * 1103515245 + 12345) & 0x7FFFFFFF
        words.append(WORDS[seed % len(WORDS)])
        length -= len(words[-1]) + 1
    return " ".join(words)


def run_of(id: str, seed: int) -> Iterator[list[ev.Event]]:
    """The log of one run, in the portions in which the runtime hands it over."""
    at, seq = 1_790_000_000.0 + seed, 0

    def number() -> int:
        nonlocal seq
        seq += 1
        return seq - 1

    def message(node: int, message: Message, origin: Any) -> ev.MessageAdded:
        parent = node - 1 if node else None
        return ev.MessageAdded(seq=number(), at=at, id=node, parent=parent, agent="a", message=message, origin=origin)

    task = ev.TaskInfo(id=id, name="benchmark", group_id=f"group-{seed // 8}")
    yield [
        ev.Started(seq=number(), at=at, trajectory_id=id, task=task, agents={"a": {"system_prompt": text(seed, 600)}}),
        ev.AgentStarted(seq=number(), at=at, activation=0, agent="a"),
        message(0, Message("system", text(seed, 600)), "input"),
        message(1, Message("user", text(seed + 1, 400)), "input"),
    ]
    node = 2
    for step in range(STEPS):
        at += 1.0
        call = ToolCall(f"call_{seed}_{step}", "search", json.dumps({"query": text(seed + step, 200)}))
        reply = Message("assistant", text(seed + step, 150), tool_calls=(call,))
        yield [
            message(node, reply, "model"),
            ev.ModelCalled(
                seq=number(), at=at, step=step, agent="a", prompt=node - 1, provider="openai", model="gpt-5",
                params={"temperature": 1.0, "max_tokens": 1024}, reply=node, finish_reason="tool_calls",
                response_id=f"chatcmpl-{seed}-{step}", usage=Usage(1000 + step, 80, 1080 + step), started=at,
                ended=at + 0.5,
            ),
            ev.ToolCalled(
                seq=number(), at=at, step=step, call_id=call.id, name=call.name, arguments=call.arguments,
                result=node + 1,
            ),
            message(
                node + 1, Message("tool", text(seed * step, 400 + seed * step % 1600), tool_call_id=call.id), "tool"
            ),
            ev.ToolReturned(
                seq=number(), at=at, step=step, call_id=call.id, name="search", result=node + 1, duration=0.1
            ),
        ]  # fmt: skip
        node += 2
    yield [
        ev.AgentFinished(seq=number(), at=at, activation=0, agent="a", answer=text(seed, 100)),
        ev.Finished(seq=number(), at=at, status="finished", answer=text(seed, 100)),
        ev.Rewarded(seq=number(), at=at, value=seed % 2),
    ]


PER_RUN = sum(len(portion) for portion in run_of("x", 0))

Portions = list[tuple[str, list[ev.Event]]]


def interleaved(runs: int, offset: int) -> Portions:
    """Portions of `runs` runs, `TASKS` of them side by side."""
    out: Portions = []
    for first in range(0, runs, TASKS):
        side = [(f"run-{offset + n:08d}", offset + n) for n in range(first, min(first + TASKS, runs))]
        logs = [(id, run_of(id, seed)) for id, seed in side]
        for portions in zip(*(log for _, log in logs)):
            out += [(id, portion) for (id, _), portion in zip(logs, portions)]
    return out


async def queued(store: TrajectoryStore, portions: Portions) -> None:
    """Nobody waits for an append; the loop turns as it does between model calls."""
    for number, (id, events) in enumerate(portions):
        store.append(id, events, wait=False)
        if number % 100 == 99:
            await asyncio.sleep(0)
    await store.flush()


async def each_event_awaited(store: TrajectoryStore, portions: Portions) -> None:
    """200 tasks, each waits for each of its events."""
    await side_by_side(store, [(id, [event]) for id, events in portions for event in events])


async def each_step_awaited(store: TrajectoryStore, portions: Portions) -> None:
    """200 tasks, each waits once a step: what the runtime does."""
    await side_by_side(store, portions)


async def side_by_side(store: TrajectoryStore, portions: Portions) -> None:
    logs: dict[str, list[list[ev.Event]]] = {}
    for id, events in portions:
        logs.setdefault(id, []).append(events)
    left = list(logs.items())

    async def worker() -> None:
        while left:
            id, log = left.pop()
            for events in log:
                await store.append(id, events)

    await asyncio.gather(*(worker() for _ in range(TASKS)))


class Figures:
    """What was measured, in the order of measuring."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def add(self, name: str, events: int, wall: float, cpu: float) -> None:
        self.lines.append({
            "what": name,
            "events": events,
            "events_per_second": round(events / wall),
            "events_per_cpu_second": round(events / cpu),
            "cpu_us_per_event": round(cpu / events * 1e6, 1),
            "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        })  # fmt: skip
        line = self.lines[-1]
        print(
            f"{name:34} {events:>9,} {line['events_per_second']:>9,} {line['events_per_cpu_second']:>11,} "
            f"{line['cpu_us_per_event']:>8} {line['peak_mb']:>8}",
            flush=True,
        )


def write(figures: Figures, name: str, path: Path, how: Callable[..., Awaitable[None]], events: int) -> None:
    """Write `events` events, made 200 runs at a time outside of the clock."""

    async def main() -> tuple[int, float, float]:
        store, written, wall, cpu = open_store(str(path)), 0, 0.0, 0.0
        while written < events:
            runs = min(TASKS, -(-(events - written) // PER_RUN))
            portions = interleaved(runs, written // PER_RUN)
            begun, used = time.perf_counter(), time.process_time()
            await how(store, portions)
            wall, cpu = wall + time.perf_counter() - begun, cpu + time.process_time() - used
            written += runs * PER_RUN
        begun, used = time.perf_counter(), time.process_time()
        await store.close()
        return written, wall + time.perf_counter() - begun, cpu + time.process_time() - used

    figures.add(name, *asyncio.run(main()))


def read_back(figures: Figures, path: Path, folder: Path, events: int) -> None:
    """Every event decoded, then every trajectory exported."""
    store = open_store(str(path))
    begun, used = time.perf_counter(), time.process_time()
    seen = sum(len(log) for _, log in store.scan())
    assert seen >= events, (seen, events)
    figures.add("read back, decoded", seen, time.perf_counter() - begun, time.process_time() - used)
    for format in ("rows", "openai"):
        begun, used = time.perf_counter(), time.process_time()
        export(store, format, folder / f"{format}.jsonl")
        figures.add(f"exported as {format}", seen, time.perf_counter() - begun, time.process_time() - used)
    asyncio.run(store.close())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000, help="events to write, read back and export")
    parser.add_argument("--one-core", action="store_true", help="bind the process to one core")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    if arguments.one_core:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    figures = Figures()
    print(f"{'':34} {'events':>9} {'events/s':>9} {'per CPU-s':>11} {'CPU µs':>8} {'peak MB':>8}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        few = min(arguments.events, 200_000)
        write(figures, "awaited each, 200 tasks", folder / "each.db", each_event_awaited, few)
        write(figures, "awaited each step, 200 tasks", folder / "step.db", each_step_awaited, few)
        write(figures, "not awaited", folder / "queued.db", queued, arguments.events)
        size = (folder / "queued.db").stat().st_size
        print(f"{'':34} {size / 1e6:,.0f} MB on disk, {size / figures.lines[-1]['events']:,.0f} B an event")
        read_back(figures, folder / "queued.db", folder, arguments.events)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures.lines, indent=2) + "\n")
    print(json.dumps(figures.lines))


if __name__ == "__main__":
    main()
