"""The names and costs that users rely on."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

NAMES = {
    "aworld": [
        "Agent", "AgentConfig", "Environment", "HandoffSwarm", "Hooks", "RunConfig", "Runners", "Swarm", "Task",
        "TaskConfig", "TaskResponse", "TeamSwarm", "ToolContext", "WorkflowSwarm", "tool",
    ],
    "aworld.agents.llm_agent": ["Agent"],
    "aworld.runner": ["ManyRuns", "Runners"],
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
        "ExecResult", "FileInfo", "RunSandbox", "Sandbox", "SandboxError", "SandboxLimits", "SandboxProcess",
        "SandboxSource",
    ],
    "aworld.core.tool.base": ["Question", "Tool", "ToolContext", "Toolset"],
    "aworld.core.tool.wrappers": ["approval_required", "filtered", "prefixed", "renamed"],
    "aworld.core.trajectory": ["Step", "Trajectory"],
    "aworld.environments": [
        "Environment", "EnvironmentFailed", "EpisodeEnv", "Part", "Problem", "Report", "Reward", "Rollout",
        "RolloutProgress", "Rubric", "ScoredEpisode", "Session", "by_group", "rollouts", "split_by_hash",
    ],
    "aworld.logs.util": ["logger"],
    "aworld.models": [
        "AnthropicModel", "AzureModel", "FunctionModel", "LiteLLMModel", "OpenAIModel", "ScriptedModel",
        "build_model", "register_provider",
    ],
    "aworld.sandbox": ["SandboxPool", "local", "open_sandbox"],
    "aworld.sandbox.container": ["ContainerSandbox"],
    "aworld.sandbox.e2b": ["E2BSandbox"],
    "aworld.sandbox.local_sandbox": ["LocalSandbox"],
    "aworld.sandbox.reaper": ["reap"],
    "aworld.server": ["EnvironmentServer", "EventStream", "MCPService", "ModelServer", "RequestProblem", "Serving"],
    "aworld.tools.browser": ["Browser"],
    "aworld.tools.fetch": ["fetch", "fetch_tool"],
    "aworld.tools.files": ["file_tools"],
    "aworld.tools.human": ["approval_required", "ask", "choose", "confirm", "human_tools"],
    "aworld.tools.mcp": ["mcp_tools"],
    "aworld.tools.mcp_session": ["close_sessions"],
    "aworld.tools.python": ["python_tool"],
    "aworld.tools.sandboxed": ["sandbox_tools", "shell_tool"],
    "aworld.tools.search": ["search_tool", "web_search"],
    "aworld.trajectory": ["MemoryStore", "Query", "Summary", "TrajectoryStore", "open_store"],
}  # fmt: skip

HEAVY = {
    "aiohttp", "anthropic", "fastapi", "griffe", "jinja2", "litellm", "mcp", "numpy", "openai", "pyarrow", "rich",
    "starlette", "torch", "uvicorn", "websockets", "yaml",
}  # fmt: skip


@pytest.mark.parametrize("module", NAMES)
def test_public_names_stand_where_they_are_known(module: str) -> None:
    found = __import__(module, fromlist=NAMES[module])
    assert [name for name in NAMES[module] if not hasattr(found, name)] == []


def imported_by(program: str) -> set[str]:
    """The modules of a fresh process that runs `program`."""
    code = f"import sys; {program}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split())


@pytest.mark.parametrize("program", [
    "from aworld.agents.llm_agent import Agent; from aworld.runner import Runners",
    "from aworld.environments import Environment, Rubric, Session, rollouts",
])  # fmt: skip
def test_a_small_import_brings_nothing_heavy(program: str) -> None:
    assert HEAVY & imported_by(program) == set()


def test_pydantic_builds_no_schema_before_one_is_used() -> None:
    modules = imported_by("from aworld.agents.llm_agent import Agent; from aworld.runner import Runners")
    assert {"pydantic.type_adapter", "pydantic.plugin._loader", "importlib.metadata"} & modules == set()


def test_the_base_install_is_at_most_fifty_packages() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))["project"]
    packages, wanted = {"aworld"}, [Requirement(line) for line in project["dependencies"]]
    while wanted:
        package = wanted.pop()
        packages.add(canonicalize_name(package.name))
        try:
            needs = [Requirement(line) for line in distribution(package.name).requires or ()]
        except PackageNotFoundError:
            pytest.fail(f"{package.name} is a dependency and is not installed; run `make install-dev`")
        for need in needs:
            asked_for = need.marker is None or any(need.marker.evaluate({"extra": e}) for e in package.extras or {""})
            if asked_for and canonicalize_name(need.name) not in packages:
                wanted.append(need)
    assert len(packages) <= 50, sorted(packages)


def test_importing_the_package_brings_nothing_of_it() -> None:
    code = "import sys, aworld; print([m for m in sys.modules if m.startswith(('aworld.', 'pydantic', 'msgspec'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_name_of_the_package_brings_what_it_needs_and_no_more() -> None:
    import aworld

    assert dir(aworld) == NAMES["aworld"]
    assert "aworld.agents" not in imported_by("from aworld import ToolContext, tool")
    with pytest.raises(ImportError, match="cannot import name 'Runer' from 'aworld'"):
        exec("from aworld import Runer")
