"""LangGraph's ready-made tool agent on `langchain-openai`."""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.prebuilt import create_react_agent

from peers import KEY, MAX_STEPS, QUESTION

QUESTIONS: dict[str, Any] = {"messages": [("user", QUESTION)]}
CONFIG: Any = {"recursion_limit": 2 * MAX_STEPS}


@tool
async def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@lru_cache
def _graph(base_url: str, model: str) -> Any:
    chat = ChatOpenAI(model=model, api_key=KEY, base_url=base_url, stream_usage=True)
    with warnings.catch_warnings(action="ignore"):  # moved to the package langchain, where it costs more
        return create_react_agent(chat, [add])


async def run_one(base_url: str, model: str) -> str:
    """Run one task."""
    return (await _graph(base_url, model).ainvoke(QUESTIONS, CONFIG))["messages"][-1].content


async def stream_one(base_url: str, model: str) -> str:
    """Run one task, its texts streamed."""
    stream = _graph(base_url, model).astream(QUESTIONS, CONFIG, stream_mode="messages")
    return "".join([message.content async for message, _ in stream if message.type == "AIMessageChunk"])
