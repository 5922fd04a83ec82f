"""`aworld run | resume | fork | replay` as a person and as a script uses them: real processes, a real model server."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aworld import __version__
from aworld.agents.llm_agent import Agent
from aworld.config import AgentConfig, RunConfig
from aworld.core.model import ModelRequest
from aworld.core.task import Task
from aworld.models import FunctionModel
from aworld.models.doubles import Said, call
from aworld.models.embedded.checkpoint import Policy
from aworld.runner import Runners
from aworld.server import ModelServer
from aworld.trajectory import Query, open_store

TOOLS = '''
from aworld.core.tool.func_to_tool import tool


@tool(idempotent=True)  # so that it may run again after the kill
def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b
'''


class Server(ModelServer):
    """A model that multiplies with a tool when it has one; `hold` keeps its answers back until it is set."""

    def __init__(self) -> None:
        self.hold: asyncio.Event | None = None
        self.asked = asyncio.Semaphore(0)
        super().__init__(FunctionModel(self._think))

    async def _think(self, request: ModelRequest) -> Said:
        self.asked.release()
        if self.hold is not None and request.turn == 1:
            await self.hold.wait()
        if request.tools and request.turn == 0:
            return call("multiply", a=17, b=23)
        return f"The answer is {request.messages[-1].text}."


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    async with made:
        yield made


class Shell:
    """Runs `aworld` in a folder of its own."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.folder = folder
        (folder / "my_tools.py").write_text(TOOLS)
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("LLM_", "OPENAI_", "AWORLD_"))}
        self.settings = {"LLM_MODEL_NAME": "m", "LLM_API_KEY": "sk-very-secret", "LLM_BASE_URL": server.base_url}

    async def start(self, *words: str, **settings: str) -> asyncio.subprocess.Process:
        """Start `aworld words...`."""
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "aworld", *words, cwd=self.folder,
            env={**self.environment, **self.settings, **settings},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    async def run(self, *words: str, **settings: str) -> tuple[int, str, str]:
        """Exit code, standard output and standard error of `aworld words...`."""
        process = await self.start(*words, **settings)
        out, err = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()


@pytest.fixture
def shell(tmp_path: Path, server: Server) -> Shell:
    return Shell(tmp_path, server)


async def test_version(shell: Shell) -> None:
    assert await shell.run("--version") == (0, f"aworld {__version__}\n", "")


async def test_alone_it_says_where_to_begin(shell: Shell) -> None:
    code, out, err = await shell.run()
    assert (code, err) == (0, "")
    assert "aworld chat --model local" in out
    assert max(len(line) for line in out.splitlines()) <= 110


async def test_run_prints_the_answer_and_tells_the_rest_beside_it(shell: Shell) -> None:
    code, out, err = await shell.run("run", "17 * 23?", "--tool", "my_tools:multiply")
    assert (code, out) == (0, "The answer is 391.\n")
    assert 'multiply({"a":17,"b":23})' in err
    assert "← 391" in err
    assert "aworld trajectories show " in err
    assert "sk-very-secret" not in err + (shell.folder / ".aworld/trajectories.db").read_bytes().decode(
        errors="replace"
    )


async def test_json_is_for_scripts(shell: Shell) -> None:
    code, out, err = await shell.run("run", "a", "b", "--samples", "2", "--json")
    assert (code, err) == (0, "")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["answer"] for row in rows] == ["The answer is a."] * 2 + ["The answer is b."] * 2
    assert len({row["id"] for row in rows}) == 4
    assert len({row["group_id"] for row in rows}) == 2


async def test_questions_come_from_a_file(shell: Shell) -> None:
    (shell.folder / "questions.txt").write_text("a\n\n b \n")
    code, out, _ = await shell.run("run", "--file", "questions.txt", "--json")
    assert code == 0
    assert [json.loads(line)["answer"] for line in out.splitlines()] == ["The answer is a.", "The answer is b."]


