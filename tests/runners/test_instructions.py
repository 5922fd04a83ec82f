"""Instructions that are a function: asked before each call, on record, and nobody's trouble but their own run's."""

from __future__ import annotations

import asyncio
import threading
from itertools import count
from typing import Any

import pytest
from msgspec.structs import replace

from aworld.agents.definitions import travels, unit_of
from aworld.agents.files import dump, load
from aworld.agents.llm_agent import Agent
from aworld.config.conf import RunConfig, TaskConfig
from aworld.core import event as ev
from aworld.core.agent.swarm import HandoffSwarm
from aworld.core.definition import AgentDefinition
from aworld.core.exceptions import ConfigError, DeniedError
from aworld.core.hooks import HookContext, Hooks
from aworld.core.model import ModelRequest
from aworld.core.task import Task, TaskResponse
from aworld.core.tool.base import ToolContext
from aworld.models import FunctionModel
from aworld.models.doubles import call
from aworld.runner import Runners
from aworld.trajectory import TrajectoryStore
from tests.runners.scenes import assert_sound, scripted

SUM = call("add", a=1, b=2)


def season(context: ToolContext) -> str:
    """Code that a definition can name."""
    return f"It is {context.context.get('season', 'winter')}."


def prompts(response: TaskResponse) -> list[str | None]:
    """The system message of each call."""
    messages = [row["state"]["messages"] for row in response.trajectory]
    assert all(message["role"] != "system" for path in messages for message in path[1:])
    return [path[0]["content"] if path[0]["role"] == "system" else None for path in messages]


def system_nodes(response: TaskResponse) -> int:
    messages = [e.message for e in response.record.events if isinstance(e, ev.MessageAdded)]
    return sum(message is not None and message.role == "system" for message in messages)


async def test_asked_before_each_call_and_stored_when_changed() -> None:
    async def brief(context: ToolContext) -> str:
        return f"Part {context.step // 2} of {context.agent}."

    response = await Runners.run("x", scripted(SUM, SUM, SUM, "done", system_prompt=brief))
    assert response.answer == "done"
    assert prompts(response) == ["Part 0 of agent.", "Part 0 of agent.", "Part 1 of agent.", "Part 1 of agent."]
    assert system_nodes(response) == 2
    assert_sound(response.record)


async def test_a_function_that_does_not_await_holds_up_nobody() -> None:
    loop, begun, release = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def slow(context: ToolContext) -> str:
        loop.call_soon_threadsafe(begun.set)
        assert release.wait(10)
        return "At last."

    waiting = asyncio.create_task(Runners.run("x", scripted("done", system_prompt=slow)))
    await asyncio.wait_for(begun.wait(), 10)
    other = await Runners.run("y", scripted("quick"))
    release.set()
    assert (other.answer, prompts(await waiting)) == ("quick", ["At last."])


async def test_replay_uses_what_is_on_record_and_resume_asks_again(store: TrajectoryStore) -> None:
    asked = count()

    def brief(context: ToolContext) -> str:
        return f"Asked {next(asked)} times before."

    agent = scripted(SUM, SUM, "done", system_prompt=brief)
    task = Task("x", agent=agent)
    await Runners.step(task, RunConfig(store=store))
    await Runners.step(task, RunConfig(store=store))
    response = await Runners.resume(task.id, agent, store=store)
    assert prompts(response) == [f"Asked {n} times before." for n in range(3)]
    report = await Runners.replay(response.record, agent)
    assert report.same, report.difference
    assert next(asked) == 3
    forked = await Runners.fork(task.id, at=1, agent=agent, store=store)
    assert prompts(forked)[1:] == ["Asked 4 times before.", "Asked 5 times before."]


class Remembering(Hooks):
    """Puts something behind the system prompt of each call."""

    async def before_model(self, at: HookContext, request: ModelRequest) -> ModelRequest:
        first, *rest = request.messages
        return replace(request, messages=(replace(first, content=f"{first.text} You know Ada."), *rest))


