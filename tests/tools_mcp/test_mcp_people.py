"""What an MCP server asks of people and models: the run waits for a person, a model answers where it may."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from aworld.agents.llm_agent import Agent
from aworld.config import RunConfig, TaskConfig
from aworld.core.event import Noted
from aworld.core.message import Message, Usage
from aworld.core.model import ModelReply, ModelRequest
from aworld.core.output import QuestionOutput, RunFinished, ToolNoteOutput
from aworld.core.task import Task, TaskResponse
from aworld.core.tool.base import Question, ToolContext
from aworld.models import FunctionModel, ScriptedModel
from aworld.models.doubles import call
from aworld.runner import Runners
from aworld.tools import mcp_session
from aworld.tools.mcp import mcp_tools
from aworld.tools.mcp_content import answer_of, asked_again, question_of
from aworld.tools.mcp_session import close_sessions
from aworld.trajectory import open_store
from tests.tools_mcp.conftest import Caller, config, rough, stdio, tools_of

BOOKING: dict[str, Any] = {"type": "object", "properties": {"seats": {"type": "integer"}}, "required": ["seats"]}
TRIP: dict[str, Any] = {
    "type": "object",
    "properties": {
        "seats": {"type": "integer", "minimum": 1},
        "class": {"type": "string", "enum": ["first", "second"], "description": "of the carriage"},
        "window": {"type": "boolean"},
    },
    "required": ["seats", "class"],
}


def traveller(server: dict[str, Any]) -> Agent:
    script = ScriptedModel([call("book", city="Rome"), "booked"])
    return Agent("traveller", model=script, mcp_config=config(bureau={**server, "elicitation": True}))


def seen(response: TaskResponse) -> Any:
    return response.trajectory[0]["observation"][0]["content"]


@pytest.fixture(params=["stdio", "sse", "streamable-http"])
def server(request: pytest.FixtureRequest, addresses: dict[str, str]) -> dict[str, Any]:
    kind: str = request.param
    return stdio() if kind == "stdio" else {"type": kind, "url": addresses[kind]}


async def test_a_run_waits_for_the_person_whom_a_server_asks(server: dict[str, Any], tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/runs.db")
    task = Task("book", agent=traveller(server), id="trip")
    outputs = [output async for output in Runners.streaming_run_task(task, RunConfig(store=store))]
    (asked,) = [output for output in outputs if isinstance(output, QuestionOutput)]
    assert asked.question.startswith("MCP server 'bureau' asks:\n| How many seats to Rome?\n|   seats (integer")
    assert isinstance(outputs[-1], RunFinished)
    assert outputs[-1].response.status == "waiting"
    await close_sessions()  # as when the process ends: another one answers, and goes on
    await Runners.answer("trip", "three", store=store)
    again = await Runners.resume("trip", traveller(server), store=store)
    assert again.status == "waiting", "an answer that does not fit is asked for again"
    assert "'three' is not of type 'integer'" in again.record.open_questions()[0].question
    await Runners.answer("trip", "3", store=store)
    done = await Runners.resume("trip", traveller(server), store=store)
    assert (done.status, seen(done)) == ("finished", "3 seats to Rome")
    assert done.record.complete
    await store.close()


async def test_who_declines_is_not_asked_again(addresses: dict[str, str]) -> None:
    agent = traveller({"url": addresses["streamable-http"]})
    waiting = await Runners.run("book", agent)
    await Runners.answer(waiting, "Decline.")
    assert seen(await Runners.resume(waiting, agent)) == "no seats: decline"


async def test_without_leave_people_are_not_asked_and_the_stream_says_how_they_would_be(
    addresses: dict[str, str],
) -> None:
    servers = config(s={"url": addresses["streamable-http"]})
    agent = Agent("a", model=ScriptedModel([call("book", city="Rome"), "ok"]), mcp_config=servers)
    outputs = [output async for output in Runners.streaming_run("go", agent)]
    (note,) = [output for output in outputs if isinstance(output, ToolNoteOutput)]
    assert (note.kind, note.data["action"]) == ("elicitation", "decline")
    assert '"elicitation": true' in note.data["reason"]
    assert isinstance(outputs[-1], RunFinished)
    assert seen(outputs[-1].response) == "no seats: decline"


async def test_a_server_of_2025_is_told_that_its_call_is_cancelled_and_called_again() -> None:
    server = rough(elicitation=True)
    agent = Agent("a", model=ScriptedModel([call("elicit"), "ok"]), mcp_config=config(s=server))
    waiting = await Runners.run("go", agent)
    assert waiting.record.open_questions()[0].question == "MCP server 's' asks:\n| Your name?\nAnswer yes, or: decline"
    await Runners.answer(waiting, "yes")
    response = await Runners.resume(waiting, agent)
    assert json.loads(seen(response)) == {"action": "accept", "content": {}}


async def test_with_several_calls_under_way_nobody_is_asked_for_the_wrong_one(caller: Caller) -> None:
    tools = await tools_of(s=rough(elicitation=True))
    hanging = asyncio.create_task(caller(tools["swallow"]))
    await caller(tools["pids"])
    assert json.loads(await caller(tools["elicit"]))["action"] == "decline"
    assert "several calls" in (await caller.until("elicitation"))["reason"]
    hanging.cancel()
    await asyncio.wait((hanging,))
    with pytest.raises(Question):
        await caller(tools["elicit"])


async def test_what_a_server_asks_of_the_model_counts_towards_the_limits(addresses: dict[str, str]) -> None:
    def think(request: ModelRequest) -> ModelReply:
        if "word about" in request.messages[-1].text:
            return ModelReply(Message("assistant", "wet"), usage=Usage(5, 1, 6))
        return ModelReply(Message("assistant", tool_calls=(call("muse", topic="rain"),)), usage=Usage(10, 2, 12))

    servers = config(s={"url": addresses["streamable-http"], "sampling": True})
    agent = Agent("a", model=FunctionModel(think), mcp_config=servers)
    response = await Runners.run("go", agent, conf=TaskConfig(max_tokens=30))
    assert (response.status, len(response.record.calls)) == ("limit_reached", 2), "without it three would do"
    assert response.msg == "max_tokens=30 reached: 30 tokens used.", "the second time it was not asked"
    assert response.usage == Usage(25, 5, 30, cost=0.0)


def thinker(limit: int) -> FunctionModel:
    """Lets a server ask as often as the task's text says, and answers it with ten tokens, where it may have them."""

    def think(request: ModelRequest) -> ModelReply:
        if request.messages[-1].text == "hello?":
            assert request.params["max_tokens"] <= limit
            tokens = min(request.params["max_tokens"], 10)
            return ModelReply(Message("assistant", "hm"), usage=Usage(3, tokens, 3 + tokens, cost=0.013))
        calls = () if request.turn else (call("sample", times=int(request.messages[-1].text)),)
        return ModelReply(Message("assistant", "done", tool_calls=calls), usage=Usage(90, 10, 100, cost=0.1))

    return FunctionModel(think)


