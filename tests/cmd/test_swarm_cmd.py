"""`aworld swarm show`, and `aworld run | resume | fork` of a team: from a file, and by module and name."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from aworld.agents.llm_agent import Agent
from aworld.agents.patterns import function_agent
from aworld.cmd.main import main
from aworld.core.agent.swarm import Loop, Swarm, TeamSwarm
from aworld.models import FunctionModel, ScriptedModel
from aworld.models.doubles import call

TEAM = """\
version: 1
agents:
  shout: {function: "tests.swarms.rules:shout", desc: Loud.}
  count: {function: "builtins:len"}
swarms:
  loud: {workflow: [shout, count]}
"""

writer = Agent("writer", model=FunctionModel(lambda request: "a draft"), desc="Writes.")
chief = Agent("chief", model=ScriptedModel([call("writer", input="write"), "done"]))
team = TeamSwarm(chief, writer, name="desk")
upper = Swarm(function_agent(str.upper, "up"), function_agent(str.title, "title"), name="upper")
rounds = Loop(upper, until=lambda state, output: True)
HERE = "tests.cmd.test_swarm_cmd"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a team in a file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AWORLD_STORE", raising=False)
    (tmp_path / "team.yaml").write_text(TEAM)
    return tmp_path


def test_show_draws_a_file_and_an_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["swarm", "show", "team.yaml"]) == 0
    assert capsys.readouterr().out == "loud (workflow)\n├── shout - Loud.\n└── count  after shout\n"
    assert main(["swarm", "show", f"{HERE}:rounds"]) == 0
    assert "└── upper (workflow)" in capsys.readouterr().out
    assert main(["swarm", "show", f"{HERE}:team", "--mermaid"]) == 0
    assert capsys.readouterr().out.startswith('flowchart TD\n    subgraph n["desk (team)"]\n')
    assert main(["swarm", "show", f"{HERE}:writer"]) == 0
    assert capsys.readouterr().out == "writer - Writes.\n"


def test_a_file_finds_the_code_beside_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = folder / "teams"
    place.mkdir()
    (place / "beside_team.py").write_text("def shout(text):\n    return text.upper()\n")
    (place / "team.yaml").write_text('version: 1\nagents:\n  shout: {function: "beside_team:shout"}\n')
    path = list(sys.path)
    assert main(["swarm", "show", "teams/team.yaml"]) == 0
    assert main(["run", "teams/team.yaml", "go"]) == 0
    assert "GO" in capsys.readouterr().out
    assert str(place) not in sys.path
    del sys.modules["beside_team"]
    sys.path[:] = path


def test_a_file_answers_a_question(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "team.yaml", "how many?"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "9\n"
    assert "[shout] HOW MANY?" in captured.err
    assert main(["run", "--agent", "team.yaml", "a", "bb", "--json"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(answer["answer"] for answer in answers) == [1, 2]


def test_an_object_is_run_forked_and_resumed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--agent", f"{HERE}:team", "--id", "one", "go"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "done\n"
    for piece in ('[chief] → writer({"input":"write"})', "[writer] a draft", "[chief] done"):
        assert piece in captured.err
    assert main(["fork", "one", "--at", "1", "--agent", f"{HERE}:team"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "done\n"
    assert "[writer] a draft" in captured.err  # its steps are shown as those of a run
    assert main(["resume", "one", "--agent", f"{HERE}:team"]) == 0
    assert "finished      go: done" in capsys.readouterr().out
    assert main(["fork", "one", "--at", "1"]) == 2
    assert "was made by a team, 'desk': name it with --agent" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run", "missing.yaml", "go"], "There is no file 'missing.yaml'"),
        (["run", "team.yaml"], "Nothing to ask"),
        (
            ["run", "team.yaml", "go", "--system", "Be brief"],
            "--system describes an agent, but team.yaml is one already",
        ),
        (["run", "--agent", f"{HERE}:nobody", "go"], "has no 'nobody'"),
        (["run", "--agent", f"{HERE}:TEAM", "go"], "is a str; name an agent or a swarm"),
        (["swarm", "show", "nonsense"], "write MODULE:NAME"),
        (["swarm", "show", "missing.yml"], "There is no file 'missing.yml'"),
    ],
)
def test_misuse_says_what_to_do(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert told in capsys.readouterr().err
