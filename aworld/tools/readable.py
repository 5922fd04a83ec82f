"""A web page as text that reads well: headings, lists, tables, code, and links with their full addresses.

The parser of the standard library takes minutes for two hostile megabytes, and pages come from strangers. The one here
takes a time that grows with the length alone, and reads as browsers do: forwards only, and what is never closed ends
with the document.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from typing import NamedTuple
from urllib.parse import urljoin

_SILENT = frozenset({"script", "style", "noscript", "template", "svg", "math", "iframe", "object", "canvas"})
"""What a browser does not show as text."""
_LINES = frozenset({"li", "tr", "dt", "dd", "caption", "option"})
_BLOCKS = _LINES | frozenset(
    {
        "address", "article", "aside", "blockquote", "body", "details", "dialog", "div", "dl", "fieldset",
        "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "html", "main",
        "nav", "ol", "p", "pre", "section", "summary", "table", "tbody", "tfoot", "thead", "ul",
    }
)  # fmt: skip
_HEADINGS = {f"h{level}": f"{'#' * level} " for level in range(1, 7)}
_SPACE = re.compile(r"[ \t\r\n\f\v]+")
MOST_PIECES = 100_000
"""Tags, and texts between them, that are read of a page: about half a second."""
_DEEPEST = 10
"""Levels of lists that are indented."""
_NAME = re.compile(r"[a-zA-Z][^\s/>]*")
_UNTIL_QUOTE = re.compile(r"[^>\"']*")
_ATTRIBUTE = re.compile(r"([^\s=/\"'>]+)(?:\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s\"'>]+)))?")
_RAW = frozenset({"script", "style", "textarea", "title", "xmp", "iframe", "noembed", "noframes"})
"""Elements whose content holds no tags."""


class StartTag(NamedTuple):
    """The start of an element."""

    name: str
    attributes: str
    """As they stand in the page; see `attribute`."""


class EndTag(NamedTuple):
    """The end of an element."""

    name: str


class _Page:
    """Collects the text of a page, token by token."""

    def __init__(self, base: str) -> None:
        self.title = ""
        self._base = base
        self._out: list[str] = []
        self._gap = ""
        """White space that is due before the next text."""
        self._at_start = True
        """Whether nothing but a mark stands in this line or item, so that no gap is due."""
        self._silent = ""
        self._depth = 0
        self._lists: list[int] = []
        """Numbers of the next items of the open lists; 0 for those without numbers."""
        self._link: tuple[int, str | None] | None = None
        self._pre = False
        self._in_title = False

    def start(self, tag: StartTag) -> None:
        """An element begins."""
        name = tag.name
        if self._silent:
            self._depth += name == self._silent
            return
        if name in _SILENT:
            self._silent, self._depth = name, 1
            return
        if name in _BLOCKS:
            self._break(self._gap_at(name))
        match name:
            case "title":
                self._in_title = not self.title
            case "ul" | "ol":
                self._lists.append(1 if name == "ol" else 0)
            case "li":
                self._item()
            case "blockquote":
                self._mark("> ")
            case "pre":
                self._mark("```\n")
                self._pre = True
            case "br":
                self._break("\n")
            case "hr":
                self._mark("---")
                self._at_start = False
                self._break("\n\n")
            case "a":
                self._end_link()
                self._link = (len(self._out), attribute(tag.attributes, "href"))
            case "img":
                alt = _flat(attribute(tag.attributes, "alt") or "")
                if alt:
                    self._write(f"[image: {alt}]")
            case "base":
                self._base = _joined(self._base, attribute(tag.attributes, "href")) or self._base
            case "td" | "th":
                self._space()
                self._mark("| ")
            case "code" if not self._pre:
                self._write("`")
            case _ if name in _HEADINGS:
                self._mark(_HEADINGS[name])
            case _:
                pass

    def end(self, name: str) -> None:
        """An element ends."""
        if self._silent:
            self._depth -= name == self._silent
            self._silent = self._silent if self._depth else ""
            return
        match name:
            case "title":
                self._in_title = False
            case "ul" | "ol" if self._lists:
                self._lists.pop()
            case "pre" if self._pre:
                self._pre = False
                self._out.append("```" if self._out and self._out[-1].endswith("\n") else "\n```")
            case "a":
                self._end_link()
            case "td" | "th":
                self._at_start = False
                self._space()
            case "code" if not self._pre:
                self._out.append("`")
            case _:
                pass
        if name in _BLOCKS:
            self._break(self._gap_at(name))

    def text(self, data: str) -> None:
        """Text between tags."""
        if self._in_title:
            self.title += data
        elif self._silent:
            return
        elif self._pre:
            self._write(data.removeprefix("\n") if self._at_start else data)
        else:
            flat = _SPACE.sub(" ", data)
            if flat.startswith(" "):
                self._space()
            if words := flat.strip(" "):
                self._write(words)
            if words and flat.endswith(" "):
                self._space()

    def whole(self) -> str:
        """All of the text."""
        self._end_link()
        return "".join(self._out).strip()

    def _write(self, text: str) -> None:
        self._out.append(self._gap + text)
        self._gap, self._at_start = "", False

    def _mark(self, text: str) -> None:
        self._write(text)
        self._at_start = True

    def _space(self) -> None:
        if not self._at_start:
            self._gap = self._gap or " "

    def _break(self, gap: str) -> None:
        if not self._at_start and len(gap) > len(self._gap.strip(" ")):
            self._gap = gap

    def _gap_at(self, name: str) -> str:
        return "\n" if name in _LINES or self._lists else "\n\n"

    def _item(self) -> None:
        if self._at_start and self._out:  # an empty item, or one that begins with a list
            self._gap = "\n"
        number = self._lists[-1] if self._lists else 0
        if number:
            self._lists[-1] = number + 1
        indent = "  " * min(max(len(self._lists) - 1, 0), _DEEPEST)
        self._mark(f"{indent}{number}. " if number else f"{indent}- ")

    def _end_link(self) -> None:
        """A link ends, or another begins, as links do not nest."""
        if self._link is None:
            return
        (start, href), self._link = self._link, None
        text = "".join(self._out[start:])
        label, address = _flat(text), _joined(self._base, href)
        if label and address is not None:
            before = text[: len(text) - len(text.lstrip())]
            self._out[start:] = [f"{before}[{label}]({address})"]


def readable(html: str, base: str) -> tuple[str, str]:
    """The title of a page and its text, as far as it has `MOST_PIECES`. Links are relative to its address, `base`."""
    page = _Page(base)
    for number, token in enumerate(tokens(html)):
        if number == MOST_PIECES:
            page.text(f" [the page goes on: only its first {MOST_PIECES:,} tags and texts were read]")
            break
        match token:
            case StartTag():
                page.start(token)
            case EndTag():
                page.end(token.name)
            case _:
                page.text(token)
    return _flat(page.title), page.whole()


def _flat(text: str) -> str:
    return _SPACE.sub(" ", text).strip()


def _joined(base: str, href: str | None) -> str | None:
    """The full address of a link; None for one that leads to no page."""
    if not href or href.startswith("#"):
        return None
    try:
        address = urljoin(base, href.strip())
    except ValueError:
        return None
    return address if address.startswith(("http://", "https://", "mailto:")) else None


def tokens(html: str) -> Iterator[StartTag | EndTag | str]:
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
                yield EndTag(name.group().lower())
        elif following in ("!", "?", "/") and following:
            at = _after_comment(html, opening)
        else:
            yield "<"
            at = opening + 1


def attribute(attributes: str, wanted: str) -> str | None:
    """The value of an attribute, None when it is not there."""
    for match in _ATTRIBUTE.finditer(attributes):
        if match.group(1).lower() == wanted:
            return unescape(next((value for value in match.groups()[1:] if value is not None), ""))
    return None


def _tag(html: str, opening: int) -> tuple[StartTag | None, int]:
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
            return StartTag(name.group().lower(), html[name.end() : at]), at + 1
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
