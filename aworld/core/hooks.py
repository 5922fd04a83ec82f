"""Hooks: paired points around a task, a model call and a tool call.

Give any number to a task: `Task(..., hooks=[MyHooks()])`. "Before" hooks run in the order given, "after" hooks in
reverse and always, also when the thing in between failed. A hook may rewrite what it is given by returning another
value, or refuse it by raising `DeniedError`; what is sent and what is used is in the log either way.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from aworld.core.bounded import failure_of
from aworld.core.common import ActionResult
from aworld.core.context.base import Context
from aworld.core.message import ToolCall
from aworld.core.model import ModelReply, ModelRequest
from aworld.core.trajectory import Trajectory

if TYPE_CHECKING:
    from aworld.core.task import TaskResponse

Q = TypeVar("Q")
A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class HookContext:
    """Where in a run a hook is called. `step` is None around the task."""

    record: Trajectory
    context: Context
    agent: str | None = None
    step: int | None = None
    deps: Any = None
    """The dependencies of the run."""


class Hooks:
    """Base of hooks: override what you need. Returning None leaves things as they are."""

    async def before_task(self, at: HookContext) -> None:
        """The run is about to begin, or to go on after a resume."""

    async def after_task(self, at: HookContext, response: TaskResponse) -> None:
        """The run has ended, whatever its status."""

    async def before_model(self, at: HookContext, request: ModelRequest) -> ModelRequest | None:
        """A model is about to be asked."""

    async def after_model(
        self, at: HookContext, request: ModelRequest, reply: ModelReply | None, error: Exception | None
    ) -> ModelReply | None:
        """A model has answered, or failed with `error`."""

    async def before_tool(self, at: HookContext, call: ToolCall) -> ToolCall | ActionResult | None:
        """A tool is about to run. Returning a result answers in its place."""

    async def after_tool(self, at: HookContext, call: ToolCall, result: ActionResult) -> ActionResult | None:
        """A tool has answered, or failed with `result.error`."""


async def around(
    hooks: Sequence[Hooks],
    question: Q,
    before: Callable[[Hooks, Q], Awaitable[Q | A | None]],
    act: Callable[[Q], Awaitable[A]],
    after: Callable[[Hooks, Q, A | None, BaseException | None], Awaitable[A | None]],
    answers: type[A],
) -> tuple[Q, A | None, BaseException | None]:
    """Do something with hooks around it: "before" in their order, "after" in reverse and always.

    A "before" that returns one of `answers` answers in the place of what would be done. Returns the question as it was
    put at last, the answer as it was rewritten at last, and what was raised first; nothing is raised from here.
    """
    entered: list[Hooks] = []
    answer: A | None = None
    error: BaseException | None = None
    try:
        for hook in hooks:
            entered.append(hook)
            changed: Any = _checked(hook, await before(hook, question), type(question), answers)
            if isinstance(changed, answers):
                answer = changed
                break
            question = changed or question
        else:
            answer = await act(question)
    except BaseException as raised:  # noqa: BLE001 - given back when every hook knows of it
        error = _failure(raised)
    failure = error
    for hook in reversed(entered):
        try:
            answer = _checked(hook, await after(hook, question, answer, error), answers) or answer
        except BaseException as raised:  # noqa: BLE001 - the same
            failure = failure or _failure(raised)
    return question, answer, failure


def _checked(hook: Hooks, value: Any, *kinds: type) -> Any:
    """What a hook returned, if it is of one of these kinds or None. Raises TypeError."""
    if value is not None and not isinstance(value, kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"{type(hook).__name__} returned {value!r:.60}, where a hook returns {names}, or None.")
    return value


def _failure(raised: BaseException) -> BaseException:
    """What is raised in the place of an exception that would end more than this run."""
    text = None if isinstance(raised, Exception) else failure_of(raised)
    return raised if text is None else RuntimeError(text)
