"""Hooks: paired, in order, always closed; they rewrite, refuse and answer."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from aworld.core.agent.swarm import Swarm
from aworld.core.common import ActionResult
from aworld.core.exceptions import DeniedError
from aworld.core.hooks import HookContext, Hooks
from aworld.core.message import Message, ToolCall
from aworld.core.model import ModelReply, ModelRequest
from aworld.core.output import RunFinished
from aworld.core.task import Task, TaskResponse
from aworld.core.tool.func_to_tool import tool
from aworld.models.doubles import call
from aworld.runner import Runners
from tests.runners.scenes import Gate, add, adder, assert_sound, scripted, thinking


class Noting(Hooks):
    """Writes down when it is called."""

    def __init__(self, notes: list[str], name: str = "") -> None:
        self.notes, self.name = notes, name

    def note(self, text: str) -> None:
        self.notes.append(self.name + text)

    async def before_task(self, at: HookContext) -> None:
        self.note("before_task")

    async def after_task(self, at: HookContext, response: TaskResponse) -> None:
        self.note(f"after_task {response.status}")

    async def before_model(self, at: HookContext, request: ModelRequest) -> ModelRequest | None:
        self.note(f"before_model {at.step}")
        return None

    async def after_model(
        self, at: HookContext, request: ModelRequest, reply: ModelReply | None, error: Exception | None
    ) -> ModelReply | None:
        self.note(f"after_model {at.step}" + (f" {type(error).__name__}" if error else ""))
        return None

    async def before_tool(self, at: HookContext, call: ToolCall) -> ToolCall | ActionResult | None:
        self.note(f"before_tool {call.name}")
        return None

    async def after_tool(self, at: HookContext, call: ToolCall, result: ActionResult) -> ActionResult | None:
        self.note(f"after_tool {call.name}" + (f" {result.error}" if result.error else ""))
        return None


async def test_before_in_order_after_in_reverse() -> None:
    notes: list[str] = []
    response = await Runners.run("x", adder(), hooks=[Noting(notes, "a:"), Noting(notes, "b:")])
    assert response.success
    assert notes == [
        "a:before_task", "b:before_task",
        "a:before_model 0", "b:before_model 0", "b:after_model 0", "a:after_model 0",
        "a:before_tool add", "b:before_tool add", "b:after_tool add", "a:after_tool add",
        "a:before_model 1", "b:before_model 1", "b:after_model 1", "a:after_model 1",
        "b:after_task finished", "a:after_task finished",
    ]  # fmt: skip
    assert_sound(response.record)


async def test_after_follows_whatever_failed_in_between() -> None:
    notes: list[str] = []
    await Runners.run("x", scripted(call("add", a="one"), RuntimeError("down")), hooks=[Noting(notes)])
    assert [note.split(" ")[0] for note in notes] == [
        "before_task", "before_model", "after_model", "before_tool", "after_tool",
        "before_model", "after_model", "after_task",
    ]  # fmt: skip
    assert notes[-1] == "after_task failed"
    assert "Error" in notes[-2]


async def test_after_follows_a_cancelled_model_call_and_tool() -> None:
    gate = Gate()

    @tool
    async def wait() -> str:
        """Wait."""
        await gate.pass_through()
        return "ok"

    async def hang(_: ModelRequest) -> str:
        await gate.pass_through()
        return "ok"

    for agent in (scripted(call("wait"), tools=[wait]), thinking(hang)):
        notes: list[str] = []
        arrived = gate.arrived
        running = asyncio.create_task(Runners.run("x", agent, hooks=[Noting(notes)]))
        await gate.until(arrived + 1)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        opened = [note.split(" ")[0].removeprefix("before_") for note in notes if note.startswith("before_")]
        closed = [note.split(" ")[0].removeprefix("after_") for note in notes if note.startswith("after_")]
        assert sorted(opened) == sorted(closed)
        assert notes[-1] == "after_task cancelled"


class Doubling(Hooks):
    """Doubles the first number of every sum, and every sum."""

    async def before_tool(self, at: HookContext, call: ToolCall) -> ToolCall:
        arguments: dict[str, int] = msgspec.json.decode(call.arguments)
        return ToolCall(call.id, call.name, msgspec.json.encode({**arguments, "a": 2 * arguments["a"]}).decode())

    async def after_tool(self, at: HookContext, call: ToolCall, result: ActionResult) -> ActionResult:
        return msgspec.structs.replace(result, content=str(2 * int(str(result.content))))


async def test_arguments_and_results_may_be_rewritten() -> None:
    response = await Runners.run("x", scripted(call("add", a=1, b=2), "done"), hooks=[Doubling()])
    assert response.trajectory[0]["observation"][0]["content"] == "8"
    assert response.trajectory[1]["state"]["messages"][-1]["content"] == "8"
    asked = response.trajectory[0]["action"]["tool_calls"][0]["function"]["arguments"]
    assert asked == '{"a":1,"b":2}'  # what the model asked for stays


async def test_arguments_that_a_hook_rewrote_are_in_the_log() -> None:
    response = await Runners.run("x", scripted(call("add", a=1, b=2), "done"), hooks=[Doubling()])
    assert any(b'\\"a\\":2' in msgspec.json.encode(event) for event in response.record.events)


class Tagging(Hooks):
    """Marks every result; doing so twice marks it twice."""

    async def after_tool(self, at: HookContext, call: ToolCall, result: ActionResult) -> ActionResult:
        return msgspec.structs.replace(result, content=f"[seen] {result.content}", error=None)


async def test_replay_gives_hooks_what_they_were_given() -> None:
    replies = [[call("add", a=1, b=2), call("add", a=1)], call("add", a=2, b=2), "done"]
    agent = scripted(*replies)
    response = await Runners.run("x", agent, hooks=[Tagging(), Tagging()])
    seen = [row["content"] for row in response.trajectory[0]["observation"]]
    assert seen[0] == "[seen] [seen] 3"
    assert seen[1].startswith("[seen] [seen] ")  # an error, as the model was told it
    assert "missing" in seen[1]
    for hooks in ([Tagging(), Tagging()], []):
        report = await Runners.replay(response, agent, hooks=hooks)
        assert report.same, report.difference
    report = await Runners.replay(response, agent, hooks=[Tagging()])
    assert report.difference is not None
    assert report.difference.what.endswith("message")


class Numbering(Hooks):
    """Shows each call the number of its step."""

    async def before_model(self, at: HookContext, request: ModelRequest) -> ModelRequest:
        return msgspec.structs.replace(request, messages=(*request.messages, Message("user", f"step {at.step}")))


async def test_replay_numbers_parallel_steps_as_they_began() -> None:
    answered = asyncio.Event()

    async def first(request: ModelRequest) -> str:
        await answered.wait()
        return request.messages[-1].text

    async def second(request: ModelRequest) -> str:
        answered.set()
        return request.messages[-1].text

    team = Swarm([thinking(first, name="first"), thinking(second, name="second")])
    response = await Runners.run("x", swarm=team, hooks=[Numbering()])
    steps = {call.agent: call.step for call in response.record.calls.values()}
    assert next(iter(response.record.calls.values())).agent == "second"
    assert steps == {"first": 0, "second": 1}
    report = await Runners.replay(response, team, hooks=[Numbering()])
    assert report.same, report.difference


class Renaming(Hooks):
    """Answers with results that carry no or another id."""

    async def before_tool(self, at: HookContext, call: ToolCall) -> ToolCall | ActionResult:
        if call.name == "search":
            return ActionResult("", "", "from a cache")
        return ToolCall("another", "add", '{"a": 1, "b": 1}')


async def test_an_answer_is_matched_to_its_call_whatever_ids_a_hook_gives() -> None:
    agent = scripted([call("search", query="x"), call("add", a=5, b=5)], "done")
    response = await Runners.run("x", agent, hooks=[Renaming()])
    assert_sound(response.record)
    told = response.trajectory[1]["state"]["messages"][2:]
    assert [(message["tool_call_id"], message["content"]) for message in told] == [
        ("call_0_0", "from a cache"),
        ("call_0_1", "2"),
    ]


class Denying(Hooks):
    """Refuses searches."""

    async def before_tool(self, at: HookContext, call: ToolCall) -> None:
        if call.name == "search":
            raise DeniedError("no searching today")


async def test_a_refused_tool_is_told_to_the_model_and_the_run_goes_on() -> None:
    ran: list[str] = []

    @tool(inline=True)
    def search(query: str) -> str:
        """Look it up."""
        ran.append(query)
        return query

    notes: list[str] = []
    agent = scripted([call("search", query="x"), call("add", a=1, b=2)], "done", tools=[search, add])
    response = await Runners.run("x", agent, hooks=[Noting(notes), Denying()])
    assert response.success
    assert ran == []
    first, second = response.trajectory[0]["observation"]
    assert (first["content"], first["error"]) == ("Denied: no searching today", "no searching today")
    assert second["content"] == "3"
    assert sum(note.startswith("before_tool") for note in notes) == sum(note.startswith("after_tool") for note in notes)
    assert_sound(response.record)


class DenyingModel(Hooks):
    """Refuses the second question."""

    async def before_model(self, at: HookContext, request: ModelRequest) -> None:
        if at.step == 1:
            raise DeniedError("over budget")


async def test_a_refused_question_ends_the_run() -> None:
    notes: list[str] = []
    response = await Runners.run("x", adder(), hooks=[Noting(notes), DenyingModel()])
    assert (response.status, response.msg) == ("failed", "over budget")
    assert len(response.trajectory) == 1
    assert notes[-3:] == ["before_model 1", "after_model 1 DeniedError", "after_task failed"]
    assert_sound(response.record)


class DenyingTask(Hooks):
    """Refuses to begin."""

    async def before_task(self, at: HookContext) -> None:
        raise DeniedError("not on Sundays")


async def test_a_refused_task_asks_nothing() -> None:
    response = await Runners.run("x", adder(), hooks=[DenyingTask()])
    assert (response.status, response.msg) == ("failed", "not on Sundays")
    assert response.trajectory == []


class Caching(Hooks):
    """Answers in the place of a tool."""

    async def before_tool(self, at: HookContext, call: ToolCall) -> ActionResult:
        return ActionResult(call.id, call.name, "from the cache")


async def test_a_hook_may_answer_in_place_of_a_tool() -> None:
    notes: list[str] = []
    agent = scripted(call("add", a=1, b=2), "done")
    response = await Runners.run("x", agent, hooks=[Caching(), Noting(notes)])
    assert response.trajectory[0]["observation"][0]["content"] == "from the cache"
    assert not [note for note in notes if "tool" in note]  # what comes behind the answer is not asked


@pytest.mark.parametrize("where", ["before_task", "before_model", "after_model", "before_tool", "after_tool"])
async def test_a_hook_that_raises_fails_the_run_and_keeps_what_was_done(where: str) -> None:
    class Raising(Hooks):
        pass

    async def fail(*_: Any) -> None:
        raise LookupError(f"{where} is broken")

    setattr(Raising, where, fail)
    notes: list[str] = []
    response = await Runners.run("x", adder(), hooks=[Noting(notes), Raising()])
    assert response.status == "failed"
    assert f"{where} is broken" in response.msg
    assert notes[-1] == "after_task failed"
    assert len([n for n in notes if n.startswith("before_")]) == len([n for n in notes if n.startswith("after_")])
    assert_sound(response.record)


async def test_a_reply_is_on_record_even_when_a_hook_chokes_on_it() -> None:
    class Choking(Hooks):
        async def after_model(
            self, at: HookContext, request: ModelRequest, reply: ModelReply | None, error: Exception | None
        ) -> ModelReply | None:
            raise LookupError("broken")

    response = await Runners.run("x", scripted("a dear answer"), hooks=[Choking()])
    assert response.status == "failed"
    assert [row["action"]["content"] for row in response.trajectory] == ["a dear answer"]


async def test_a_hook_that_raises_after_the_end_does_not_take_the_answer_away() -> None:
    class Late(Hooks):
        async def after_task(self, at: HookContext, response: TaskResponse) -> None:
            raise LookupError("too late")

    response = await Runners.run("x", scripted("answer"), hooks=[Late()])
    assert response.answer == "answer"
    outputs = [output async for output in Runners.streaming_run_task(Task("x", scripted("answer"), hooks=[Late()]))]
    assert isinstance(outputs[-1], RunFinished)


async def test_after_task_is_not_called_where_before_task_was_not() -> None:
    notes: list[str] = []
    await Runners.run("x", adder(), hooks=[Noting(notes, "a:"), DenyingTask(), Noting(notes, "b:")])
    assert notes == ["a:before_task", "a:after_task failed"]


async def test_messages_that_a_hook_adds_are_no_corrections() -> None:
    class Reminding(Hooks):
        async def before_model(self, at: HookContext, request: ModelRequest) -> ModelRequest:
            return msgspec.structs.replace(request, messages=(*request.messages, Message("user", f"Note {at.step}")))

    agent = scripted(*[call("add", a=1, b=1)] * 3, "three", '{"result": 3}', output_type=int)
    response = await Runners.run("x", agent, hooks=[Reminding()])
    assert response.answer == 3


async def test_a_hook_may_set_the_context() -> None:
    class Setting(Hooks):
        async def before_task(self, at: HookContext) -> None:
            at.context.set("seen", ["x"])

    response = await Runners.run("x", adder(), hooks=[Setting()])
    assert response.record.state == {"seen": ["x"]}
