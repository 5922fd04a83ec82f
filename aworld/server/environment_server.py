"""An environment over HTTP: many episodes at once, each in a place of its own, for trainers on other machines.

    async with EnvironmentServer(environment) as server:
        print(server.url)                                # RemoteEnvironment(url) is this environment elsewhere

It speaks OpenEnv's protocol, so that OpenEnv's clients can use it too: a WebSocket at `/ws` is a place, in which
`reset`, `step` and `state` are asked and answered one after the other, and whose end is the end of its episode;
`POST /mcp` makes, lists, calls and closes such places by JSON-RPC. What is ours: `GET /describe`, `POST /problems`, and
the actions `message` and `end`. Answers and hidden data of problems never leave the server.

A place that nobody uses expires.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from contextlib import suppress
from typing import Any, cast

import msgspec
from fastapi import APIRouter, Request, Response, WebSocket
from starlette.websockets import WebSocketDisconnect

from aworld import __version__
from aworld.core.exceptions import AWorldError, ConfigError
from aworld.environments.connection import (
    EnvironmentConnection,
    ProblemIndex,
    RequestRefused,
    described,
    static_tools,
)
from aworld.environments.environment import Environment
from aworld.server.answers import RequestProblem, json_response, read_json
from aworld.server.shell import Serving

logger = logging.getLogger(__name__)

_MOST_PROBLEMS = 10_000
"""Problems of one answer."""
_GONE = (WebSocketDisconnect, OSError, RuntimeError)
"""What a WebSocket raises whose client has gone, or which this end has closed already."""


class EnvironmentServer(Serving):
    """Serves an environment.

    Args:
        environment: What is served.
        host, port, token, options: As of `Serving`; port 8100 unless told otherwise.
        max_episodes: Places that exist at once; more are refused, and clients try again.
        idle: Seconds without a message after which a place expires.
        store: Where the episodes are recorded; None keeps nothing.
    """

    def __init__(
        self, environment: Environment, host: str = "127.0.0.1", port: int = 8100, *, max_episodes: int = 1024,
        idle: float = 600.0, store: Any = None, **options: Any,
    ) -> None:  # fmt: skip
        router = APIRouter()
        router.add_route("/metadata", self._metadata)
        router.add_route("/describe", self._describe)
        router.add_route("/problems", self._problems, methods=["POST"])
        router.add_route("/mcp", self._mcp, methods=["POST"])
        router.add_websocket_route("/ws", self._socket)
        super().__init__(router, host=host, port=port, **options)
        if max_episodes < 1 or not idle > 0:
            raise ConfigError("max_episodes is at least 1, and idle more than 0 seconds.")
        self.environment = environment
        self.max_episodes, self.idle = max_episodes, idle
        self.store = store
        self.book = ProblemIndex(environment)
        self.places: dict[str, EnvironmentConnection] = {}
        """Those that exist, by id."""
        self._sockets: dict[str, WebSocket] = {}

    async def stop(self) -> None:
        """Stop to serve; episodes under way are cancelled."""
        await super().stop()
        await asyncio.gather(*(self._leave(id) for id in list(self.places)))

    async def _metadata(self, _: Request) -> Response:
        name = self.environment.name
        return json_response({"name": name, "description": f"The AWorld environment {name}.", "version": __version__})

    async def _describe(self, _: Request) -> Response:
        return json_response({**described(self.environment), "max_episodes": self.max_episodes, "idle": self.idle})

    async def _problems(self, request: Request) -> Response:
        wanted = await read_json(request, dict[str, Any])
        n = wanted.get("n")
        if n is not None and (not isinstance(n, int) or not 0 <= n <= _MOST_PROBLEMS):
            raise RequestProblem(
                400, f"n={n!r:.50}: at most {_MOST_PROBLEMS} problems at a time; ask for the next ones by `first`."
            )
        try:
            return json_response({"problems": await self.book.page(wanted)})
        except RequestRefused as refused:
            raise RequestProblem(refused.status, str(refused), code=refused.code) from refused
        except ConfigError as error:
            raise RequestProblem(400, str(error)) from error

    def _enter(self) -> EnvironmentConnection:
        if len(self.places) >= self.max_episodes:
            raise RequestRefused("CAPACITY_REACHED", f"All {self.max_episodes} places are taken; try again later.", 503)
        id = secrets.token_urlsafe(16)  # who knows it may use the place
        place = self.places[id] = EnvironmentConnection(id, self.environment, self.book, self.store)
        self._watch(id, place)
        return place

    def _watch(self, id: str, place: EnvironmentConnection) -> None:
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
        await self._leave(id, RequestRefused("EXPIRED", f"The episode expired: nothing was asked for {self.idle:g} s."))

    async def _leave(self, id: str, why: RequestRefused | None = None) -> None:
        """Close a place and then its WebSocket, which hears why."""
        place = self.places.pop(id, None)
        if place is None:
            return
        await place.close()
        socket = self._sockets.get(id)
        if socket is not None:
            await _hang_up(socket, why)

    def _place(self, id: object) -> EnvironmentConnection:
        place = self.places.get(str(id))
        if place is None:
            raise RequestRefused("SESSION_ERROR", f"There is no place {id!r} (any more); it may have expired.", 404)
        return place

    async def _socket(self, socket: WebSocket) -> None:
        await socket.accept()
        id = socket.query_params.get("session_id")
        try:
            place = self._enter() if id is None else self._place(id)
            if place.id in self._sockets:
                raise RequestRefused("SESSION_ERROR", f"Place {id!r} already has a WebSocket.")
        except RequestRefused as refused:
            return await _hang_up(socket, refused)
        self._sockets[place.id] = socket
        try:
            async for message in socket.iter_text():
                if (reply := await _answered(place, message)) is None:
                    break
                await socket.send_text(_text(reply))
        except (*_GONE, KeyError):  # in mid-answer, or what came is no text
            logger.debug("place=%s | the client has gone", place.id)
        finally:
            self._sockets.pop(place.id, None)
            if id is None:  # one that was made by JSON-RPC is closed by it
                await self._leave(place.id)
            await _hang_up(socket)

    async def _mcp(self, request: Request) -> Response:
        call = await read_json(request, dict[str, Any])
        head, params = {"jsonrpc": "2.0", "id": call.get("id")}, cast("dict[str, Any]", call.get("params") or {})
        try:
            return json_response({**head, "result": await self._called(str(call.get("method")), params)})
        except AWorldError as error:
            return json_response({**head, "error": {"code": -32602, "message": str(error)}})

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
                    raise RequestRefused("EXECUTION_ERROR", str(seen["error"]["message"]))
                return {"data": seen["result"]}
            case _:
                raise RequestRefused("UNKNOWN_TYPE", f"Method not found: {method}")


async def _hang_up(socket: WebSocket, why: RequestRefused | None = None) -> None:
    with suppress(*_GONE):
        if why is not None:
            await socket.send_text(_text(why.response))
        await socket.close(1001)


async def _answered(place: EnvironmentConnection, text: str) -> dict[str, Any] | None:
    """The answer to a message; None when it says good-bye."""
    try:
        return await place.answer(msgspec.json.decode(text, type=dict[str, Any]))
    except RequestRefused as refused:
        return refused.response
    except (msgspec.DecodeError, RecursionError) as error:
        return RequestRefused("INVALID_JSON", f"Invalid JSON: {error}").response
    except AWorldError as error:
        return RequestRefused("EXECUTION_ERROR", str(error)).response
    except Exception as bug:  # one episode must not take the others with it
        logger.exception("place=%s | answering raised", place.id)
        return RequestRefused("EXECUTION_ERROR", f"{type(bug).__name__}: {bug}").response


def _text(data: dict[str, Any]) -> str:
    return msgspec.json.encode(data).decode()
