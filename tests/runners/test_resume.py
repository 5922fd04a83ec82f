"""Going on where a process died or a person was asked."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aworld.agents.llm_agent import Agent
from aworld.config import RunConfig
from aworld.core import event as ev
from aworld.core.exceptions import ConfigError, StoreError, TaskError
from aworld.core.message import Message, ToolCall
from aworld.core.task import Task
from aworld.core.tool.base import Question, ToolContext
from aworld.core.tool.func_to_tool import tool
from aworld.core.tool.wrappers import approval_required
from aworld.core.trajectory import Trajectory
from aworld.models.doubles import FunctionModel, call
from aworld.runner import Runners
from aworld.trajectory import MemoryStore, TrajectoryStore, open_store
from tests.runners.scenes import add, adder, assert_sound, facts, scripted, thinking


class CuttingStore(MemoryStore):
    """Remembers where each append ended: what a process that is killed leaves behind ends at one of these."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[int] = []

    def append(self, trajectory_id: str, events: Sequence[ev.Event], *, wait: bool = True) -> Awaitable[None]:
        if events:
            self.ends.append(events[-1].seq + 1)
        return super().append(trajectory_id, events, wait=wait)


async def left_behind(record: Trajectory, cut: int, id: str = "run") -> MemoryStore:
    """A store with the first `cut` events of a run, as a killed process leaves it."""
    store = MemoryStore()
    await store.append(id, record.events[:cut])
    return store


async def cut_after(record: Trajectory, kind: type[ev.Entry], number: int = 0) -> MemoryStore:
    found = [event.seq for event in record.events if isinstance(event, kind)]
    return await left_behind(record, found[number] + 1)


async def test_a_run_goes_on_from_every_point_where_its_process_may_die() -> None:
    agent = scripted([call("add", a=1, b=2), call("add", a=3, b=4)], call("nothing"), call("add", a=5, b=6), "done")
    cutting = CuttingStore()
    whole = await Runners.run("x", agent, id="run", run_conf=RunConfig(store=cutting))
    assert len(cutting.ends) > 6
    for cut in cutting.ends[:-1]:
        store = await left_behind(whole.record, cut)
        response = await Runners.resume("run", agent, store=store)
        assert response.answer == "done", cut
        assert_sound(response.record)
        assert response.record.events[:cut] == whole.record.events[:cut]
        assert await store.read("run") == response.record.events


async def test_a_tool_that_was_running_is_closed_as_interrupted() -> None:
    ran: list[int] = []

    @tool(inline=True)
    def pay(amount: int) -> str:
        """Pay."""
        ran.append(amount)
        return "paid"

    agent = scripted([call("pay", amount=1), call("pay", amount=2)], "done", tools=[pay])
    whole = (await Runners.run("x", agent, id="run", run_conf=RunConfig(store=MemoryStore()))).record
    ran.clear()
    response = await Runners.resume("run", agent, store=await cut_after(whole, ev.ToolReturned))
    assert response.success
    assert ran == []
    first, second = response.trajectory[0]["observation"]
    assert (first["content"], first["error"]) == ("paid", None)
    assert second["error"] == "interrupted"
    assert "may or may not have taken effect" in response.trajectory[1]["state"]["messages"][-1]["content"]
    assert_sound(response.record)


async def test_an_idempotent_tool_runs_again() -> None:
    ran: list[str] = []

    @tool(inline=True, idempotent=True)
    def look(at: str) -> str:
        """Look."""
        ran.append(at)
        return f"{at} is fine"

    agent = scripted([call("look", at="a"), call("look", at="b")], "done", tools=[look])
    whole = (await Runners.run("x", agent, id="run", run_conf=RunConfig(store=MemoryStore()))).record
    ran.clear()
    response = await Runners.resume("run", agent, store=await cut_after(whole, ev.ToolReturned))
    assert ran == ["b"]
    assert [seen["content"] for seen in response.trajectory[0]["observation"]] == ["a is fine", "b is fine"]
    assert facts(response.record) == facts(whole)


async def test_a_run_that_has_ended_comes_back_as_it_was_recorded(store: TrajectoryStore) -> None:
    asked: list[int] = []

    def think(_: Any) -> str:
        asked.append(1)
        return "done"

    first = await Runners.run("x", thinking(think), run_conf=RunConfig(store=store))
    again = await Runners.resume(first.id, thinking(think), store=store)
    assert (again.answer, again.status, asked) == ("done", "finished", [1])
    assert again.record.events == first.record.events
    failed = await Runners.run("x", scripted(RuntimeError("no")), run_conf=RunConfig(store=store))
    again = await Runners.resume(failed.id, scripted("yes"), store=store)
    assert (again.status, again.answer) == ("failed", None)
    assert again.msg == failed.msg


