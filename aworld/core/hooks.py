"""Hooks: paired points around a task, a model call and a tool call.

Give any number to a task: `Task(..., hooks=[MyHooks()])`. "Before" hooks run in the order given, "after" hooks in
reverse and always, also when the thing in between failed. A hook may rewrite what it is given by returning another
value, or refuse it by raising `DeniedError`; what is sent and what is used is in the log either way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from aworld.core.common import ActionResult
from aworld.core.context.base import Context
from aworld.core.message import ToolCall
from aworld.core.model import ModelReply, ModelRequest
from aworld.core.trajectory import Trajectory

if TYPE_CHECKING:
    from aworld.core.task import TaskResponse


@dataclass(frozen=True, slots=True)
class HookContext:
    """Where in a run a hook is called. `step` is None around the task."""

    record: Trajectory
    context: Context
    agent: str | None = None
    step: int | None = None


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
