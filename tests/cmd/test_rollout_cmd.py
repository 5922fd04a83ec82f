"""`aworld rollout` as a person and as a script uses it: real processes, a real store."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aworld.cmd.rollout import _state
from aworld.environments import RolloutProgress
from aworld.models.embedded.checkpoint import Policy
from aworld.runners.local import load, store_of

TASKS = '''
from aworld.core.agent.swarm import Swarm
from tests.environments.shop import Part, agent_of, buying, correct, shop, stream
from aworld.core.exceptions import EnvironmentFailed
from tests.environments.shop import Shop

def half(request):
    """Right for one seed in two."""
    return buying(request) if request.turn == 0 or request.params["seed"] % 2 else "no"

def short(episode):
    if episode.problem.id == "3":
        raise ValueError("too long")
    return 1.0

class Closed(Shop):
    async def start(self):
        raise EnvironmentFailed("the shop is closed")

tasks = shop(Part("correct", correct), Part("short", short, weight=0.5))
endless = shop(train=stream)
closed = shop(session=Closed)

def made():
    """The command line knows it by its name, so that it can travel."""
    return shop(Part("correct", correct))

def leaky():
    return shop(train=[*shop().train, shop().test[0]])

agent = agent_of(half)
other = agent_of(lambda request: "no")
team = Swarm(agent)
'''
ROOT = Path(__file__).parents[2]


def lines_of(text: str) -> list[Any]:
    """The objects of JSON lines."""
    return [json.loads(line) for line in text.splitlines()]


class Shell:
    """Runs `aworld rollout` in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "my_tasks.py").write_text(TASKS)
        self.environ = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
        for name in ("LLM_MODEL_NAME", "OPENAI_API_KEY", "LLM_API_KEY", "AWORLD_STORE"):
            self.environ.pop(name, None)

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "aworld", *arguments],
            cwd=self.folder, env=self.environ, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def test_a_rollout_ends_with_a_table_and_what_to_do_next(shell: Shell) -> None:
    done = shell("rollout", "my_tasks:tasks", "--agent", "my_tasks:agent", "--samples", "4", "--run", "first")
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "run first: 10 problems × 4 of shop, train"
    out = done.stdout
    assert "pass@1 " in out
    assert "10 problems × 4)" in out
    assert "pass@4 " in out
    assert "40 episodes in" in out
    assert "part short: 4 failed, such as: ValueError: too long" in out
    assert "stored in sqlite:///.aworld/trajectories.db, with the label run=first" in out
    export = next(line for line in out.splitlines() if line.startswith("export:")).removeprefix("export: aworld ")
    assert shell(*export.split()).returncode == 0
    assert len((shell.folder / "first.jsonl").read_text().splitlines()) == 80
    listed = lines_of(shell("trajectories", "list", "--label", "run=first", "--json", "--limit", "99").stdout)
    assert len(listed) == 40
    unknown = next(run for run in listed if run["task_name"] == "shop/3")
    assert unknown["score"] is None
    shown = shell("trajectories", "show", unknown["id"]).stdout
    assert "score unknown" in shown
    assert "✗ no value  short × 0.5  (rubric)  ValueError: too long" in shown


def test_a_second_start_of_a_run_does_nothing_twice(shell: Shell) -> None:
    command = ("rollout", "my_tasks:endless", "--agent", "my_tasks:agent", "--json", "--tasks", "6", "--samples", "2")
    first = json.loads(shell(*command, "--run", "r", "--seed", "4").stdout)
    assert (first["run"], first["episodes"], first["problems"], first["statuses"]) == ("r", 12, 6, {"finished": 12})
    assert 0 <= first["pass@1"]["low"] <= first["pass@1"]["value"] <= first["pass@1"]["high"] <= 1
    assert first["parts"]["correct"]["count"] == 12
    again = json.loads(shell(*command, "--run", "r", "--seed", "4").stdout)
    assert {**again, "seconds": 0} == {**first, "seconds": 0}
    other = shell(*command, "--run", "r", "--seed", "5")
    assert other.returncode == 2
    assert "run='r' | the store has trajectories of this run with another seed than 5" in other.stderr
    more = json.loads(shell(*command[:-1], "3", "--run", "r", "--seed", "4").stdout)
    assert more["episodes"] == 18
    assert len(lines_of(shell("trajectories", "list", "--json", "--limit", "99").stdout)) == 18


