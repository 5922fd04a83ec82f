"""Servers of every kind, and a client that sends what no library would."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple

import msgspec
from fastapi import APIRouter, Request, Response, WebSocket

from aworld.server import EventStream, RequestProblem, Serving
from aworld.server.shell import json_response, read_json


class Reply(NamedTuple):
    """An answer as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def problem(self) -> dict[str, Any]:
        """The problem that it is; asserts the shape of one."""
        assert self.headers["content-type"] == "application/problem+json"
        problem = msgspec.json.decode(self.body, type=dict[str, Any])
        assert {"type", "title", "status", "detail"} <= problem.keys()
        assert problem["status"] == self.status
        return problem


async def raw(port: int, request: bytes) -> Reply:
    """What a server answers to these very bytes."""
    async with asyncio.timeout(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            status, *lines = head.decode().strip().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            size = 0 if request.startswith(b"HEAD") else int(headers.get("content-length", 0))
            body = await reader.readexactly(size)
        finally:
            writer.close()
    return Reply(int(status.split()[1]), headers, body)


async def ask(
    server: Serving, method: str, path: str, *headers: str, host: str | None = None, body: Any = b""
) -> Reply:
    """The answer to one request."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host or f'127.0.0.1:{server.port}'}", *headers]
    lines += [f"Content-Length: {len(content)}"]
    return await raw(server.port, "\r\n".join(lines).encode() + b"\r\n\r\n" + content)


class Parts:
    """A router with one route of each kind, and what a test sees of them."""

    def __init__(self) -> None:
        self.streams = 0
        self.entered = asyncio.Event()
        self.emptied = asyncio.Event()
        self.let_go = asyncio.Event()
        self.router = APIRouter()
        self.router.add_route("/echo", self.echo, methods=["POST"])
        self.router.add_route("/stream", self.stream)
        self.router.add_route("/slow", self.slow)
        self.router.add_route("/half", self.half)
        self.router.add_api_route("/typed/{number}", self.typed)
        self.router.add_api_route("/broken", self.broken)
        self.router.add_api_route("/refused", self.refused)
        self.router.add_websocket_route("/ws", self.socket)

    async def echo(self, request: Request) -> Response:
        return json_response(await read_json(request, dict[str, Any]))

    async def stream(self, _: Request) -> Response:
        return EventStream(self.ticks())

    async def ticks(self) -> AsyncGenerator[bytes]:
        self.streams += 1
        try:
            yield b"data: first\n\n"
            await self.let_go.wait()
            yield b"data: second\n\n"
        finally:
            self.streams -= 1
            if not self.streams:
                self.emptied.set()

    async def slow(self, _: Request) -> Response:
        self.entered.set()
        await self.let_go.wait()
        return json_response("late")

    async def half(self, _: Request) -> Response:
        async def chunks() -> AsyncGenerator[bytes]:
            yield b"data: half\n\n"
            raise RuntimeError("the other half is missing in /etc/secret")

        return EventStream(chunks())

    async def typed(self, number: int) -> dict[str, int]:
        return {"number": number}

    async def broken(self) -> None:
        raise RuntimeError("no such file: /etc/secret")

    async def refused(self) -> None:
        raise RequestProblem(409, "It is taken.", code="TAKEN")

    async def socket(self, socket: WebSocket) -> None:
        await socket.accept()
        async for text in socket.iter_text():
            await socket.send_text(text)