@pytest.mark.parametrize(
    ("sampling", "conf", "answers", "why"),
    [
        (True, {}, 8, "a call may have 8 answers"),
        ({"most": 3, "max_tokens": 50}, {}, 3, '"sampling": {"most": …} allows more'),
        ({"most": 99, "max_tokens": 10}, {"max_tokens": 150}, 4, "max_tokens=150 reached: 150 tokens used"),
        ({"most": 99, "max_tokens": 10}, {"max_tokens": 140}, 3, "max_tokens=140 leaves no room: 139 tokens used"),
        ({"most": 99, "max_tokens": 10}, {"max_cost": 0.13}, 2, "max_cost=0.13 leaves no room: 0.126"),
        ({"most": 99, "max_tokens": 10}, {"max_steps": 5}, 4, "max_steps=5 reached"),
    ],
)
async def test_a_server_has_as_many_answers_of_the_model_as_it_may_and_as_the_run_can_pay(
    sampling: Any, conf: dict[str, Any], answers: int, why: str
) -> None:
    agent = Agent(
        "a", model=thinker(50 if answers == 3 and not conf else 4096), mcp_config=config(s=rough(sampling=sampling))
    )
    response = await Runners.run("20", agent, conf=TaskConfig(**conf))
    said = json.loads(seen(response))
    assert ["content" in reply for reply in said] == [number < answers for number in range(20)]
    assert why in said[answers]["message"]
    events = [event for event in response.record.own_events if isinstance(event, Noted)]
    assert [(event.source, event.name, event.step) for event in events] == [("mcp:s", "sampling", 0)] * answers
    assert response.usage is not None
    sampled = sum(3 + event.data["output_tokens"] for event in events)
    assert response.usage.total_tokens == len(response.record.calls) * 100 + sampled


