"""A run as its log tells of it: the world that answered, and agents and teams that do again what they did.

Agents of a swarm work at the same time, so numbers of steps, messages and activations are a matter of luck. What is
recorded is found again by a `Path`: the places from the root down to an agent, which are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from aworld.config.conf import TaskConfig
from aworld.core import event as ev
from aworld.core.agent.base import BaseAgent, Turn
from aworld.core.agent.flow import (
    Carry,
    End,
    Flow,
    HandoffTool,
    Move,
    Result,
    Start,
    State,
    Topology,
    Unit,
    UnitTool,
    handoff_name,
)
from aworld.core.common import ActionResult
from aworld.core.exceptions import AWorldError, ModelError
from aworld.core.message import Content, Message, ToolCall
from aworld.core.model import ModelReply, ModelRequest
from aworld.core.tool.base import Tool, ToolContext
from aworld.core.tool.toolkit import Offer, Toolkit
from aworld.core.trajectory import Activation, Trajectory
from aworld.models.call import CallFailed, Outcome, Tries
from aworld.models.doubles import FunctionModel
from aworld.runners.cast import STOPPED
from aworld.runners.episode import CORRECTION
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
    """Answers what was answered then. Takes one turn at a time: `begin` says whose."""

    def __init__(self, record: Trajectory) -> None:
        self.record = record
        self.ended = False
        """Whether more was asked than was recorded."""
        self.paths = Paths(record)
        self.activation: Activation | None = None
        """The recorded activation whose turn it is, None when there was none."""
        self._turn = 0
        self._calls: dict[int, list[ev.ModelCalled]] = {}
        self._results: dict[tuple[int, str], ev.ToolReturned] = {}
        for event in record.events:
            if isinstance(event, ev.ModelCalled):
                self._calls.setdefault(event.activation, []).append(event)
            elif isinstance(event, ev.ToolReturned):
                self._results.setdefault((event.step, event.call_id), event)
        self._order = sorted(record.calls.values(), key=lambda call: call.seq, reverse=True)
        self._replayed: set[int] = set()

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


class RecordedAgent(BaseAgent):
    """An agent as the log tells of it."""

    def __init__(self, name: str, world: RecordedWorld) -> None:
        super().__init__(name)
        self._world = world
        self._settings: dict[str, Any] = world.record.agents.get(name, {})
        self.system_prompt = self._settings.get("system_prompt")
        self._corrections = _corrections(world.record)
        self._reply: int | None = None  # of the decision under way: this agent lives for one replay

    def settings(self) -> dict[str, Any]:
        """As recorded."""
        return self._settings

    async def decide(self, turn: Turn) -> Message:
        """What was decided."""
        call = self._world.recorded()
        self._reply = call.reply
        self.output_retries = self._retries(call.activation)
        if call.provider is None and call.reply is not None:  # code decided
            return self._world.record.messages[call.reply].message
        return await turn.generate(FunctionModel(lambda _: "", name=call.model))

    def _retries(self, activation: int) -> int:
        """As many corrections as there were, where the answer was given up."""
        record = self._world.record
        ended = record.activations[activation].finished
        if ended is None or ended.error is None:
            return len(record.messages)
        return sum(1 for id in self._corrections if record.messages[id].activation == activation)

    def answer_of(self, message: Message) -> Any:
        """The recorded answer. Raises ValueError, with the recorded words, where a correction was asked for."""
        correction = self._corrections.get(self._reply) if self._reply is not None else None
        if correction is not None:
            raise ValueError(correction.removesuffix(CORRECTION))
        ended = self._world.activation.finished if self._world.activation is not None else None
        if ended is None:
            return message.text
        if ended.error is not None:
            raise ValueError(ended.error)
        return ended.answer


def _corrections(record: Trajectory) -> dict[int, str]:
    """What was said to answers that did not do, by the message that it answered."""
    return {
        node.parent: node.message.text
        for node in record.messages.values()
        if node.origin == "agent"
        and node.message.role == "user"
        and node.parent is not None
        and record.messages[node.parent].message.role == "assistant"
    }


@dataclass(slots=True)
class _Script:
    """What one team did: its moves before any result, and after each, in the order of the results."""

    first: list[ev.AgentStarted] = field(default_factory=list[ev.AgentStarted])
    after: list[tuple[str, list[ev.AgentStarted]]] = field(default_factory=list[tuple[str, list[ev.AgentStarted]]])
    end: tuple[int, ev.AgentFinished] | None = None
    """After how many results it ended, and how."""


class RecordedTeam(Topology):
    """A team as the log tells of it."""

    def __init__(self, name: str, cast: RecordedCast) -> None:
        super().__init__(name)
        self._cast = cast

    def members(self) -> list[Unit]:
        """All units of the run, agents first."""
        return self._cast.members

    def check(self) -> None:
        """Nothing can be missing."""

    def settings(self) -> dict[str, Any]:
        """As recorded."""
        return self._cast.world.record.agents.get(self.name, {})

    def flow(self) -> Flow:
        """What the team that begins now did."""
        return _RecordedFlow(self._cast, self._cast.newest())


class _RecordedFlow:
    """Moves as recorded. Results are taken in the recorded order, whatever order they come in now."""

    def __init__(self, cast: RecordedCast, team: int | None) -> None:
        self._cast = cast
        self._script = cast.scripts.get(team, _Script()) if team is not None else _Script()
        self._came: dict[str, Result] = {}
        self._told = 0

    def begin(self, input: Content, state: State) -> Sequence[Move]:
        return [*(self._start(started, None) for started in self._script.first), *self._end()]

    def done(self, result: Result, state: State) -> Sequence[Move]:
        self._came[result.node] = result
        moves: list[Move] = []
        after = self._script.after
        while self._told < len(after) and after[self._told][0] in self._came:
            node, starts = after[self._told]
            self._told += 1
            moves += [*(self._start(started, self._came[node]) for started in starts), *self._end()]
        return moves

    def _end(self) -> list[Move]:
        end = self._script.end
        if end is None or end[0] != self._told:
            return []
        status = self._cast.world.record.status
        error = end[1].error
        return [End(end[1].answer, error, status if error is not None else "failed")]

    def _start(self, started: ev.AgentStarted, cause: Result | None) -> Start:
        record = self._cast.world.record
        input = self._cast.inputs[started.activation]
        before = [record.messages[id] for id in record.path_ids(input.parent)]
        carried = [node for node in before if node.message.role != "system"]
        carry: Carry | None = None
        if carried and cause is not None:
            shared = any(node.activation != started.activation for node in before)  # it went on in its own branch
            carry = Carry(cause.activation, None if shared else len(carried))
        return Start(started.node or "", self._cast.units[started.agent], _content(input), carry)


class RecordedCast:
    """All agents and teams of a run as its log tells of them."""

    def __init__(self, world: RecordedWorld) -> None:
        self.world = world
        self.live: Paths | None = None
        """The paths of the replay, once there is one."""
        record = world.record
        self.inputs: dict[int, ev.MessageAdded] = {}
        """What was said first to each activation."""
        self.scripts: dict[int, _Script] = {}
        self._read_scripts()
        names = list(dict.fromkeys(a.agent for a in record.activations.values()))
        teams = {record.activations[id].agent for id in self.scripts}
        teams |= {name for name in names if "members" in record.agents.get(name, {})}
        agents = {name: RecordedAgent(name, world) for name in names if name not in teams}
        self.units: dict[str, Unit] = {**agents, **{name: RecordedTeam(name, self) for name in names if name in teams}}
        self.members = list(self.units.values())
        self._hand_out_tools(agents)

    def newest(self) -> int | None:
        """The recorded activation in whose place one has begun just now."""
        assert self.live is not None  # set before the replay begins
        return self.world.paths.find(self.live.newest())

    def _read_scripts(self) -> None:
        activations = self.world.record.activations
        for event in self.world.record.events:
            match event:
                case ev.MessageAdded(message=message) if message is not None and message.role == "user":
                    self.inputs.setdefault(event.activation, event)
                case ev.AgentStarted(caller=int(team), call_id=None):
                    script = self.scripts.setdefault(team, _Script())
                    (script.after[-1][1] if script.after else script.first).append(event)
                case ev.AgentFinished() if not (event.error or "").startswith(STOPPED):
                    one = activations[event.activation]
                    if one.caller is not None and one.call_id is None:
                        self.scripts[one.caller].after.append((one.node or "", []))
                    script = self.scripts.get(one.id)
                    if script is not None:
                        script.end = (len(script.after), event)
                case _:
                    pass

    def _hand_out_tools(self, agents: dict[str, RecordedAgent]) -> None:
        """Give agents what they were offered: as their own, or in the place in a team where they were offered it."""
        record = self.world.record
        placed: dict[tuple[str, str | None], str] = {}
        for call in record.calls.values():
            one = record.activations[call.activation]
            team = record.activations[one.caller].agent if one.caller is not None and one.call_id is None else None
            if call.toolset is not None:
                placed.setdefault((call.agent, team), call.toolset)
        called = self._called()
        own: dict[str, set[str]] = {}
        for (agent, team), toolset in sorted(placed.items(), key=lambda item: item[0][1] is not None):
            tools = [self._tool(schema, called.get(agent, {})) for schema in record.toolsets[toolset]]
            if team is None:
                agents[agent].toolkit = Toolkit(tools, owner=f"agent {agent!r}")
                own[agent] = {tool.name for tool in tools}
            else:
                self.units[team].tools_of[agent] = tuple(t for t in tools if t.name not in own.get(agent, ()))  # pyright: ignore

    def _called(self) -> dict[str, dict[str, str]]:
        """The members that an agent called or handed over to, by the name of the tool."""
        record = self.world.record
        names = {(e.activation, e.call_id): e.name for e in record.events if isinstance(e, ev.ToolCalled)}
        called: dict[str, dict[str, str]] = {}
        for one in record.activations.values():
            if one.caller is not None and one.call_id is not None:
                caller = record.activations[one.caller]
                called.setdefault(caller.agent, {})[names[caller.id, one.call_id]] = one.agent
            if one.finished is not None and one.finished.handoff is not None:
                called.setdefault(one.agent, {})[handoff_name(one.finished.handoff)] = one.finished.handoff
        return called

    def _tool(self, schema: dict[str, Any], called: dict[str, str]) -> Tool:
        name = called.get(schema["name"])
        if name is None:
            return _described(Tool(), schema)
        if schema["name"] == handoff_name(name):
            return _described(HandoffTool(name), schema)
        return _described(UnitTool(self.units[name]), schema)


def _described(tool: Tool, schema: dict[str, Any]) -> Tool:
    """The tool under the name and with the words of the log; the recorded world answers in its place."""
    tool.name, tool.description, tool.parameters = schema["name"], schema["description"], schema["parameters"]
    return tool


def _content(added: ev.MessageAdded) -> Content:
    return (added.message.content if added.message is not None else None) or ""
