"""The transport: one exchange of bytes with a provider, with deadlines, and errors that say what to do.

- One `aiohttp` session per event loop, opened at the first request and closed when the loop ends (or earlier, by
  `close_transports`). It has no limit of connections: limits are the limiter's and the runtime's.
- One try is one exchange. Retries live in `aworld.models.call`.
- Every failure is a `ModelError` which tells whether another try may help, and shows neither key nor header values,
  even when a provider echoes them.

Proxies and `.netrc` of the environment are used only when `AWORLD_TRUST_ENV=1`.
"""

from __future__ import annotations

import asyncio
import base64
import io
import os
import re
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, cast

import aiohttp
import msgspec
from yarl import URL

from aworld.core.exceptions import ModelError

MAX_REPLY = 64 * 1024 * 1024
"""Most bytes of one reply; far above any answer, and far below what would hurt the process."""
CONNECT_TIMEOUT = 30.0
"""Seconds for a connection to be made."""
ERROR_TEXT = 2000
"""Characters of a provider's error that are kept."""
RETRYABLE = frozenset({408, 409, 429})
"""The 4xx answers that may pass; every 5xx may."""

_LARGE_BODY = 1_000_000
_SECRET_LENGTH = 4  # shorter values are not secrets, and hiding them would garble the text
_RETRY_DELAY = re.compile(rb'"retryDelay":\s*"([0-9.]{1,20})s"')
_LINE_END = re.compile(rb"\r\n|\n|\r(?!\Z)")  # a CR at the end may be half of an end
_DRAIN = 1.0  # seconds for a stream to close after its last event, so that the connection can be used again

_sessions: dict[asyncio.AbstractEventLoop, aiohttp.ClientSession] = {}
_lifetimes: dict[asyncio.AbstractEventLoop, AsyncGenerator[None, None]] = {}


async def close_transports() -> None:
    """Close the connections of the running loop. The next request opens new ones."""
    lifetime = _lifetimes.pop(asyncio.get_running_loop(), None)
    if lifetime is not None:
        await lifetime.aclose()


