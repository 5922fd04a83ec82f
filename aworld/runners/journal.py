"""The pen of a run: adds events to the log in memory, hands them to the store, and tells readers of the stream.

Memory is ahead of the store by what has been added since the last `commit`. Two points of a step wait for the disk:
after a model's reply, before its tools run, so that an action is on record before it has an effect; and the end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from numbers import Real
from typing import Any, TypeVar

from aworld.core.agent.base import plain
from aworld.core.event import Event, Rewarded
from aworld.core.output import AnyOutput
from aworld.core.trajectory import Trajectory
from aworld.trajectory.store import TrajectoryStore

E = TypeVar("E")


class Journal:
    """Writes one trajectory."""

    __slots__ = ("_outbox", "emit", "record", "store")

    def __init__(
        self, record: Trajectory, store: TrajectoryStore, emit: Callable[[AnyOutput], None] | None = None
    ) -> None:
        self.record = record
        self.store = store
        self.emit = emit
        self._outbox: list[Event] = []

    def add(self, kind: Callable[..., E], **fields: Any) -> E:
        """Append an event of this kind. Its number and time are set here."""
        event: Any = kind(seq=len(self.record.events), at=time.time(), **fields)
        self.record.apply(event)
        self._outbox.append(event)
        return event

    def commit(self) -> Awaitable[None]:
        """Hand everything added to the store; await the result to know that it is durable. Raises `StoreError`."""
        events, self._outbox = self._outbox, []
        return self.store.append(self.record.id, events)

    def hand_over(self) -> None:
        """Give what was added to the store without waiting; it is durable within milliseconds."""
        events, self._outbox = self._outbox, []
        self.store.append(self.record.id, events, wait=False)


def give_reward(
    journal: Journal,
    value: float,
    *,
    name: str = "reward",
    weight: float = 1.0,
    step: int | None = None,
    source: str | None = None,
    detail: Any = None,
) -> Awaitable[None]:
    """Reward a step, or the whole when `step` is None. It counts at once; await the result to know it durable.

    Raises ValueError for a value that no sum could use, a step that the trajectory does not have, or a detail that JSON
    cannot hold.
    """
    for label, number in (("value", value), ("weight", weight)):
        if not isinstance(number, Real) or not math.isfinite(number):
            raise ValueError(f"A reward's {label} must be a finite number; got {number!r}.")
    record = journal.record
    if step is not None and step not in record.calls:
        raise ValueError(f"Trajectory {record.id} has no step {step}; it has {len(record.calls)}, from 0.")
    try:
        detail = plain(detail)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(f"A reward's detail must be JSON-able: {error}") from error
    journal.add(Rewarded, value=float(value), name=name, weight=float(weight), step=step, source=source, detail=detail)
    return journal.commit()
