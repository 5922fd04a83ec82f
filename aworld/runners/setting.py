"""What a run does with the environment of its task: open it, ask it, let it judge, close it, each bounded."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from aworld.core.event import Status
from aworld.core.exceptions import AWorldError, EnvironmentFailed, ModelError, TaskError
from aworld.core.message import Content, Message
from aworld.core.run_environment import Reward, RunEnvironment
from aworld.core.trajectory import Trajectory
from aworld.runners.journal import write_reward

if TYPE_CHECKING:
    from aworld.runners.episode import Episode

logger = logging.getLogger(__name__)

_REFUSED = (400, 413, 422)
"""HTTP statuses with which a provider refuses what it was sent, such as a prompt that is too long."""


def is_unreachable(error: AWorldError) -> bool:
    """Whether an error says that a model could not be had, rather than that it would not take what the agent sent."""
    return isinstance(error, ModelError) and error.status not in _REFUSED


def check_environment(record: Trajectory, environment: RunEnvironment | None) -> None:
    """Refuse to go on with an episode of an environment: its state has gone. Raises TaskError."""
    name = record.started.environment if record.started is not None else None
    if name is not None and environment is None:
        raise TaskError(
            f"Trajectory {record.id} is an episode of environment {name!r}, whose state is not in the log: "
            "run it anew, such as by the same `aworld rollout` with its --run."
        )


class RecordedEnvironment:
    """The environment of a recorded run, as far as its log tells: for a replay, which judges nothing."""

    def __init__(self, record: Trajectory) -> None:
        self.name = record.started.environment or "" if record.started is not None else ""
        said = [node for node in record.messages.values() if node.origin == "input" and node.parent is not None]
        self._said = [n.message.content for n in said if record.messages[n.parent or 0].message.role == "assistant"]
        self._said.reverse()
        root = record.activations[0].finished
        self._ended = root is not None and root.error is None
        self.answer: Any = root.answer if root is not None else None
        self._steps = len(record.calls)
        self._replayed: Trajectory | None = None

    async def open(self, record: Trajectory, give: Callable[[Reward], None]) -> Content | None:
        """Nothing is told but the input, which is the recorded one."""
        self._replayed = record

    async def respond(self, message: Message) -> Content | None:
        """What was said then."""
        return self._said.pop() if self._said else None

    @property
    def over(self) -> bool:
        """Whether this was the last recorded turn of an episode that ended well."""
        return self._ended and self._replayed is not None and len(self._replayed.calls) >= self._steps

    async def score(self, status: Status, answer: Any, error: str | None) -> Sequence[Reward]:
        """None."""
        return ()

    async def close(self) -> None:
        """Nothing is held."""


async def open_environment(episode: Episode, environment: RunEnvironment) -> None:
    """Open the environment and let the agent begin. Raises EnvironmentFailed."""
    try:
        told = await environment.open(episode.record, partial(write_reward, episode.journal))
    except EnvironmentFailed:
        raise
    except Exception as raised:
        logger.info("trajectory=%s | the environment did not start", episode.record.id, exc_info=raised)
        raise EnvironmentFailed(f"The environment did not start: {type(raised).__name__}: {raised}") from raised
    if not episode.record.activations:
        episode.cast.start(episode.task.agent, episode.task.input if told is None else told)


async def respond(environment: RunEnvironment, message: Message) -> Content | None:
    """What the environment says to an agent that has spoken. Raises EnvironmentFailed."""
    try:
        return await environment.respond(message)
    except EnvironmentFailed:
        raise
    except Exception as raised:
        raise EnvironmentFailed(f"The environment failed to respond: {type(raised).__name__}: {raised}") from raised


async def judge(episode: Episode, status: Status | None, error: str | None) -> None:
    """Write the rewards that the environment gives at the end of a run; none for one that its caller cancelled."""
    if episode.record.finished is not None or status not in ("finished", "failed", "timeout", "limit_reached"):
        return
    root = episode.root_finish()
    environment = episode.environment
    assert environment is not None  # callers ask only then
    for reward in await environment.score(status, root.answer if root else None, error):
        try:
            write_reward(episode.journal, reward)
        except ValueError as refused:
            write_reward(episode.journal, Reward(value=None, name=reward.name, error=str(refused)))


async def close(environment: RunEnvironment, record: Trajectory, limit: float) -> None:
    """Close the environment; it may not hold the run up."""
    try:
        async with asyncio.timeout(limit):
            await environment.close()
    except Exception:  # the run has ended: its outcome stands
        logger.exception("trajectory=%s | the environment did not close", record.id)
