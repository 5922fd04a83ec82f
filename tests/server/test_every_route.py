"""What the shell promises, on every route of every server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from starlette.routing import WebSocketRoute

from aworld.agents.llm_agent import Agent
from aworld.environments import Environment
from aworld.models import ScriptedModel
from aworld.server import EnvironmentServer, MCPService, ModelServer, Serving
from aworld.server.mcp_server import server_of
from aworld.training.bridge import Bridge
from aworld.training.outside import OutsideRollouts
from tests.server.conftest import ask

TOKEN = "the-token-of-the-test"


def _is_two(answer: Any) -> float:
    return float(answer == "2")


def environment() -> Environment:
    return Environment("sums", train=[{"id": "a", "input": "1 + 1?"}], rubric=_is_two)


def agent() -> Agent:
    return Agent("calculator", model=ScriptedModel(["2"]))


def bridge(token: str | None = None, **options: Any) -> Serving:
    rollouts = OutsideRollouts(environment(), agent(), {}, parse=lambda text, _: text, name="p", run="r")  # type: ignore[arg-type, return-value]
    return Bridge(rollouts, lambda step, figures: None, token=token, **options)._server


def model_server(**options: Any) -> Serving:
    return ModelServer(ScriptedModel(["hello"]), **options)


def environment_server(**options: Any) -> Serving:
    return EnvironmentServer(environment(), port=0, **options)


def mcp_service(**options: Any) -> Serving:
    return MCPService(server_of([("calculator", agent())]), port=0, **options)


SERVERS: Mapping[str, Callable[..., Serving]] = {
    "model": model_server,
    "environment": environment_server,
    "mcp": mcp_service,
    "bridge": bridge,
}


def routes(server: Serving) -> list[tuple[str, str]]:
    """Method and path of all that is served, WebSockets asked by GET."""
    paths = [("GET", "/health"), ("GET", "/openapi.json")]
    for router in server._routers:
        for route in router.routes:
            every = {"GET"} if isinstance(route, WebSocketRoute) else {"GET", "POST", "DELETE"}
            methods: set[str] = getattr(route, "methods", None) or every
            path: str = getattr(route, "path", "")
            paths += [(method, path.replace("{op}", "begin")) for method in sorted(methods)]
    return paths


@pytest.mark.parametrize("kind", SERVERS)
async def test_no_route_is_forgotten_by_the_gate(kind: str) -> None:
    async with SERVERS[kind](token=TOKEN) as server:
        assert len(routes(server)) >= 3
        shown = f"Authorization: Bearer {TOKEN}"
        for method, path in routes(server):
            for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "127.0.0.1@evil.example", "x y"):
                assert ((await ask(server, method, path, shown, host=host)).status, path) == (400, path)
            for line in ("Origin: https://evil.example", "Origin: null", "Sec-Fetch-Site: cross-site"):
                assert ((await ask(server, method, path, shown, line)).status, path) == (403, path)
            for lines in ((), ("Authorization: Bearer wrong",), (shown, shown)):
                status = 200 if path == "/health" else 401
                assert ((await ask(server, method, path, *lines)).status, path) == (status, path)


@pytest.mark.parametrize("kind", SERVERS)
async def test_what_a_body_may_not_be_is_refused_by_every_route_that_reads_one(kind: str) -> None:
    async with SERVERS[kind](token=TOKEN) as server:
        server._max_body = 300_000
        for method, path in routes(server):
            if method != "POST":
                continue
            lines = (
                f"Authorization: Bearer {TOKEN}",
                "Content-Type: application/json",
                "Accept: application/json, text/event-stream",
            )
            for body in (b"{", b"\xff\xfe", b'{"a":' * 50_000, b"[" * 50_000, b"7"):
                reply = await ask(server, method, path, *lines, body=body)
                assert (400 <= reply.status < 500, path) == (True, path)
                assert b"Traceback" not in reply.body
            assert ((await ask(server, method, path, *lines, body=b" " * 400_000)).status, path) == (413, path)
        assert (await ask(server, "GET", "/health")).status == 200


@pytest.mark.parametrize("kind", SERVERS)
async def test_two_of_a_kind_serve_at_once(kind: str) -> None:
    async with SERVERS[kind](token="first") as one, SERVERS[kind](token="second") as other:
        for server in (one, other):
            assert (await ask(server, "GET", "/health")).status == 200
            status = (await ask(server, "GET", "/nothing", "Authorization: Bearer first")).status
            assert (status == 401) is (server is other)
