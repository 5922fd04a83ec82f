"""The errors of AWorld.

Only misuse by the caller is raised out of `Runners`. Whatever happens inside a run becomes its status.
"""

from __future__ import annotations

from aworld.config.errors import AWorldError as AWorldError
from aworld.config.errors import ConfigError as ConfigError


class TaskError(AWorldError, ValueError):
    """A run was asked for in a way that cannot work, such as the same task id twice in one store."""


class ModelError(AWorldError):
    """A model call failed.

    `status` is the HTTP status, None when there was no answer. `retryable` tells whether another attempt may
    succeed. `retry_after` is the wait in seconds that the provider asked for, None when it asked for none.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        retryable: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retryable = retryable
        self.retry_after = retry_after


class ToolError(AWorldError):
    """A tool cannot be built, found or called. Raised by a tool, its text is shown to the model as the result."""


class DeniedError(AWorldError):
    """A hook or a person refused an action; the text says why."""


class LimitReached(AWorldError):
    """A limit of the task was reached. `limit` is the name of the setting, such as `max_steps`."""

    def __init__(self, limit: str, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message, setting=limit, remedy=remedy)
        self.limit = limit


class BudgetUsed(LimitReached):
    """The budget that many runs share is used up. The log of the run stays open: it goes on when it is resumed."""


class UsageUnknown(LimitReached):
    """A limit on tokens or money cannot be watched, as a model did not report what it used. The log stays open."""


class AgentLimit(AWorldError):
    """A limit of one agent was reached; it ends that agent's work, and the run only if the agent was alone."""


class EnvironmentFailed(AWorldError):
    """The surroundings of a run died: a session, a simulator, a service that it stands on.

    Raised by a tool or a session, it ends the run as failed for a reason that is not the agent's; any other exception
    of a tool is told to the model.
    """


class DependencyError(AWorldError):
    """What a run depends on could not be made now; nothing was done, and the run can be resumed when it can be."""


class StoreError(AWorldError):
    """The log could not be written or read. Names the store and the remedy."""


class LeaseError(StoreError):
    """A log has another owner: a live process works on the run, or took it over from this one."""


class TrainingError(AWorldError):
    """Training cannot go on: what is measured contradicts what it stands on, or the trainer's process failed. Its
    checkpoints are safe."""
