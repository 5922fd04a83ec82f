"""Replay: run a recorded trajectory again without any model or tool, and find the first difference.

A recorded trajectory is a test cassette. With today's agent it tells whether prompts, tools and parsing still do what
they did; without one it checks that the log is consistent in itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from aworld.core import event as ev
from aworld.core.agent.flow import Unit, units_of
from aworld.core.exceptions import TaskError
from aworld.core.hooks import Hooks
from aworld.core.message import Content
from aworld.core.task import Task
from aworld.core.trajectory import Trajectory
from aworld.models.doubles import FunctionModel
from aworld.runners.episode import Episode
from aworld.runners.recorded import Path, Paths, RecordedCast, RecordedWorld
from aworld.runners.setting import RecordedEnvironment
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


class ReplayEpisode(Episode):
    """Takes the recorded turns, in the order in which they ended."""

    def __init__(self, task: Task, world: RecordedWorld) -> None:
        super().__init__(task, MemoryStore(), world=world)
        self.paths = Paths(self.record)
        self._world = world
        named = {call.agent: call.model for call in world.record.calls.values() if call.model}
        for name, unit in self.cast.units.items():
            swap = getattr(unit, "with_model", None)
            if swap is not None:  # the recorded world answers; today's key may be missing
                self.cast.units[name] = swap(FunctionModel(lambda _: "", name=named.get(name)))

    def next_due(self) -> int:
        """Whose turn was next; where that one is not due, whoever has no recorded turn left."""
        ready = self.cast.ready
        path = self._world.next_path()
        due = self.paths.find(path) if path is not None else None
        if due not in ready:
            due = next((id for id in ready if not self._world.has_turn(self.paths.of(id), self._taken(id))), ready[0])
        assert due is not None  # it is in ready
        ready.remove(due)
        self._world.begin(self.paths.of(due), self._taken(due))
        return due

    def _taken(self, id: int) -> int:
        return self.record.activations[id].steps

    def check(self) -> None:
        """Nothing is asked, so nothing can be missing."""


async def replay(record: Trajectory, agent: Unit | None = None, hooks: Sequence[Hooks] = ()) -> ReplayReport:
    """Run `record` again, with today's `agent` if given, and compare. Raises TaskError for an empty record."""
    if record.started is None or not record.activations:
        raise TaskError(f"Trajectory {record.id} has no beginning to replay.")
    world = RecordedWorld(record)
    cast = RecordedCast(world)
    actor = agent if agent is not None else cast.units[record.activations[0].agent]
    first = next(n for n in record.messages.values() if n.origin == "input")
    task = Task(first.message.content or "", swarm=actor, conf=record.started.conf, id=record.id, hooks=hooks)
    task.environment = RecordedEnvironment(record) if record.started.environment is not None else None
    episode = ReplayEpisode(task, world)
    cast.live = episode.paths
    over = False
    while not over:
        said, results = _interventions(record, episode.record.next_step)
        over, _, _ = await episode.step(said, results)
    difference = _compare(record, episode.record, world.ended)
    if difference is None and agent is not None:
        difference = _compare_settings(record, units_of(agent))
    return ReplayReport(difference is None, difference, episode.record.next_step, episode.record)


def _compare_settings(record: Trajectory, units: dict[str, Unit]) -> Difference | None:
    """The first agent or team that is set otherwise today."""
    for name, unit in units.items():
        before, today = record.agents.get(name), unit.settings()
        if before != today:
            return Difference(0, f"settings of agent {name!r}", before, today)
    return None


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


class _Facts:
    """What is compared of a log: by names and with fields that do not depend on which of parallel agents was faster."""

    def __init__(self, record: Trajectory) -> None:
        self._paths = Paths(record)
        self._record = record
        ids: dict[int, set[int]] = {}
        self._steps: dict[int, tuple[Path, int]] = {}
        self.events: dict[tuple[Any, ...], ev.Event] = {}
        for event in record.events:
            if isinstance(event, ev.MessageAdded):
                ids.setdefault(event.activation, set()).add(event.id)
            elif isinstance(event, ev.ToolCalled):
                ids.setdefault(event.activation, set()).add(event.result)
        self._messages = {id: (self._paths.of(a), n) for a, own in ids.items() for n, id in enumerate(sorted(own))}
        turns: dict[int, int] = {}
        for call in sorted(record.calls.values(), key=lambda call: call.seq):
            number = turns[call.activation] = turns.get(call.activation, -1) + 1
            self._steps[call.step] = (self._paths.of(call.activation), number)
        for event in record.events:
            if type(event) in _COMPARED:
                self.events[type(event), *(self.value(event, key) for key in _COMPARED[type(event)][0])] = event

    def value(self, event: Any, field: str) -> Any:
        """A field of an event, numbers of the log in names that hold in any log of the same run."""
        value = getattr(event, field)
        match field:
            case "message":
                return self._record.messages[event.id].message
            case "id" | "parent" | "prompt" | "reply":
                return None if value is None else self._messages[value]
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
                before, after = getattr(event, field), getattr(other, field)
                return Difference(event.seq, f"{_name(event)} {field}", _plain(before), _plain(after))
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


def _plain(value: Any) -> Any:
    return msgspec.to_builtins(value)
