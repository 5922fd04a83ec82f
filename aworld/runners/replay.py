"""Replay: run a recorded trajectory again without any model or tool, and find the first difference.

A recorded trajectory is a test cassette. With today's agent it tells whether prompts, tools and parsing still do what
they did; without one it checks that the log is consistent in itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from aworld.config.conf import TaskConfig
from aworld.core import event as ev
from aworld.core.agent.base import BaseAgent, Turn
from aworld.core.common import ActionResult
from aworld.core.exceptions import AWorldError, ModelError, TaskError
from aworld.core.hooks import Hooks
from aworld.core.message import Content, Message, ToolCall
from aworld.core.model import ModelReply, ModelRequest
from aworld.core.task import Task
from aworld.core.tool.base import Tool, ToolContext
from aworld.core.tool.toolkit import Offer, Toolkit
from aworld.core.trajectory import Trajectory
from aworld.models.call import CallFailed, Outcome
from aworld.models.doubles import FunctionModel
from aworld.runners.episode import CORRECTION, Episode
from aworld.runners.turn import result_of
from aworld.runners.world import World
from aworld.trajectory import MemoryStore


@dataclass(frozen=True, slots=True)
class Difference:
    """Where a replay first went another way."""

    seq: int | None
    """Number of the recorded event; None when the replay did more than was recorded."""
    what: str
    """The event and field, such as `message 4 content`."""
    recorded: Any
    replayed: Any

    def __str__(self) -> str:
        return f"event {self.seq}: {self.what}: recorded {self.recorded!r}, replayed {self.replayed!r}"


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """What a replay found."""

    same: bool
    difference: Difference | None
    steps: int
    """Steps that were replayed."""
    record: Trajectory
    """The trajectory of the replay."""


class EndOfRecord(AWorldError):
    """The recording has nothing more to say."""


class RecordedWorld(World):
    """Answers what was answered then."""

    def __init__(self, record: Trajectory) -> None:
        self._record = record
        self._calls: dict[str, list[ev.ModelCalled]] = {}
        self._results: dict[tuple[int, str], ev.ToolReturned] = {}
        self.ended = False
        """Whether more was asked than was recorded."""
        for event in record.events:
            if isinstance(event, ev.ModelCalled):
                self._calls.setdefault(event.agent, []).append(event)
            elif isinstance(event, ev.ToolReturned):
                self._results.setdefault((event.step, event.call_id), event)

    async def ask(self, model: Any, request: ModelRequest, on_delta: Any = None, on_retry: Any = None) -> Outcome:
        """The reply that this agent got at this turn."""
        call = self.recorded(request.agent, request.turn)
        if call.reply is None:
            lost = ModelError((call.error or "failed").removesuffix(f" (after {len(call.attempts)} tries)"))
            raise CallFailed(lost, attempts=call.attempts, queued=call.queued, started=call.started, ended=call.ended)
        reply = ModelReply(
            self._record.messages[call.reply].message,
            call.finish_reason,
            call.usage,
            self._record.tokens(call),
            call.model,
            call.response_id,
            call.first_token,
        )
        return Outcome(reply, call.attempts, call.queued, call.started, call.ended)

    async def act(self, offer: Offer, call: ToolCall, context: ToolContext, conf: TaskConfig) -> ActionResult:
        """The result that this call had."""
        returned = self._results.get((context.step, context.call_id))
        if returned is None:
            self.ended = True
            raise EndOfRecord(f"No result of call {context.call_id} in step {context.step} was recorded.")
        return result_of(self._record, returned)

    def recorded(self, agent: str, turn: int) -> ev.ModelCalled:
        """The call number `turn` of an agent. Raises EndOfRecord."""
        calls = self._calls.get(agent, [])
        if turn >= len(calls):
            self.ended = True
            raise EndOfRecord(f"agent={agent} | asks for call {turn + 1}; {len(calls)} were recorded.")
        return calls[turn]


class RecordedAgent(BaseAgent):
    """An agent as the log tells of it, for replays without today's agent."""

    def __init__(self, name: str, world: RecordedWorld, record: Trajectory) -> None:
        super().__init__(name)
        self._world = world
        self._record = record
        self._settings: dict[str, Any] = record.agents.get(name, {})
        self.system_prompt = self._settings.get("system_prompt")
        self.output_retries = len(record.messages)
        self._corrections = _corrections(record)
        self._ended = next((a.finished for a in record.activations.values() if a.agent == name and a.finished), None)
        if self._ended is not None and self._ended.error is not None:  # its answer was given up
            self.output_retries = len(self._corrections)
        self._reply: int | None = None  # of the decision under way: this agent lives for one replay
        call = next((c for c in record.calls.values() if c.agent == name and c.toolset), None)
        tools = record.toolsets[call.toolset] if call is not None and call.toolset is not None else ()
        self.toolkit = Toolkit([RecordedTool(tool) for tool in tools], owner=f"agent {name!r}")

    def settings(self) -> dict[str, Any]:
        """As recorded."""
        return self._settings

    async def decide(self, turn: Turn) -> Message:
        """What was decided."""
        call = self._world.recorded(self.name, turn.index)
        self._reply = call.reply
        if call.provider is None and call.reply is not None:  # code decided
            return self._record.messages[call.reply].message
        return await turn.generate(FunctionModel(lambda _: "", name=call.model))

    def answer_of(self, message: Message) -> Any:
        """The recorded answer. Raises ValueError, with the recorded words, where a correction was asked for."""
        correction = self._corrections.get(self._reply)
        if correction is not None:
            raise ValueError(correction.removesuffix(CORRECTION))
        if self._ended is None:
            return message.text
        if self._ended.error is not None:
            raise ValueError(self._ended.error)
        return self._ended.answer


