"""Pydantic AI (slim, with its OpenAI extra)."""

from __future__ import annotations

from functools import lru_cache

from pydantic_ai import Agent, UsageLimits
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from peers import KEY, MAX_STEPS, QUESTION

LIMITS = UsageLimits(request_limit=MAX_STEPS)


async def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@lru_cache
def _agent(base_url: str, model: str) -> Agent[None, str]:
    return Agent(OpenAIChatModel(model, provider=OpenAIProvider(base_url=base_url, api_key=KEY)), tools=[add])


async def run_one(base_url: str, model: str) -> str:
    """Run one task."""
    return (await _agent(base_url, model).run(QUESTION, usage_limits=LIMITS)).output


async def stream_one(base_url: str, model: str) -> str:
    """Run one task, its texts streamed."""
    async with _agent(base_url, model).run_stream(QUESTION, usage_limits=LIMITS) as result:
        return "".join([piece async for piece in result.stream_text(delta=True, debounce_by=None)])
