"""smolagents' `ToolCallingAgent`, which is synchronous: tasks run in threads, each with an agent for its state."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

from rich.console import Console
from smolagents import AgentLogger, FinalAnswerStep, LogLevel, OpenAIModel, ToolCallingAgent, tool

from peers import KEY, MAX_STEPS, QUESTION

THREADS = ThreadPoolExecutor(1000)


@tool
def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a + b


@lru_cache
def _model(base_url: str, model: str) -> OpenAIModel:
    return OpenAIModel(model, api_base=base_url, api_key=KEY)


def _run(base_url: str, model: str, stream: bool) -> str:
    agent = ToolCallingAgent(
        tools=[add],
        model=_model(base_url, model),
        max_steps=MAX_STEPS,
        logger=AgentLogger(LogLevel.OFF, Console(quiet=True)),
        stream_outputs=stream,
    )
    if not stream:
        return str(agent.run(QUESTION))
    steps: Any = agent.run(QUESTION, stream=True)
    return "".join(str(step.output) for step in steps if isinstance(step, FinalAnswerStep))


async def run_one(base_url: str, model: str) -> str:
    """Run one task in a thread."""
    return await asyncio.get_running_loop().run_in_executor(THREADS, _run, base_url, model, False)


async def stream_one(base_url: str, model: str) -> str:
    """Run one task in a thread, its texts streamed."""
    return await asyncio.get_running_loop().run_in_executor(THREADS, _run, base_url, model, True)
