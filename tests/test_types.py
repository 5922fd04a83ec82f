"""What a type checker says: nothing of the typed example, and every mistake in a program is an error in its line."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "typed.py"

PROGRAM = """
import asyncio
from typing import Any

from typed import Advice, Database, balance, brief, database, desk

from aworld import Agent, Runners, Swarm, Task, ToolContext

plain = Agent("plain")
either = Agent("either", output_type=Advice | int)
team = Swarm(plain, desk)


async def afresh() -> Database:
    return Database("Ada")


async def right(unknown: Any) -> None:
    text: str = (await Runners.run("x", plain)).answer
    for deps in (Database("Ada"), database, afresh, "typed:database"):
        advice: Advice = (await Runners.run("x", desk, deps=deps, group_id="one")).answer
    numbers: Agent[None, list[int]] = Agent("numbers", output_type=list[int])
    both: Agent[None, Advice | int] = either
    of_team: int = Runners.sync_run("x", swarm=team, deps=3).answer
    task = Task("x", desk, deps=database)
    told: Advice = (await Runners.run_task(task))[task.id].answer
    again: Advice = (await Runners.resume("id", desk)).answer
    forks: list[Advice] = [fork.answer for fork in await Runners.fork("id", desk, n=2)]
    many: list[Advice] = [one.answer for one in (await Runners.run_many(["x"], desk, run="a")).responses.values()]
    anything: str = (await Runners.run("x", unknown)).answer


async def wrong(context: ToolContext[Database]) -> None:
    await Runners.run("x", desk, deps=database, grop_id="one")  # error
    await Runners.run("x", desk)  # error
    await Runners.run("x", desk, deps=3)  # error
    await Runners.run("x", plain, deps=Database("Ada"))  # error
    Runners.sync_run("x", desk, deps=database).answer.advise  # error
    number: int = Runners.sync_run("x", plain).answer  # error
    context.deps.balanc("Ada")  # error
    Task("x", desk, deps=3)  # error
    Task("x", desk, labels={"run": 3})  # error
    Runners.streaming_run("x", desk, deps=database, timout=3)  # error
    Agent("other", system_prompt=brief, deps_type=int)  # error
    await Runners.resume("id", desk, stroe="sqlite:///runs.db")  # error
    await Runners.run_many(["x"], desk, run="a", deps=3)  # error
    from aworld import Runer  # error


asyncio.run(right(0))
"""
MISTAKES = {number for number, line in enumerate(PROGRAM.splitlines(), 1) if line.endswith("# error")}


def test_the_example_runs_without_a_key() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "LLM_MODEL_NAME"}
    command = [sys.executable, str(EXAMPLE)]
    done = subprocess.run(
        command, env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("Ada, you have 100.5 euros. Blocked.\n", "")


def program(folder: Path) -> Path:
    """The program in a file, beside the example that it imports."""
    (folder / "typed.py").write_text(EXAMPLE.read_text("utf-8"), "utf-8")
    (folder / "program.py").write_text(PROGRAM, "utf-8")
    return folder / "program.py"


def test_pyright_sees_every_mistake_and_nothing_else(tmp_path: Path) -> None:
    program(tmp_path)
    settings = {
        "include": ["."], "typeCheckingMode": "strict", "extraPaths": [str(ROOT)], "reportUnusedVariable": False,
        "reportUnusedImport": False, "reportUnusedExpression": False, "reportUnnecessaryTypeIgnoreComment": True,
    }  # fmt: skip
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [str(Path(sys.executable).with_name("basedpyright")), "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run([*command, "--project", str(tmp_path)], capture_output=True, text=True, timeout=170)
    errors = json.loads(done.stdout)["generalDiagnostics"]
    lines = {(Path(error["file"]).name, error["range"]["start"]["line"] + 1) for error in errors}
    assert lines == {("program.py", line) for line in MISTAKES}, done.stdout


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")
def test_mypy_sees_every_mistake_and_nothing_else(tmp_path: Path) -> None:
    file = program(tmp_path)
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--no-pretty"]
    done = subprocess.run(
        [*command, "typed.py", file.name, "--cache-dir", str(tmp_path / "cache")],
        env={**os.environ, "MYPYPATH": str(ROOT)}, cwd=tmp_path, capture_output=True, text=True, timeout=170,
    )  # fmt: skip
    errors = re.findall(r"^(\S+?):(\d+): error", done.stdout, re.MULTILINE)
    assert {(name, int(line)) for name, line in errors} == {("program.py", line) for line in MISTAKES}, done.stdout
