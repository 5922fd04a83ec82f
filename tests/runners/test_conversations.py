"""Conversations: a run goes on from the end of another, and messages as input."""

from __future__ import annotations

from typing import Any

import pytest

from aworld.agents.llm_agent import Agent
from aworld.config import RunConfig
from aworld.core import event as ev
from aworld.core.agent.swarm import Swarm
from aworld.core.exceptions import TaskError
from aworld.core.message import Message
from aworld.core.model import ModelRequest
from aworld.core.task import Task
from aworld.models import FunctionModel
from aworld.models.doubles import Said, call
from aworld.runner import Runners
from aworld.runners.local import load
from aworld.trajectory import Query, TrajectoryStore
from tests.runners.scenes import add, adder, assert_sound, thinking


def parrot(name: str = "parrot", prompt: str | None = "You repeat.", limit: int | None = None) -> Agent:
    """Says how many user messages it has seen, and the last one."""

    def think(request: ModelRequest) -> Said:
        asked = [m.text for m in request.messages if m.role == "user"]
        if "sum" in asked[-1] and request.messages[-1].role == "user":
            return call("add", a=1, b=2)
        return f"{len(asked)}: {asked[-1]}"

    return thinking(think, tools=[add], name=name, system_prompt=prompt)


async def test_a_run_goes_on_from_another(store: TrajectoryStore) -> None:
    conf = RunConfig(store=store)
    first = await Runners.run("a sum", parrot(), run_conf=conf)
    second = await Runners.run("and then?", parrot(), after=first, run_conf=conf)
    third = await Runners.run("and now?", parrot(), after=second.id, run_conf=conf)
    assert (first.answer, second.answer, third.answer) == ("1: a sum", "2: and then?", "3: and now?")
    record = await load(third.id, store)
    assert record.events == third.record.events
    assert len(third.trajectory) == 1  # its own step
    assert [m["role"] for m in third.trajectory[0]["state"]["messages"]] == [
        "system", "user", "assistant", "tool", "assistant", "user", "assistant", "user",
    ]  # fmt: skip
    assert (record.next_step, len(record.calls), record.started and record.started.after) == (1, 1, True)
    summaries = {summary.id: summary for summary in await store.query()}
    assert summaries[third.id].steps == 1
    assert (await Runners.replay(third, parrot())).same
    assert (await Runners.replay(third)).same


async def test_a_long_conversation_is_stored_once_and_each_turn_has_its_own_limits(store: TrajectoryStore) -> None:
    conf = RunConfig(store=store)
    response: Any = None
    sizes: list[int] = []
    for turn in range(60):
        limits = {"max_steps": 2}
        response = await Runners.run(f"turn {turn}", parrot(), after=response, run_conf=conf, conf=limits)
        assert response.answer == f"{turn + 1}: turn {turn}", response.msg
        own = response.record.own_events
        sizes.append(sum(len(ev.encode_event(event)) for event in own))
    assert max(sizes[1:]) < 1.1 * min(sizes[1:])  # the first has the tools and the prompt


async def test_another_prompt_or_agent_goes_on_with_the_same_messages(store: TrajectoryStore) -> None:
    conf = RunConfig(store=store)
    first = await Runners.run("hello", parrot(), run_conf=conf)
    other = await Runners.run("again", parrot("other", "You repeat twice."), after=first, run_conf=conf)
    assert other.answer == "2: again"
    messages = other.trajectory[0]["state"]["messages"]
    assert [m["content"] for m in messages if m["role"] == "system"] == ["You repeat twice."]
    stored = [e for e in other.record.own_events if isinstance(e, ev.MessageAdded) and e.message is not None]
    assert [e.message.role for e in stored if e.message] == ["system", "user", "assistant"]
    team = await Runners.run("team?", swarm=Swarm(parrot("a"), parrot("b")), after=other, run_conf=conf)
    assert "3: team?" in str(team.trajectory[0]["action"])
    last = await Runners.run("and?", parrot(), after=team, run_conf=conf)
    assert team.answer in str(last.trajectory[0]["state"]["messages"])


