"""The swarm samples that the project was started with, as written, against a model server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from aworld.core.model import ModelRequest
from aworld.models import FunctionModel
from aworld.models.doubles import Said, call
from aworld.server import ModelServer

FIRST = """
import os

from aworld.agents.llm_agent import Agent
from aworld.runner import Runners
from aworld.core.agent.swarm import Swarm

researcher = Agent(
    name="Research Agent",
    system_prompt="You specialize at researching.",
)
summarizer = Agent(
    name="Summary Agent",
    system_prompt="You specialize at summarizing.",
)
# Create agent team with collaborative workflow
team = Swarm(researcher, summarizer)

result = Runners.sync_run(
    input="Tell me a complete history about the universe",
    swarm=team,
)
"""

EXPLICIT = """
import os

from aworld.agents.llm_agent import Agent
from aworld.runner import Runners
from aworld.config.conf import AgentConfig
from aworld.core.agent.swarm import Swarm

gpt_conf = AgentConfig(
    llm_provider="openai",
    llm_model_name="gpt-4o",
    llm_api_key="<OPENAI_API_KEY>",
    llm_temperature=0.1,
)
openrouter_conf = AgentConfig(
    llm_provider="openai",
    llm_model_name="google/gemini-2.5-pro",
    llm_api_key="<OPENROUTER_API_KEY>",
    llm_base_url=BASE_URL,
    llm_temperature=0.1,
)

researcher = Agent(
    name="Research Agent",
    conf=gpt_conf,
    system_prompt="You specialize at researching.",
)
summarizer = Agent(
    name="Summary Agent",
    conf=openrouter_conf,
    system_prompt="You specialize at summarizing.",
)
# Create agent team with collaborative workflow
team = Swarm(researcher, summarizer)

result = Runners.sync_run(
    input="Tell me a complete history about the universe",
    swarm=team,
)
"""

TEAM = '''
"""
also referred to as a team topology in Aworld.
"""
from aworld.agents.llm_agent import Agent
from aworld.core.agent.swarm import TeamSwarm

plan = Agent(name="plan", conf=agent_conf)
exec1 = Agent(name="exec1", conf=agent_conf)
exec2 = Agent(name="exec2", conf=agent_conf)
swarm = TeamSwarm(plan, exec1, exec2)
'''

HANDOFF = """
from aworld.core.agent.swarm import HandoffSwarm
swarm = HandoffSwarm((plan, exec1), (plan, exec2))
"""

RUN = """
from aworld.runner import Runners
result = Runners.sync_run(input="Do it", swarm=swarm)
"""


def think(request: ModelRequest) -> Said:
    """A model for all of them: whoever has tools uses the first two, then says what it heard."""
    text = request.messages[-1].text
    tools = [tool.name for tool in request.tools]
    if request.messages[-1].role == "user" and "exec1" in tools:
        return [call("exec1", input="one"), call("exec2", input="two")]
    if "handoff_to_exec1" in tools:
        return call("handoff_to_exec1", message="do it")
    return f"[{request.messages[0].text} | {text}]"


@pytest.fixture
def base_url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server in a thread of its own, as the samples are synchronous; the environment points to it."""
    started, stop = threading.Event(), asyncio.Event()
    found: dict[str, Any] = {}

    async def serve() -> None:
        async with ModelServer(FunctionModel(think)) as server:
            found["url"], found["loop"] = server.base_url, asyncio.get_running_loop()
            started.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    started.wait(10)
    for name, value in {"MODEL_NAME": "gpt-4", "API_KEY": "none", "BASE_URL": found["url"]}.items():
        monkeypatch.setenv(f"LLM_{name}", value)
    yield found["url"]
    found["loop"].call_soon_threadsafe(stop.set)
    thread.join(10)


def run(sample: str, **given: Any) -> Any:
    """Run a sample as a program of its own would; returns the response."""
    space: dict[str, Any] = {"__name__": "sample", **given}
    exec(compile(sample, "sample", "exec"), space)  # the samples are ours
    return space["result"]


@pytest.mark.parametrize("sample", [FIRST, EXPLICIT], ids=["environment", "explicit"])
def test_a_team_with_a_collaborative_workflow(sample: str, base_url: str) -> None:
    result = run(sample, BASE_URL=base_url)
    asked = "Tell me a complete history about the universe"
    research = f"[You specialize at researching. | {asked}]"
    assert (result.status, result.answer) == ("finished", f"[You specialize at summarizing. | {research}]")
    assert [row["meta"]["agent"] for row in result.trajectory] == ["Research Agent", "Summary Agent"]


def test_a_team_topology(base_url: str) -> None:
    from aworld.config.conf import AgentConfig

    result = run(TEAM + RUN, agent_conf=AgentConfig(llm_temperature=0.1))
    assert result.answer == "[Do it | [two | two]]"
    assert [row["meta"]["agent"] for row in result.trajectory] == ["plan", "exec1", "exec2", "plan"]


def test_a_topology_of_hand_offs(base_url: str) -> None:
    from aworld.config.conf import AgentConfig

    result = run(TEAM + HANDOFF + RUN, agent_conf=AgentConfig())
    assert result.success
    assert [row["meta"]["agent"] for row in result.trajectory] == ["plan", "exec1"]
    assert "plan hands over to you and says:\ndo it" in result.answer