class Endpoint:
    """Where a model's requests go: address, headers, deadlines in seconds, and the secrets that no error may show."""

    def __init__(
        self,
        provider: str,
        url: str,
        headers: Mapping[str, str],
        *,
        stream_url: str = "",
        secrets: Iterable[str] = (),
        timeout: float,
        stall_timeout: float,
    ) -> None:
        self.provider = provider
        self.url = url
        self._url = URL(url)
        self._stream_url = URL(stream_url or url)
        self._headers = {"Content-Type": "application/json", **headers}
        self._timeout = timeout
        self._stall_timeout = stall_timeout
        self._whole = aiohttp.ClientTimeout(total=timeout, sock_connect=CONNECT_TIMEOUT)
        self._streamed = aiohttp.ClientTimeout(total=timeout, sock_connect=CONNECT_TIMEOUT, sock_read=stall_timeout)
        sent = f"{self._url.user}:{self._url.password}".encode("latin-1", "replace")  # as a header has it
        hidden = {*secrets, self._url.password or "", base64.b64encode(sent).decode() if self._url.password else ""}
        # The longest first: one secret may hold another.
        self._secrets = sorted((s for s in hidden if len(s) >= _SECRET_LENGTH), key=len, reverse=True)

    async def post(self, body: bytes, take: Callable[[list[bytes]], bool] | None = None) -> tuple[bytes, str]:
        """Send `body`; the whole reply and its content type. Raises `ModelError`, also for an answer other than 2xx.

        With `take` the reply is streamed: it gets the data of the events that one read brought, tells whether the final
        one of the protocol was among them, and may raise. A server that answers with plain JSON all the same gives one
        event, the whole reply.
        """
        session = _sessions.get(asyncio.get_running_loop()) or await _open_session()
        url, timeout = (self._url, self._whole) if take is None else (self._stream_url, self._streamed)
        # A large body as a file: aiohttp writes that in pieces.
        payload = body if len(body) <= _LARGE_BODY else io.BytesIO(body)
        try:
            async with session.post(
                url, data=payload, headers=self._headers, timeout=timeout, allow_redirects=False
            ) as response:
                if response.status >= 300:
                    raise self._refusal(response, await self._read(response))
                if take is None:
                    return await self._read(response), response.content_type
                await self._stream(response, take)
                return b"", response.content_type
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            # aiohttp's errors may carry the request's headers, so they are not chained.
            raise self._failure(error) from None

    async def _stream(self, response: aiohttp.ClientResponse, take: Callable[[list[bytes]], bool]) -> None:
        kind = response.content_type
        if kind == "application/json":
            take([await self._read(response)])
            return
        if kind not in ("text/event-stream", "application/octet-stream"):  # the latter: none was given
            raise self.unreadable(f"{kind} instead of an event stream", await self._read(response))
        parser = EventParser()
        content = response.content
        size = 0
        while chunk := await content.readany():
            size += len(chunk)
            if size > MAX_REPLY:
                raise self._too_large()
            if (events := parser.feed(chunk)) and take(events):
                await _drain(content)  # the final event has come: what follows is only the end of the body
                return
        if events := parser.finish():
            take(events)

    def unreadable(self, what: str, data: bytes = b"") -> ModelError:
        """The error of a 2xx answer that is not what the protocol says; another try may help."""
        start = data[:200].decode("utf-8", "replace").strip()
        return ModelError(self.redact(f"{self.provider} sent {what}" + (f": {start}" if start else "")), retryable=True)

    def reported(self, error: Any, status: int | None = None) -> ModelError:
        """The error of an error object that came with a 2xx answer or in mid-stream."""
        try:
            text = _message(error)
        except RecursionError:
            text = "an error that is nested too deeply to be read"
        text = self.redact(f"{self.provider} reported: {text}")
        return ModelError(text[:ERROR_TEXT], status=status, retryable=status is None or may_pass(status))

    def redact(self, text: str) -> str:
        """`text` without the keys and header values of this endpoint."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        content = response.content
        chunks = [await content.readany()]
        size = len(chunks[0])
        while not content.at_eof():
            chunks.append(await content.readany())
            size += len(chunks[-1])
            if size > MAX_REPLY:
                raise self._too_large()
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _too_large(self) -> ModelError:
        return ModelError(f"{self.provider} sent more than {MAX_REPLY >> 20} MB in one reply; it was cut off.")

    def _refusal(self, response: aiohttp.ClientResponse, body: bytes) -> ModelError:
        status = response.status
        if status < 400:
            text = f"it points to {response.headers.get('Location', 'nowhere')}; set llm_base_url to the final address"
        else:
            text = _body_text(body) or response.reason or "no message"
        text = self.redact(f"{self.provider} answered {status}: {text}")
        return ModelError(
            text if len(text) <= ERROR_TEXT else text[:ERROR_TEXT] + "…",
            status=status,
            retryable=may_pass(status),
            retry_after=retry_after(response.headers, body),
        )

    def _failure(self, error: Exception) -> ModelError:
        retryable = True
        match error:
            case aiohttp.SocketTimeoutError():
                text = f"stalled: no byte for {self._stall_timeout:g} s (llm_stall_timeout)"
            case aiohttp.ConnectionTimeoutError():
                text = f"could not be reached within {CONNECT_TIMEOUT:g} s"
            case TimeoutError():
                text = f"gave no whole answer within {self._timeout:g} s (llm_timeout)"
            case aiohttp.ClientPayloadError():
                text = "cut the connection in mid-reply"
            case aiohttp.ServerDisconnectedError():
                text = "closed the connection without an answer"
            case aiohttp.InvalidURL() | aiohttp.ClientConnectorCertificateError() | aiohttp.ClientSSLError():
                text, retryable = f"cannot be called: {error}", False
            case aiohttp.ClientResponseError():
                text = f"sent a broken HTTP reply: {error.message}"
            case _:
                text = f"could not be reached: {error or type(error).__name__}"
        return ModelError(self.redact(f"{self.provider} {text}")[:ERROR_TEXT], retryable=retryable)


class EventParser:
    """Server-sent events as they come: bytes in, cut anywhere, the data of whole events out.

    The providers need only the data of an event (its type is in the data too), so names, ids and retry hints are passed
    over. Source: WHATWG HTML, 9.2.6 "Interpreting an event stream".
    """

    __slots__ = ("_data", "_pieces")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        """The line that is not yet whole, in pieces, so that a long one is joined only once."""
        self._data: list[bytes] = []
        """Data lines of the event that is not yet whole."""

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of the events that `chunk` completes, in order."""
        if not (self._pieces or self._data) and chunk[:6] == b"data: " and chunk[-2:] == b"\n\n":
            # Nearly every chunk is one or more whole events of one line each: 0.6 µs, against 0.9 line by line.
            events = chunk[6:-2].split(b"\n\ndata: ")
            # The count of line ends tells that each piece is one line; anything unusual takes the way below.
            if chunk.count(b"\n") == 2 * len(events) and b"\r" not in chunk and b"" not in events:
                return events
        self._pieces.append(chunk)
        if b"\n" not in chunk and b"\r" not in chunk:
            return []
        *lines, rest = _LINE_END.split(b"".join(self._pieces))
        self._pieces = [rest] if rest else []  # what follows the last line end is not yet a whole line
        events: list[bytes] = []
        for line in lines:
            if line[:5] == b"data:":
                self._data.append(line[6:] if line[5:6] == b" " else line[5:])
            elif line == b"data":
                self._data.append(b"")
            elif not line and self._data:
                if event := b"\n".join(self._data):  # one without data is not an event
                    events.append(event)
                self._data.clear()
        return events

    def finish(self) -> list[bytes]:
        """The event that the end of the stream completes. The standard drops it; servers that forget the last blank
        line are more common than servers that die exactly there, and half an event is not valid JSON anyway."""
        return self.feed(b"\n\n")


