"""What tools hold for a run, such as a sandbox: told when the run rests, when it goes on, and when it is over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any

from aworld.core import event as ev
from aworld.core.tool.base import Resting, RunScoped, Tool, run_scoped

if TYPE_CHECKING:
    from aworld.runners.episode import Episode

logger = logging.getLogger(__name__)

LET_GO = 10.0
"""Seconds that a tool has to let go of what it held for a run."""
PUT_ASIDE = 60.0
"""Seconds that it has to put that aside while the run waits."""


async def let_go(episode: Episode) -> None:
    """The run is over; none of the tools may hold it up."""
    extra = [held for item in episode.task.tools for held in run_scoped(item)]
    every = (held for agent in episode.cast.agents() for held in (*agent.toolkit.scoped, *extra))
    await _tell(episode, every, lambda held: held.end_run(episode.record.id), LET_GO)


async def rest(episode: Episode) -> None:
    """The run waits for a person."""
    resting = (held for held in _used(episode) if isinstance(held, Resting))
    await _tell(episode, resting, lambda held: held.rest(episode.record.id), PUT_ASIDE)


def go_on(episode: Episode) -> None:
    """The run goes on, here or in another process than it began; or it is a fork of one that had used its tools."""
    for held in _used(episode):
        if isinstance(held, Resting):
            held.go_on(episode.record.id)


def _used(episode: Episode) -> list[RunScoped]:
    """What was held by the tools that the run has called; each once."""
    called = {event.name for event in episode.record.events if isinstance(event, ev.ToolCalled)}
    items = [item for agent in episode.cast.agents() for item in agent.toolkit.items] + list(episode.task.tools)
    tools = [item for item in items if isinstance(item, Tool) and item.name in called] if called else []
    return list({id(held): held for item in tools for held in run_scoped(item)}.values())


async def _tell(
    episode: Episode, every: Iterable[Any], what: Callable[[Any], Coroutine[Any, Any, None]], limit: float
) -> None:
    for held in {id(item): item for item in every}.values():
        try:
            async with asyncio.timeout(limit):
                await what(held)
        except Exception:  # the run's outcome stands
            logger.exception("trajectory=%s | what %r held could not be let go", episode.record.id, held)
