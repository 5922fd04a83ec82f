"""How an MCP connection carries its messages: the pipes of a process, or the SDK's HTTP transports."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cache
from types import TracebackType
from typing import Any, Self, cast
from weakref import WeakSet

import anyio
import httpx2
import mcp_types as types
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage
from pydantic import ValidationError

from aworld.tools.mcp_config import Resolved
from aworld.tools.mcp_process import MAX_LINE, ServerProcess

logger = logging.getLogger(__name__)

_SHOWN = 200  # characters of a line that is no message, in a warning


class _Keyless(logging.Filter):
    """Keeps keys out of what the SDK and its HTTP client log: they write addresses, and what servers sent."""

    servers: WeakSet[Resolved] = WeakSet()

    def filter(self, record: logging.LogRecord) -> bool:
        """Let everything through, without keys."""
        text = record.getMessage()
        trace = record.exc_text or (_FORMATTER.formatException(record.exc_info) if record.exc_info else None)
        for resolved in list(self.servers):
            text = resolved.redact(text)
            trace = trace and resolved.redact(trace)
        record.msg, record.args, record.exc_info, record.exc_text = text, None, None, trace
        return True


_FORMATTER = logging.Formatter()
for _name in ("mcp.client.sse", "mcp.client.streamable_http", "mcp.client.session", "mcp.client.client", "httpx2"):
    logging.getLogger(_name).addFilter(_Keyless())


@cache
def _certificates() -> ssl.SSLContext:
    """Whom to trust; loaded once, which takes 0.1 s."""
    return httpx2.create_ssl_context()


class Transport(AbstractAsyncContextManager[Any]):
    """The transport of a connection. It tells when the server has no more to say, which the SDK's tell nobody."""

    def __init__(self, server: Resolved, process: ServerProcess | None) -> None:
        self.ended = asyncio.Event()
        """Nothing more will come."""
        self.status: int | None = None
        """The last HTTP status that was an error."""
        self.check_tool: Callable[[dict[str, Any]], None] | None = None
        """Raises ValidationError for a list of tools that the SDK would not take; set when the protocol is known."""
        self._name = server.name
        _Keyless.servers.add(server)
        self._pipes = _PipeStream(process, server) if process is not None else None
        self._inner = self._http(server) if process is None else None

    def _http(self, server: Resolved) -> AbstractAsyncContextManager[Any]:
        conf = server.conf

        def client(
            headers: dict[str, str] | None = None,
            timeout: httpx2.Timeout | None = None,
            auth: httpx2.Auth | None = None,
        ) -> httpx2.AsyncClient:
            return httpx2.AsyncClient(
                headers=headers,
                timeout=timeout,
                auth=auth,
                # As many connections as calls: the SDK ends the whole session when one waits too long for its turn.
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=30.0),
                # Proxies and `.netrc` of the environment may carry our keys to a server, so they are asked for.
                trust_env=os.environ.get("AWORLD_TRUST_ENV") == "1",
                verify=_certificates(),
                event_hooks={"response": [self._note_status]},
            )

        if conf.type == "sse":
            return sse_client(
                server.url, server.headers, conf.timeout, conf.sse_read_timeout, httpx_client_factory=client
            )
        timeout = httpx2.Timeout(conf.timeout, read=conf.sse_read_timeout)
        return _streamable_http(server.url, client(server.headers, timeout))

    async def _note_status(self, response: httpx2.Response) -> None:
        if response.status_code >= 400:
            self.status = response.status_code

    async def __aenter__(self) -> Any:
        """The streams to read and to write."""
        reading, writing = (self._pipes, self._pipes) if self._inner is None else await self._inner.__aenter__()
        return _WatchedStream(reading, self), writing

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        # A process is ended by whoever started it.
        return None if self._inner is None else await self._inner.__aexit__(kind, error, trace)

    def mended(self, item: Any) -> Any:
        """What the SDK is to see of what a server sent: an answer that is no message ends its call, not the wait for
        it, and a tool that is none takes no other with it."""
        if isinstance(item, ValidationError):
            sent = item.errors()[0]["input"]
            return (refusal(sent) if isinstance(sent, str) else None) or item
        if isinstance(item, SessionMessage) and isinstance(item.message, types.JSONRPCResponse):
            result: dict[str, Any] = item.message.result
            if self.check_tool is not None and isinstance(result.get("tools"), list) and "content" not in result:
                result["tools"] = self._sound(result, self.check_tool)
        return item

    def _sound(self, listed: dict[str, Any], check: Callable[[dict[str, Any]], None]) -> list[Any]:
        """The tools of a list that are tools."""
        sound: list[Any] = []
        for tool in cast("list[Any]", listed["tools"]):
            try:
                check({**listed, "tools": [tool]})
                sound.append(tool)
            except ValidationError as wrong:
                first = wrong.errors(include_input=False)[0]
                place = ".".join(map(str, first["loc"][2:]))
                name: Any = cast("dict[str, Any]", tool).get("name") if isinstance(tool, dict) else None
                logger.warning(
                    "server=%s | its tool %.100r is left out: %s: %s", self._name, name, place or "tool", first["msg"]
                )
        return sound


