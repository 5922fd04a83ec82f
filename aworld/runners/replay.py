"""Replay: run a recorded trajectory again without any model or tool, and find the first difference.

A recorded trajectory is a test cassette. With today's agent it tells whether prompts, tools and parsing still do what
they did; without one it checks that the log is consistent in itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec

from aworld.config.conf import TaskConfig
from aworld.core import event as ev
from aworld.core.agent.base import BaseAgent
from aworld.core.agent.flow import Unit, units_of
from aworld.core.common import ActionResult
from aworld.core.event import Status
from aworld.core.exceptions import AWorldError, ModelError, TaskError
from aworld.core.hooks import Hooks
from aworld.core.message import Content, Message, ToolCall
from aworld.core.model import ModelReply, ModelRequest
from aworld.core.output import GUARDRAIL
from aworld.core.run_environment import Reward
from aworld.core.task import Prefix, Task
from aworld.core.tool.base import Guardrail, ToolContext
from aworld.core.tool.toolkit import Offer, digest_of
from aworld.core.trajectory import Trajectory
from aworld.models.call import CallFailed, Outcome, Tries
from aworld.models.doubles import FunctionModel
from aworld.runners.driver import Episode
from aworld.runners.functions import On, name_of
from aworld.runners.run import World
from aworld.runners.turn import result_of
from aworld.trajectory import MemoryStore, TrajectoryStore


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


async def replay(record: Trajectory, agent: Unit | None = None, hooks: Sequence[Hooks] = ()) -> ReplayReport:
    """Run `record` again with today's `agent` and compare; without one, check the log in itself.

    Raises TaskError for an empty record.
    """
    root = record.activations.get(0)
    if record.started is None or root is None or root.input is None:
        raise TaskError(f"Trajectory {record.id} has no beginning to replay.")
    if agent is None:
        difference = check_log(record)
        return ReplayReport(difference is None, difference, record.next_step, record)
    world, store = RecordedWorld(record, hooks), MemoryStore()
    driver = Episode(_task_again(record, root.input, agent, hooks, store), store, world=world)
    over = False
    while not over:
        observation, results = _interventions(record, driver.record.next_step)
        over, _, _ = await driver.step(observation, results)
    difference = _compare(record, driver.record, world.ended) or _compare_settings(record, units_of(agent))
    return ReplayReport(difference is None, difference, driver.record.next_step, driver.record)


def _task_again(record: Trajectory, input: int, agent: Unit, hooks: Sequence[Hooks], store: TrajectoryStore) -> Task:
    """The task of a recorded run; the turns before it, in a conversation, are put into `store`."""
    assert record.started is not None  # the caller has looked
    nodes = record.messages
    earlier = [nodes[id] for id in record.path_ids(nodes[input].parent) if id >= record.first_message]
    history = [node.message for node in earlier if node.origin == "input"]
    asked = nodes[input].message.content or ""
    task = Task(
        [*history, Message("user", asked)] if history else asked if isinstance(asked, str) else list(asked),
        swarm=agent,
        conf=record.started.conf,
        id=record.id,
        hooks=hooks,
        environment=RecordedEnvironment(record) if record.started.environment is not None else None,
    )
    if record.started.after and record.started.forked_from is not None:
        before = Trajectory.of(record.started.forked_from.id, record.events[: record.first_seq])
        store.append(before.id, before.events)
        task.prefix = Prefix(before, record.first_seq, after=True)
    return task


def check_log(record: Trajectory) -> Difference | None:
    """The first place where a log breaks the rules that hold for all logs; None when it keeps them."""
    follower = Trajectory(record.id)
    for event in record.events:
        wrong = _broken_rule(follower, event)
        if wrong is not None:
            what, recorded, due = wrong
            return Difference(event.seq, f"{_name(event)} {what}", recorded, due)
        follower.apply(event)
    return None


def _broken_rule(record: Trajectory, event: ev.Event) -> tuple[str, Any, Any] | None:
    """What is wrong with an event behind those that `record` has: a field, what it says, and what it may say."""
    working = getattr(event, "activation", None)
    if not isinstance(event, ev.Started | ev.AgentStarted | ev.MessageAdded) and isinstance(working, int):
        activation = record.activations.get(working)
        if activation is None:
            return "activation", working, sorted(record.activations)
    match event:
        case ev.Finished() | ev.AgentStarted() | ev.ModelCalled() if record.finished is not None:
            return "comes behind the end", event.seq, record.finished.seq
        case ev.MessageAdded():
            return _broken_message(record, event)
        case ev.ToolsetOffered():
            digest = digest_of(event.tools)
            return None if digest == event.digest else ("digest", event.digest, digest)
        case ev.ModelCalled():
            activation = record.activations[event.activation]
            if activation.open_calls:
                return "while calls are open", [call.call_id for call in activation.open_calls], []
            if event.step in record.calls:
                return "step", event.step, record.next_step
            for name, id in (("prompt", event.prompt), ("reply", event.reply)):
                if id is not None and id not in record.messages:
                    return name, id, record.next_message
            if event.toolset is not None and event.toolset not in record.toolsets:
                return "toolset", event.toolset, sorted(record.toolsets)
            return _unanswered(record, event.prompt)
        case ev.AgentFinished():
            return ("comes twice", event.activation, None) if record.activations[event.activation].finished else None
        case ev.ToolReturned():
            calls = [call.call_id for call in record.activations[event.activation].calls]
            return None if event.call_id in calls else ("call_id", event.call_id, calls)
        case ev.Finished():
            still = [call.call_id for activation in record.activations.values() for call in activation.open_calls]
            return ("while calls are open", still, []) if still else None
        case _:
            return None


def _broken_message(record: Trajectory, event: ev.MessageAdded) -> tuple[str, Any, Any] | None:
    if event.id in record.messages:
        return "id", event.id, record.next_message
    kept = {call.result for activation in record.activations.values() for call in activation.calls}
    for name, id in (("parent", event.parent), ("same_as", event.same_as), ("back_to", event.back_to)):
        if id is not None and id not in record.messages and id not in kept:  # answers come in any order
            return name, id, record.next_message
    activation = record.activations.get(event.activation)
    if activation is not None and activation.input is None and event.message is not None and not event.aside:
        leaf = activation.leaf
        if event.message.role == "user" and leaf is not None and event.parent != leaf:
            return "parent", event.parent, leaf
    return ("message", None, "a message, or the node that holds it") if event.message is event.same_as else None


def _unanswered(record: Trajectory, leaf: int | None) -> tuple[str, Any, Any] | None:
    """Calls in a prompt that their answers do not follow, in the order of the calls."""
    due: list[str] = []
    for message in record.path(leaf):
        if message.role == "tool" and due and message.tool_call_id == due[0]:
            due.pop(0)
        elif message.role == "tool" or due:
            return "prompt", message.tool_call_id, due
        else:
            due = [call.id for call in message.tool_calls]
    return ("prompt", None, due) if due else None


def _compare_settings(record: Trajectory, units: dict[str, Unit]) -> Difference | None:
    """The first agent or team that is set otherwise today."""
    for name, unit in units.items():
        before, today = record.agents.get(name), unit.settings()
        if before is not None and record.started is not None and not record.started.definitions:
            before = {key: value for key, value in before.items() if key in today and key not in ("type", "members")}
            today = {key: today[key] for key in before}  # logs of older versions tell less
        if before != today:
            return Difference(0, f"settings of agent {name!r}", before, today)
    return None


def _interventions(record: Trajectory, step: int) -> tuple[Content | None, dict[str, Content]]:
    """What people put in before a step: an observation, and results in the place of others."""
    last, due = record.calls.get(step - 1), record.calls.get(step)
    lower = last.seq if last is not None else 0
    upper = due.seq if due is not None else len(record.events)
    observation: Content | None = None
    results: dict[str, Content] = {}
    for event in record.events[lower:upper]:
        if isinstance(event, ev.MessageAdded) and event.origin == "human" and event.message is not None:
            if event.message.role == "tool":
                results[event.message.tool_call_id or ""] = event.message.content or ""
            else:
                observation = event.message.content
    return observation, results


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


class _Facts:
    """What is compared of a log: by names and with fields that do not depend on which of parallel agents was faster."""

    def __init__(self, record: Trajectory) -> None:
        self._paths = Paths(record)
        self._record = record
        ids: dict[int, set[int]] = {}
        self._steps: dict[int, tuple[Path, int]] = {}
        self.events: dict[tuple[Any, ...], ev.Event] = {}
        for event in record.own_events:
            if isinstance(event, ev.MessageAdded):
                ids.setdefault(event.activation, set()).add(event.id)
            elif isinstance(event, ev.ToolCalled):
                ids.setdefault(event.activation, set()).add(event.result)
        self._messages = {id: (self._paths.of(a), n) for a, own in ids.items() for n, id in enumerate(sorted(own))}
        turns: dict[int, int] = {}
        for call in sorted(record.calls.values(), key=lambda call: call.seq):
            number = turns[call.activation] = turns.get(call.activation, -1) + 1
            self._steps[call.step] = (self._paths.of(call.activation), number)
        for event in record.own_events:
            if type(event) in _COMPARED:
                self.events[type(event), *(self.value(event, key) for key in _COMPARED[type(event)][0])] = event

    def value(self, event: Any, field: str) -> Any:
        """A field of an event, numbers of the log in names that hold in any log of the same run."""
        value = getattr(event, field)
        match field:
            case "message":
                return self._record.messages[event.id].message
            case "id" | "parent" | "prompt" | "reply":
                return None if value is None else self._messages.get(value, value)  # of a turn before: the same
            case "result":
                return self._messages[value]
            case "step":
                return self._steps[value]
            case "activation" | "caller":
                return None if value is None else self._paths.of(value)
            case _:
                return value


def _compare(recorded: Trajectory, replayed: Trajectory, cut: bool) -> Difference | None:
    """The first difference. `cut`: the recording ended in the middle, so nothing is missing behind its end."""
    then, now = _Facts(recorded), _Facts(replayed)
    natural = _is_natural(recorded)
    for key, event in then.events.items():
        other = now.events.get(key)
        if isinstance(event, ev.Finished) and not natural:
            continue
        if other is None:
            return Difference(event.seq, _name(event), msgspec.to_builtins(event), None)
        for field in _COMPARED[type(event)][1]:
            if then.value(event, field) != now.value(other, field):
                before, after = (msgspec.to_builtins(getattr(one, field)) for one in (event, other))
                return Difference(event.seq, f"{_name(event)} {field}", before, after)
    if cut and not natural:
        return None
    for key, event in now.events.items():
        if key not in then.events and not (isinstance(event, ev.Finished) and not natural):
            return Difference(None, _name(event), None, msgspec.to_builtins(event))
    return None


def _is_natural(record: Trajectory) -> bool:
    """Whether a run came to an end of its own, that a replay comes to as well."""
    if record.status == "limit_reached":  # where several were at work, calls under way were lost
        working = {one.id: one.caller for one in record.activations.values() if one.finished is None}
        return len(working.keys() - working.values()) <= 1
    return record.status == "finished" or (record.status == "failed" and record.activations[0].finished is not None)


def _name(event: ev.Event) -> str:
    numbers = (str(getattr(event, key)) for key in _COMPARED[type(event)][0])
    return " ".join((str(event.__struct_config__.tag), *numbers))


Path: TypeAlias = tuple[tuple[str, int], ...]
"""From the root down: the place in a team or the call of an agent, and how often it was taken before."""


class Paths:
    """The path of each activation of a trajectory, which may still grow."""

    def __init__(self, record: Trajectory) -> None:
        self._record = record
        self._paths: list[Path] = []
        self._ids: dict[Path, int] = {}
        self._taken: dict[tuple[int, str], int] = {}

    def of(self, id: int) -> Path:
        """The path of an activation."""
        self._read()
        return self._paths[id]

    def find(self, path: Path) -> int | None:
        """The activation that has this path, None when there is none yet."""
        self._read()
        return self._ids.get(path)

    def _read(self) -> None:
        for id in range(len(self._paths), len(self._record.activations)):
            one = self._record.activations[id]
            path: Path = ()
            if one.caller is not None:
                place = one.node if one.call_id is None else one.call_id
                before = self._taken.get((one.caller, place or ""), 0)
                self._taken[one.caller, place or ""] = before + 1
                path = (*self._paths[one.caller], (place or "", before))
            self._paths.append(path)
            self._ids[path] = id


class EndOfRecord(AWorldError):
    """The recording has nothing more to say."""


class RecordedWorld(World):
    """Answers what was answered then. Takes the recorded turns one at a time, in the order in which they ended."""

    live = False

    def __init__(self, record: Trajectory, hooks: Sequence[Hooks] = ()) -> None:
        self.record = record
        self._hooked = bool(hooks)
        self.ended = False
        """Whether more was asked than was recorded."""
        self._paths = Paths(record)
        self._replayed_paths: Paths | None = None
        self._models = {call.agent: call.model for call in record.calls.values() if call.model}
        self._turn = 0
        self._turns: list[ev.ModelCalled] = []
        """The recorded turns of whoever is at work, and which of them it is."""
        self._calls: dict[Path, list[ev.ModelCalled]] = {}
        self._results: dict[tuple[int, str], ev.ToolReturned] = {}
        self._verdicts: dict[tuple[Path, str, str, str], deque[Any]] = {}
        self._instructions: dict[int, str] = {}
        """What was told first, before hooks rewrote it, by the number of the call."""
        fresh: dict[int, str] = {}
        for event in record.own_events:
            if isinstance(event, ev.ModelCalled):
                self._calls.setdefault(self._paths.of(event.activation), []).append(event)
                if hooks and event.activation in fresh:
                    self._instructions[event.seq] = fresh.pop(event.activation)
            elif isinstance(event, ev.MessageAdded):
                if event.aside and event.message is not None and event.message.role == "system":
                    fresh.setdefault(event.activation, event.message.text)
            elif isinstance(event, ev.ToolReturned):
                self._results.setdefault((event.step, event.call_id), event)
            elif isinstance(event, ev.Noted) and event.source == GUARDRAIL:
                key = self._paths.of(event.activation or 0), event.data["on"], event.data.get("call_id", ""), event.name
                self._verdicts.setdefault(key, deque()).append(event.data)
        self._order = sorted(record.calls.values(), key=lambda call: call.step, reverse=True)
        self._replayed: set[int] = set()

    def stand_in(self, unit: Unit) -> Unit:
        """The agent without its model: this world answers in its place, and today's key may be missing."""
        with_model = getattr(unit, "with_model", None)
        if with_model is None:
            return unit
        return with_model(FunctionModel(lambda _: "", name=self._models.get(unit.name)))

    def next_due(self, ready: deque[int], record: Trajectory) -> int:
        """Whose turn was next; where that one is not due, whoever has no recorded turn left."""
        replayed = self._replayed_paths = self._replayed_paths or Paths(record)
        while self._order and self._order[-1].seq in self._replayed:
            self._order.pop()

        def turns_of(id: int) -> list[ev.ModelCalled]:
            return self._calls.get(replayed.of(id), [])

        due = replayed.find(self._paths.of(self._order[-1].activation)) if self._order else None
        if due is None or due not in ready:
            due = next((id for id in ready if record.activations[id].steps >= len(turns_of(id))), ready[0])
        ready.remove(due)
        self._turns, self._turn = turns_of(due), record.activations[due].steps
        if self._turn < len(self._turns):
            self._replayed.add(self._turns[self._turn].seq)
        return due

    def _recorded(self) -> ev.ModelCalled:
        """The decision of the turn. Raises EndOfRecord."""
        if self._turn >= len(self._turns):
            self.ended = True
            raise EndOfRecord(f"More is asked than was recorded: turn {self._turn + 1} of {len(self._turns)}.")
        return self._turns[self._turn]

    async def instruct(self, agent: BaseAgent, context: ToolContext, limit: float) -> str:
        """What this agent was told first at this turn."""
        call = self._recorded()
        path = self.record.path(call.prompt)
        sent = path[0].text if path and path[0].role == "system" else ""
        return self._instructions.get(call.seq, sent)

    async def judge(
        self, guardrail: Guardrail, context: ToolContext, value: Any, on: On, activation: int, limit: float
    ) -> str | None:
        """What this guardrail said then."""
        assert self._replayed_paths is not None  # a turn is taken
        verdicts = self._verdicts.get((self._replayed_paths.of(activation), on, context.call_id, name_of(guardrail)))
        if not verdicts:
            self.ended = True
            raise EndOfRecord(f"No verdict of guardrail {name_of(guardrail)!r} on this {on} was recorded.")
        verdict = verdicts.popleft()
        if "broken" in verdict:
            raise TaskError(verdict["reason"])
        return verdict.get("reason")

    async def ask(self, model: Any, request: ModelRequest, on_delta: Any = None, on_retry: Any = None) -> Outcome:
        """The reply that this agent got at this turn."""
        call = self._recorded()
        if call.reply is None:
            lost = ModelError((call.error or "failed").removesuffix(f" (after {len(call.attempts)} tries)"))
            raise CallFailed(lost, Tries(call.attempts, call.queued, call.started, call.ended))
        reply = ModelReply(
            self.record.messages[call.reply].message,
            call.finish_reason,
            call.usage,
            self.record.tokens(call),
            call.model,
            call.response_id,
            call.first_token,
        )
        return Outcome(call.attempts, call.queued, call.started, call.ended, reply)

    async def act(self, offer: Offer, call: ToolCall, context: ToolContext, conf: TaskConfig) -> ActionResult:
        """The result that this call had."""
        returned = self._results.get((self._recorded().step, context.call_id))
        if returned is None:
            self.ended = True
            raise EndOfRecord(f"No result of call {context.call_id} in step {context.step} was recorded.")
        result = result_of(self.record, returned)
        if self._hooked and returned.original is not None:  # hooks are given what they were given then
            content, error = returned.original
            result = msgspec.structs.replace(result, content=content, error=error)
        return result


