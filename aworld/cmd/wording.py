"""Errors as the command line says them: what to do is a command or an option, not a line of Python."""

from __future__ import annotations

import argparse
import asyncio
import re
from collections.abc import Callable

from aworld.core.exceptions import ConfigError


def _option(match: re.Match[str]) -> str:
    """The name of a setting as the option that it is."""
    return match[0].replace(match[1], f"--{match[1].replace('_', '-')}").replace("=", " ")


_NO_MODEL = r"set LLM_MODEL_NAME or AgentConfig\(llm_model_name=\.\.\.\)"
_PHRASES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"Runners\.resume\('([^']+)'\)", r"aworld resume \1"),
    (r"Runners\.resume\(id, answers=[^)]*\)", "aworld answer ID TEXT"),
    (r"delete those too with forks=True", "delete those too with --forks"),
    (r"; raise TaskConfig\(timeout=\.\.\.\)\.", "; give a longer --timeout."),
    (r"; fork the run with a higher one to go on\.", "; go on with: aworld fork ID --at N --max-steps MORE"),
    (_NO_MODEL, "give --model, or set LLM_MODEL_NAME"),
    (r"set llm_input_price and llm_output_price \(([^)]*)\) in the model's config",
     r"the prices (llm_input_price, llm_output_price, \1) are set for an agent of your own, with --agent"),
    (r", or AgentConfig\(llm_api_key=\.\.\.\)", ""),
    (r"give RunConfig\(store=\.\.\.\)", "give --store"),
    (r"\b(max_steps|max_tokens|max_cost)=(\S+) reached", _option),
    (r"\btimeout=(\S+) s passed", r"--timeout \1: the time is over"),
    (r"\b(max_tokens|max_cost) is set", _option),
]  # fmt: skip


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


def worded(text: str, args: argparse.Namespace | None = None) -> str:
    """An error of the library in the words of the command line; of the command with these arguments, if given."""
    if args is not None and (not hasattr(args, "model") or getattr(args, "agent", None) is not None):
        # A ready agent: there is no --model, or it would be refused.
        text = re.sub(_NO_MODEL, "set LLM_MODEL_NAME, or llm_model_name in the settings of the agent", text)
    for pattern, words in _PHRASES:
        text = re.sub(pattern, words, text)
    return text
