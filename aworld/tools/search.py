"""A tool that searches the web through a provider of your choice: Brave, Tavily, a SearXNG of your own, or any object
with `search`.

    tools=[web_search]                              # whichever of the variables below is set
    tools=[search_tool(SearXNG("http://127.0.0.1:8888"))]

| provider | key | address |
| --- | --- | --- |
| Brave | `BRAVE_API_KEY` | `BRAVE_BASE_URL`, else theirs |
| Tavily | `TAVILY_API_KEY` | `TAVILY_BASE_URL`, else theirs |
| SearXNG | none | `SEARXNG_URL`; its settings must allow the format `json` |
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping, Sequence
from html import unescape
from typing import Any, Protocol, cast
from urllib.parse import urlencode

import msgspec

from aworld.core.checks import positive
from aworld.core.exceptions import ConfigError, ToolError
from aworld.core.tool.base import Tool
from aworld.core.tool.func_to_tool import FunctionTool

LARGEST = 5_000_000
"""Bytes of an answer of a provider."""
_TAG = re.compile(r"<[^<>]{0,100}>")


class Hit(msgspec.Struct, frozen=True):
    """A page that was found."""

    title: str
    url: str
    text: str
    """What the provider shows of it."""


class SearchProvider(Protocol):
    """Something that finds pages."""

    name: str

    async def search(self, query: str, count: int) -> Sequence[Hit]:
        """At most `count` pages, the best first. Raises `ToolError` with a reason for the model."""
        ...


class Brave:
    """Brave Search. Raises `ConfigError` that names the variable when there is no key."""

    name = "brave"

    def __init__(self, api_key: str | None = None, base_url: str | None = None) -> None:
        self._key = api_key or _setting("BRAVE_API_KEY", "Brave(api_key=...)")
        self._url = _base(base_url or os.environ.get("BRAVE_BASE_URL") or "https://api.search.brave.com")

    async def search(self, query: str, count: int) -> Sequence[Hit]:
        """See `SearchProvider.search`."""
        url = f"{self._url}/res/v1/web/search?{urlencode({'q': query, 'count': count})}"
        answer = await _json(self.name, "GET", url, headers={"X-Subscription-Token": self._key})
        return _hits(answer.get("web"), "description")


class Tavily:
    """Tavily. Raises `ConfigError` that names the variable when there is no key."""

    name = "tavily"

    def __init__(self, api_key: str | None = None, base_url: str | None = None) -> None:
        self._key = api_key or _setting("TAVILY_API_KEY", "Tavily(api_key=...)")
        self._url = _base(base_url or os.environ.get("TAVILY_BASE_URL") or "https://api.tavily.com")

    async def search(self, query: str, count: int) -> Sequence[Hit]:
        """See `SearchProvider.search`."""
        body = {"query": query, "max_results": count}
        headers = {"Authorization": f"Bearer {self._key}"}
        return _hits(await _json(self.name, "POST", f"{self._url}/search", headers=headers, body=body), "content")


class SearXNG:
    """A SearXNG of your own. Raises `ConfigError` that names the variable when there is no address."""

    name = "searxng"

    def __init__(self, base_url: str | None = None) -> None:
        self._url = _base(base_url or _setting("SEARXNG_URL", "SearXNG(base_url=...)"))

    async def search(self, query: str, count: int) -> Sequence[Hit]:
        """See `SearchProvider.search`."""
        url = f"{self._url}/search?{urlencode({'q': query, 'format': 'json'})}"
        return _hits(await _json(self.name, "GET", url), "content")[:count]


_PROVIDERS: dict[str, tuple[str, type[Brave | Tavily | SearXNG]]] = {
    "brave": ("BRAVE_API_KEY", Brave),
    "tavily": ("TAVILY_API_KEY", Tavily),
    "searxng": ("SEARXNG_URL", SearXNG),
}


def search_tool(provider: SearchProvider | str, *, timeout: float = 20.0) -> Tool:
    """The tool `web_search`. `provider` is an object, or `"brave"`, `"tavily"` or `"searxng"` with its settings in the
    environment. Raises `ConfigError` that names what is missing."""
    positive("timeout", timeout)
    engine = _named(provider) if isinstance(provider, str) else provider

    async def web_search(query: str, count: int = 8) -> str:
        """Search the web. Returns titles, addresses and a few words of the pages.

        Args:
            query: What to look for.
            count: How many results, 1 to 20.
        """
        if not query.strip():
            raise ToolError("The query is empty.")
        try:
            async with asyncio.timeout(timeout):
                hits = await engine.search(query, min(max(count, 1), 20))
        except TimeoutError:
            raise ToolError(f"{engine.name} gave no answer within {timeout:g} s.") from None
        if not hits:
            return "Nothing was found."
        return "\n\n".join(f"{number}. {hit.title}\n{hit.url}\n{hit.text}" for number, hit in enumerate(hits, 1))

    return FunctionTool(web_search, timeout=timeout + 15, idempotent=True)


class _FromEnvironment:
    """`web_search`, with the provider that the environment names when a run starts."""

    async def list_tools(self) -> Sequence[Tool]:
        chosen = os.environ.get("AWORLD_SEARCH")
        if chosen is None:
            chosen = next((name for name, (variable, _) in _PROVIDERS.items() if os.environ.get(variable)), None)
        if chosen is None:
            variables = ", ".join(variable for variable, _ in _PROVIDERS.values())
            raise ConfigError(f"web_search has no provider: set one of {variables}, or give search_tool(...).")
        return [search_tool(chosen)]


web_search = _FromEnvironment()
"""The tool with the provider of the environment: `AWORLD_SEARCH`, else the first whose variable is set."""


def _named(name: str) -> SearchProvider:
    if name not in _PROVIDERS:
        raise ConfigError(f"There is no search provider {name!r}; there are {', '.join(_PROVIDERS)}.")
    return _PROVIDERS[name][1]()


def _setting(variable: str, instead: str) -> str:
    value = os.environ.get(variable)
    if not value:
        raise ConfigError(f"No search provider: set {variable}, or give {instead}.")
    return value


def _base(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"{url!r} is no address of a search provider; it begins with http:// or https://.")
    return url.rstrip("/")


async def _json(
    name: str, method: str, url: str, *, headers: Mapping[str, str] | None = None, body: Any = None
) -> dict[str, Any]:
    """The JSON object that a provider answers. Raises `ToolError`; keys are in headers and not in its text."""
    import aiohttp

    try:
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.request(method, url, json=body, allow_redirects=False) as response,
        ):
            data = bytearray()
            async for chunk in response.content.iter_any():
                data += chunk
                if len(data) > LARGEST:
                    raise ToolError(f"{name} answered more than {LARGEST:,} bytes.")
            if response.status != 200:
                raise ToolError(f"{name} refused the search: HTTP {response.status} {response.reason or ''}".rstrip())
    except (aiohttp.ClientError, OSError) as error:
        raise ToolError(f"{name} cannot be reached: {error}") from error
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise ToolError(f"{name} answered no JSON object: {error}") from error


def _hits(answer: Any, text: str) -> list[Hit]:
    """The results in an answer; those without an address are left out."""
    results: Any = cast("dict[str, Any]", answer).get("results") if isinstance(answer, dict) else None
    hits: list[Hit] = []
    for result in cast("list[Any]", results) if isinstance(results, list) else []:
        if isinstance(result, dict) and isinstance(result.get("url"), str):  # pyright: ignore[reportUnknownMemberType]
            entry = cast("dict[str, Any]", result)
            hits.append(Hit(_plain(entry.get("title")), entry["url"], _plain(entry.get(text))))
    return hits


def _plain(text: Any) -> str:
    """Text without the tags by which providers mark what matched."""
    return unescape(_TAG.sub("", str(text or ""))).strip()
