"""The pen of a run: adds events to the log in memory, hands them to the store, and tells readers of the stream.

Memory is ahead of the store by what has been added since the last `commit`. Two points of a step wait for the disk:
after a model's reply, before its tools run, so that an action is on record before it has an effect; and the end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from numbers import Real
from threading import RLock
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from aworld.core.agent.base import plain
from aworld.core.event import Event, Rewarded
from aworld.core.output import AnyOutput
from aworld.core.run_environment import Reward
from aworld.core.trajectory import Trajectory
from aworld.trajectory.store import TrajectoryStore

E = TypeVar("E")


_live: WeakValueDictionary[tuple[int, str], Journal] = WeakValueDictionary()
"""Journals by store and trajectory, as long as a run or its response holds them."""


class Journal:
    """Writes one trajectory."""

    __slots__ = ("__weakref__", "_outbox", "emit", "held", "lock", "record", "store")

    def __init__(
        self, record: Trajectory, store: TrajectoryStore, emit: Callable[[AnyOutput], None] | None = None
    ) -> None:
        self.record = record
        self.store = store
        self.emit = emit
        self.held = False
        """Whether nothing is handed on until the end is written, because a resume would not come to the same end."""
        self.lock = RLock()
        """Held while the log is written: tools in threads set state."""
        self._outbox: list[Event] = []
        _live[id(store), record.id] = self

    @staticmethod
    def live(store: TrajectoryStore, id_: str) -> Journal | None:
        """The journal that writes this trajectory in this process, so that no second one writes the same numbers."""
        return _live.get((id(store), id_))

    def add(self, kind: Callable[..., E], **fields: Any) -> E:
        """Append an event of this kind. Its number and time are set here."""
        with self.lock:
            event: Any = kind(seq=len(self.record.events), at=time.time(), **fields)
            self.record.apply(event)
            self._outbox.append(event)
        return event

    def commit(self) -> Awaitable[None]:
        """Hand everything added to the store; await the result to know that it is durable. Raises `StoreError`."""
        return self.store.append(self.record.id, self._taken())

    def hand_over(self) -> None:
        """Give what was added to the store without waiting; it is durable within milliseconds."""
        self.store.append(self.record.id, self._taken(), wait=False)

    def _taken(self) -> list[Event]:
        if self.held:
            return []
        with self.lock:
            events, self._outbox = self._outbox, []
        return events


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
    write_reward(
        journal, Reward(value=value, name=name, weight=weight, step=step, source=source, detail=detail), failed=False
    )
    return journal.commit()


def write_reward(journal: Journal, reward: Reward, *, failed: bool = True) -> None:
    """Add a reward to the log, with `failed` also one without a value. Raises ValueError as `give_reward` does."""
    value, step = reward.value, reward.step
    for label, number in (("value", value), ("weight", reward.weight)):
        if number is None and failed and label == "value" and reward.error is not None:
            continue
        if not isinstance(number, Real) or not math.isfinite(number):
            raise ValueError(f"A reward's {label} must be a finite number; got {number!r}.")
    record = journal.record
    if step is not None and step not in record.calls:
        raise ValueError(f"Trajectory {record.id} has no step {step}; it has {len(record.calls)}, from 0.")
    try:
        detail = plain(reward.detail)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(f"A reward's detail must be JSON-able: {error}") from error
    journal.add(
        Rewarded,
        value=None if value is None else float(value),
        name=reward.name,
        weight=float(reward.weight),
        step=step,
        source=reward.source,
        detail=detail,
        error=reward.error,
    )
