"""Gymnasium's spaces in a model's terms: a JSON schema for actions, JSON for observations, words for both.

Discrete, Box, MultiDiscrete, MultiBinary, Text, and tuples and dicts of them. A space is refused when it is looked at,
not when a model has already acted: graphs, sequences, and arrays that no model could write or read as numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from aworld.core.exceptions import ConfigError, ToolError
from aworld.core.extras import import_extra

import_extra("gymnasium", "gymnasium_environment", "gymnasium>=1.0")
import numpy as np  # noqa: E402 - it comes with gymnasium, which may be missing
from gymnasium import spaces  # noqa: E402

LARGEST = 1024
"""Numbers in an array that a model is shown or asked for: a page of digits. Pictures need a `describe` of their own."""


def schema(space: spaces.Space[Any]) -> dict[str, Any]:
    """The JSON schema of the values of a space. Raises ConfigError for a space that has none."""
    match space:
        case spaces.Discrete():
            first = int(space.start)
            return {"type": "integer", "minimum": first, "maximum": first + int(space.n) - 1}
        case spaces.Box():
            return _array(_box_item(space), space.shape)
        case spaces.MultiBinary():
            return _array({"type": "integer", "enum": [0, 1]}, space.shape)
        case spaces.MultiDiscrete():
            return _multi_discrete(space)
        case spaces.Text():
            return {"type": "string", "minLength": space.min_length, "maxLength": space.max_length}
        case spaces.Tuple():
            items = [schema(part) for part in _parts(space)]
            return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
        case spaces.Dict():
            properties = {str(key): schema(part) for key, part in space.spaces.items()}
            return {
                "type": "object", "properties": properties, "required": list(properties),
                "additionalProperties": False,
            }  # fmt: skip
        case _:
            raise ConfigError(
                f"A model cannot write or read {type(space).__name__} values; wrap the environment so that its spaces "
                "are Discrete, Box, MultiDiscrete, MultiBinary, Text, or a Tuple or Dict of them."
            )


def action_of(space: spaces.Space[Any], value: Any, where: str = "action") -> Any:
    """A JSON value as an action of the space. Raises ToolError that tells the model what would have been right."""
    try:
        action = _converted(space, value, where)
    except (TypeError, ValueError, OverflowError) as error:
        raise ToolError(f"{where} is {value!r:.200}, but must be {words(space)}.") from error
    if not space.contains(action):
        raise ToolError(f"{where} is {value!r:.200}, but must be {words(space)}.")
    return action


def jsonable(value: Any) -> Any:
    """An observation as JSON-able data."""
    match value:
        case np.ndarray():
            return jsonable(cast("np.ndarray[Any, Any]", value).tolist())
        case np.generic():
            return jsonable(value.item())
        case float():
            # Seven digits are what 32 bits hold; more of them only cost tokens.
            return float(f"{value:.7g}") if math.isfinite(value) else str(value)
        case Mapping():
            return {str(key): jsonable(item) for key, item in cast("Mapping[Any, Any]", value).items()}
        case list() | tuple():
            return [jsonable(item) for item in cast("Sequence[Any]", value)]
        case _:
            return value


def words(space: spaces.Space[Any]) -> str:
    """A space as a model is told of it."""
    match space:
        case spaces.Discrete():
            return f"an integer from {int(space.start)} to {int(space.start) + int(space.n) - 1}"
        case spaces.Box():
            whole = "integers" if np.issubdtype(space.dtype, np.integer) else "numbers"
            low, high = _bound(space.low), _bound(space.high)
            between = f" from {low:g} to {high:g}" if low is not None and high is not None else ""
            return f"{_shaped(whole, space.shape)}{between}"
        case spaces.MultiBinary():
            return f"{_shaped('0s and 1s', space.shape)}"
        case spaces.MultiDiscrete():
            return f"{_shaped('integers', space.shape)}, each from {space.start.tolist()} to {_last(space).tolist()}"
        case spaces.Text():
            return f"a text of {space.min_length} to {space.max_length} of the characters {space.characters!r}"
        case spaces.Tuple():
            return "a list of " + ", then ".join(words(part) for part in _parts(space))
        case spaces.Dict():
            return "an object of " + ", ".join(f"{key}: {words(part)}" for key, part in space.spaces.items())
        case _:
            return str(space)


def _converted(space: spaces.Space[Any], value: Any, where: str) -> Any:
    match space:
        case spaces.Discrete():
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{where} is no integer")
            return np.int64(value)
        case spaces.Box() | spaces.MultiBinary() | spaces.MultiDiscrete():
            array = np.asarray(value)
            if array.dtype.kind not in "iuf" or (np.issubdtype(space.dtype, np.integer) and array.dtype.kind == "f"):
                raise TypeError(f"{where} is not made of such numbers")
            return array.astype(space.dtype).reshape(space.shape)
        case spaces.Tuple():
            parts = _parts(space)
            if not isinstance(value, list) or len(cast("list[Any]", value)) != len(parts):
                raise TypeError(f"{where} has another length")
            pairs = zip(parts, cast("list[Any]", value), strict=True)
            return tuple(action_of(part, item, f"{where}[{n}]") for n, (part, item) in enumerate(pairs))
        case spaces.Dict():
            if not isinstance(value, dict) or set(cast("dict[Any, Any]", value)) != set(space.spaces):
                raise TypeError(f"{where} has other keys")
            items = cast("dict[str, Any]", value)
            return {key: action_of(part, items[key], f"{where}.{key}") for key, part in space.spaces.items()}
        case _:
            return value


def _parts(space: Any) -> tuple[spaces.Space[Any], ...]:
    return cast("tuple[spaces.Space[Any], ...]", space.spaces)


def _array(item: dict[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    if math.prod(shape) > LARGEST:
        raise ConfigError(
            f"An array of shape {shape} has {math.prod(shape):,} numbers, more than a model can write or read. For "
            "observations give describe=..., a function of observation and info that tells of them in text or pictures."
        )
    for size in reversed(shape):
        item = {"type": "array", "items": item, "minItems": size, "maxItems": size}
    return item


def _box_item(space: spaces.Box) -> dict[str, Any]:
    item: dict[str, Any] = {"type": "integer" if np.issubdtype(space.dtype, np.integer) else "number"}
    for key, bounds in (("minimum", space.low), ("maximum", space.high)):
        bound = _bound(bounds)
        if bound is not None:
            item[key] = int(bound) if item["type"] == "integer" else bound
    return item


def _bound(bounds: Any) -> float | None:
    """The bound that all numbers of an array share; None when there is none or they differ."""
    first = float(np.asarray(bounds).flat[0]) if np.asarray(bounds).size else math.inf
    return first if math.isfinite(first) and bool(np.all(np.asarray(bounds) == first)) else None


def _multi_discrete(space: spaces.MultiDiscrete) -> dict[str, Any]:
    first, last = np.asarray(space.start), _last(space)
    return _array({"type": "integer", "minimum": int(first.min()), "maximum": int(last.max())}, space.shape)


def _last(space: spaces.MultiDiscrete) -> Any:
    return np.asarray(space.start) + np.asarray(space.nvec) - 1


def _shaped(what: str, shape: tuple[int, ...]) -> str:
    if not shape:
        return f"one of {what}"
    return f"a list of {shape[0]} {what}" if len(shape) == 1 else f"nested lists of shape {list(shape)} of {what}"
