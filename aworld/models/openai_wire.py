"""What an OpenAI-compatible server answers: the shapes, and how they become a `ModelReply`.

Servers differ. The shapes name only what is used, take `null` everywhere, and numbers in strings; what is known to vary
(ids, arguments, contents) is taken in each of its forms, and for the rest see `aworld.models.wire_reply`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat
from typing import Any, cast

import msgspec
from msgspec import Struct

from aworld.core.event import now
from aworld.core.message import Tokens, ToolCall, Usage, tool_call_format
from aworld.core.model import Delta, ModelReply, ModelRequest, ReasoningDelta, TextDelta
from aworld.models.wire_reply import WireReply, call_ids, status_of


class ChatFunction(Struct, gc=False):
    """A function call or a piece of one. Some servers give the arguments as an object instead of its text."""

    name: str | None = None
    arguments: str | dict[str, Any] | list[Any] | None = None


class ChatCall(Struct, gc=False):
    """A tool call or a piece of one."""

    index: int | None = None
    id: Any = None
    function: ChatFunction | None = None
    extra_content: dict[str, Any] | None = None
    """What Gemini wants back with the call (thought signatures)."""


class ChatMessage(Struct, gc=False):
    """A message, or what a chunk adds to it."""

    content: str | list[Any] | None = None
    reasoning_content: Any = None
    reasoning: Any = None
    refusal: str | None = None
    tool_calls: list[ChatCall] | None = None
    function_call: ChatFunction | None = None
    reasoning_details: list[dict[str, Any]] | None = None
    annotations: list[dict[str, Any]] | None = None
    """Pages that the provider's search found."""


class Logprob(Struct, gc=False):
    """One sampled token."""

    logprob: float


class Logprobs(Struct, gc=False):
    """The sampled tokens of a choice."""

    content: list[Logprob] | None = None


class Choice(Struct, gc=False):
    """One answer, or a piece of it."""

    index: int | None = 0
    message: ChatMessage | None = None
    delta: ChatMessage | None = None
    finish_reason: str | None = None
    logprobs: Logprobs | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class PromptDetails(Struct, gc=False):
    """What the input tokens were."""

    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


class CompletionDetails(Struct, gc=False):
    """What the output tokens were."""

    reasoning_tokens: int | None = None


