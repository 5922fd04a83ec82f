"""What one call shows does not stick, and is not stored again: prompts with something put in, and compaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aworld.agents.llm_agent import Agent
from aworld.core import event as ev
from aworld.core.agent.base import Turn
from aworld.core.hooks import HookContext, Hooks
from aworld.core.message import Message
from aworld.core.model import ModelRequest
from aworld.core.rows import rows
from aworld.core.trajectory import Trajectory
from aworld.models import FunctionModel
from aworld.models.doubles import Said, call
from aworld.runner import Runners
from aworld.trajectory.atif import atif
from aworld.trajectory.formats import openai, swift
from tests.runners.scenes import add, assert_sound, thinking


class Remember(Hooks):
    """Puts one retrieved message in front of what is asked, as a memory would."""

    def __init__(self, words: str = "You know that 1 + 1 = 2.", *, fresh: bool = False) -> None:
        self.words, self.fresh = words, fresh

    async def before_model(self, at: HookContext, request: ModelRequest) -> ModelRequest:
        words = f"{self.words} ({request.turn})" if self.fresh else self.words
        system, *rest = request.messages
        return msgspec.structs.replace(request, messages=(system, Message("user", words), *rest))


def adding(turns: int) -> Agent:
    def think(request: ModelRequest) -> Said:
        return call("add", a=request.turn, b=1) if request.turn < turns else "done"

    return thinking(think, tools=[add], system_prompt="You add.")


def size(record: Trajectory) -> int:
    return sum(len(ev.encode_event(event)) for event in record.events)


async def record_of(turns: int, hooks: Sequence[Hooks] = ()) -> Trajectory:
    response = await Runners.run("go", adding(turns), hooks=hooks, conf={"max_steps": None})
    assert response.answer == "done", response.msg
    assert_sound(response.record)
    return response.record


@pytest.mark.parametrize("fresh", [False, True])
async def test_what_a_hook_puts_in_costs_at_most_what_the_run_costs(fresh: bool) -> None:
    for turns in (10, 80):
        plain = size(await record_of(turns))
        shown = size(await record_of(turns, [Remember(fresh=fresh)]))
        assert shown < 2 * plain, f"{turns} turns: {shown} bytes, {plain} without the hook"


async def test_what_was_put_in_for_one_call_is_not_in_the_next() -> None:
    record = await record_of(3, [Remember(fresh=True)])
    for step, row in enumerate(rows(record)):
        known = [m["content"] for m in row["state"]["messages"] if "You know" in (m["content"] or "")]
        assert known == [f"You know that 1 + 1 = 2. ({step})"]
    leaf = record.activations[0].leaf
    assert not any("You know" in message.text for message in record.path(leaf))


async def test_every_message_that_the_model_said_keeps_its_weight_in_every_export() -> None:
    record = await record_of(80, [Remember(fresh=True)])
    (sample,) = openai(record)
    weights = [m.get("weight", 1) for m in sample["messages"] if m["role"] == "assistant"]
    assert len(weights) == 81
    assert set(weights) == {1}
    losses = [
        m.get("loss", True) for m in next(iter(swift(record)))["messages"] if m["role"] in ("assistant", "tool_call")
    ]
    assert losses
    assert all(losses)
    (document,) = atif(record)
    agent_steps = [step for step in document["steps"] if step["source"] == "agent"]
    assert len(agent_steps) == 81
    assert all(step.get("llm_call_count", 1) == 1 for step in agent_steps)


class Compacting(Agent):
    """Keeps the last two messages of what it remembers, once it is long."""

    async def decide(self, turn: Turn) -> Message:
        messages = turn.messages
        if len(messages) > 6:
            kept = [messages[0], Message("user", f"{len(messages) - 3} messages before."), *messages[-2:]]
            turn.replace(kept, "keep_two", tokens_before=100, tokens_after=40)
        return await super().decide(turn)


async def test_compaction_moves_the_conversation_on_and_is_on_record() -> None:
    def think(request: ModelRequest) -> Said:
        return call("add", a=request.turn, b=1) if request.turn < 9 else "done"

    agent = Compacting("a", model=FunctionModel(think), tools=[add], system_prompt="You add.")
    response = await Runners.run("go", agent)
    assert response.answer == "done", response.msg
    record = response.record
    assert_sound(record)
    compacted = [event for event in record.events if isinstance(event, ev.Compacted)]
    assert len(compacted) > 1
    assert compacted[0].strategy == "keep_two"
    assert (compacted[0].tokens_before, compacted[0].tokens_after) == (100, 40)
    assert all(len(row["state"]["messages"]) <= 8 for row in rows(record))
    before = record.path(compacted[0].before)
    assert len(before) == 8  # what was is on record
    assert record.path(compacted[0].after)[-2:] == before[-2:]
    said = [record.messages[call_.reply or 0] for call_ in record.calls.values()]
    assert {node.origin for node in said} == {"model"}
    assert (await Runners.replay(response, agent)).same


class Showing(Agent):
    """Shows what a function makes of the conversation."""

    edit: Any

    async def decide(self, turn: Turn) -> Message:
        turn.show(self.edit(list(turn.messages)))
        return await super().decide(turn)


edits = st.lists(st.tuples(st.sampled_from(["drop", "put", "copy", "swap", "cut"]), st.integers(0, 9)), max_size=4)


def edited(messages: list[Message], changes: Sequence[tuple[str, int]]) -> list[Message]:
    """Some messages with changes that a memory, a summary or a template might make."""
    for kind, place in changes:
        at = min(place, len(messages) - 1)
        if kind == "drop" and len(messages) > 1:
            messages.pop(at)
        elif kind == "put":
            messages.insert(at, Message("user", f"put in at {place}"))
        elif kind == "copy":
            messages[at] = msgspec.structs.replace(messages[at])
        elif kind == "swap":
            messages.insert(0, messages.pop(at))
        elif kind == "cut":
            del messages[:at]
    return messages


@settings(max_examples=60, deadline=None)
@given(changes=st.lists(edits, min_size=4, max_size=4))
async def test_a_prompt_is_what_was_sent_whatever_is_shown(changes: list[list[tuple[str, int]]]) -> None:
    sent: list[tuple[Message, ...]] = []

    def think(request: ModelRequest) -> Said:
        sent.append(request.messages)
        return call("add", a=request.turn, b=1) if request.turn < 3 else "done"

    agent = Showing("a", model=FunctionModel(think), tools=[add], system_prompt="You add.")
    turn = iter(changes)

    def edit(messages: list[Message]) -> list[Message]:
        return edited(messages, next(turn))

    agent.edit = edit
    response = await Runners.run("go", agent)
    assert response.answer == "done", response.msg
    record = Trajectory.of(response.id, [ev.decode_event(ev.encode_event(event)) for event in response.record.events])
    assert [record.path(call_.prompt) for call_ in record.calls.values()] == sent
    for call_ in record.calls.values():
        assert [record.messages[id].message for id in record.path_ids(call_.prompt)] == list(record.path(call_.prompt))
        assert record.links(call_.prompt)[-1][1] == len(record.path(call_.prompt))
    leaf = record.activations[0].leaf
    assert [m.role for m in record.path(leaf)] == ["system", "user", *["assistant", "tool"] * 3, "assistant"]
