"""What a run does with the environment of its task: open it, ask it, let it judge."""

from __future__ import annotations

from collections.abc import Awaitable
from functools import partial
from typing import Any

from aworld.core.event import Status
from aworld.core.exceptions import AWorldError, EnvironmentFailed, ModelError, TaskError
from aworld.core.message import Content, Message
from aworld.core.run_environment import Reward, RunEnvironment
from aworld.core.trajectory import Trajectory
from aworld.runners.functions import T, theirs
from aworld.runners.journal import write_reward
from aworld.runners.run import Run

_REFUSED = (400, 413, 422)
"""HTTP statuses with which a provider refuses what it was sent, such as a prompt that is too long."""


def is_unreachable(error: AWorldError) -> bool:
    """Whether an error says that a model could not be had, rather than that it would not take what the agent sent."""
    return isinstance(error, ModelError) and error.status not in _REFUSED


def check_environment(record: Trajectory) -> None:
    """Refuse to go on with an episode of an environment without one: its state has gone. Raises TaskError."""
    name = record.started.environment if record.started is not None else None
    if name is not None:
        raise TaskError(
            f"Trajectory {record.id} is an episode of environment {name!r}, whose state is not in the log: "
            f"begin it anew, such as by `aworld rollout` with {'its' if record.finished is None else 'another'} --run."
        )


async def open_environment(run: Run) -> Content:
    """Open the environment; returns what the agent is asked. Raises EnvironmentFailed."""
    assert run.environment is not None  # else there is nothing to open
    opening = await _asked("did not start", run.environment.open(run.record, partial(write_reward, run.journal)))
    return run.task.input if opening is None else opening


async def respond(environment: RunEnvironment, message: Message) -> Content | None:
    """What the environment says to an agent that has spoken. Raises EnvironmentFailed."""
    return await _asked("failed to respond", environment.respond(message))


def _asked(failure: str, call: Awaitable[T]) -> Awaitable[T]:
    return theirs(call, f"The environment {failure}:", EnvironmentFailed)


async def judge(run: Run, status: Status | None, error: str | None) -> None:
    """Write the rewards that the environment gives at the end of a run; none for one that its caller cancelled."""
    if run.record.finished is None and status in ("finished", "failed", "timeout", "limit_reached"):
        root = run.record.activations.get(0)
        ended = root.finished if root is not None else None
        await score(run, status, ended.answer if ended is not None else None, error)


async def score(run: Run, status: Status, answer: Any, error: str | None) -> list[Reward]:
    """Let the environment judge, and write its rewards; they are returned."""
    if run.environment is None:
        return []
    rewards = list(await _asked("failed to judge", run.environment.score(status, answer, error)))
    for reward in rewards:
        try:
            write_reward(run.journal, reward)
        except ValueError as refused:
            write_reward(run.journal, Reward(value=None, name=reward.name, error=str(refused)))
    return rewards