async def test_a_conversation_without_a_store() -> None:
    first = await Runners.run("one", parrot())
    second = await Runners.run("two", parrot(), after=first)
    assert second.answer == "2: two"
    finished, _, response = await Runners.step(Task("three", parrot(), after=second))
    assert finished
    assert response.answer == "3: three"


async def test_a_turn_is_rewarded_forked_and_resumed_for_itself(store: TrajectoryStore) -> None:
    conf = RunConfig(store=store)
    first = await Runners.run("a sum", parrot(), run_conf=conf)
    await first.reward(1.0)
    task = Task("another sum", parrot(), after=first)
    await Runners.step(task, conf)
    resumed = await Runners.resume(task.id, parrot(), store=store)
    assert resumed.answer == "2: another sum"
    assert resumed.record.score is None
    await resumed.reward(0.5)
    assert (await load(resumed.id, store)).score == 0.5
    fork = await Runners.fork(resumed.id, parrot(), at=1, store=store)
    assert fork.answer == "2: another sum"
    assert len(fork.trajectory) == 2


async def test_what_has_not_ended_is_not_gone_on_from(store: TrajectoryStore) -> None:
    task = Task("a sum", parrot())
    _, _, response = await Runners.step(task, RunConfig(store=store))
    with pytest.raises(TaskError, match="has not ended"):
        await Runners.run("and?", parrot(), after=response, run_conf=RunConfig(store=store))
    with pytest.raises(TaskError, match="no trajectory"):
        await Runners.run("and?", parrot(), after="nobody", run_conf=RunConfig(store=store))


async def test_a_batch_with_a_turn_before_that_is_missing_or_open_is_refused_before_any_begins(
    store: TrajectoryStore,
) -> None:
    conf = RunConfig(store=store)
    stepped = Task("x", adder(), id="open")
    await Runners.step(stepped, conf)
    for before, why in (("nowhere", "no trajectory 'nowhere'"), ("open", "has not ended")):
        with pytest.raises(TaskError, match=why):
            await Runners.run_task([Task("y", adder(), id="begun"), Task("z", adder(), after=before)], conf)
        assert [summary.id for summary in await store.query(Query())] == ["open"]


@pytest.mark.parametrize("form", ["messages", "dicts"])
async def test_messages_are_an_input(form: str) -> None:
    messages: list[Any] = [Message("user", "hello"), Message("assistant", "1: hello"), Message("user", "again")]
    if form == "dicts":
        messages = [{"role": m.role, "content": m.content} for m in messages]
    agent = parrot()
    response = await Runners.run(messages, agent)
    assert response.answer == "2: again"
    assert_sound(response.record)
    assert [node.origin for node in response.record.messages.values()] == [
        "input", "input", "agent", "input", "input", "model"
    ] or response.record.path(response.record.calls[0].prompt)[1:] == tuple(
        Message(m.role, m.content) if isinstance(m, Message) else Message(m["role"], m["content"]) for m in messages
    )  # fmt: skip
    assert (await Runners.replay(response, agent)).same


@pytest.mark.parametrize(
    ("input", "why"),
    [
        ([{"role": "robot", "content": "x"}], "role='robot'"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "last message"),
        ([{"role": "user", "content": 7}], "content"),
        ([Message("user", "x"), 7], "a message is"),
        ([{"role": "user", "content": "\ud800"}], "surrogate"),
    ],
)
async def test_what_is_no_conversation_is_refused(input: Any, why: str) -> None:
    with pytest.raises(TaskError, match=why):
        await Runners.run(input, Agent("a", model=FunctionModel(lambda _: "x")))


@pytest.mark.parametrize("labels", [{"a": 1}, {1: "a"}, {"": "a"}, ["a"], {"a": "\ud800"}])
def test_labels_are_texts(labels: Any) -> None:
    with pytest.raises(TaskError, match="label"):
        Task("x", parrot(), labels=labels)


@pytest.mark.parametrize("after", [7, ["id"], b"id"])
def test_what_is_no_run_is_not_gone_on_from(after: Any) -> None:
    with pytest.raises(TaskError, match=r"after=.*; give a TaskResponse, a Trajectory"):
        Task("x", parrot(), after=after)
