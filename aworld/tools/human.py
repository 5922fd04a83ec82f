"""Tools that ask a person. The run waits, durably, until somebody answers, also from another process.

The question is an event of the log. The answer is given by `Runners.answer`, by `aworld answer ID "yes"`, or with
`Runners.resume(id, answers=...)`; then the run goes on where it stood, and the tool returns what the person said.
`approval_required` puts such a question before any other tool.
"""

from __future__ import annotations

from typing import Any

from aworld.core.exceptions import ToolError
from aworld.core.tool.base import Question, Tool, ToolContext
from aworld.core.tool.func_to_tool import tool
from aworld.core.tool.wrappers import approval_required as approval_required
from aworld.core.tool.wrappers import means_yes


@tool(inline=True)
def ask(question: str, at: ToolContext) -> str:
    """Ask a person something that only they can tell, and wait for the answer.

    Args:
        question: The question, with all that a person needs to know to answer it.
    """
    return _answer(at, question)


@tool(inline=True)
def confirm(question: str, at: ToolContext) -> dict[str, Any]:
    """Ask a person to agree to something, and wait. Anything but a plain yes is not agreement.

    Args:
        question: What they shall agree to, as a question that is answered by yes or no.
    """
    words = _answer(at, question, "Answer yes, or say why not.")
    return {"confirmed": means_yes(words), "said": words}


@tool(inline=True)
def choose(question: str, options: list[str], at: ToolContext) -> dict[str, Any]:
    """Let a person choose one of several options, and wait. `choice` is null when they said something else.

    Args:
        question: What the choice is about.
        options: The options, at least two, all different.
    """
    if len(options) < 2 or len(set(options)) < len(options):
        raise ToolError("Give at least two options, all different.")
    listed = [f"  {number}. {option}" for number, option in enumerate(options, 1)]
    words = _answer(at, question, *listed, "Answer with a number, or in your own words.")
    return {"choice": _chosen(words, options), "said": words}


def _answer(at: ToolContext, question: str, *more: str) -> str:
    """What a person answered. Raises Question while nobody has."""
    if not question.strip():
        raise ToolError("The question is empty. Say what you want to know.")
    text = "\n".join((question.strip(), *more))
    if text not in at.answers:
        raise Question(text)
    return at.answers[text].strip()


def _chosen(words: str, options: list[str]) -> str | None:
    """The option that was meant: the text of one counts before its number, as options may be numbers."""
    wanted = words.casefold().rstrip(".!")
    for option in options:
        if wanted in (option.casefold(), option.casefold().rstrip(".!")):
            return option
    if wanted.isdecimal() and 1 <= int(wanted) <= len(options):
        return options[int(wanted) - 1]
    return None


human_tools: tuple[Tool, ...] = (ask, confirm, choose)
"""All three, for `tools=[*human_tools]`."""
