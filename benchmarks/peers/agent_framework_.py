"""Microsoft Agent Framework."""

from __future__ import annotations

from functools import lru_cache

from agent_framework import Agent
from agent_framework.openai import OpenAIChatCompletionClient

from peers import KEY, MAX_STEPS, QUESTION


async def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@lru_cache
def _agent(base_url: str, model: str) -> Agent:
    client = OpenAIChatCompletionClient(model=model, api_key=KEY, base_url=base_url)
    client.function_invocation_configuration["max_iterations"] = MAX_STEPS
    return Agent(client, name="bench", tools=[add])


async def run_one(base_url: str, model: str) -> str:
    """Run one task."""
    return (await _agent(base_url, model).run(QUESTION)).text


async def stream_one(base_url: str, model: str) -> str:
    """Run one task, its texts streamed."""
    return "".join([update.text async for update in _agent(base_url, model).run(QUESTION, stream=True)])
