"""Chat messages to token ids and back, by a tokenizer and its chat template.

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
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
from msgspec import Raw, Struct

from aworld.core.bounded import described
from aworld.core.exceptions import ModelError
from aworld.core.message import Message, ToolCall, chat_format
from aworld.core.model import ModelRequest, function_format

OPENING = "<tool_call>"

REMEMBERED = 64 * 2**20
"""Characters of conversations whose ids are remembered: 2,000 of 30,000 each, the ids take about as much again."""

_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
_EXACT = re.compile(r'\n<tool_call>\n\{"name": "([a-zA-Z0-9_-]{1,64})", "arguments": (\{[^\n]*\})\}\n</tool_call>')
_ANYBODY = ("", "")


class Tokenizer(Protocol):
    """The part of a `transformers` tokenizer that is used here."""

    chat_template: Any

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
    kept: int = 0
    """How many of the ids an earlier turn has left, as they were read and sampled there."""


class ChatTokens:
    """Renders requests into ids and reads replies out of ids, for one tokenizer. Serves any number of calls at once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        if not tokenizer.chat_template:
            raise ModelError("The tokenizer has no chat template; set tokenizer.chat_template, or take a chat model.")
        self.tokenizer = tokenizer
        self.tokenizer_digest = _tokenizer_digest(tokenizer)
        self.template_digest = _digest(str(tokenizer.chat_template))
        self._sampled: OrderedDict[tuple[tuple[str, str], str], tuple[int, ...]] = OrderedDict()
        self._characters = 0

    def prompt(self, request: ModelRequest, ends: frozenset[int]) -> Prompt:
        """The ids of a request: those that were read and sampled before, as they were, and the new ones."""
        text = self._render(request)
        owner = (request.trajectory_id, request.agent)
        for at in self._turn_ends(text, ends):
            # First what this agent said in this run: another one may have said the same in other tokens. Then what
            # anybody said, for a run that goes on from another one.
            ids = self._sampled.get((owner, text[:at])) or self._sampled.get((_ANYBODY, text[:at]))
            if ids is not None:
                return Prompt(text, ids + self._encode(text[at:]), len(ids))
        return Prompt(text, self._encode(text))

    def remember(self, request: ModelRequest, prompt: Prompt, ids: tuple[int, ...], ends: frozenset[int]) -> None:
        """Note the ids of a conversation with this answer. One that was cut off is ended by the template later on."""
        written = prompt.text + self.text(ids, ends)
        for end in ids[-1:] if ids and ids[-1] in ends else sorted(ends):
            text = written + self._decode((end,))
            whole = prompt.ids + (ids if ids and ids[-1] in ends else (*ids, end))
            for owner in {(request.trajectory_id, request.agent), _ANYBODY}:
                if self._sampled.pop((owner, text), None) is None:
                    self._characters += len(text)
                self._sampled[owner, text] = whole
        while self._characters > REMEMBERED:  # who is forgotten is tokenised anew: drift that is counted, nothing lost
            (_, text), _ = self._sampled.popitem(last=False)
            self._characters -= len(text)

    def message(self, text: str, request: ModelRequest) -> Message:
        """The message that a text spells."""
        return parse(text, bool(request.tools), request.turn)

    def shape(self, message: Message) -> dict[str, Any]:
        """A message as templates take it: arguments as objects, and what was sampled as it was written."""
        written = (message.opaque or {}).get("written")
        if message.role == "assistant" and written is not None:
            return {"role": "assistant", "content": written["text"]}
        shape = chat_format(message)
        shape["content"] = shape["content"] or ""
        for call in shape.get("tool_calls", ()):
            with suppress(ValueError, RecursionError):  # what is not JSON stays a string
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        if message.role == "tool" and message.name is not None:
            shape["name"] = message.name
        return shape

    def text(self, ids: Sequence[int], ends: frozenset[int]) -> str:
        """The text of an answer, without the id that ends it."""
        return self._decode(ids[:-1] if ids and ids[-1] in ends else ids)

    def _turn_ends(self, text: str, ends: frozenset[int]) -> Iterator[int]:
        """Where turns end in a rendered conversation, the last one first."""
        marks = [re.escape(mark) for end in sorted(ends) if (mark := self._decode((end,)))]
        turns = re.finditer("|".join(marks), text) if marks else ()
        return reversed([turn.end() for turn in turns])

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def _render(self, request: ModelRequest) -> str:
        """The text of a request, with the beginning of the answer."""
        messages = [self.shape(message) for message in request.messages]
        tools = [function_format(tool) for tool in request.tools] or None
        try:
            text = self.tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False)
        except Exception as error:
            raise ModelError(f"The chat template cannot render these messages: {described(error)}") from error
        return str(text)


def parse(written: str, with_tools: bool, turn: int = 0) -> Message:
    """The message of a text: its tool calls, and the text outside of them.

    A call that is not JSON, or that nobody offered tools for, stays in the text: the runtime invents nothing. The text
    as written is kept in `opaque["written"]`, to be rendered again as it was.
    """
    calls: list[ToolCall] = []
    rest = written
    if with_tools:
        for match in _CALL.finditer(written):
            call = _call(match.group(1), f"call_{turn}_{len(calls)}")
            if call is not None:
                calls.append(call)
                rest = rest.replace(match.group(0), "", 1)
    content = rest.strip() if calls else rest
    return Message("assistant", content or None, tuple(calls), opaque={"written": {"text": written}})


def parse_exact(text: str, turn: int = 0) -> Message:
    """The message of a text, with calls only where a template that writes them as `_EXACT` says would write the same
    text again; anything else stays text, so nothing needs to be kept beside it.

    All from the first call on are calls, and their arguments are objects.
    """
    lines = "\n" + text
    first = lines.find("\n" + OPENING)
    calls = list(_EXACT.finditer(lines, max(first, 0)))
    # At 1 a line end stands before the first call, and empty content would not be written back.
    whole = first not in (-1, 1) and "".join(call[0] for call in calls) == lines[first:]
    if not whole or not all(_is_object(call[2]) for call in calls):
        return Message("assistant", text)
    return Message(
        "assistant",
        lines[1:first] or None,
        tuple(ToolCall(f"call_{turn}_{place}", call[1], call[2]) for place, call in enumerate(calls)),
    )


class _Written(Struct):
    name: str
    arguments: Raw = Raw(b"{}")


def _call(text: str, id: str) -> ToolCall | None:
    """The call of a JSON text, with its arguments as the model wrote them; None when it is none."""
    try:
        call = _decode_call(text)
        arguments = bytes(call.arguments).decode()
        return ToolCall(id, call.name, json.loads(arguments) if arguments.startswith('"') else arguments)
    except (ValueError, RecursionError):
        return None


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


_decode_call = msgspec.json.Decoder(_Written).decode


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _tokenizer_digest(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return _digest(backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items())))
