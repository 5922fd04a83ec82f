"""`aworld run --run NAME`: questions of a file, asked once; and budgets of many runs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aworld.trajectory import Query, open_store
from tests.cmd.test_run_cmd import Server, Shell


@pytest.fixture
async def shell(tmp_path: Path) -> AsyncIterator[Shell]:
    async with Server() as server:
        yield Shell(tmp_path, server)


async def test_a_file_of_questions_is_asked_once_and_exported_by_its_name(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text('{"id": "a", "input": "one"}\n"two"\n')
    code, out, err = await shell.run("run", "--file", "questions.jsonl", "--run", "survey")
    assert code == 0, err
    assert [line.split()[0] for line in out.splitlines()] == ["survey.a", "survey.1"]
    assert "The answer is one." in out
    assert "aworld trajectories list --label run=survey" in err
    file.write_text('{"id": "a", "input": "one"}\n"two"\n{"id": "c", "input": "three"}\n')
    code, out, err = await shell.run("run", "--file", "questions.jsonl", "--run", "survey", "--json")
    assert [json.loads(line)["answer"] for line in out.splitlines()] == [
        "The answer is one.", "The answer is two.", "The answer is three.",
    ]  # fmt: skip
    code, out, err = await shell.run("run", "--file", "questions.jsonl", "--run", "survey")
    assert "3 of them had ended before" in err
    code, out, err = await shell.run("trajectories", "export", "--label", "run=survey", "--output", "out.jsonl")
    assert code == 0, err
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 3
    store = open_store(f"sqlite:///{tmp_path}/.aworld/trajectories.db")
    try:
        assert await store.count(Query(labels={"run": "survey"})) == 3
    finally:
        await store.close()


async def test_bad_files_and_options_are_told(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("{\n")
    (tmp_path / "ids.jsonl").write_text('{"id": 1, "input": "x"}\n')
    for words, message in (
        (("--file", "bad.jsonl"), "line 1: a line is a JSON text, or an object"),
        (("--file", "ids.jsonl"), "questions with an id have a name together: --run NAME"),
        (("--run", "r", "--samples", "2", "x"), "--run asks each question once"),
        (("--run", "r", "--id", "i", "x"), "--id names one run"),
        (("--budget", "1", "x", "y"), "no price of openai:m is known: set llm_input_price"),
        (("--max-cost", "1", "x"), "no price of openai:m is known: set llm_input_price"),
    ):
        code, _, err = await shell.run("run", *words)
        assert (code, message in err) == (2, True), err


async def test_a_budget_stops_and_the_same_command_goes_on(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "questions.txt").write_text("one\ntwo\nthree\n")
    words = ("run", "--file", "questions.txt", "--run", "r", "--budget-tokens")
    code, out, err = await shell.run(*words, "3")
    assert code == 1
    assert "limit_reached" in out
    assert "--budget-tokens 3 reached: " in out
    assert "1 of 3 finished" in err
    code, out, err = await shell.run(*words, "1000")
    assert code == 0, err
    assert "3 of 3 finished" in err
    assert "1 of them had ended before" in err
