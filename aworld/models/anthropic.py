"""Anthropic's Messages API.

An answer with anything besides text and tool calls (thinking and its signatures, above all) must come back exactly as
it was, so its blocks are kept in `Message.opaque["anthropic"]`, and sent again from there.
Source: https://docs.anthropic.com/en/api/messages, https://docs.anthropic.com/en/api/messages-streaming
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, cast

import msgspec
from msgspec import Raw, Struct

from aworld.config.conf import ModelConfig
from aworld.core.event import now
from aworld.core.exceptions import ModelError
from aworld.core.message import Audio, Content, File, Image, Message, Part, Text, ToolCall, Usage, content_text
from aworld.core.model import Delta, ModelReply, ModelRequest, ReasoningDelta, TextDelta
from aworld.models.native_tools import NATIVE_TOOLS, NativeTool, options_of_tool, read_native_tools
from aworld.models.remote_model import RemoteModel, closed, data_of, json_object_of
from aworld.models.wire_reply import WireReply, plain

Block = dict[str, Any]

BASE_URL = "https://api.anthropic.com"
VERSION = "2023-06-01"
MAX_TOKENS = 8192
"""Sent when nothing is set: the API insists on a number, and every current model takes this one."""
_CHOICES = {"auto": "auto", "required": "any", "none": "none"}
_STATUS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
_PLAIN = frozenset({"text", "tool_use"})


def _native(tool: NativeTool, provider: str) -> Block:
    """A tool of the provider itself in the API's words."""
    word = tool.__struct_config__.tag
    if word == "code_execution":
        return {"type": "code_execution_20250825", "name": word}
    options = options_of_tool(tool, provider, "max_uses", "allowed_domains", "blocked_domains", "location")
    if (place := options.pop("location", None)) is not None:
        options["user_location"] = {"type": "approximate", **place}
    return {"type": "web_search_20250305", "name": word, **options}


def _mark(body: dict[str, Any], mark: Block) -> None:
    """Say up to where the prompt is to be kept: after the tools, the system prompt, and the newest message, so that the
    next call of the conversation finds all of it."""
    if "tools" in body:
        body["tools"] = [*body["tools"][:-1], {**body["tools"][-1], "cache_control": mark}]
    if "system" in body:
        body["system"] = [{"type": "text", "text": body["system"], "cache_control": mark}]
    last: Block | None = next((message for message in reversed(body["messages"]) if message["role"] == "user"), None)
    if last is not None:  # copies: what stands in the log, and what every call sends, stay as they are
        last["content"] = [*last["content"][:-1], {**last["content"][-1], "cache_control": mark}]


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
    blocks += [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": json_object_of(call.arguments)}
        for call in message.tool_calls
    ]
    return "assistant", blocks


def _tool_result(message: Message) -> Block:
    content = message.content
    block: Block = {"type": "tool_result", "tool_use_id": message.tool_call_id}
    if content:
        block["content"] = content if isinstance(content, str) else _content(content)
    if message.is_error:
        block["is_error"] = True
    return block


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
    media_type, data = data_of(url)
    if document and media_type.startswith("text/"):
        return {"type": "text", "media_type": "text/plain", "data": base64.b64decode(data).decode("utf-8", "replace")}
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


class MessageShape(Struct):
    """A whole answer, or as it stands when a stream of it begins."""

    content: list[dict[str, Raw]] | None = None
    id: str | None = None
    model: str | None = None
    stop_reason: str | None = None
    usage: AnthropicUsage | None = None


class BlockDelta(Struct):
    """What an event adds to a block, or to the message."""

    type: str = ""
    text: str = ""
    thinking: str = ""
    signature: str = ""
    partial_json: str = ""
    citation: dict[str, Any] | None = None
    stop_reason: str | None = None


class AnthropicEvent(MessageShape):
    """Any event of a stream, or a whole answer."""

    type: str = "message"
    index: int = 0
    message: MessageShape | None = None
    content_block: dict[str, Raw] | None = None
    delta: BlockDelta | None = None
    error: Any = None


