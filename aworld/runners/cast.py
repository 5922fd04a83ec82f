"""Who is on stage: agents and teams begin, end, and begin again after a crash.

Every agent or team at work is an activation of the log. Agents take turns; a team's `Flow` is told what its members
came to, in the order of the log, and moves. `ready` holds the agents whose turn is due, in the order of waiting.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from aworld.core import event as ev
from aworld.core.agent.base import BaseAgent, plain
from aworld.core.agent.flow import (
    Carry,
    End,
    Flow,
    HandoffTool,
    Move,
    Result,
    Start,
    Topology,
    Unit,
    UnitTool,
    readable,
    units_of,
)
from aworld.core.common import ActionResult
from aworld.core.exceptions import AWorldError, TaskError
from aworld.core.message import Content, Message, Origin
from aworld.core.output import HandoffOutput
from aworld.core.tool.base import Tool
from aworld.core.tool.toolkit import Offer
from aworld.core.trajectory import Activation
from aworld.runners.action import close_call, interrupt_call

if TYPE_CHECKING:
    from aworld.runners.episode import Episode


class Cast:
    """The agents and teams of one run."""

    def __init__(self, episode: Episode, root: Unit) -> None:
        self.root = root
        self.units: dict[str, Unit] = units_of(root) if _has_members(root) else {root.name: root}
        self.ready: deque[int] = deque()
        self.answers: dict[int, Any] = {}
        """Answers as Python objects, by activation; the log has their JSON form."""
        self.status: ev.Status | None = None
        """What the run is called when the root has failed, where that is not `failed`."""
        self._calls_others = any(
            isinstance(tool, UnitTool)
            for unit in self.units.values()
            for tool in (
                unit.toolkit.items if isinstance(unit, BaseAgent) else [t for ts in unit.tools_of.values() for t in ts]
            )
        )
        self._episode = episode
        self._flows: dict[int, Flow] = {}
        self._children: dict[int, list[int]] = {}
        self._busy: set[int] = set()
        self._offers: dict[tuple[str, str | None], Offer] = {}

    def is_alone(self) -> bool:
        """Whether no agent calls another: then one that is due needs no worker of its own."""
        return not self._calls_others

    def side_by_side(self, one: Activation, other: Activation) -> bool:
        """Whether two activations work at the same time, neither for the other."""
        if one.id == other.id or self._works_for(one, other.id) or self._works_for(other, one.id):
            return False
        first, second = (one, other) if one.began < other.began else (other, one)
        return first.finished is None or first.finished.seq > second.began

    def _works_for(self, one: Activation, caller: int) -> bool:
        up = one.caller
        while up is not None and up != caller:
            up = self._episode.record.activations[up].caller
        return up is not None

    def reducer(self, key: str) -> Callable[[Any, Any], Any] | None:
        """How writes of parallel members to a key are joined, None when no team says."""
        teams = (unit for unit in self.units.values() if isinstance(unit, Topology))
        return next((team.reducers[key] for team in teams if key in team.reducers), None)

    def agent(self, activation: Activation) -> BaseAgent:
        """The agent that is at work in an activation."""
        unit = self.units[activation.agent]
        assert isinstance(unit, BaseAgent)  # only agents are ready for a turn
        return unit

    def agents(self) -> list[BaseAgent]:
        """All agents, of all teams."""
        return [unit for unit in self.units.values() if isinstance(unit, BaseAgent)]

    # Beginning

    def start(
        self,
        unit: Unit,
        input: Content,
        caller: int | None = None,
        call_id: str | None = None,
        node: str | None = None,
        carry: Carry | None = None,
    ) -> None:
        """Let an agent or team begin in a branch of its own."""
        episode = self._episode
        number = len(episode.record.activations)
        episode.journal.add(
            ev.AgentStarted, activation=number, agent=unit.name, caller=caller, call_id=call_id, node=node
        )
        activation = episode.record.activations[number]
        if caller is not None:
            self._children.setdefault(caller, []).append(number)
        origin: Origin = "input" if caller is None else "agent"
        if isinstance(unit, Topology):
            episode.add_message(activation, Message("user", input), None, origin)
            flow = self._flows[number] = unit.flow()
            self._move(activation, _moves(partial(flow.begin, input, episode.record.state)))
            return
        if unit.system_prompt:
            episode.add_message(activation, Message("system", unit.system_prompt), None, "agent")
        if carry is not None:
            self._carry(activation, carry)
        episode.add_message(activation, Message("user", input), activation.leaf, origin)
        self.make_due(activation)

    def make_due(self, activation: Activation) -> None:
        """Line an agent up for its next turn; one whose turn is not over is lined up at its end."""
        if activation.id not in self._busy and activation.id not in self.ready:
            self.ready.append(activation.id)
            self._episode.wake()

    def begin_turn(self, activation: Activation) -> None:
        """The agent is at work."""
        self._busy.add(activation.id)

    def end_turn(self, activation: Activation) -> None:
        """The agent's turn is over: it is due again, unless it has ended or waits for an answer."""
        self._busy.discard(activation.id)
        if activation.finished is None and not activation.open_calls:
            self.make_due(activation)

    def _carry(self, activation: Activation, carry: Carry) -> None:
        """Let an agent see messages of another's branch; they are stored once."""
        record = self._episode.record
        ids = record.path_ids(record.activations[carry.activation].leaf)
        ids = [id for id in ids if record.messages[id].message.role != "system"]
        if carry.last is not None:
            ids = ids[max(0, len(ids) - carry.last) :]
            while ids and record.messages[ids[0]].message.role == "tool":
                ids.pop(0)  # an answer without its call is refused by providers
        for id in ids:
            self._episode.journal.add(
                ev.MessageAdded,
                id=record.next_message,
                parent=activation.leaf,
                agent=activation.agent,
                activation=activation.id,
                same_as=id,
                origin=record.messages[id].origin,
            )

    def _move(self, team: Activation, moves: Sequence[Move]) -> None:
        for move in moves:
            if team.finished is not None:
                return
            if isinstance(move, Start):
                self.start(move.unit, move.input, caller=team.id, node=move.node, carry=move.carry)
            else:
                self._end_team(team, move)

    def _end_team(self, team: Activation, end: End) -> None:
        if end.error is not None and team.caller is None:
            self.status = end.status
        self._stop_below(team.id, f"{team.agent} has ended")
        self.finish(team, end.answer, end.error)

    def _stop_below(self, id: int, why: str) -> None:
        for child in self._children.get(id, ()):
            activation = self._episode.record.activations[child]
            if activation.finished is None:
                self._stop_below(child, why)
                self._stop(activation, why)

    def _stop(self, activation: Activation, why: str) -> None:
        """End an activation that nobody waits for any more."""
        for called in activation.open_calls:
            interrupt_call(self._episode, activation, called, why)
        if activation.id in self.ready:
            self.ready.remove(activation.id)
        self._episode.journal.add(
            ev.AgentFinished, activation=activation.id, agent=activation.agent, error=f"stopped: {why}"
        )
        self._episode.stop_work(activation.id)

    # Ending

    def finish(self, activation: Activation, answer: Any, error: str | None = None, handoff: str | None = None) -> None:
        """An agent or team has come to its end: write it, and tell whoever waits for it."""
        self._episode.journal.add(
            ev.AgentFinished,
            activation=activation.id,
            agent=activation.agent,
            answer=plain(answer),
            error=error,
            handoff=handoff,
        )
        self.answers[activation.id] = answer
        if activation.caller is None:
            return
        caller = self._episode.record.activations[activation.caller]
        if caller.finished is not None:
            return
        if activation.call_id is not None:
            self._return_call(caller, activation, answer, error)
            return
        result = Result(activation.node or "", activation.agent, activation.id, answer, error, handoff)
        self._move(caller, _moves(partial(self._flows[caller.id].done, result, self._episode.record.state)))

    def _return_call(self, caller: Activation, activation: Activation, answer: Any, error: str | None) -> None:
        """Give a member's answer to the agent that called it as a tool."""
        called = next(call for call in caller.open_calls if call.call_id == activation.call_id)
        content = f"{activation.agent} failed: {error}" if error is not None else readable(answer)
        close_call(self._episode, caller, called, ActionResult(called.call_id, called.name, content, error))
        if not caller.open_calls:
            self.make_due(caller)

    def fail(self, activation: Activation, error: str, status: ev.Status | None = None) -> None:
        """An agent cannot go on."""
        for called in activation.open_calls:
            interrupt_call(self._episode, activation, called, error)
        if activation.caller is None:
            self.status = status
        self.finish(activation, None, error)

    # Calls that the runtime carries out itself

    def start_called(self, activation: Activation, offer: Offer) -> None:
        """Start the agents and teams that a turn called as tools."""
        activations = self._episode.record.activations
        begun = {activations[child].call_id for child in self._children.get(activation.id, ())}
        for called in activation.open_calls:
            tool = offer.by_name.get(called.name)
            if not isinstance(tool, UnitTool) or called.call_id in begun:
                continue
            text = _argument(called, "input")
            if text is None:
                refusal = f'{called.name} wants {{"input": "what it shall do"}}; got {called.arguments[:200]!r}.'
                close_call(
                    self._episode, activation, called, ActionResult(called.call_id, called.name, refusal, refusal)
                )
            else:
                self.start(tool.unit, text, caller=activation.id, call_id=called.call_id)

    def hand_over(self, activation: Activation, offer: Offer) -> bool:
        """Carry out the hand-over that a turn asked for, if it did: the first one, once nothing else is open."""
        asked = [c for c in activation.open_calls if isinstance(offer.by_name.get(c.name), HandoffTool)]
        if not asked or len(asked) < len(activation.open_calls):
            return False
        first = asked[0]
        tool = offer.by_name[first.name]
        assert isinstance(tool, HandoffTool)
        for called in asked:
            text = (
                f"Control passes to {tool.target}." if called is first else "Only one hand-over a turn; this is void."
            )
            error = None if called is first else text
            close_call(self._episode, activation, called, ActionResult(called.call_id, called.name, text, error))
        emit = self._episode.journal.emit
        if emit is not None:
            emit(
                HandoffOutput(
                    trajectory_id=self._episode.record.id, agent=activation.agent, step=first.step, to=tool.target
                )
            )
        self.finish(activation, _argument(first, "message") or "", handoff=tool.target)
        return True

    def runs_itself(self, called: ev.ToolCalled, offer: Offer) -> bool:
        """Whether a call is carried out by the runtime, not by a tool's own code."""
        return isinstance(offer.by_name.get(called.name), UnitTool | HandoffTool)

    async def offer(self, activation: Activation) -> Offer:
        """The tools that an agent is offered in its place: its own, its team's, and the task's for the root."""
        agent = self.agent(activation)
        team = None
        if activation.caller is not None and activation.call_id is None:
            team = self.units[self._episode.record.activations[activation.caller].agent]
        key = (agent.name, team.name if team is not None else None)
        offer = self._offers.get(key)
        if offer is None:
            extra: list[Any] = list(team.tools_of.get(agent.name, ())) if isinstance(team, Topology) else []
            if activation.caller is None or agent is _first_agent(self.root):
                extra += self._episode.task.tools
            ready = agent.toolkit.ready() if not extra else None
            offer = self._offers[key] = ready or await agent.toolkit.resolve(extra)
        return offer

    # Beginning again

    def recover(self) -> None:
        """Read off the log who is due. Teams are told again what they were told; calls of lost outcome are closed."""
        episode, record = self._episode, self._episode.record
        missing = {a.agent for a in record.activations.values()} - self.units.keys()
        if missing:
            raise TaskError(f"The log has members that were not given: {sorted(missing)}; given: {list(self.units)}.")
        for activation in record.activations.values():
            if activation.caller is not None:
                self._children.setdefault(activation.caller, []).append(activation.id)
        self._tell_again()
        for activation in list(record.activations.values()):
            unit = self.units[activation.agent]
            if activation.finished is not None or isinstance(unit, Topology) or activation.id in self.ready:
                continue
            self._recover_agent(episode, activation)

    def _recover_agent(self, episode: Episode, activation: Activation) -> None:
        record = episode.record
        below = [record.activations[child] for child in self._children.get(activation.id, ())]
        working = {child.call_id for child in below if child.finished is None}
        ours = self._runtime_names(activation)
        for called in activation.open_calls:
            known = called.call_id in working or called.name in ours or called.idempotent or episode.is_fork
            if not known and self._was_running(called):
                interrupt_call(episode, activation, called, "the process that ran it ended")
        still = activation.open_calls
        blocked = [c for c in still if c.call_id in working or episode.unanswered(c)]
        if len(blocked) < len(still) or not still:
            self.make_due(activation)

    def _was_running(self, called: ev.ToolCalled) -> bool:
        """Whether a call was at work when its process ended, and did not wait for a person."""
        record = self._episode.record
        questions = record.questions_of(called)
        return all(q.id in record.answers and record.answered_at[q.id] < called.seq for q in questions)

    def _runtime_names(self, activation: Activation) -> set[str]:
        """Names of the calls of an agent that start other agents or hand over."""
        agent = self.agent(activation)
        tools: list[Any] = [*agent.toolkit.items, *self._episode.task.tools]
        if activation.caller is not None:
            team = self.units[self._episode.record.activations[activation.caller].agent]
            tools += team.tools_of.get(agent.name, ()) if isinstance(team, Topology) else ()
        return {tool.name for tool in tools if isinstance(tool, Tool) and isinstance(tool, UnitTool | HandoffTool)}

    def _tell_again(self) -> None:
        """Rebuild the flows by telling them the log, and carry out the moves that it does not have."""
        record = self._episode.record
        state: dict[str, Any] = {}
        due: dict[int, list[Move]] = {}
        begun: dict[int, set[str | None]] = {}
        for event in list(record.events):
            if isinstance(event, ev.StateSet):
                state[event.key] = event.value
            elif isinstance(event, ev.AgentStarted):
                unit = self.units[event.agent]
                if event.caller is not None and event.call_id is None:
                    begun.setdefault(event.caller, set()).add(event.node)
                if isinstance(unit, Topology):
                    flow = self._flows[event.activation] = unit.flow()
                    asked = self._input_of(event.activation)
                    due[event.activation] = _moves(partial(flow.begin, asked, dict(state)))
            elif isinstance(event, ev.AgentFinished):
                moves = self._tell_result(record.activations[event.activation], event, dict(state))
                if moves is not None:
                    due[moves[0]] += moves[1]
        for id, moves in due.items():
            activation = record.activations[id]
            if activation.finished is None:
                known = begun.get(id, set())
                self._move(activation, [m for m in moves if not (isinstance(m, Start) and m.node in known)])

    def _tell_result(
        self, activation: Activation, event: ev.AgentFinished, state: dict[str, Any]
    ) -> tuple[int, list[Move]] | None:
        """Tell a team again what a member came to; the answer is the object that it was, not its JSON form."""
        if activation.id not in self.answers:
            revive = getattr(self.units[event.agent], "revive", None)
            revived = event.answer is not None and revive is not None and event.handoff is None
            self.answers[activation.id] = revive(event.answer) if revived and revive else event.answer
        caller = activation.caller
        if caller is None or caller not in self._flows or activation.call_id is not None:
            return None
        answer = self.answers[activation.id]
        result = Result(activation.node or "", event.agent, activation.id, answer, event.error, event.handoff)
        moves = _moves(partial(self._flows[caller].done, result, state))
        for move in moves:
            if isinstance(move, End):
                self.answers[caller] = move.answer
        return caller, moves

    def _input_of(self, team: int) -> Content:
        """What a team was asked: the one message of its own."""
        node = next(n for n in self._episode.record.messages.values() if n.activation == team)
        return node.message.content or ""


def _moves(tell: Callable[[], Sequence[Move]]) -> list[Move]:
    """What a flow answers. An error in a function that the team was given, such as `until`, is the end of the team."""
    try:
        return list(tell())
    except AWorldError as error:
        return [End(error=str(error))]
    except Exception as bug:  # noqa: BLE001 - whatever the team's functions raise is data of the run
        return [End(error=f"{type(bug).__name__}: {bug}")]


def _argument(called: ev.ToolCalled, name: str) -> str | None:
    """A text argument of a call, None when it is missing or not text."""
    try:
        value: Any = json.loads(called.arguments or "{}")
    except json.JSONDecodeError:
        return None
    found: Any = cast("dict[str, Any]", value).get(name) if isinstance(value, dict) else None
    return found if isinstance(found, str) else None


def _first_agent(unit: Unit) -> Unit:
    while isinstance(unit, Topology):
        unit = unit.members()[0]
    return unit


def _has_members(unit: Unit) -> bool:
    return isinstance(unit, Topology) or any(isinstance(item, UnitTool) for item in unit.toolkit.items)
