"""LangGraph: state graphs whose nodes ask `langchain-openai`, and its ready-made agent for a leader."""

from __future__ import annotations

import operator
import warnings
from functools import lru_cache
from itertools import pairwise
from typing import Annotated, Any, TypedDict

from langchain_core.tools import StructuredTool, tool
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph
from langgraph.prebuilt import create_react_agent

from topologies import KEY, QUESTION, SHAPES

CONFIG: Any = {"recursion_limit": 200}


class State(TypedDict):
    """What the nodes have said, in order."""

    said: Annotated[list[str], operator.add]


@tool
async def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def _member(chat: ChatOpenAI) -> Any:
    async def node(state: State) -> State:
        return {"said": [(await chat.ainvoke([("user", "\n\n".join(state["said"]))])).text]}

    return node


def _called(chat: ChatOpenAI, name: str) -> StructuredTool:
    async def ask(input: str) -> str:
        return (await chat.ainvoke([("user", input)])).text

    return StructuredTool.from_function(coroutine=ask, name=name, description=f"Ask {name} to do something.")


@lru_cache
def _graph(base_url: str, shape_name: str) -> tuple[Any, Any]:
    """The compiled graph and what it is asked."""
    shape = SHAPES[shape_name]
    chat = ChatOpenAI(model=shape.model, api_key=KEY, base_url=base_url)
    if shape.kind in ("single", "team"):
        first = ChatOpenAI(model=shape.first_model, api_key=KEY, base_url=base_url)
        tools = [_called(chat, f"m{n}") for n in range(shape.agents - 1)] if shape.kind == "team" else [add]
        with warnings.catch_warnings(action="ignore"):  # moved to the package langchain, where it costs more
            return create_react_agent(first, tools), {"messages": [("user", QUESTION)]}
    names = [f"m{n}" for n in range(shape.agents)]
    graph = StateGraph(State)
    for name in names:
        graph.add_node(name, _member(chat))
    graph.add_edge(START, names[0])
    graph.add_edge(names[-1], END)
    if shape.kind == "chain":
        for one, other in pairwise(names):
            graph.add_edge(one, other)
    else:
        for name in names[1:-1]:
            graph.add_edge(names[0], name)
        graph.add_edge(names[1:-1], names[-1])
    return graph.compile(), {"said": [QUESTION]}


async def run_one(base_url: str, shape: str) -> str:
    """Run one team."""
    graph, asked = _graph(base_url, shape)
    state = await graph.ainvoke(asked, CONFIG)
    return state["said"][-1] if "said" in state else state["messages"][-1].content
