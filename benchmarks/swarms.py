"""Teams of agents: CPU per model call against a single agent, many teams at once, and how large a graph may be.

    python benchmarks/swarms.py [--peers bare,aworld,langgraph,openai-agents] [--rounds 3] [--budget 1.5] [--json FILE]

- `single`, `chain`, `graph`, `team`: ten agents (the single one makes ten calls), runs in flight 32 at a time, or one
  after the other. The figure is CPU of the client process per model call, and its ratio to `single` of the same peer.
- `teams`: 1,000 teams of five at once against a server that takes 1 s for a reply; the ideal is 3 s.
- `schedule`: a graph of 250 to 2,000 nodes with a model in the process; milliseconds of CPU a node.

`bare` is the floor: aiohttp, msgspec and a log in SQLite. AWorld writes every event to SQLite; the frameworks record
nothing. The server, the environments and the way of measuring
are those of `overhead.py` and `measure.py`: a fresh client process for each measurement, rounds over all in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from measure import _cpu, _served, _tasks_within, runner
from model_server import answer
from overhead import LIMIT, _names, _output, medians, python_of, server, versions_of
from topologies import SHAPES

ADAPTERS = {"bare": "bare_", "aworld": "aworld_", "langgraph": "langgraph_", "openai-agents": "openai_agents_"}
CASES = {
    f"{shape} x{in_flight}": (shape, in_flight)
    for in_flight in (32, 1)
    for shape in ("single", "chain", "graph", "team")
} | {"teams x1000": ("teams", 1000)}
SCHEDULE = "schedule"
NODES = (250, 500, 1000, 2000)

Figures = dict[str, float]


# In the client process


async def measured(adapter: Any, case: str, base_url: str, budget: float) -> Figures:
    """Warm up, find how many runs fit the budget of CPU seconds, run them, check the answers."""
    name, in_flight = CASES[case]
    shape = SHAPES[name]
    run = runner(adapter, base_url, False)
    small = min(in_flight, 32)
    if shape.latency:
        tasks = in_flight
        await run("team", small, small)  # connections and caches, without the waiting
    else:
        await run(name, 2 * small, small)
        tasks = await _tasks_within(budget, run, name, small)
    gc.collect()
    served, cpu, wall = _served(base_url), _cpu(), time.perf_counter()
    answers = await run(name, tasks, in_flight)
    cpu, wall = _cpu() - cpu, time.perf_counter() - wall
    if hasattr(adapter, "close"):
        await adapter.close()
    calls = tasks * shape.calls
    expected = answer(shape.first_model if shape.kind in ("single", "team") else shape.model)
    wrong = sum(text != expected for text in answers) + abs(tasks - len(answers))
    extra = _served(base_url) - served - calls
    figures = {"cpu_ms": 1000 * cpu / calls, "wall_s": wall, "tasks": tasks, "calls": calls, "extra_calls": extra}
    return figures | {"wrong": wrong} | ({"times_ideal": wall / shape.ideal} if shape.ideal else {})


async def scheduled(adapter: Any) -> Figures:
    """CPU of graphs of several sizes, in layers of ten, each node after two of the layer before. AWorld only."""
    from aworld.agents.llm_agent import Agent
    from aworld.config.conf import RunConfig, TaskConfig
    from aworld.core.agent.swarm import Swarm
    from aworld.models import FunctionModel
    from aworld.runner import Runners

    model = FunctionModel(lambda request: "done", "done")

    async def cpu_of(count: int) -> tuple[float, float]:
        agents = [Agent(f"n{i}", model=model) for i in range(count)]
        edges = [(agents[i - 10 + shift if (i + shift) // 10 == i // 10 else i - 10], agents[i])
                 for i in range(10, count) for shift in (0, 1)]  # fmt: skip
        gc.collect()
        started = _cpu()
        swarm = Swarm(*dict.fromkeys(edges), name="graph")
        built = _cpu() - started
        response = await Runners.run(
            "go", swarm=swarm, conf=TaskConfig(max_steps=None), run_conf=RunConfig(store=adapter.store())
        )
        assert response.success, response.msg
        assert len(response.record.calls) == count
        return built, _cpu() - started - built

    await cpu_of(100)
    figures: Figures = {}
    for count in NODES:
        built, ran = await cpu_of(count)
        figures |= {f"build_{count}": 1000 * built / count, f"run_{count}": 1000 * ran / count}
    await adapter.close()
    return figures


def client(peer: str, case: str, base_url: str, budget: float) -> None:
    """Measure in this process and print the figures."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    adapter = importlib.import_module(f"topologies.{ADAPTERS[peer]}")
    work = scheduled(adapter) if case == SCHEDULE else measured(adapter, case, base_url, budget)
    print(f"\n{json.dumps(asyncio.run(work))}", flush=True)
    os._exit(0)  # some peers leave threads and clients behind, whose end is not measured