def refusal(line: bytes | str) -> SessionMessage | None:
    """The error that ends a call whose answer is no message of the protocol; None for a line that answers no call."""
    try:
        message: Any = json.loads(line)  # it takes half a surrogate pair, which the SDK does not
    except (ValueError, RecursionError):
        return None
    if not isinstance(message, dict) or "method" in message:
        return None
    id: Any = cast("dict[str, Any]", message).get("id")
    if type(id) is not int and type(id) is not str:
        return None
    error = types.ErrorData(code=types.PARSE_ERROR, message="its answer is not what the protocol says")
    return SessionMessage(types.JSONRPCError(jsonrpc="2.0", id=id, error=error))


@asynccontextmanager
async def _streamable_http(url: str, client: httpx2.AsyncClient) -> AsyncGenerator[Any, None]:
    async with client, streamable_http_client(url, http_client=client, max_sse_event_size=MAX_LINE) as streams:
        yield streams


class _McpStream:
    """What the SDK asks of both directions of a connection."""

    async def aclose(self) -> None:
        """Nothing to close: whoever opened the transport closes it."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self


class _WatchedStream(_McpStream):
    def __init__(self, stream: Any, transport: Transport) -> None:
        self._stream = stream
        self._transport = transport

    @property
    def last_context(self) -> Any:
        """The context of the call that the last message belongs to, where the transport knows it."""
        return getattr(self._stream, "last_context", None)

    async def receive(self) -> Any:
        return self._transport.mended(await self._stream.receive())

    async def __anext__(self) -> Any:
        try:
            return self._transport.mended(await self._stream.__anext__())
        except (StopAsyncIteration, anyio.ClosedResourceError):
            self._transport.ended.set()
            raise

    async def aclose(self) -> None:
        await self._stream.aclose()


class _PipeStream(_McpStream):
    """Both directions of a stdio server: lines are read and written where they are needed, without tasks between."""

    def __init__(self, process: ServerProcess, server: Resolved) -> None:
        self._process = process
        self._server = server
        self._strange = 0

    async def receive(self) -> SessionMessage:
        """The next message. Lines that are none, such as what a library prints, are passed over."""
        while (line := await self._process.read()) is not None:
            if not line.strip():
                continue
            try:
                return SessionMessage(types.jsonrpc_message_adapter.validate_json(line, by_name=False))
            except ValueError:
                if (answer := refusal(line)) is not None:
                    return answer
                self._strange += 1
                if self._strange & (self._strange - 1) == 0:  # the 1st, 2nd, 4th, 8th …
                    start = self._server.redact(line[: 10 * _SHOWN].decode(errors="replace"))[:_SHOWN]
                    logger.warning("server=%s | line %d that is not MCP: %s", self._process.name, self._strange, start)
        raise anyio.EndOfStream

    async def __anext__(self) -> SessionMessage:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    async def send(self, item: SessionMessage) -> None:
        """Write a message. Raises anyio.BrokenResourceError when the server has gone."""
        line = item.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n"
        try:
            await self._process.write(line)
        except BrokenPipeError:
            raise anyio.BrokenResourceError from None
