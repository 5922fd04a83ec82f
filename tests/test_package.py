"""The names and costs that users rely on."""

from __future__ import annotations

import subprocess
import sys

import pytest

NAMES = {
    "aworld.agents.llm_agent": ["Agent"],
    "aworld.runner": ["Resumed", "Runners"],
    "aworld.config": ["AgentConfig", "EngineName", "ModelConfig", "RunConfig", "TaskConfig", "TaskRunMode"],
    "aworld.config.conf": ["AgentConfig", "EngineName", "ModelConfig", "RunConfig", "TaskConfig", "TaskRunMode"],
    "aworld.core.agent.base": ["BaseAgent", "Turn"],
    "aworld.core.agent.swarm": [
        "Edge", "GraphBuildType", "HandoffSwarm", "Loop", "Map", "WorkflowNode", "Swarm", "TeamSwarm", "WorkflowSwarm",
    ],
    "aworld.core.common": ["ActionModel", "ActionResult", "Observation"],
    "aworld.core.hooks": ["HookContext", "Hooks"],
    "aworld.core.task": ["Task", "TaskResponse", "TaskStatus"],
    "aworld.core.tool.func_to_tool": ["be_tool", "find_tools", "tool"],
    "aworld.core.sandbox": [
        "ExecResult", "FileInfo", "Sandbox", "SandboxError", "SandboxLimits", "SandboxProcess", "SandboxSource",
    ],
    "aworld.core.tool.base": ["Question", "Resting", "RunScoped", "Tool", "ToolContext", "Toolset"],
    "aworld.core.tool.wrappers": ["approval_required", "filtered", "prefixed", "renamed"],
    "aworld.core.trajectory": ["Step", "Trajectory"],
    "aworld.environments": [
        "Environment", "EnvironmentFailed", "Episode", "EpisodeEnv", "Part", "Problem", "Progress", "Report", "Reward",
        "Rollout", "Rubric", "Session", "by_group", "rollouts", "split_by_hash",
    ],
    "aworld.logs.util": ["logger"],
    "aworld.models": [
        "AnthropicModel", "AzureModel", "FunctionModel", "LiteLLMModel", "ModelServer", "OpenAIModel", "ScriptedModel",
        "build_model", "register_provider",
    ],
    "aworld.sandbox": ["SandboxPool", "open_sandbox"],
    "aworld.sandbox.container": ["ContainerSandbox"],
    "aworld.sandbox.e2b": ["E2BSandbox"],
    "aworld.sandbox.local": ["LocalSandbox"],
    "aworld.sandbox.reaper": ["reap"],
    "aworld.tools.browser": ["Browser"],
    "aworld.tools.fetch": ["fetch", "fetch_tool"],
    "aworld.tools.files": ["file_tools"],
    "aworld.tools.human": ["approval_required", "ask", "choose", "confirm", "human_tools"],
    "aworld.tools.mcp": ["mcp_tools"],
    "aworld.tools.mcp_session": ["close_sessions"],
    "aworld.tools.python": ["python_tool"],
    "aworld.tools.sandboxed": ["sandbox_tools"],
    "aworld.tools.search": ["search_tool", "web_search"],
    "aworld.tools.shell": ["shell_tool"],
    "aworld.trajectory": ["MemoryStore", "Query", "Summary", "TrajectoryStore", "open_store"],
}  # fmt: skip

HEAVY = {"aiohttp", "fastapi", "openai", "anthropic", "litellm", "torch", "numpy", "pyarrow", "rich", "griffe", "mcp"}


@pytest.mark.parametrize("module", NAMES)
def test_public_names_stand_where_they_are_known(module: str) -> None:
    found = __import__(module, fromlist=NAMES[module])
    assert [name for name in NAMES[module] if not hasattr(found, name)] == []


def test_importing_an_agent_brings_nothing_heavy() -> None:
    code = (
        "import sys; from aworld.agents.llm_agent import Agent; print(*sorted(m for m in sys.modules if '.' not in m))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert HEAVY & set(done.stdout.split()) == set()


def test_importing_an_environment_brings_nothing_heavy() -> None:
    code = (
        "import sys; from aworld.environments import Environment, Rubric, Session, rollouts; "
        "print(*sorted(m for m in sys.modules if '.' not in m))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert HEAVY & set(done.stdout.split()) == set()


def test_importing_the_package_brings_nothing_of_it() -> None:
    code = "import sys, aworld; print([m for m in sys.modules if m.startswith(('aworld.', 'pydantic', 'msgspec'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
