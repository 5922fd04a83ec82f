"""Every code block of the README runs, in order, as a reader would run it."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aworld.cmd.main import parser_of_commands
from aworld.core.model import ModelRequest
from aworld.models import FunctionModel
from aworld.models.doubles import Said, call
from aworld.server import ModelServer
from tests.sandbox.places import needs_bubblewrap

README = Path(__file__).parent.parent / "README.md"
LEARNT = "runs/sums"
"""The folder of the policy that the page trains."""
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


CALLS = {
    "weather": call("weather", city="Oslo"),
    "python": call("python", code="17 * 23"),
    "guide": call("guide", input="The weather in Oslo"),
    "ask": call("ask", question="Where to?"),
}
GUIDE = """
from aworld.agents.llm_agent import Agent

guide = Agent("guide", desc="Knows the weather.")
"""


def traveller(request: ModelRequest) -> Said:
    """Calls the tool that it knows, where it has one, then says what it heard."""
    known = [CALLS[tool.name] for tool in request.tools if tool.name in CALLS]
    if known and request.messages[-1].role == "user":
        return known[0]
    return f"Dress for this: {request.messages[-1].text}"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The environment of a reader who has a model server, in a thread of its own: the blocks run their own loops."""
    ready, loop = threading.Event(), asyncio.new_event_loop()
    server = ModelServer(FunctionModel(traveller))

    async def serve() -> None:
        async with server:
            ready.set()
            await stopping.wait()

    stopping = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(10)
    monkeypatch.setenv("LLM_BASE_URL", server.base_url)
    monkeypatch.setenv("LLM_MODEL_NAME", "traveller")
    monkeypatch.setenv("LLM_API_KEY", "none")
    yield
    loop.call_soon_threadsafe(stopping.set)
    thread.join(10)
    loop.close()


def test_the_readme_has_blocks_of_both_kinds() -> None:
    assert {kind for kind, _ in BLOCKS} == {"bash", "python"}


def test_what_the_pages_point_to_is_there() -> None:
    root = README.parent
    for page in (
        README,
        *(root / "docs").glob("*.md"),
        root / "CONTRIBUTING.md",
        root / "aworld/models/embedded/README.md",
    ):
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} points to {target}"


def test_every_command_on_the_pages_is_one_that_is_taken() -> None:
    parser, commands = parser_of_commands(), 0
    for page in (README, *(README.parent / "docs").glob("*.md"), README.parent / "examples/environments/dungeon.py"):
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"^(?:\w+=\S+ )*aworld (.+)$", text, re.MULTILINE):
            words = shlex.split(re.split(r" [|>&]", line)[0], comments=True)
            try:
                parser.parse_args(words)
            except SystemExit:
                pytest.fail(f"{page.name}: aworld {line}")
            commands += 1
    assert commands > 15


@needs_bubblewrap
def test_python_blocks_run(
    served: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_agents.py").write_text(GUIDE)
    names: dict[str, Any] = {"__name__": "readme"}
    said: list[str] = []
    for kind, block in BLOCKS:
        if kind == "python":
            exec(compile(block, str(README), "exec"), names)
            said.append(capsys.readouterr().out)
        elif LEARNT in block:
            assert "pass@4" in shell(block, tmp_path)
    agent, _, learning, step, store, followed, team, _, sandbox, served_agent, people = said
    assert agent.startswith("finished Dress for this: Oslo: sunny")
    assert "user -> [{" in agent
    for mode in ("greedy", "sampled"):
        before, after = (int(share) for share in re.findall(rf"{mode}: (\d+)% -> (\d+)%", learning)[0])
        assert before < 60
        assert before + 30 < after
    assert step.strip() == "Dress for this: Oslo: snow 0.5"
    assert store.strip() == "['finished', 'finished', 'finished', 'finished'] True True"
    assert "MessageOutput" in followed
    assert "researcher-writer (workflow)" in team
    assert sandbox.strip() == "finished Dress for this: 391"
    assert served_agent.strip() == "Dress for this: Dress for this: The weather in Oslo"
    assert people.splitlines() == ["waiting ['Where to?']", "Dress for this: Oslo"]


def test_the_first_example_says_why_it_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"MODEL_NAME": "m", "API_KEY": "k", "BASE_URL": "http://127.0.0.1:9/v1"}.items():
        monkeypatch.setenv(f"LLM_{name}", value)
    exec(compile(next(block for kind, block in BLOCKS if kind == "python"), str(README), "exec"), {"__name__": "first"})
    assert capsys.readouterr().out.startswith("failed openai could not be reached: Cannot connect to host 127.0.0.1:9")


def test_bash_blocks_run(served: None, tmp_path: Path) -> None:
    for kind, block in BLOCKS:
        # The settings stand for the reader's own; what was learnt is used where it is learnt.
        if kind == "bash" and not block.startswith("export") and LEARNT not in block:
            assert shell(block, tmp_path).count('"status":"finished"') == 4
    assert len((tmp_path / "training.jsonl").read_text().splitlines()) == 5


def shell(block: str, folder: Path) -> str:
    """Run a block as a reader would; what it says."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
