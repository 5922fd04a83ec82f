"""AWorld, with every event written to SQLite."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from aworld.agents.llm_agent import Agent
from aworld.config.conf import AgentConfig, RunConfig, TaskConfig
from aworld.core.agent.flow import Unit
from aworld.core.agent.swarm import Swarm, TeamSwarm
from aworld.core.task import Task
from aworld.runner import Runners
from aworld.trajectory import open_store
from topologies import KEY, QUESTION, SHAPES


async def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class _Shared:
    """The store of the process, in a folder that goes with it."""

    folder: tempfile.TemporaryDirectory[str] | None = None
    store: Any = None


def store() -> Any:
    """The store of the process."""
    if _Shared.store is None:
        _Shared.folder = tempfile.TemporaryDirectory()
        _Shared.store = open_store(f"sqlite:///{Path(_Shared.folder.name) / 'bench.db'}")
    return _Shared.store


async def close() -> None:
    """Close the store and delete its file."""
    if _Shared.store is not None:
        await _Shared.store.close()
    if _Shared.folder is not None:
        _Shared.folder.cleanup()
    _Shared.store = _Shared.folder = None


@lru_cache
def _unit(base_url: str, shape_name: str) -> Unit:
    shape = SHAPES[shape_name]

    def agent(name: str, model: str, tools: tuple[Any, ...] = ()) -> Agent:
        conf = AgentConfig(llm_provider="openai", llm_model_name=model, llm_api_key=KEY, llm_base_url=base_url)
        return Agent(name, conf, tools=tools)

    if shape.kind == "single":
        return agent("bench", shape.first_model, (add,))
    members = [agent(f"m{n}", shape.model) for n in range(shape.agents)]
    if shape.kind == "chain":
        return Swarm(*members, name="chain")
    if shape.kind == "graph":
        return Swarm(members[0], members[1:-1], members[-1], name="graph")
    return TeamSwarm(agent("leader", shape.first_model), *members[:-1], name="team")


def _task(base_url: str, shape: str) -> Task:
    return Task(QUESTION, swarm=_unit(base_url, shape), conf=TaskConfig(max_steps=None))


async def run_one(base_url: str, shape: str) -> str:
    """Run one team."""
    task = _task(base_url, shape)
    return (await Runners.run_task(task, RunConfig(store=store())))[task.id].answer


async def run_many(base_url: str, shape: str, tasks: int, in_flight: int) -> list[str]:
    """Run many at once, as a user of AWorld would."""
    given = [_task(base_url, shape) for _ in range(tasks)]
    responses = await Runners.run_task(given, RunConfig(store=store(), max_concurrency=in_flight))
    return [response.answer for response in responses.values()]
