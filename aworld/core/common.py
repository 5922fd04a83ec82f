"""Observation and action: what passes between an agent and its world."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from aworld.core.event import Attempt
from aworld.core.message import Content, Usage


class ActionResult(Struct, frozen=True, omit_defaults=True):
    """What a tool answered to one call."""

    tool_call_id: str
    name: str
    content: Content
    error: str | None = None
    duration: float | None = None
    """Seconds."""
    usage: Usage | None = None
    """What models used that the tool asked."""
    attempts: tuple[Attempt, ...] = ()
    """The failed tries."""


class Observation(Struct, frozen=True, omit_defaults=True):
    """What an agent sees before it decides: the task's input, tool results, or what was added by the caller."""

    content: Content = ""
    """The input, an added observation, or, once the run has ended, the answer."""
    results: tuple[ActionResult, ...] = ()
    info: dict[str, Any] = {}


class ActionModel(Struct, frozen=True, omit_defaults=True):
    """What an agent decides: a tool call when `tool_name` is given, else the answer."""

    tool_name: str | None = None
    params: dict[str, Any] = {}
    content: Content | None = None
