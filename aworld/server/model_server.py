"""A small OpenAI-compatible HTTP server around any model: for demonstrations, tests, and policies in this process.

    async with ModelServer(FunctionModel(policy)) as server:
        config = ModelConfig(llm_base_url=server.base_url, llm_model_name="policy")

It speaks `POST /v1/chat/completions`, streamed and whole, and `GET /v1/models`; it gives token ids and
log-probabilities in vLLM's words when they are asked for and the model has them. On loopback it asks for no key.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response
from msgspec import Struct
from msgspec.structs import astuple

from aworld.core.checks import typed
from aworld.core.exceptions import ModelError
from aworld.core.message import Tokens, Usage, chat_format, message_of, tool_call_format
from aworld.core.model import Delta, Model, ModelReply, ModelRequest, OutputSchema, TextDelta, ToolSchema
from aworld.server.shell import EventStream, Serving, json_response

_MAX_BODY = 64 * 1024 * 1024
_encode = msgspec.json.encode


class _Function(Struct):
    name: str
    description: str = ""
    parameters: dict[str, Any] = {}


class _Tool(Struct):
    function: _Function


class _Completion(Struct):
    messages: list[dict[str, Any]]
    model: str = ""
    tools: list[_Tool] | None = None
    response_format: dict[str, Any] | None = None
    stream: bool = False
    stream_options: dict[str, Any] | None = None


_decode = msgspec.json.Decoder(_Completion).decode


class ModelServer(Serving):
    """Serves a model over HTTP. `port=0` takes a free one; `base_url` is known when the server has started."""

    @typed()
    def __init__(self, model: Model, host: str = "127.0.0.1", port: int = 0, **options: Any) -> None:
        router = APIRouter()
        router.add_route("/v1/chat/completions", self._complete, methods=["POST"])
        router.add_route("/v1/models", self._models, methods=["GET"])
        super().__init__(router, host=host, port=port, max_body=_MAX_BODY, grace=0.1, **options)
        self.model = model
        self.requests = 0
        """Chat completions that were asked for so far."""

    @property
    def base_url(self) -> str:
        """What `llm_base_url` takes."""
        return f"{self.url}/v1"

    async def _models(self, _: Request) -> Response:
        return json_response({"object": "list", "data": [{"id": self.model.name, "object": "model"}]})

    async def _complete(self, http: Request) -> Response:
        self.requests += 1
        body = await http.body()
        try:
            wanted = _decode(body)
            request = _request(wanted, body)
        except (ValueError, TypeError, LookupError, AttributeError, msgspec.DecodeError, RecursionError) as error:
            return _error(400, f"Not a chat-completions request: {error}")
        try:
            if wanted.stream:
                return await self._stream(request, wanted)
            reply = await self.model.generate(request)
        except ModelError as error:
            return _error(error.status or (503 if error.retryable else 400), str(error), error.retry_after)
        return json_response(_completion(reply, request, self.model.name))

    async def _stream(self, request: ModelRequest, wanted: _Completion) -> Response:
        """The answer as it comes. A model that fails before its first piece is answered by a status: raises
        ModelError."""
        pieces: asyncio.Queue[Delta | None] = asyncio.Queue()
        asking = asyncio.ensure_future(self.model.stream(request, pieces.put_nowait))
        asking.add_done_callback(lambda _: pieces.put_nowait(None))
        try:
            first = await pieces.get()
            if first is None:
                await asking
        except BaseException:
            asking.cancel()
            raise
        head = {"id": f"chatcmpl-{self.requests}", "object": "chat.completion.chunk", "created": int(time.time())}
        head["model"] = self.model.name

        async def events() -> AsyncGenerator[bytes]:
            piece = first
            try:
                while piece is not None:
                    key = "content" if isinstance(piece, TextDelta) else "reasoning_content"
                    yield _event({**head, "choices": [{"index": 0, "delta": {key: piece.text}}]})
                    piece = await pieces.get()
                reply = await asking
                for chunk in _last_chunks(reply, request, bool((wanted.stream_options or {}).get("include_usage"))):
                    yield _event({**head, **chunk})
            except ModelError as error:
                yield _event({"error": {"message": str(error), "code": error.status}})
            finally:
                asking.cancel()
            yield b"data: [DONE]\n\n"

        return EventStream(events(), _event({"error": {"message": "The server stops.", "code": 503}}))


def _request(wanted: _Completion, body: bytes) -> ModelRequest:
    """The request in our words. What is not ours to read is a sampling parameter."""
    rest: dict[str, Any] = msgspec.json.decode(body)
    params = {key: value for key, value in rest.items() if key not in _Completion.__struct_fields__}
    messages = tuple(message_of(message) for message in wanted.messages)
    output = None
    if wanted.response_format is not None and wanted.response_format.get("type") == "json_schema":
        output = msgspec.convert(wanted.response_format.get("json_schema"), OutputSchema)
    return ModelRequest(
        messages=messages,
        tools=tuple(ToolSchema(*astuple(tool.function)) for tool in wanted.tools or ()),
        params=params,
        output=output,
        turn=sum(message.role == "assistant" for message in messages),
    )


def _completion(reply: ModelReply, request: ModelRequest, name: str) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": 0,
        "message": chat_format(reply.message),
        "finish_reason": reply.finish_reason or "stop",
    }
    out: dict[str, Any] = {
        "id": reply.response_id or "chatcmpl-0",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": reply.model or name,
        "choices": [choice],
    }
    if reply.usage is not None:
        out["usage"] = _usage(reply.usage)
    if reply.tokens is not None:
        _add_tokens(out, choice, reply.tokens, request)
    return out


def _last_chunks(reply: ModelReply, request: ModelRequest, with_usage: bool) -> list[dict[str, Any]]:
    """The chunks after the text: tool calls, the end, and the usage when it was asked for."""
    delta: dict[str, Any] = {}
    if reply.message.tool_calls:
        delta["tool_calls"] = [{"index": n, **tool_call_format(c)} for n, c in enumerate(reply.message.tool_calls)]
    choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": reply.finish_reason or "stop"}
    last: dict[str, Any] = {"choices": [choice]}
    if reply.tokens is not None:
        _add_tokens(last, choice, reply.tokens, request)
    if with_usage and reply.usage is not None:
        return [last, {"choices": [], "usage": _usage(reply.usage)}]
    return [last]


def _add_tokens(out: dict[str, Any], choice: dict[str, Any], tokens: Tokens, request: ModelRequest) -> None:
    if request.params.get("return_token_ids"):
        out["prompt_token_ids"] = tokens.prompt_ids
        choice["token_ids"] = tokens.completion_ids
    if request.params.get("logprobs") and tokens.logprobs is not None:
        choice["logprobs"] = {"content": [{"token": "", "logprob": value} for value in tokens.logprobs]}


def _usage(usage: Usage) -> dict[str, Any]:
    out: dict[str, Any] = {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
    }
    if usage.cached_tokens is not None:
        out["prompt_tokens_details"] = {"cached_tokens": usage.cached_tokens}
    if usage.reasoning_tokens is not None:
        out["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    return out


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + _encode(data) + b"\n\n"


def _error(status: int, message: str, wait: float | None = None) -> Response:
    """As this protocol says it; what the shell refuses is `application/problem+json`."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    headers = {} if wait is None else {"Retry-After": f"{wait:g}"}
    return json_response({"error": {"message": message, "type": kind, "code": status}}, status, headers)
