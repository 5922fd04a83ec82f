"""The functions that an agent's author gave: what a run asks of them, and what it makes of their answers.

Instructions are asked before each call of the model. A function that does not await runs in a thread: one that reads a
file or a database would hold up all other runs, and neither a time-out nor a cancellation could end it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from aworld.core.bounded import bounded, failure_of
from aworld.core.checks import is_text
from aworld.core.exceptions import DeniedError, EnvironmentFailed, TaskError
from aworld.core.tool.base import ToolContext
from aworld.core.tool.threads import THREADS


async def system_message(agent: Any, context: ToolContext, limit: float) -> str:
    """What an agent is told before everything else in one call: its fixed prompt, then what its function returns.

    Raises TaskError that names the function when it fails, takes longer than `limit` seconds, or returns no text.
    """
    label = f"Instructions {_name(agent.instructions)!r} of agent {agent.name!r}"
    text = await _asked(agent.instructions, context, label=label, limit=limit)
    if not isinstance(text, str) or not is_text(text):
        raise TaskError(f"{label} returned {text!r:.60}; return text, which the model is told before everything else.")
    return "\n\n".join(part for part in (agent.system_prompt, text) if part)


async def _asked(function: Callable[..., Any], *args: Any, label: str, limit: float) -> Any:
    """What a function returns. Raises TaskError for whatever it raises that is not meant for the runtime."""

    async def call() -> Any:
        try:
            if inspect.iscoroutinefunction(function):
                return await function(*args)
            value = await THREADS.run(partial(function, *args))
            return await value if inspect.isawaitable(value) else value
        except (DeniedError, EnvironmentFailed):
            raise
        except BaseException as raised:  # here: what leaves a task as SystemExit takes the event loop with it
            text = failure_of(raised)
            if text is None:
                raise
            raise TaskError(f"{label} raised {text}") from raised

    try:
        return await bounded(call(), limit)
    except TimeoutError as late:
        raise TaskError(f"{label} had no answer. {late} Raise TaskConfig(tool_timeout=...).") from late


def _name(function: Any) -> str:
    return getattr(function, "__name__", None) or type(function).__name__