async def test_resuming_needs_the_agent_and_a_known_id(store: TrajectoryStore) -> None:
    whole = (await Runners.run("x", adder(), id="run", run_conf=RunConfig(store=MemoryStore()))).record
    half = await cut_after(whole, ev.ToolReturned)
    with pytest.raises(TaskError, match="made by 'adder': pass agent="):
        await Runners.resume("run", store=half)
    with pytest.raises(TaskError, match=r"begun with 'adder', which .'other'. have not"):
        await Runners.resume("run", scripted("x", name="other"), store=half)
    with pytest.raises(TaskError, match=r"no trajectory 'runn'.*did you mean 'run'"):
        await Runners.resume("runn", adder(), store=half)


async def test_the_limits_of_the_task_are_remembered() -> None:
    whole = (
        await Runners.run(
            "x",
            adder(),
            id="run",
            conf={"max_steps": 7, "tool_timeout": 9.0},
            group_id="g",
            run_conf=RunConfig(store=MemoryStore()),
        )
    ).record
    half = await cut_after(whole, ev.ToolReturned)
    response = await Runners.resume("run", adder(), store=half)
    assert response.success
    assert response.record.task.group_id == "g"
    assert whole.started is not None
    assert whole.started.conf == {"max_steps": 7, "tool_timeout": 9.0}


# Questions to people


def asking() -> Agent:
    """Needs consent for its sum."""
    return scripted([call("add", a=1, b=2), call("note", text="hi")], "done",
                    tools=[*approval_required(add), note], name="asker")  # fmt: skip


@tool(inline=True)
def note(text: str) -> str:
    """Note it."""
    return f"noted {text}"


async def test_a_run_waits_for_a_person_and_goes_on_with_the_answer(store: TrajectoryStore) -> None:
    waiting = await Runners.run("x", asking(), run_conf=RunConfig(store=store))
    assert (waiting.status, waiting.success) == ("waiting", False)
    ((id, question),) = waiting.record.questions.items()
    assert question.question.startswith("May asker call add?")
    assert (await store.query())[0].status == "waiting"
    assert [seen["content"] for seen in waiting.trajectory[0]["observation"]] == [None, "noted hi"]

    still = await Runners.resume(waiting.id, asking(), store=store)
    assert still.status == "waiting"
    assert len(still.record.questions) == 1

    with pytest.raises(TaskError, match="No open question 'nobody'"):
        await Runners.resume(waiting.id, asking(), store=store, answers={"nobody": "yes"})

    response = await Runners.resume(waiting.id, asking(), store=store, answers={id: "yes"})
    assert response.answer == "done"
    assert [seen["content"] for seen in response.trajectory[0]["observation"]] == ["3", "noted hi"]
    assert_sound(response.record)


async def test_a_refusal_is_told_to_the_model() -> None:
    waiting = await Runners.run("x", asking())
    (id,) = waiting.record.questions
    response = await Runners.resume(waiting, asking(), answers={id: "too early"})
    assert response.answer == "done"
    seen = response.trajectory[0]["observation"][0]
    assert 'A person refused this call, saying: "too early"' in seen["content"]
    assert seen["error"]


async def test_a_tool_may_ask_several_questions() -> None:
    @tool
    async def book(at: ToolContext) -> str:
        """Book."""
        for question in ("Where to?", "When?"):
            if question not in at.answers:
                raise Question(question)
        return " ".join(at.answers.values())

    agent = scripted(call("book"), "done", tools=[book])
    response = await Runners.run("x", agent)
    for answer in ("Ghent", "Monday"):
        assert response.status == "waiting"
        (open_id,) = [id for id in response.record.questions if id not in response.record.answers]
        response = await Runners.resume(response, agent, answers={open_id: answer})
    assert response.success
    assert response.trajectory[0]["observation"][0]["content"] == "Ghent Monday"


