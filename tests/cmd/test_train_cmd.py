"""`aworld train` as a person and as a script uses it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aworld.training import TrainingResult

TASKS = """
from tests.training.small import letters, never, says_low, small_agent

agent = small_agent()


def boom(episode):
    raise KeyError("boom")


def boom_at_first(episode):
    if episode.problem.id in ("test-0", "train-0"):
        raise KeyError("boom")
    return says_low(episode)
"""
ROOT = Path(__file__).parents[2]
QUICK = (
    "--agent", "my_tasks:agent", "--steps", "2", "--groups", "2", "--samples", "4", "--evaluate-every", "1",
    "--final-tasks", "4", "--set", "max_completion_tokens=4", "--run-path", "run",
)  # fmt: skip


class Shell:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "my_tasks.py").write_text(TASKS)

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        bare = {name: value for name, value in os.environ.items() if not name.startswith(("LLM_", "OPENAI_"))}
        return subprocess.run(
            [sys.executable, "-m", "aworld", "train", *arguments],
            cwd=self.folder, env={**bare, "PYTHONPATH": str(ROOT), "COLUMNS": "60"},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def test_train_and_go_on(shell: Shell) -> None:
    done = shell("my_tasks:letters", *QUICK)
    assert done.returncode == 0, done.stderr
    assert "step 1: greedy" in done.stderr
    assert "step 2/2" in done.stderr
    assert "McNemar" in done.stdout
    (ground,) = [line for line in done.stdout.splitlines() if "└" in line]
    assert len(ground) == 60  # the curve is as wide as the terminal
    assert f"Agent(model='{shell.folder / 'run'}')" in done.stdout
    result = TrainingResult.open(shell.folder / "run" / "result.json")
    assert (result.engine, result.steps) == ("embedded", 2)
    again = shell("my_tasks:letters", *QUICK, "--steps", "3", "--json")
    told = json.loads(again.stdout)
    assert (told["steps"], told["stopped"]) == (3, "steps")
    assert again.stderr == ""


def test_train_on_files_with_settings_of_a_file(shell: Shell) -> None:
    (shell.folder / "train.jsonl").write_text("".join(json.dumps({"input": f"say {n}"}) + "\n" for n in range(4)))
    (shell.folder / "test.jsonl").write_text(json.dumps({"input": "speak"}))
    (shell.folder / "train.yaml").write_text("steps: 9\nlearning_rate: 0.002\n")
    given = ("--test", "test.jsonl", "--reward", "my_tasks:says_low", "--config", "train.yaml", "--json")
    done = shell("train.jsonl", *QUICK, *given)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 2  # the option goes before the file


def test_where_nothing_can_be_learnt_it_ends_with_one_and_says_what_to_try(shell: Shell) -> None:
    done = shell("my_tasks:letters", *QUICK, "--reward", "my_tasks:never")
    assert done.returncode == 1
    assert "with nothing to learn from" in done.stdout
    assert "use it" not in done.stdout
    assert "pass@4 is 0.0%" in done.stderr
    assert "Try easier problems" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reward_that_nobody_knows_is_no_zero(shell: Shell) -> None:
    done = shell("my_tasks:letters", *QUICK, "--reward", "my_tasks:boom")
    assert done.returncode == 1
    assert "step 0: greedy — of 0, 4 unknown\n" in done.stderr
    assert "reward 'boom': KeyError: 'boom' (trajectory evaluation-greedy-0-" in done.stderr
    assert "Traceback" not in done.stderr
    some = shell("my_tasks:letters", *QUICK, "--run-path", "some", "--reward", "my_tasks:boom_at_first")
    assert some.returncode == 0, some.stderr
    assert "of 3, 1 unknown" in some.stderr
    assert some.stderr.count("KeyError: 'boom'") == 1
    assert "McNemar; 1 unknown, left out)" in some.stdout


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("my_tasks:nothing",), "nothing"),
        (("my_tasks:agent",), "train_dataset takes"),
        (("my_tasks:letters", "--model", "openai:gpt-4o", "--run-path", "run"), "No API key for openai"),
        (("my_tasks:letters", "--engine", "trk"), "did you mean 'trl'"),
        (("my_tasks:letters", "--set", "clip"), "NAME=VALUE"),
        (("my_tasks:letters", "--set", "clipp=1"), "did you mean 'clip'"),
    ],
)
def test_wrong_use_ends_with_two_and_says_what(shell: Shell, given: tuple[str, ...], said: str) -> None:
    done = shell(*given)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "go on" not in done.stderr
