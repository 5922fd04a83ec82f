"""What an MCP server asks of a person (elicitation): as a question that a run waits with, and its answer as data.

A server states the form of an answer as a flat JSON schema. A person answers one value in plain words, several as a
JSON object or in lines `name: value`. What does not fit is asked again, with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from aworld.core.tool.wrappers import means_yes

DECLINE = "decline"
"""What a person says who does not want to answer."""
LONGEST = 4000
"""Characters of a server's words that are shown."""
_TRUE, _FALSE = frozenset({"yes", "y", "true", "on", "1"}), frozenset({"no", "n", "false", "off", "0"})


def question_of(server: str, message: str, schema: Mapping[str, Any] | None, url: str | None = None) -> str:
    """The question, which says by whom it is asked and how it is answered."""
    lines = [f"MCP server {server!r} asks: {message[:LONGEST]}"]
    fields = _fields(schema)
    if url is not None:
        lines += [f"  It wants you to open {url[:LONGEST]}", f"Answer yes when you have done so, or: {DECLINE}"]
    elif not fields:
        lines += [f"Answer yes, or: {DECLINE}"]
    else:
        lines += [f"  {name} ({_kind(field, name in _required(schema))})" for name, field in fields.items()]
        how = "the value" if len(fields) == 1 else "a line `name: value` for each"
        lines += [f"Answer with {how}, or: {DECLINE}"]
    return "\n".join(lines)


def asked_again(question: str, said: str, why: str) -> str:
    """The question behind an answer that did not fit."""
    return f"{question}\n(The answer {said[:200]!r} does not fit: {why})"


def answer_of(said: str, schema: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A person's words as data of this form; None when they decline. Raises ValueError that says what does not fit."""
    text = said.strip()
    if text.casefold().rstrip(".!") == DECLINE:
        return None
    fields = _fields(schema)
    if not fields:
        return {} if means_yes(text) else None
    values = _values(text, fields)
    import jsonschema  # comes with the MCP SDK

    wrong = next(iter(jsonschema.Draft202012Validator(dict(schema or {})).iter_errors(values)), None)  # pyright: ignore
    if wrong is not None:
        place = ".".join(str(step) for step in wrong.absolute_path)
        raise ValueError(f"{place}: {wrong.message}" if place else wrong.message)
    return values


def _values(text: str, fields: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    try:
        whole: Any = json.loads(text)
    except ValueError:
        whole = None
    if isinstance(whole, dict):
        return cast("dict[str, Any]", whole)
    if len(fields) == 1:
        (name,) = fields
        given = text.partition(":")[2].strip() if text.casefold().startswith(f"{name.casefold()}:") else text
        return {name: _value(given, fields[name])}
    values: dict[str, Any] = {}
    for line in filter(str.strip, text.splitlines()):
        name, mark, given = line.partition(":")
        if not mark or name.strip() not in fields:
            raise ValueError(f"{line.strip()[:100]!r} is no line `name: value` of {', '.join(fields)}")
        values[name.strip()] = _value(given.strip(), fields[name.strip()])
    return values


def _value(text: str, field: Mapping[str, Any]) -> Any:
    """The words as the type of a field; as they are where they are none, which the schema then says."""
    match field.get("type"):
        case "boolean":
            word = text.casefold().rstrip(".!")
            return True if word in _TRUE else False if word in _FALSE else text
        case "integer" | "number":
            try:
                return int(text)
            except ValueError:
                pass
            try:
                return float(text)
            except ValueError:
                return text
        case "array":
            return [piece.strip() for piece in text.split(",") if piece.strip()]
        case _:
            return text


def _fields(schema: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]]:
    fields: Any = (schema or {}).get("properties")
    if not isinstance(fields, dict):
        return {}
    return {name: field for name, field in cast("dict[str, Any]", fields).items() if isinstance(field, dict)}


def _required(schema: Mapping[str, Any] | None) -> list[Any]:
    found: Any = (schema or {}).get("required")
    return cast("list[Any]", found) if isinstance(found, list) else []


def _kind(field: Mapping[str, Any], required: bool) -> str:
    """What is known of a field, for a person."""
    of: Any = field.get("items") if field.get("type") == "array" else field
    choices: Any = cast("dict[str, Any]", of).get("enum") if isinstance(of, dict) else None
    listed = cast("list[Any]", choices) if isinstance(choices, list) else []
    words = " | ".join(map(str, listed)) if listed else str(field.get("type", "text"))
    about = field.get("description") or field.get("title")
    return f"{words}{'' if required else ', may be left out'}{f': {about}' if about else ''}"[:500]
