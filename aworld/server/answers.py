"""What a server answers: JSON, streams of events, and problems.

Errors are `application/problem+json` (RFC 9457). What nobody foresaw says only under which id the log tells more:
neither a path nor a traceback leaves the server.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from http import HTTPStatus
from typing import Any, TypeVar, cast

import msgspec
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from aworld.core.exceptions import AWorldError

logger = logging.getLogger(__name__)

T = TypeVar("T")


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
