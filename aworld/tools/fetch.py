"""A tool that fetches a page of the web as readable text.

Private addresses are refused by default, where the socket is opened and at each redirect: a page must not make an agent
read what only this machine or its network can. What a page says is data: it can ask for other tools, not grant them.
"""

from __future__ import annotations

import base64
import codecs
import re

from aworld.core.exceptions import ToolError
from aworld.core.message import Image, Part, Text
from aworld.core.sandbox import check_amount
from aworld.core.tool.base import Tool
from aworld.core.tool.func_to_tool import FunctionTool
from aworld.core.tool.threads import THREADS
from aworld.tools.addresses import AddressPolicy, Private
from aworld.tools.readable import readable
from aworld.tools.web import Answer, get

SHOWN = 20_000
"""Characters of a page shown at once, about 5,000 tokens."""
_TEXT = re.compile(r"text/.*|application/(.*\+)?(json|xml|javascript|ecmascript|yaml|toml|x-ndjson)")
_PICTURES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
_CHARSET = re.compile(rb"charset\s{0,9}=\s{0,9}[\"']?([a-zA-Z0-9_:.-]{1,40})", re.IGNORECASE)
_NO_CHARSETS = frozenset({"idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined"})


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
    check_amount("timeout", timeout)
    check_amount("max_bytes", max_bytes, "int")
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


def _text(answer: Answer) -> tuple[str, str]:
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


def _encoding(answer: Answer) -> str:
    """What the server said, else what the page says, else UTF-8."""
    said = answer.charset
    if said is None and (found := _CHARSET.search(answer.body[:2048])):
        said = found.group(1).decode()
    try:
        known = codecs.lookup(said or "utf-8")
    except LookupError:
        return "utf-8"
    is_text = getattr(known, "_is_text_encoding", True)  # as opposed to zip, base64 and the like
    return known.name if is_text and known.name.replace("-", "_") not in _NO_CHARSETS else "utf-8"


def _shown(answer: Answer, title: str, text: str, start: int) -> str:
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
