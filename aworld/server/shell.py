"""The serving shell: where to listen, whom to let in, how much to read, and how to stop, once for all servers.

    router = APIRouter()
    async with Serving(router, port=8000) as server:
        print(server.url)

FastAPI on uvicorn, for all that comes: typed routes with their description, streams, WebSockets and pages in one
application, of packages that MCP's SDK brings anyway but one. Measured: 170 µs of CPU a request, of which Starlette,
which describes nothing, is the half; routes by `add_route`, for protocols of others, cost no more than that.

Every request passes one gate, whatever its route, so that no route can be forgotten:

- `Host` is a name of this server. Without it a page that rebinds its name to 127.0.0.1 reads everything on loopback.
- `Origin`, where there is one, is this server, and `Sec-Fetch-Site` is not another site.
- The token, where one is asked for, on all paths but `PUBLIC`.
- A body has at most `max_body` bytes and does not stop to arrive.

Errors are `application/problem+json` (RFC 9457). What nobody foresaw says only under which id the log tells more:
neither a path nor a traceback leaves the server.
"""

from __future__ import annotations

import asyncio
import errno
import hmac
import logging
import re
import secrets
import signal
import socket
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import AsyncExitStack, aclosing
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import msgspec
import uvicorn
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from aworld import __version__
from aworld.core.exceptions import AWorldError, ConfigError

logger = logging.getLogger(__name__)

T = TypeVar("T")

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
WILDCARDS = frozenset({"0.0.0.0", "::", ""})
PUBLIC = frozenset({"/health"})
"""Paths that ask for no token."""
MAX_BODY = 8 * 1024 * 1024
"""Bytes of a body, where a server sets no other limit: an action with some pictures in it."""
MAX_HEAD = 64 * 1024
"""Bytes of the headers of a request."""

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::[0-9]{1,5})?", re.IGNORECASE)
_GATED = (b"host", b"origin", b"sec-fetch-site", b"authorization")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_BACKLOG = 4096  # connections that wait to be accepted: a thousand clients may come at once
_KEEP_ALIVE = 75  # seconds; longer than clients keep a connection, so that none is closed under a request
_CUT = 0.2  # seconds for what was cancelled to say so
_REFUSALS = {  # the setting that has to be another one when nothing can listen, and why
    errno.EADDRINUSE: ("port", "something listens there already; --port 0 takes any free one."),
    errno.EACCES: ("port", "only the system may listen there; take one above 1023."),
    errno.EADDRNOTAVAIL: ("host", "that is no address of this machine."),
}


class RequestProblem(AWorldError):
    """An answer that says what is wrong. `members` are added to the JSON, `headers` to the answer."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None, **members: Any) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers, self.members = status, detail, headers, members

    def response(self) -> Response:
        """As `application/problem+json`."""
        title = HTTPStatus(self.status).phrase
        body = {"type": "about:blank", "title": title, "status": self.status, "detail": self.detail, **self.members}
        return Response(msgspec.json.encode(body), self.status, self.headers, "application/problem+json")


async def read_json(request: Request, type: type[T]) -> T:
    """The body of a request as JSON of this type. Raises `RequestProblem` 400, and 413 or 408 of the shell."""
    try:
        return msgspec.json.decode(await request.body() or b"{}", type=type)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestProblem(400, f"The body is no such JSON: {error}") from None


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer in JSON, written by msgspec."""
    return Response(msgspec.json.encode(value), status, headers, "application/json")


