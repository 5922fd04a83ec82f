"""Stores that write nothing: one keeps everything, one keeps nothing alive."""

from __future__ import annotations

from collections.abc import Awaitable, Iterator, Mapping, Sequence
from typing import TypeVar
from weakref import WeakValueDictionary

from aworld.core.event import Event, Started
from aworld.core.exceptions import StoreError, TaskError
from aworld.core.trajectory import Trajectory
from aworld.trajectory.query import EVERYTHING, Facets, Page, Query, Recorded, matches, select, tabulate
from aworld.trajectory.store import DONE, already_there, unknown_trajectory
from aworld.trajectory.summary import Summary, Tally

T = TypeVar("T")


class MemoryStore:
    """Keeps all logs in memory until they are deleted."""

    url = "memory:"

    def __init__(self) -> None:
        self._logs: dict[str, list[Event]] = {}
        self._tallies: dict[str, Tally] = {}
        self._number = 0

    def append(self, trajectory_id: str, events: Sequence[Event], *, wait: bool = True) -> Awaitable[None]:
        """See `TrajectoryStore.append`."""
        if not events:
            return DONE
        first = events[0]
        if isinstance(first, Started):
            self._begin(trajectory_id, first)
        tally = self._tallies.get(trajectory_id)
        if tally is None:
            raise self._unknown(trajectory_id)
        if first.seq != tally.events:
            raise out_of_order(trajectory_id, self.url, first.seq, tally.events)
        self._logs[trajectory_id].extend(events)
        for event in events:
            tally.apply(event)
        return DONE

    def _begin(self, id: str, started: Started) -> None:
        if id in self._logs:
            raise already_there(id, self.url)
        fork = started.forked_from
        if fork is None and started.seq != 0:
            raise out_of_order(id, self.url, started.seq, 0)
        prefix = [] if fork is None else check_fork(id, started, self._compose(fork.id))
        self._logs[id], self._tallies[id] = [], Tally.of(id, prefix)
        self._number += 1
        self._tallies[id].key = self._number

    def _compose(self, id: str) -> list[Event]:
        own = self._logs.get(id)
        if own is None:
            raise self._unknown(id)
        first = own[0] if own else None
        if isinstance(first, Started) and first.forked_from is not None:
            return self._compose(first.forked_from.id)[: first.forked_from.seq] + own
        return list(own)

    def _unknown(self, id: str) -> TaskError:
        return unknown_trajectory(id, self.url, self._logs)

    async def flush(self) -> None:
        """See `TrajectoryStore.flush`."""

    async def read(self, id: str) -> list[Event]:
        """See `TrajectoryStore.read`."""
        return self._compose(id)

    def _select(self, query: Query) -> Page:
        return select([(tally.key, tally.summary()) for tally in self._tallies.values()], query, self._unknown)

    async def query(self, query: Query = EVERYTHING) -> Page:
        """See `TrajectoryStore.query`."""
        return self._select(query)

    async def count(self, query: Query = EVERYTHING, *, most: int | None = None) -> int:
        """See `TrajectoryStore.count`."""
        found = sum(matches(tally.summary(), query) for tally in _named(self._tallies, query))
        return found if most is None else min(found, most)

    async def facets(self, fields: Sequence[str], query: Query = EVERYTHING) -> Facets:
        """See `TrajectoryStore.facets`."""
        return tabulate((tally.summary() for tally in self._tallies.values()), fields, query)

    async def delete(self, id: str, *, forks: bool = False) -> int:
        """See `TrajectoryStore.delete`."""
        if id not in self._logs:
            raise self._unknown(id)
        children = [tally.id for tally in self._tallies.values() if tally.forked_from == id]
        if children and not forks:
            raise has_forks(id, self.url, children)
        gone = 1
        for child in children:
            gone += await self.delete(child, forks=True)
        del self._logs[id], self._tallies[id]
        return gone

    def scan(self, query: Query = EVERYTHING) -> Iterator[tuple[Summary, Recorded]]:
        """See `TrajectoryStore.scan`."""
        for summary in self._select(query):
            if summary.id in self._logs:
                yield summary, Recorded(self._compose(summary.id))

    def attach(self, trajectory: Trajectory) -> None:
        """See `TrajectoryStore.attach`."""

    async def vacuum(self) -> None:
        """See `TrajectoryStore.vacuum`."""

    async def close(self) -> None:
        """See `TrajectoryStore.close`."""


