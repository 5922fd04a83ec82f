"""A small OpenAI-compatible HTTP server around any model: for demonstrations, tests, and policies in this process.

    async with ModelServer(FunctionModel(policy)) as server:
        config = ModelConfig(llm_base_url=server.base_url, llm_model_name="policy")

It speaks `POST /v1/chat/completions`, streamed and whole, and `GET /v1/models`; it gives token ids and
log-probabilities in vLLM's words when they are asked for and the model has them. It binds to loopback unless told
otherwise, and asks for no key.
"""

from __future__ import annotations

import asyncio
import json
import time
from types import TracebackType
from typing import Any

import msgspec
from aiohttp import web
from msgspec import Struct

from aworld.core.exceptions import ModelError
from aworld.core.message import (
    Audio,
    Content,
    File,
    Image,
    Message,
    Part,
    Role,
    Text,
    Tokens,
    ToolCall,
    Usage,
    chat_format,
    tool_call_format,
)
from aworld.core.model import Delta, Model, ModelReply, ModelRequest, OutputSchema, TextDelta, ToolSchema

_MAX_BODY = 64 * 1024 * 1024
_encode = msgspec.json.encode


class _Function(Struct):
    name: str
    arguments: str = "{}"


class _Call(Struct):
    id: str
    function: _Function


class _Said(Struct):
    role: Role
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[_Call] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    reasoning_content: str | None = None


class _ToolFunction(Struct):
    name: str
    description: str = ""
    parameters: dict[str, Any] = {}


class _Tool(Struct):
    function: _ToolFunction


class _Asked(Struct):
    messages: list[_Said]
    model: str = ""
    tools: list[_Tool] | None = None
    response_format: dict[str, Any] | None = None
    stream: bool = False
    stream_options: dict[str, Any] | None = None


_decode = msgspec.json.Decoder(_Asked).decode


class ModelServer:
    """Serves a model over HTTP. `port=0` takes a free one; `base_url` is known when the server has started."""

    def __init__(self, model: Model, host: str = "127.0.0.1", port: int = 0) -> None:
        self.model = model
        self.host = host
        self.port = port
        self.requests = 0
        """Chat completions that were asked for so far."""
        self._runner: web.AppRunner | None = None

    @property
    def base_url(self) -> str:
        """What `llm_base_url` takes."""
        return f"http://{self.host}:{self.port}/v1"

    async def start(self) -> None:
        """Begin to serve. Raises `OSError` when the port is taken."""
        app = web.Application(client_max_size=_MAX_BODY)
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_get("/v1/models", self._models)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, self.port, backlog=4096)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stop to serve; answers under way are cut."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def __aenter__(self) -> ModelServer:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _models(self, _: web.Request) -> web.Response:
        return _json({"object": "list", "data": [{"id": self.model.name, "object": "model"}]})

    async def _complete(self, http: web.Request) -> web.StreamResponse:
        self.requests += 1
        body = await http.read()
        try:
            asked = _decode(body)
            request = _request(asked, body)
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
            return _error(400, f"Not a chat-completions request: {error}")
        try:
            if asked.stream:
                return await self._stream(http, request, asked)
            reply = await self.model.generate(request)
        except ModelError as error:
            return _error(error.status or (503 if error.retryable else 400), str(error), error.retry_after)
        return _json(_completion(reply, request, self.model.name))

    async def _stream(self, http: web.Request, request: ModelRequest, asked: _Asked) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        head = {"id": f"chatcmpl-{self.requests}", "object": "chat.completion.chunk", "created": int(time.time())}
        head["model"] = self.model.name
        pieces: asyncio.Queue[Delta | None] = asyncio.Queue()
        asking = asyncio.ensure_future(self.model.stream(request, pieces.put_nowait))
        asking.add_done_callback(lambda _: pieces.put_nowait(None))
        try:
            while (piece := await pieces.get()) is not None:
                if not response.prepared:
                    await response.prepare(http)
                key = "content" if isinstance(piece, TextDelta) else "reasoning_content"
                await response.write(_event({**head, "choices": [{"index": 0, "delta": {key: piece.text}}]}))
            reply = await asking
            if not response.prepared:
                await response.prepare(http)
            for chunk in _last_chunks(reply, request, bool((asked.stream_options or {}).get("include_usage"))):
                await response.write(_event({**head, **chunk}))
        except ModelError as error:
            if not response.prepared:
                raise
            await response.write(_event({"error": {"message": str(error), "code": error.status}}))
        finally:
            asking.cancel()
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response


def _request(asked: _Asked, body: bytes) -> ModelRequest:
    """The request in our words. What is not ours to read is a sampling parameter."""
    rest: dict[str, Any] = msgspec.json.decode(body)
    params = {key: value for key, value in rest.items() if key not in _Asked.__struct_fields__}
    messages = tuple(_message(said) for said in asked.messages)
    output = None
    if asked.response_format is not None and asked.response_format.get("type") == "json_schema":
        output = msgspec.convert(asked.response_format.get("json_schema"), OutputSchema)
    return ModelRequest(
        messages=messages,
        tools=tuple(
            ToolSchema(tool.function.name, tool.function.description, tool.function.parameters)
            for tool in asked.tools or ()
        ),
        params=params,
        output=output,
        turn=sum(message.role == "assistant" for message in messages),
    )


def _message(said: _Said) -> Message:
    return Message(
        role=said.role,
        content=_content(said.content),
        tool_calls=tuple(ToolCall(c.id, c.function.name, c.function.arguments) for c in said.tool_calls or ()),
        reasoning=said.reasoning_content,
        tool_call_id=said.tool_call_id,
        name=said.name,
    )


def _content(content: str | list[dict[str, Any]] | None) -> Content | None:
    return tuple(_part(part) for part in content) if isinstance(content, list) else content


def _part(part: dict[str, Any]) -> Part:
    match part:
        case {"type": "text", "text": str(text)}:
            return Text(text)
        case {"type": "image_url", "image_url": {"url": str(url), **more}}:
            return Image(url, more.get("detail"))
        case {"type": "input_audio", "input_audio": {"data": str(data), "format": str(kind)}}:
            return Audio(data, kind)
        case {"type": "file", "file": {**file}}:
            return File(file.get("file_data"), file.get("filename"), file.get("file_id"))
        case _:
            raise ValueError(f"unknown content part {json.dumps(part)[:200]}")


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


def _json(data: dict[str, Any]) -> web.Response:
    return web.Response(body=_encode(data), content_type="application/json")


def _error(status: int, message: str, wait: float | None = None) -> web.Response:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    headers = {} if wait is None else {"Retry-After": f"{wait:g}"}
    body = _encode({"error": {"message": message, "type": kind, "code": status}})
    return web.Response(status=status, body=body, headers=headers, content_type="application/json")
