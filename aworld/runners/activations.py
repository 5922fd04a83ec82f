"""Activations: the agents and teams at work in a run begin, call each other, end, and begin again.

Every agent or team at work is an activation of the log. Agents take turns; a team's `Flow` is told what its members
came to, in the order of the log, and moves. A run whose process ended, and a fork, are put back where the log says that
they were: teams are told again what they were told, and the moves that the log does not have are carried out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

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
)
from aworld.core.bounded import own_failure
from aworld.core.exceptions import AWorldError, TaskError, ToolError
from aworld.core.message import Content, Message, Origin
from aworld.core.tool.base import Tool
from aworld.core.tool.toolkit import Offer
from aworld.core.trajectory import Activation
from aworld.runners.run import Run, unit_tools
from aworld.runners.turn import answer_call, interrupt_call

STOPPED = "stopped: "
"""How the error of an agent begins for which nobody waits any more."""


def _nothing(_: int) -> None:
    """Nobody minds."""


class Activations:
    """The agents and teams at work in one run."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.units = run.units
        self.ready: deque[int] = deque()
        """The agents whose turn is due, by activation, in the order of waiting."""
        self.answers: dict[int, Any] = {}
        """Answers as Python objects, by activation; the log has their JSON form."""
        self.status: ev.Status | None = None
        """What the run is called when the root has failed, where that is not `failed`."""
        self.on_due: Callable[[int], None] = _nothing
        """Called when an agent has become due."""
        self.on_stop: Callable[[int], None] = _nothing
        """Called when nobody waits for an agent any more."""
        self.is_alone = len(self.units) == 1 or not unit_tools(self.units.values())
        """Whether no agent calls another: then one that is due needs no worker of its own."""
        self._first: Unit = run.task.agent
        """The agent that begins; it has the tools of the task, as the root has."""
        while isinstance(self._first, Topology) and self._first.members():
            self._first = self._first.members()[0]
        self.flows: dict[int, Flow] = {}
        self.children: dict[int, list[int]] = {}
        self.busy: set[int] = set()
        """Those whose turn is not over."""
        self._offers: dict[tuple[str, str | None], Offer] = {}

    def leave(self) -> None:
        """The run is over: let go of the driver, so that its memory is free without the garbage collector."""
        self.on_due = self.on_stop = _nothing

    def agent(self, activation: Activation) -> BaseAgent:
        """The agent that is at work in an activation."""
        unit = self.units[activation.agent]
        assert isinstance(unit, BaseAgent)  # only agents are ready for a turn
        return unit

    # Beginning

    def start(
        self,
        unit: Unit,
        input: Content,
        caller: int | None = None,
        call_id: str | None = None,
        node: str | None = None,
        carry: Carry | None = None,
        history: int | None = None,
    ) -> None:
        """Let an agent or team begin in a branch of its own: its input, behind what is carried over from another's.

        `history` is the end of the conversation that the run goes on with, for those that begin with the run.
        """
        run = self.run
        number = len(run.record.activations)
        run.journal.add(ev.AgentStarted, activation=number, agent=unit.name, caller=caller, call_id=call_id, node=node)
        activation = run.record.activations[number]
        if caller is not None:
            self.children.setdefault(caller, []).append(number)
        origin: Origin = "input" if caller is None else "agent"
        if isinstance(unit, Topology):
            run.recorder.add(activation, Message("user", input), history, origin)
            flow = self.flows[number] = unit.flow()
            self.move(activation, moves_of(unit, partial(flow.begin, input, run.record.state)), history)
            return
        last = None
        if carry is not None:
            history, last = run.record.activations[carry.activation].leaf, carry.last
        run.recorder.add(activation, Message("user", input), self._carry(activation, unit, history, last), origin)
        self.make_due(activation)

    def begin(self, input: Content) -> None:
        """Let the agent or team of the task begin, with what came before in its conversation."""
        run, unit = self.run, self.run.task.agent
        at = Activation(0, unit.name)
        history, answer = run.record.history, run.record.answer_before
        if history is not None and answer is not None and run.record.messages[history].message.role != "assistant":
            # The turn before was a team's: its own branch has what it was asked, not what it answered.
            history = run.recorder.add(at, Message("assistant", readable(answer)), history, "agent", aside=True)
        for message in run.task.history:
            history = run.recorder.add(at, message, history, "input", aside=True)
        self.start(unit, input, history=history)

    def make_due(self, activation: Activation) -> None:
        """Line an agent up for its next turn; one whose turn is not over is lined up at its end."""
        if activation.id not in self.busy and activation.id not in self.ready:
            self.ready.append(activation.id)
            self.on_due(activation.id)

    def end_turn(self, activation: Activation) -> None:
        """The agent's turn is over: it is due again, unless it has ended or waits for an answer."""
        self.busy.discard(activation.id)
        if activation.finished is None:
            still, record = activation.open_calls, self.run.record
            if not still or any(record.questions_of(call) and not self.run.unanswered(call) for call in still):
                self.make_due(activation)

    def _carry(self, activation: Activation, agent: BaseAgent, leaf: int | None, last: int | None) -> int | None:
        """Let an agent see its system prompt, and the (last) messages of another branch. Returns the last of them."""
        recorder = self.run.recorder
        system = agent.system_prompt if agent.instructions is None else None  # else each call has its own
        if leaf is None:
            return recorder.add(activation, Message("system", system), None, "agent") if system else None
        messages = [message for message in self.run.record.path(leaf) if message.role != "system"]
        if last is not None:
            messages = messages[max(0, len(messages) - last) :]
            while messages and messages[0].role == "tool":
                messages.pop(0)  # an answer without its call is refused by providers
        if system:
            messages.insert(0, Message("system", system))
        return recorder.prompt(activation, leaf, messages, aside=False) if messages else None

    def move(self, team: Activation, moves: Sequence[Move], history: int | None = None) -> None:
        """Carry out what a team decided; with `history`, as its first moves."""
        for move in moves:
            if team.finished is not None:
                return
            if isinstance(move, Start):
                self.start(move.unit, move.input, caller=team.id, node=move.node, carry=move.carry, history=history)
            else:
                self._end_team(team, move)

    def _end_team(self, team: Activation, end: End) -> None:
        end = storable(team, end)
        if end.error is not None and team.caller is None:
            self.status = end.status
        self._stop_below(team.id, f"{team.agent} has ended")
        self.finish(team, end.answer, end.error)

    def end(self, answer: Any) -> None:
        """End the whole run with this answer, whoever is at work."""
        root = self.run.record.activations[0]
        if root.finished is None:
            self._stop_below(root.id, "the episode is over")
            self.finish(root, answer)
            self.ready.clear()

    def _stop_below(self, id: int, why: str) -> None:
        for child in self.children.get(id, ()):
            activation = self.run.record.activations[child]
            if activation.finished is None:
                self._stop_below(child, why)
                self._stop(activation, why)

    def _stop(self, activation: Activation, why: str) -> None:
        """End an activation that nobody waits for any more."""
        for called in activation.open_calls:
            interrupt_call(self.run.journal, activation, called, why)
        if activation.id in self.ready:
            self.ready.remove(activation.id)
        self.run.journal.add(
            ev.AgentFinished, activation=activation.id, agent=activation.agent, error=f"{STOPPED}{why}"
        )
        self.on_stop(activation.id)

    # Ending

    def finish(self, activation: Activation, answer: Any, error: str | None = None, handoff: str | None = None) -> None:
        """An agent or team has come to its end: write it, and tell whoever waits for it."""
        name, unit = activation.agent, self.units[activation.agent]
        form = answer
        if not isinstance(answer, str):
            form = unit.recorded(answer) if isinstance(unit, BaseAgent) else plain(answer)
        event = self.run.journal.add(
            ev.AgentFinished, activation=activation.id, agent=name, answer=form, error=error, handoff=handoff
        )
        self.answers[activation.id] = answer
        if activation.caller is None:
            return
        caller = self.run.record.activations[activation.caller]
        if caller.finished is not None:
            return
        if activation.call_id is not None:
            self._return_call(caller, activation, answer, error)
            return
        self.move(caller, self.tell_result(caller, event, self.run.record.state))

    def tell_result(self, team: Activation, event: ev.AgentFinished, state: dict[str, Any]) -> list[Move]:
        """Tell a team what a member came to."""
        activation = self.run.record.activations[event.activation]
        answer = self.answers[activation.id]
        result = Result(activation.node or "", event.agent, activation.id, answer, event.error, event.handoff)
        return moves_of(self.units[team.agent], partial(self.flows[team.id].done, result, state))

    def _return_call(self, caller: Activation, activation: Activation, answer: Any, error: str | None) -> None:
        """Give a member's answer to the agent that called it as a tool."""
        called = next(call for call in caller.open_calls if call.call_id == activation.call_id)
        content = f"{activation.agent} failed: {error}" if error is not None else readable(answer)
        answer_call(self.run.journal, caller, called, content, error)
        below = (self.run.record.activations[child] for child in self.children.get(caller.id, ()))
        waits = any(child.finished is None for child in below) or any(map(self.run.unanswered, caller.open_calls))
        if not waits:
            self.make_due(caller)

    def drop_called(self, activation: Activation) -> None:
        """Stop the members whose calls have been answered by somebody else."""
        still = {called.call_id for called in activation.open_calls}
        for child in self.children.get(activation.id, ()):
            below = self.run.record.activations[child]
            if below.finished is None and below.call_id not in still:
                why = f"the call of {activation.agent} was answered in its place"
                self._stop_below(child, why)
                self._stop(below, why)

    def fail(self, activation: Activation, error: str, status: ev.Status | None = None) -> None:
        """An agent cannot go on."""
        self._stop_below(activation.id, f"{activation.agent} has failed")
        for called in activation.open_calls:
            interrupt_call(self.run.journal, activation, called, error)
        if activation.caller is None:
            self.status = status
        self.finish(activation, None, error)

    # Calls that the runtime carries out itself

    def start_called(self, activation: Activation, offer: Offer) -> None:
        """Start the agents and teams that a turn called as tools."""
        activations = self.run.record.activations
        last = activation.last.seq if activation.last is not None else 0  # call ids may come again in another turn
        children = (activations[child] for child in self.children.get(activation.id, ()))
        begun = {child.call_id for child in children if child.began > last}
        for called in activation.open_calls:
            tool = offer.by_name.get(called.name)
            if not isinstance(tool, UnitTool | HandoffTool) or called.call_id in begun:
                continue
            try:
                text = tool.read(called.arguments)
            except ToolError as refused:
                answer_call(self.run.journal, activation, called, str(refused), str(refused))
                continue
            if isinstance(tool, UnitTool):
                self.start(tool.unit, text, caller=activation.id, call_id=called.call_id)

    def hand_over(self, activation: Activation, offer: Offer) -> None:
        """Carry out the hand-over that a turn asked for, if it did: the first one, once nothing else is open."""
        calls = activation.open_calls
        tools = [tool for call in calls if isinstance(tool := offer.by_name.get(call.name), HandoffTool)]
        if not tools or len(tools) < len(calls):
            return
        first, target, journal = calls[0], tools[0].target, self.run.journal
        words = tools[0].read(first.arguments)
        answer_call(journal, activation, first, f"Control passes to {target}.")
        for called in calls[1:]:
            text = "Only one hand-over a turn; this is void."
            answer_call(journal, activation, called, text, text)
        self.finish(activation, words, handoff=target)

    async def offer(self, activation: Activation) -> Offer:
        """The tools that an agent is offered in its place: its own, its team's, and the task's for the root."""
        agent = self.agent(activation)
        team = None
        if activation.caller is not None and activation.call_id is None:
            team = self.units[self.run.record.activations[activation.caller].agent]
        key = (agent.name, team.name if team is not None else None)
        offer = self._offers.get(key)
        if offer is None:
            extra: list[Any] = list(team.tools_of.get(agent.name, ())) if isinstance(team, Topology) else []
            if activation.caller is None or agent is self._first:
                extra += self.run.task.tools
            scope = self.run.scope
            ready = agent.toolkit.ready(scope) if not extra else None
            offer = self._offers[key] = ready or await agent.toolkit.resolve(extra, scope)
        return offer


