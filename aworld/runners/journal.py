"""The pen of a run: adds events to the log in memory, hands them to the store, and gives notes about the run.

Memory is ahead of the store by what has been added since the last `commit`. Two points of a step wait for the disk:
after a model's reply, before its tools run, so that an action is on record before it has an effect; and the end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Iterator
from numbers import Real
from threading import RLock
from typing import Any, TypeVar
from weakref import WeakMethod

import msgspec

from aworld.core.agent.base import plain
from aworld.core.event import Answered, Commanded, Event, Note, Rewarded
from aworld.core.output import AnyOutput
from aworld.core.run_environment import Reward
from aworld.core.trajectory import Trajectory
from aworld.trajectory.store import Lease, TrajectoryStore

E = TypeVar("E")


class Journal:
    """Writes one trajectory, as long as its run holds the lease."""

    __slots__ = ("__weakref__", "_kept", "_outbox", "_sent", "held", "lease", "lock", "record", "store", "topics")

    def __init__(self, record: Trajectory, store: TrajectoryStore) -> None:
        self.record = record
        self.store = store
        self.topics = store.hub.topics
        """The runs that somebody reads right now, by id."""
        self.lease: Lease | None = None
        self._kept: Lease | None = None
        """The lease after its release: a store that keeps nothing knows the run as long as this is held."""
        self.held = False
        """Whether nothing is handed on until the end is written, because a resume would not come to the same end."""
        self.lock = RLock()
        """Held while the log is written: tools in threads set state."""
        self._outbox: list[Event] = []
        self._sent: set[tuple[type, float]] = set()
        """Notes that this journal gave: the record has them already when the store tells of them."""

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

    async def claim(self) -> None:
        """Become the one that writes this log. Raises `LeaseError` when a live owner works on the run."""
        if self.lease is None:
            seen = self.record.notes[-1].seq if self.record.notes else -1
            self.lease = await self.store.claim(self.record.id, new=not self.record.events, notes_after=seen)

    def stay(self) -> None:
        """The run has ended: nobody is held off, and what is said about it is heard as long as its record is held."""
        if self.lease is not None:
            hear = WeakMethod(self._hear)  # no circle: what nobody holds is gone without the garbage collector

            def ring() -> None:
                heard = hear()
                if heard is not None:
                    heard()

            self.lease.alarm = ring

    def _hear(self) -> None:
        for _ in self.news():
            pass

    def release(self) -> None:
        """Let others go on with the run."""
        lease, self.lease = self.lease, None
        if lease is not None:
            self._kept, lease.alarm = lease, None
            self.store.release(lease)

    def note(self, note: Note) -> Awaitable[Any]:
        """Give a note about the run. It counts at once; await the result to know that it is durable."""
        note = msgspec.structs.replace(note, seq=len(self.record.notes))  # unless somebody else is faster
        self._sent.add((type(note), note.at))
        self.record.apply_note(note)
        return self.store.note(self.record.id, [note])

    def news(self) -> Iterator[Commanded | Answered]:
        """The notes of others since the last look; those for the runtime itself to act on come out."""
        inbox = self.lease.inbox if self.lease is not None else None
        while inbox:
            note = inbox.popleft()
            if (type(note), note.at) not in self._sent:
                self.record.apply_note(note)
            if isinstance(note, Commanded | Answered):
                yield note

    def show(self, output: AnyOutput) -> None:
        """Tell readers of something that is not in the log."""
        self.store.hub.push(self.record.id, output)


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
    """Reward a step, or the whole when `step` is None, by a note. It counts at once; awaited, it is durable.

    Raises ValueError for a value that no sum could use, a step that the trajectory does not have, or a detail that JSON
    cannot hold.
    """
    reward = Reward(value=value, name=name, weight=weight, step=step, source=source, detail=detail)
    fields = checked_reward(journal.record, reward, failed=False)
    return journal.note(Rewarded(seq=-1, at=time.time(), **fields))


def write_reward(journal: Journal, reward: Reward) -> None:
    """Add a reward to the run's own log, also one without a value. Raises ValueError as `give_reward` does."""
    journal.add(Rewarded, **checked_reward(journal.record, reward, failed=True))


def checked_reward(record: Trajectory, reward: Reward, *, failed: bool) -> dict[str, Any]:
    """The fields of a reward as stored; with `failed` also of one that has no value. Raises ValueError."""
    for label, number in (("value", reward.value), ("weight", reward.weight)):
        if number is None and failed and label == "value" and reward.error is not None:
            continue
        if not isinstance(number, Real) or not math.isfinite(number):
            raise ValueError(f"A reward's {label} must be a finite number; got {number!r}.")
    step = reward.step
    if step is not None and step not in record.calls:
        raise ValueError(f"Trajectory {record.id} has no step {step}; it has {len(record.calls)}, from 0.")
    try:
        detail = plain(reward.detail)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(f"A reward's detail must be JSON-able: {error}") from error
    return {
        "value": None if reward.value is None else float(reward.value),
        "name": reward.name,
        "weight": float(reward.weight),
        "step": step,
        "source": reward.source,
        "detail": detail,
        "error": reward.error,
    }
