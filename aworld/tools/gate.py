"""A SOCKS5 proxy on loopback through which a browser reaches the network, and no private address of it.

Watching a browser's requests does not do: it resolves names itself, and follows redirects of its own. With a proxy the
browser resolves nothing, and every connection, of whatever page or script, is checked where its socket is opened.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Self

from aworld.tools.addresses import AddressPolicy, PrivateAddressError

CONNECT_SECONDS = 15.0
_OK, _FAILED, _NOT_ALLOWED, _NO_SUCH_COMMAND, _NO_SUCH_ADDRESS = 0, 1, 2, 7, 8
_MOST_REFUSED = 100
"""Refusals that are remembered until they are asked for."""


class Gate:
    """One proxy. Names and addresses that `policy` does not allow are refused and remembered."""

    def __init__(self, policy: AddressPolicy) -> None:
        self.policy = policy
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self._refused: list[str] = []

    @property
    def url(self) -> str:
        """Its address, as browsers take it."""
        assert self._server is not None  # it listens itself
        return f"socks5://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def start(self) -> Self:
        """Listen."""
        self._server = await asyncio.start_server(self.accepted, "127.0.0.1", 0)
        return self

    async def close(self) -> None:
        """Stop listening and cut all connections."""
        if self._server is not None:
            self._server.close()
        for task in list(self._serving):
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def take_refused(self) -> list[str]:
        """What was refused since the last time."""
        refused, self._refused = self._refused, []
        return refused

    async def accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection, of this gate's own server or of whoever accepted it."""
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, EOFError, UnicodeError, asyncio.CancelledError):
            pass  # one side has gone, or the gate closes: there is nobody to tell
        finally:
            self._serving.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, methods = await reader.readexactly(2)
        await reader.readexactly(methods)
        writer.write(b"\x05\x00")
        _, command, _, kind = await reader.readexactly(4)
        if kind == 3:
            host = (await reader.readexactly((await reader.readexactly(1))[0])).decode("ascii")
        elif kind in (1, 4):
            family = socket.AF_INET if kind == 1 else socket.AF_INET6
            host = socket.inet_ntop(family, await reader.readexactly(4 if kind == 1 else 16))
        else:
            _reply(writer, _NO_SUCH_ADDRESS)
            return
        port = int.from_bytes(await reader.readexactly(2), "big")
        if command != 1:
            _reply(writer, _NO_SUCH_COMMAND)
            return
        upstream = await self._connect(host, port, writer)
        if upstream is None:
            return
        there_reader, there_writer = await asyncio.open_connection(sock=upstream)
        _reply(writer, _OK)
        try:
            await asyncio.gather(_pump(reader, there_writer), _pump(there_reader, writer))
        finally:
            there_writer.close()

    async def _connect(self, host: str, port: int, writer: asyncio.StreamWriter) -> socket.socket | None:
        """A connection to the first allowed address that answers; None, with the reply written, when there is none."""
        loop = asyncio.get_running_loop()
        refused = ""
        try:
            addresses = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            addresses = []
        for info in addresses:
            try:
                self.policy.check(str(info[4][0]), host)
                upstream = self.policy.open_socket(info)
            except PrivateAddressError as error:
                refused = str(error)
                continue
            upstream.setblocking(False)
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    await loop.sock_connect(upstream, info[4])
            except OSError:  # also TimeoutError
                upstream.close()
                continue
            except BaseException:
                upstream.close()
                raise
            return upstream
        if refused and len(self._refused) < _MOST_REFUSED:
            self._refused.append(refused)
        _reply(writer, _NOT_ALLOWED if refused else _FAILED)
        return None


def _reply(writer: asyncio.StreamWriter, code: int) -> None:
    writer.write(bytes([5, code, 0, 1, 0, 0, 0, 0, 0, 0]))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry bytes one way until they end."""
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