class _BlockShape(Struct):
    """What is read of a block. A tool call has an id and a name."""

    type: str
    text: str = ""
    thinking: str = ""
    id: str = ""
    name: str = ""


_decode = msgspec.json.Decoder(AnthropicEvent, strict=False).decode
_EVENTS = frozenset({
    "", "content_block_delta", "content_block_start", "error", "message", "message_delta", "message_start",
    "message_stop",
})  # fmt: skip
_GROWING = {
    "text_delta": "text",
    "thinking_delta": "thinking",
    "signature_delta": "signature",
    "input_json_delta": "partial_json",
}


class AnthropicReply(WireReply):
    """A message as it comes in."""

    def __init__(self, on_delta: Callable[[Delta], None] | None = None) -> None:
        super().__init__(on_delta)
        self._usage: AnthropicUsage | None = None
        self._blocks: dict[int, dict[str, Raw]] = {}
        self._pieces: dict[tuple[int, str], list[str]] = {}
        self._citations: dict[int, list[Block]] = {}

    def read(self, data: bytes) -> bool:
        """Take in an event, or the whole reply; True for the last one. Raises msgspec.DecodeError."""
        event = self._event(data, _decode, AnthropicEvent, _EVENTS)
        if event is not None:
            self._add(event)
        return self.complete

    def _add(self, event: AnthropicEvent) -> None:
        match event.type:
            case "content_block_delta" if event.delta is not None:
                self._grow(event.index, event.delta)
            case "content_block_start":
                if event.content_block is not None:
                    self._blocks[event.index] = event.content_block
            case "message_start" if event.message is not None:
                self._begin(event.message)
            case "message_delta":
                if event.delta is not None and event.delta.stop_reason is not None:
                    self.finish_reason = event.delta.stop_reason
                if event.usage is not None:
                    self._usage = event.usage if self._usage is None else self._usage.updated(event.usage)
            case "message_stop":
                self.complete = True
            case "message" if event.content is not None:
                self._begin(event)
                self._blocks = dict(enumerate(event.content))
                self.finish_reason = event.stop_reason
                self.complete = bool(event.content) or event.stop_reason is not None
            case _ if event.error or event.type == "error":
                self.error = event.error or "an error"
                kind = cast("dict[str, Any]", self.error).get("type") if isinstance(self.error, dict) else None
                self.status = _STATUS.get(str(kind))
            case _:
                pass  # pings, ends of blocks, and kinds to come

    def _begin(self, message: MessageShape) -> None:
        self.model, self.response_id, self._usage = message.model, message.id, message.usage

    def _grow(self, index: int, delta: BlockDelta) -> None:
        key = _GROWING.get(delta.type)
        if key is None:
            if delta.citation is not None:
                self._citations.setdefault(index, []).append(delta.citation)
            return  # kinds to come
        if index not in self._blocks:
            raise msgspec.ValidationError("a piece of a block that has not begun")
        text: str = getattr(delta, key)
        self._pieces.setdefault((index, key), []).append(text)
        if self._on_delta is not None:
            self.first_token = self.first_token or now()
            if key in ("text", "thinking"):
                self._show(TextDelta if key == "text" else ReasoningDelta, text)

    def reply(self, request: ModelRequest) -> ModelReply:
        """The whole reply. Raises msgspec.DecodeError for a block that is none."""
        if not self.complete:
            raise msgspec.DecodeError("it has no content")
        blocks: list[Block] = []
        for index in sorted(self._blocks):
            block, arguments = self._block(index)
            shape = msgspec.convert(block, _BlockShape)
            blocks.append(block)
            match shape.type:
                case "text":
                    self._texts.append(shape.text)
                case "thinking":
                    self._thoughts.append(shape.thinking)
                case "tool_use":
                    if not (shape.id and shape.name):
                        raise msgspec.ValidationError("a tool call without an id or a name")
                    self._calls.append(ToolCall(shape.id, shape.name, arguments))
                case _:
                    pass  # kept below
        opaque = None
        if any(block["type"] not in _PLAIN or block.get("citations") for block in blocks):
            opaque = {"anthropic": {"content": plain(blocks)}}
        self.usage = None if self._usage is None else self._usage.usage()
        return self._whole(opaque)

    def _block(self, index: int) -> tuple[Block, str]:
        """A block with all its pieces, and the text of its input as the model wrote it."""
        start = self._blocks[index]
        block: Block = {key: msgspec.json.decode(raw) for key, raw in start.items()}
        for key in ("text", "thinking", "signature"):
            if (index, key) in self._pieces:
                block[key] = "".join((msgspec.convert(block.get(key) or "", str), *self._pieces[index, key]))
        if index in self._citations:
            block["citations"] = [*(block.get("citations") or ()), *self._citations[index]]
        arguments = "".join(self._pieces.get((index, "partial_json"), ())) or bytes(start.get("input", b"{}")).decode()
        if "input" in block:
            block["input"] = json_object_of(arguments)
        return block, arguments


