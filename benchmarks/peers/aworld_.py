"""AWorld itself, with every event written to SQLite."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from aworld.agents.llm_agent import Agent
from aworld.config.conf import AgentConfig, RunConfig, TaskConfig
from aworld.core.task import Task
from aworld.runner import Runners
from aworld.trajectory import open_store
from peers import KEY, MAX_STEPS, QUESTION


async def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class _Shared:
    """The store of the process, in a folder that goes with it."""

    folder: tempfile.TemporaryDirectory[str] | None = None
    store: Any = None


def _store() -> Any:
    if _Shared.store is None:
        _Shared.folder = tempfile.TemporaryDirectory()
        _Shared.store = open_store(f"sqlite:///{database()}")
    return _Shared.store


def database() -> Path:
    """Where the events lie."""
    assert _Shared.folder is not None
    return Path(_Shared.folder.name) / "bench.db"


async def close() -> None:
    """Close the store and delete its file."""
    if _Shared.store is not None:
        await _Shared.store.close()
    if _Shared.folder is not None:
        _Shared.folder.cleanup()
    _Shared.store = _Shared.folder = None


@lru_cache
def _agent(base_url: str, model: str) -> Agent:
    conf = AgentConfig(llm_provider="openai", llm_model_name=model, llm_api_key=KEY, llm_base_url=base_url)
    return Agent("bench", conf=conf, tools=[add])


def task_for(base_url: str, model: str) -> Task:
    """Make a task that asks this model."""
    return Task(QUESTION, agent=_agent(base_url, model), conf=TaskConfig(max_steps=MAX_STEPS))


async def run_one(base_url: str, model: str) -> str:
    """Run one task."""
    task = task_for(base_url, model)
    return (await Runners.run_task(task, RunConfig(store=_store())))[task.id].answer


async def stream_one(base_url: str, model: str) -> str:
    """Run one task, its outputs read as they come."""
    last: Any = None
    async for output in Runners.streamed_run_task(task_for(base_url, model), RunConfig(store=_store())).stream_events():
        last = output  # a reader shows it; the last one carries the response
    return last.response.answer


async def run_many(base_url: str, model: str, tasks: int, in_flight: int) -> list[str]:
    """Run many at once, as a user of AWorld would."""
    given = [task_for(base_url, model) for _ in range(tasks)]
    responses = await Runners.run_task(given, RunConfig(store=_store(), max_concurrency=in_flight))
    return [response.answer for response in responses.values()]
