"""What models and tools do wrong is told to the model or becomes the status; nothing done is lost."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from aworld.config import RunConfig
from aworld.core.exceptions import ToolError
from aworld.core.hooks import HookContext, Hooks
from aworld.core.message import Message, ToolCall
from aworld.core.model import ModelRequest
from aworld.core.task import Task, TaskResponse
from aworld.core.tool.base import Tool, ToolContext
from aworld.core.tool.func_to_tool import tool
from aworld.models.doubles import Said, call
from aworld.runner import Runners
from aworld.trajectory import MemoryStore, TrajectoryStore
from tests.runners.scenes import Gate, add, assert_sound, scripted, thinking


async def told(*calls: ToolCall, tools: Any = (add,), store: TrajectoryStore | None = None, **conf: Any) -> list[Any]:
    """What the model is told of its calls, as (content, error); the run must go on to its answer."""
    agent = scripted(Message("assistant", tool_calls=calls), "done", tools=tools)
    response = await Runners.run("x", agent, conf=conf, run_conf=RunConfig(store=store))
    assert response.answer == "done", response.msg
    assert_sound(response.record)
    if store is not None:
        assert [event.seq for event in await store.read(response.id)] == [event.seq for event in response.record.events]
    return [(seen["content"], seen["error"]) for seen in response.trajectory[0]["observation"]]


async def test_an_unknown_tool() -> None:
    ((content, error),) = await told(call("subtract", a=1))
    assert content == "There is no tool named 'subtract'. Tools: add."
    assert error == "unknown tool 'subtract'"


@pytest.mark.parametrize(
    "arguments",
    ['{"a": 1', "", "null", "[1, 2]", '"text"', '{"a": 1}', '{"a": "x", "b": 2}', '{"a": 1, "b": 2, "c": 3}'],
)
async def test_arguments_that_do_not_fit(arguments: str) -> None:
    ((content, error),) = await told(ToolCall("c", "add", arguments))
    assert error
    assert content


async def test_the_same_id_twice_and_no_ids() -> None:
    calls = [ToolCall(id, "add", f'{{"a": {n}, "b": 0}}') for n, id in enumerate(["c", "c", "", "", "c-1"])]
    seen = await told(*calls)
    assert [content for content, _ in seen] == ["0", "1", "2", "3", "4"]


async def test_the_same_id_in_every_turn() -> None:
    agent = scripted(
        *[Message("assistant", tool_calls=(ToolCall("c", "add", f'{{"a":{n},"b":0}}'),)) for n in range(3)], "ok"
    )
    response = await Runners.run("x", agent)
    assert response.success
    assert [row["observation"][0]["content"] for row in response.trajectory[:3]] == ["0", "1", "2"]
    assert_sound(response.record)


@pytest.mark.parametrize("how", ["async", "thread"])
async def test_fifty_parallel_calls_run_side_by_side_and_are_answered_in_order(how: str) -> None:
    gate = Gate()
    barrier = threading.Barrier(50, timeout=10)

    @tool
    async def meet(number: int) -> int:
        """Return when all are here."""
        await gate.pass_through()
        return number

    @tool(name="meet")
    def meet_in_threads(number: int) -> int:
        """Return when all are here."""
        barrier.wait()
        return number

    async def open_gate() -> None:
        await gate.until(50)
        gate.open.set()

    opening = asyncio.create_task(open_gate()) if how == "async" else None
    calls = [call("meet", number=number) for number in range(50)]
    seen = await told(*(ToolCall(f"c{n}", c.name, c.arguments) for n, c in enumerate(calls)),
                      tools=[meet if how == "async" else meet_in_threads])  # fmt: skip
    assert [content for content, _ in seen] == [str(number) for number in range(50)]
    if opening is not None:
        await opening


async def test_answers_stand_in_the_order_of_the_calls_whichever_comes_first() -> None:
    events = [asyncio.Event() for _ in range(4)]
    events[3].set()

    @tool
    async def wait(number: int) -> int:
        """The last first."""
        await events[number].wait()
        events[number - 1].set()
        return number

    seen = await told(*(ToolCall(f"c{n}", "wait", f'{{"number": {n}}}') for n in range(4)), tools=[wait])
    assert [content for content, _ in seen] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("empty", [Message("assistant"), Message("assistant", ""), Message("assistant", ())])
async def test_an_empty_answer_is_an_answer(empty: Message) -> None:
    response = await Runners.run("x", scripted(empty))
    assert (response.status, response.answer) == ("finished", "")
    assert_sound(response.record)


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    "raised",
    [
        ValueError("wrong"), KeyError("k"), ToolError("in my own words"), OSError(5, "disk"), StopIteration(),
        StopAsyncIteration(), TimeoutError("mine"), SystemExit(3), asyncio.CancelledError("mine"), Unprintable(),
        ValueError("\udc80 of a file name"), ToolError("\ud800"), AssertionError(), RecursionError(), MemoryError(),
        ExceptionGroup("both", [ValueError("a"), KeyError("b")]), ValueError("x" * 1_000_000),
    ],
    ids=lambda raised: type(raised).__name__,
)  # fmt: skip
@pytest.mark.parametrize("how", ["async", "thread", "inline", "class"])
async def test_whatever_a_tool_raises_is_told_to_the_model(
    raised: BaseException, how: str, store: TrajectoryStore
) -> None:
    @tool(name="fail")
    async def fail_async() -> str:
        """Fails."""
        raise raised

    @tool(name="fail", inline=how == "inline")
    def fail_sync() -> str:
        """Fails."""
        raise raised

    class Fail(Tool):
        name, description, parameters = "fail", "Fails.", {"type": "object", "properties": {}}

        async def invoke(self, arguments: str, context: ToolContext) -> Any:
            raise raised

    made = {"async": fail_async, "thread": fail_sync, "inline": fail_sync, "class": Fail()}[how]
    (failed, fine) = await told(ToolCall("1", "fail", "{}"), ToolCall("2", "add", '{"a":1,"b":2}'),
                                tools=[made, add], store=store, max_tool_result=1_000)  # fmt: skip
    content, error = failed
    assert content
    assert error
    assert len(content) + len(error) < 3_000
    assert fine == ("3", None)


async def test_a_tool_that_cancels_itself() -> None:
    @tool
    async def cancel() -> str:
        """Cancels the task that it runs in."""
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(1)
        return ""

    ((content, error),) = await told(call("cancel"), tools=[cancel])
    assert content == error == "Tool 'cancel' cancelled itself."


class Opaque:
    """Nothing that JSON knows."""


@pytest.mark.parametrize(
    "value", [b"\xff\xfe", Opaque(), {"a": Opaque()}, {1: {2: Opaque()}}, [b"\xff", Opaque()], Opaque, lambda: 1]
)
async def test_results_that_are_no_json(value: Any, store: TrajectoryStore) -> None:
    @tool(inline=True)
    def give() -> Any:
        """Gives it."""
        return value

    ((content, error),) = await told(call("give"), tools=[give], store=store)
    assert error
    assert "The tool" in content


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), ("", ""), ([], "[]"), ({}, "{}"), (None, "null"), (False, "false"), (b"text", "text"),
        ({"a": [1, None]}, '{"a":[1,null]}'), ("\ud800", "\\ud800"), (float("nan"), "NaN"),
    ],
)  # fmt: skip
async def test_every_value_counts(value: Any, text: str, store: TrajectoryStore) -> None:
    @tool(inline=True)
    def give() -> Any:
        """Gives it."""
        return value

    assert await told(call("give"), tools=[give], store=store) == [(text, None)]


async def test_a_huge_result_is_cut_and_says_so(store: TrajectoryStore) -> None:
    @tool(inline=True)
    def give() -> str:
        """Gives much."""
        return "x" * 10_000_000

    ((content, error),) = await told(call("give"), tools=[give], store=store)
    assert error is None
    assert len(content) < 201_000
    assert content.endswith("[cut: the first 200,000 of 10,000,000 characters are shown]")


async def test_a_tool_that_changes_its_result_later_does_not_change_the_log() -> None:
    held: list[int] = []

    @tool(inline=True)
    def give() -> list[int]:
        """Gives a list and keeps it."""
        return held

    agent = scripted(call("give"), call("give"), "done", tools=[give])
    seen = await Runners.run("x", agent)
    held.append(1)
    assert seen.trajectory[0]["observation"][0]["content"] == "[]"


async def test_a_tool_that_cannot_be_found_at_the_start_fails_the_run() -> None:
    class Broken:
        async def list_tools(self) -> list[Tool]:
            raise ConnectionError("the tool server is down")

    response = await Runners.run("x", scripted("hi", tools=[Broken()]))
    assert response.status == "failed"
    assert "the tool server is down" in response.msg


async def test_a_tool_sees_the_state_of_the_task_and_the_call_that_it_serves() -> None:
    seen: list[ToolContext] = []

    @tool
    async def note(text: str, at: ToolContext) -> str:
        """Write it down."""
        seen.append(at)
        at.context.set("notes", [*at.context.get("notes", []), text])
        return "noted"

    agent = scripted(call("note", text="a"), call("note", text="b"), "done", tools=[note])
    response = await Runners.run("x", agent)
    assert response.record.state == {"notes": ["a", "b"]}
    assert [(at.step, at.call_id, at.agent) for at in seen] == [(0, "call_0_0", "agent"), (1, "call_1_0", "agent")]


async def test_parallel_tools_that_are_slow_to_fail_do_not_leak() -> None:
    cancelled: list[int] = []
    gate = Gate()

    @tool
    async def wait(number: int) -> str:
        """Wait for ever."""
        try:
            await gate.pass_through()
        except asyncio.CancelledError:
            cancelled.append(number)
            raise
        return ""

    def think(_: ModelRequest) -> Said:
        return [call("wait", number=n) for n in range(10)]

    response = await Runners.run("x", thinking(think, tools=[wait]), timeout=0.05)
    assert response.status == "timeout"
    assert sorted(cancelled) == list(range(10))
    assert_sound(response.record)


class Panic(BaseException):
    """As what Rust raises through PyO3."""


async def stray() -> None:
    """Await something that somebody else has cancelled."""
    asleep = asyncio.ensure_future(asyncio.sleep(60))
    asleep.cancel()
    await asleep


async def burst(how: str) -> None:
    """Raise what is no Exception."""
    if how == "stray":
        await stray()
    raise {"panic": Panic("index out of bounds"), "exit": SystemExit(3)}[how]


class Bursting(Hooks):
    """Bursts at one of its points, in the runs whose input is `burst`."""

    def __init__(self, where: str, how: str) -> None:
        self.where, self.how = where, how

    async def _at(self, where: str, at: HookContext) -> None:
        if where == self.where and at.record.task.name == "burst":
            await burst(self.how)

    async def before_task(self, at: HookContext) -> None:
        await self._at("before_task", at)

    async def after_task(self, at: HookContext, response: Any) -> None:
        await self._at("after_task", at)

    async def before_model(self, at: HookContext, request: Any) -> None:
        await self._at("before_model", at)

    async def after_model(self, at: HookContext, request: Any, reply: Any, error: Any) -> None:
        await self._at("after_model", at)

    async def before_tool(self, at: HookContext, call: Any) -> None:
        await self._at("before_tool", at)

    async def after_tool(self, at: HookContext, call: Any, result: Any) -> None:
        await self._at("after_tool", at)


@pytest.mark.parametrize("how", ["panic", "exit", "stray"])
@pytest.mark.parametrize(
    "where",
    ["tool", "two tools", "thread", "model", "before_task", "after_task", "before_model", "after_model", "before_tool",
     "after_tool"],
)  # fmt: skip
async def test_what_bursts_ends_its_own_run_alone(where: str, how: str, store: TrajectoryStore) -> None:
    if (where, how) == ("thread", "stray"):
        pytest.skip("a thread has no task")
    gate = Gate()

    async def think(request: ModelRequest) -> Said:
        bursts = request.messages[-1].text == "burst"
        if bursts and where == "model":
            await burst(how)
        if request.turn == 0 and bursts:
            return [call("pop")] * (2 if where != "tool" else 1)
        if not bursts and request.turn == 0:
            await gate.pass_through()
        return "done"

    @tool
    async def pop() -> str:
        "Pop."
        if where in ("tool", "two tools"):
            await burst(how)
        return "popped"

    @tool(name="pop")
    def pop_there() -> str:
        "Pop, in a thread."
        raise Panic("index out of bounds") if how == "panic" else SystemExit(3)

    agent = thinking(think, tools=[pop_there if where == "thread" else pop])
    hooks = [Bursting(where, how)]
    others = [Task("wait", agent, id=f"other {n}", hooks=hooks) for n in range(20)]
    culprit = Task("burst", agent, id="culprit", name="burst", hooks=hooks)
    ended = asyncio.Event()

    def done(response: TaskResponse) -> None:
        if response.id == "culprit":
            ended.set()

    running = asyncio.create_task(Runners.run_task([*others, culprit], RunConfig(store=store), on_done=done))
    async with asyncio.timeout(20):
        await gate.until(20)
        await ended.wait()
        gate.open.set()
        responses = await running
    assert {responses[task.id].status for task in others} == {"finished"}
    response = responses["culprit"]
    assert_sound(response.record)
    if where in ("tool", "two tools", "thread", "after_task"):  # told to the model; or too late to change the outcome
        assert (response.status, response.answer) == ("finished", "done"), response.msg
        return
    assert response.status == "failed"
    word = {"panic": "Panic: index out of bounds", "exit": "SystemExit: 3", "stray": "CancelledError"}[how]
    assert word in response.msg


@pytest.mark.parametrize("where", ["model", "tool", "before_model"])
async def test_a_cancellation_is_still_a_cancellation(where: str) -> None:
    gate = Gate()

    class Waiting(Hooks):
        async def before_model(self, at: HookContext, request: Any) -> None:
            if where == "before_model":
                await gate.pass_through()

    async def think(request: ModelRequest) -> Said:
        if where == "model":
            await gate.pass_through()
        return call("wait")

    @tool
    async def wait() -> str:
        "Wait."
        await gate.pass_through()
        return "waited"

    store = MemoryStore()
    conf = RunConfig(store=store)
    agent = thinking(think, tools=[wait])
    running = asyncio.create_task(Runners.run("x", agent, id="run", hooks=[Waiting()], run_conf=conf))
    await gate.until(1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (await store.query())[0].status == "cancelled"
