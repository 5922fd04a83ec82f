"""What strangers write reaches a terminal as text alone, and a full disk is told in a line."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x1b[8m\x9b31m\u202egnp.exe\u2066 fine"

AGENT = f"""
from aworld.agents.llm_agent import Agent
from aworld.core.agent.swarm import Swarm
from aworld.core.exceptions import ToolError
from aworld.models.doubles import ScriptedModel, call

HOSTILE = {HOSTILE!r}

def look(text: str) -> str:
    '''Look.'''
    if text == "fail":
        raise ToolError(HOSTILE)
    return HOSTILE

def agent(name="a"):
    script = [call("look", text=HOSTILE), call("look", text="fail"), HOSTILE]
    return Agent(name, model=ScriptedModel(script), tools=[look])

one = agent()
failing = Agent("f", model=ScriptedModel([RuntimeError(HOSTILE)]))
team = Swarm(agent("x"), agent("y"))
"""


def in_terminal(folder: Path, *arguments: str) -> str:
    """What the command line writes to a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "aworld", *arguments],
        cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs, env=environment,
    )  # fmt: skip
    os.close(theirs)
    text = b""
    try:
        while piece := os.read(ours, 65536):
            text += piece
    except OSError:  # how a terminal says that its last writer has gone
        pass
    finally:
        process.wait(60)
        os.close(ours)
    return text.decode(errors="surrogateescape")


def harmless(text: str) -> bool:
    """Whether nothing but our colours drives the terminal."""
    return not any(sign in text for sign in ("\x1b]", "\x1b[2J", "\x1b[8m", "\x07", "\x9b", "\u202e", "\u2066"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "hostile.py").write_text(AGENT)
    return tmp_path


@pytest.mark.parametrize("agent", ["one", "team", "failing"])
def test_what_models_and_tools_say_does_not_drive_the_terminal(agent: str, folder: Path) -> None:
    ran = in_terminal(folder, "run", "hello", "--agent", f"hostile:{agent}", "--id", "r")
    assert "fine" in ran
    assert harmless(ran)
    for command in ("list", "show r --full", "export", "export --format openai", "show r --json"):
        words = command.split()
        written = in_terminal(folder, "trajectories", *words)
        assert "r" in written
        assert harmless(written)


def test_a_pipe_gets_what_was_written(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "aworld", "run", "hello", "--agent", "hostile:one"],
        cwd=folder, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, timeout=60,
        check=True,
    )  # fmt: skip
    assert HOSTILE.encode() in done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_standard_output_is_a_line(folder: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "aworld", "run", "hello", "--agent", "hostile:one"],
            cwd=folder, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, stdout=full,
            stderr=subprocess.PIPE, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert b"aworld: standard output: No space left on device" in done.stderr
    assert b"Traceback" not in done.stderr
