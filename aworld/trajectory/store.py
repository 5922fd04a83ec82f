"""The contract of a store of logs, and the address by which one is opened.

A store takes events in the order of their numbers and gives them back. `append` hands over synchronously and never
blocks: the caller decides by `wait` whether to learn when the events are durable. A forked trajectory stores only
its own events, from its `started` event on; what it shares with its parent is read from the parent.
"""

from __future__ import annotations

import difflib
from collections.abc import Awaitable, Generator, Iterable, Iterator, Sequence
from typing import Any, Protocol
from urllib.parse import parse_qsl, unquote

from aworld.core.event import Event
from aworld.core.exceptions import ConfigError, TaskError
from aworld.core.trajectory import Trajectory
from aworld.trajectory.query import EVERYTHING, Facets, Page, Query, Recorded
from aworld.trajectory.summary import Summary


class TrajectoryStore(Protocol):
    """Where logs are kept."""

    @property
    def url(self) -> str:
        """The address for `open_store`."""
        ...

    def append(self, trajectory_id: str, events: Sequence[Event], *, wait: bool = True) -> Awaitable[None]:
        """Hand over the next events of a trajectory; returns at once.

        With `wait`, what is returned completes when these events and all handed over before them are durable.
        Without, they are written within a few milliseconds, what is returned is already done, and a failure is
        raised by the next append to that trajectory or by `flush`.

        Raises `TaskError` when a `started` event names an id that the store has, or a trajectory is unknown;
        `StoreError` when the events cannot be written.
        """
        ...

    async def flush(self) -> None:
        """Return when everything handed over is durable. Raises the first failure that nobody was told of."""
        ...

    async def read(self, id: str) -> list[Event]:
        """All events of a trajectory, what it shares with its parents included. Raises `TaskError` if unknown."""
        ...

    async def query(self, query: Query = EVERYTHING) -> Page:
        """The trajectories that match, in the order asked for.

        Raises `TaskError` if the id in `after` is unknown: it was deleted, or mistyped.
        """
        ...

    async def count(self, query: Query = EVERYTHING, *, most: int | None = None) -> int:
        """How many match, at most `most`: counting ends there. `limit`, `offset` and `after` do not count."""
        ...

    async def facets(self, fields: Sequence[str], query: Query = EVERYTHING) -> Facets:
        """How often each value occurs in each field among what matches; see `query.FACETS`."""
        ...

    async def delete(self, id: str, *, forks: bool = False) -> int:
        """Delete a trajectory and return how many are gone.

        One that others were forked from is deleted only with `forks`, which deletes those too; else `StoreError`.
        Raises `TaskError` if unknown.
        """
        ...

    def scan(self, query: Query = EVERYTHING) -> Iterator[tuple[Summary, Recorded]]:
        """Matching trajectories one after the other, one in memory at a time.

        What is deleted meanwhile is left out. Blocks while it reads: from async code, run the loop over it in a thread.
        Raises `TaskError` if the id in `after` is unknown.
        """
        ...

    def attach(self, trajectory: Trajectory) -> None:
        """Tell the store of the object that a run folds its events into. Only `WeakStore` cares."""
        ...

    async def vacuum(self) -> None:
        """Give the space of deleted trajectories back."""
        ...

    async def close(self) -> None:
        """Write what is queued and let go of files and threads."""
        ...


class Done:
    """An awaitable that is done."""

    def __await__(self) -> Generator[Any, None, None]:
        return iter(())  # pyright: ignore[reportReturnType]  # an iterator is enough, and makes no generator object


DONE = Done()
"""What an append returns that nobody has to wait for."""


def open_store(url: str) -> TrajectoryStore:
    """Open the store at an address; files and threads are made when they are first needed.

    `memory:`, `sqlite:///relative.db`, `sqlite:////absolute.db`, or a path that ends in `.db`, `.sqlite` or
    `.sqlite3`. SQLite takes `?synchronous=full` (also a power cut loses nothing acknowledged; default `normal`: also
    `kill -9` does not) and `?timeout=30` (seconds to wait for another process's lock).
    Raises `ConfigError` for any other address.
    """
    address, _, options = url.partition("?")
    scheme, colon, rest = address.partition(":")
    if address in ("memory:", "weak:"):
        from aworld.trajectory.memory import MemoryStore, WeakStore

        return MemoryStore() if address == "memory:" else WeakStore()
    if scheme == "sqlite" and rest.startswith("///") and rest.strip("/") not in ("", ":memory:"):
        path = unquote(rest[3:])
    elif address.endswith((".db", ".sqlite", ".sqlite3")) and "://" not in address:
        path = address
    elif scheme in ("postgresql", "postgres") and colon:
        raise ConfigError(
            "store | PostgreSQL comes in a later version; use sqlite:///runs.db"
        )  # the URL has a password
    else:
        known = "memory:, sqlite:///relative.db, sqlite:////absolute.db or a path ending in .db"
        raise ConfigError(f"store={address.rpartition('@')[2]!r} | not an address of a store; use {known}")
    from aworld.trajectory.sqlite import SQLiteStore

    known_options = {"synchronous", "timeout"}
    given = dict(parse_qsl(options, keep_blank_values=True))
    if unknown := given.keys() - known_options:
        raise ConfigError(
            f"store={address!r} | unknown option {', '.join(sorted(unknown))}; known: synchronous, timeout"
        )
    try:
        timeout = float(given.get("timeout", "30"))
    except ValueError:
        raise ConfigError(f"store={address!r} | timeout={given['timeout']!r} is not a number of seconds") from None
    return SQLiteStore(path, synchronous=given.get("synchronous", "normal"), timeout=timeout)


def unknown_trajectory(id: str, url: str, near: Iterable[str]) -> TaskError:
    """The error for an id that a store does not have, naming the nearest that it has."""
    close = difflib.get_close_matches(id, list(near), n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else "see `aworld trajectories list`"
    return TaskError(f"no trajectory {id!r} in store {url}; {hint}")


def already_there(id: str, url: str) -> TaskError:
    """The error for a run that would begin under an id that a store has."""
    return TaskError(
        f"task id {id!r} is already in store {url}; pick another id, or continue it: Runners.resume({id!r})"
    )