async def test_settings_are_read_from_dot_env(shell: Shell) -> None:
    (shell.folder / ".env").write_text("\n".join(f"{k}={v}" for k, v in shell.settings.items()))
    shell.settings = {}
    assert (await shell.run("run", "a"))[:2] == (0, "The answer is a.\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run",), "Nothing to ask"),
        (("run", "a", "--tool", "my_tools"), "MODULE:NAME"),
        (("run", "a", "--tool", "my_tools:divide"), "has no 'divide'"),
        (("run", "a", "--tool", "your_tools:divide"), "cannot import 'your_tools'"),
        (("run", "a", "--tool", "broken:divide"), "importing 'broken' raised ValueError: boom (broken.py, line 1)"),
        (("run", "a", "--tool", "leaving:divide"), "importing 'leaving' raised SystemExit: 3 (leaving.py, line 1)"),
        (
            ("run", "a", "--agent", "crooked:a"),
            "raised SyntaxError: invalid syntax (crooked.py, line 1)",
        ),
        (("run", "--file", "latin.txt"), "--file 'latin.txt' is not UTF-8 text"),
        (("run", "--file", "cut.jsonl", "--run", "r"), "--file 'cut.jsonl', line 2: a line is a JSON text"),
        (("run", "a", "--max-steps", "0"), "--max-steps: input should be greater"),
        (("run", "a", "--samples", "0"), "aworld: --samples must be at least 1; got 0."),
        (("run", "a", "--concurrency", "-3"), "aworld: --concurrency must be at least 1; got -3."),
        (("run", "a", "b", "--id", "x"), "--id names one run"),
        (("run", "--file", "nowhere.txt"), "nowhere.txt"),
        (("run", "a", "--store", "ftp://x"), "not an address of a store"),
        (("resume", "nobody"), "no trajectory 'nobody'"),
        (("fork", "nobody"), "no trajectory 'nobody'"),
        (("replay", "nobody"), "no trajectory 'nobody'"),
        (("fly",), "\naworld: argument COMMAND: invalid choice"),
        (("run", "a", "--samples", "many"), "\naworld: argument --samples: invalid int value"),
    ],
)
async def test_misuse_has_exit_code_2_and_says_what_to_do(shell: Shell, words: tuple[str, ...], said: str) -> None:
    for name, code in (
        ("broken", 'raise ValueError("boom")'),
        ("leaving", "raise SystemExit(3)"),
        ("crooked", "x = = 3"),
    ):
        (shell.folder / f"{name}.py").write_text(code)
    (shell.folder / "latin.txt").write_bytes(b"\xe9t\xe9")
    (shell.folder / "cut.jsonl").write_text('"one"\n{"id": \n')
    exit_code, out, err = await shell.run(*words)
    assert (exit_code, out) == (2, "")
    assert said in err
    assert "Traceback" not in err


async def test_a_missing_setting_names_its_variable(shell: Shell) -> None:
    code, _, err = await shell.run("run", "a", LLM_MODEL_NAME="")
    assert (code, err) == (2, "aworld: No model name: give --model, or set LLM_MODEL_NAME\n")
    (shell.folder / "ready.py").write_text("from aworld.agents.llm_agent import Agent\n\nbob = Agent('bob')\n")
    code, _, err = await shell.run("run", "a", "--agent", "ready:bob", LLM_MODEL_NAME="")
    assert (code, err) == (2, "aworld: No model name: give --model, or set LLM_MODEL_NAME\n")


async def test_a_run_that_does_not_finish_has_exit_code_1(shell: Shell) -> None:
    code, out, err = await shell.run("run", "17 * 23?", "--tool", "my_tools:multiply", "--max-steps", "1")
    assert (code, out) == (1, "")
    assert re.search("limit_reached: --max-steps 1 reached; go on with: aworld fork [0-9a-f]{8} --max-steps MORE", err)


async def test_the_embedded_model_and_a_folder_need_no_provider(shell: Shell) -> None:
    shell.settings = {}
    Policy.open().save(shell.folder / "runs" / "sums" / "policy")
    for id, model in (("one", "embedded"), ("two", "runs/sums")):
        words = ("--model", model, "--temperature", "0.5", "--system", "Be brief.", "--json", "--id", id)
        code, out, err = await shell.run("run", "What is 3 times 4?", *words)
        assert (code, json.loads(out)["status"], err) == (0, "finished", "")
        code, out, err = await shell.run("fork", id, "--at", "0", "--json")  # the record knows which model it was
        assert (code, json.loads(out)["status"], err) == (0, "finished", "")
    code, _, err = await shell.run("run", "a", "--model", "embedded", "--base-url", "http://127.0.0.1:1/v1")
    assert code == 2
    assert "--base-url says where an API lives, but embedded answers in this process" in err


