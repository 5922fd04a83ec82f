"""Beginning again: a run whose process ended, a fork, the answer of a run that is over.

Teams are told again what they were told, in the order of the log; the moves that the log does not have are carried out.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from aworld.core import event as ev
from aworld.core.agent.flow import End, HandoffTool, Move, Result, Start, Topology, UnitTool
from aworld.core.exceptions import TaskError
from aworld.core.message import Content
from aworld.core.tool.base import Tool
from aworld.core.trajectory import Activation
from aworld.runners.action import interrupt_call
from aworld.runners.activations import Activations, moves_of, storable


class Recovery:
    """Puts activations back where the log says that they were."""

    def __init__(self, activations: Activations) -> None:
        self._at = activations
        self._run = activations.run

    def recover(self) -> None:
        """Read off the log who is due. Teams are told again what they were told; calls of lost outcome are closed."""
        record = self._run.record
        missing = {a.agent for a in record.activations.values()} - self._at.units.keys()
        if missing:
            raise TaskError(
                f"The log has members that were not given: {sorted(missing)}; given: {list(self._at.units)}."
            )
        for activation in record.activations.values():
            if activation.caller is not None:
                self._at.children.setdefault(activation.caller, []).append(activation.id)
        for id, moves in self._tell_again().items():
            if record.activations[id].finished is None:
                self._at.move(record.activations[id], moves)
        for activation in list(record.activations.values()):
            unit = self._at.units[activation.agent]
            if activation.finished is not None or isinstance(unit, Topology) or activation.id in self._at.ready:
                continue
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
                    moves = self._tell_result(caller, event, dict(state))
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
            revive = getattr(self._at.units[event.agent], "revive", None)
            revived = revive is not None and event.answer is not None
            self._at.answers[event.activation] = revive(event.answer) if revived and revive else event.answer

    def _tell_result(self, team: int, event: ev.AgentFinished, state: dict[str, Any]) -> list[Move]:
        """Tell a team again what a member came to."""
        activation = self._run.record.activations[event.activation]
        answer = self._at.answers[event.activation]
        result = Result(activation.node or "", event.agent, activation.id, answer, event.error, event.handoff)
        unit = self._at.units[self._run.record.activations[team].agent]
        return moves_of(unit, partial(self._at.flows[team].done, result, state))

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
