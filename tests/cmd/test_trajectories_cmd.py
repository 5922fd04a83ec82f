"""`aworld trajectories`, as a person and as a script use it."""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from aworld.cmd.main import main
from aworld.cmd.terminal import clean
from aworld.cmd.trajectories import moment
from aworld.cmd.trajectory_view import seconds, show, table
from aworld.cmd.wording import helps_to_go_on, why, worded
from aworld.core import event as ev
from aworld.core.exceptions import ConfigError, StoreError
from aworld.core.message import Image, Message, Text, ToolCall, Usage
from aworld.core.task import TaskResponse
from aworld.core.trajectory import Trajectory
from aworld.models.providers import without_name
from aworld.trajectory import Summary, open_store
from aworld.trajectory.memory import has_forks
from aworld.trajectory.store import already_there
from aworld.trajectory.summary import Tally
from tests.strategies import LogBuilder, fork_of, run_of

CALLS = (ToolCall("c1", "weather", '{"city": "Paris"}'), ToolCall("c2", "ask", json.dumps({"question": "why " * 30})))


def conversation() -> LogBuilder:
    """A run with all that `show` can show."""
    task = ev.TaskInfo("weather-1", "Weather", "session-1", None, "group-1")
    log = LogBuilder("weather-1", task).start()
    log.say(0, Message("user", (Text("\x1b[31mRed?"), Image("https://example.org/a.png"))), "human")
    log.decide(failed="529 Overloaded")
    log.decide(
        text="Let me look.", calls=CALLS, usage=Usage(1200, 40, cached_tokens=64, cost=0.01), reasoning="I think."
    )
    weather, ask = log.record.activations[0].calls
    child = log.activate("helper", 0, "c2")
    log.say(child, Message("user", "Why?"), "agent")
    log.decide(child, "Because.")
    log.add(ev.AgentFinished, activation=child, agent="helper", answer="Because.")
    log.answer(weather, "no such city", error="no such city")
    log.answer(ask, "Because. " * 300)
    log.add(ev.Rewarded, value=0.5, name="progress", step=1, source="judge")
    log.add(ev.Asked, id="q1", question="Is it fine?")
    log.add(ev.Answered, id="q1", answer="Yes.")
    log.decide(text="It is sunny.")
    log.finish(answer="It is sunny.")
    log.add(ev.Rewarded, value=1.0, name="correct", weight=2.0)
    return log


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a store where the command line looks for it."""

    async def fill(path: Path) -> None:
        store = open_store(str(path))
        for n in range(30):
            status: Any = "failed" if n % 10 == 3 else "finished"
            await store.append(f"run-{n:02}", run_of(f"run-{n:02}", score=n / 30, status=status, at=1e9 + n))
        log = conversation().events
        await store.append("weather-1", log)
        await store.append("weather-2", fork_of(log, "weather-2", 9, of="weather-1"))
        await store.close()

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AWORLD_STORE", raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    path = tmp_path / ".aworld" / "trajectories.db"
    asyncio.run(fill(path))
    return path


def aworld(*arguments: str) -> int:
    return main(["trajectories", *arguments])


def test_list_is_a_page_of_a_table(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert aworld("list", "--limit", "3") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [*COLUMNS, "started", "agent", "answer"]
    assert [line for line in lines if line.endswith(" ")] == []  # a pipe gets no padding
    assert lines[1].startswith("weather-2  ✓ finished")
    assert "It is sunny." in lines[2]
    assert lines[-1] == "1–3 of 32 · next page: --offset 3"
    assert aworld("list", "--offset", "30") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "31–32 of 32"


def test_list_with_filters(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert aworld("list", "--status", "failed", "--max-score", "0.5", "--order", "best", "--json") == 0
    assert ids(capsys) == ["run-13", "run-03"]
    assert aworld("list", "--group", "group-1", "--agent", "lead", "--json") == 0
    summary = json.loads(capsys.readouterr().out)  # one object a line
    assert (summary["score"], summary["status"], summary["task_name"]) == (2.5, "finished", "Weather")
    assert aworld("list", "--since", "2200-01-01") == 0
    assert "0 match" in capsys.readouterr().out


EPISODE = ev.TaskInfo("episode", None, None, "ann", None, {"problem": "7", "run": "nightly"})


@pytest.fixture
def labelled(store: Path) -> Path:
    """The same store with two episodes."""

    async def fill() -> None:
        opened = open_store(str(store))
        for n, cost in enumerate((0.5, 2.0)):
            log = LogBuilder(f"episode-{n}", EPISODE).start()
            log.decide(usage=Usage(10, 1, cost=cost))
            await opened.append(f"episode-{n}", log.finish().events)
        await opened.close()

    asyncio.run(fill())
    return store


def ids(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()]


def test_labels_and_other_columns_are_filters_and_orders(labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert aworld("list", "--label", "problem=7", "--label", "run=nightly", "--sort=-cost", "--json") == 0
    assert ids(capsys) == ["episode-1", "episode-0"]
    assert aworld("list", "--user", "ann", "--model", "model-1", "--sort", "cost", "--limit", "1", "--json") == 0
    assert ids(capsys) == ["episode-0"]
    assert aworld("list", "--user", "ann", "--sort", "cost", "--after", "episode-0", "--json") == 0
    assert ids(capsys) == ["episode-1"]
    assert aworld("list", "--environment", "shop") == aworld("list", "--agent-version", "3f2a") == 0
    assert capsys.readouterr().out.count("No runs: 0 match") == 2
    assert aworld("list", "--sort", "cots") == 2
    assert "did you mean 'cost'" in capsys.readouterr().err
    assert aworld("export", "--label", "problem=8", "--user", "ann") == 1
    assert "no run matches --user ann --label problem=8" in capsys.readouterr().err


def test_the_list_shows_labels_and_what_it_is_sorted_by(
    labelled: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert aworld("list", "--user", "ann", "--sort=-cost") == 0
    header, first, *_ = capsys.readouterr().out.splitlines()
    assert header.split()[:4] == ["run", "status", "score", "cost"]
    assert "$2.0000" in first
    assert "problem=7" not in first  # a pipe gets what is short
    with monkeypatch.context() as terminal:
        terminal.setattr("aworld.cmd.terminal.console", lambda: Console(force_terminal=True, width=200))
        assert aworld("list", "--user", "ann") == 0
    assert "problem=7 run=nightly" in capsys.readouterr().out.splitlines()[1]
    assert aworld("show", "episode-1") == 0
    out = capsys.readouterr().out
    assert "labels      problem=7 run=nightly" in out
    assert "user        ann" in out


def test_facets_count_what_matches(labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert aworld("list", "--facets", "status,labels.problem") == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == ["status          finished 31 · failed 3", "labels.problem  7 2"]
    assert aworld("list", "--facets", "status", "--label", "problem=7", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"status": [{"value": "finished", "count": 2, "more": False}]}
    assert aworld("list", "--facets", "statu") == 2
    assert "did you mean 'status'" in capsys.readouterr().err


def test_show_tells_everything_in_eighty_columns_without_colour(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert aworld("show", "weather-1") == 0
    out = capsys.readouterr().out
    assert all(len(line) <= 80 for line in out.splitlines())
    for piece in (
        "weather-1", "✓ finished  ★ 2.5", "4 steps", "1,200 tokens in, 40 out", "$0.0100", "group-1", "session-1",
        "system  Be brief.", "user    Why?", "�[31mRed?", "[picture https://example.org/a.png]", "✗ 529 Overloaded",
        "● 1  lead  model-1 · 0.2 s · first token 0.1 s · 1,200 → 40 tokens", "64 cached", "I think.", "Let me look.",
        '→ weather  {"city": "Paris"}', "✗ no such city  50 ms", "→ ask", '"question": "why why', "← Because. Because.",
        "--full shows", "★ 0.5  progress  (judge)", "  ● 2  helper", "    Because.", "? asked  Is it fine?", "Yes.",
        "It is sunny.", "★ 1  correct × 2",
    ):  # fmt: skip
        assert piece in out, piece
    assert "\x1b" not in out


def test_show_full_cuts_nothing(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert aworld("show", "weather-1", "--full") == 0
    out = capsys.readouterr().out
    assert "--full" not in out
    assert out.count("Because.") > 300


def test_show_takes_the_beginning_of_an_id_and_last(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert aworld("show", "run-00") == aworld("show", "run-00", "--json") == 0
    capsys.readouterr()
    assert aworld("show", "last") == 0
    out = capsys.readouterr().out
    assert "weather-2" in out
    assert "forked from weather-1" in out
    assert aworld("show", "weather-1", "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["meta"]["step"] for row in rows] == [0, 1, 2, 3]
    assert aworld("show", "weather") == 2
    assert "aworld: 'weather' may be weather-2, weather-1; give more of the id" in capsys.readouterr().err


def test_show_has_colour_where_there_is_a_terminal() -> None:
    log = conversation()
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, color_system="standard", highlight=False)
    show(console, log.record, Tally.of("weather-1", log.events).summary())
    assert "\x1b[31m" in out.getvalue()  # the tool's error is red, and the message's own escape is gone
    assert "\x1b[31mRed" not in out.getvalue()


def test_a_run_in_the_middle_can_be_shown(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = conversation().events
    for length in range(1, len(log)):
        console = Console(file=io.StringIO(), width=80)
        builder = LogBuilder("weather-1")
        for event in log[:length]:
            builder.record.apply(event)
        show(console, builder.record, Tally.of("weather-1", log[:length]).summary())


COLUMNS = ["run", "status", "score", "steps", "tokens", "time"]
RUN = Summary(
    id="x" * 50, task_id="t", agent="lead", group_id="g", status="limit_reached", started_at=1e9, answer="so " * 30
)


def listed(width: int | None, *, id: str = RUN.id) -> list[str]:
    """The lines of a list with one run."""
    out = io.StringIO()
    shown = table([msgspec.structs.replace(RUN, id=id)], width, 1e9 + 7300)
    Console(file=out, width=width or 80).print(shown, crop=False)
    return out.getvalue().splitlines()


def test_wide_terminals_show_more_columns() -> None:
    header, row = listed(160)
    assert header.split() == [*COLUMNS, "started", "agent", "group", "answer"]
    assert "2 h ago" in row
    assert listed(80, id="short")[0].split() == [*COLUMNS, "answer"]


@pytest.mark.parametrize("width", [20, 60, 80, 100, 120, 160])
def test_a_terminal_shows_what_fits(width: int) -> None:
    header, row = listed(width)
    assert row.startswith("…xxxxxxxxxx  ■ limit_reached")
    assert len(row.rstrip()) <= max(width, 35)
    assert ("answer" in header) == (width >= 60)
    assert row.rstrip().endswith("…" if width >= 60 else "–")
    assert ("agent" in header) == (width >= 100)


def test_a_pipe_gets_whole_ids_and_answers() -> None:
    _, row = listed(None)
    assert row.startswith(f"{RUN.id}  ■ limit_reached")
    assert row.rstrip().endswith("so")


def test_ids_are_short_where_that_tells_them_apart() -> None:
    def names(*ids: str) -> list[str]:
        out = io.StringIO()
        Console(file=out, width=80).print(table([msgspec.structs.replace(RUN, id=id) for id in ids], 80, 1e9))
        return [line.split()[0] for line in out.getvalue().splitlines()[1:]]

    assert names("3f2a" * 8, "a-name", "nightly.84-37.5243eb3d.1") == ["3f2a3f2a", "a-name", "…5243eb3d.1"]
    assert names("first.8-7.5243eb3d.1", "second.8-7.5243eb3d.1") == ["…rst.8-7.5243eb3d.1", "…ond.8-7.5243eb3d.1"]
    alike = [f"{n:032x}" for n in (1, 2)]
    assert names(*alike) == alike


def test_export_to_a_file_and_to_standard_output(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    assert aworld("export", "--format", "openai", "-o", str(out), "--min-score", "0.9", "--status", "finished") == 0
    assert "5 samples in" in capsys.readouterr().err
    assert len(out.read_text().splitlines()) == 5
    assert aworld("export", "weather-1", "run-07", "--format", "atif", "-o", str(out), "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"samples": 2, "format": "atif", "output": str(out)}


def test_an_export_of_nothing_says_why(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for format in ("parquet", "openenv"):
        assert aworld("export", "--format", format, "-o", str(tmp_path / f"out.{format}")) == 1
        assert "captured with token ids, which parquet and openenv need" in capsys.readouterr().err
    out = tmp_path / "out.jsonl"
    out.write_text("of an earlier export")
    filters = ("--status", "timeout", "--status", "waiting", "--min-score", "0.5", "--since", "2200-01-02")
    for options in (("-o", str(out)), ("--json", "-o", str(out)), ()):
        assert aworld("export", "weather-1", *filters, *options) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith(
            "aworld: no run matches weather-1 --status timeout --status waiting --min-score 0.5 "
            "--since 2200-01-02T00:00:00 in sqlite:"
        )
    assert out.read_text() == "of an earlier export"


def test_errors_speak_of_options() -> None:
    running = argparse.Namespace(id="r1", model=None, agent=None)
    assert worded(already_there("r1", "memory:"), running).endswith("continue it: aworld resume r1")
    assert worded(has_forks("a", "memory:", ["b"])) == (
        "store=memory: | 'a' shares its beginning with b; delete those too with --forks"
    )
    nameless = without_name()
    assert worded(nameless, running) == "No model name: give --model, or set LLM_MODEL_NAME"
    assert worded(nameless, argparse.Namespace()) == (
        "No model name: set LLM_MODEL_NAME, or llm_model_name in the settings of the agent"
    )
    assert worded(ConfigError("told as it is", setting="store", remedy="it is")) == "told as it is"


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        ("timeout", "timeout=5 s passed; raise TaskConfig()", "--timeout 5 s passed; give a longer --timeout."),
        ("limit_reached", "max_tokens=30 reached: 36 tokens used.", "--max-tokens 30 reached: 36 tokens used."),
        ("limit_reached", "max_cost is set, but a=1 is not", "--max-cost is set, but a=1 is not"),
        (
            "limit_reached",
            "max_steps=1 reached; fork the run",
            "--max-steps 1 reached; go on with: aworld fork r1 --max-steps MORE",
        ),
        ("failed", "max_steps=1 reached", "max_steps=1 reached"),
        ("interrupted", "stop one, then Runners.resume('r1')", "stop one, then aworld resume r1"),
    ],
)  # fmt: skip
def test_the_end_of_a_run_speaks_of_options(status: Any, error: str, words: str) -> None:
    task = ev.TaskInfo("r1", "r1", "s")
    record = Trajectory.of("r1", LogBuilder("r1", task).start().events)
    assert why(TaskResponse(record, status, error=error)) == words


def test_going_on_is_offered_only_where_it_helps() -> None:
    assert helps_to_go_on(StoreError("the disk is full"), done=1)
    assert helps_to_go_on(KeyboardInterrupt(), done=0)
    assert helps_to_go_on(asyncio.CancelledError(), done=0)
    assert not helps_to_go_on(StoreError("the disk is full"), done=0)
    assert not helps_to_go_on(ConfigError("another learning rate"), done=3)


def test_delete(store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert aworld("delete", "run-00", "run-01", "--yes", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"deleted": 2}
    assert aworld("delete", "weather-1", "--yes") == 1
    assert "shares its beginning with weather-2" in capsys.readouterr().err
    assert aworld("delete", "weather-1", "--yes", "--forks") == 0
    assert capsys.readouterr().out == "2 deleted\n"
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert aworld("delete", "run-02") == 2
    assert "give --yes" in capsys.readouterr().err


@pytest.mark.parametrize(("reply", "code", "left"), [("y\n", 0, 31), ("\n", 1, 32)])
def test_delete_asks(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, reply: str, code: int, left: int
) -> None:
    terminal = io.StringIO(reply)
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stdin", terminal)
    assert aworld("delete", "run-02") == code
    assert "Delete run-02? [y/N]" in capsys.readouterr().out
    assert aworld("list", "--limit", "100", "--json") == 0
    assert len(ids(capsys)) == left


def test_errors_go_to_standard_error(tmp_path: Path, capsys: pytest.CaptureFixture[str], store: Path) -> None:
    assert aworld("show", "weathre-1") == 2
    assert "did you mean 'weather-1'" in capsys.readouterr().err
    assert aworld("list", "--store", str(tmp_path / "none.db")) == 2
    assert capsys.readouterr().err.startswith("aworld: no store at")
    assert not (tmp_path / "none.db").exists()
    assert aworld("list", "--store", "postgresql://me:s3cret@host/db") == 2
    captured = capsys.readouterr()
    assert "comes in a later version" in captured.err
    assert "s3cret" not in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["list", "--status", "lost"],
        ["list", "--since", "soon"],
        ["list", "--limit", "-1"],
        ["show"],
        [],
        ["list", "--label", "seven"],
    ],
)
def test_wrong_use_is_told_with_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        aworld(*arguments)
    assert ending.value.code == 2
    usage, told = capsys.readouterr().err.split("\naworld: ")
    assert usage.startswith("usage: aworld trajectories")
    assert len(told.splitlines()) == 1


def test_the_store_may_stand_in_the_environment(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert aworld("list") == 2
    monkeypatch.setenv("AWORLD_STORE", f"sqlite:///{store}")
    assert aworld("list", "--json") == 0


def test_a_reader_that_has_seen_enough(store: Path) -> None:
    code = "import sys; from aworld.cmd.main import main; sys.exit(main())"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, "trajectories", "export", "--store", str(store), "--format", "rows"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(20) == 0


def test_the_command_line_starts_without_what_it_does_not_need() -> None:
    unneeded = ("rich", "sqlite3", "pyarrow", "aiohttp")
    code = f"import sys, aworld.cmd.trajectories; print([name for name in {unneeded} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_times() -> None:
    assert moment("1970-01-02T00:00+00:00") == 86400
    assert moment("2d") == pytest.approx(moment("48h"), abs=1)
    with pytest.raises(argparse.ArgumentTypeError):
        moment("soon")
    assert [seconds(s) for s in (0, 0.0123, 1.26, 61.4, 200, 7300)] == [
        "0 ms",
        "12 ms",
        "1.3 s",
        "61.4 s",
        "3 min 20 s",
        "2 h 1 min",
    ]


def test_nothing_that_drives_a_terminal_gets_through() -> None:
    assert clean("a\x1b]0;title\x07b\r\nc\td\u202e") == "a�]0;title�b\nc\td�"
