"""The samples of the trajectory page and of the README, as written there, against a local server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aworld.models import FunctionModel
from tests.runners.scenes import RecordingServer

ROOT = Path(__file__).parents[2]

SEARCHER = '''
from aworld.agents.llm_agent import Agent
from aworld.core.tool.func_to_tool import be_tool

@be_tool(tool_name="google", tool_desc="searches")
def search(query: str) -> str:
    """Search the web."""
    return f"news on {query}"

searcher = Agent(name="searcher", tool_names=["google"])
'''

COMPLETE = """
import asyncio
from aworld.runner import Runners
from aworld.core.task import Task
from aworld.logs.util import logger
import json

# refer the section above for agent constrution 
{searcher}

if __name__ == "__main__":
    async def test_complete_trajectory():
        task = Task(
            input="Use google search tool to answer the question: the news about AI today.",
            agent=searcher
        )

        responses = await Runners.run_task(task)
        resp = responses[task.id]
        logger.info(f"task answer: {{resp.answer}}")
        logger.info(f"task trajectory: {{json.dumps(resp.trajectory, ensure_ascii=False)}}")
    asyncio.run(test_complete_trajectory())
"""  # noqa: W291

SINGLE_STEP = """
import os
import asyncio
from aworld.runner import Runners
from aworld.core.task import Task
from aworld.logs.util import logger
import json
from aworld.config import TaskConfig, TaskRunMode

# refer the section above for agent constrution 
{searcher}

if __name__ == "__main__":
    async def test_single_step_introspection():
        task = Task(
            input="Use google search tool to answer the question: the news about AI today.",
            agent=searcher,
            conf=TaskConfig(
                resp_carry_context=True,
                run_mode=TaskRunMode.INTERACTIVE
            )
        )

        trajectory_log = os.path.join(os.path.dirname(__file__), "trajectory_log.txt")
        is_finished = False
        step = 1
        while not is_finished:
            with open(trajectory_log, "a", encoding="utf-8") as traj_file:
                is_finished, observation, response = await Runners.step(task)
                traj_file.write(f"Step {{step}}\\n")
                traj_file.write(json.dumps(response.trajectory, ensure_ascii=False, indent=2))
                traj_file.write("\\n\\n")
                step += 1
    asyncio.run(test_single_step_introspection())
"""  # noqa: W291

HELLO = """
import os

from aworld.agents.llm_agent import Agent
from aworld.runner import Runners

summarizer = Agent(
    name="Summary Agent", 
    system_prompt="You specialize at summarizing.",
)

result = Runners.sync_run(
    input="Tell me a succint history about the universe", 
    agent=summarizer,
)
"""  # noqa: W291

EXPLICIT = """
import os

from aworld.agents.llm_agent import Agent
from aworld.runner import Runners
from aworld.config.conf import AgentConfig

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
    llm_base_url=os.environ["LLM_BASE_URL"],
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
result = Runners.sync_run(
    input="Tell me a complete history about the universe",
    agent=summarizer,
)
"""  # noqa: W291


@pytest.fixture
async def server() -> AsyncIterator[RecordingServer]:
    from aworld.core.model import ModelRequest
    from aworld.models.doubles import Said, call

    def think(request: ModelRequest) -> Said:
        if request.tools and request.turn == 0:
            return call("search", query="AI")
        return f"I heard: {request.messages[-1].text}"

    async with RecordingServer(FunctionModel(think, "gpt-4")) as serving:
        yield serving


async def run(code: str, server: RecordingServer, folder: Path) -> str:
    """Run a sample as a program; returns what it logged."""
    import asyncio

    script = folder / "sample.py"
    script.write_text(code + "\n")
    settings = {"LLM_MODEL_NAME": "gpt-4", "LLM_API_KEY": "your-api-key-here", "LLM_BASE_URL": server.base_url}
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", str(script), cwd=folder, env={**os.environ, **settings},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await child.communicate()
    assert child.returncode == 0, output.decode()
    return output.decode()


async def test_complete_task_trajectories(server: RecordingServer, tmp_path: Path) -> None:
    output = await run(COMPLETE.format(searcher=SEARCHER), server, tmp_path)
    assert "task answer: I heard: news on AI" in output
    rows = json.loads(output[output.index("task trajectory: ") + len("task trajectory: ") :].splitlines()[0])
    assert [row["state"]["messages"] for row in rows] == [body["messages"] for body in server.bodies]
    assert list(tmp_path.iterdir()) == [tmp_path / "sample.py"]  # nothing is written that nobody asked for


async def test_single_step_introspection(server: RecordingServer, tmp_path: Path) -> None:
    await run(SINGLE_STEP.format(searcher=SEARCHER), server, tmp_path)
    steps = (tmp_path / "trajectory_log.txt").read_text().split("Step ")[1:]
    rows = [json.loads(step.split("\n", 1)[1]) for step in steps]
    assert len(rows) == 2
    assert rows[0][0]["observation"][0]["content"] == "news on AI"
    assert rows[1][0]["action"]["content"] == "I heard: news on AI"


async def test_hello_world(server: RecordingServer, tmp_path: Path) -> None:
    output = await run(HELLO + "\nprint(result.answer)", server, tmp_path)
    assert output == "I heard: Tell me a succint history about the universe\n"
    (body,) = server.bodies
    assert body["model"] == "gpt-4"
    assert body["messages"][0] == {"role": "system", "content": "You specialize at summarizing."}
    assert server.headers[0]["Authorization"] == "Bearer your-api-key-here"


async def test_explicit_settings(server: RecordingServer, tmp_path: Path) -> None:
    output = await run(EXPLICIT + "\nprint(result.answer)", server, tmp_path)
    assert output == "I heard: Tell me a complete history about the universe\n"
    (body,) = server.bodies
    assert (body["model"], body["temperature"]) == ("google/gemini-2.5-pro", 0.1)
    assert server.headers[0]["Authorization"] == "Bearer <OPENROUTER_API_KEY>"
