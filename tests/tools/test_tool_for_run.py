"""What a tool holds for a run: each run has its own copy, behind wrappers too, and lets go of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from aworld.agents.llm_agent import Agent
from aworld.core.agent.swarm import Swarm
from aworld.core.context.base import RunScope
from aworld.core.event import TaskInfo
from aworld.core.exceptions import ConfigError
from aworld.core.task import Task, TaskResponse
from aworld.core.tool.base import Tool
from aworld.core.tool.func_to_tool import tool
from aworld.core.tool.toolkit import Toolkit
from aworld.core.tool.wrappers import approval_required, filtered, prefixed, renamed
from aworld.models import ScriptedModel
from aworld.models.doubles import call
from aworld.runner import Runners
from aworld.tools.human import ask


class Notes:
    """Notes of a run, and the tools that write and read them."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.lines: list[str] = []

    def for_run(self, scope: RunScope) -> Notes:
        self.log.append(f"begin {scope.trajectory_id} {sorted(scope.used)}")
        return Notes(self.log)

    @tool
    async def note(self, text: str) -> str:
        """Write a line."""
        self.lines.append(text)
        return " ".join(self.lines)

    async def rest(self) -> None:
        self.log.append(f"rest {self.lines}")

    async def end_run(self) -> None:
        self.log.append(f"end {self.lines}")


class NotesOfRun(Notes):
    """The same as a toolset."""

    def for_run(self, scope: RunScope) -> NotesOfRun:
        return NotesOfRun(self.log)

    async def list_tools(self) -> Sequence[Tool]:
        return [self.note]


@tool
def shout(text: str) -> str:
    """Shout."""
    return text.upper()


def scope(run: str = "run") -> RunScope:
    return RunScope(run, TaskInfo(run))


def writer(*tools: Any, name: str = "note") -> Agent:
    return Agent("writer", model=ScriptedModel([call(name, text="a"), call(name, text="b"), "done"]), tools=tools)


def seen(response: TaskResponse) -> list[str]:
    assert response.success, response.msg
    return [row["observation"][0]["content"] for row in response.trajectory[:2]]


async def test_without_anything_of_a_run_the_offer_is_one_for_all() -> None:
    toolkit = Toolkit([shout, *approval_required(prefixed(shout, "x_"))], owner="agent 'a'")
    assert toolkit.ready(scope("a")) is toolkit.ready(scope("b")) is await toolkit.resolve((), scope("c"))


async def test_each_run_has_its_own_tools_under_the_same_schemas() -> None:
    toolkit = Toolkit([shout, Notes([]).note], owner="agent 'a'")
    one, two = scope("a"), scope("b")
    first, again, other = toolkit.ready(one), await toolkit.resolve((), one), toolkit.ready(two)
    assert first is not None
    assert other is not None
    assert first.schemas is other.schemas
    assert first.digest == other.digest
    assert first.by_name["note"] is again.by_name["note"] is not other.by_name["note"]
    assert first.by_name["shout"] is other.by_name["shout"] is shout
    with pytest.raises(ConfigError, match="Two tools of agent 'a' are named 'note'"):
        await toolkit.resolve((Notes([]).note,), one)


@pytest.mark.parametrize("kind", [Notes, NotesOfRun])
async def test_runs_at_once_see_nothing_of_each_other_and_let_go(kind: type[Notes]) -> None:
    log: list[str] = []
    notes = kind(log)
    agent = writer(notes if isinstance(notes, NotesOfRun) else notes.note)
    async with asyncio.timeout(20):
        responses = await Runners.run_task([Task("x", agent=agent) for _ in range(3)])
    assert [seen(response) for response in responses.values()] == [["a", "a b"]] * 3
    assert log.count("end ['a', 'b']") == 3
    assert notes.lines == []


async def allowed(*_: Any) -> bool:
    return True


@pytest.mark.parametrize("kind", [Notes, NotesOfRun])
async def test_wrappers_pass_it_on(kind: type[Notes]) -> None:
    log: list[str] = []
    notes = kind(log)
    inner: Any = notes if isinstance(notes, NotesOfRun) else notes.note
    tools = approval_required(
        renamed(prefixed(filtered([inner, shout], ["note"]), "my_"), {"my_note": "n"}), None, allowed
    )
    response = await Runners.run("x", writer(*tools, name="n"))
    assert seen(response) == ["a", "a b"]
    assert log[-1] == "end ['a', 'b']"


async def test_agents_of_a_run_that_have_the_same_object_share_its_copy() -> None:
    log: list[str] = []
    notes = Notes(log)
    first = Agent("first", model=ScriptedModel([call("note", text="a"), "go on"]), tools=[notes.note])
    second = Agent("second", model=ScriptedModel([call("note", text="b"), "done"]), tools=[notes.note])
    response = await Runners.run("x", swarm=Swarm(first, second))
    assert response.success, response.msg
    assert [line for line in log if line.startswith("end")] == ["end ['a', 'b']"]


async def test_a_run_that_rests_has_its_copy_again_here_and_elsewhere_knows_what_was_used() -> None:
    log: list[str] = []

    def agent(notes: Notes) -> Agent:
        script = [call("my_note", text="a"), call("ask", question="Go on?"), call("my_note", text="b"), "done"]
        return Agent("writer", model=ScriptedModel(script), tools=[*prefixed(notes.note, "my_"), ask])

    here = agent(Notes(log))
    response = await Runners.run("x", here, id="run")
    assert response.status == "waiting"
    assert log == ["begin run []", "rest ['a']"]
    await Runners.answer(response, "yes")
    done = await Runners.resume(response, here)
    assert done.trajectory[2]["observation"][0]["content"] == "a b"
    assert log[2:] == ["end ['a', 'b']"]
    forked = await Runners.fork(done, agent(Notes(log)), at=2)
    assert forked.success, forked.msg
    assert log[3] == f"begin {forked.id} ['ask', 'my_note', 'note']", "also the name that the inner tool looks for"
