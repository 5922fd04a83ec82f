"""The API of a container engine, Docker or Podman, over its socket: as much of it as sandboxes need.

docker-py is not used: it blocks, so that every command that runs would hold a thread, and it reads the first bytes of
a command's output into a buffer from which a raw socket never gives them. Source: https://docs.docker.com/reference/api/engine/
(paths without a version, which every engine answers in its own).
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import struct
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from aworld.config.errors import ConfigError
from aworld.core.sandbox import SandboxError

SOCKETS = ("/var/run/docker.sock", "{XDG_RUNTIME_DIR}/docker.sock", "{XDG_RUNTIME_DIR}/podman/podman.sock",
           "/run/podman/podman.sock")  # fmt: skip
ANSWER_SECONDS = 60.0
"""Of an engine that is asked for something; making a container takes less than a second."""
PULL_SECONDS = 1800.0
"""Until an image is here: one of 10 GB takes 15 minutes over a line of 100 Mbit/s."""
HEAD_BYTES = 1 << 16


class Reply(NamedTuple):
    """An answer of the engine."""

    status: int
    body: Any
    """The JSON, or None."""


def engine_address(address: str | None) -> str:
    """Where the engine listens: the given address, DOCKER_HOST, or the first socket that there is."""
    if address := address or os.environ.get("DOCKER_HOST"):
        if not address.startswith(("unix://", "tcp://")):
            raise ConfigError(f"engine={address!r} | must begin with unix:// or tcp://")
        return address
    for pattern in SOCKETS:
        path = pattern.format(XDG_RUNTIME_DIR=os.environ.get("XDG_RUNTIME_DIR", "/nowhere"))
        if os.path.exists(path):
            return f"unix://{path}"
    raise SandboxError(
        "no container engine was found | start Docker, or Podman (systemctl start podman.socket), or name its address "
        "in DOCKER_HOST"
    )


class ExecStream:
    """The output and input of a command, as the engine passes them on. One task sends and one receives at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._channel = 0
        self._left = 0
        """Bytes of the frame that has begun."""

    async def feed(self, data: bytes) -> None:
        """Write all input, then its end; a command that does not read it to the end is fine."""
        with suppress(OSError):  # the command has ended
            await self.send(data)
            self._writer.write_eof()

    async def send(self, data: bytes) -> None:
        """Write input, waiting while it is not read. Raises OSError."""
        self._writer.write(data)
        await self._writer.drain()

    async def piece(self, size: int = HEAD_BYTES) -> tuple[int, bytes] | None:
        """Output: 1 and what was written to standard output, or 2 and what was written as errors; None at the end.

        Who is cancelled in it has taken nothing.
        """
        try:
            while not self._left:
                self._channel, self._left = struct.unpack(">BxxxI", await self._reader.readexactly(8))
            data = await self._reader.read(min(self._left, size))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        self._left -= len(data)
        return (self._channel, data) if data else None

    def close(self) -> None:
        """Let go of the connection."""
        self._writer.close()


class ContainerEngine:
    """One engine. Each request has a connection of its own."""

    def __init__(self, address: str) -> None:
        self.address = address

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        accept: tuple[int, ...] = (),
        seconds: float | None = None,
    ) -> Any:
        """The JSON of an answer, waited for `seconds`, by default ANSWER_SECONDS.

        Raises `SandboxError` unless the status is below 400, or one of `accept`.
        """
        seconds = ANSWER_SECONDS if seconds is None else seconds
        try:
            async with asyncio.timeout(seconds):
                reader, writer = await self._request(method, path, body, "close")
                try:
                    reply = await _reply(reader)
                finally:
                    writer.close()
        except TimeoutError:
            raise SandboxError(f"{self.address} did not answer {method} {path} in {seconds:g} s") from None
        if reply.status >= 400 and reply.status not in accept:
            raise SandboxError(f"{self.address}: {_told(reply)}")
        return reply.body

    async def attach(self, path: str, body: Any) -> ExecStream:
        """Start a command and take over the connection for its output and input."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                reader, writer = await self._request("POST", path, body, "Upgrade\r\nUpgrade: tcp")
                try:
                    status, headers = await _head(reader)
                    if status >= 400:
                        raise SandboxError(f"{self.address}: {_told(Reply(status, await _body(reader, headers)))}")
                except BaseException:
                    writer.close()
                    raise
        except TimeoutError:
            raise SandboxError(f"{self.address} did not answer POST {path} in {ANSWER_SECONDS:g} s") from None
        return ExecStream(reader, writer)

    async def _request(
        self, method: str, path: str, body: Any, connection: str
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        data = b"" if body is None else json.dumps(body).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: engine\r\nConnection: {connection}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        try:
            reader, writer = await self._connect()
            writer.write(head.encode() + data)
            await writer.drain()
        except OSError as error:
            raise SandboxError(f"the container engine at {self.address} cannot be reached: {error}") from None
        return reader, writer

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        parts = urlsplit(self.address)
        if parts.scheme == "unix":
            return await asyncio.open_unix_connection(parts.path)
        context = None
        if os.environ.get("DOCKER_TLS_VERIFY"):
            folder = os.environ.get("DOCKER_CERT_PATH", os.path.expanduser("~/.docker"))
            context = ssl.create_default_context(cafile=f"{folder}/ca.pem")
            context.load_cert_chain(f"{folder}/cert.pem", f"{folder}/key.pem")
        return await asyncio.open_connection(parts.hostname, parts.port or 2375, ssl=context)


async def _reply(reader: asyncio.StreamReader) -> Reply:
    status, headers = await _head(reader)
    return Reply(status, await _body(reader, headers))


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """The status and the headers, in small letters."""
    try:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return int(first.split()[1]), headers
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, ValueError, IndexError):
        raise SandboxError("the container engine gave an answer that is not HTTP") from None


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> Any:
    """The JSON of the body: the last line of it where the engine reports progress."""
    try:
        data = await _data(reader, headers)
    except (asyncio.IncompleteReadError, ConnectionError, ValueError):
        raise SandboxError("the container engine broke off its answer, or it is not HTTP") from None
    lines = data.strip().splitlines()
    try:
        return json.loads(data) if data.strip() else None
    except ValueError:
        try:
            return json.loads(lines[-1])
        except ValueError:
            return {"message": data[-1000:].decode(errors="replace")}


async def _data(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding") == "chunked":
        data = b""
        while size := int(await reader.readline(), 16):
            data += await reader.readexactly(size)
            await reader.readline()
        return data
    if "content-length" in headers:
        return await reader.readexactly(int(headers["content-length"]))
    return await reader.read() if headers.get("connection") == "close" else b""


def _told(reply: Reply) -> str:
    body: Any = reply.body
    return f"{reply.status} {body.get('message', body) if isinstance(body, dict) else body}"  # pyright: ignore
