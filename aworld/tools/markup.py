"""HTML as tags and text, in time that grows with its length alone.

The parser of the standard library takes minutes for two hostile megabytes, and pages come from strangers. This one
reads as browsers do: forwards only, and what is never closed ends with the document.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from typing import NamedTuple


class Start(NamedTuple):
    """The start of an element."""

    name: str
    attributes: str
    """As they stand in the page; see `attribute`."""


class End(NamedTuple):
    """The end of an element."""

    name: str


_NAME = re.compile(r"[a-zA-Z][^\s/>]*")
_UNTIL_QUOTE = re.compile(r"[^>\"']*")
_ATTRIBUTE = re.compile(r"([^\s=/\"'>]+)(?:\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s\"'>]+)))?")
_RAW = frozenset({"script", "style", "textarea", "title", "xmp", "iframe", "noembed", "noframes"})
"""Elements whose content holds no tags."""


def tokens(html: str) -> Iterator[Start | End | str]:
    """The tags of a page, and the text between them with its character references resolved."""
    at, length = 0, len(html)
    folded = html.lower() if len(html.lower()) == length else html  # a few letters have a longer small form
    while at < length:
        opening = html.find("<", at)
        if opening < 0:
            yield unescape(html[at:])
            return
        if opening > at:
            yield unescape(html[at:opening])
        following = html[opening + 1 : opening + 2]
        if following.isascii() and following.isalpha():
            tag, at = _tag(html, opening)
            if tag is None:
                return
            yield tag
            if tag.name in _RAW:
                end = folded.find(f"</{tag.name}", at)
                text = html[at:] if end < 0 else html[at:end]
                if text:
                    yield unescape(text) if tag.name in ("title", "textarea") else text
                if end < 0:
                    return
                at = end
        elif following == "/" and html[opening + 2 : opening + 3].isalpha():
            name = _NAME.match(html, opening + 2)
            at = html.find(">", opening) + 1
            if at == 0:
                return
            if name is not None:
                yield End(name.group().lower())
        elif following in ("!", "?", "/") and following:
            at = _after_comment(html, opening)
        else:
            yield "<"
            at = opening + 1


def attribute(attributes: str, wanted: str) -> str | None:
    """The value of an attribute, None when it is not there."""
    for found in _ATTRIBUTE.finditer(attributes):
        if found.group(1).lower() == wanted:
            return unescape(next((value for value in found.groups()[1:] if value is not None), ""))
    return None


def _tag(html: str, opening: int) -> tuple[Start | None, int]:
    """The tag that opens here, and the place after it; no tag when it is never closed."""
    name = _NAME.match(html, opening + 1)
    assert name is not None  # the caller saw a letter
    at = name.end()
    while True:
        stop = _UNTIL_QUOTE.match(html, at)
        at = stop.end() if stop is not None else at
        if at >= len(html):
            return None, at
        if html[at] == ">":
            return Start(name.group().lower(), html[name.end() : at]), at + 1
        before = at - 1
        while html[before].isspace():
            before -= 1
        if html[before] == "=":  # elsewhere a quote is a letter like others
            closing = html.find(html[at], at + 1)
            if closing < 0:
                return None, len(html)
            at = closing
        at += 1


def _after_comment(html: str, opening: int) -> int:
    if html.startswith("<!--", opening):
        end = html.find("-->", opening + 2)  # `<!-->` is a whole comment
        return len(html) if end < 0 else end + 3
    end = html.find(">", opening)
    return len(html) if end < 0 else end + 1
