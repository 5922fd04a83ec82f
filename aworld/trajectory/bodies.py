"""What events name by digest: bodies of agents and teams (`Started`), lists of tools (`ToolsetOffered`).

A store keeps each body once. An event is `stripped` of what it names before it is stored, and `restored` when it is
read; one that came without a body, because the store had it already, is restored alike. A digest is trusted to be of
its body.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from aworld.core.event import Event, Started, ToolsetOffered

NAMING = (Started, ToolsetOffered)
"""The kinds of events that name bodies."""


def bodies_of(event: Event) -> dict[str, Any]:
    """The bodies that an event holds, by digest."""
    if type(event) is Started:
        return {digest: event.agents[name] for name, digest in event.definitions.items() if name in event.agents}
    if type(event) is ToolsetOffered and event.tools:
        return {event.digest: event.tools}
    return {}


def stripped(event: Event) -> Event:
    """The event without the bodies of which it has the digests."""
    if type(event) is Started and event.definitions:
        return replace(event, agents={n: body for n, body in event.agents.items() if n not in event.definitions})
    return replace(event, tools=()) if type(event) is ToolsetOffered else event


def restored(events: list[Event], body: Callable[[str], Any]) -> list[Event]:
    """The events with their bodies put back, in place; `body` gives that of a digest, or None."""
    for place, event in enumerate(events):
        if type(event) is Started and event.definitions and not event.definitions.keys() <= event.agents.keys():
            agents = {name: event.agents.get(name) or body(digest) for name, digest in event.definitions.items()}
            agents = {name: agent for name, agent in agents.items() if agent is not None}
            events[place] = replace(event, agents={**agents, **event.agents})
        elif type(event) is ToolsetOffered and not event.tools:
            events[place] = replace(event, tools=tuple(body(event.digest) or ()))
    return events
