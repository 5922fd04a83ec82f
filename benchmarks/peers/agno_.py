"""Agno, without a database."""

from __future__ import annotations

from functools import lru_cache

from agno.agent import Agent
from agno.models.openai.like import OpenAILike

from peers import KEY, QUESTION


async def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@lru_cache
def _agent(base_url: str, model: str) -> Agent:
    return Agent(model=OpenAILike(id=model, api_key=KEY, base_url=base_url), tools=[add], telemetry=False)


async def run_one(base_url: str, model: str) -> str:
    """Run one task."""
    return (await _agent(base_url, model).arun(QUESTION)).content


async def stream_one(base_url: str, model: str) -> str:
    """Run one task, its texts streamed."""
    return "".join([event.content or "" async for event in _agent(base_url, model).arun(QUESTION, stream=True)])