async def test_two_calls_may_ask_at_once() -> None:
    agent = scripted([call("add", a=1, b=2), call("add", a=3, b=4)], "done", tools=approval_required(add))
    waiting = await Runners.run("x", agent)
    first, second = waiting.record.questions
    still = await Runners.resume(waiting, agent, answers={second: "yes"})
    assert still.status == "waiting"
    response = await Runners.resume(still, agent, answers={first: "yes"})
    assert response.success
    assert [seen["content"] for seen in response.trajectory[0]["observation"]] == ["3", "7"]


async def test_a_stepped_run_waits_too() -> None:
    task = Task("x", asking())
    over, observation, response = await Runners.step(task)
    assert over
    assert response.status == "waiting"
    assert "May asker call add?" in str(observation.content)


async def test_a_call_that_waits_may_be_answered_in_the_place_of_the_tool() -> None:
    task = Task("x", asking())
    await Runners.step(task)
    over, _, response = await Runners.step(task, tool_results={"call_0_0": "three"})
    assert over
    assert response.success
    assert response.record.status == "finished"
    assert_sound(response.record)


async def test_a_run_whose_question_was_made_moot_is_running_and_is_resumed(store: TrajectoryStore) -> None:
    conf = RunConfig(store=store)
    agent = scripted(call("add", a=1, b=2), call("note", text="x"), "done", tools=[*approval_required(add), note])
    task = Task("x", agent, id="run")
    await Runners.step(task, conf)
    _, _, response = await Runners.step(task, tool_results={"call_0_0": "three"})
    assert response.status == response.record.status == "running"
    report = await Runners.resume_all(store, [agent])
    assert (report.finished, report.left) == (1, 0)


async def test_consent_for_one_call_is_not_consent_for_the_next_of_the_same_id() -> None:
    ran: list[int] = []

    @tool(inline=True)
    def pay(amount: int) -> str:
        """Pay."""
        ran.append(amount)
        return "paid"

    pays = Message(
        "assistant", tool_calls=(ToolCall("call_1", "pay", '{"amount": 5}'),)
    )  # ids as some servers give them
    agent = scripted(pays, pays, "done", tools=approval_required(pay))
    waiting = await Runners.run("x", agent)
    (id,) = waiting.record.questions
    response = await Runners.resume(waiting, agent, answers={id: "yes"})
    assert ran == [5]
    assert response.status == "waiting"


async def test_a_tool_that_died_is_not_run_again_because_an_earlier_call_of_its_id_asked() -> None:
    ran: list[int] = []

    @tool(inline=True)
    def pay(amount: int) -> str:
        """Pay."""
        ran.append(amount)
        return "paid"

    @tool(inline=True)
    def consult(at: ToolContext) -> str:
        """Ask."""
        if not at.answers:
            raise Question("Shall I?")
        return "yes"

    first = Message("assistant", tool_calls=(ToolCall("c", "consult", "{}"),))
    second = Message("assistant", tool_calls=(ToolCall("c", "pay", '{"amount": 5}'),))
    agent = scripted(first, second, "done", tools=[consult, pay])
    waiting = await Runners.run("x", agent, id="run", run_conf=RunConfig(store=MemoryStore()))
    whole = (await Runners.resume(waiting, agent, answers={"c": "yes"})).record
    assert ran == [5]
    response = await Runners.resume("run", agent, store=await cut_after(whole, ev.ToolCalled, -1))
    assert ran == [5]
    assert response.trajectory[1]["observation"][0]["error"] == "interrupted"


async def test_an_approved_tool_that_was_running_is_not_run_twice() -> None:
    ran: list[int] = []

    @tool(inline=True)
    def pay(amount: int) -> str:
        """Pay."""
        ran.append(amount)
        return "paid"

    agent = scripted(call("pay", amount=5), "done", tools=approval_required(pay))
    waiting = await Runners.run("x", agent, id="run", run_conf=RunConfig(store=MemoryStore()))
    whole = (await Runners.resume(waiting, agent, answers={"call_0_0": "yes"})).record
    assert ran == [5]
    response = await Runners.resume("run", agent, store=await cut_after(whole, ev.ToolCalled, -1))
    assert ran == [5]  # the process died after the answered call was on record again: it may have been made
    assert response.trajectory[0]["observation"][0]["error"] == "interrupted"
    response = await Runners.resume("run", agent, store=await cut_after(whole, ev.Answered))
    assert ran == [5, 5]  # only the answer is on record: the call was not made


# Many at once


