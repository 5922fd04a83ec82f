"""Rollouts: episodes a second, CPU of the runtime for each, and memory over many of them.

    python benchmarks/rollouts.py [--episodes 10000] [--concurrency 128] [--store sqlite] [--model function|embedded]

    python benchmarks/rollouts.py --model embedded --environment aworld.environments.sums:sums --episodes 2000

An episode is two model calls and a tool of its session, scored by two parts of a rubric. With `--model function` a
Python function answers at once, so that everything measured is the runtime; any other model is named as in
`Agent(model=...)`, and plays an environment that it knows.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aworld.agents.llm_agent import Agent
from aworld.agents.references import find
from aworld.core.model import ModelRequest
from aworld.core.tool.func_to_tool import tool
from aworld.environments import Environment, Part, Problem, RolloutProgress, Rubric, ScoredEpisode, Session, rollouts
from aworld.models import FunctionModel
from aworld.models.doubles import Said, call
from aworld.trajectory import open_store

WARM_UP = 200
"""Episodes before the measurement begins: what is built once is not an episode's cost."""


class Shop(Session):
    """Knows a price."""

    @tool(inline=True)
    def price(self, item: str) -> int:
        """What an item costs."""
        return self.problem.data["price"]


def correct(episode: ScoredEpisode) -> float:
    return float(episode.text == str(episode.problem.answer))


def short(episode: ScoredEpisode) -> float:
    return 1 / max(len(episode.text), 1)


def problems(seed: int) -> Iterator[Problem]:
    number = 0
    while True:
        yield Problem(f"{seed}-{number}", f"What does item {number} cost?", number, {"price": number})
        number += 1


def buy(request: ModelRequest) -> Said:
    return call("price", item="it") if request.turn == 0 else request.messages[-1].text


def memory() -> float:
    """Resident memory, MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def environment_of(args: argparse.Namespace) -> Environment:
    if args.environment is not None:
        found = find(args.environment, "--environment")
        return found if isinstance(found, Environment) else found()
    rubric = Rubric(Part("correct", correct, inline=True), Part("short", short, 0.1, inline=args.inline))
    return Environment("shop", train=problems, session=Shop, rubric=rubric, system_prompt="Answer briefly.")


async def measure(args: argparse.Namespace, store: Any) -> dict[str, Any]:
    environment = environment_of(args)
    agent = Agent("buyer", model=FunctionModel(buy) if args.model == "function" else args.model)
    settings: dict[str, Any] = {"samples": args.samples, "max_concurrency": args.concurrency, "store": store}
    async for _ in rollouts(environment, agent, environment.problems("train", WARM_UP // args.samples), **settings):
        pass
    tasks = environment.problems("train", args.episodes // args.samples, seed=1)
    curve: list[tuple[int, float]] = []
    done, before = 0, resource.getrusage(resource.RUSAGE_SELF)
    began = time.perf_counter()

    endings: dict[str, Any] = {}

    def note(progress: RolloutProgress) -> None:
        endings.update(statuses=dict(progress.statuses), lost=progress.lost, mean_score=progress.mean_score)
        if progress.done % max(1, args.episodes // 10) == 0:
            curve.append((progress.done, round(memory(), 1)))

    async for rollout in rollouts(environment, agent, tasks, on_progress=note, **settings):
        assert args.model != "function" or rollout.score == 1 + 0.1 / len(rollout.answer)
        done += 1
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "model": args.model,
        "environment": environment.name,
        "store": args.store,
        "episodes": done,
        "concurrency": args.concurrency,
        "episodes_per_second": round(done / wall, 1),
        "cpu_ms_per_episode": round(1000 * cpu / done, 3),
        **endings,
        "memory_mb": curve,
    }


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=10_000)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--concurrency", type=int, default=128)
    parser.add_argument("--model", default="function", metavar="function|[PROVIDER:]NAME")
    parser.add_argument("--environment", metavar="MODULE:OBJECT")
    parser.add_argument("--store", choices=("none", "sqlite"), default="none")
    parser.add_argument("--inline", action="store_true", help="no scorer in a thread")
    parser.add_argument("--json", metavar="FILE", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(f"sqlite:///{folder}/runs.db") if args.store == "sqlite" else None
        figures = await measure(args, store)
        if store is not None:
            await store.close()
    for name, value in figures.items():
        print(f"{name:<20} {value}", file=sys.stdout)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
