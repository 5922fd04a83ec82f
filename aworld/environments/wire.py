"""The client's end of OpenEnv's protocol: a WebSocket on which one question after the other is answered.

Whatever ends it (the server died, was stopped, let the episode expire, does not let us in) is a failure of the
surroundings. Error answers are `Refusal`s, with the code of the protocol.
"""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from contextlib import suppress
from typing import Any

import aiohttp
import msgspec

from aworld.core.exceptions import ConfigError, EnvironmentFailed

MAX_MESSAGE = 64 * 1024 * 1024
"""Bytes of an answer of the server: observations may hold pictures."""


class Refusal(EnvironmentFailed):
    """The server answered with an error; `code` is that of the protocol."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class Wire:
    """A WebSocket to a server of environments. `url` begins with `http`; `timeout` is in seconds."""

    def __init__(self, url: str, headers: dict[str, str], timeout: float) -> None:
        self.url, self.headers, self.timeout = url, headers, timeout
        self._http: aiohttp.ClientSession | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._turn = asyncio.Lock()
        self._under_way: set[asyncio.Task[Any]] = set()

    async def open(self) -> None:
        """Connect. Raises EnvironmentFailed."""
        self._http = aiohttp.ClientSession()
        try:
            connecting = self._http.ws_connect(f"{self.url}/ws", headers=self.headers, max_msg_size=MAX_MESSAGE)
            self._socket = await asyncio.wait_for(connecting, self.timeout)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise EnvironmentFailed(f"{self.url} | no place for an episode: {_named(error)}") from error

    async def ask(self, kind: str, data: dict[str, Any], timeout: float | None = None) -> dict[str, Any]:
        """Ask, and wait for the answer, also when the caller does not: the next answer must be that to the next
        question. Raises Refusal for an error and EnvironmentFailed when there is no answer."""
        task = asyncio.create_task(self._exchange({"type": kind, "data": data}, timeout or self.timeout))
        self._under_way.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Hang up: the server lets go of the episode."""
        for task in self._under_way:
            task.cancel()
        if self._socket is not None:
            await self._socket.close()
        if self._http is not None:
            await self._http.close()

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # where nobody waits any more, it is nobody's news

    async def _exchange(self, message: dict[str, Any], timeout: float) -> dict[str, Any]:
        socket = self._socket
        if socket is None:
            raise EnvironmentFailed(f"{self.url} | the episode has not begun.")
        async with self._turn:
            try:
                with suppress(aiohttp.ClientConnectionError):  # it is closed: what was last said there tells why
                    await socket.send_str(msgspec.json.encode(message).decode())
                answer = await socket.receive(timeout=timeout)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                raise EnvironmentFailed(f"{self.url} | the server is gone: {_named(error)}") from error
        if answer.type is not aiohttp.WSMsgType.TEXT:
            raise EnvironmentFailed(
                f"{self.url} | the server has ended the episode: {answer.extra or answer.type.name}"
            )
        told = msgspec.json.decode(answer.data, type=dict[str, Any])
        if told["type"] == "error":
            code = str(told["data"].get("code"))
            raise Refusal(f"{self.url} | {code}: {told['data'].get('message')}", code)
        return told["data"]


def fetch(url: str, headers: dict[str, str], timeout: float, body: Any = None) -> Any:
    """The JSON that an address answers, by POST where there is a body. Blocks. Raises ConfigError."""
    data = None if body is None else msgspec.json.encode(body)
    request = urllib.request.Request(url, data, {**headers, "Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # as the WebSockets: straight to it
    try:
        with opener.open(request, timeout=timeout) as answer:
            return msgspec.json.decode(answer.read())
    except urllib.error.HTTPError as refused:
        with refused:
            raise ConfigError(f"{url} | HTTP {refused.code}: {_why(refused.read())}") from refused
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{url} | no environment is served there: {error}") from error


def _named(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _why(body: bytes) -> str:
    try:
        return str(msgspec.json.decode(body)["detail"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return body[:200].decode(errors="replace")
