"""Tool calls as the policy writes them: `<tool_call>` around a JSON object with a name and arguments.

A call is read only if the chat template would write it back exactly as it stands, arguments as raw text. So what was
sampled and what a later prompt shows are the same characters; anything else stays the text that it is.
"""

from __future__ import annotations

import json
import re

from aworld.core.message import Message, ToolCall

OPENING = "<tool_call>"

_CALL = re.compile(r'\n<tool_call>\n\{"name": "([a-zA-Z0-9_-]{1,64})", "arguments": (\{[^\n]*\})\}\n</tool_call>')


def parsed(text: str, prefix: str) -> Message:
    """The message of an answer. Tool calls at its end become calls, with ids `<prefix>_<place>`."""
    content, calls = _split("\n" + text)
    found = tuple(ToolCall(f"{prefix}_{place}", name, raw) for place, (name, raw) in enumerate(calls))
    if not found:
        return Message("assistant", text)
    return Message("assistant", content[1:] or None, tool_calls=found)


def _split(text: str) -> tuple[str, list[tuple[str, str]]]:
    """Content and calls; no calls unless everything from the first one on is calls, and each is an object."""
    first = text.find("\n" + OPENING)
    if first < 0 or first == 1:  # a second line that begins at once: empty content, which would not be written back
        return text, []
    calls: list[tuple[str, str]] = []
    at = first
    while at < len(text):
        match = _CALL.match(text, at)
        if match is None or not _is_object(match.group(2)):
            return text, []
        calls.append((match.group(1), match.group(2)))
        at = match.end()
    return text[:first], calls


def _is_object(raw: str) -> bool:
    try:
        return isinstance(json.loads(raw), dict)
    except ValueError:
        return False
