"""The seam to the outside: a run asks models and calls tools through a `World`, and through nothing else.

The live one does it; `aworld.runners.replay` has one that reads the answers out of a recorded trajectory.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from aworld.config.conf import TaskConfig
from aworld.core.common import ActionResult
from aworld.core.exceptions import AWorldError, EnvironmentFailed, ModelError, ToolError
from aworld.core.message import ToolCall, content_text
from aworld.core.model import Delta, Model, ModelRequest
from aworld.core.tool.base import Question, Tool, ToolContext, calling
from aworld.core.tool.results import to_content
from aworld.core.tool.toolkit import Offer
from aworld.models.call import Outcome, call_model

logger = logging.getLogger(__name__)

GRACE = 0.5
"""Seconds that a cancelled tool has to clean up before it is left to itself: a cancelled run ends within a second."""


class World:
    """The live world."""

    async def ask(
        self,
        model: Model,
        request: ModelRequest,
        on_delta: Callable[[Delta], None] | None = None,
        on_retry: Callable[[ModelError, float], None] | None = None,
    ) -> Outcome:
        """Ask a model, with its retries and limits. Raises `CallFailed`, and `ModelError` for what a model of somebody
        else's making raised."""
        try:
            return await call_model(model, request, on_delta=on_delta, on_retry=on_retry)
        except AWorldError:
            raise
        except Exception as raised:
            logger.exception("trajectory=%s model=%s | raised", request.trajectory_id, model.name)
            raise ModelError(f"Model {model.name!r} raised {_described(raised)}") from raised

    async def act(self, offer: Offer, call: ToolCall, context: ToolContext, conf: TaskConfig) -> ActionResult:
        """Call a tool. Every failure is a result that tells the model what was wrong. Raises only
        `Question`, and `EnvironmentFailed` where the world of the run has died."""
        tool = offer.by_name.get(call.name)
        if tool is None:
            text = f"There is no tool named {call.name!r}. Tools: {', '.join(offer.by_name) or 'none'}."
            return ActionResult(call.id, call.name, text, f"unknown tool {call.name!r}")
        limit = tool.timeout or conf.tool_timeout
        started = time.perf_counter()
        error: str | None = None
        try:
            content = to_content(await _bounded(tool, call.arguments, context, limit), conf.max_tool_result)
        except (Question, EnvironmentFailed):
            raise
        except TimeoutError as late:
            error = str(late) or "TimeoutError"
            content = f"Tool {call.name!r} failed. {error}"
        except ToolError as refused:
            content = error = str(refused)
        except Exception as raised:  # whatever a tool raises is the model's to read
            logger.info("trajectory=%s tool=%s | raised", context.trajectory_id, call.name, exc_info=raised)
            error = _described(raised)
            content = f"Tool {call.name!r} failed. {error}"
        if error is not None:  # as text that can be stored, and no longer than a result may be
            error = content_text(to_content(error, conf.max_tool_result))
            content = to_content(content, conf.max_tool_result)
        return ActionResult(call.id, call.name, content, error, time.perf_counter() - started)


async def _bounded(tool: Tool, arguments: str, context: ToolContext, limit: float) -> Any:
    """The tool's value. Raises TimeoutError after `limit` seconds, and whatever the tool raises.

    The tool runs in a task of its own, so that one that ignores its cancellation cannot hold up the run.
    """
    loop = asyncio.get_running_loop()
    task = loop.create_task(_invoked(tool, arguments, context))
    over = loop.create_future()  # what asyncio.wait does with a timeout, at two thirds of its cost
    task.add_done_callback(lambda _: over.done() or over.set_result(None))
    timer = loop.call_later(limit, lambda: over.done() or over.set_result(None))
    try:
        await over
    except asyncio.CancelledError:
        await _abandon(task)
        raise
    finally:
        timer.cancel()
    if not task.done():
        await _abandon(task)
        raise TimeoutError(f"No answer within {limit:g} s; it was stopped.")
    if task.cancelled():  # by itself, not by us
        raise ToolError(f"Tool {tool.name!r} cancelled itself.")
    return task.result()


async def _invoked(tool: Tool, arguments: str, context: ToolContext) -> Any:
    """The tool's value. A task that ends with SystemExit would take the event loop with it."""
    calling.set(context)  # in the task of this call alone
    try:
        return await tool.invoke(arguments, context)
    except SystemExit as raised:
        raise ToolError(f"Tool {tool.name!r} tried to end the program (exit code {raised.code}).") from raised


def _described(raised: BaseException) -> str:
    """Type and text of an exception, also of one that cannot tell its text."""
    try:
        return f"{type(raised).__name__}: {raised}"
    except Exception:  # noqa: BLE001 - somebody else's `__str__`
        return type(raised).__name__


async def _abandon(task: asyncio.Future[Any]) -> None:
    """Cancel a task, give it a moment to clean up, and forget it: its late error is nobody's news."""
    task.add_done_callback(lambda t: t.cancelled() or t.exception())
    task.cancel()
    await asyncio.wait((task,), timeout=GRACE)
