"""Chat messages to token ids and back, by a Hugging Face tokenizer and its chat template.

What a policy sampled is never tokenised again: the ids of a conversation are remembered with their text, and a prompt
whose text begins with that text begins with those ids. A message that was sampled keeps its text as it was written,
and is rendered with that text and not from what the parser made of it. So a later prompt extends the earlier tokens
wherever the template keeps earlier turns as they are; where it does not (one that strips old reasoning, say) the
whole prompt is tokenised, and `aworld.trajectory.sequences` counts the drift.

Meant for byte-level tokenizers and templates whose tool calls are `<tool_call>{"name": ..., "arguments": ...}
</tool_call>`, those of the Qwen and Hermes families.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from aworld.core.exceptions import ModelError
from aworld.core.message import Message, ToolCall, chat_format
from aworld.core.model import ModelRequest, ToolSchema

_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
_ARGUMENTS = re.compile(r'"arguments"\s*:\s*')

REMEMBERED = 4096
"""Conversations whose ids are remembered, newest first; more than the episodes that one process has in flight."""

BRANCHES = 8
"""Branches remembered of one conversation: parallel activations of one agent in one run."""


class Tokenizer(Protocol):
    """The part of a `transformers` tokenizer that is used here."""

    chat_template: Any
    eos_token_id: int | None
    pad_token_id: int | None

    def apply_chat_template(self, conversation: list[dict[str, Any]], **settings: Any) -> Any:
        """The conversation as text (`tokenize=False`)."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Ids of a text."""
        ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> Any:
        """Text of ids."""
        ...


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered request: its text and its ids."""

    text: str
    ids: tuple[int, ...]


class ChatTokens:
    """Renders requests into ids and reads replies out of ids, for one tokenizer. Serves any number of calls at once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        if not tokenizer.chat_template:
            raise ModelError("The tokenizer has no chat template; set tokenizer.chat_template, or take a chat model.")
        self.tokenizer = tokenizer
        self.tokenizer_digest = _tokenizer_digest(tokenizer)
        self.template_digest = _digest(str(tokenizer.chat_template))
        self._known: OrderedDict[tuple[str, str], list[Prompt]] = OrderedDict()

    def prompt(self, request: ModelRequest) -> Prompt:
        """The ids of a request: those that were read and sampled before, as they were, and the new ones."""
        text = self._render(request)
        before = max(
            (known for known in self._known.get(_key(request), ()) if text.startswith(known.text)),
            key=lambda known: len(known.text),
            default=None,
        )
        if before is None:
            return Prompt(text, tuple(self.tokenizer.encode(text, add_special_tokens=False)))
        new = self.tokenizer.encode(text[len(before.text) :], add_special_tokens=False)
        return Prompt(text, before.ids + tuple(new))

    def message(
        self, request: ModelRequest, prompt: Prompt, completion: Sequence[int], ends: frozenset[int]
    ) -> Message:
        """The message that `completion` spells. `ends` are the ids that end a turn; the last id may be one."""
        ids = tuple(completion)
        self._remember(request, Prompt(prompt.text + self._text(ids), prompt.ids + ids))
        written = self._text(ids[:-1] if ids and ids[-1] in ends else ids)
        return parse(written, bool(request.tools), request.turn)

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def _render(self, request: ModelRequest) -> str:
        messages = [_rendered(message) for message in request.messages]
        tools = [_schema(tool) for tool in request.tools] or None
        return str(
            self.tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False)
        )

    def _remember(self, request: ModelRequest, conversation: Prompt) -> None:
        if not request.trajectory_id:
            return
        branches = self._known.setdefault(_key(request), [])
        # What this call went on from is told by the longer one; a fork from before it is tokenised anew.
        branches[:] = [known for known in branches if not conversation.text.startswith(known.text)][-BRANCHES + 1 :]
        branches.append(conversation)
        self._known.move_to_end(_key(request))
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)


def parse(written: str, with_tools: bool, turn: int = 0) -> Message:
    """The message of a text: its tool calls, and the text outside of them.

    A call that is not JSON, or that nobody offered tools for, stays in the text: the runtime invents nothing. The text
    as written is kept in `opaque["written"]`, to be rendered again as it was.
    """
    calls: list[ToolCall] = []
    rest = written
    if with_tools:
        for found in _CALL.finditer(written):
            call = _call(found.group(1), f"call_{turn}_{len(calls)}")
            if call is not None:
                calls.append(call)
                rest = rest.replace(found.group(0), "", 1)
    content = rest.strip() if calls else rest
    return Message("assistant", content or None, tuple(calls), opaque={"written": {"text": written}})


def _call(text: str, id: str) -> ToolCall | None:
    try:
        value: Any = json.loads(text)
        name, arguments = value["name"], value.get("arguments", {})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not isinstance(name, str):
        return None
    place = _ARGUMENTS.search(text)
    if place is not None and isinstance(arguments, dict):
        try:  # as the model wrote them, not as json.dumps would
            _, end = json.JSONDecoder().raw_decode(text, place.end())
            return ToolCall(id, name, text[place.end() : end])
        except ValueError:
            pass
    return ToolCall(id, name, arguments if isinstance(arguments, str) else json.dumps(arguments))


def _rendered(message: Message) -> dict[str, Any]:
    """A message as templates take it: arguments as objects, and what was sampled as it was written."""
    written = (message.opaque or {}).get("written")
    if message.role == "assistant" and written is not None:
        return {"role": "assistant", "content": written["text"]}
    shape = chat_format(message)
    shape["content"] = shape["content"] or ""
    for call in shape.get("tool_calls", ()):
        with suppress(ValueError):  # what is not JSON stays a string
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    if message.role == "tool" and message.name is not None:
        shape["name"] = message.name
    return shape


def _schema(tool: ToolSchema) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}


def _key(request: ModelRequest) -> tuple[str, str]:
    return request.trajectory_id, request.agent


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _tokenizer_digest(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return _digest(backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items())))