async def test_resume_all_goes_on_with_every_run_that_has_not_ended(store: TrajectoryStore) -> None:
    agent = adder()
    whole = (await Runners.run("x", agent, id="whole", run_conf=RunConfig(store=MemoryStore()))).record
    conf = RunConfig(store=store)
    await Runners.run("x", agent, id="ended", run_conf=conf)
    other = (await Runners.run("x", adder("other"), id="other", run_conf=RunConfig(store=MemoryStore()))).record
    for number in range(20):
        started = whole.events[0]
        assert isinstance(started, ev.Started)
        info = msgspec.structs.replace(started.task, id=f"r{number}")
        first = msgspec.structs.replace(started, trajectory_id=f"r{number}", task=info)
        cut = (4, 8, 10)[number % 3]  # where its process may die: appends end there
        await store.append(f"r{number}", [first, *whole.events[1:cut]])
    await store.append("other", other.events[:6])
    await Runners.run("x", asking(), id="waits", run_conf=conf)

    report = await Runners.resume_all(store, [agent, asking()], RunConfig(max_concurrency=3))
    assert (report.finished, report.failed, report.left) == (20, 0, 2)
    assert {response.answer for response in report.responses.values()} == {"It is 3."}
    by_id = {summary.id: summary.status for summary in await store.query()}
    assert by_id.pop("other") == "running"
    assert by_id.pop("waits") == "waiting"
    assert set(by_id.values()) == {"finished"}
    again = await Runners.resume_all(store, [agent, asking()])
    assert (again.finished, again.failed, again.left) == (0, 0, 2)


async def test_one_run_that_cannot_go_on_does_not_stop_the_others() -> None:
    whole = (await Runners.run("x", adder(), id="run", run_conf=RunConfig(store=MemoryStore()))).record
    store = await cut_after(whole, ev.ToolReturned)
    broken = (await Runners.run("x", adder("broken"), id="broken", run_conf=RunConfig(store=MemoryStore()))).record
    await store.append("broken", broken.events[:6])
    report = await Runners.resume_all(store, [Agent("broken"), adder()])  # the one has no model
    assert report.finished == 1
    assert report.failed + report.left == 1


async def test_a_resume_of_a_missing_model_says_so() -> None:
    whole = (await Runners.run("x", adder(), id="run", run_conf=RunConfig(store=MemoryStore()))).record
    with pytest.raises(ConfigError, match="LLM_MODEL_NAME"):
        await Runners.resume("run", Agent("adder"), store=await cut_after(whole, ev.ToolReturned))


@pytest.mark.parametrize("harm", [("{", "("), ('"step":0', '"step":"0"'), ('"step":0', '"step":0,"activation":9')])
async def test_resume_all_goes_on_past_a_log_that_cannot_be_read(
    harm: tuple[str, str], store: TrajectoryStore, tmp_path: Path
) -> None:
    agent = adder()
    for id in ("first", "harmed", "last"):
        await Runners.step(Task("x", agent, id=id), RunConfig(store=store))
    with sqlite3.connect(tmp_path / "runs.db") as connection:
        (key,) = connection.execute("SELECT key FROM trajectories WHERE id = 'harmed'").fetchone()
        changed = "CAST(replace(CAST(data AS TEXT), ?, ?) AS BLOB)"
        connection.execute(f"UPDATE events SET data = {changed} WHERE key >> 24 = ?", (*harm, key))
    connection.close()
    report = await Runners.resume_all(store, [agent])
    assert (report.finished, report.failed, report.left) == (2, 0, 1)
    assert list(report.errors) == ["harmed"]
    assert report.errors["harmed"]
    assert [response.answer for response in report.responses.values()] == ["It is 3."] * 2


async def test_a_run_whose_end_could_not_be_written_goes_on_in_the_same_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(f"sqlite:///{tmp_path}/runs.db")
    append = store.append

    def full(id: str, events: Any, *, wait: bool = True) -> Any:
        if any(isinstance(event, ev.Finished) for event in events):
            raise StoreError("the disk is full")
        return append(id, events, wait=wait)

    agent = Agent("a", model=FunctionModel(lambda request: "done"))
    monkeypatch.setattr(store, "append", full)
    response = await Runners.run("x", agent, run_conf=RunConfig(store=store))
    assert (response.status, response.msg) == ("interrupted", "the disk is full")
    monkeypatch.undo()
    assert (await Runners.resume(response.id, agent, store=store)).answer == "done"
    await store.close()
