"""Guardrails: functions that judge what comes in, what goes out and what tools are called with, on record."""

from __future__ import annotations

import asyncio
from io import StringIO
from typing import Any

import pytest
from pydantic import BaseModel
from rich.console import Console

from aworld.agents.definitions import travels, unit_of
from aworld.agents.files import dump, load
from aworld.agents.llm_agent import Agent
from aworld.cmd.trajectory_view import show
from aworld.config.conf import TaskConfig
from aworld.core import event as ev
from aworld.core.agent.swarm import TeamSwarm
from aworld.core.exceptions import ConfigError, DeniedError
from aworld.core.output import VerdictOutput
from aworld.core.task import Task, TaskResponse
from aworld.core.tool import ToolContext, renamed, tool
from aworld.models import ScriptedModel
from aworld.models.doubles import call
from aworld.runner import Runners
from aworld.trajectory.summary import Tally
from tests.runners.scenes import assert_sound, scripted


class Price(BaseModel):
    euros: int


def no_politics(context: ToolContext, value: Any) -> str | None:
    """Code that a definition can name."""
    return "it is about politics" if "election" in str(value) else None


async def polite(context: ToolContext, value: Any) -> None:
    if "damn" in str(value):
        raise DeniedError("mind your words")


def affordable(context: ToolContext, value: Price) -> str | None:
    return f"{value.euros} euros are too many" if value.euros > 100 else None


def inside(context: ToolContext, value: dict[str, Any]) -> str | None:
    return None if value["path"].startswith("work/") else f"{context.agent} works in work/ alone"


@tool(inline=True, guardrails=[inside])
def read(path: str) -> str:
    """Read a file."""
    return f"text of {path}"


def verdicts(response: TaskResponse) -> list[tuple[str, str, bool, str | None]]:
    notes = [e for e in response.record.events if isinstance(e, ev.Noted) and e.source == "guardrail"]
    assert all(0 <= note.data["seconds"] < 10 for note in notes)
    return [(n.name, n.data["on"], n.data["passed"], n.data.get("reason")) for n in notes]


def shown(response: TaskResponse) -> str:
    """The run as `aworld trajectories show` prints it."""
    out = StringIO()
    record = response.record
    show(Console(file=out, width=120), record, Tally.of(record.id, record.events).summary())
    return out.getvalue()


async def test_an_input_is_refused_before_the_model_is_asked() -> None:
    agent = scripted("Hello.", input_guardrails=[polite, no_politics])
    response = await Runners.run("Who wins the election?", agent)
    assert (response.status, len(response.record.calls)) == ("failed", 0)
    assert response.msg == "Guardrail 'no_politics' refused the input: it is about politics"
    assert verdicts(response) == [
        ("polite", "input", True, None),
        ("no_politics", "input", False, "it is about politics"),
    ]
    assert_sound(response.record)
    assert "guardrail no_politics on input  ✗ it is about politics" in shown(response)
    assert (await Runners.run("Hello?", agent)).answer == "Hello."


async def test_an_answer_is_sent_back_with_the_reason() -> None:
    agent = scripted('{"euros": 900}', '{"euros": 90}', output_type=Price, output_guardrails=[affordable])
    response = await Runners.run("x", agent)
    assert response.answer == Price(euros=90)
    sent_back = response.trajectory[1]["state"]["messages"][-1]["content"]
    assert sent_back.startswith("Guardrail 'affordable' refused the answer: 900 euros are too many\n")
    assert [verdict[2] for verdict in verdicts(response)] == [False, True]
    assert "guardrail affordable on answer  ✓ passed" in shown(response)
    stubborn = scripted(*['{"euros": 900}'] * 3, output_type=Price, output_guardrails=[affordable])
    response = await Runners.run("x", stubborn)
    assert (response.status, len(response.record.calls)) == ("failed", 3)
    assert "no valid answer after 2 corrections: Guardrail 'affordable' refused" in (response.msg or "")


async def test_a_call_is_refused_and_the_model_reads_why() -> None:
    (reader,) = renamed(read, {"read": "open_file"})
    wrong, right = call("open_file", path="/etc/passwd"), call("open_file", path="work/a")
    response = await Runners.run("x", scripted([wrong, right], "done", tools=[reader]))
    assert response.answer == "done"
    results = response.trajectory[0]["observation"]
    refusal = "Guardrail 'inside' refused the call: agent works in work/ alone"
    assert [(result["content"], result["error"]) for result in results] == [
        (refusal, refusal),
        ("text of work/a", None),
    ]
    assert sorted(verdict[2] for verdict in verdicts(response)) == [False, True]
    bad = await Runners.run("x", scripted(call("read"), "done", tools=[read]))
    assert "Guardrail 'inside' of agent 'agent' raised KeyError: 'path'" in bad.trajectory[0]["observation"][0]["error"]