def test_worker_processes_give_the_figures_of_one_process(shell: Shell) -> None:
    command = ("rollout", "my_tasks:made", "--agent", "my_tasks:agent", "--samples", "2", "--seed", "4", "--json")
    figures = [json.loads(shell(*command, "--run", run, *more).stdout) for run, *more in (["a"], ["b", "--workers=2"])]
    here, there = [{**each, "seconds": 0, "run": ""} for each in figures]
    assert here == there
    assert here["episodes"] == 20
    none = shell(*command, "--run", "c", "--workers", "0")
    assert (none.returncode, none.stdout) == (2, "")
    assert "--workers" in none.stderr


def test_another_agent_is_refused_and_a_complete_run_says_so(shell: Shell) -> None:
    command = ("rollout", "my_tasks:tasks", "--tasks", "3", "--samples", "2", "--run", "r", "--store", "shop.db")
    assert "nothing was run" not in shell(*command, "--agent", "my_tasks:agent").stderr
    other = shell(*command, "--agent", "my_tasks:other")
    assert (other.returncode, other.stdout) == (2, "")
    assert "by another agent: model of 'buyer' was 'function:half' and is now 'function:<lambda>'" in other.stderr
    assert "Take another name for this run (--run)" in other.stderr
    again = shell(*command, "--agent", "my_tasks:agent")
    assert again.returncode == 0
    assert again.stderr.splitlines()[-1] == "nothing was run: all 6 episodes were there"


def test_lost_episodes_are_told_and_tried_again_by_the_next_start(shell: Shell) -> None:
    done = shell("rollout", "my_tasks:closed", "--agent", "my_tasks:agent", "--retries", "0", "--tasks", "3")
    assert done.returncode == 1
    assert "3 lost: their surroundings failed" in done.stdout
    assert "3 × the shop is closed" in done.stdout
    assert "pass@1" not in done.stdout


def test_a_model_in_this_process_takes_the_options_of_a_model(shell: Shell) -> None:
    one = ("rollout", "my_tasks:tasks", "--tasks", "1", "--json")
    Policy.open().save(shell.folder / "runs" / "sums" / "policy")
    for run, model, name in (("a", "embedded", "packaged"), ("b", "runs/sums", "runs/sums/policy")):
        done = shell(*one, "--model", model, "--temperature", "0.25", "--max-steps", "1", "--run", run)
        assert done.returncode == 0, done.stderr
        (listed,) = lines_of(shell("trajectories", "list", "--label", f"run={run}", "--json").stdout)
        record = asyncio.run(load(listed["id"], store_of(str(shell.folder / ".aworld" / "trajectories.db"))))
        assert (record.calls[0].model, record.calls[0].params["temperature"]) == (name, 0.25)
        refused = shell(*one, "--model", model, "--base-url", "http://127.0.0.1:1/v1")
        assert refused.returncode == 2
        said = f"--base-url says where an API lives, but {model} answers in this process: leave it out."
        assert refused.stderr.splitlines()[-1] == f"aworld: {said}"


def test_the_line_of_progress_says_why_episodes_are_lost() -> None:
    progress = RolloutProgress(9)
    progress.lost, progress.reason = 2, "the shop is closed\nfor good"
    assert _state(progress).endswith("2 lost · last: the shop is closed")


