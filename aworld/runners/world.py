"""The seam to the outside: a run asks models and calls tools through a `World`, and through nothing else.

The live one does it; `aworld.runners.replay` has one that reads the answers out of a recorded trajectory.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from aworld.config.conf import TaskConfig
from aworld.core.agent.flow import Unit
from aworld.core.bounded import bounded, described
from aworld.core.common import ActionResult
from aworld.core.exceptions import AWorldError, EnvironmentFailed, ModelError, ToolError
from aworld.core.message import ToolCall, content_text
from aworld.core.model import Delta, Model, ModelRequest
from aworld.core.tool.base import Question, Tool, ToolContext, calling
from aworld.core.tool.results import to_content
from aworld.core.tool.toolkit import Offer
from aworld.core.trajectory import Trajectory
from aworld.models.call import Outcome, call_model

logger = logging.getLogger(__name__)


class World:
    """The live world."""

    live = True
    """Whether models are asked, so that their settings must be complete."""

    def stand_in(self, unit: Unit) -> Unit:
        """Who acts in the place of an agent or a team: itself."""
        return unit

    def next_due(self, ready: deque[int], record: Trajectory) -> int:
        """Whose turn the next step takes: the one that has waited longest. It is taken out of `ready`."""
        return ready.popleft()

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
            raise ModelError(f"Model {model.name!r} raised {described(raised)}") from raised

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
            content = to_content(await bounded(_invoked(tool, call.arguments, context), limit), conf.max_tool_result)
        except (Question, EnvironmentFailed):
            raise
        except TimeoutError as late:
            error = str(late) or "TimeoutError"
            content = f"Tool {call.name!r} failed. {error}"
        except asyncio.InvalidStateError:
            content = error = f"Tool {call.name!r} cancelled itself."
        except ToolError as refused:
            content = error = str(refused)
        except Exception as raised:  # whatever a tool raises is the model's to read
            logger.info("trajectory=%s tool=%s | raised", context.trajectory_id, call.name, exc_info=raised)
            error = described(raised)
            content = f"Tool {call.name!r} failed. {error}"
        if error is not None:  # as text that can be stored, and no longer than a result may be
            error = content_text(to_content(error, conf.max_tool_result))
            content = to_content(content, conf.max_tool_result)
        return ActionResult(call.id, call.name, content, error, time.perf_counter() - started)


async def _invoked(tool: Tool, arguments: str, context: ToolContext) -> Any:
    """The tool's value. A task that ends with SystemExit would take the event loop with it."""
    calling.set(context)  # in the task of this call alone
    try:
        return await tool.invoke(arguments, context)
    except SystemExit as raised:
        raise ToolError(f"Tool {tool.name!r} tried to end the program (exit code {raised.code}).") from raised
