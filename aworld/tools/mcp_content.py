"""What MCP says in our words, and the other way round: results as message parts, sampling as model requests, and what a
server asks of a person (elicitation) as a question that a run waits with.

A server states the form of an answer as a flat JSON schema. A person answers one value in plain words, several as a
JSON object or in lines `name: value`. What does not fit is asked again, with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import mcp_types as types
import msgspec

from aworld.core.message import Audio, Content, File, Image, Message, Part, Text
from aworld.core.model import ModelReply, ModelRequest
from aworld.core.tool.wrappers import means_yes

DECLINE = "decline"
"""What a person says who does not want to answer."""
LONGEST = 4000
"""Characters of a server's words that are shown."""
_TRUE, _FALSE = frozenset({"yes", "y", "true", "on", "1"}), frozenset({"no", "n", "false", "off", "0"})


def content_of(result: types.CallToolResult) -> Content:
    """A result as text or message parts. Structured content is added as JSON text, unless the text says the same."""
    parts = [_part(block) for block in result.content]
    structured = result.structured_content
    if structured is not None and not _said(structured, [part.text for part in parts if isinstance(part, Text)]):
        parts.append(Text(msgspec.json.encode(structured).decode()))
    if len(parts) == 1 and isinstance(parts[0], Text):
        return parts[0].text
    return tuple(parts) if parts else ""


def _part(block: types.ContentBlock) -> Part:
    match block:
        case types.TextContent():
            return Text(block.text)
        case types.ImageContent():
            return Image(f"data:{block.mime_type};base64,{block.data}")
        case types.AudioContent():
            return Audio(block.data, _sound(block.mime_type))
        case types.ResourceLink():
            kind = f", {block.mime_type}" if block.mime_type else ""
            about = f": {block.description}" if block.description else ""
            return Text(f"[resource {block.title or block.name} at {block.uri}{kind}]{about}")
        case types.EmbeddedResource():
            return _resource(block.resource)


def _resource(resource: types.TextResourceContents | types.BlobResourceContents) -> Part:
    if isinstance(resource, types.TextResourceContents):
        return Text(f"[resource {resource.uri}]\n{resource.text}")
    kind = resource.mime_type or "application/octet-stream"
    if kind.startswith("image/"):
        return Image(f"data:{kind};base64,{resource.blob}")
    if kind.startswith("audio/"):
        return Audio(resource.blob, _sound(kind))
    return File(f"data:{kind};base64,{resource.blob}", name=resource.uri.rstrip("/").rpartition("/")[2] or None)


def _sound(mime_type: str) -> str:
    """The format of a sound, such as `mp3`: of `audio/x-wav;rate=8000` it is `wav`."""
    kind = mime_type.partition(";")[0].rpartition("/")[2].removeprefix("x-")
    return {"mpeg": "mp3", "wave": "wav", "vnd.wave": "wav"}.get(kind, kind)


def _said(structured: Any, texts: Sequence[str]) -> bool:
    """Whether the texts are the same as the structured content, which servers send twice for older clients.

    A result that is no object is wrapped as `{"result": …}` in the structured form, and a list is a text an item.
    """
    candidates = [structured]
    if isinstance(structured, dict):
        wrapped = cast("dict[str, Any]", structured)
        candidates += [wrapped["result"]] if wrapped.keys() == {"result"} else []
    for value in candidates:
        if len(texts) == 1 and _same(value, texts[0]):
            return True
        items = cast("list[Any]", value) if isinstance(value, list) else []
        if items and len(items) == len(texts) and all(map(_same, items, texts)):
            return True
    return False


def _same(value: Any, text: str) -> bool:
    if value == text:
        return True
    try:
        return value == msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeError):
        return False


def request_of(params: types.CreateMessageRequestParams, max_tokens: int) -> ModelRequest:
    """A server's question to the agent's model, for an answer of at most so many tokens. Raises ValueError for content
    that no model request can hold."""
    messages = [Message("system", params.system_prompt)] if params.system_prompt else []
    for message in params.messages:
        parts: list[Part] = []
        for block in message.content_as_list:
            if not isinstance(block, types.TextContent | types.ImageContent | types.AudioContent):
                raise ValueError("sampling with tools is not supported")
            parts.append(_part(block))
        text = all(isinstance(part, Text) for part in parts)
        content = "".join(part.text for part in parts if isinstance(part, Text)) if text else tuple(parts)
        messages.append(Message(message.role, content))
    sampled = {
        "max_tokens": min(params.max_tokens, max_tokens),
        "temperature": params.temperature,
        "stop": params.stop_sequences,
    }
    return ModelRequest(tuple(messages), params={key: value for key, value in sampled.items() if value is not None})


def reply_of(reply: ModelReply, model: str) -> types.CreateMessageResult:
    """The model's answer, as the server reads it."""
    return types.CreateMessageResult(
        role="assistant",
        content=types.TextContent(text=reply.message.text),
        model=reply.model or model,
        stop_reason={"stop": "endTurn", "length": "maxTokens"}.get(reply.finish_reason or "", reply.finish_reason),
    )


def question_of(server: str, message: str, schema: Mapping[str, Any] | None, url: str | None = None) -> str:
    """The question, which says by whom it is asked and how it is answered.

    Each line that the server wrote begins with a bar, so that none can pass for one of ours.
    """
    fields = _fields(schema)
    words = [message[:LONGEST]]
    if url is not None:
        words += [f"  It wants you to open {url[:LONGEST]}"]
        how = f"Answer yes when you have done so, or: {DECLINE}"
    elif not fields:
        how = f"Answer yes, or: {DECLINE}"
    else:
        words += [f"  {name} ({_kind(field, name in _required(schema))})" for name, field in fields.items()]
        how = f"Answer with {'the value' if len(fields) == 1 else 'a line `name: value` for each'}, or: {DECLINE}"
    lines = "\n".join(words)[: 2 * LONGEST].splitlines()
    return "\n".join((f"MCP server {server!r} asks:", *(f"| {line}" for line in lines), how))


def asked_again(question: str, answer: str, why: str) -> str:
    """The question behind an answer that did not fit."""
    return f"{question}\n(The answer {answer[:200]!r} does not fit: {' '.join(why.split())[:500]})"


def answer_of(words: str, schema: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A person's words as data of this form; None when they decline. Raises ValueError that says what does not fit."""
    text = words.strip()
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
        value = text.partition(":")[2].strip() if text.casefold().startswith(f"{name.casefold()}:") else text
        return {name: _value(value, fields[name])}
    values: dict[str, Any] = {}
    for line in filter(str.strip, text.splitlines()):
        name, mark, value = line.partition(":")
        if not mark or name.strip() not in fields:
            raise ValueError(f"{line.strip()[:100]!r} is no line `name: value` of {', '.join(fields)}")
        values[name.strip()] = _value(value.strip(), fields[name.strip()])
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
    required: Any = (schema or {}).get("required")
    return cast("list[Any]", required) if isinstance(required, list) else []


def _kind(field: Mapping[str, Any], required: bool) -> str:
    """What is known of a field, for a person."""
    of: Any = field.get("items") if field.get("type") == "array" else field
    choices: Any = cast("dict[str, Any]", of).get("enum") if isinstance(of, dict) else None
    listed = cast("list[Any]", choices) if isinstance(choices, list) else []
    words = " | ".join(map(str, listed)) if listed else str(field.get("type", "text"))
    about = field.get("description") or field.get("title")
    return f"{words}{'' if required else ', may be left out'}{f': {about}' if about else ''}"[:500]