def retry_after(headers: Mapping[str, str], body: bytes = b"") -> float | None:
    """Seconds that a provider asks to wait, None when it asks for none. Google's says it in the error's body.
    Source: RFC 9110, 10.2.3, and google.rpc.RetryInfo."""
    date = headers.get("Retry-After", "")
    delay = _RETRY_DELAY.search(body)
    for value, scale in (
        (headers.get("retry-after-ms", ""), 1000), (date, 1), (delay[1].decode() if delay else "", 1)
    ):  # fmt: skip
        try:
            return max(0.0, float(value) / scale)
        except ValueError:
            pass  # not given, or not a number: the next may be, and the last may be a date
    try:
        return max(0.0, parsedate_to_datetime(date).timestamp() - time.time())
    except ValueError:
        return None


def may_pass(status: int) -> bool:
    """Whether another try of a request that was refused with this status may help."""
    return status >= 500 or status in RETRYABLE


def _body_text(body: bytes) -> str:
    try:
        return _message(msgspec.json.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body[: 4 * ERROR_TEXT].decode("utf-8", "replace").strip()


def _message(error: Any) -> str:
    """The message within an error object, whatever its shape."""
    if isinstance(error, dict):
        fields = cast("dict[str, Any]", error)
        for key in ("error", "message", "detail", "msg"):
            if value := fields.get(key):
                cause = fields.get("metadata")  # OpenRouter's place for what the provider behind it said
                raw: Any = cast("dict[str, Any]", cause).get("raw") if isinstance(cause, dict) else None
                return f"{_message(value)}: {raw}" if isinstance(raw, str) else _message(value)
    elif isinstance(error, list) and error:
        return _message(error[0])
    return error if isinstance(error, str) else msgspec.json.encode(error).decode()


async def _drain(content: aiohttp.StreamReader) -> None:
    if content.at_eof():
        return
    try:
        async with asyncio.timeout(_DRAIN):
            while await content.readany():
                pass
    except (TimeoutError, aiohttp.ClientError):
        pass  # the answer is complete; only the connection is lost


async def _open_session() -> aiohttp.ClientSession:
    loop = asyncio.get_running_loop()
    _lifetimes[loop] = lifetime = _lifetime(loop)
    await anext(lifetime)
    # A loop that was closed without closing its generators has left its session here; its sockets died with it.
    for stale in [other for other in list(_lifetimes) if other.is_closed()]:
        _lifetimes.pop(stale, None)
        if (session := _sessions.pop(stale, None)) is not None:
            await session.close()
    return _sessions[loop]


async def _lifetime(loop: asyncio.AbstractEventLoop) -> AsyncGenerator[None, None]:
    """Hold a session open. `asyncio.run` and its kin close the generators of a loop before the loop, and with this
    one the session: nobody has to remember to close it, and none is reported as left open."""
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=300),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=os.environ.get("AWORLD_TRUST_ENV") == "1",
        max_line_size=32_768,
        max_field_size=32_768,
    )
    _sessions[loop] = session
    try:
        yield
    finally:
        _sessions.pop(loop, None)
        _lifetimes.pop(loop, None)
        await session.close()
