"""The contract of a tool, and of a set of tools.

A tool is a value: a schema for the model and one async method that takes the arguments exactly as the model wrote
them. Time-outs, capture, the order of answers and the text of errors are the runtime's. Whatever a tool raises goes
back to the model; `ToolError` says it in the tool's own words.

A tool or toolset that holds something for the length of a run, such as a sandbox or a session, has `for_run(scope)`,
which returns the run's own copy of it (`aworld.core.context.base`); all others are shared by all runs.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeAlias, TypeGuard, runtime_checkable

from typing_extensions import TypeVar

from aworld.core.context.base import Context
from aworld.core.event import Attempt
from aworld.core.message import Usage
from aworld.core.model import ToolSchema

DepsT = TypeVar("DepsT", covariant=True, default=Any)
"""What a tool works with that is given to the run: a database, a client."""

QUEUE = 3600.0
"""Seconds that a call may wait for its turn: 1,000 runs with a tool of a minute wait a quarter of an hour for 64
threads."""


class Clock:
    """The time that a call itself takes. It stands until the call begins, which may have to wait for a thread."""

    __slots__ = ("before", "began", "ended", "queued")

    def __init__(self) -> None:
        self.queued = time.perf_counter()
        self.before = 0.0
        """Seconds that failed tries have taken, and the waits after them."""
        self.began: float | None = None
        self.ended: float | None = None

    def wait(self) -> None:
        """The call waits for its turn."""
        self.began = self.ended = None

    def begin(self) -> None:
        """The call begins. From any thread."""
        self.began = time.perf_counter()

    def again(self) -> None:
        """The call begins anew after a failed try, which goes on counting."""
        self.before, self.ended = self.before + time.perf_counter() - (self.began or self.queued), None
        self.begin()

    def end(self) -> None:
        """The call has ended. From any thread; the first one counts."""
        self.ended = self.ended or time.perf_counter()

    @property
    def seconds(self) -> float | None:
        """What the call has taken; None for one that never began."""
        return None if self.began is None else self.before + (self.ended or time.perf_counter()) - self.began

    def left(self, limit: float) -> float:
        """Seconds of `limit` that the call has left, or that it may still wait."""
        seconds = self.seconds
        return max(limit, QUEUE) - (time.perf_counter() - self.queued) if seconds is None else limit - seconds


class Account(Protocol):
    """What one tool call may have models do, out of what the limits of its run have left."""

    async def reserve(self, wanted: Usage) -> Usage:
        """Set aside what asking a model may use, before it is asked. What is granted may be fewer `output_tokens`.

        Raises LimitReached, which names the limit, when there is nothing left.
        """
        ...

    def settle(self, granted: Usage, used: Usage | None, source: str, data: dict[str, Any]) -> None:
        """Put what was used in the place of what was granted, None for a model that did not answer; and an event on
        record of who asked (`source`), with `data`."""
        ...


@dataclass(frozen=True, slots=True)
class ToolContext(Generic[DepsT]):
    """What a tool may know of the call it serves. A function tool gets it by annotating a parameter with this type, or
    with `ToolContext[Database]`, where it works with dependencies of that type."""

    trajectory_id: str
    agent: str
    step: int
    call_id: str
    context: Context
    """The state of the task, shared by its agents and tools."""
    answers: dict[str, str] = field(default_factory=dict[str, str])
    """What people answered to this call, by question."""
    always: bool = False
    """Whether a person has answered `always` to a question of this tool in this run: it needs no more consent."""
    notify: Callable[[str, Any], None] | None = None
    """Tells readers of the stream of progress: a kind, such as `progress` or `log`, and JSON-able data. None when there
    are no readers."""
    spent: list[Usage] = field(default_factory=list[Usage])
    """What models used that the tool asked; it counts towards the limits of the run when the call is over. A tool that
    may ask many times asks `account` first."""
    attempts: list[Attempt] = field(default_factory=list[Attempt])
    """The failed tries of this call, where the tool is one that is tried again."""
    account: Account | None = None
    """What it may still spend on models; None outside of a run."""
    clock: Clock = field(default_factory=Clock)
    """The time that the call takes; `THREADS.run(function, context.clock)` stops it while it waits for a thread."""
    deps: DepsT = None  # pyright: ignore[reportAssignmentType] - a tool that asks for a type is run with one
    """What was given to the run as `deps=`, or made for it; never stored."""


Instructions: TypeAlias = Callable[[ToolContext[DepsT]], str | Awaitable[str]]
"""A function that says what an agent is told before everything else."""

Guardrail: TypeAlias = Callable[[ToolContext[Any], Any], str | Awaitable[str | None] | None]
"""A function that returns None to let a value pass, or the reason why not; it may raise `DeniedError`."""

calling: ContextVar[ToolContext[Any] | None] = ContextVar("calling", default=None)
"""The tool call that the code at hand serves, also in the thread of a synchronous tool."""


class Question(Exception):
    """Raised by a tool to ask a person. The run waits, durably; with the answer the tool is called again and finds it
    in `ToolContext.answers`."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class Tool:
    """Base of every tool. Subclasses set the attributes and write `invoke`."""

    name: str
    description: str
    parameters: dict[str, Any]
    """JSON schema of an object."""
    timeout: float | None = None
    """Seconds; None takes the task's `tool_timeout`."""
    idempotent: bool = False
    """Whether the tool may run again when the process died while it ran."""
    guardrails: Sequence[Guardrail] = ()
    """They judge the arguments of each call, a dict, before it is made."""

    async def invoke(self, arguments: str, context: ToolContext) -> Any:
        """Run with the JSON text `arguments`. Returns text, message parts or JSON-able data; raises `ToolError`."""
        raise NotImplementedError

    def under(self, name: str) -> Tool | None:
        """The same tool under another name, when it is one that the runtime carries out itself, so that nothing may
        stand in front of it; None for all others."""
        return None

    @property
    def schema(self) -> ToolSchema:
        """The tool as a model sees it."""
        return ToolSchema(self.name, self.description, self.parameters)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


@runtime_checkable
class Toolset(Protocol):
    """A set of tools that is known only when a run starts, such as those of a server."""

    async def list_tools(self) -> Sequence[Tool]:
        """The tools, in the order in which they are offered."""
        ...


def is_toolset(item: object) -> TypeGuard[Toolset]:
    """Whether something is a toolset. `isinstance` of a protocol says the same at 20 times the cost (Python 3.11)."""
    return hasattr(item, "list_tools")