class ChatUsage(Struct, gc=False):
    """Usage as chat completions report it; `cost` is OpenRouter's, `prompt_cache_hit_tokens` DeepSeek's."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None
    prompt_cache_hit_tokens: int | None = None
    cost: float | None = None

    def usage(self) -> Usage:
        """The same in our words."""
        prompt, completion = self.prompt_tokens_details, self.completion_tokens_details
        cached = self.prompt_cache_hit_tokens
        if prompt is not None and prompt.cached_tokens is not None:
            cached = prompt.cached_tokens
        return Usage(
            input_tokens=self.prompt_tokens,
            output_tokens=self.completion_tokens,
            total_tokens=self.total_tokens,
            cached_tokens=cached,
            cache_write_tokens=None if prompt is None else prompt.cache_write_tokens,
            reasoning_tokens=None if completion is None else completion.reasoning_tokens,
            cost=self.cost,
        )


class Chunk(Struct, gc=False):
    """A whole reply, or one chunk of a streamed one."""

    id: Any = None
    model: str | None = None
    choices: list[Choice] | None = None
    usage: ChatUsage | None = None
    error: Any = None
    detail: Any = None
    message: Any = None
    prompt_token_ids: list[int] | None = None


_decode = msgspec.json.Decoder(Chunk, strict=False).decode
_TOKENS = frozenset({"logprobs", "prompt_token_ids", "token_ids"})


class ChatReply(WireReply):
    """A chat completion as it comes in; choice 0 only."""

    def __init__(self, on_delta: Callable[[Delta], None] | None = None) -> None:
        super().__init__(on_delta)
        self._seen = False
        self._call_parts: list[_CallParts] = []
        self._details: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._prompt_ids: list[int] | None = None
        self._ids: list[int] | None = None
        self._logprobs: list[float] | None = None

    def read(self, data: bytes) -> bool:
        """Take in a chunk, or the whole reply; True for the last one. Raises msgspec.DecodeError."""
        if data == b"[DONE]":
            self.complete = True
            return True
        self._take(self._decoded(data, _decode, Chunk))
        return False

    def add(self, chunk: Chunk) -> None:
        """Take in a whole reply or a chunk, and hand on what there is to show."""
        self._take(chunk)
        self._hand_on()

    def _take(self, chunk: Chunk) -> None:
        if self.response_id is None and chunk.id is not None:
            self.response_id = str(chunk.id)
            self.model = chunk.model
        if chunk.usage is not None:
            self.usage = chunk.usage.usage()
        if chunk.error or not chunk.choices:
            # Some servers send the message of an error without an `error` around it.
            self.error = chunk.error or (None if self.usage else chunk.message or chunk.detail)
            self.status = status_of(self.error)
        if chunk.prompt_token_ids is not None:
            self._prompt_ids = chunk.prompt_token_ids
        for choice in chunk.choices or ():
            if choice.index:  # `n` above 1 is not asked for; what comes all the same is not the answer
                continue
            if choice.finish_reason:  # some servers send "" until the end
                self.finish_reason = choice.finish_reason
                self.complete = True
            if choice.prompt_token_ids is not None:
                self._prompt_ids = choice.prompt_token_ids
            if choice.token_ids is not None:  # a stream brings them in pieces, as it does the text
                self._ids = (self._ids or []) + choice.token_ids
            if choice.logprobs is not None and choice.logprobs.content is not None:
                self._logprobs = (self._logprobs or []) + [token.logprob for token in choice.logprobs.content]
            if (message := choice.delta or choice.message) is not None:
                self._seen = True
                self._add(message, whole=choice.delta is None)
                return

    def reply(self, request: ModelRequest) -> ModelReply:
        """The whole reply to `request`. Raises msgspec.DecodeError when it is none."""
        if not self._seen:
            raise msgspec.DecodeError("it has no choices, or none with a message")
        tokens = None
        broken = self._lenient is not None and self._lenient.lost & _TOKENS  # a part of them is worse than none
        if not broken and (self._prompt_ids is not None or self._ids is not None or self._logprobs is not None):
            tokens = Tokens(_tuple(self._prompt_ids), _tuple(self._ids), _tuple(self._logprobs))
        self._calls = self._tool_calls(request) if self._call_parts else []
        if self._on_delta is not None and self._calls and not any(self._texts):
            self._texts.clear()  # streams begin with an empty text, also where no text comes
        return self._whole(self._opaque(), tokens=tokens)

    def _add(self, message: ChatMessage, *, whole: bool) -> None:
        streamed = self._on_delta is not None
        reasoning: Any = message.reasoning_content or message.reasoning
        content = message.content if message.content is not None else message.refusal
        if isinstance(content, list):
            content, thought = _parts(content)
            reasoning = reasoning or thought
        if reasoning and isinstance(reasoning, str):
            self._thoughts.append(reasoning)
            if streamed:
                self._show(ReasoningDelta, reasoning)
        if content is not None:
            self._texts.append(content)
            if content and streamed:
                self._show(TextDelta, content)
        for call in message.tool_calls or ():
            self._add_call(call, whole)
        if message.function_call is not None:
            self._add_call(ChatCall(index=0, function=message.function_call), whole)
        for detail in message.reasoning_details or ():
            self._add_detail(detail)
        if message.annotations:
            self._annotations += message.annotations
        if self.first_token is None and streamed and self._call_parts:
            self.first_token = now()

    def _add_call(self, piece: ChatCall, whole: bool) -> None:
        """Take in a call, or join the pieces of one: they go by index, without one by id, without both they belong to
        the last. Servers that give parallel calls the same index begin a new call with an id and a name."""
        function = piece.function or ChatFunction()
        call = None if whole else self._begun(piece)
        if call is None or (piece.id and call.id and piece.id != call.id and function.name):
            call = _CallParts(piece.index)
            self._call_parts.append(call)
        call.id = call.id or piece.id
        call.name = call.name or function.name or ""
        if piece.extra_content is not None:
            call.extra = piece.extra_content
        arguments = function.arguments
        if arguments is not None:
            call.arguments.append(arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode())

    def _begun(self, piece: ChatCall) -> _CallParts | None:
        if piece.index is not None:
            return next((call for call in reversed(self._call_parts) if call.index == piece.index), None)
        if piece.id:
            return next((call for call in reversed(self._call_parts) if call.id == piece.id), None)
        return self._call_parts[-1] if self._call_parts else None

    def _add_detail(self, detail: dict[str, Any]) -> None:
        """Join pieces of the same reasoning block: texts grow, the rest (signature, format) is what came last."""
        last = self._details[-1] if self._details else None
        if last is None or (last.get("type"), last.get("index")) != (detail.get("type"), detail.get("index")):
            self._details.append(dict(detail))
            return
        for key, value in detail.items():
            grown = key in ("text", "summary", "data") and isinstance(value, str) and isinstance(last.get(key), str)
            if value is not None:
                last[key] = last[key] + value if grown else value

    def _tool_calls(self, request: ModelRequest) -> list[ToolCall]:
        """The calls, with the ids that the server left out."""
        ids = None if all(parts.id for parts in self._call_parts) else call_ids(request)
        return [
            ToolCall(str(parts.id or made), parts.name, "".join(parts.arguments) if parts.arguments else "{}")
            for parts, made in zip(self._call_parts, ids or repeat(""), strict=False)
        ]

    def _opaque(self) -> dict[str, Any] | None:
        """What the server wants back with the message, in the words of the API; and what it found, which stays here."""
        extras: dict[str, Any] = {}
        if self._details:
            extras["reasoning_details"] = self._details
        if any(parts.extra is not None for parts in self._call_parts):
            extras["tool_calls"] = [
                {**tool_call_format(call), **({} if parts.extra is None else {"extra_content": parts.extra})}
                for parts, call in zip(self._call_parts, self._calls, strict=True)
            ]
        kept: dict[str, Any] = {"annotations": self._annotations} if self._annotations else {}
        return kept | ({"chat": extras} if extras else {}) or None


class _CallParts:
    def __init__(self, index: int | None) -> None:
        self.index = index
        self.id: Any = None
        self.name = ""
        self.arguments: list[str] = []
        self.extra: dict[str, Any] | None = None


def _parts(content: list[Any]) -> tuple[str, str]:
    """Text and thinking of a content in parts (Mistral's models answer so)."""
    text: list[str] = []
    thinking: list[str] = []
    for part in content:
        if isinstance(part, str):
            text.append(part)
        elif isinstance(part, dict):
            fields = cast("dict[str, Any]", part)
            if isinstance(fields.get("text"), str):
                text.append(fields["text"])
            thought: Any = fields.get("thinking")
            if isinstance(thought, str | list):
                thinking.append(thought if isinstance(thought, str) else _parts(cast("list[Any]", thought))[0])
    return "".join(text), "".join(thinking)


def _tuple(values: list[Any] | None) -> tuple[Any, ...] | None:
    return None if values is None else tuple(values)
