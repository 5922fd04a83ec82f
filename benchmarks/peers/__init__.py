"""The same small agent, written once for each framework: one async Python tool, K tool calls, then a text.

Each module here holds one peer and offers

    async def run_one(base_url, model) -> str       runs one task, returns its answer
    async def stream_one(base_url, model) -> str    the same, with the model's text streamed and read piece by piece

and may offer `run_many(base_url, model, tasks, in_flight, stream) -> list[str]` where the framework has its own way to
run many, and `close()`. Agent and client are made once for a model where the framework allows that,
as its documentation advises, so what is measured is running, not building. Telemetry and tracing are off.
"""

from __future__ import annotations

from dataclasses import dataclass

QUESTION = "Add the numbers, one call at a time, then say how many calls you made."
KEY = "no-key"
MAX_STEPS = 200
"""Where a framework limits the steps of a run; K=80 passes most defaults."""


@dataclass(frozen=True)
class Peer:
    """How a peer is installed, imported and asked."""

    module: str
    """Its module in this package."""
    requirements: tuple[str, ...] = ()
    """Installed into an environment of its own; empty for what the project's environment has."""
    imports: str = ""
    """What a program writes to use it; its CPU time is measured by the case `import`."""
    final: bool = False
    """The answer must come as a call of the tool `final_answer`."""


AGENT_FRAMEWORK = "from agent_framework import Agent; from agent_framework.openai import OpenAIChatCompletionClient"
LANGGRAPH = "from langgraph.prebuilt import create_react_agent; from langchain_openai import ChatOpenAI"
PYDANTIC_AI = "from pydantic_ai import Agent; from pydantic_ai.models.openai import OpenAIChatModel"
SMOLAGENTS = "from smolagents import OpenAIModel, ToolCallingAgent"
AGNO = "from agno.agent import Agent; from agno.models.openai.like import OpenAILike"

PEERS: dict[str, Peer] = {
    "bare": Peer("bare", imports="import aiohttp, msgspec, sqlite3"),
    "aworld": Peer("aworld_", imports="from aworld.agents.llm_agent import Agent"),
    "agent-framework": Peer("agent_framework_", ("agent-framework-core", "agent-framework-openai"), AGENT_FRAMEWORK),
    "openai-agents": Peer("openai_agents_", ("openai-agents",), "from agents import Agent, Runner"),
    "pydantic-ai": Peer("pydantic_ai_", ("pydantic-ai-slim[openai]",), PYDANTIC_AI),
    "langgraph": Peer("langgraph_", ("langgraph", "langchain-openai"), LANGGRAPH),
    "smolagents": Peer("smolagents_", ("smolagents[openai]",), SMOLAGENTS, final=True),
    "agno": Peer("agno_", ("agno", "openai"), AGNO),
}

QUIET = {
    "AGNO_TELEMETRY": "false",
    "ENABLE_INSTRUMENTATION": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "LANGCHAIN_TRACING_V2": "false",
    "LANGSMITH_TRACING": "false",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "OTEL_SDK_DISABLED": "true",
}
"""Environment in which no peer traces or reports; the adapters say it in code too where they can."""
