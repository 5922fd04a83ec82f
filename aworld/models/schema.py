"""JSON schemas as providers want them for structured output.

Grammars that a provider compiles know only a part of JSON Schema: objects must be closed, and ranges and lengths are
refused. What is taken out here is not lost: the answer is validated in full by whoever asked for it.
"""

from __future__ import annotations

from typing import Any, cast

_UNKNOWN = frozenset(
    {
        "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "pattern",
        "minItems", "maxItems", "uniqueItems", "minProperties", "maxProperties", "default",
    }
)  # fmt: skip
_MAPS = ("properties", "$defs", "definitions")


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """A copy in which every object is closed (`additionalProperties: false`) and unknown keywords are left out."""
    out: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _MAPS and isinstance(value, dict):
            out[key] = {name: _any(one) for name, one in cast("dict[str, Any]", value).items()}
        elif key not in _UNKNOWN:
            out[key] = _any(value) if key not in ("enum", "const", "required") else value
    if out.get("type") == "object" and not isinstance(out.get("additionalProperties"), dict):
        out["additionalProperties"] = False
    return out


def is_strict(schema: Any) -> bool:
    """Whether OpenAI's strict mode takes a schema: every object closed, with all properties required."""
    if isinstance(schema, list):
        return all(is_strict(one) for one in cast("list[Any]", schema))
    if not isinstance(schema, dict):
        return True
    known = cast("dict[str, Any]", schema)
    if known.keys() & {"default", "oneOf", "allOf", "not"}:
        return False
    if known.get("type") == "object":
        required: Any = known.get("required", ())
        if known.get("additionalProperties") is not False or set(required) != set(known.get("properties", {})):
            return False
    return all(
        all(is_strict(one) for one in value.values()) if key in _MAPS else key == "enum" or is_strict(value)
        for key, value in known.items()
    )


def _any(value: Any) -> Any:
    if isinstance(value, dict):
        return closed(cast("dict[str, Any]", value))
    if isinstance(value, list):
        return [_any(one) for one in cast("list[Any]", value)]
    return value