class RecordedEnvironment:
    """The environment of a recorded run, as far as its log tells: for a replay, which judges nothing."""

    def __init__(self, record: Trajectory) -> None:
        self.name = record.started.environment or "" if record.started is not None else ""
        said = [node for node in record.messages.values() if node.origin == "input" and node.parent is not None]
        self._said = [n.message.content for n in said if record.messages[n.parent or 0].message.role == "assistant"]
        self._said.reverse()
        root = record.activations[0].finished
        self._ended = root is not None and root.error is None
        self.answer: Any = root.answer if root is not None else None
        self._steps = len(record.calls)
        self._replayed: Trajectory | None = None

    async def open(self, record: Trajectory, give: Callable[[Reward], None]) -> Content | None:
        """Nothing is told but the input, which is the recorded one."""
        self._replayed = record

    async def respond(self, message: Message) -> Content | None:
        """What was said then."""
        return self._said.pop() if self._said else None

    @property
    def over(self) -> bool:
        """Whether this was the last recorded turn of an episode that ended well."""
        return self._ended and self._replayed is not None and len(self._replayed.calls) >= self._steps

    async def score(self, status: Status, answer: Any, error: str | None) -> Sequence[Reward]:
        """None."""
        return ()

    async def close(self) -> None:
        """Nothing is held."""
