"""The state that agents and tools of a task share, and what it means when members write the same key side by side.

Whether two members may work at the same time is said by their team, not by the clock: else a conflict would come and
go by luck.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aworld.core import event as ev
from aworld.core.agent.base import plain
from aworld.core.agent.flow import Topology, Unit
from aworld.core.context.base import Context
from aworld.core.exceptions import TaskError
from aworld.core.trajectory import Activation
from aworld.runners.journal import Journal


class SharedState:
    """Writes the state of one run."""

    def __init__(self, journal: Journal, units: dict[str, Unit]) -> None:
        self.conflict: str | None = None
        """Two members have set one key, and nobody said how to join that: the run ends with these words."""
        self._journal = journal
        self._record = journal.record
        self._units = units

    def context_of(self, activation: Activation | None) -> Context:
        """The task's context, as one agent writes it."""

        def write(key: str, value: Any) -> None:
            self._set(activation, key, value)

        return Context(self._record.id, self._record.task, self._record.state, write)

    def _set(self, activation: Activation | None, key: str, value: Any) -> None:
        with self._journal.lock:  # a tool may run in a thread
            if self._record.finished is not None or (activation is not None and activation.finished is not None):
                raise TaskError(f"{key!r} was not set: the work that it belongs to has ended.")
            reducer = self._reducer(key)
            other = self._beside(activation, key, every=reducer is not None) if activation is not None else None
            if other is not None and activation is not None:
                if reducer is None:
                    raise self._conflict(other.agent, activation.agent, key)
                value = reducer(self._record.state[key], value)
            self._journal.add(
                ev.StateSet, key=key, value=plain(value), activation=activation.id if activation is not None else None
            )

    def _conflict(self, one: str, other: str, key: str) -> TaskError:
        """End the run: which of two values counts would be a matter of luck."""
        text = (
            f"{one!r} and {other!r} work side by side and both set {key!r}: give them different keys, or say how to "
            f"join them: Swarm(..., state={{{key!r}: function}})."
        )
        self.conflict = self.conflict or text
        self._journal.held = True
        return TaskError(text)

    def _side_by_side(self, one: Activation, other: Activation) -> bool:
        """Whether two activations may work at the same time, neither for the other: their team says, not the clock."""
        above, beside = self._callers(one), self._callers(other)
        depth = 0
        while depth < min(len(above), len(beside)) and above[depth] is beside[depth]:
            depth += 1
        if depth == min(len(above), len(beside)):
            return False
        first, second = above[depth], beside[depth]
        common = self._units[above[depth - 1].agent]
        if isinstance(common, Topology) and first.node is not None and second.node is not None:
            return common.side_by_side(first.node, second.node)
        if second.began < first.began:
            first, second = second, first
        return first.finished is None or first.finished.seq > second.began  # called in one turn of an agent

    def _beside(self, activation: Activation, key: str, *, every: bool) -> Activation | None:
        """Who set a key before and works side by side with `activation`.

        The last one says it all, unless there is a function that joins such writes: then an earlier one may, whose
        value is in what a later one joined.
        """
        activations = self._record.activations
        writers = self._record.writers.get(key, ())
        for number in reversed(writers) if every else writers[-1:]:
            if number is not None and self._side_by_side(activation, activations[number]):
                return activations[number]
        return None

    def _callers(self, activation: Activation) -> list[Activation]:
        """The activations from the root down to this one."""
        found = [activation]
        while found[-1].caller is not None:
            found.append(self._record.activations[found[-1].caller])
        found.reverse()
        return found

    def _reducer(self, key: str) -> Callable[[Any, Any], Any] | None:
        """How writes of parallel members to a key are joined, None when no team says."""
        teams = (unit for unit in self._units.values() if isinstance(unit, Topology))
        return next((team.reducers[key] for team in teams if key in team.reducers), None)
