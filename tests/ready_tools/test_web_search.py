"""Searching the web: each provider's protocol against a local server, and what is told when one is not set up."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from aiohttp import web

from aworld.agents.llm_agent import Agent
from aworld.core.exceptions import ConfigError, ToolError
from aworld.core.tool.base import Tool
from aworld.models import ScriptedModel
from aworld.models.doubles import call
from aworld.runner import Runners
from aworld.tools.search import Brave, Hit, SearXNG, Tavily, search_tool, web_search
from tests.ready_tools.test_sandboxed import at

KEY = "sk-very-secret"


class Engine:
    """Answers as the three providers do."""

    url = ""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.answer: Any = None

    async def handle(self, http: web.BaseRequest) -> web.StreamResponse:
        body = await http.text()
        self.seen.append({"path": http.path, **http.query, **(json.loads(body) if body else {})})
        if self.answer is not None:
            return self.answer
        hit = {"title": "A <b>pear</b> &amp; more", "url": "http://example.org/pear"}
        if http.path == "/res/v1/web/search":
            assert http.headers["X-Subscription-Token"] == KEY
            return web.json_response({"web": {"results": [{**hit, "description": "It is <strong>green</strong>."}]}})
        if http.method == "POST":
            assert http.headers["Authorization"] == f"Bearer {KEY}"
        content = {**hit, "content": "It is green."}
        return web.json_response({"results": [content, {"title": "no address"}, "no object", *[content] * 30]})


@pytest.fixture(autouse=True)
def no_providers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "BRAVE_API_KEY",
        "BRAVE_BASE_URL",
        "TAVILY_API_KEY",
        "TAVILY_BASE_URL",
        "SEARXNG_URL",
        "AWORLD_SEARCH",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    made = Engine()
    runner = web.ServerRunner(web.Server(made.handle), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


async def searched(tool: Tool, **arguments: Any) -> str:
    return await tool.invoke(json.dumps({"query": "green pears", **arguments}), at())


FOUND = "1. A pear & more\nhttp://example.org/pear\nIt is green."


async def test_each_provider_is_asked_in_its_own_way(engine: Engine) -> None:
    assert await searched(search_tool(Brave(KEY, engine.url)), count=3) == FOUND
    assert engine.seen.pop() == {"path": "/res/v1/web/search", "q": "green pears", "count": "3"}
    assert (await searched(search_tool(Tavily(KEY, engine.url + "/")), count=3)).startswith(FOUND)
    assert engine.seen.pop() == {"path": "/search", "query": "green pears", "max_results": 3}
    said = await searched(search_tool(SearXNG(engine.url)), count=3)
    assert said.startswith(FOUND)
    assert said.count("http://example.org/pear") == 3
    assert engine.seen.pop() == {"path": "/search", "q": "green pears", "format": "json"}


async def test_the_environment_names_the_provider(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEARXNG_URL", engine.url)
    (tool,) = await web_search.list_tools()
    assert (await searched(tool)).startswith(FOUND)
    monkeypatch.setenv("TAVILY_API_KEY", KEY)
    monkeypatch.setenv("TAVILY_BASE_URL", engine.url)
    monkeypatch.setenv("AWORLD_SEARCH", "tavily")
    (tool,) = await web_search.list_tools()
    assert (await searched(tool)).startswith(FOUND)
    assert engine.seen[-1]["max_results"] == 8


def test_what_is_missing_is_named() -> None:
    for name, variable in (("brave", "BRAVE_API_KEY"), ("tavily", "TAVILY_API_KEY"), ("searxng", "SEARXNG_URL")):
        with pytest.raises(ConfigError, match=f"set {variable}"):
            search_tool(name)
    with pytest.raises(ConfigError, match="no search provider 'altavista'; there are brave"):
        search_tool("altavista")
    with pytest.raises(ConfigError, match="begins with http"):
        SearXNG("localhost:8888")


async def test_a_run_without_a_provider_says_which_variable_to_set() -> None:
    agent = Agent("seeker", model=ScriptedModel(["never"]), tools=[web_search])
    response = await Runners.run("x", agent)
    assert response.status == "failed"
    assert "set one of BRAVE_API_KEY, TAVILY_API_KEY, SEARXNG_URL" in str(response.msg)


async def test_a_provider_that_fails_is_the_models_to_know(engine: Engine) -> None:
    tool = search_tool(Brave(KEY, engine.url))
    for answer, said in (
        (web.Response(status=429, text=f"too many for {KEY}"), "HTTP 429 Too Many Requests"),
        (web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"}), "HTTP 302"),
        (web.Response(text="<html>"), "answered no JSON object"),
        (web.json_response([1]), "answered no JSON object"),
    ):
        engine.answer = answer
        with pytest.raises(ToolError, match=said) as raised:
            await searched(tool)
        assert KEY not in str(raised.value)
    engine.answer = web.json_response({"web": {"results": []}})
    assert await searched(tool) == "Nothing was found."
    with pytest.raises(ToolError, match="is empty"):
        await searched(tool, query=" ")
    with pytest.raises(ToolError, match="cannot be reached"):
        await searched(search_tool(SearXNG("http://127.0.0.1:1")))


async def test_any_object_with_search_will_do() -> None:
    class Shelf:
        name = "shelf"

        async def search(self, query: str, count: int) -> Sequence[Hit]:
            return [Hit(query, "http://example.org/", "words")][:count]

    agent = Agent(
        "seeker", model=ScriptedModel([call("web_search", query="pears"), "done"]), tools=[search_tool(Shelf())]
    )
    response = await Runners.run("x", agent)
    assert response.trajectory[0]["observation"][0]["content"] == "1. pears\nhttp://example.org/\nwords"
