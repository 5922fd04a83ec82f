"""Files, a shell and Python in a sandbox, and what a run does with its sandbox."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from aworld.agents.llm_agent import Agent
from aworld.core.agent.swarm import Swarm
from aworld.core.context.base import Context, RunScope
from aworld.core.event import TaskInfo
from aworld.core.exceptions import ConfigError, ToolError
from aworld.core.sandbox import SandboxLimits
from aworld.core.task import TaskResponse
from aworld.core.tool.base import Tool, ToolContext
from aworld.core.tool.wrappers import approval_required
from aworld.models import FunctionModel, ScriptedModel
from aworld.models.doubles import call
from aworld.runner import Runners
from aworld.sandbox import SandboxPool, open_sandbox
from aworld.sandbox.local_sandbox import LocalSandbox
from aworld.tools.files import file_tools
from aworld.tools.human import ask
from aworld.tools.python import python_tool
from aworld.tools.sandboxed import sandbox_tools, shell_tool
from aworld.tools.tool_sandbox import LONGEST, LOST, shown
from tests.ready_tools.folder_sandbox import FolderSandbox, FolderSource
from tests.sandbox.places import SMALL, keeps_variables, needs_bubblewrap


def at(run: str = "run") -> ToolContext:
    return ToolContext(run, "agent", 0, "c", Context(run, TaskInfo(id=run), {}, lambda key, value: None))


class Hand:
    """Calls tools by name, as a model does."""

    def __init__(self, tools: list[Tool]) -> None:
        self.tools = {tool.name: tool for tool in tools}

    async def __call__(self, tool: str, /, run: str = "run", **arguments: Any) -> Any:
        return await self.tools[tool].invoke(json.dumps(arguments), at(run))


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[FolderSandbox]:
    made = FolderSandbox(tmp_path / "box")
    yield made
    await made.close()


@pytest.fixture
def hand(box: FolderSandbox) -> Hand:
    return Hand(sandbox_tools(box))


# Files


async def test_a_file_is_written_read_and_edited(hand: Hand) -> None:
    assert await hand("write_file", path="src/a.py", content="one\ntwo\nthree\n") == "Wrote 14 bytes to src/a.py."
    assert await hand("read_file", path="src/a.py") == "    1  one\n    2  two\n    3  three"
    assert await hand("read_file", path="src/a.py", start=2, end=2) == "    2  two\n[lines 2 to 2 of 3]"
    assert await hand("read_file", path="src/a.py", start=-1) == "    3  three\n[lines 3 to 3 of 3]"
    assert await hand("edit_file", path="src/a.py", old="two\nth", new="2\nTh") == "Edited src/a.py at line 2."
    assert await hand("read_file", path="src/a.py") == "    1  one\n    2  2\n    3  Three"
    assert await hand("list_files") == "src/"
    assert await hand("list_files", path="src") == "a.py  12"


async def test_an_edit_says_why_it_cannot_be(hand: Hand) -> None:
    await hand("write_file", path="a", content="x = 1\n  y = 2\nx = 1\n")
    for old, why in (
        ("x = 1", "not unique in a: it begins at lines 1, 3"),
        ("z", "is not in a. Read the file"),
        ("y = 2\n x", r"its first line is \(line 2\)"),
        ("", "`old` is empty"),
    ):
        with pytest.raises(ToolError, match=why):
            await hand("edit_file", path="a", old=old, new="!")
    with pytest.raises(ToolError, match="the same"):
        await hand("edit_file", path="a", old="y", new="y")
    with pytest.raises(ToolError, match="There is no b"):
        await hand("edit_file", path="b", old="y", new="z")
    await hand("write_file", path="a", content="aaa")
    with pytest.raises(ToolError, match="not unique"):  # places that overlap
        await hand("edit_file", path="a", old="aa", new="b")


async def test_lines_are_found_by_an_expression(hand: Hand) -> None:
    await hand("write_file", path="a.py", content="import os\nx = os.sep\n")
    await hand("write_file", path="deep/er/b.txt", content="os\n")
    assert await hand("search_files", pattern=r"\bos\b") == "a.py:1: import os\na.py:2: x = os.sep\ndeep/er/b.txt:1: os"
    assert await hand("search_files", pattern="^os$", path="deep") == "deep/er/b.txt:1: os"
    assert await hand("search_files", pattern="os", glob="*.txt") == "deep/er/b.txt:1: os"
    assert await hand("search_files", pattern="nowhere") == "No line matches, in 2 files."
    assert await hand("search_files", pattern="os", path="a.py") == "a.py:1: import os\na.py:2: x = os.sep"
    with pytest.raises(ToolError, match="no regular expression"):
        await hand("search_files", pattern="(")
    with pytest.raises(ToolError, match="There is no c"):
        await hand("search_files", pattern="x", path="c")


async def test_an_expression_that_never_ends_is_stopped(hand: Hand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aworld.tools.files.SEARCH_SECONDS", 0.3)
    await hand("write_file", path="a", content="a" * 50 + "!")
    with pytest.raises(ToolError, match="longer than"):
        await hand("search_files", pattern="(a+)+$")


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "out/secret", "out"])
async def test_paths_and_links_do_not_lead_out(box: FolderSandbox, hand: Hand, tmp_path: Path, path: str) -> None:
    (tmp_path / "secret").write_text("treasure")
    (box.folder / "out").symlink_to(tmp_path)
    if path == "out":
        (box.folder / "out").unlink()
        (box.folder / "out").symlink_to(tmp_path / "secret")
    with pytest.raises(ToolError, match="leads out"):
        await hand("read_file", path=path)
    with pytest.raises(ToolError, match="leads out"):
        await hand("write_file", path=path, content="gone")
    with pytest.raises(ToolError, match="leads out"):
        await hand("edit_file", path=path, old="treasure", new="gone")
    with pytest.raises(ToolError, match="leads out"):
        await hand("search_files", pattern="treasure", path=path)
    with pytest.raises(ToolError, match="leads out"):
        await hand("list_files", path=path)
    assert "treasure" not in await hand("search_files", pattern="treasure")
    assert (tmp_path / "secret").read_text() == "treasure"


async def test_what_is_no_text_or_too_much_is_not_shown(box: FolderSandbox, hand: Hand) -> None:
    (box.folder / "binary").write_bytes(bytes(range(256)))
    with pytest.raises(ToolError, match=r"no UTF-8 text \(256 bytes\)"):
        await hand("read_file", path="binary")
    assert await hand("search_files", pattern=".") == "No line matches, in 0 files."
    with (box.folder / "huge").open("wb") as file:
        file.truncate(10_000_000_000)
    with pytest.raises(ToolError, match="10,000,000,000 bytes"):
        await hand("read_file", path="huge")
    (box.folder / "long").write_text("x" * 1_000_000 + "\n" + "y\n" * 100_000)
    text = await hand("read_file", path="long")
    assert len(text) < LONGEST + 200
    assert text.endswith("[the rest of this line is cut]\n[lines 1 to 1 of 100001]")
    assert (await hand("read_file", path="long", start=2)).endswith("[lines 2 to 2001 of 100001]")
    hits = await hand("search_files", pattern="y", path="long")
    assert hits.count("\n") == 200
    assert hits.endswith("[more lines match than the 200 shown]")


# Shell


async def test_a_command_tells_its_output_and_exit_code(hand: Hand) -> None:
    assert await hand("shell", command="echo out; echo err >&2; exit 3") == (
        "out\n[standard error]\nerr\n[exit code 3]"
    )
    assert await hand("shell", command="true") == "[exit code 0]"
    assert await hand("shell", command="kill -9 $$") == "[killed by signal 9]\n[exit code -9]"
    assert "[killed after 0.1 s (limit: timeout)]" in await hand("shell", command="sleep 60", timeout=0.1)
    with pytest.raises(ToolError, match="between 0 and 600"):
        await hand("shell", command="true", timeout=10_000)


async def test_a_flood_of_output_is_cut_in_the_middle(hand: Hand) -> None:
    said = await hand("shell", command="echo first; seq 1 300000; echo last")
    assert len(said) < LONGEST + 200
    assert said.startswith("first\n")
    assert "characters cut]" in said
    assert "there was more output than is kept" in said
    assert await hand("shell", command=r"printf 'a\0b'") == "[3 bytes that are not text]\n[exit code 0]"
    assert await hand("shell", command=r"printf 'caf\351'") == "caf\\xe9\n[exit code 0]"


def test_the_beginning_and_the_end_of_a_long_text_are_shown() -> None:
    assert shown("a" * 10, 10) == "a" * 10
    assert shown("a" * 6 + "-" * 90 + "z" * 4, 9) == "aaaaaa\n[91 characters cut]\nzzz"


# Python


async def test_variables_stay_from_call_to_call(hand: Hand) -> None:
    assert await hand("python", code="import math\nx = 20\ndef twice(n): return 2 * n") == "[no output]"
    assert await hand("python", code="print('so')\ntwice(x) + 2") == "so\n42"
    assert await hand("python", code="_ / 2") == "21.0"
    assert await hand("python", code="import asyncio\nawait asyncio.sleep(0, 'slept')") == "'slept'"
    assert await hand("python", code="None") == "[no output]"
    assert await hand("python", code="x", run="run") == "20"


async def test_an_exception_is_a_traceback_and_loses_nothing(hand: Hand) -> None:
    await hand("python", code="def f(n):\n    return 1 / n")
    with pytest.raises(ToolError) as raised:
        await hand("python", code="x = 5\nprint('before')\nf(0)")
    assert str(raised.value).splitlines()[0] == "before"
    assert 'File "<cell 2>", line 3, in <module>' in str(raised.value)
    assert "    return 1 / n" in str(raised.value)
    assert str(raised.value).endswith("ZeroDivisionError: division by zero")
    assert "kernel" not in str(raised.value)
    for code, error in (("1 +", "SyntaxError"), ("exit(3)", "SystemExit: 3"), ("input()", "EOFError")):
        with pytest.raises(ToolError, match=error):
            await hand("python", code=code)
    assert await hand("python", code="x") == "5"


async def test_output_of_children_stands_where_it_was_written(hand: Hand) -> None:
    code = """
        import subprocess, sys
        print(1)
        subprocess.run(["sh", "-c", "echo 2; echo 3 >&2"])
        end = print(4, file=sys.stderr)
    """
    assert await hand("python", code=dedent(code)) == "1\n2\n3\n4"
    assert await hand("python", code="import os\nos.write(1, b'\\xff\\x00')\nNone") == "[output that is not text]"
    flood = await hand("python", code="for _ in range(200): print('x' * 9999)")
    assert flood.startswith("xxx")
    assert "1,980,000 more bytes of output were dropped" in flood
    assert await hand("python", code="import sys; sys.stdout.close()") == "[no output]"
    assert await hand("python", code="sys.stdout = None") == "[no output]"
    assert await hand("python", code="print('still here')") == "still here"


async def test_code_that_does_not_end_is_killed_and_the_model_is_told(box: FolderSandbox) -> None:
    hand = Hand([python_tool(box, timeout=1.5)])
    await hand("python", code="x = 1")
    with pytest.raises(ToolError, match=r"killed after 1.5 s \(limit: timeout\). Variables and imports are lost"):
        await hand("python", code="while True: pass")
    with pytest.raises(ToolError, match="NameError"):
        await hand("python", code="x")
    with pytest.raises(ToolError, match="Python ended, because of the code"):
        await hand("python", code="import os; os._exit(1)")
    assert await hand("python", code="1 + 1") == "2"


async def test_no_call_has_more_time_than_the_sandbox_allows(tmp_path: Path) -> None:
    box = FolderSandbox(tmp_path / "box", limits=SandboxLimits(wall_seconds=1))
    hand = Hand(sandbox_tools(box))
    await hand("python", code="x = 1")
    with pytest.raises(ToolError, match=r"killed after 1 s \(limit: wall_seconds of the sandbox\). Variables"):
        await hand("python", code="import time; time.sleep(60)")
    for timeout in (None, 500):
        said = await hand("shell", command="sleep 60", timeout=timeout)
        assert "[killed after 1 s (limit: wall_seconds of the sandbox)]" in said
    await hand("write_file", path="a", content="a" * 50 + "!")
    with pytest.raises(ToolError, match=r"longer than 1 s \(limit: wall_seconds"):
        await hand("search_files", pattern="(a+)+$")
    assert "[killed after 0.1 s (limit: timeout)]" in await hand("shell", command="sleep 60", timeout=0.1)
    await box.close()


async def test_an_answer_that_the_code_forges_does_no_harm(hand: Hand) -> None:
    for lie, again, why in ((r"b'[]\n'", False, "was no answer"), ("b'x' * 65536", True, "was too long")):
        forge = f"""
            import os
            go_on = True
            while go_on:
                go_on = {again}
                for number in range(3, 9):
                    try:
                        os.write(number, {lie})
                    except OSError:
                        pass
        """
        with pytest.raises(ToolError, match=f"Python ended .its answer {why}"):
            await hand("python", code=dedent(forge))
    assert await hand("python", code="'well'") == "'well'"


async def test_calls_of_one_turn_stand_in_line(hand: Hand) -> None:
    await hand("python", code="seen = []")
    await asyncio.gather(*(hand("python", code=f"seen.append({n})") for n in range(10)))
    assert await hand("python", code="seen == sorted(seen) and len(seen)") == "10"


async def test_a_cancelled_call_does_not_answer_the_next_one(hand: Hand) -> None:
    await hand("python", code="import time")
    running = asyncio.create_task(hand("python", code="open('begun', 'w').close()\ntime.sleep(60)\n'late'"))
    while "begun" not in await hand("list_files"):
        pass
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await hand("python", code="'next'") == "'next'"


# Runs


def working(*, sandbox: Any, name: str = "worker", tools: Any = ()) -> Agent:
    script = [call("python", code="open('mark', 'w').write('me')\nx = 1"), call("shell", command="cat mark"), "done"]
    return Agent(name, model=ScriptedModel(script), sandbox=sandbox, tools=tools)


@needs_bubblewrap
async def test_python_in_a_real_sandbox() -> None:
    async with await LocalSandbox.open(SMALL) as real:
        hand = Hand([python_tool(real, timeout=10)])
        assert await hand("python", code="x = 20") == "[no output]"
        assert await hand("python", code="import os\nopen('kept', 'w').close()\nx + 1, os.getcwd()") == "(21, '/work')"
        quick = Hand([python_tool(real, timeout=1)])
        with pytest.raises(ToolError, match="killed after 1 s"):
            await quick("python", code="import subprocess\nsubprocess.run(['sleep', '1000'])")
        assert await hand("python", code="x") == "20"  # it is another Python
        with pytest.raises(ToolError, match="MemoryError"):
            await hand("python", code="kept = [b'x' * (8 << 20) for _ in range(99)]")
        with pytest.raises(ToolError, match="Python ended"):
            await hand("python", code="os.kill(os.getpid(), 9)")
        with pytest.raises(ToolError, match="NameError"):
            await hand("python", code="x")
        assert await quick("python", code="import os\nos.listdir()") == "['kept']"


@pytest.mark.parametrize("kind", [pytest.param("local", marks=needs_bubblewrap), "none"])
async def test_a_model_is_told_which_limit_of_its_sandbox_was_reached(kind: str) -> None:
    await keeps_variables(kind, seconds=2)
    async with SandboxPool(lambda: open_sandbox(kind, replace(SMALL, cpu_seconds=0.5)), size=1) as box:
        hand = Hand([RunScope("run", TaskInfo("task")).own(shell_tool(box))])
        full = "dd if=/dev/zero of=big bs=1M count=99 status=none"
        assert "[killed (limit: disk_mb=16 of the sandbox)]\n[exit code -25]" in await hand("shell", command=full)
        assert "(limit: disk_mb=16 of the sandbox)" in await hand("shell", command=f"{full}; exit $?")
        assert "(limit: cpu_seconds=0.5 of the sandbox)" in await hand("shell", command="while :; do :; done")


async def test_each_run_has_a_sandbox_of_its_own_and_lets_it_go(tmp_path: Path) -> None:
    source = FolderSource(tmp_path)
    agent = working(sandbox=source)
    assert list(agent.toolkit.ready().by_name) == [  # pyright: ignore[reportOptionalMemberAccess]
        "python", "shell", "read_file", "write_file", "edit_file", "search_files", "list_files",
    ]  # fmt: skip
    responses = await asyncio.gather(*(Runners.run("x", agent, id=f"r{n}") for n in range(3)))
    for response in responses:
        assert response.success, response.msg
        assert response.trajectory[1]["observation"][0]["content"] == "me\n[exit code 0]"
    assert sorted(source.ended) == ["r0", "r1", "r2"]
    assert source.open == {}


async def test_a_team_shares_the_sandbox_of_its_run(tmp_path: Path) -> None:
    source = FolderSource(tmp_path)
    first = Agent("first", model=ScriptedModel([call("write_file", path="a", content="b"), "on"]), sandbox=source)
    second = Agent("second", model=ScriptedModel([call("read_file", path="a"), "done"]), sandbox=source)
    response = await Runners.run("x", swarm=Swarm(first, second), id="team")
    assert response.success, response.msg
    assert response.trajectory[2]["observation"][0]["content"] == "    1  b"
    assert source.ended == ["team"]


async def granted(name: str, arguments: dict[str, Any], at: ToolContext) -> bool:
    return True


async def test_tools_behind_wrappers_and_of_a_task_let_go_too(tmp_path: Path) -> None:
    source, other = FolderSource(tmp_path / "a"), FolderSource(tmp_path / "b")
    agent = Agent(
        "a",
        model=ScriptedModel([[call("shell", command="true"), call("read_file", path="x")], "done"]),
        tools=approval_required([shell_tool(source)], approve=granted),
    )
    response = await Runners.run("x", agent, id="wrapped", tools=file_tools(other))
    assert response.success, response.msg
    assert (source.ended, other.ended) == (["wrapped"], ["wrapped"])


async def test_a_run_that_is_cancelled_or_fails_lets_go(tmp_path: Path) -> None:
    source = FolderSource(tmp_path)
    begun = asyncio.Event()

    async def think(request: Any) -> Any:
        if request.turn == 0:
            return call("python", code="import os\nprint(os.getpid())")
        begun.set()
        await asyncio.Event().wait()
        return "never"

    agent = Agent("a", model=FunctionModel(think), sandbox=source)
    run = asyncio.create_task(Runners.run("x", agent, id="cancelled"))
    await asyncio.wait((run, asyncio.ensure_future(begun.wait())), return_when=asyncio.FIRST_COMPLETED)
    assert not run.done(), run.result()
    (process,) = source.open["cancelled"].processes
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert source.ended == ["cancelled"]
    with pytest.raises(ProcessLookupError):
        os.kill(process.process.pid, 0)


def waiting(source: Any) -> Agent:
    """Writes a file and sets a variable, asks a person, and looks for both."""
    script = ScriptedModel(
        [
            [call("write_file", path="plan.txt", content="fly"), call("python", code="x = 1; x")],
            call("ask", question="Go on?"),
            [call("python", code="x = 2; open('plan.txt').read()"), call("read_file", path="plan.txt")],
            call("read_file", path="plan.txt"),
            "done",
        ]
    )
    return Agent("worker", model=script, sandbox=source, tools=[ask])


def results(response: TaskResponse, step: int) -> list[str]:
    return [seen["content"] for seen in response.trajectory[step]["observation"]]


async def test_a_run_that_goes_on_in_its_process_has_its_sandbox(tmp_path: Path) -> None:
    source = FolderSource(tmp_path)
    agent = waiting(source)
    response = await Runners.run("x", agent)
    assert (response.status, source.ended) == ("waiting", [])
    await Runners.answer(response, "yes")
    done = await Runners.resume(response, agent)
    assert results(done, 2) == ["'fly'", "    1  fly"]
    assert source.ended == [response.id]


async def test_a_run_that_goes_on_elsewhere_or_a_fork_is_told_that_its_sandbox_is_lost(tmp_path: Path) -> None:
    response = await Runners.run("x", waiting(FolderSource(tmp_path / "one")))
    await Runners.answer(response, "yes")
    done = await Runners.resume(response, waiting(FolderSource(tmp_path / "two")))
    assert sum(LOST in result for result in results(done, 2)) == 1, "once"
    assert results(done, 3) == ["There is no plan.txt. list_files shows what there is."]
    assert done.success
    forked = await Runners.fork(done, waiting(FolderSource(tmp_path / "three")), at=3)
    assert results(forked, 3) == [LOST]


@needs_bubblewrap
async def test_files_of_a_waiting_run_are_kept_for_whoever_goes_on(tmp_path: Path) -> None:
    def pool() -> SandboxPool:
        return SandboxPool(lambda: open_sandbox("local", SMALL), size=1, keep=tmp_path / "kept")

    async with pool() as first:
        response = await Runners.run("x", waiting(first))
        assert response.status == "waiting"
        (kept,) = (tmp_path / "kept").iterdir()
        assert kept.stat().st_mode & 0o777 == 0o600
        another = first.for_run(RunScope("another run", TaskInfo("task")))
        await asyncio.wait_for(another.open(), 10)  # the place is free again
    await Runners.answer(response, "yes")
    async with pool() as second:
        done = await Runners.resume(response, waiting(second))
    python, read = results(done, 2)
    assert python == "[Python was started anew: variables and imports of earlier calls are lost]\n'fly'"
    assert read == "    1  fly"
    assert not list((tmp_path / "kept").iterdir())


async def test_a_sandbox_that_was_given_as_such_stays_open(box: FolderSandbox) -> None:
    agent = working(sandbox=box)
    assert (await Runners.run("x", agent)).success
    assert box.closed == 0
    assert len(box.processes) == 1
    assert box.processes[0].process.returncode is not None
    assert (await box.read("mark")) == b"me"


@pytest.mark.parametrize(
    ("given", "shown", "kind"),
    [("none", "'none'", "'none'"), (open_sandbox, "function", '"local"'), (3, "int", '"local"')],
)
def test_for_anything_else_it_says_how_a_sandbox_is_given(given: Any, shown: str, kind: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Agent("a", sandbox=given)
    assert str(raised.value) == (
        f"sandbox: {shown} is neither a source of sandboxes nor a sandbox. Give each run its own with "
        f"SandboxPool(lambda: open_sandbox({kind})), or one to all with await open_sandbox({kind})."
    )