class AnthropicModel(RemoteModel):
    """A model behind Anthropic's Messages API. `config` needs `llm_model_name`. Raises `ConfigError`."""

    lacks: ClassVar[frozenset[str]] = frozenset({"seed", "logit_bias"})
    native_tools = NATIVE_TOOLS
    reply_type = AnthropicReply
    defaults: ClassVar[Mapping[str, Any]] = {"max_tokens": MAX_TOKENS}
    keeps_an_hour: ClassVar[bool] = True

    def __init__(self, config: ModelConfig, *, provider: str = "anthropic") -> None:
        base = (config.llm_base_url or BASE_URL).rstrip("/")
        headers = {"anthropic-version": config.llm_api_version or VERSION}
        if config.llm_api_key:
            headers["x-api-key"] = config.llm_api_key
        url = f"{base}/messages" if base.endswith("/v1") else f"{base}/v1/messages"
        super().__init__(config, provider=provider, url=url, headers=headers)

    def body(self, request: ModelRequest, *, stream: bool = False) -> dict[str, Any]:
        """The request as it is sent, before encoding."""
        system, messages = wire_messages(request.messages)
        # The messages last: what the log shows is what is sent, whatever a hook puts into the parameters.
        body: dict[str, Any] = {"model": self.name, **self.wire_params(request), "messages": messages}
        if system:
            body["system"] = system
        if request.tools:
            body["tools"] = [
                *body.get("tools", ()),
                *(
                    {"name": tool.name, "description": tool.description, "input_schema": tool.parameters}
                    for tool in request.tools
                ),
            ]
        if cache := body.pop("prompt_cache", None):
            _mark(body, {"type": "ephemeral", "ttl": "1h"} if cache == "1h" else {"type": "ephemeral"})
        if request.output is not None:
            shape = {"type": "json_schema", "schema": closed(request.output.schema)}
            body["output_config"] = {"format": shape, **body.get("output_config", {})}
        if stream:
            body["stream"] = True
        return body

    def translated(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Settings in the API's words."""
        body = super().translated(params)
        if (stop := body.pop("stop", None)) is not None:
            body["stop_sequences"] = [stop] if isinstance(stop, str) else stop
        if (effort := body.pop("reasoning_effort", None)) is not None:
            body["output_config"] = {"effort": effort, **body.get("output_config", {})}
        choice, parallel = body.pop("tool_choice", None), body.pop("parallel_tool_calls", None)
        if isinstance(choice, str):
            choice = {"type": _CHOICES[choice]} if choice in _CHOICES else {"type": "tool", "name": choice}
        if parallel is not None and (choice or {}).get("type") != "none":
            choice = {"type": "auto", **(choice or {}), "disable_parallel_tool_use": not parallel}
        if choice:
            body["tool_choice"] = choice
        if tools := read_native_tools(body.pop("native_tools", None)):
            body["tools"] = [*(_native(tool, self.provider) for tool in tools), *body.get("tools", ())]
        return body
