"""An environment over HTTP: many episodes at once, each in a place of its own, for trainers on other machines.

    async with EnvironmentServer(environment) as server:
        print(server.url)                                # RemoteEnvironment(url) is this environment elsewhere

It speaks OpenEnv's protocol, so that OpenEnv's clients can use it too: a WebSocket at `/ws` is a place, in which
`reset`, `step` and `state` are asked and answered one after the other, and whose end is the end of its episode;
`POST /mcp` makes, lists, calls and closes such places by JSON-RPC. What is ours: `GET /describe`, `POST /problems`, and
the actions `message` and `end`. Answers and hidden data of problems never leave the server.

A place that nobody uses expires. It binds to loopback unless told otherwise, and then asks for a token; a web page,
whose browser says where it comes from, is refused without one.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, cast

import msgspec
from aiohttp import WSMsgType, web

from aworld import __version__
from aworld.core.exceptions import AWorldError, ConfigError
from aworld.environments.environment import Environment
from aworld.environments.place import Book, Place, Refused, described, static_tools

logger = logging.getLogger(__name__)

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})

MAX_BODY = 8 * 1024 * 1024
"""Bytes of one request or message; an action with some pictures in it."""

_MOST_PROBLEMS = 10_000
"""Problems of one answer."""

_encode = msgspec.json.encode
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class EnvironmentServer:
    """Serves an environment.

    Args:
        environment: What is served.
        host: Where it listens; anything but loopback needs a `token`.
        port: 0 takes a free one; `port` and `url` are known when the server has started.
        token: What clients must show, as `Authorization: Bearer …`.
        max_episodes: Places that exist at once; more are refused, and clients try again.
        idle: Seconds without a message after which a place expires.
        store: Where the episodes are recorded; None keeps nothing.

    Raises:
        ConfigError: The address is for others than this machine, and there is no token.
    """

    def __init__(
        self,
        environment: Environment,
        host: str = "127.0.0.1",
        port: int = 8100,
        *,
        token: str | None = None,
        max_episodes: int = 1024,
        idle: float = 600.0,
        store: Any = None,
    ) -> None:
        if host not in LOOPBACK and not token:
            raise ConfigError(f"--host {host}: others can reach it there; give --token, or AWORLD_TOKEN, a secret.")
        if max_episodes < 1 or not idle > 0:
            raise ConfigError("max_episodes is at least 1, and idle more than 0 seconds.")
        self.environment = environment
        self.host, self.port = host, port
        self.max_episodes, self.idle = max_episodes, idle
        self.store = store
        self.book = Book(environment)
        self.places: dict[str, Place] = {}
        """Those that exist, by id."""
        self._expected = None if token is None else f"Bearer {token}".encode()
        self._sockets: dict[str, web.WebSocketResponse] = {}
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """What `RemoteEnvironment` takes."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    async def start(self) -> None:
        """Begin to serve. Raises `OSError` when the port is taken."""
        app = web.Application(client_max_size=MAX_BODY, middlewares=[self._guard])
        app.router.add_get("/health", self._health)
        app.router.add_get("/metadata", self._metadata)
        app.router.add_get("/describe", self._describe)
        app.router.add_post("/problems", self._problems)
        app.router.add_post("/mcp", self._mcp)
        app.router.add_get("/ws", self._socket)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, self.host, self.port, backlog=4096).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stop to serve; episodes under way are cancelled."""
        for socket in list(self._sockets.values()):
            await socket.close(code=1001, message=b"the server stops")
        if self._runner is not None:
            await self._runner.cleanup()  # cuts what is still being answered
            self._runner = None
        await asyncio.gather(*(self._leave(id) for id in list(self.places)))

    async def __aenter__(self) -> EnvironmentServer:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @web.middleware
    async def _guard(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        if request.path == "/health":
            return await handler(request)
        if self._expected is not None:
            if not hmac.compare_digest(request.headers.get("Authorization", "").encode(), self._expected):
                return _error(401, "Show the token: Authorization: Bearer …")
        elif "Origin" in request.headers:
            return _error(403, "Web pages may not use an environment that asks for no token.")
        try:
            return await handler(request)
        except Refused as refused:
            return _error(refused.status, str(refused), refused.code)
        except ConfigError as wrong:
            return _error(400, str(wrong))
        except (msgspec.DecodeError, UnicodeDecodeError) as wrong:
            return _error(400, f"The body is no such JSON: {wrong}")

    async def _health(self, _: web.Request) -> web.Response:
        return _json({"status": "healthy"})

    async def _metadata(self, _: web.Request) -> web.Response:
        name = self.environment.name
        return _json({"name": name, "description": f"The AWorld environment {name}.", "version": __version__})

    async def _describe(self, _: web.Request) -> web.Response:
        return _json({**described(self.environment), "max_episodes": self.max_episodes, "idle": self.idle})

    async def _problems(self, request: web.Request) -> web.Response:
        asked = _object(await request.read())
        n = asked.get("n")
        if n is not None and (not isinstance(n, int) or not 0 <= n <= _MOST_PROBLEMS):
            return _error(
                400, f"n={n!r}: at most {_MOST_PROBLEMS} problems at a time; ask for the next ones by `first`."
            )
        return _json({"problems": await self.book.page(asked)})

    def _enter(self) -> Place:
        if len(self.places) >= self.max_episodes:
            raise Refused("CAPACITY_REACHED", f"All {self.max_episodes} places are taken; try again later.", 503)
        id = secrets.token_urlsafe(16)  # who knows it may use the place
        place = self.places[id] = Place(id, self.environment, self.book, self.store)
        self._watch(id, place)
        return place

    def _watch(self, id: str, place: Place) -> None:
        """Look again when the place may have been idle for too long."""
        loop = asyncio.get_running_loop()
        if self.places.get(id) is not place:
            return
        if place.busy or loop.time() < place.used + self.idle:
            after = self.idle if place.busy else place.used + self.idle - loop.time()
            loop.call_later(max(after, 0.001), self._watch, id, place)
            return
        place.expiry = loop.create_task(self._expire(id))

    async def _expire(self, id: str) -> None:
        await self._leave(id, Refused("EXPIRED", f"The episode expired: nothing was asked for {self.idle:g} s."))

    async def _leave(self, id: str, why: Refused | None = None) -> None:
        """Close a place and then its WebSocket, which hears why."""
        place = self.places.pop(id, None)
        if place is None:
            return
        await place.close()
        socket = self._sockets.get(id)
        if socket is not None and not socket.closed:
            if why is not None:
                await socket.send_str(_text(why.response))
            await socket.close(code=1001, message=b"closed")

    def _place(self, id: object) -> Place:
        place = self.places.get(str(id))
        if place is None:
            raise Refused("SESSION_ERROR", f"There is no place {id!r} (any more); it may have expired.", 404)
        return place

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(max_msg_size=MAX_BODY)
        await socket.prepare(request)
        asked = request.query.get("session_id")
        try:
            place = self._enter() if asked is None else self._place(asked)
            if place.id in self._sockets:
                raise Refused("SESSION_ERROR", f"Place {asked!r} already has a WebSocket.")
        except Refused as refused:
            await socket.send_str(_text(refused.response))
            await socket.close()
            return socket
        self._sockets[place.id] = socket
        try:
            async for message in socket:
                if message.type is not WSMsgType.TEXT:
                    break
                reply = await _answered(place, message.data)
                if reply is None:
                    break
                await socket.send_str(_text(reply))
        except ConnectionError:  # the client has gone in mid-answer
            logger.debug("place=%s | the client has gone", place.id)
        finally:
            self._sockets.pop(place.id, None)
            if asked is None:  # one that was made by JSON-RPC is closed by it
                await self._leave(place.id)
            await socket.close()
        return socket

    async def _mcp(self, request: web.Request) -> web.Response:
        asked = _object(await request.read())
        id, params = asked.get("id"), cast("dict[str, Any]", asked.get("params") or {})
        try:
            result = await self._called(str(asked.get("method")), params)
        except (Refused, AWorldError) as wrong:
            return _json({"jsonrpc": "2.0", "id": id, "error": {"code": -32602, "message": str(wrong)}})
        return _json({"jsonrpc": "2.0", "id": id, "result": result})

    async def _called(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        match method:
            case "openenv/session/create":
                return {"session_id": self._enter().id}
            case "openenv/session/close":
                place = self._place(params.get("session_id"))
                await self._leave(place.id)
                return {"session_id": place.id, "closed": True}
            case "tools/list":
                place = self.places.get(str(params.get("session_id")))
                tools = place.tools if place is not None and place.tools else static_tools(self.environment)
                return {"tools": [{**tool, "inputSchema": tool["input_schema"]} for tool in tools]}
            case "tools/call":
                action = {"type": "call_tool", "tool_name": params.get("name"), "arguments": params.get("arguments")}
                reply = await self._place(params.get("session_id")).answer({"type": "step", "data": action})
                seen = cast("dict[str, Any]", reply)["data"]["observation"]
                if seen.get("error"):
                    raise Refused("EXECUTION_ERROR", str(seen["error"]["message"]))
                return {"data": seen["result"]}
            case _:
                raise Refused("UNKNOWN_TYPE", f"Method not found: {method}")


async def _answered(place: Place, text: str) -> dict[str, Any] | None:
    """The answer to a message; None when it says good-bye."""
    try:
        message = _object(text)
        return await place.answer(message)
    except Refused as refused:
        return refused.response
    except msgspec.DecodeError as wrong:
        return Refused("INVALID_JSON", f"Invalid JSON: {wrong}").response
    except AWorldError as wrong:
        return Refused("EXECUTION_ERROR", str(wrong)).response
    except Exception as bug:  # one episode must not take the others with it
        logger.exception("place=%s | answering raised", place.id)
        return Refused("EXECUTION_ERROR", f"{type(bug).__name__}: {bug}").response


def _object(data: bytes | str) -> dict[str, Any]:
    return msgspec.json.decode(data or b"{}", type=dict[str, Any])


def _text(data: dict[str, Any]) -> str:
    return _encode(data).decode()


def _json(data: dict[str, Any]) -> web.Response:
    return web.Response(body=_encode(data), content_type="application/json")


def _error(status: int, message: str, code: str = "VALIDATION_ERROR") -> web.Response:
    body = _encode({"error": {"message": message, "code": code}})
    return web.Response(status=status, body=body, content_type="application/json")
