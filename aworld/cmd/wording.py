"""Errors as the command line says them: what to do is a command or an option, not a line of Python."""

from __future__ import annotations

import argparse
import asyncio
import re
from typing import TYPE_CHECKING

from aworld.core.exceptions import AWorldError, ConfigError

if TYPE_CHECKING:  # the command line starts fast: what a command needs is imported when it runs
    from aworld.core.task import TaskResponse

_REMEDIES = {
    "llm_model_name": "give --model, or set LLM_MODEL_NAME",
    "id": "aworld resume {id}",
    "forks": "delete those too with --forks",
}
"""What a command does about a setting; all other remedies are the same everywhere."""

_LIMITS = {
    "max_steps": "go on with: aworld fork {id} --max-steps MORE",
    "max_tokens": "",
    "max_cost": "",
    "timeout": "give a longer --timeout.",
}
"""The limits of a run that are options, and what helps where one was reached."""


_BUDGETS = {"cost": "budget", "tokens": "budget-tokens"}


def worded(error: AWorldError, args: argparse.Namespace | None = None) -> str:
    """An error with the remedy in the words of the command line; of the command with these arguments, if given."""
    remedy, text = _REMEDIES.get(error.setting or ""), _with_options(str(error))
    if remedy is None or error.remedy is None:
        return text
    if error.setting == "llm_model_name" and args is not None and not hasattr(args, "model"):
        remedy = "set LLM_MODEL_NAME, or llm_model_name in the settings of the agent"
    return text.replace(error.remedy, remedy.format(id=getattr(args, "id", None) or "ID"))


def why(response: TaskResponse) -> str:
    """Why a run did not end well. What the log says of limits begins with the setting that was reached."""
    from aworld.cmd.trajectories import short_id

    again = f"aworld resume {short_id(response.id)}"
    text = _with_options(response.msg).replace(f"Runners.resume({response.id!r})", again)
    for name, limit_remedy in _LIMITS.items():
        remedy = limit_remedy.format(id=short_id(response.id))
        if response.status in ("limit_reached", "usage_unknown", "timeout") and text.startswith(name):
            what, _, more = text.removeprefix(name).lstrip("= ").partition("; ")
            return "; ".join(filter(None, (f"--{name.replace('_', '-')} {what}", remedy or more)))
    return text


def _with_options(text: str) -> str:
    """What is said of a budget, with its option."""
    return re.sub(r"RunConfig\(max_(cost|tokens)=([^)]*)\)", lambda m: f"--{_BUDGETS[m[1]]} {m[2]}", text)


def helps_to_go_on(error: BaseException, *, done: int) -> bool:
    """Whether what ended early can be gone on with by the same command: after an interruption, or when something was
    done before it broke. A setting that cannot work would be told again."""
    interrupted = isinstance(error, KeyboardInterrupt | asyncio.CancelledError)
    return interrupted or (done > 0 and not isinstance(error, ConfigError))


def a(word: str) -> str:
    """A word with its article."""
    return f"{'an' if word[:1].lower() in 'aeiou' else 'a'} {word}"


def counted(count: int, what: str) -> str:
    """`1 step`, `2 steps`."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