async def test_hooks_are_given_what_was_returned_in_a_replay_too() -> None:
    def brief(context: ToolContext) -> str:
        return f"Part {context.step // 2}."

    agent = scripted(SUM, SUM, SUM, "done", system_prompt=brief)
    response = await Runners.run("x", agent, hooks=[Remembering()])
    assert prompts(response) == [f"Part {n // 2}. You know Ada." for n in range(4)]
    report = await Runners.replay(response.record, agent, hooks=[Remembering()])
    assert report.same, report.difference


def named(context: ToolContext) -> str:
    return f"You are {context.agent}."


def silent(context: ToolContext) -> str:
    return ""


def raises(context: ToolContext) -> str:
    raise LookupError("no such customer")


def exits(context: ToolContext) -> str:
    raise SystemExit(3)


def garbled(context: ToolContext) -> str:
    raise ValueError("half \ud800")


def refuses(context: ToolContext) -> str:
    raise DeniedError("not today")


def wordless(context: ToolContext) -> Any:
    return {"text": "brief"}


def broken(context: ToolContext) -> str:
    return "half \ud800"


async def hangs(context: ToolContext) -> str:
    await asyncio.Event().wait()
    return ""


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (raises, "Instructions 'raises' of agent 'agent' raised LookupError: no such customer"),
        (garbled, "Instructions 'garbled' of agent 'agent' raised ValueError: half \\ud800"),
        (refuses, "Instructions 'refuses' of agent 'agent' raised DeniedError: not today"),
        (exits, "Instructions 'exits' of agent 'agent' raised SystemExit: 3"),
        (wordless, "Instructions 'wordless' of agent 'agent' returned {'text': 'brief'}; return text"),
        (broken, "Instructions 'broken' of agent 'agent' returned 'half \\ud800'; return text"),
        (hangs, "Instructions 'hangs' of agent 'agent' had no answer. No answer within 0.01 s; it was stopped."),
    ],
)
async def test_what_goes_wrong_ends_that_run_alone(function: Any, words: str) -> None:
    conf = TaskConfig(tool_timeout=0.01) if function is hangs else TaskConfig()
    bad, good = Task("x", agent=scripted("never", system_prompt=function), conf=conf), Task("y", agent=scripted("well"))
    responses = await Runners.run_task([bad, good])
    assert responses[good.id].answer == "well"
    response = responses[bad.id]
    assert (response.status, len(response.record.calls)) == ("failed", 0)
    assert words in (response.msg or "")
    assert_sound(response.record)


async def test_no_text_is_no_system_message() -> None:
    response = await Runners.run("x", scripted("done", system_prompt=silent))
    assert prompts(response) == [None]


async def test_whoever_takes_over_has_its_own_instructions() -> None:
    first = scripted(call("handoff_to_second", message="yours"), name="first", system_prompt=season, tools=())
    second = scripted("done", name="second", system_prompt=named)
    response = await Runners.run("x", swarm=HandoffSwarm((first, second)))
    assert (response.answer, prompts(response)) == ("done", ["It is winter.", "You are second."])


def test_refused_when_it_takes_no_context() -> None:
    def brief() -> str:
        return "x"

    with pytest.raises(ConfigError, match=r"system_prompt of agent 'a' is called as f\(context\), which it does not"):
        Agent("a", system_prompt=brief)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="system_prompt=3"):
        Agent("a", system_prompt=3)  # type: ignore[arg-type]


async def test_a_definition_names_the_function() -> None:
    agent = Agent("a", system_prompt=season, model="openai:gpt-4o")
    definition = travels(agent)
    assert isinstance(definition, AgentDefinition)
    assert (definition.system_prompt, definition.instructions) == (None, "tests.runners.test_instructions:season")
    assert unit_of(definition).definition == definition
    assert load(dump(agent)).definition == definition
    both = unit_of(definition.model_copy(update={"system_prompt": "You sell ice."}))
    assert isinstance(both, Agent)
    response = await Runners.run("x", both.with_model(FunctionModel(lambda request: request.messages[0].text)))
    assert response.answer == "You sell ice.\n\nIt is winter."
    assert [n.message.role for n in response.record.messages.values()].count("system") == 1
    with pytest.raises(ConfigError, match=r"The instructions of agent 'a', '.*<lambda>', is a lambda"):
        travels(Agent("a", system_prompt=lambda context: "x", model="openai:gpt-4o"))
    assert both.with_system_prompt("Other.").definition.instructions is None
