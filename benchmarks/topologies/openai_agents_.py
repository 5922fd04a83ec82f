"""The OpenAI Agents SDK: agents as tools for a team; it has no graphs, so chain and graph are runs in plain Python."""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import Any

from agents import Agent, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled
from openai import AsyncOpenAI

from topologies import KEY, QUESTION, SHAPES

set_tracing_disabled(True)


@function_tool
async def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@lru_cache
def _agents(base_url: str, shape_name: str) -> list[Agent[Any]]:
    shape = SHAPES[shape_name]
    client = AsyncOpenAI(api_key=KEY, base_url=base_url)

    def agent(name: str, model: str, tools: list[Any]) -> Agent[Any]:
        return Agent(name=name, model=OpenAIChatCompletionsModel(model=model, openai_client=client), tools=tools)

    if shape.kind == "single":
        return [agent("bench", shape.first_model, [add])]
    members = [agent(f"m{n}", shape.model, []) for n in range(shape.agents)]
    if shape.kind == "team":
        tools = [m.as_tool(tool_name=m.name, tool_description=f"Ask {m.name} to do something.") for m in members[:-1]]
        return [agent("leader", shape.first_model, tools)]
    return members


async def _said(agent: Agent[Any], text: str) -> str:
    return (await Runner.run(agent, text, max_turns=200)).final_output


async def run_one(base_url: str, shape: str) -> str:
    """Run one team."""
    agents = _agents(base_url, shape)
    if SHAPES[shape].kind == "graph":
        text = await _said(agents[0], QUESTION)
        texts = await asyncio.gather(*(_said(agent, text) for agent in agents[1:-1]))
        return await _said(agents[-1], "\n\n".join(texts))
    text = QUESTION
    for agent in agents:
        text = await _said(agent, text)
    return text
