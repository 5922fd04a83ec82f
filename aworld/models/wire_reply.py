"""A reply as it comes in from a provider, whole or piece by piece: the base of one class for each protocol.

What the strict decoder of a protocol refuses is read as far as its sense is clear. Figures about an answer (usage, a
name, log-probabilities) that have a wrong type are left out, `null` stands for nothing everywhere, and a character
that was cut into its two surrogates is joined. What carries the answer itself is never guessed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import count
from types import UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin

import msgspec
from msgspec import Raw, Struct

from aworld.core.event import now
from aworld.core.message import Message, Tokens, ToolCall, Usage
from aworld.core.model import Delta, ModelReply, ModelRequest, TextDelta

T = TypeVar("T", bound=Struct)

_ANSWER = frozenset(
    {
        "arguments", "candidates", "choices", "content", "content_block", "delta", "function", "function_call", "index",
        "item", "message", "name", "output", "partial_json", "parts", "response", "text", "thinking", "tool_calls",
        "type",
    }
)  # fmt: skip


class TypedEvent(Struct):
    """What every event of a protocol with kinds of events has."""

    type: str = ""


_decode_kind = msgspec.json.Decoder(TypedEvent).decode


class WireReply:
    """A reply as it comes in. With `on_delta` it is streamed: text and thinking are handed on as they come."""

    def __init__(self, on_delta: Callable[[Delta], None] | None = None) -> None:
        self._on_delta = on_delta
        self.complete = False
        """Whether the server said that this was all."""
        self.error: Any = None
        """What the server says went wrong, in its own shape."""
        self.status: int | None = None
        """The HTTP status that belongs to the error."""
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        self.model: str | None = None
        self.response_id: str | None = None
        self.first_token: float | None = None
        """When the first piece came, in UNIX seconds; None when the reply came as a whole."""
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._calls: list[ToolCall] = []
        self.refused = b""
        """What the strict decoder last refused."""
        self._lenient: LenientDecoder | None = None
        self._kind: type[Delta] = TextDelta
        self._pieces_to_show: list[str] = []

    def feed(self, events: list[bytes]) -> bool:
        """Take in what one read brought; True when no more is to come. Of a stream, what came together is handed on in
        one piece: nobody could have seen the pieces one by one. Raises msgspec.DecodeError."""
        try:
            for data in events:
                last = self.read(data)
                if last or self.error:
                    return True
            return False
        finally:
            self._hand_on()

    def read(self, data: bytes) -> bool:
        """Take in an event, or the whole reply; True for the last one. Raises msgspec.DecodeError."""
        raise NotImplementedError

    def reply(self, request: ModelRequest) -> ModelReply:
        """The whole reply to `request`. Raises msgspec.DecodeError when it is none."""
        raise NotImplementedError

    def _whole(self, opaque: dict[str, Any] | None, gap: str = "", tokens: Tokens | None = None) -> ModelReply:
        """The reply of the texts, thoughts and calls; `gap` is between thoughts."""
        content, reasoning = "".join(self._texts) if self._texts else None, gap.join(self._thoughts) or None
        message = Message("assistant", content, tuple(self._calls), reasoning, opaque=opaque)
        return ModelReply(
            message, self.finish_reason, self.usage, tokens, self.model, self.response_id, self.first_token
        )

    def _hand_on(self) -> None:
        if self._pieces_to_show and self._on_delta is not None:
            text = "".join(self._pieces_to_show)
            self._pieces_to_show.clear()
            self._on_delta(self._kind(text))

    def _show(self, kind: type[Delta], text: str) -> None:
        self.first_token = self.first_token or now()
        if kind is not self._kind:
            self._hand_on()
            self._kind = kind
        self._pieces_to_show.append(text)

    def _decoded(self, data: bytes, strict: Callable[[bytes], T], kind: type[T]) -> T:
        try:
            return strict(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.refused = data
            self._lenient = self._lenient or LenientDecoder()
            return self._lenient.decode(data, kind)

    def _event(self, data: bytes, strict: Callable[[bytes], T], kind: type[T], events: frozenset[str]) -> T | None:
        """An event, or None for one of a kind that is none of `events`, whatever is in it."""
        try:
            return self._decoded(data, strict, kind)
        except msgspec.DecodeError:
            if self._decoded(data, _decode_kind, TypedEvent).type in events:
                raise
            return None


def status_of(error: Any) -> int | None:
    """The HTTP status that an error object names, if it does."""
    if not isinstance(error, dict):
        return None
    fields = cast("dict[str, Any]", error)
    try:
        status = int(fields.get("code") or fields.get("status") or 0)
    except (TypeError, ValueError, OverflowError):
        return None
    return status if 400 <= status < 600 else None


def call_ids(request: ModelRequest) -> Iterator[str]:
    """Ids for the calls of a reply whose server gave none: `call_<n>`, unique within the conversation."""
    before = sum(len(message.tool_calls) for message in request.messages)
    return (f"call_{n}" for n in count(before))


def plain(value: Any) -> Any:
    """The value as the log gives it back: plain JSON."""
    return msgspec.json.decode(msgspec.json.encode(value))


class LenientDecoder:
    """Reads the pieces of one reply that the strict decoder refused."""

    def __init__(self) -> None:
        self.lost: set[str] = set()
        """Names of the fields that were left out."""
        self._halves: dict[tuple[str | int, ...], str] = {}
        """First halves of characters whose second half has not come, by where they stood."""

    def decode(self, data: bytes, kind: type[T]) -> T:
        """`data` as `kind`. Raises msgspec.DecodeError."""
        try:
            value = self._joined(json.loads(data), ())
            return self._fitting(value, kind)
        except (ValueError, RecursionError) as error:
            raise msgspec.DecodeError(str(error)) from None

    def _joined(self, value: Any, at: tuple[str | int, ...]) -> Any:
        """The value with surrogates made characters, also over the border between two pieces."""
        if isinstance(value, dict):
            fields = cast("dict[str, Any]", value)
            return {_characters(key): self._joined(part, (*at, key)) for key, part in fields.items()}
        if isinstance(value, list):
            return [self._joined(part, (*at, place)) for place, part in enumerate(cast("list[Any]", value))]
        if not isinstance(value, str):
            return value
        text = self._halves.pop(at, "") + value
        if "\ud800" <= text[-1:] <= "\udbff":
            self._halves[at], text = text[-1], text[:-1]
        return _characters(text)

    def _fitting(self, value: Any, kind: Any) -> Any:
        """`value` as `kind`, without the fields that do not fit. Raises msgspec.ValidationError."""
        if kind is Raw:
            return Raw(msgspec.json.encode(value))
        if get_origin(kind) in (Union, UnionType):  # it is the one for objects or for lists, if there is one
            kind = next((part for part in get_args(kind) if _holds(part, value)), kind)
        if isinstance(value, dict) and _holds(kind, value):
            fields = cast("dict[str, Any]", value)
            if isinstance(kind, type) and issubclass(kind, Struct):
                return self._struct(fields, kind)
            return {key: self._fitting(part, (*get_args(kind), Any, Any)[1]) for key, part in fields.items()}
        if isinstance(value, list) and _holds(kind, value):
            return [self._fitting(part, (*get_args(kind), Any)[0]) for part in cast("list[Any]", value)]
        return msgspec.convert(value, kind, strict=False)

    def _struct(self, fields: dict[str, Any], kind: type[Struct]) -> Struct:
        values: dict[str, Any] = {}
        for field in msgspec.structs.fields(kind):
            value = fields.get(field.encode_name)
            if isinstance(value, list) and field.name in _ANSWER:
                value = [part for part in cast("list[Any]", value) if part is not None]
            if value is None:
                continue
            try:
                values[field.name] = self._fitting(value, field.type)
            except msgspec.ValidationError:
                if field.name in _ANSWER:
                    raise
                self.lost.add(field.name)
        try:
            return kind(**values)
        except TypeError as error:  # a field without which there is no sense
            raise msgspec.ValidationError(str(error)) from None


def _holds(kind: Any, value: Any) -> bool:
    """Whether a type is that of an object, for an object, or of a list, for a list."""
    origin: Any = get_origin(kind) or kind
    if isinstance(origin, type) and issubclass(origin, Struct):
        return isinstance(value, dict)
    return origin in (dict, list) and isinstance(value, origin)


def _characters(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