class WeakStore:
    """Knows the runs whose `Trajectory` somebody holds, and keeps none alive: the default of a library."""

    url = "weak:"

    def __init__(self) -> None:
        self._live: WeakValueDictionary[str, Trajectory] = WeakValueDictionary()

    def append(self, trajectory_id: str, events: Sequence[Event], *, wait: bool = True) -> Awaitable[None]:
        """See `TrajectoryStore.append`. Stores nothing: the events are in the attached trajectory."""
        if events and isinstance(events[0], Started):
            live = self._live.get(trajectory_id)
            running = live is not None and live.finished is None and live.started is not None
            if running and live is not None and live.started is not events[0]:
                raise already_there(trajectory_id, self.url)
        return DONE

    def attach(self, trajectory: Trajectory) -> None:
        """See `TrajectoryStore.attach`. Raises `TaskError` when another run of this id has not ended.

        One that has ended gives way: how long it stays in memory is the garbage collector's business.
        """
        live = self._live.get(trajectory.id)
        running = live is not None and live is not trajectory and live.finished is None
        if running and live is not None and live.started not in (None, trajectory.started):
            raise already_there(trajectory.id, self.url)
        self._live[trajectory.id] = trajectory

    async def flush(self) -> None:
        """See `TrajectoryStore.flush`."""

    async def read(self, id: str) -> list[Event]:
        """See `TrajectoryStore.read`."""
        live = self._live.get(id)
        if live is None:
            raise self._unknown(id)
        return list(live.events)

    def _unknown(self, id: str) -> TaskError:
        error = unknown_trajectory(id, self.url, list(self._live))
        error.add_note("Without a store a run is known as long as its record is held; give RunConfig(store=...).")
        return error

    async def query(self, query: Query = EVERYTHING) -> Page:
        """See `TrajectoryStore.query`."""
        summaries = [Tally.of(t.id, t.events).summary() for t in list(self._live.values()) if t.events]
        return select(enumerate(summaries), query, self._unknown)

    async def count(self, query: Query = EVERYTHING, *, most: int | None = None) -> int:
        """See `TrajectoryStore.count`."""
        found = sum(matches(Tally.of(t.id, t.events).summary(), query) for t in _named(self._live, query))
        return found if most is None else min(found, most)

    async def facets(self, fields: Sequence[str], query: Query = EVERYTHING) -> Facets:
        """See `TrajectoryStore.facets`."""
        return tabulate([Tally.of(t.id, t.events).summary() for t in list(self._live.values())], fields, query)

    async def delete(self, id: str, *, forks: bool = False) -> int:
        """See `TrajectoryStore.delete`. Forks of a weakly held trajectory hold their own events and stay."""
        if self._live.pop(id, None) is None:
            raise self._unknown(id)
        return 1

    def scan(self, query: Query = EVERYTHING) -> Iterator[tuple[Summary, Recorded]]:
        """See `TrajectoryStore.scan`."""
        held = {t.id: t for t in list(self._live.values()) if t.events}
        summaries = enumerate([Tally.of(t.id, t.events).summary() for t in held.values()])
        for summary in select(summaries, query, self._unknown):
            yield summary, Recorded(held[summary.id].events)

    async def vacuum(self) -> None:
        """See `TrajectoryStore.vacuum`."""

    async def close(self) -> None:
        """See `TrajectoryStore.close`."""


def _named(found: Mapping[str, T], query: Query) -> list[T]:
    """What can match at all: a query by id looks at those alone."""
    if query.ids is None:
        return list(found.values())
    return [value for id in query.ids if (value := found.get(id)) is not None]


def check_fork(id: str, started: Started, parent: list[Event]) -> list[Event]:
    """The events that a fork shares with its parent. Raises `TaskError` when it begins beyond the parent's end."""
    fork = started.forked_from
    assert fork is not None  # callers come here with forks only
    if fork.seq > len(parent) or started.seq != fork.seq:
        raise TaskError(
            f"fork {id!r} begins with event {started.seq} and names event {fork.seq} of {fork.id!r}, "
            f"which has {len(parent)} events; the two numbers must be the same and at most that"
        )
    return parent[: fork.seq]


def out_of_order(id: str, url: str, came: int, due: int) -> StoreError:
    """The error for events that do not follow what the store has."""
    if came < due:
        return StoreError(
            f"store={url} | trajectory {id!r} has event {came} already: another process is running it; "
            f"stop one of the two, then Runners.resume({id!r})"
        )
    return StoreError(f"store={url} | trajectory {id!r}: event {came} came where {due} was due")


def has_forks(id: str, url: str, children: Sequence[str]) -> StoreError:
    """The error for deleting what others were forked from."""
    named = ", ".join(children[:5]) + (f" and {len(children) - 5} more" if len(children) > 5 else "")
    return StoreError(f"store={url} | {id!r} shares its beginning with {named}; delete those too with forks=True")
