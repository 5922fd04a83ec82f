"""Messages in the shape of Anthropic's API, and its answers in ours.

An answer with anything besides text and tool calls (thinking and its signatures, above all) must come back exactly as
it was, so its blocks are kept in `Message.opaque["anthropic"]`, and sent again from there.
Source: https://docs.anthropic.com/en/api/messages, https://docs.anthropic.com/en/api/messages-streaming
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec
from msgspec import Raw, Struct

from aworld.core.exceptions import ModelError
from aworld.core.message import Audio, Content, File, Image, Message, Part, Text, ToolCall, Usage, content_text

Block = dict[str, Any]

_PLAIN = frozenset({"text", "tool_use"})
_object = msgspec.json.Decoder(dict[str, Raw])


def wire_messages(messages: Iterable[Message]) -> tuple[str, list[Block]]:
    """The system prompt, and the other messages. Answers of tools stand together in one user message, as the API asks.
    Raises `ModelError` for what the API cannot take."""
    system: list[str] = []
    out: list[Block] = []
    for message in messages:
        if message.role == "system":
            system.append(content_text(message.content))
            continue
        role, blocks = _blocks(message)
        if not blocks:
            continue  # the API refuses empty messages, and an empty one says nothing
        if out and role == "user" == out[-1]["role"]:
            out[-1]["content"] = [*out[-1]["content"], *blocks]
        else:
            out.append({"role": role, "content": blocks})
    return "\n\n".join(text for text in system if text), out


def _blocks(message: Message) -> tuple[str, list[Block]]:
    if message.role == "tool":
        return "user", [_tool_result(message)]
    if message.role == "user":
        return "user", _content(message.content)
    kept = (message.opaque or {}).get("anthropic")
    if kept is not None:
        return "assistant", kept["content"]
    blocks = _content(message.content)
    blocks += [{"type": "tool_use", "id": c.id, "name": c.name, "input": _input(c)} for c in message.tool_calls]
    return "assistant", blocks


def _tool_result(message: Message) -> Block:
    content = message.content
    block: Block = {"type": "tool_result", "tool_use_id": message.tool_call_id}
    if content:
        block["content"] = content if isinstance(content, str) else _content(content)
    if message.is_error:
        block["is_error"] = True
    return block


def _input(call: ToolCall) -> Raw | Block:
    """The arguments as an object. A model of another provider may have written something else; it is shown as it is."""
    try:
        _object.decode(call.arguments or "{}")
    except (msgspec.DecodeError, UnicodeError):
        return {"arguments": call.arguments}
    return Raw((call.arguments or "{}").encode())


def _content(content: Content | None) -> list[Block]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content.strip() else []
    return [_part(part) for part in content or () if not isinstance(part, Text) or part.text.strip()]


def _part(part: Part) -> Block:
    match part:
        case Text():
            return {"type": "text", "text": part.text}
        case Image():
            return {"type": "image", "source": _source(part.url)}
        case File():
            source = {"type": "file", "file_id": part.file_id} if part.url is None else _source(part.url, document=True)
            return {"type": "document", "source": source, **({"title": part.name} if part.name else {})}
        case Audio():
            raise ModelError("Anthropic's models take no audio; leave it out, or ask another model.")


def _source(url: str, *, document: bool = False) -> Block:
    if not url.startswith("data:"):
        return {"type": "url", "url": url}
    head, _, data = url[5:].partition(",")
    media_type = head.split(";")[0] or "text/plain"
    if document and media_type.startswith("text/"):
        raw = base64.b64decode(data) if head.endswith(";base64") else unquote_to_bytes(data)
        return {"type": "text", "media_type": "text/plain", "data": raw.decode("utf-8", "replace")}
    if not head.endswith(";base64"):
        data = base64.b64encode(unquote_to_bytes(data)).decode()
    return {"type": "base64", "media_type": media_type, "data": data}


class AnthropicUsage(Struct, gc=False):
    """Usage as Anthropic reports it: `input_tokens` are those beside the cache."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None

    def updated(self, later: AnthropicUsage) -> AnthropicUsage:
        """What a later report, with the totals so far, makes of this one."""
        values = (
            old if new is None else new
            for old, new in zip(msgspec.structs.astuple(self), msgspec.structs.astuple(later), strict=True)
        )
        return AnthropicUsage(*values)

    def usage(self) -> Usage:
        """The same in our words, where the cache is a part of the input."""
        read, written = self.cache_read_input_tokens, self.cache_creation_input_tokens
        whole = None if self.input_tokens is None else self.input_tokens + (read or 0) + (written or 0)
        total = None if whole is None or self.output_tokens is None else whole + self.output_tokens
        return Usage(whole, self.output_tokens, total, cached_tokens=read, cache_write_tokens=written)


class AnthropicReply(Struct):
    """A whole answer."""

    content: list[dict[str, Raw]]
    id: str | None = None
    model: str | None = None
    stop_reason: str | None = None
    usage: AnthropicUsage | None = None


class BlockDelta(Struct):
    """What an event adds to a block."""

    type: str = ""
    text: str = ""
    thinking: str = ""
    signature: str = ""
    partial_json: str = ""
    stop_reason: str | None = None


class MessageStart(Struct):
    """The answer as it stands when it begins."""

    id: str | None = None
    model: str | None = None
    usage: AnthropicUsage | None = None


class StreamEvent(Struct):
    """Any event of a stream."""

    type: str
    index: int = 0
    message: MessageStart | None = None
    content_block: dict[str, Any] | None = None
    delta: BlockDelta | None = None
    usage: AnthropicUsage | None = None
    error: Any = None


decode_answer = msgspec.json.Decoder(AnthropicReply, strict=False).decode
decode_event = msgspec.json.Decoder(StreamEvent, strict=False).decode
_plain = msgspec.json.decode


def whole_blocks(content: list[dict[str, Raw]]) -> list[Block]:
    """The blocks of a whole answer. The input of a tool stays as the model wrote it."""
    return [
        {key: Raw(bytes(raw)) if key == "input" else _plain(raw) for key, raw in block.items()} for block in content
    ]


def assistant_message(blocks: list[Block]) -> Message:
    """The message that blocks make. Each is kept when there is more than text and tool calls."""
    texts = [block["text"] for block in blocks if block["type"] == "text"]
    thoughts = [block["thinking"] for block in blocks if block["type"] == "thinking"]
    calls = [
        ToolCall(block["id"], block["name"], _text(block.get("input", {})))
        for block in blocks
        if block["type"] == "tool_use"
    ]
    opaque = None
    if any(block["type"] not in _PLAIN for block in blocks):
        # The log is read back as plain JSON, so what is kept is plain too.
        opaque = {"anthropic": {"content": _plain(msgspec.json.encode(blocks))}}
    return Message(
        role="assistant",
        content="".join(texts) if texts else None,
        tool_calls=tuple(calls),
        reasoning="".join(thoughts) if thoughts else None,
        opaque=opaque,
    )


def _text(value: Any) -> str:
    return bytes(value).decode() if isinstance(value, Raw) else msgspec.json.encode(value).decode()
