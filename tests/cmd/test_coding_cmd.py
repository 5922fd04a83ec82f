"""A coding agent from the command line: a copy in a sandbox, consent at a terminal, Ctrl-C, `aworld diff`, `apply`."""

from __future__ import annotations

import asyncio
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from aworld.core.model import ModelRequest
from aworld.models import FunctionModel
from aworld.models.doubles import Said, call
from aworld.server import ModelServer
from aworld.trajectory import Query, open_store
from tests.sandbox.places import needs_bubblewrap

pytestmark = needs_bubblewrap

COMMANDS = ["sed -i 's/a - b/a + b/' calc.py", "python3 test_calc.py && echo green", "sleep 50"]


class Coder(ModelServer):
    """A model that mends the program, runs its test, and says so; it takes its commands out of the question."""

    def __init__(self) -> None:
        self.hold: asyncio.Event | None = None
        """Until it is set, the last answer is kept back; `held` says that it is asked for."""
        self.held = asyncio.Event()
        super().__init__(FunctionModel(self._think))

    async def _think(self, request: ModelRequest) -> Said:
        question = next(message.text for message in request.messages if message.role == "user")
        commands = COMMANDS if question == "fix and sleep" else COMMANDS[:2]
        if request.turn < len(commands):
            return call("shell", command=commands[request.turn])
        if self.hold is not None:
            self.held.set()
            await self.hold.wait()
        return f"Mended: {request.messages[-1].text}"


@pytest.fixture
async def server() -> AsyncIterator[Coder]:
    async with Coder() as served:
        yield served


