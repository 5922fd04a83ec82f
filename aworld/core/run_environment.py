"""The environment of one run: made for it, it answers what the agent does, and judges it.

A task may have one. The runtime opens it when the run begins, asks it when the agent has spoken without calling a
tool, lets it judge when the run is about to end, and closes it on every ending. `aworld.environments` is built on this;
the runtime itself knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from msgspec import Struct

from aworld.core.event import Status
from aworld.core.message import Content, Message
from aworld.core.trajectory import Trajectory


class Reward(Struct, frozen=True, kw_only=True):
    """A reward to be written: the fields of the `reward` event. `value` is None where `error` says why."""

    value: float | None
    name: str = "reward"
    weight: float = 1.0
    step: int | None = None
    source: str | None = None
    detail: Any = None
    error: str | None = None


class Remake(Struct, frozen=True):
    """How the task of an environment is made again in another process."""

    by: str
    """The function that makes it, `module:name`; called with the arguments and the fields of `Task`."""
    arguments: dict[str, Any]
    """JSON-able."""
    agent: Any
    """The agent or team, the tools and the hooks that the caller gave: the function adds the environment's own."""
    tools: Sequence[Any]
    hooks: Sequence[Any]


@runtime_checkable
class Travelling(Protocol):
    """An environment of a run that can be made in another process."""

    def remake(self) -> Remake:
        """How the task is made there. Raises TaskError that says what cannot travel, and what would."""
        ...


class RunEnvironment(Protocol):
    """What a run acts in. Made for it, and used once.

    What `open` and `respond` raise ends the run as failed for a reason that is not the agent's.
    """

    @property
    def name(self) -> str:
        """What the log calls it."""
        ...

    async def open(self, record: Trajectory, give: Callable[[Reward], None]) -> Content | None:
        """The run begins. Returns what the agent is told in place of the task's input, None for that input.

        `give` writes a reward at once; the runtime calls `open` once.
        """
        ...

    async def respond(self, message: Message) -> Content | None:
        """The agent has spoken without calling a tool. Returns what it is told next, None to let it end."""
        ...

    @property
    def over(self) -> bool:
        """Whether the run ends after the tool calls of this turn."""
        ...

    @property
    def answer(self) -> Any:
        """What a run ended by its environment answers."""
        ...

    async def score(self, status: Status, answer: Any, error: str | None) -> Sequence[Reward]:
        """The run is about to end; what is returned is durable with its end. Bounded in time; does not raise."""
        ...

    async def close(self) -> None:
        """The run is over, whatever its status. Called once, also when `open` failed."""
        ...