def _corrections(record: Trajectory) -> dict[int | None, str]:
    """What was said to answers that did not do, by the message that it answered."""
    return {
        node.parent: node.message.text
        for node in record.messages.values()
        if node.origin == "agent"
        and node.message.role == "user"
        and node.parent is not None
        and record.messages[node.parent].message.role == "assistant"
    }


class RecordedTool(Tool):
    """A tool as the log tells of it; the recorded world answers in its place."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self.name, self.description, self.parameters = schema["name"], schema["description"], schema["parameters"]


async def replay(record: Trajectory, agent: BaseAgent | None = None, hooks: Sequence[Hooks] = ()) -> ReplayReport:
    """Run `record` again, with today's `agent` if given, and compare. Raises TaskError for an empty record."""
    if record.started is None or not record.activations:
        raise TaskError(f"Trajectory {record.id} has no beginning to replay.")
    world = RecordedWorld(record)
    if agent is None:
        actor: BaseAgent = RecordedAgent(record.activations[0].agent, world, record)
    else:
        swap = getattr(agent, "with_model", None)
        named = next((call.model for call in record.calls.values() if call.model), None)
        actor = swap(FunctionModel(lambda _: "", name=named)) if swap is not None else agent
    first = next(n for n in record.messages.values() if n.origin == "input")
    task = Task(first.message.content or "", agent=actor, conf=record.started.conf, id=record.id, hooks=hooks)
    episode = Episode(task, MemoryStore(), world=world)
    over = False
    while not over:
        said, results = _interventions(record, episode.record.next_step)
        over, _, _ = await episode.step(said, results)
    difference = _compare(record, episode.record, world.ended)
    if difference is None and agent is not None and agent.settings() != record.agents.get(agent.name):
        before = record.agents.get(agent.name)
        difference = Difference(0, f"settings of agent {agent.name!r}", before, agent.settings())
    return ReplayReport(difference is None, difference, episode.record.next_step, episode.record)


def _interventions(record: Trajectory, step: int) -> tuple[Content | None, dict[str, Content]]:
    """What people put in before a step: an observation, and results in the place of others."""
    last, due = record.calls.get(step - 1), record.calls.get(step)
    lower = last.seq if last is not None else 0
    upper = due.seq if due is not None else len(record.events)
    said: Content | None = None
    results: dict[str, Content] = {}
    for event in record.events[lower:upper]:
        if isinstance(event, ev.MessageAdded) and event.origin == "human" and event.message is not None:
            if event.message.role == "tool":
                results[event.message.tool_call_id or ""] = event.message.content or ""
            else:
                said = event.message.content
    return said, results


_COMPARED: dict[type, tuple[tuple[str, ...], tuple[str, ...]]] = {
    ev.ToolsetOffered: (("digest",), ("tools",)),
    ev.MessageAdded: (("id",), ("parent", "agent", "origin", "message")),
    ev.ModelCalled: (("step",), ("agent", "prompt", "toolset", "model", "reply", "error", "finish_reason", "usage")),
    ev.ToolCalled: (("step", "call_id"), ("name", "arguments", "result")),
    ev.ToolReturned: (("step", "call_id", "result"), ("name", "error")),
    ev.AgentStarted: (("activation",), ("agent", "caller", "call_id", "node")),
    ev.AgentFinished: (("activation",), ("agent", "answer")),
    ev.Finished: ((), ("status", "answer")),
}
"""What is compared: the fields by which an event is found again, and those that must agree."""


def _facts(record: Trajectory) -> dict[tuple[Any, ...], ev.Event]:
    facts: dict[tuple[Any, ...], ev.Event] = {}
    for event in record.events:
        if type(event) in _COMPARED:
            keys, _ = _COMPARED[type(event)]
            facts[type(event), *(getattr(event, key) for key in keys)] = event
    return facts


def _compare(recorded: Trajectory, replayed: Trajectory, cut: bool) -> Difference | None:
    """The first difference. `cut`: the recording ended in the middle, so nothing is missing behind its end."""
    then, now = _facts(recorded), _facts(replayed)
    natural = recorded.status in ("finished", "failed", "limit_reached")
    for key, event in then.items():
        other = now.get(key)
        kind = event.__struct_config__.tag
        if isinstance(event, ev.Finished) and not natural:
            continue
        if other is None:
            return Difference(event.seq, f"{kind} {_name(key)}", msgspec.to_builtins(event), None)
        for field in _COMPARED[type(event)][1]:
            before, after = getattr(event, field), getattr(other, field)
            if before != after:
                plain = msgspec.to_builtins
                return Difference(event.seq, f"{kind} {_name(key)} {field}", plain(before), plain(after))
    if cut and not natural:
        return None
    for key, event in now.items():
        if key not in then and not (isinstance(event, ev.Finished) and not natural):
            kind = event.__struct_config__.tag
            return Difference(None, f"{kind} {_name(key)}", None, msgspec.to_builtins(event))
    return None


def _name(key: tuple[Any, ...]) -> str:
    return " ".join(str(part) for part in key[1:])
