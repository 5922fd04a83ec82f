"""One guarded GET: the answer of a stranger's server, whatever it does, within limits of size, time and reach."""

from __future__ import annotations

import asyncio
import socket
import zlib
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from msgspec import Struct

from aworld.core.exceptions import ToolError
from aworld.tools.addresses import AddressPolicy, PrivateAddressError

if TYPE_CHECKING:  # imported when a page is fetched, not when the tool is offered
    from aiohttp import ClientResponse, ClientSession

REDIRECTS = 8
AGENT = "aworld/0.1 (agent)"
_HEADERS = {
    "User-Agent": AGENT,
    "Accept": "text/html,application/xhtml+xml,text/*;q=0.9,application/json;q=0.9,*/*;q=0.5",
    "Accept-Encoding": "gzip",
}


class Answer(Struct, frozen=True):
    """What a server answered in the end."""

    url: str
    """After redirects."""
    status: int
    kind: str
    """Media type, such as `text/html`; empty when the server did not say."""
    charset: str | None
    body: bytes
    cut: str | None
    """Why the body is not whole; None when it is."""


async def get(url: str, policy: AddressPolicy, *, timeout: float, most: int) -> Answer:
    """Fetch `url` and follow its redirects. Reads at most `most` bytes, for at most `timeout` seconds in all.

    Raises `ToolError` for an address that is no web page or may not be reached, and when there is no answer.
    """
    import aiohttp

    refused: list[str] = []

    def open_socket(info: tuple[Any, ...]) -> socket.socket:
        try:
            return policy.open_socket(info)
        except PrivateAddressError as error:
            refused.append(str(error))
            raise

    connector = aiohttp.TCPConnector(
        resolver=aiohttp.ThreadedResolver(), use_dns_cache=False, force_close=True, socket_factory=open_socket
    )
    deadline = asyncio.get_running_loop().time() + timeout
    try:
        async with aiohttp.ClientSession(
            connector=connector, headers=_HEADERS, auto_decompress=False, timeout=aiohttp.ClientTimeout(total=None)
        ) as session:
            return await _follow(session, checked_url(url), deadline, most)
    except TimeoutError:
        raise ToolError(f"{url}: no answer within {timeout:g} s.") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        if refused:
            raise ToolError(f"Refused: {refused[0]}") from error
        raise ToolError(f"{url} cannot be fetched: {str(error) or type(error).__name__}") from error


def checked_url(url: str) -> str:
    """The address, with a scheme. Raises `ToolError` for anything but http and https."""
    url = url.strip()
    if "://" not in url and not url.startswith(("data:", "file:", "javascript:", "about:")):
        url = f"https://{url}"
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ToolError(f"{url!r} is no address: {error}") from None
    if parts.scheme not in ("http", "https"):
        raise ToolError(f"{url!r}: only http and https can be fetched, not {parts.scheme or 'this'}.")
    if not parts.hostname:
        raise ToolError(f"{url!r} names no host.")
    return url


async def _follow(session: ClientSession, url: str, deadline: float, most: int) -> Answer:
    for _ in range(REDIRECTS + 1):
        async with asyncio.timeout_at(deadline):
            response = await session.get(url, allow_redirects=False)
        async with response:
            target = response.headers.get("Location")
            if response.status not in (301, 302, 303, 307, 308) or target is None:
                body, cut = await _body(response, deadline, most)
                return Answer(url, response.status, _kind(response), _charset(response), body, cut)
            url = checked_url(urljoin(url, target))
    raise ToolError(f"{url}: more than {REDIRECTS} redirects.")


def _kind(response: ClientResponse) -> str:
    return response.headers.get("Content-Type", "").partition(";")[0].strip().lower()


def _charset(response: ClientResponse) -> str | None:
    try:
        return response.charset
    except ValueError:
        return None


async def _body(response: ClientResponse, deadline: float, most: int) -> tuple[bytes, str | None]:
    """The body, unpacked, and why it is not whole. Packed data is unpacked no further than the limit."""
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", "x-gzip", "deflate", ""):
        raise ToolError(f"{response.url}: the answer is packed as {encoding!r}, which was not asked for.")
    unpack = None if encoding in ("identity", "") else zlib.decompressobj(wbits=47)  # gzip or zlib, as it comes
    body = bytearray()
    try:
        async with asyncio.timeout_at(deadline):
            async for chunk in response.content.iter_any():
                room = most - len(body)
                body += chunk[:room] if unpack is None else unpack.decompress(chunk, room + 1)[:room]
                if len(body) >= most:
                    return bytes(body), f"the first {most:,} bytes"
    except TimeoutError:
        return bytes(body), "what came before the time was up"
    except zlib.error as error:
        raise ToolError(f"{response.url}: the answer cannot be unpacked: {error}") from error
    return bytes(body), None
