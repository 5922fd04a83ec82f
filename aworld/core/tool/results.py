"""What a tool returned, as the content of a message.

Text stays as it is, message parts stay parts, everything else becomes JSON text. Every value counts: `0`, `""`, `[]`
and None (`null`) are results.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence, Set
from enum import Enum
from pathlib import PurePath
from typing import Any, cast

import msgspec

from aworld.core.exceptions import ToolError
from aworld.core.message import Audio, Content, File, Image, Part, Text

_PARTS = (Text, Image, Audio, File)

_DEPTH = 30
"""Levels searched for what cannot be encoded; each level down encodes the rest once more."""


def to_content(value: Any, limit: int | None = None) -> Content:
    """A tool's result as text or message parts; text beyond `limit` characters is cut, with a note that says so.

    Message parts, alone or in a list or tuple (with text between them), give a multimodal content. JSON has no NaN
    and no infinity: they are named, within other values by a text. Bytes are text if they are UTF-8;
    within other values they are base64. Raises `ToolError` for what is neither, naming the type and where it lies.
    """
    if type(value) is str:
        return _cut(_valid(value), limit)
    if isinstance(value, _PARTS):
        return _parts((value,), limit)
    if isinstance(value, (list, tuple)) and any(isinstance(v, _PARTS) for v in cast("Sequence[Any]", value)):
        return _parts(cast("Sequence[Any]", value), limit)
    if isinstance(value, dict):
        for key, item in cast("dict[Any, Any]", value).items():
            if isinstance(item, (Image, Audio, File)):
                raise ToolError(
                    f"The tool's result has an {type(item).__name__} at {key!r}, where a model cannot see it. "
                    "It should return a list of text and parts."
                )
    return _cut(_text(value), limit)


def _parts(values: Sequence[Any], limit: int | None) -> Content:
    out: list[Part] = []
    for value in values:
        part = value if isinstance(value, _PARTS) else Text(_text(value))
        if isinstance(part, Text):
            text = _cut(_valid(part.text), limit)
            limit = None if limit is None else max(limit - len(part.text), 0)
            part = Text(text)
        out.append(part)
    return out[0].text if len(out) == 1 and isinstance(out[0], Text) else tuple(out)


def _text(value: Any) -> str:
    if isinstance(value, Enum):
        return _text(value.value)
    if isinstance(value, str):
        return _valid(str.__str__(value))
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _from_bytes(bytes(cast("bytes", value)))
    if isinstance(value, float) and not math.isfinite(value):
        return _name(value)
    return _to_json(value)


def _name(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _from_bytes(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise ToolError(
            f"The tool returned {len(value)} bytes that are not UTF-8 text. It should return text, "
            "or a File or Image part (aworld.core.message)."
        ) from None


def _to_json(value: Any) -> str:
    try:
        try:
            text = ENCODER.encode(value).decode()
            if "null" not in text:  # as which what is no number would be written
                return text
        except UnicodeEncodeError:  # a lone surrogate somewhere in it
            text = ""
        try:
            plain: Any = msgspec.to_builtins(value, enc_hook=json_form, str_keys=True)
        except TypeError:  # a key that only an encoder takes
            plain = value
        cleaned = _cleaned(plain)
        return text if text and cleaned == plain else ENCODER.encode(cleaned).decode()
    except RecursionError:
        raise ToolError("The tool's result contains itself or is nested too deeply; JSON cannot show it.") from None
    except (TypeError, ValueError, OverflowError) as error:
        where, what = _culprit(value, "result", _DEPTH) or ("result", str(error))
        raise ToolError(
            f"The tool's result is not JSON-able: {where} is {what}. It should return text, numbers, lists, dicts, "
            "dataclasses, pydantic models or message parts."
        ) from error


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return _valid(value)
    if isinstance(value, float) and not math.isfinite(value):
        return _name(value)
    if isinstance(value, dict):
        return {_cleaned(k): _cleaned(v) for k, v in cast("dict[Any, Any]", value).items()}
    return [_cleaned(v) for v in cast("list[Any]", value)] if isinstance(value, list) else value


def json_form(value: Any) -> Any:
    """What JSON knows instead of a type that msgspec does not know. Raises `TypeError`."""
    kind = type(value).__qualname__
    if hasattr(value, "model_dump") and not isinstance(value, type):  # pydantic
        return value.model_dump(mode="json")
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, float):
        return float(value)
    if value is None or isinstance(value, bool):  # msgspec asks for these as keys only
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        return int(value)
    if isinstance(value, PurePath):
        return str(value)
    if hasattr(value, "tolist") and not isinstance(value, type):  # numpy, tensors, series
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(cast("Mapping[Any, Any]", value))
    if isinstance(value, (Sequence, Set, deque)) and not isinstance(value, (list, tuple)):  # these only as keys
        return list(cast("Iterable[Any]", value))
    raise TypeError(f"of type {kind}")


ENCODER = msgspec.json.Encoder(enc_hook=json_form)


def _culprit(value: Any, where: str, depth: int) -> tuple[str, str] | None:
    """The first thing in `value` that cannot be encoded, at most `depth` levels down: where it lies, and what it is.

    What comes before it could be encoded, so the search never enters a structure that contains itself.
    """
    if _encodes(value):
        return None
    kind = type(value).__qualname__
    if isinstance(value, dict):
        for key in cast("dict[Any, Any]", value):
            if not _encodes({key: None}):
                return where, f"a dict with a key of type {type(key).__qualname__} ({key!r:.40})"
    for place, item in _items(value, where) if depth else ():
        if inner := _culprit(item, place, depth - 1):
            return inner
    return where, f"of type {kind}"


def _items(value: Any, where: str) -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict):
        return [(f"{where}[{key!r:.40}]", item) for key, item in cast("dict[Any, Any]", value).items()]
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return [(f"{where}[{i}]", item) for i, item in enumerate(cast("Iterable[Any]", value))]
    kind = cast("Any", type(value))
    names: Iterable[str] = getattr(kind, "__struct_fields__", None) or getattr(kind, "__dataclass_fields__", ())
    return [(f"{where}.{name}", getattr(value, name)) for name in names]


def _encodes(value: Any) -> bool:
    try:
        ENCODER.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return False
    return True


def _valid(text: str) -> str:
    """The text with lone surrogates, which no encoding takes, written as escapes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="backslashreplace").decode()
    return text


def _cut(text: str, limit: int | None) -> str:
    if limit is None or len(text) <= limit:
        return text
    return f"{text[:limit]}\n[cut: the first {limit:,} of {len(text):,} characters are shown]"
