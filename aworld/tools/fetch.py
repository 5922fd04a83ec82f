"""A tool that fetches a page of the web as readable text.

Private addresses are refused by default, where the socket is opened and at each redirect: a page must not make an agent
read what only this machine or its network can. What a page says is data: it can ask for other tools, not grant them.
"""

from __future__ import annotations

import asyncio
import base64
import codecs
import re
import socket
import zlib
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from msgspec import Struct

from aworld.core.checks import positive
from aworld.core.exceptions import ToolError
from aworld.core.message import Image, Part, Text
from aworld.core.tool.base import Tool
from aworld.core.tool.func_to_tool import FunctionTool
from aworld.core.tool.threads import THREADS
from aworld.tools.addresses import AddressPolicy, Private, PrivateAddressError
from aworld.tools.readable import readable

if TYPE_CHECKING:  # imported when a page is fetched, not when the tool is offered
    from aiohttp import ClientResponse, ClientSession

SHOWN = 20_000
"""Characters of a page shown at once, about 5,000 tokens."""
_TEXT = re.compile(r"text/.*|application/(.*\+)?(json|xml|javascript|ecmascript|yaml|toml|x-ndjson)")
_PICTURES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
_CHARSET = re.compile(rb"charset\s{0,9}=\s{0,9}[\"']?([a-zA-Z0-9_:.-]{1,40})", re.IGNORECASE)
_NO_CHARSETS = frozenset({"idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined"})
REDIRECTS = 8
AGENT = "aworld/0.1 (agent)"
_HEADERS = {
    "User-Agent": AGENT,
    "Accept": "text/html,application/xhtml+xml,text/*;q=0.9,application/json;q=0.9,*/*;q=0.5",
    "Accept-Encoding": "gzip",
}


class WebAnswer(Struct, frozen=True):
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


def fetch_tool(*, allow_private: Private = False, timeout: float = 30.0, max_bytes: int = 2_000_000) -> Tool:
    """The tool `fetch`.

    Args:
        allow_private: Which private addresses may be reached: True for all, or addresses and networks, such as
            `["127.0.0.1"]` for a site on this machine.
        timeout: Seconds for a page, redirects included; of a body that takes longer, what came is shown.
        max_bytes: Bytes of a body that are read, counted after unpacking.

    Raises:
        ConfigError: When `allow_private` holds what is no address and no network, and for a number that is not above 0.
    """
    positive("timeout", timeout)
    positive("max_bytes", max_bytes, whole=True)
    policy = AddressPolicy(allow_private)

    async def fetch(url: str, start: int = 0) -> str | list[Part]:
        """Fetch a web page, or a text or picture of the web, by its address. Pages are shown as text with links.

        Args:
            url: The address, with http or https.
            start: For the next part of a long page: the character to begin with.
        """
        answer = await get(url, policy, timeout=timeout, most=max_bytes)
        if answer.kind in _PICTURES and answer.status < 400:
            if answer.cut:
                raise ToolError(f"{answer.url} is a picture of more than {max_bytes:,} bytes.")
            data = base64.b64encode(answer.body).decode()
            return [Text(answer.url), Image(f"data:{answer.kind};base64,{data}")]
        title, text = await THREADS.run(lambda: _text(answer))  # a large page takes a second
        if answer.status >= 400:
            raise ToolError(f"{answer.url} answered HTTP {answer.status}. {title} {text[:500]}".rstrip())
        return _shown(answer, title, text, start)

    return FunctionTool(fetch, timeout=timeout + 15, idempotent=True)


fetch = fetch_tool()
"""The tool with its defaults, also for `aworld run --tool aworld.tools.fetch:fetch`."""


def _text(answer: WebAnswer) -> tuple[str, str]:
    """Title and text of an answer. Raises `ToolError` for what is no text."""
    kind = answer.kind or ("text/html" if answer.body[:200].lstrip()[:1] == b"<" else "text/plain")
    if not _TEXT.fullmatch(kind) or b"\0" in answer.body[:1000]:
        if answer.status >= 400:
            return "", ""
        size = f"{len(answer.body):,} bytes" + (" and more" if answer.cut else "")
        raise ToolError(f"{answer.url} is {kind} ({size}), which is no text.")
    text = answer.body.decode(_encoding(answer), "replace").removeprefix("\ufeff")
    if kind in ("text/html", "application/xhtml+xml"):
        return readable(text, answer.url)
    return "", text


def _encoding(answer: WebAnswer) -> str:
    """What the server said, else what the page says, else UTF-8."""
    charset = answer.charset
    if charset is None and (match := _CHARSET.search(answer.body[:2048])):
        charset = match.group(1).decode()
    try:
        codec = codecs.lookup(charset or "utf-8")
    except LookupError:
        return "utf-8"
    is_text = getattr(codec, "_is_text_encoding", True)  # as opposed to zip, base64 and the like
    return codec.name if is_text and codec.name.replace("-", "_") not in _NO_CHARSETS else "utf-8"


def _shown(answer: WebAnswer, title: str, text: str, start: int) -> str:
    if start < 0 or (start and start >= len(text)):
        raise ToolError(f"The page has {len(text):,} characters; start={start} is not among them.")
    part = text[start : start + SHOWN]
    notes: list[str] = []
    if len(part) < len(text):
        end = start + len(part)
        notes.append(f"[characters {start:,} to {end:,} of {len(text):,}]")
        if end < len(text):
            notes.append(f"[for more, fetch with start={end}]")
    if answer.cut:
        notes.append(f"[of the page, only {answer.cut} was read]")
    heading = [line for line in (title, answer.url) if line]
    return "\n".join((*heading, "", part or "[the page has no text]", *notes))


async def get(url: str, policy: AddressPolicy, *, timeout: float, most: int) -> WebAnswer:
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


async def _follow(session: ClientSession, url: str, deadline: float, most: int) -> WebAnswer:
    for _ in range(REDIRECTS + 1):
        async with asyncio.timeout_at(deadline):
            response = await session.get(url, allow_redirects=False)
        async with response:
            target = response.headers.get("Location")
            if response.status not in (301, 302, 303, 307, 308) or target is None:
                body, cut = await _body(response, deadline, most)
                return WebAnswer(url, response.status, _kind(response), _charset(response), body, cut)
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
