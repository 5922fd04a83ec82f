"""Answers of a type, read while they are written."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from aworld.agents.llm_agent import Agent
from aworld.core.exceptions import ModelError
from aworld.core.model import ModelReply, ModelRequest, TextDelta
from aworld.core.output import MessageOutput, PartialOutput, RetryOutput, RunFinished, TextOutput
from aworld.core.task import Task
from aworld.models import FunctionModel, Retry, ScriptedModel
from aworld.models.tool_mode import ToolsByText
from aworld.runner import Runners
from tests.runners.scenes import add, scripted, server_of


class Source(BaseModel):
    url: str


class Finding(BaseModel):
    title: str = Field(alias="the title")
    sources: list[Source] = []
    weight: int = 1


class Branch(BaseModel):
    name: str
    below: list[Branch] = []


@dataclass
class Point:
    x: int
    y: int


class Pair(TypedDict):
    left: str
    right: str


def beginnings(output_type: Any, text: str) -> list[Any]:
    """What each beginning of an answer says, where that changes."""
    agent = Agent("agent", output_type=output_type, model=ScriptedModel([]))
    values: list[Any] = []
    for end in range(len(text) + 1):
        value = agent.partial_of(text[:end])
        if value is not None and (not values or value != values[-1]):
            values.append(value)
    return values


CASES: list[Any] = [
    (
        Finding,
        '```json\n{"the title": "ab", "sources": [{"url": "x"}]}\n```',
        [
            {"title": ""}, {"title": "a"}, {"title": "ab"}, {"title": "ab", "sources": []},
            {"title": "ab", "sources": [Source(url="")]}, {"title": "ab", "sources": [Source(url="x")]},
        ],
    ),
    (Branch, '{"result": {"name": "a", "below": [{"name": "b"}]}}',
     [Branch(name=""), Branch(name="a"), Branch(name="a", below=[Branch(name="")]),
      Branch(name="a", below=[Branch(name="b")])]),
    (Point, '{"x": 12, "y": 3}', [{"x": 1}, {"x": 12}, {"x": 12, "y": 3}]),
    (Pair, '{"left": "l", "right": "r"}',
     [{"left": ""}, {"left": "l"}, {"left": "l", "right": ""}, {"left": "l", "right": "r"}]),
    (list[Point], '{"result": [{"x": 1, "y": 2}, {"x": 3, "y": 4}]}',
     [[], [Point(1, 2)], [Point(1, 2), Point(3, 4)]]),
    (dict[str, int], '{"a": 1, "b": 2}', [{"a": 1}, {"a": 1, "b": 2}]),
    (int, '{"result": 42}', [4, 42]),
    (Point, '{"x": "left", "y": 3}', []),
    (Point, "I would rather not say.", []),
]  # fmt: skip


@pytest.mark.parametrize(("output_type", "text", "values"), CASES)
def test_what_the_beginning_of_an_answer_says(output_type: Any, text: str, values: list[Any]) -> None:
    assert beginnings(output_type, text) == values


@pytest.mark.parametrize("kind", ["double", "server"])
async def test_a_reader_is_shown_what_has_changed(kind: str) -> None:
    text = '{"the title": "On rivers", "sources": [{"url": "a"}, {"url": "b"}], "weight": 7}'
    agent = Agent("agent", output_type=Finding, model=ScriptedModel([text]))
    async with server_of(text) as server:
        if kind == "server":
            agent = server.agent(output_type=Finding, tools=())
        outputs = [output async for output in Runners.streaming_run_task(Task("x", agent))]
    values = [output.value for output in outputs if isinstance(output, PartialOutput)]
    assert len(values) > 3 or kind == "server"  # which sends what it has at once
    assert all(before != after for before, after in pairwise(values))
    assert values[-1] == {"title": "On rivers", "sources": [Source(url="a"), Source(url="b")], "weight": 7}
    places = [type(output) for output in outputs]
    assert places.index(PartialOutput) < places.index(MessageOutput)
    last = outputs[-1]
    assert isinstance(last, RunFinished)
    assert last.response.answer.weight == 7


async def test_a_model_that_is_offered_tools_in_words_shows_its_answer_too() -> None:
    model = ToolsByText(ScriptedModel(['{"answer": {"left": "{one}", "right": "two"}}  ']), "structured")
    agent = Agent("agent", output_type=Pair, model=model, tools=[add])
    outputs = [output async for output in Runners.streaming_run_task(Task("x", agent))]
    values = [output.value for output in outputs if isinstance(output, PartialOutput)]
    assert values[-1] == {"left": "{one}", "right": "two"}
    text = "".join(output.text for output in outputs if isinstance(output, TextOutput))
    assert text == '{"left": "{one}", "right": "two"}'


async def test_nothing_is_read_where_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(Agent, "partial_of", staticmethod(read.append))
    await Runners.run("x", scripted('{"x": 1, "y": 2}', output_type=Point))
    outputs = [output async for output in Runners.streaming_run_task(Task("x", scripted("Plain text.")))]
    assert not read
    assert not any(isinstance(output, PartialOutput) for output in outputs)


async def test_a_try_that_broke_off_is_void() -> None:
    class Breaking(FunctionModel):
        tries = 0

        async def stream(self, request: ModelRequest, on_delta: Any) -> ModelReply:
            self.tries += 1
            pieces = ['{"x": 1', "1, ", '"y": 5}'] if self.tries > 1 else ['{"x": 7, "y": 8', "8"]
            for piece in pieces:
                on_delta(TextDelta(piece))
            if self.tries == 1:
                raise ModelError("broke off", retryable=True)
            return await self.generate(request)

    model = Breaking(lambda request: '{"x": 11, "y": 5}', retry=Retry(tries=1, wait=0.001))
    agent = Agent("agent", output_type=Point, model=model)
    outputs = [output async for output in Runners.streaming_run_task(Task("x", agent))]
    shown = [
        o.value if isinstance(o, PartialOutput) else "void" for o in outputs if type(o) in (PartialOutput, RetryOutput)
    ]
    assert shown == [{"x": 7, "y": 8}, {"x": 7, "y": 88}, "void", {"x": 1}, {"x": 11}, {"x": 11, "y": 5}]


async def test_an_answer_that_is_sent_back_is_read_anew() -> None:
    agent = scripted('{"x": "left"}', '{"x": 1, "y": 2}', output_type=Point)
    outputs = [output async for output in Runners.streaming_run_task(Task("x", agent))]
    assert [(o.step, o.value) for o in outputs if isinstance(o, PartialOutput)] == [
        (1, {"x": 1}),
        (1, {"x": 1, "y": 2}),
    ]


async def test_reading_a_long_answer_takes_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    monkeypatch.setattr(Agent, "partial_of", staticmethod(texts.append))
    text = '{"result": "' + "word " * 20_000 + '"}'
    outputs = [
        output async for output in Runners.streaming_run_task(Task("x", scripted(text, output_type=list[str] | str)))
    ]
    assert sum(isinstance(output, TextOutput) for output in outputs) > 8_000
    assert len(texts) < 300
    assert sum(map(len, texts)) < 40 * len(text)
