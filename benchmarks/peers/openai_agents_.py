"""The OpenAI Agents SDK, on chat completions."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from agents import Agent, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled
from openai import AsyncOpenAI

from peers import KEY, MAX_STEPS, QUESTION

set_tracing_disabled(True)


@function_tool
async def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@lru_cache
def _agent(base_url: str, model: str) -> Agent[Any]:
    client = AsyncOpenAI(api_key=KEY, base_url=base_url)
    return Agent(name="bench", model=OpenAIChatCompletionsModel(model=model, openai_client=client), tools=[add])


async def run_one(base_url: str, model: str) -> str:
    """Run one task."""
    return (await Runner.run(_agent(base_url, model), QUESTION, max_turns=MAX_STEPS)).final_output


async def stream_one(base_url: str, model: str) -> str:
    """Run one task, its texts streamed."""
    result = Runner.run_streamed(_agent(base_url, model), QUESTION, max_turns=MAX_STEPS)
    async for _ in result.stream_events():
        pass
    return result.final_output