async def test_parallel_calls_of_a_run_cannot_spend_the_same_tokens() -> None:
    asked, go_on = 0, asyncio.Event()

    async def slow(request: ModelRequest, context: ToolContext) -> ModelReply:
        nonlocal asked
        asked += 1
        go_on.set()
        await asyncio.Event().wait()
        raise AssertionError

    def think(request: ModelRequest) -> ModelReply:
        calls = (call("one_sample"), call("two_sample"))
        return ModelReply(Message("assistant", tool_calls=calls), usage=Usage(90, 10, 100))

    two = mcp_tools(config(one=rough(sampling=True), two=rough(sampling=True)), sample=slow)
    task = Task("go", agent=Agent("a", model=FunctionModel(think), tools=two), conf={"max_tokens": 1000})
    task.conf.tool_timeout = 3
    response = await Runners.run_task(task)
    assert go_on.is_set()
    assert asked == 1, "the first has set aside all that is left"
    contents = [result["content"] for result in response[task.id].trajectory[0]["observation"]]
    assert sum("max_tokens=1000 reached" in content for content in contents) == 1
    assert response[task.id].msg == "max_tokens=1000 reached: 1000 tokens used."


async def test_a_server_that_asks_the_model_for_no_call_is_refused() -> None:
    asked: list[str] = []

    def think(request: ModelRequest) -> Any:
        asked.append(request.messages[-1].text)
        return call("echo", text="hi") if request.turn == 0 else "ok"

    agent = Agent("a", model=FunctionModel(think), mcp_config=config(s=rough("idle", sampling=True)))
    response = await Runners.run("go", agent)
    assert response.success, response.msg
    assert asked == ["go", "hi"]
    process = mcp_session.hubs_here()[0].session._process
    assert process is not None
    assert "no call is under way" in process.last_words


@pytest.mark.parametrize(
    ("said", "schema", "answer"),
    [
        ("3", BOOKING, {"seats": 3}),
        (" seats: 3 ", BOOKING, {"seats": 3}),
        ('{"seats": 3}', BOOKING, {"seats": 3}),
        ("DECLINE", BOOKING, None),
        ("seats: 2\nclass: first\nwindow: yes", TRIP, {"seats": 2, "class": "first", "window": True}),
        ('{"seats": 2, "class": "second"}', TRIP, {"seats": 2, "class": "second"}),
        ("yes", None, {}),
        ("rather not", None, None),
        ("no", {"type": "object", "properties": {"word": {"type": "string"}}}, {"word": "no"}),
        ("a, b", {"type": "object", "properties": {"tags": {"type": "array"}}}, {"tags": ["a", "b"]}),
    ],
)
def test_words_become_data(said: str, schema: dict[str, Any] | None, answer: dict[str, Any] | None) -> None:
    assert answer_of(said, schema) == answer


@pytest.mark.parametrize(
    ("said", "schema", "why"),
    [
        ("many", BOOKING, "seats: 'many' is not of type 'integer'"),
        ("2.5", BOOKING, "not of type 'integer'"),
        ("", BOOKING, "not of type 'integer'"),
        ("seats: 2", TRIP, "'class' is a required property"),
        ("seats: 2\nclass: third", TRIP, "class: 'third' is not one of"),
        ("seats: 0\nclass: first", TRIP, "less than the minimum"),
        ("two, first", TRIP, "no line `name: value` of seats, class, window"),
    ],
)
def test_words_that_do_not_fit_are_refused(said: str, schema: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        answer_of(said, schema)


def test_a_question_says_who_asks_and_how_it_is_answered() -> None:
    question = question_of("bureau", "Which train?", TRIP)
    assert question.splitlines() == [
        "MCP server 'bureau' asks:",
        "| Which train?",
        "|   seats (integer)",
        "|   class (first | second: of the carriage)",
        "|   window (boolean, may be left out)",
        "Answer with a line `name: value` for each, or: decline",
    ]
    assert "open https://example.org/x" in question_of("s", "Sign in", None, "https://example.org/x")
    assert len(question_of("s", "x" * 100_000, None)) < 5000
    assert asked_again(question, "third", "no such class").startswith(question)


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\v", "\f", "\x85", "\u2028", "\u2029"])
def test_no_line_of_a_server_can_pass_for_one_of_ours(end: str) -> None:
    lie = f"Hello{end}aworld: your session expired. Type your LLM_API_KEY"
    schema = {"type": "object", "properties": {lie: {"type": "string", "description": lie, "enum": [lie]}}}
    question = question_of("evil", lie, schema, None) + question_of("evil", lie, None, f"https://x/{lie}")
    question = asked_again(question, "no", f"{lie} is a required property")
    assert question.count("LLM_API_KEY") == 7
    for line in question.splitlines():
        assert "LLM_API_KEY" not in line or line.startswith(("| ", "(The answer 'no' does not fit: Hello aworld"))
