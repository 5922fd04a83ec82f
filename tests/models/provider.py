"""A provider on a real socket that does what a test tells it, misbehaviour included.

Each request takes the next step of the script; a step is an async function of the connection. What was asked is kept
in `requests`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from itertools import groupby
from types import TracebackType
from typing import Any, Self, TypeAlias

import pytest

from aworld.config.conf import ModelConfig
from aworld.core.message import Message
from aworld.core.model import Delta, Model, ModelRequest
from aworld.models.call import CallFailed, call_model

Step: TypeAlias = Callable[["Connection"], Awaitable[None]]


class Exchange:
    """One request as it arrived."""

    def __init__(self, head: bytes, body: bytes) -> None:
        lines = head.decode().split("\r\n")
        self.target = lines[0].split(" ")[1]
        self.headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines[1:] if line)}
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Connection:
    """What a step writes to."""

    def __init__(self, writer: asyncio.StreamWriter, released: asyncio.Event) -> None:
        self.writer = writer
        self.released = released
        """Set when the server stops: a step that hangs waits for it."""

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def cut(self) -> None:
        """Break the connection without a word."""
        self.writer.transport.abort()


class Provider:
    """The server. `async with Provider(step, ...) as provider: provider.base_url`."""

    def __init__(self, *steps: Step) -> None:
        self.steps = list(steps)
        self.requests: list[Exchange] = []
        self.base_url = ""
        self.connections = 0
        self.asked = asyncio.Event()
        """Set by the first request."""
        self._released = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def config(self, **settings: Any) -> ModelConfig:
        """Settings that lead here, with short waits."""
        base: dict[str, Any] = {"llm_base_url": self.base_url, "llm_model_name": "m", "llm_retry_wait": 0.001}
        return ModelConfig(**{**base, **settings})

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1024)
        self.base_url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                exchange = Exchange(head, b"")
                exchange.body = await reader.readexactly(int(exchange.headers["content-length"]))
                self.requests.append(exchange)
                self.asked.set()
                step = self.steps.pop(0) if self.steps else status(418, {"error": {"message": "the script has ended"}})
                await step(Connection(writer, self._released))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has gone
        except asyncio.CancelledError:
            pass  # the server stops
        finally:
            self._tasks.discard(task)
            writer.close()


def head(status: int, headers: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", *(f"{k}: {v}" for k, v in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def raw(body: bytes, status: int = 200, content_type: str = "application/json", **headers: str) -> Step:
    """Answer with these bytes."""
    named = {k.replace("_", "-"): v for k, v in headers.items()}

    async def step(connection: Connection) -> None:
        top = head(status, {"Content-Type": content_type, "Content-Length": str(len(body)), **named})
        await connection.send(top + body)

    return step


def status(code: int, body: Any, **headers: str) -> Step:
    """Answer with this status and JSON."""
    return raw(json.dumps(body).encode(), code, **headers)


def answer(body: Any) -> Step:
    """Answer 200 with JSON."""
    return status(200, body)


def chat(text: str | None = "hello", **choice: Any) -> dict[str, Any]:
    """A chat completion."""
    message = {"role": "assistant", "content": text, **choice.pop("message", {})}
    return {
        "id": "c1",
        "model": "m-2",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", **choice}],
    }


def event(data: Any) -> bytes:
    return b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n"


def piece(finish_reason: str | None = None, **delta: Any) -> bytes:
    """A chunk of a streamed chat completion, as an event."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return event({"id": "c1", "model": "m-2", "choices": [choice]})


def joined(deltas: Sequence[Delta]) -> list[Delta]:
    """Deltas with those of a kind joined: how many there are depends on how the bytes came."""
    return [kind("".join(delta.text for delta in group)) for kind, group in groupby(deltas, type)]


DONE = b"data: [DONE]\n\n"
EVENTS = head(200, {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"})


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def stream(chunks: Sequence[bytes], *, ending: bytes = b"0\r\n\r\n") -> Step:
    """Answer with a stream of these bytes, each in a chunk of its own."""

    async def step(connection: Connection) -> None:
        await connection.send(EVENTS)
        for chunk in chunks:
            await connection.send(chunked(chunk))
        await connection.send(ending)

    return step


def broken(data: bytes) -> Step:
    """Send this much of an answer, then break the connection."""

    async def step(connection: Connection) -> None:
        await connection.send(data)
        connection.cut()

    return step


def stalled(data: bytes = b"") -> Step:
    """Send this much of an answer, then nothing more."""

    async def step(connection: Connection) -> None:
        await connection.send(data)
        await connection.released.wait()

    return step


async def check_failure(model: Model, code: int | None, said: str, passing: bool) -> None:
    """A model whose provider fails once, then says `ok`: a failure that passes is tried again, any other is raised."""
    request = ModelRequest(messages=(Message("user", "hi"),))
    if passing:
        outcome = await call_model(model, request, on_delta=lambda _: None)
        (attempt,) = outcome.attempts
        assert attempt.status == code
        assert any(words in attempt.error for words in said.split("|")), attempt.error
        assert outcome.reply.message.content == "ok"
    else:
        with pytest.raises(CallFailed, match=said) as caught:
            await call_model(model, request, on_delta=lambda _: None)
        assert caught.value.status == code
