"""The scopes of runs: told when the run rests, and when it is over.

A run that waits for a person keeps its scope in this process, so that it has its sandbox and its variables again when
it goes on here. Whoever else goes on with it has a new scope, which knows what the run had used.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from aworld.core import event as ev
from aworld.core.context.scope import RunScope

if TYPE_CHECKING:
    from aworld.runners.episode import Episode

logger = logging.getLogger(__name__)

LET_GO = 10.0
"""Seconds that a tool has to let go of what it held for a run."""
PUT_ASIDE = 60.0
"""Seconds that it has to put that aside while the run waits."""

_resting: WeakKeyDictionary[Any, dict[str, RunScope]] = WeakKeyDictionary()
"""Scopes of runs that wait, by store and trajectory."""


def go_on(episode: Episode) -> RunScope:
    """The scope of a run that goes on, here or in another process than it began; or of a fork of one."""
    record = episode.record
    scope = _resting.get(episode.journal.store, {}).pop(record.id, episode.scope)
    scope.used |= {event.name for event in record.events if isinstance(event, ev.ToolCalled)}
    return scope


async def let_go(episode: Episode) -> None:
    """The run is over; none of its tools may hold it up."""
    _resting.get(episode.journal.store, {}).pop(episode.record.id, None)
    await _tell(episode, "end_run", LET_GO)


async def rest(episode: Episode) -> None:
    """The run waits for a person."""
    _resting.setdefault(episode.journal.store, {})[episode.record.id] = episode.scope
    await _tell(episode, "rest", PUT_ASIDE)


async def _tell(episode: Episode, what: str, limit: float) -> None:
    for copy in episode.scope.copies():
        if (method := getattr(copy, what, None)) is None:
            continue
        try:
            async with asyncio.timeout(limit):
                await method()
        except Exception:  # the run's outcome stands
            logger.exception("trajectory=%s | what %r held could not be let go", episode.record.id, copy)
