"""What a server sent that is not what its protocol says, read as far as its sense is clear.

The strict decoder of a protocol comes first; only what it refuses is read here. Figures about an answer (usage, a
name, log-probabilities) that have a wrong type are left out, `null` stands for nothing everywhere, and a character
that was cut into its two surrogates is joined. What carries the answer itself is never guessed.
"""

from __future__ import annotations

import json
from types import UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin

import msgspec
from msgspec import Raw, Struct

T = TypeVar("T", bound=Struct)

_ANSWER = frozenset(
    {
        "arguments", "choices", "content", "content_block", "delta", "function", "function_call", "index", "message",
        "name", "partial_json", "text", "thinking", "tool_calls", "type",
    }
)  # fmt: skip


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
    kind = get_origin(kind) or kind
    shape = dict if isinstance(kind, type) and issubclass(kind, Struct) else kind
    return shape in (dict, list) and isinstance(value, shape)


def _characters(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