async def test_a_killed_run_is_resumed_forked_and_replayed(shell: Shell, server: Server) -> None:
    server.hold = asyncio.Event()
    process = await shell.start("run", "17 * 23?", "--tool", "my_tools:multiply", "--id", "sum")
    await server.asked.acquire()
    await server.asked.acquire()  # the second call: the tool has run
    process.kill()
    await process.wait()
    server.hold.set()
    code, out, _ = await shell.run("resume", "sum", "--tool", "my_tools:multiply", "--json")
    row = json.loads(out)
    assert (code, row["status"], row["answer"], row["steps"]) == (0, "finished", "The answer is 391.", 2)

    code, out, _ = await shell.run("fork", "sum", "--at", "1", "-n", "2", "--tool", "my_tools:multiply", "--json")
    forks = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [fork["answer"] for fork in forks] == ["The answer is 391."] * 2
    assert len({"sum", *(fork["trajectory_id"] for fork in forks)}) == 3

    code, _, err = await shell.run("fork", "sum", "--at", "1")
    assert code == 2
    assert "had the tools multiply" in err  # without them it would be another agent

    assert await shell.run("replay", "sum") == (0, "2 steps replayed: no difference\n", "")
    code, out, _ = await shell.run("replay", "last", "--json")
    assert (code, json.loads(out)["same"]) == (0, True)


async def test_ctrl_c_ends_every_run_cancelled_and_keeps_what_was_done(shell: Shell, server: Server) -> None:
    server.hold = asyncio.Event()
    questions = [f"{n}?" for n in range(20)]
    process = await shell.start("run", *questions, "--tool", "my_tools:multiply")
    for _ in range(40):  # all twenty wait for their second answer
        await server.asked.acquire()
    process.send_signal(signal.SIGINT)
    _, err = await asyncio.wait_for(process.communicate(), 2)
    assert process.returncode == 130
    assert "Traceback" not in err.decode()
    store = open_store(f"sqlite:///{shell.folder}/.aworld/trajectories.db")
    runs = await store.query(Query())
    await store.close()
    assert [run.status for run in runs] == ["cancelled"] * 20
    assert [run.steps for run in runs] == [1] * 20
    code, _, said = await shell.run("resume", runs[0].id, "--tool", "my_tools:multiply")
    going_on = f"aworld fork {runs[0].id[:8]} --tool my_tools:multiply"
    assert (code, f"it has ended: nothing is left to resume; go on with: {going_on}\n" in said) == (1, True)


class Stranger(ModelServer):
    """A server elsewhere, which keeps what it was sent."""

    def __init__(self) -> None:
        self.questions = 0
        super().__init__(FunctionModel(self._say))

    def _say(self, request: ModelRequest) -> Said:
        self.questions += 1
        return call("multiply", a=1, b=2) if request.tools and request.turn == 0 else "Thank you."


def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


@pytest.mark.parametrize("command", ["fork bait --at 0", "fork wired --at 0", "resume open --tool my_tools:multiply"])
async def test_an_address_out_of_a_record_is_never_asked_with_our_key(shell: Shell, command: str) -> None:
    """A stranger's store names the stranger's server; it is asked only when the caller names it, too."""
    stranger = Stranger()
    async with stranger:
        url = stranger.base_url
        settings = AgentConfig(llm_model_name="m", llm_base_url=url)
        wired = AgentConfig(llm_model_name="m", llm_base_url=url, params={"api_base": url})
        store = open_store(f"sqlite:///{shell.folder}/evil.db")
        conf = RunConfig(store=store)
        for id, agent in (("bait", Agent("assistant", settings)), ("wired", Agent("assistant", wired))):
            await Runners.run("x", agent, id=id, run_conf=conf)
        await Runners.step(Task("x", Agent("assistant", settings, tools=[multiply]), id="open"), conf)
        await store.close()
        before = stranger.questions
        code, _, err = await shell.run(*command.split(), "--store", "evil.db")
        assert (code, stranger.questions) == (2, before), err
        assert url in err, err
        code, _, err = await shell.run(*command.split(), "--store", "evil.db", "--base-url", url)
        if "wired" not in command:  # an address in any other setting is refused whoever names it
            assert (code, stranger.questions) == (0, before + 1), err


DESK = '''
from aworld import Agent, ToolContext


class Factor:
    value = 23


def factor() -> Factor:
    return Factor()


def multiply(a: int, b: int, context: ToolContext[Factor]) -> int:
    """Multiply a number with ours."""
    return a * context.deps.value


desk = Agent("desk", tools=[multiply], deps_type=Factor)
'''


async def test_what_tools_work_with_is_named_and_made_again_for_a_fork(shell: Shell) -> None:
    (shell.folder / "my_desk.py").write_text(DESK)
    desk = ("--agent", "my_desk:desk")
    code, out, err = await shell.run("run", "17 * 23?", *desk)
    assert (code, out) == (2, "")
    assert "Agent 'desk' works with Factor (deps_type): give the run deps=" in err
    code, out, err = await shell.run("run", "17 * 23?", *desk, "--deps", "my_desk:factor", "--id", "one")
    assert (code, out) == (0, "The answer is 391.\n"), err
    code, out, err = await shell.run("fork", "one", "--at", "0", *desk)
    assert (code, out) == (0, "The answer is 391.\n"), err