# In the process that was started


def figures_of(peer: str, case: str, base_url: str, budget: float) -> Figures:
    """Run one measurement in a fresh process. Raises RuntimeError when it failed or answers were wrong."""
    command = [str(python_of(peer)), __file__, "--client", peer, case, base_url, str(budget)]
    figures: Figures = json.loads(_output(command).splitlines()[-1])
    if figures.get("wrong"):
        raise RuntimeError(f"{figures['wrong']} of {figures['tasks']} answers are wrong")
    return figures


def measure_all(peers: list[str], rounds: int, budget: float) -> dict[str, dict[str, list[Figures]]]:
    """All rounds of all cases; a failure is told and leaves a gap in the table."""
    results: dict[str, dict[str, list[Figures]]] = {case: {p: [] for p in peers} for case in (*CASES, SCHEDULE)}
    with server() as base_url:
        for turn in range(rounds):
            for case in results:
                for peer in peers if case != SCHEDULE else ["aworld"]:
                    try:
                        figures = figures_of(peer, case, base_url, budget)
                    except (RuntimeError, ValueError, subprocess.SubprocessError) as error:
                        print(f"{peer} {case}: {error}", file=sys.stderr)
                        continue
                    results[case].setdefault(peer, []).append(figures)
                    short = ", ".join(f"{key} {value:.3g}" for key, value in figures.items())
                    print(f"round {turn + 1} {case} {peer}: {short}", file=sys.stderr)
    return results


def table(middle: dict[str, dict[str, Figures]], peers: list[str]) -> str:
    """CPU ms per model call and its ratio to the single agent; wall time of many teams; a graph by its size."""
    lines = ["| CPU ms per model call (× single) | " + " | ".join(CASES) + " |", "|---|" + "---|" * len(CASES)]
    for peer in peers:
        cells: list[str] = []
        for case, (_, in_flight) in CASES.items():
            figures, single = middle[case].get(peer), middle.get(f"single x{in_flight}", {}).get(peer)
            if figures is None:
                cells.append("–")
            elif "times_ideal" in figures:
                cells.append(f"{figures['cpu_ms']:.3g}, {figures['wall_s']:.2f} s (×{figures['times_ideal']:.2f})")
            else:
                ratio = f" (×{figures['cpu_ms'] / single['cpu_ms']:.2f})" if single else ""
                cells.append(f"{figures['cpu_ms']:.3g}{ratio}")
        lines.append(f"| {peer} | " + " | ".join(cells) + " |")
    if graph := middle[SCHEDULE].get("aworld"):
        lines += ["", "| nodes | " + " | ".join(map(str, NODES)) + " |", "|---|" + "---|" * len(NODES)]
        for what in ("build", "run"):
            lines.append(
                f"| {what}: CPU ms a node | " + " | ".join(f"{graph[f'{what}_{n}']:.3f}" for n in NODES) + " |"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["--client"]:
        client(*sys.argv[2:5], float(sys.argv[5]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=lambda text: _names(text, list(ADAPTERS)), default=list(ADAPTERS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--budget", type=float, default=1.5, help=f"CPU seconds of a measurement (limit {LIMIT} s wall)"
    )
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args()
    results = measure_all(options.peers, options.rounds, options.budget)
    middle = medians(results)
    print(table(middle, options.peers))
    if options.json:
        about: dict[str, Any] = {"python": platform.python_version(), "cores": os.cpu_count(), "rounds": options.rounds}
        versions = {name: versions_of(name) for name in options.peers}
        report = {"about": about, "versions": versions, "medians": middle, "rounds": results}
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