def moves_of(team: Unit, tell: Callable[[], Sequence[Move]]) -> list[Move]:
    """What a flow answers. An error in a function that the team was given, such as `until`, is the end of the team."""
    try:
        return list(tell())
    except AWorldError as error:
        return [End(error=str(error))]
    except BaseException as raised:  # noqa: BLE001 - what is no failure of the function is raised again
        return [End(error=f"A function of {team.name!r} raised {own_failure(raised)}")]


def storable(team: Activation, end: End) -> End:
    """An end whose answer the log can keep; any other is an error."""
    try:
        plain(end.answer)
    except (TypeError, ValueError, NotImplementedError) as error:
        return End(error=f"The answer of {team.agent!r} is not JSON-able: {error}")
    return end


class Recovery:
    """Puts activations back where the log says that they were."""

    def __init__(self, activations: Activations) -> None:
        self._at = activations
        self._run = activations.run

    def recover(self) -> None:
        """Read off the log who is due. Teams are told again what they were told; calls of lost outcome are closed."""
        record = self._run.record
        if missing := {a.agent for a in record.activations.values()} - self._at.units.keys():
            names = ", ".join(map(repr, sorted(missing)))
            raise TaskError(
                f"Run {record.id} was begun with {names}, which {list(self._at.units)} have not; give "
                "the agent or team with those names."
            )
        for activation in record.activations.values():
            if activation.caller is not None:
                self._at.children.setdefault(activation.caller, []).append(activation.id)
        for id, moves in self._tell_again().items():
            if record.activations[id].finished is None:
                self._at.move(record.activations[id], moves)
        for activation in list(record.activations.values()):
            is_agent = not isinstance(self._at.units[activation.agent], Topology)
            if activation.finished is None and is_agent and activation.id not in self._at.ready:
                self._recover_agent(activation)

    def _recover_agent(self, activation: Activation) -> None:
        run, record = self._run, self._run.record
        below = [record.activations[child] for child in self._at.children.get(activation.id, ())]
        working = {child.call_id for child in below if child.finished is None}
        ours = self._runtime_names(activation)
        for called in activation.open_calls:
            goes_on = called.call_id in working or called.name in ours or called.idempotent or run.is_fork
            if not goes_on and self._was_running(called):
                interrupt_call(run.journal, activation, called, "the process that ran it ended")
        still = activation.open_calls
        blocked = [c for c in still if c.call_id in working or run.unanswered(c)]
        if len(blocked) < len(still) or not still:
            self._at.make_due(activation)

    def _was_running(self, called: ev.ToolCalled) -> bool:
        """Whether a call was at work when its process ended, and did not wait for a person."""
        record = self._run.record
        questions = record.questions_of(called)
        return all(q.id in record.answers and record.answered_at[q.id] < called.seq for q in questions)

    def _runtime_names(self, activation: Activation) -> set[str]:
        """Names of the calls of an agent that start other agents or hand over."""
        agent = self._at.agent(activation)
        tools: list[Any] = [*agent.toolkit.items, *self._run.task.tools]
        if activation.caller is not None:
            team = self._at.units[self._run.record.activations[activation.caller].agent]
            tools += team.tools_of.get(agent.name, ()) if isinstance(team, Topology) else ()
        return {tool.name for tool in tools if isinstance(tool, Tool) and isinstance(tool, UnitTool | HandoffTool)}

    def recall(self) -> Any:
        """The answer of a run that has ended, as the object that it was."""
        self._tell_again()
        return self._at.answers.get(0)

    def _tell_again(self) -> dict[int, list[Move]]:
        """Rebuild the flows by telling them the log. Returns the moves that it does not have, by team."""
        record = self._run.record
        state: dict[str, Any] = {}
        due: dict[int, list[Move]] = {}
        begun: dict[int, set[str | None]] = {}
        over: set[int] = set()
        for event in list(record.own_events):
            if isinstance(event, ev.StateSet):
                state[event.key] = event.value
            elif isinstance(event, ev.AgentStarted):
                unit = self._at.units[event.agent]
                if event.caller is not None and event.call_id is None:
                    begun.setdefault(event.caller, set()).add(event.node)
                if isinstance(unit, Topology):
                    flow = self._at.flows[event.activation] = unit.flow()
                    moves = moves_of(unit, partial(flow.begin, self._input(event.activation), dict(state)))
                    due[event.activation] = moves
                    self._note_end(event.activation, moves, over)
            elif isinstance(event, ev.AgentFinished):
                self._keep_answer(event)
                caller = record.activations[event.activation].caller
                if caller in due and caller not in over and record.activations[event.activation].call_id is None:
                    moves = self._at.tell_result(record.activations[caller], event, dict(state))
                    due[caller] += moves
                    self._note_end(caller, moves, over)
        return {
            id: [move for move in moves if not (isinstance(move, Start) and move.node in begun.get(id, ()))]
            for id, moves in due.items()
        }

    def _keep_answer(self, event: ev.AgentFinished) -> None:
        """The answer of a member as the object that it was, not its JSON form."""
        if event.error is not None or event.handoff is not None:
            self._at.answers[event.activation] = event.answer
        elif event.activation not in self._at.answers:
            revive = getattr(self._at.units[event.agent], "revive", None) if event.answer is not None else None
            self._at.answers[event.activation] = event.answer if revive is None else revive(event.answer)

    def _note_end(self, team: int, moves: list[Move], over: set[int]) -> None:
        """Keep what the end of a team says beyond the log: the answer as an object, and what to call the run."""
        move = next((move for move in moves if isinstance(move, End)), None)
        if move is not None:
            end = storable(self._run.record.activations[team], move)
            self._at.answers[team] = end.answer
            if team == 0 and end.error is not None:
                self._at.status = end.status
            over.add(team)

    def _input(self, activation: int) -> Content:
        """What a team was asked."""
        record = self._run.record
        input = record.activations[activation].input
        return (record.messages[input].message.content if input is not None else None) or ""
