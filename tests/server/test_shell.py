"""The serving shell: who is let in, how much is read, how errors are said, and how it stops."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from aworld.core.exceptions import ConfigError
from aworld.server import Serving
from tests.server.conftest import Parts, ask, raw


async def test_a_program_serves_for_as_long_as_it_needs() -> None:
    parts = Parts()
    async with Serving(parts.router) as server, aiohttp.ClientSession() as http:
        assert server.url == f"http://127.0.0.1:{server.port}"
        async with http.get(f"{server.url}/typed/7") as reply:
            assert await reply.json() == {"number": 7}
        async with http.get(f"{server.url}/health") as reply:
            assert await reply.json() == {"status": "healthy"}
        async with http.get(f"{server.url}/openapi.json") as reply:
            assert "/typed/{number}" in (await reply.json())["paths"]
        async with http.ws_connect(f"{server.url}/ws") as ws:
            await ws.send_str("hello")
            assert await ws.receive_str(timeout=20) == "hello"
    with pytest.raises(OSError, match="Connect call failed"):
        await raw(server.port, b"")
    async with server:  # and again, on the port that it had
        assert (await ask(server, "GET", "/health")).status == 200


async def test_two_servers_at_once() -> None:
    async with Serving(Parts().router) as one, Serving(Parts().router, token="t0ken") as other:
        assert one.port != other.port
        assert (await ask(one, "GET", "/typed/1")).status == 200
        assert (await ask(other, "GET", "/typed/1")).status == 401


async def test_a_port_that_is_taken_is_named() -> None:
    async with Serving(Parts().router) as server:
        with pytest.raises(ConfigError, match=f"^port {server.port}: something listens there already; port 0") as why:
            await Serving(Parts().router, port=server.port).start()
        assert why.value.setting == "port"
        with pytest.raises(ConfigError, match=f"^--port {server.port}: .*; --port 0 takes any free one"):
            await Serving(Parts().router, port=server.port, command=True).start()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"port": 70_000}, "a port is 0 to 65535"),
        ({"host": "nowhere.invalid", "token": "t"}, "no address of that name"),
        ({"host": "192.0.2.1", "token": "t"}, "no address of this machine"),
    ]
    for options, text in wrong:
        with pytest.raises(ConfigError, match=text):
            await Serving(**options).start()


def test_other_addresses_ask_for_a_token_and_for_names() -> None:
    with pytest.raises(ConfigError, match="others can reach it there, so set token") as why:
        Serving(host="192.0.2.1")
    assert why.value.setting == "token"
    with pytest.raises(ConfigError, match="set AWORLD_TOKEN or --token"):
        Serving(host="0.0.0.0", command=True)
    with pytest.raises(ConfigError, match="every address of this machine; say by host_names"):
        Serving(host="::", token="t0ken")
    server = Serving(host="0.0.0.0", port=80, token="t0ken", host_names=["GPU7.example.org"])
    assert server.url == "http://gpu7.example.org:80"
    assert Serving(host="::1", port=80).url == "http://[::1]:80"


HOSTS = [
    "evil.example",
    "127.0.0.1.evil.example",
    "127.0.0.1@evil.example",
    "evil.example:80",
    "127.0.0.1/",
    "[::2]",
    "",
]


@pytest.mark.parametrize("host", HOSTS)
async def test_a_foreign_host_is_refused_on_every_method(host: str) -> None:
    async with Serving(Parts().router) as server:
        for method, path in (
            ("GET", "/typed/1"),
            ("POST", "/echo"),
            ("GET", "/stream"),
            ("GET", "/health"),
            ("PUT", "/"),
        ):
            reply = await raw(
                server.port, f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n".encode()
            )
            assert (reply.status, path) == (400, path)
            assert "Host is no name of this server" in reply.problem["detail"]


async def test_a_host_that_is_doubled_or_missing_is_refused_too() -> None:
    async with Serving(Parts().router) as server:
        for lines in (b"Host: 127.0.0.1\r\nHost: evil.example\r\n", b""):
            assert (await raw(server.port, b"GET /typed/1 HTTP/1.1\r\n" + lines + b"\r\n")).status == 400
        assert (await raw(server.port, b"GET /typed/1 HTTP/1.0\r\n\r\n")).status == 400


async def test_names_of_this_server_are_let_in() -> None:
    async with Serving(Parts().router, host_names=["Box.example"]) as server:
        for host in ("127.0.0.1", "localhost:1", "LOCALHOST", "[::1]:9", "box.example", "BOX.example:80"):
            assert (await ask(server, "GET", "/typed/1", host=host)).status == 200


async def test_pages_of_other_origins_are_refused() -> None:
    async with Serving(Parts().router, token="t0ken") as server:
        shown = "Authorization: Bearer t0ken"
        here = f"127.0.0.1:{server.port}"
        for line in (
            "Origin: http://evil.example",
            "Origin: null",
            "Origin: http://127.0.0.1:1",
            "Sec-Fetch-Site: cross-site",
        ):
            for method, path in (("POST", "/echo"), ("GET", "/stream"), ("GET", "/health")):
                reply = await ask(server, method, path, shown, line)
                assert (reply.status, line) == (403, line)
                assert "access-control-allow-origin" not in reply.headers
        for line in (
            f"Origin: http://{here}",
            f"Origin: https://{here}",
            "Sec-Fetch-Site: same-origin",
            "Sec-Fetch-Site: none",
        ):
            assert (await ask(server, "POST", "/echo", shown, line, body={"a": 1})).status == 200


async def test_the_token_is_asked_for_everywhere_but_for_health() -> None:
    async with Serving(Parts().router, token="t0ken") as server, aiohttp.ClientSession() as http:
        for lines in ((), ("Authorization: Bearer t0ke",), ("Authorization: Bearer t0ken2",), ("Authorization: t0ken",),
                      ("Authorization: Bearer t0ken", "Authorization: Bearer t0ken")):  # fmt: skip
            for path in (
                "/typed/1",
                "//health",
                "/health/",
                "/Health",
                "/%2e/health",
                "/nothing",
                "/openapi.json",
                "/stream",
            ):
                reply = await ask(server, "GET", path, *lines)
                assert (reply.status, path) == (401, path)
                assert reply.headers["www-authenticate"] == "Bearer"
                assert "t0ken" not in str(reply.problem)
        assert (await ask(server, "GET", "/health")).status == 200
        assert (await ask(server, "GET", "/typed/1", "Authorization: Bearer t0ken")).status == 200
        with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
            await http.ws_connect(f"{server.url}/ws")


async def test_errors_are_problems_that_tell_nothing_of_the_inside(caplog: pytest.LogCaptureFixture) -> None:
    async with Serving(Parts().router) as server:
        assert (await ask(server, "GET", "/nothing")).problem["title"] == "Not Found"
        assert (await ask(server, "DELETE", "/echo")).problem["status"] == 405
        wrong = (await ask(server, "GET", "/typed/seven")).problem
        assert wrong["errors"][0]["at"] == ["path", "number"]
        refused = (await ask(server, "GET", "/refused")).problem
        assert (refused["detail"], refused["code"]) == ("It is taken.", "TAKEN")
        broken = await ask(server, "GET", "/broken")
        assert broken.status == 500
        assert b"secret" not in broken.body
        assert b"Traceback" not in broken.body
        id = broken.problem["detail"].rpartition(" ")[2].strip(".")
        assert any(id in record.getMessage() and record.exc_info for record in caplog.records)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"{", "truncated"),
        (b"\xff", "JSON"),
        (b"[1]", "object"),
        (b'{"a":' * 100_000, "recursion"),
        (b"[" * 100_000, "object"),
    ],
)
async def test_a_body_that_is_no_such_json(body: bytes, text: str) -> None:
    async with Serving(Parts().router) as server:
        reply = await ask(server, "POST", "/echo", body=body)
        assert reply.status == 400
        assert text in reply.problem["detail"]


async def test_too_much_is_not_read() -> None:
    async with Serving(Parts().router, max_body=1000) as server:
        assert (await ask(server, "POST", "/echo", body={"a": "b" * 900})).status == 200
        reply = await ask(server, "POST", "/echo", body={"a": "b" * 1000})
        assert (reply.status, reply.problem["detail"][:35]) == (413, "The body has more than 1,000 bytes,")
        head = f"POST /echo HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in (b" " * 500, b" " * 501))
        chunks = b"Transfer-Encoding: chunked\r\n\r\n" + chunks
        assert (await raw(server.port, head.encode() + chunks)).status == 413
        assert (await ask(server, "GET", "/typed/1", "X: " + "y" * 100_000)).status == 431
        assert (await ask(server, "GET", "/typed/1")).status == 200
        async with aiohttp.ClientSession() as http, http.ws_connect(f"{server.url}/ws") as ws:
            await ws.send_str("x" * 1001)
            assert (await ws.receive(timeout=20)).data == 1009


async def test_a_client_that_stops_in_mid_request_is_let_go() -> None:
    async with Serving(Parts().router, patience=0.1) as server, asyncio.timeout(20):
        host = f"Host: 127.0.0.1:{server.port}\r\n".encode()
        reply = await raw(server.port, b"POST /echo HTTP/1.1\r\n" + host + b"Content-Length: 9\r\n\r\n{")
        assert reply.status == 408
        assert "stopped to arrive" in reply.problem["detail"]

        async def gives_up(start: bytes) -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(start)
            assert await reader.read() == b""
            writer.close()

        for start in (b"", b"GET / HT", b"GET /typed/1 HTTP/1.1\r\n" + host):
            await gives_up(start)
        # One that has said all it wants may wait, and so may one that is between two requests.
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /stream HTTP/1.1\r\n" + host + b"\r\n")
        await reader.readuntil(b"first")
        idle, keeper = await asyncio.open_connection("127.0.0.1", server.port)
        keeper.write(b"GET /typed/1 HTTP/1.1\r\n" + host + b"\r\n")
        await idle.readuntil(b"}")
        for _ in range(3):  # while others are closed
            await gives_up(b"")
        keeper.write(b"GET /typed/2 HTTP/1.1\r\n" + host + b"\r\n")
        await idle.readuntil(b'{"number":2}')
        assert not reader.at_eof()
        for each in (writer, keeper):
            each.close()


async def test_a_stream_ends_with_its_client() -> None:
    parts = Parts()
    async with Serving(parts.router) as server, aiohttp.ClientSession() as http, asyncio.timeout(20):
        async with http.get(f"{server.url}/stream") as reply:
            assert reply.headers["Content-Type"].startswith("text/event-stream")
            assert await reply.content.readuntil(b"\n\n") == b"data: first\n\n"
            assert parts.streams == 1
        reply.close()
        await parts.emptied.wait()
        parts.let_go.set()
        async with http.get(f"{server.url}/stream") as reply:
            assert await reply.read() == b"data: first\n\ndata: second\n\n"


async def test_a_stream_that_breaks_is_cut_and_not_ended(caplog: pytest.LogCaptureFixture) -> None:
    async with (
        Serving(Parts().router) as server,
        aiohttp.ClientSession() as http,
        http.get(f"{server.url}/half") as reply,
    ):
        with pytest.raises(aiohttp.ClientPayloadError):
            await reply.read()
    assert "a route raised" in caplog.text


async def test_a_server_that_stops_says_so_to_everybody() -> None:
    parts = Parts()
    server = Serving(parts.router, grace=0.1)
    async with asyncio.timeout(20), aiohttp.ClientSession() as http:
        await server.start()
        streams = [await http.get(f"{server.url}/stream") for _ in range(20)]
        for stream in streams:
            await stream.content.readuntil(b"\n\n")
        ws = await http.ws_connect(f"{server.url}/ws")
        slow = asyncio.create_task(ask(server, "GET", "/slow"))
        await parts.entered.wait()
        await server.stop()
        assert [await stream.read() for stream in streams] == [b"event: bye\ndata: bye\n\n"] * 20
        assert (await ws.receive()).data == 1012
        reply = await slow
        assert (reply.status, reply.problem["detail"]) == (503, "The server stops.")


async def test_an_answer_under_way_has_its_time() -> None:
    parts = Parts()
    server = Serving(parts.router, grace=20)
    await server.start()
    slow = asyncio.create_task(ask(server, "GET", "/slow"))
    await parts.entered.wait()
    stopping = asyncio.create_task(server.stop())
    parts.let_go.set()
    async with asyncio.timeout(10):
        assert (await slow).body == b'"late"'
        await stopping


async def test_a_thousand_requests_at_once() -> None:
    async with Serving(Parts().router) as server, asyncio.timeout(60):
        replies = await asyncio.gather(*(ask(server, "GET", f"/typed/{number}") for number in range(1000)))
    assert [reply.body for reply in replies] == [f'{{"number":{number}}}'.encode() for number in range(1000)]


SERVE = """
import asyncio, sys
from aworld.server import Serving
from tests.server.conftest import Parts