class EventStream(Response):
    """A stream of server-sent events, given as bytes: 4 µs a chunk, where `fastapi.sse` takes 72.

    It ends when `chunks` end, when the client goes, and when the server stops, after a `last` event.
    """

    def __init__(self, chunks: AsyncGenerator[bytes], last: bytes = b"event: bye\ndata: bye\n\n") -> None:
        super().__init__(None, 200, {"Cache-Control": "no-cache"}, "text/event-stream")
        del self.headers["Content-Length"]
        self._chunks, self._last = chunks, last

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        task, streams = asyncio.current_task(), cast("set[asyncio.Task[Any] | None]", scope["aworld.streams"])
        assert task is not None
        # A client that goes and a server that stops both cancel this task: cheaper than to wait for any of three
        # things at every chunk.
        gone = asyncio.ensure_future(disconnected(receive))
        gone.add_done_callback(lambda watch: None if watch.cancelled() else task.cancel())
        streams.add(task)
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async with aclosing(self._chunks):
                async for chunk in self._chunks:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except asyncio.CancelledError:
            task.uncancel()
            if not gone.done():
                await send({"type": "http.response.body", "body": self._last})
        finally:
            streams.discard(task)
            gone.cancel()


async def disconnected(receive: Receive) -> None:
    """Wait until the client of a request has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _problem(_: Request, error: Exception) -> Response:
    """The answer to what a route raised."""
    match error:
        case RequestProblem():
            return error.response()
        case HTTPException():
            return RequestProblem(error.status_code, str(error.detail), dict(error.headers or {})).response()
        case RequestValidationError():
            places = [{"at": list(each["loc"]), "detail": each["msg"]} for each in error.errors()]
            return RequestProblem(422, "The request does not fit its description.", errors=places).response()
        case _:
            id = secrets.token_hex(4)
            logger.error("problem=%s | a route raised", id, exc_info=error)
            return RequestProblem(500, f"Something broke here; the server's log tells more about {id}.").response()


HANDLERS: dict[Any, Any] = dict.fromkeys((RequestProblem, HTTPException, RequestValidationError, Exception), _problem)
"""As FastAPI takes them: whatever a route raises becomes a problem."""


class Serving:
    """A server of some routers. Once it has started, `port` and `url` say where it is.

    Args:
        routers: Routers of FastAPI, and whole applications of Starlette with their lifespan.
        host: Where it listens. An address that others reach asks for a `token`, and one that stands for all addresses
            of the machine for `host_names`, too.
        port: 0 takes a free one.
        token: What clients must show, as `Authorization: Bearer …`.
        host_names: Further names that `Host` may have.
        max_body: Most bytes of a request's body, and of a message of a WebSocket.
        patience: Seconds for the head of a request to arrive, and for each further piece of its body.
        grace: Seconds that answers under way have to end when the server stops.
        command: Errors name options, such as `--port`, instead of arguments.

    Raises:
        ConfigError: Others can reach the address, and the token or the host names are missing.
    """

    def __init__(
        self, *routers: APIRouter | Starlette, host: str = "127.0.0.1", port: int = 0, token: str | None = None,
        host_names: Iterable[str] = (), max_body: int = MAX_BODY, patience: float = 30.0, grace: float = 1.0,
        command: bool = False,
    ) -> None:  # fmt: skip
        self.host, self.port = host, port
        self._names = [name.lower() for name in host_names]
        self._dashes = "--" if command else ""
        if host not in LOOPBACK and not token:
            raise ConfigError(
                f"{self._dashes}host {host}: others can reach it there, so set "
                f"{'AWORLD_TOKEN or --token-file' if command else 'token'} to a secret that they must show.",
                setting="token",
            )
        if host in WILDCARDS and not self._names:
            raise ConfigError(
                f"{self._dashes}host {host}: that is every address of this machine; say by "
                f"{'--host-name' if command else 'host_names'} what clients call it, such as gpu7.example.org.",
                setting="host_names",
            )
        self._allowed = {*LOOPBACK, "[::1]", *self._names, _bracketed(host.lower())}
        self._expected = f"Bearer {token}".encode() if token else None
        self._routers = routers
        self._max_body, self._patience, self._grace = max_body, patience, grace
        self._streams: set[asyncio.Task[Any]] = set()
        self._stopping = asyncio.Event()
        self._served: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Such as `http://127.0.0.1:8000`."""
        return f"http://{self._names[0] if self.host in WILDCARDS else _bracketed(self.host)}:{self.port}"

    async def start(self) -> None:
        """Begin to serve. Raises ConfigError when nothing can listen there."""
        listener = self._bind()
        self.port = listener.getsockname()[1]
        self._stopping = asyncio.Event()
        ready = asyncio.Event()
        # One task from start to stop: the lifespan of an application must end in the task in which it began.
        self._served = asyncio.create_task(self._serve(listener, ready))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait([waiting, self._served], return_when=asyncio.FIRST_COMPLETED)
        if not ready.is_set():
            waiting.cancel()
            listener.close()
            await self._served

    async def stop(self) -> None:
        """Stop to serve: streams end, and answers that take longer than `grace` are cut."""
        self._stopping.set()
        if self._served is not None:
            await self._served
            self._served = None

    async def run(self, announce: Callable[[str], None]) -> int:
        """Serve until a signal asks the process to end, and return the exit code of a command.

        `announce` is called with the url. A second signal ends the process at once.
        """
        loop = asyncio.get_running_loop()
        signalled: asyncio.Future[int] = loop.create_future()

        def end(number: int) -> None:
            signalled.set_result(number)
            for each in _SIGNALS:
                loop.remove_signal_handler(each)

        for each in _SIGNALS:
            loop.add_signal_handler(each, end, each)
        try:
            async with self:
                announce(self.url)
                return 130 if await signalled == signal.SIGINT else 0
        finally:
            for each in _SIGNALS:
                loop.remove_signal_handler(each)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def _bind(self) -> socket.socket:
        host, port, dashes = self.host, self.port, self._dashes
        if not 0 <= port <= 65535:
            raise ConfigError(f"{dashes}port {port}: a port is 0 to 65535; 0 takes any that is free.", setting="port")
        try:
            family, _, _, _, address = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM)[0]
            return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
        except socket.gaierror as error:
            why = f"{dashes}host {host}: no address of that name is known ({error.strerror})."
            raise ConfigError(why, setting="host") from error
        except OSError as error:
            setting, why = _REFUSALS.get(cast(int, error.errno), ("host", f"{error.strerror or error}."))
            why = f"{dashes}{setting} {host if setting == 'host' else port}: {why.replace('--', dashes)}"
            raise ConfigError(why, setting=setting) from error

    async def _serve(self, listener: socket.socket, ready: asyncio.Event) -> None:
        application = FastAPI(
            title="AWorld", version=__version__, docs_url=None, redoc_url=None, exception_handlers=HANDLERS
        )
        application.add_route("/health", _health)
        async with AsyncExitStack() as lifespans:
            for router in self._routers:
                if isinstance(router, APIRouter):
                    application.include_router(router)
                else:
                    application.router.routes.extend(router.routes)
                    await lifespans.enter_async_context(router.router.lifespan_context(router))
            await lifespans.enter_async_context(application.router.lifespan_context(application))
            config = uvicorn.Config(
                self._gate(application), http=H11Protocol, ws=WebSocketsSansIOProtocol, interface="asgi3",
                lifespan="off", log_config=None, access_log=False, proxy_headers=False, server_header=False,
                date_header=False, backlog=_BACKLOG, timeout_keep_alive=_KEEP_ALIVE, ws_max_size=self._max_body,
                ws_ping_interval=None, ws_per_message_deflate=False, h11_max_incomplete_event_size=MAX_HEAD,
            )  # fmt: skip
            config.load()
            server = uvicorn.Server(config)
            server.lifespan = config.lifespan_class(config)
            await server.startup([listener])
            ready.set()
            sweeping = asyncio.create_task(self._sweep(server.server_state.connections))
            await self._stopping.wait()
            sweeping.cancel()
            await self._drain(server)

    async def _sweep(self, connections: set[Any]) -> None:
        """Close connections whose client does not come to the end of a head: uvicorn would wait for ever."""
        before: set[Any] = set()
        while True:
            await asyncio.sleep(self._patience)
            # Those that are idle between two requests have a timer of uvicorn.
            waiting = {
                each for each in connections
                if isinstance(each, H11Protocol) and each.timeout_keep_alive_task is None
                and (cast(Any, each.cycle) is None or each.cycle.response_complete)
            }  # fmt: skip
            for each in before & waiting:
                each.transport.close()
            before = waiting - before

    async def _drain(self, server: uvicorn.Server) -> None:
        for listener in server.servers:
            listener.close()
        for task in list(self._streams):
            task.cancel()
        connections, tasks = server.server_state.connections, server.server_state.tasks
        for connection in list(connections):
            connection.shutdown()
        for seconds in (self._grace, _CUT):
            if tasks:
                await asyncio.wait(tasks, timeout=seconds)
            for task in tasks:
                task.cancel()
        for connection in list(connections):
            connection.transport.abort()
        if tasks:
            await asyncio.wait(tasks, timeout=_CUT)

    def _gate(self, application: ASGIApp) -> ASGIApp:
        async def gate(scope: Scope, receive: Receive, send: Send) -> None:
            scope["aworld.streams"] = self._streams
            begun = complete = False

            async def watched(message: Message) -> None:
                nonlocal begun, complete
                begun, complete = True, not message.get("more_body", message["type"] == "http.response.start")
                await send(message)

            try:
                self._admit(scope)
                await application(scope, self._limited(receive) if scope["type"] == "http" else receive, watched)
            except asyncio.CancelledError:  # only a server that stops cancels
                if not begun:
                    await RequestProblem(503, "The server stops.", {"Connection": "close"}).response()(
                        scope, receive, send
                    )
                elif not complete:
                    await disconnected(receive)
            except Exception as error:
                if isinstance(error, RequestProblem) and not begun:
                    await error.response()(scope, receive, send)
                elif not complete or scope["type"] == "websocket":  # cut, so that nobody takes it for the whole
                    raise

        return gate

    def _admit(self, scope: Scope) -> None:
        """Raises RequestProblem for a request that is not for this server, or not from its clients."""
        fields: dict[bytes, list[bytes]] = {name: [] for name in _GATED}
        size = 0
        for name, value in scope["headers"]:
            size += len(name) + len(value)
            if name in _GATED:
                fields[name].append(value)
        if size > MAX_HEAD:
            raise RequestProblem(431, f"The headers have more than {MAX_HEAD:,} bytes.")
        hosts = [value.decode("latin-1") for value in fields[b"host"]]
        match = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if match is None or match[1].lower() not in self._allowed:
            raise RequestProblem(
                400, "Host is no name of this server; its operator can add one by --host-name (host_names)."
            )
        if any(origin.partition(b"://")[2] != fields[b"host"][0] for origin in fields[b"origin"]):
            raise RequestProblem(403, "A page of another origin may not use this server.")
        if b"cross-site" in fields[b"sec-fetch-site"]:
            raise RequestProblem(403, "A page of another site may not use this server.")
        if self._expected is not None and scope["path"] not in PUBLIC:
            shown = fields[b"authorization"]
            if len(shown) != 1 or not hmac.compare_digest(shown[0], self._expected):
                raise RequestProblem(401, "Show the token: Authorization: Bearer …", {"WWW-Authenticate": "Bearer"})

    def _limited(self, receive: Receive) -> Receive:
        size, more = 0, True

        async def limited() -> Message:
            nonlocal size, more
            if not more:
                return await receive()
            try:
                async with asyncio.timeout(self._patience):
                    message = await receive()
            except TimeoutError:
                detail = f"The body stopped to arrive for {self._patience:g} s."
                raise RequestProblem(408, detail, {"Connection": "close"}) from None
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
            if size > self._max_body:
                raise RequestProblem(
                    413, f"The body has more than {self._max_body:,} bytes, which is the most that is read here."
                )
            return message

        return limited


async def _health(_: Request) -> Response:
    return json_response({"status": "healthy"})


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
