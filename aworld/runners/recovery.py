"""Beginning again: a run whose process ended, a fork, the answer of a run that is over.

Teams are told again what they were told, in the order of the log; the moves that the log does not have are carried out.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from aworld.core import event as ev
from aworld.core.agent.flow import End, HandoffTool, Move, Result, Start, Topology, UnitTool
from aworld.core.exceptions import TaskError
from aworld.core.message import Content
from aworld.core.tool.base import Tool
from aworld.core.trajectory import Activation
from aworld.runners.action import interrupt_call
from aworld.runners.cast import moves_of, storable

if TYPE_CHECKING:
    from aworld.runners.cast import Cast
    from aworld.runners.episode import Episode


class Recovery:
    """Puts a cast back where the log says that it was."""

    def __init__(self, cast: Cast) -> None:
        self._cast = cast

    def recover(self) -> None:
        """Read off the log who is due. Teams are told again what they were told; calls of lost outcome are closed."""
        episode, record = self._cast.episode, self._cast.episode.record
        missing = {a.agent for a in record.activations.values()} - self._cast.units.keys()
        if missing:
            raise TaskError(
                f"The log has members that were not given: {sorted(missing)}; given: {list(self._cast.units)}."
            )
        for activation in record.activations.values():
            if activation.caller is not None:
                self._cast.children.setdefault(activation.caller, []).append(activation.id)
        for id, moves in self._tell_again().items():
            if record.activations[id].finished is None:
                self._cast.move(record.activations[id], moves)
        for activation in list(record.activations.values()):
            unit = self._cast.units[activation.agent]
            if activation.finished is not None or isinstance(unit, Topology) or activation.id in self._cast.ready:
                continue
            self._recover_agent(episode, activation)

    def _recover_agent(self, episode: Episode, activation: Activation) -> None:
        record = episode.record
        below = [record.activations[child] for child in self._cast.children.get(activation.id, ())]
        working = {child.call_id for child in below if child.finished is None}
        ours = self._runtime_names(activation)
        for called in activation.open_calls:
            known = called.call_id in working or called.name in ours or called.idempotent or episode.is_fork
            if not known and self._was_running(called):
                interrupt_call(episode, activation, called, "the process that ran it ended")
        still = activation.open_calls
        blocked = [c for c in still if c.call_id in working or episode.unanswered(c)]
        if len(blocked) < len(still) or not still:
            self._cast.make_due(activation)

    def _was_running(self, called: ev.ToolCalled) -> bool:
        """Whether a call was at work when its process ended, and did not wait for a person."""
        record = self._cast.episode.record
        questions = record.questions_of(called)
        return all(q.id in record.answers and record.answered_at[q.id] < called.seq for q in questions)

    def _runtime_names(self, activation: Activation) -> set[str]:
        """Names of the calls of an agent that start other agents or hand over."""
        agent = self._cast.agent(activation)
        tools: list[Any] = [*agent.toolkit.items, *self._cast.episode.task.tools]
        if activation.caller is not None:
            team = self._cast.units[self._cast.episode.record.activations[activation.caller].agent]
            tools += team.tools_of.get(agent.name, ()) if isinstance(team, Topology) else ()
        return {tool.name for tool in tools if isinstance(tool, Tool) and isinstance(tool, UnitTool | HandoffTool)}

    def recall(self) -> Any:
        """The answer of a run that has ended, as the object that it was."""
        self._tell_again()
        return self._cast.answers.get(0)

    def _tell_again(self) -> dict[int, list[Move]]:
        """Rebuild the flows by telling them the log. Returns the moves that it does not have, by team."""
        record = self._cast.episode.record
        inputs = self._inputs()
        state: dict[str, Any] = {}
        due: dict[int, list[Move]] = {}
        begun: dict[int, set[str | None]] = {}
        over: set[int] = set()
        for event in list(record.events):
            if isinstance(event, ev.StateSet):
                state[event.key] = event.value
            elif isinstance(event, ev.AgentStarted):
                unit = self._cast.units[event.agent]
                if event.caller is not None and event.call_id is None:
                    begun.setdefault(event.caller, set()).add(event.node)
                if isinstance(unit, Topology):
                    flow = self._cast.flows[event.activation] = unit.flow()
                    moves = moves_of(unit, partial(flow.begin, inputs[event.activation], dict(state)))
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
            self._cast.answers[event.activation] = event.answer
        elif event.activation not in self._cast.answers:
            revive = getattr(self._cast.units[event.agent], "revive", None)
            revived = revive is not None and event.answer is not None
            self._cast.answers[event.activation] = revive(event.answer) if revived and revive else event.answer

    def _tell_result(self, team: int, event: ev.AgentFinished, state: dict[str, Any]) -> list[Move]:
        """Tell a team again what a member came to."""
        activation = self._cast.episode.record.activations[event.activation]
        answer = self._cast.answers[event.activation]
        result = Result(activation.node or "", event.agent, activation.id, answer, event.error, event.handoff)
        unit = self._cast.units[self._cast.episode.record.activations[team].agent]
        return moves_of(unit, partial(self._cast.flows[team].done, result, state))

    def _note_end(self, team: int, moves: list[Move], over: set[int]) -> None:
        """Keep what the end of a team says beyond the log: the answer as an object, and what to call the run."""
        move = next((move for move in moves if isinstance(move, End)), None)
        if move is not None:
            end = storable(self._cast.episode.record.activations[team], move)
            self._cast.answers[team] = end.answer
            if team == 0 and end.error is not None:
                self._cast.status = end.status
            over.add(team)

    def _inputs(self) -> dict[int, Content]:
        """What was said first to each activation: to a team, what it was asked."""
        found: dict[int, Content] = {}
        for node in self._cast.episode.record.messages.values():
            found.setdefault(node.activation, node.message.content or "")
        return found