class Terminal:
    """`aworld words...` at a terminal of its own, in a folder with a program that is wrong."""

    def __init__(self, folder: Path, server: Coder) -> None:
        self.folder = folder
        (folder / "calc.py").write_text("def add(a, b):\n    return a - b\n")
        (folder / "test_calc.py").write_text("from calc import add\n\nassert add(1, 2) == 3\n")
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("LLM_", "OPENAI_", "AWORLD_"))}
        settings = {"LLM_MODEL_NAME": "m", "LLM_API_KEY": "k", "LLM_BASE_URL": server.base_url}
        self.environment = {**clean, **settings, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm"}
        self.text, self.data = "", b""

    def start(self, *words: str) -> None:
        self.ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "aworld", *words], cwd=self.folder, env=self.environment,
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self.text, self.data = "", b""

    async def see(self, words: str, count: int = 1) -> None:
        """Wait until the terminal shows something so many times."""
        await asyncio.to_thread(self._read, lambda: self.text.count(words) >= count, words)

    async def end(self) -> int:
        await asyncio.to_thread(self._read, lambda: False, "its end")
        os.close(self.ours)
        return self.process.wait(30)

    def _read(self, enough: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 60
        while not enough():
            if not select.select([self.ours], [], [], max(deadline - time.monotonic(), 0))[0]:
                self.process.kill()
                self.process.wait(10)
                raise TimeoutError(f"no {what!r} in {self.text!r}")
            try:
                piece = os.read(self.ours, 65536)
            except OSError:  # how a terminal says that its last writer has gone
                if what == "its end":
                    return
                raise AssertionError(f"ended without {what!r}: {self.text!r}") from None
            self.data += piece  # which may end within a character
            self.text = self.data.decode(errors="replace")

    def type(self, line: str) -> None:
        os.write(self.ours, f"{line}\n".encode())

    async def piped(self, *words: str) -> tuple[int, str, str]:
        """The same through pipes."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "aworld", *words, cwd=self.folder, env=self.environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()


@pytest.fixture
def terminal(tmp_path: Path, server: Coder) -> Terminal:
    return Terminal(tmp_path, server)


async def test_at_a_terminal_it_asks_and_goes_on(terminal: Terminal) -> None:
    terminal.start("run", "--sandbox", "local", "--approve", "shell", "fix the test", "--id", "one")
    await terminal.see("[y/n/always")
    assert "May assistant call shell?" in terminal.text
    terminal.type("y")
    await terminal.see("[y/n/always", 2)
    terminal.type("y")
    assert await terminal.end() == 0
    assert "Mended: green" in terminal.text
    assert "aworld diff one" in terminal.text
    assert "a - b" in (terminal.folder / "calc.py").read_text()  # until it is brought back

    code, out, err = await terminal.piped("diff", "one")
    assert (code, err) == (0, "")
    assert out.startswith("diff --git a/calc.py b/calc.py\n")
    assert "\n-    return a - b\n+    return a + b\n" in out
    terminal.start("diff", "one")
    assert await terminal.end() == 0
    assert "\x1b[32m+    return a + b" in terminal.text
    code, out, _ = await terminal.piped("apply", "one")
    assert (code, out.startswith("1 file written")) == (0, True)
    assert "a + b" in (terminal.folder / "calc.py").read_text()
    assert (await terminal.piped("apply", "one"))[:2] == (0, "Nothing to do: the files are as run one left them.\n")


async def test_always_holds_for_the_rest_of_the_run_and_a_refusal_is_told(terminal: Terminal) -> None:
    terminal.start("run", "--sandbox", "local", "--approve", "shell", "fix the test", "--id", "one")
    await terminal.see("[y/n/always")
    terminal.type("always")
    assert await terminal.end() == 0
    assert terminal.text.count("[y/n/always") == 1
    assert "Mended: green" in terminal.text
    terminal.start("run", "--sandbox", "local", "--approve", "shell", "fix the test", "--id", "two")
    await terminal.see("[y/n/always")
    terminal.type("not this file")
    await terminal.see("[y/n/always", 2)
    assert 'A person refused this call, saying: "not this file".' in terminal.text
    os.write(terminal.ours, b"\x04")  # Ctrl-D: whoever asks waits
    assert await terminal.end() == 3
    assert "aworld answer two" in terminal.text


PAYER = """
from aworld.agents.llm_agent import Agent
from aworld.core.tool.wrappers import approval_required
from aworld.models.doubles import ScriptedModel, call
from aworld.tools.human import ask


def pay(amount: int) -> str:
    return f"paid {amount}"


script = [[call("pay", amount=1), call("pay", amount=2), call("ask", question="Whom?")], "Done."]
agent = Agent("payer", model=ScriptedModel(script), tools=[ask, *approval_required([pay])])
"""


async def test_several_questions_of_one_turn_are_asked_one_after_the_other(terminal: Terminal) -> None:
    (terminal.folder / "paying.py").write_text(PAYER)
    terminal.start("run", "pay", "--agent", "paying:agent")
    await terminal.see("[y/n/always")
    terminal.type("always")  # also for the second call of that turn
    await terminal.see("> ")
    terminal.type("")  # no answer
    await terminal.see("> ", 2)
    terminal.type("Bob")
    assert await terminal.end() == 0
    assert terminal.text.count("[y/n/always") == 1
    for line in ("← paid 1", "← paid 2", "← Bob", "Done."):
        assert line in terminal.text


FORGER = """
import time

from aworld import Agent
from aworld.core.tool.wrappers import approval_required
from aworld.models.doubles import ScriptedModel, call


def pay(**more: int) -> str:
    return "paid"


def wait() -> str:
    time.sleep(0.5)
    return "waited"


names = {"a: 1\\n[y/n/always, or why not] y\\nMay payer call read?\\n  path": 1, "pad": " " * 9000, "\u200eb": 2}
agent = Agent("payer", model=ScriptedModel([call("wait"), call("pay", **names), "Done."]),
    tools=[wait, *approval_required([pay])])
"""


async def test_what_a_person_sees_is_what_is_asked(terminal: Terminal) -> None:
    (terminal.folder / "paying.py").write_text(FORGER)
    terminal.start("run", "pay", "--agent", "paying:agent")
    await terminal.see("→ wait")
    terminal.type("y")  # before there is a question
    await terminal.see("[y/n/always, or why not] ", 3)
    question = terminal.text.partition("May payer call pay?")[2].split("\r\n")
    assert question[1].startswith('  "a: 1\\n[y/n/always')
    assert "May payer call pay? That was 9," in question[-2]
    assert question[-1] == "[y/n/always, or why not] "
    assert "\u200e" not in terminal.text
    terminal.type("no")
    assert await terminal.end() == 0
    assert "refused this call" in terminal.text


async def test_a_record_of_a_stranger_names_no_folder_to_write_into(terminal: Terminal, tmp_path: Path) -> None:
    assert (await terminal.piped("run", "--sandbox", "local", "fix the test", "--id", "one"))[0] == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    store = f"{tmp_path}/.aworld/trajectories.db"
    terminal.folder = elsewhere
    code, _, err = await terminal.piped("apply", "one", "--store", store)
    assert (code, "which is not in the working folder; nothing was written. See" in err) == (2, True), err
    assert f"--to {tmp_path}" in err
    assert "a - b" in (tmp_path / "calc.py").read_text()
    assert (await terminal.piped("apply", "one", "--store", store, "--to", str(tmp_path)))[0] == 0
    assert "a + b" in (tmp_path / "calc.py").read_text()


async def test_without_a_terminal_it_waits_and_goes_on_elsewhere_with_its_files(terminal: Terminal) -> None:
    words = ("--sandbox", "local", "--approve", "shell")
    code, _, err = await terminal.piped("run", *words, "fix the test", "--id", "one")
    assert (code, "it asks: May assistant call shell?" in err) == (3, True)
    code, out, err = await terminal.piped("answer", "one", "always", *words)
    assert (code, out) == (0, "Mended: green\n[exit code 0]\n")
    assert "→ shell(" in err
    assert "← green" in err


async def test_ctrl_c_leaves_a_run_that_goes_on(terminal: Terminal) -> None:
    terminal.start("run", "--sandbox", "local", "fix and sleep", "--id", "one")
    await terminal.see("sleep 50")
    began = time.monotonic()
    os.killpg(terminal.process.pid, signal.SIGINT)
    assert await terminal.end() == 130
    assert time.monotonic() - began < 10
    assert "go on with: aworld resume one --sandbox local" in terminal.text
    store = open_store(f"sqlite:///{terminal.folder}/.aworld/trajectories.db")
    [summary] = await store.query(Query())
    await store.close()
    assert summary.status == "waiting"
    code, out, err = await terminal.piped("resume", "one", "--sandbox", "local")
    assert (code, "Mended: The call was interrupted" in out) == (0, True)
    assert "sed -i" not in err  # what was shown is not shown again
    assert "a + b" in (await terminal.piped("diff", "one"))[1]


async def test_a_killed_run_goes_on_with_its_files(terminal: Terminal) -> None:
    terminal.start("run", "--sandbox", "local", "fix and sleep", "--id", "one")
    await terminal.see("sleep 50")
    terminal.process.kill()
    await terminal.end()
    code, out, _ = await terminal.piped("resume", "one", "--sandbox", "local")
    assert (code, "Mended: The call was interrupted" in out) == (0, True)
    assert "a + b" in (await terminal.piped("diff", "one"))[1]


async def test_ctrl_c_while_the_model_is_asked_loses_nothing(terminal: Terminal, server: Coder) -> None:
    server.hold = asyncio.Event()
    terminal.start("run", "--sandbox", "local", "fix the test", "--id", "one")
    await terminal.see("green")
    await server.held.wait()
    os.killpg(terminal.process.pid, signal.SIGINT)
    assert await terminal.end() == 130
    server.hold.set()
    (terminal.folder / "elsewhere").mkdir()
    code, _, err = await terminal.piped("resume", "one", "--sandbox", "local:elsewhere")
    assert (code, f"give --sandbox local:{terminal.folder}" in err) == (2, True)
    code, out, err = await terminal.piped("resume", "one", "--sandbox", "local")
    assert (code, out) == (0, "Mended: green\n[exit code 0]\n")
    assert "a + b" in (await terminal.piped("diff", "one"))[1]


async def test_apply_refuses_what_was_changed_meanwhile(terminal: Terminal) -> None:
    assert (await terminal.piped("run", "--sandbox", "local", "fix the test", "--id", "one"))[0] == 0
    (terminal.folder / "calc.py").write_text("def add(a, b):\n    return b - a\n")
    code, out, err = await terminal.piped("apply", "one")
    assert (code, out) == (1, "")
    assert "-    return a - b\n+    return b - a" in err
    assert "nothing was written" in err
    assert "b - a" in (terminal.folder / "calc.py").read_text()
    (terminal.folder / "elsewhere").mkdir()
    (terminal.folder / "elsewhere/calc.py").write_text("def add(a, b):\n    return a - b\n")
    assert (await terminal.piped("apply", "one", "--to", "elsewhere"))[0] == 0
    assert "a + b" in (terminal.folder / "elsewhere/calc.py").read_text()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("run", "a", "--sandbox", "local:nowhere"), "there is no such folder"),
        (("run", "a", "--sandbox", "e2b"), "--sandbox e2b: give local, or local:FOLDER"),
        (("run", "a", "--sandbox", "local", "--approve", "shel"), "there is no tool 'shel'; did you mean 'shell'?"),
        (("run", "a", "--approve", "shell"), "there is no tool 'shell'"),
        (("diff", "one"), "no store"),
    ],
)
async def test_bad_words_are_refused_before_anything_begins(
    terminal: Terminal, words: tuple[str, ...], text: str
) -> None:
    code, _, err = await terminal.piped(*words)
    assert (code, text in err) == (2, True), err


async def test_the_example_is_asked_for_consent_and_brought_back(terminal: Terminal) -> None:
    example = Path(__file__).parents[2] / "examples" / "coding_agent.py"
    assert len(example.read_text().splitlines()) <= 26
    (terminal.folder / "calc.py").unlink()
    terminal.environment["PYTHONPATH"] += f"{os.pathsep}{example.parent}"
    del terminal.environment["LLM_MODEL_NAME"]
    terminal.start("run", "--agent", "coding_agent:coder", "Write add(a, b), with a test.", "--id", "one")
    await terminal.see("[y/n/always")
    terminal.type("always")
    assert await terminal.end() == 0
    assert "← [standard error] Traceback" in terminal.text  # the first try was wrong
    assert (await terminal.piped("apply", "one"))[0] == 0
    assert (terminal.folder / "calc.py").read_text() == "def add(a, b):\n    return a + b\n"


async def test_a_chat_asks_too(terminal: Terminal) -> None:
    terminal.start("chat", "--sandbox", "local", "--approve", "shell")
    await terminal.see("› ")
    terminal.type("fix the test")
    await terminal.see("[y/n/always")
    terminal.type("always")
    await terminal.see("Mended: green")
    await terminal.see("› ", 2)
    os.write(terminal.ours, b"\x04")
    assert await terminal.end() == 0
    assert terminal.text.count("[y/n/always") == 1
    assert "a + b" in (await terminal.piped("diff", "last"))[1]