def test_an_episode_is_begun_anew_and_not_forked(shell: Shell) -> None:
    command = "rollout", "my_tasks:tasks", "--agent", "my_tasks:agent", "--tasks", "1", "--run", "first"
    done = shell(*command, "--max-steps", "1")
    assert "max_steps=1 reached; give a higher one." in done.stdout
    done = shell(*command, "--max-steps", "20")
    assert done.returncode == 2
    assert "with other limits: max_steps was 1 and is now 20" in done.stderr
    assert "Take another name for this run (--run)" in done.stderr
    for words in (("fork", "last"), ("resume", "last")):
        done = shell(*words, "--agent", "my_tasks:agent", "--max-steps", "20")
        assert done.returncode == 2
        assert "begin it anew, such as by `aworld rollout` with another --run." in done.stderr


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["my_tasks:nothing"], "'my_tasks' has no 'nothing'"),
        (["my_tasks:agent", "--agent", "my_tasks:agent"], "is an Agent; name an Environment"),
        (["my_tasks:tasks", "--agent", "my_tasks:tasks"], "name an agent or a swarm"),
        (["my_tasks:tasks", "--agent", "my_tasks:agent", "--temperature", "1"], "--temperature describes an agent"),
        (["my_tasks:tasks", "--agent", "my_tasks:team", "--model", "x"], "--model is for an agent that asks a model"),
        (
            ["my_tasks:tasks", "--agent", "my_tasks:agent", "--samples", "0"],
            "aworld: --samples must be at least 1; got 0.",
        ),
        (["my_tasks:tasks", "--agent", "my_tasks:agent", "--retries", "-1"], "--retries must be at least 0; got -1."),
        (["my_tasks:tasks", "--agent", "my_tasks:tasks"], "is an Environment; name"),
        (["my_tasks:tasks", "--agent", "my_tasks:agent", "--tasks", "0"], "--tasks must be at least 1"),
        (
            ["my_tasks:tasks", "--agent", "my_tasks:agent", "--tasks", "99"],
            "has 10 different problems; 99 were asked for",
        ),
        (["my_tasks:tasks", "--agent", "my_tasks:agent", "--max-steps", "0"], "--max-steps:"),
        (["my_tasks:leaky", "--agent", "my_tasks:agent"], "1 of 11 training problems are held out too"),
        (["my_tasks:tasks", "--model", "gpt-4o"], "OPENAI_API_KEY"),
        (["my_tasks:tasks", "--model", "runs/sums"], "'runs/sums' is no folder of a policy: there is no such folder."),
    ],
)
def test_misuse_is_told_in_one_line(shell: Shell, arguments: list[str], error: str) -> None:
    done = shell("rollout", *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert error in done.stderr
    assert "Traceback" not in done.stderr
    assert "go on with" not in done.stderr


def test_on_a_terminal_progress_is_shown_while_it_goes_on(shell: Shell) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "aworld", "rollout", "my_tasks:tasks", "--agent", "my_tasks:agent"]
    with subprocess.Popen(
        command, cwd=shell.folder, env={**shell.environ, "TERM": "xterm"}, stdout=subprocess.PIPE, stderr=theirs
    ) as child:
        out, _ = child.communicate(timeout=60)
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert child.returncode == 0
    assert "10/10" in shown
    assert "episodes/s" in shown
    assert b"pass@1" in out


def test_a_budget_ends_it_early_and_the_same_command_goes_on(shell: Shell) -> None:
    command = ("rollout", "my_tasks:tasks", "--agent", "my_tasks:agent", "--run", "r", "--budget-tokens")
    cut = shell(*command, "60")
    assert cut.returncode == 1
    assert "cut short; go on with: aworld rollout my_tasks:tasks ... --run r" in cut.stderr
    assert "--budget-tokens 60 reached: " in cut.stderr
    assert "stored in sqlite:///.aworld/trajectories.db, with the label run=r" in cut.stdout  # with what had ended
    done = shell(*command, "100000")
    assert done.returncode == 0, done.stderr
    assert "10 episodes in" in done.stdout
