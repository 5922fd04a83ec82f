"""The world of a replay: it answers what was answered then.

Agents of a swarm work at the same time, so numbers of steps, messages and activations are a matter of luck. What is
recorded is found again by a `Path`: the places from the root down to an agent, which are not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from aworld.config.conf import TaskConfig
from aworld.core import event as ev
from aworld.core.agent.flow import Unit
from aworld.core.common import ActionResult
from aworld.core.event import Status
from aworld.core.exceptions import AWorldError, ModelError
from aworld.core.message import Content, Message, ToolCall
from aworld.core.model import ModelReply, ModelRequest
from aworld.core.run_environment import Reward
from aworld.core.tool.base import ToolContext
from aworld.core.tool.toolkit import Offer
from aworld.core.trajectory import Activation, Trajectory
from aworld.models.call import CallFailed, Outcome, Tries
from aworld.models.doubles import FunctionModel
from aworld.runners.turn import result_of
from aworld.runners.world import World

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

    def newest(self) -> Path:
        """The path of the activation that began last."""
        return self.of(len(self._record.activations) - 1)

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

    def __init__(self, record: Trajectory) -> None:
        self.record = record
        self.ended = False
        """Whether more was asked than was recorded."""
        self.paths = Paths(record)
        self._replayed_paths: Paths | None = None
        self._models = {call.agent: call.model for call in record.calls.values() if call.model}
        self.activation: Activation | None = None
        """The recorded activation whose turn it is, None when there was none."""
        self._turn = 0
        self._calls: dict[int, list[ev.ModelCalled]] = {}
        self._results: dict[tuple[int, str], ev.ToolReturned] = {}
        for event in record.own_events:
            if isinstance(event, ev.ModelCalled):
                self._calls.setdefault(event.activation, []).append(event)
            elif isinstance(event, ev.ToolReturned):
                self._results.setdefault((event.step, event.call_id), event)
        self._order = sorted(record.calls.values(), key=lambda call: call.seq, reverse=True)
        self._replayed: set[int] = set()

    def stand_in(self, unit: Unit) -> Unit:
        """The agent without its model: this world answers in its place, and today's key may be missing."""
        with_model = getattr(unit, "with_model", None)
        if with_model is None:
            return unit
        return with_model(FunctionModel(lambda _: "", name=self._models.get(unit.name)))

    def next_due(self, ready: deque[int], record: Trajectory) -> int:
        """Whose turn was next; where that one is not due, whoever has no recorded turn left."""
        if self._replayed_paths is None:
            self._replayed_paths = Paths(record)
        paths = self._replayed_paths

        def turns(id: int) -> int:
            return record.activations[id].steps

        path = self.next_path()
        due = paths.find(path) if path is not None else None
        if due is None or due not in ready:
            due = next((id for id in ready if not self.has_turn(paths.of(id), turns(id))), ready[0])
        ready.remove(due)
        self.begin(paths.of(due), turns(due))
        return due

    def next_path(self) -> Path | None:
        """Whose turn it was next, None when all turns have been taken."""
        while self._order and self._order[-1].seq in self._replayed:
            self._order.pop()
        return self.paths.of(self._order[-1].activation) if self._order else None

    def has_turn(self, path: Path, turn: int) -> bool:
        """Whether an agent took a turn of this number."""
        id = self.paths.find(path)
        return id is not None and turn < len(self._calls.get(id, ()))

    def begin(self, path: Path, turn: int) -> None:
        """The next turn is that of the agent at `path`, its turn number `turn`, from 0."""
        id = self.paths.find(path)
        self.activation = None if id is None else self.record.activations[id]
        self._turn = turn
        if self.has_turn(path, turn):
            self._replayed.add(self.recorded().seq)

    def recorded(self) -> ev.ModelCalled:
        """The decision of the turn. Raises EndOfRecord."""
        calls = self._calls.get(self.activation.id, []) if self.activation is not None else []
        if self._turn >= len(calls):
            self.ended = True
            raise EndOfRecord(f"More is asked than was recorded: turn {self._turn + 1} of {len(calls)}.")
        return calls[self._turn]

    async def ask(self, model: Any, request: ModelRequest, on_delta: Any = None, on_retry: Any = None) -> Outcome:
        """The reply that this agent got at this turn."""
        call = self.recorded()
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
        returned = self._results.get((self.recorded().step, context.call_id))
        if returned is None:
            self.ended = True
            raise EndOfRecord(f"No result of call {context.call_id} in step {context.step} was recorded.")
        return result_of(self.record, returned)


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