async def test_readers_see_verdicts() -> None:
    agent = scripted(
        call("read", path="b"), "done", tools=[read], input_guardrails=[polite], output_guardrails=[polite]
    )
    outputs = [output async for output in Runners.streaming_run_task(Task("x", agent))]
    seen = [(o.guardrail, o.on, o.passed, o.step) for o in outputs if isinstance(o, VerdictOutput)]
    assert seen == [("polite", "input", True, 0), ("inside", "call", False, 0), ("polite", "answer", True, 1)]
    late = [output async for output in Runners.follow(outputs[-1].response.id, store=outputs[-1].response.store)]  # type: ignore[union-attr]
    assert [o for o in late if isinstance(o, VerdictOutput)] == [o for o in outputs if isinstance(o, VerdictOutput)]


def agrees(context: ToolContext, value: Any) -> Any:
    return True


def raises(context: ToolContext, value: Any) -> str | None:
    raise LookupError("no list of words \ud800")


async def hangs(context: ToolContext, value: Any) -> str | None:
    await asyncio.Event().wait()
    return None


@pytest.mark.parametrize(
    ("guardrail", "words"),
    [
        (agrees, "Guardrail 'agrees' of agent 'agent' returned True; return None to let pass, or the reason why not."),
        (raises, "Guardrail 'raises' of agent 'agent' raised LookupError: no list of words \\ud800"),
        (hangs, "Guardrail 'hangs' of agent 'agent' had no answer. No answer within 0.01 s"),
    ],
)
async def test_one_that_fails_lets_nothing_pass(guardrail: Any, words: str) -> None:
    async def run(**settings: Any) -> TaskResponse:
        agent = Agent("agent", model=ScriptedModel(["done"]), **settings)
        task = Task("x", agent, conf=TaskConfig(tool_timeout=0.01) if guardrail is hangs else TaskConfig())
        response = (await Runners.run_task(task))[task.id]
        assert verdicts(response)[0][2] is False
        report = await Runners.replay(response.record, agent)
        assert report.same, report.difference
        return response

    for settings in ({"input_guardrails": [guardrail]}, {"output_guardrails": [guardrail]}):
        response = await run(**settings)
        assert response.status == "failed"
        assert words in (response.msg or "")
        assert words.split(" of ")[0].removeprefix("Guardrail '")[:-1] in shown(response)


async def test_a_replay_takes_verdicts_from_the_record() -> None:
    heard: list[Any] = []

    def strict(context: ToolContext, value: Any) -> str | None:
        heard.append(value)
        return "say it better" if len(heard) == 2 else None

    agent = scripted("a", "b", input_guardrails=[strict], output_guardrails=[strict])
    response = await Runners.run("x", agent)
    assert (response.answer, heard) == ("b", ["x", "a", "b"])
    report = await Runners.replay(response.record, agent)
    assert report.same, report.difference
    assert len(heard) == 3
    other = await Runners.replay(response.record, scripted("a", "b", input_guardrails=[polite]))
    assert not other.same


async def test_a_leader_is_told_what_its_member_refused() -> None:
    member = scripted("never", name="member", tools=(), input_guardrails=[no_politics])
    leader = scripted(call("member", input="the election"), "I may not say.", name="leader", tools=())
    response = await Runners.run("x", swarm=TeamSwarm(leader, member))
    assert response.answer == "I may not say."
    told = response.trajectory[0]["observation"][0]["error"]
    assert told == "Guardrail 'no_politics' refused the input: it is about politics"


def test_definitions_and_files_name_them() -> None:
    agent = Agent("a", model="openai:gpt-4o", input_guardrails=[no_politics], output_guardrails=[polite, no_politics])
    definition = travels(agent)
    assert definition.model_dump()["output_guardrails"] == tuple(f"{__name__}:{f}" for f in ("polite", "no_politics"))
    assert unit_of(definition).definition == definition
    assert load(dump(agent)).definition == definition


def test_what_is_no_guardrail_is_refused() -> None:
    def narrow(value: Any) -> None: ...

    with pytest.raises(ConfigError, match=r"A guardrail of agent 'a' is called as f\(context, value\)"):
        Agent("a", input_guardrails=[narrow])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="A guardrail of agent 'a' is a lambda"):
        Agent("a", output_guardrails=[lambda context, value: None])
    with pytest.raises(ConfigError, match=r"A guardrail of tool 'f' is called as"):

        @tool(guardrails=[narrow])  # type: ignore[list-item]
        def f() -> int:
            return 1

    with pytest.raises(ConfigError, match="input_guardrails"):
        Agent("a", input_guardrails=no_politics)  # type: ignore[arg-type]
