"""Anthropic's Messages API.

Source: https://docs.anthropic.com/en/api/messages
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

import msgspec

from aworld.config.conf import ModelConfig
from aworld.core.exceptions import ConfigError
from aworld.core.message import Message
from aworld.core.model import Delta, ModelReply, ModelRequest, ReasoningDelta, TextDelta
from aworld.models.anthropic_wire import (
    AnthropicReply,
    AnthropicUsage,
    Block,
    StreamEvent,
    assistant_message,
    decode_answer,
    decode_event,
    whole_blocks,
    wire_messages,
)
from aworld.models.remote_model import RemoteModel, closed

BASE_URL = "https://api.anthropic.com"
VERSION = "2023-06-01"
MAX_TOKENS = 8192
"""Sent when nothing is set: the API insists on a number, and every current model takes this one."""

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


class AnthropicModel(RemoteModel):
    """A model behind Anthropic's Messages API. `config` needs `llm_model_name`. Raises `ConfigError`."""

    def __init__(self, config: ModelConfig, *, provider: str = "anthropic") -> None:
        base = (config.llm_base_url or BASE_URL).rstrip("/")
        headers = {"anthropic-version": config.llm_api_version or VERSION}
        if config.llm_api_key:
            headers["x-api-key"] = config.llm_api_key
        url = f"{base}/messages" if base.endswith("/v1") else f"{base}/v1/messages"
        super().__init__(config, provider=provider, url=url, headers=headers)
        self.params = _params(config)

    async def generate(self, request: ModelRequest) -> ModelReply:
        """Answer once. Raises `ModelError`."""
        data, kind = await self.endpoint.post(self.encode(self.body(request)))
        try:
            answer = decode_answer(data)
            message = assistant_message(whole_blocks(answer.content))
        except (msgspec.DecodeError, UnicodeDecodeError, KeyError) as error:
            what = "what" if "json" in kind else f"{kind} that"
            raise self.endpoint.unreadable(f"{what} is not a message ({error})", data) from None
        if not answer.content and answer.stop_reason is None:
            raise self.endpoint.unreadable("a message without content", data)
        return self._reply(message, answer)

    async def stream(self, request: ModelRequest, on_delta: Callable[[Delta], None]) -> ModelReply:
        """Answer once, and hand on each piece as it comes. Raises `ModelError`."""
        body = self.body(request)
        body["stream"] = True
        answer = _StreamedReply(on_delta)

        def take(events: list[bytes]) -> bool:
            for data in events:
                answer.add(self._decoded(data))
            return answer.complete

        await self.endpoint.post(self.encode(body), take)
        if not answer.complete:
            raise self.endpoint.unreadable("only the beginning of a stream")
        return self._reply(assistant_message(answer.finished_blocks()), answer, answer.first_token)

    def body(self, request: ModelRequest) -> dict[str, Any]:
        """The request as it is sent, before encoding."""
        system, messages = wire_messages(request.messages)
        body: dict[str, Any] = {"model": self.name, "messages": messages, **self.params, **_translated(request.params)}
        if system:
            body["system"] = system
        if request.tools:
            body["tools"] = [
                {"name": tool.name, "description": tool.description, "input_schema": tool.parameters}
                for tool in request.tools
            ]
        if request.output is not None:
            shape = {"type": "json_schema", "schema": closed(request.output.schema)}
            body["output_config"] = {"format": shape, **body.get("output_config", {})}
        return body

    def _decoded(self, data: bytes) -> StreamEvent:
        try:
            event = decode_event(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self.endpoint.unreadable(f"what is not an event ({error})", data) from None
        if event.type == "error":
            error: Any = event.error
            kind = cast("dict[str, Any]", error).get("type") if isinstance(error, dict) else None
            raise self.endpoint.reported(error, _STATUS.get(str(kind)))
        return event

    def _reply(
        self, message: Message, answer: AnthropicReply | _StreamedReply, first_token: float | None = None
    ) -> ModelReply:
        usage = None if answer.usage is None else answer.usage.usage()
        return self.priced(ModelReply(message, answer.stop_reason, usage, None, answer.model, answer.id, first_token))


class _StreamedReply:
    """A streamed answer as it comes in."""

    def __init__(self, on_delta: Callable[[Delta], None]) -> None:
        self._on_delta = on_delta
        self.complete = False
        self.stop_reason: str | None = None
        self.model: str | None = None
        self.id: str | None = None
        self.usage: AnthropicUsage | None = None
        self.first_token: float | None = None
        self._blocks: dict[int, Block] = {}
        self._grown: dict[tuple[int, str], list[str]] = {}

    def add(self, event: StreamEvent) -> None:
        """Take in an event, and hand on what of it a reader of the stream wants to see."""
        match event.type:
            case "content_block_delta":
                self._grow(event)
            case "content_block_start":
                self._blocks[event.index] = dict(event.content_block or {})
            case "message_start" if event.message is not None:
                start = event.message
                self.model, self.id, self.usage = start.model, start.id, start.usage
            case "message_delta":
                if event.delta is not None and event.delta.stop_reason is not None:
                    self.stop_reason = event.delta.stop_reason
                if event.usage is not None:
                    self.usage = event.usage if self.usage is None else self.usage.updated(event.usage)
            case "message_stop":
                self.complete = True
            case _:
                pass  # pings, ends of blocks, and kinds to come

    def finished_blocks(self) -> list[Block]:
        """The blocks in order, each with all its pieces."""
        for (index, key), pieces in self._grown.items():
            block = self._blocks.setdefault(index, {"type": "text"})
            if key == "input":
                text = "".join(pieces)
                block[key] = msgspec.Raw(text.encode()) if text else block.get(key, {})
            else:
                block[key] = block.get(key, "") + "".join(pieces)
        self._grown.clear()  # asked again, nothing is added twice
        return [self._blocks[index] for index in sorted(self._blocks)]

    def _grow(self, event: StreamEvent) -> None:
        piece = event.delta
        if piece is None:
            return
        if self.first_token is None:
            self.first_token = time.time()
        match piece.type:
            case "text_delta":
                self._piece(event.index, "text", piece.text)
                self._on_delta(TextDelta(piece.text))
            case "thinking_delta":
                self._piece(event.index, "thinking", piece.thinking)
                self._on_delta(ReasoningDelta(piece.thinking))
            case "signature_delta":
                self._piece(event.index, "signature", piece.signature)
            case "input_json_delta":
                self._piece(event.index, "input", piece.partial_json)
            case _:
                pass  # citations, and kinds to come

    def _piece(self, index: int, key: str, text: str) -> None:
        self._grown.setdefault((index, key), []).append(text)


def _params(config: ModelConfig) -> dict[str, Any]:
    """Sampling settings in the API's words."""
    if config.llm_seed is not None:
        raise ConfigError("Anthropic's API has no seed: leave llm_seed unset.")
    return {"max_tokens": MAX_TOKENS, **_translated(config.sampling())}


def _translated(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters with the two names that differ from everybody else's, and without the seed, which this API lacks."""
    if not params.keys() & {"stop", "reasoning_effort", "seed"}:
        return params
    out = dict(params)
    out.pop("seed", None)  # rollouts send one with every request
    stop = out.pop("stop", None)
    if stop is not None:
        out["stop_sequences"] = [stop] if isinstance(stop, str) else stop
    effort = out.pop("reasoning_effort", None)
    if effort is not None:
        out["output_config"] = {"effort": effort, **out.get("output_config", {})}
    return out
