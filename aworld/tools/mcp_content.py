"""What MCP says in our words, and the other way round: results as message parts, sampling as model requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import mcp_types as types
import msgspec

from aworld.core.message import Audio, Content, File, Image, Message, Part, Text
from aworld.core.model import ModelReply, ModelRequest


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


def request_of(params: types.CreateMessageRequestParams) -> ModelRequest:
    """A server's question to the agent's model. Raises ValueError for content that no model request can hold."""
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
    sampled = {"max_tokens": params.max_tokens, "temperature": params.temperature, "stop": params.stop_sequences}
    return ModelRequest(tuple(messages), params={key: value for key, value in sampled.items() if value is not None})


def reply_of(reply: ModelReply, model: str) -> types.CreateMessageResult:
    """The model's answer, as the server reads it."""
    return types.CreateMessageResult(
        role="assistant",
        content=types.TextContent(text=reply.message.text),
        model=reply.model or model,
        stop_reason={"stop": "endTurn", "length": "maxTokens"}.get(reply.finish_reason or "", reply.finish_reason),
    )