class Loud(Parts):
    async def slow(self, request):
        print("slow", flush=True)
        return await super().slow(request)

async def main():
    return await Serving(Loud().router).run(lambda url: print(url, flush=True))

sys.exit(asyncio.run(main()))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
async def test_a_signal_ends_a_server_with_fifty_open_streams_within_two_seconds(number: int, code: int) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVE, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(60), aiohttp.ClientSession() as http:
        url = (await process.stdout.readline()).decode().strip()
        streams = [await http.get(f"{url}/stream") for _ in range(50)]
        for stream in streams:
            await stream.content.readuntil(b"\n\n")
        busy = [asyncio.create_task(http.get(f"{url}/slow")) for _ in range(3)]
        assert [await process.stdout.readline() for _ in busy] == [b"slow\n"] * 3
        began = time.monotonic()
        process.send_signal(number)
        _, errors = await process.communicate()
        assert time.monotonic() - began < 2
        assert (process.returncode, errors) == (code, b"")
        assert [await stream.read() for stream in streams] == [b"event: bye\ndata: bye\n\n"] * 50
        assert [reply.status for reply in await asyncio.gather(*busy)] == [503] * 3


def test_the_package_imports_fastapi_only_when_it_serves() -> None:
    code = "import sys, aworld.server, aworld.cmd.main; print('fastapi' in sys.modules, 'uvicorn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "False False\n"
