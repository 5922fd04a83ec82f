"""Many tasks at once on this event loop and in worker processes: wall time, and CPU of all processes.

    python benchmarks/executors.py [--tasks 1000]

A local server answers two tool calls and a text after a second each, as in `overhead.py`; every event goes to one
SQLite file.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import tempfile
import time
from pathlib import Path

from model_server import answer, model_name
from overhead import server

from aworld.agents.llm_agent import Agent
from aworld.config.conf import AgentConfig, RunConfig
from aworld.core.task import Task
from aworld.core.tool.func_to_tool import tool
from aworld.runner import Runners

MODEL = model_name(2, 1.0)
URL = "EXECUTORS_BASE_URL"


@tool
async def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


agent = Agent(
    "bench",
    AgentConfig(llm_model_name=MODEL, llm_api_key="none", llm_base_url=os.environ.get(URL, "http://127.0.0.1:1/v1")),
    tools=[add],
)


async def run(tasks: int, conf: RunConfig) -> tuple[float, float]:
    """Wall and CPU seconds."""
    cpu, wall = _cpu(), time.perf_counter()
    responses = await Runners.run_task([Task("1 + 2?", agent) for _ in range(tasks)], conf)
    wall = time.perf_counter() - wall
    wrong = [r.msg or r.answer for r in responses.values() if r.answer != answer(MODEL)]
    assert not wrong, wrong[:2]
    return wall, _cpu() - cpu


def _cpu() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", type=int, default=1000)
    tasks = parser.parse_args().tasks
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with server() as base_url, tempfile.TemporaryDirectory() as folder:
        os.environ[URL] = base_url
        agent.conf.llm_base_url = base_url
        print(f"{tasks} tasks at once, 3 calls of 1 s each")
        for number, (name, engine) in enumerate({"this loop": "local", "one worker": "1", "two workers": "2"}.items()):
            store = f"sqlite:///{Path(folder)}/{number}.db"
            processes = {} if engine == "local" else {"engine_name": "processes", "worker_num": int(engine)}
            wall, cpu = asyncio.run(run(tasks, RunConfig(store=store, **processes)))
            print(f"{name:12} {wall:5.1f} s wall, {cpu:5.2f} s CPU", flush=True)


if __name__ == "__main__":
    main()
