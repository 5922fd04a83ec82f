"""A hundred agents at once, recorded and scored: no key, no network, a few seconds.

A model server runs in this process on loopback and speaks the protocol of OpenAI. Its "model" is a Python function
that does sums in a fruit shop, and now and then misspells a fruit. The agents are real: they talk HTTP, call Python
tools, read the errors, and every event goes to a SQLite file.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from aworld.agents.llm_agent import Agent
from aworld.cmd.trajectory_view import show
from aworld.config import AgentConfig, RunConfig
from aworld.core.message import ToolCall
from aworld.core.model import ModelRequest
from aworld.core.task import Task, TaskResponse
from aworld.models import FunctionModel
from aworld.models.doubles import call
from aworld.runner import Runners
from aworld.server import ModelServer
from aworld.trajectory import Query, open_store

PRICES = {"apple": 0.5, "pear": 0.75, "mango": 2.25, "melon": 3.5}
STORE = Path(".aworld/trajectories.db")


def price(fruit: str) -> dict[str, Any]:
    """Price of one fruit in euros.

    Args:
        fruit: Name of the fruit, in the singular.
    """
    if fruit not in PRICES:
        raise ValueError(f"we do not sell {fruit!r}; we sell {', '.join(PRICES)}")
    return {"fruit": fruit, "price": PRICES[fruit]}


def total(counts: list[int], prices: list[float]) -> dict[str, float]:
    """Sum of counts times prices, in euros."""
    return {"total": sum(count * price for count, price in zip(counts, prices, strict=True))}


def shop_assistant(request: ModelRequest) -> str | list[ToolCall]:
    """The stand-in for a model: it reads the conversation and says what comes next."""
    question = next(m.text for m in request.messages if m.role == "user")
    wanted = [(int(count), fruit) for count, fruit in re.findall(r"(\d+) (\w+)s\b", question)]
    results = [json.loads(m.text) for m in request.messages if m.role == "tool" and m.text.startswith("{")]
    prices = {result["fruit"]: result["price"] for result in results if "fruit" in result}
    if results and "total" in results[-1]:
        return f"That makes {results[-1]['total']:.2f} euros."
    if all(fruit in prices for _, fruit in wanted):
        return [call("total", counts=[n for n, _ in wanted], prices=[prices[fruit] for _, fruit in wanted])]
    slip = (
        "o" if request.turn == 0 and sum(question.encode()) % 4 == 0 else ""
    )  # a bad habit; the tool's error mends it
    return [call("price", fruit=fruit + slip) for _, fruit in wanted if fruit not in prices]


def questions(count: int, seed: int = 7) -> list[tuple[str, float]]:
    """Questions with their right answers."""
    rng = random.Random(seed)
    found: list[tuple[str, float]] = []
    for _ in range(count):
        picks = [(rng.randint(1, 9), fruit) for fruit in rng.sample(sorted(PRICES), 2)]
        wanted = " and ".join(f"{n} {fruit}s" for n, fruit in picks)
        found.append((f"How much are {wanted}?", sum(n * PRICES[fruit] for n, fruit in picks)))
    return found


async def main() -> None:
    console = Console()
    store = open_store(f"sqlite:///{STORE}")
    problems = questions(100)
    async with ModelServer(FunctionModel(shop_assistant)) as server:
        conf = AgentConfig(llm_model_name="shop-assistant", llm_base_url=server.base_url, llm_api_key="none")
        agent = Agent("cashier", conf, system_prompt="You help in a fruit shop.", tools=[price, total])
        tasks = [Task(question, agent=agent, name="fruit shop") for question, _ in problems]
        began = time.perf_counter()
        with Progress(console=console, disable=not console.is_terminal) as progress:
            bar = progress.add_task("100 agents at once", total=len(tasks))

            def done(_: TaskResponse) -> None:
                progress.advance(bar)

            responses = await Runners.run_task(tasks, RunConfig(store=store), on_done=done)
        took = time.perf_counter() - began
    for (_, right), response in zip(problems, responses.values(), strict=True):
        said = re.search(r"\d+\.\d+", str(response.answer))
        score = 1.0 if said and abs(float(said.group()) - right) < 0.005 else 0.0
        await response.reward(score, name="right answer", source="demo")
    calls = sum(len(response.record.calls) for response in responses.values())
    rows = [row for response in responses.values() for row in response.trajectory]
    errors = sum(result["error"] is not None for row in rows for result in row["observation"])
    finished = sum(response.success for response in responses.values())
    right = sum((response.record.score or 0) > 0 for response in responses.values())
    console.print(
        f"\n{finished} of {len(tasks)} agents finished, {right} with the right answer: {calls} model calls over HTTP, "
        f"{errors} tool errors that the agents read and mended, {took:.2f} s.\n"
    )
    worst = max(responses.values(), key=lambda response: len(response.record.calls))
    console.print("One of them, as recorded:\n")
    summary, *_ = await store.query(Query(ids=(worst.id,)))
    show(console, worst.record, summary)
    await store.close()
    console.print(
        f"\nEvery event is in [bold]{STORE}[/bold]. Look around:\n"
        "  .venv/bin/aworld trajectories list\n"
        "  .venv/bin/aworld trajectories show last\n"
        f"  .venv/bin/aworld replay {worst.id}\n"
    )


if __name__ == "__main__":
    asyncio.run(main())
