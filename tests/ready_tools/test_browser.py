"""A browser on a local site: what an agent reads and does, and where it cannot go."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from aworld.agents.llm_agent import Agent
from aworld.core.context.base import RunScope
from aworld.core.event import TaskInfo
from aworld.core.exceptions import ConfigError, ToolError
from aworld.core.message import Image, Text
from aworld.models import ScriptedModel
from aworld.models.doubles import call
from aworld.runner import Runners
from aworld.tools import browser, inside
from aworld.tools.addresses import AddressPolicy
from aworld.tools.browser import Browser, _process_here, _Tab, find_chromium
from aworld.tools.gate import Gate
from tests.ready_tools.test_sandboxed import at

if importlib.util.find_spec("playwright") is None:
    pytest.skip("Playwright is not installed (pip install playwright)", allow_module_level=True)
try:
    find_chromium()
except ConfigError as missing:
    pytest.skip(str(missing), allow_module_level=True)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def kept_open() -> AsyncIterator[None]:
    """One Chromium for all tests: a window of its own keeps it."""
    keeper = _Tab(AddressPolicy(), 20, (100, 100))
    await keeper.start()
    yield
    await keeper.close()
    assert not _process_here().is_alive()


HOME = """<title>The shop</title><h1>Fruit</h1>
<p>We sell <a href="/pears">pears</a> and <a href="/secret">more</a>.</p>
<p style="display:none">hidden <a href="/x">link</a></p><script>document.cookie = "a=1"</script>
<form action="/found"><label>What <input name="q" value="kiwi"></label><input type="hidden" name="h" value="1">
<select name="size"><option>small<option>large</select><input type="password" name="p" value="pw">
<input type="checkbox" name="fresh"> fresh <button>Search</button></form>
<button type="button" onclick="document.getElementById('more').textContent = 'It was clicked.'">Press</button>
<div id="more"></div>"""


CALL = """<p id=out>waiting</p><script>
const connection = new RTCPeerConnection({iceServers: [
    {urls: "stun:127.0.0.1:PORT"}, {urls: "turn:127.0.0.1:PORT?transport=udp", username: "words", credential: "x"}]});
connection.createDataChannel("x");
(async () => {
    await connection.setLocalDescription(await connection.createOffer());
    const other = new RTCPeerConnection();
    await other.setRemoteDescription(connection.localDescription);
    await other.setLocalDescription(await other.createAnswer());
    await connection.setRemoteDescription(other.localDescription);
    await connection.addIceCandidate({candidate: "candidate:1 1 udp 2130706431 127.0.0.1 PORT typ host", sdpMid: "0"});
    setTimeout(() => { document.getElementById("out").textContent = "tried"; }, 3000);
})().catch((error) => { document.getElementById("out").textContent = "no: " + error; });
</script>"""


class Shop:
    """127.0.0.1 stands for the public web, 127.0.0.2 for what is private."""

    port = 0

    def __init__(self) -> None:
        self.private: list[str] = []

    def url(self, path: str = "/", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    async def page(self, http: web.BaseRequest) -> web.StreamResponse:
        assert http.transport is not None
        if http.transport.get_extra_info("sockname")[0] != "127.0.0.1":
            self.private.append(http.path)
            return web.Response(text="SECRET", headers={"Access-Control-Allow-Origin": "*"})
        match http.path:
            case "/":
                text = HOME
            case "/found":
                text = f"<p>{json.dumps(dict(http.query))}</p>"
            case "/away":
                return web.Response(status=302, headers={"Location": self.url("/secret", "127.0.0.2")})
            case "/spy":
                inside = self.url("/secret", "127.0.0.2")
                text = f"""<p id=out>waiting</p><img src="{inside}"><iframe src="{inside}"></iframe><script>
                    fetch("{inside}").then((r) => r.text()).catch((e) => "no: " + e.name)
                        .then((t) => {{ document.getElementById("out").textContent = t; }});
                    window.open("{inside}");
                </script>"""
            case "/call":
                text = CALL.replace("PORT", http.query["port"])
            case "/busy":
                text = "<p id=n>0</p><script>setInterval(() => { n.textContent = +n.textContent + 1 }, 20)</script>"
            case "/stuck":
                text = "<p>stuck</p><script>onload = () => setTimeout(() => { for (;;); }, 500)</script>"
            case "/greedy":
                text = """<p id=out>waiting</p><script>
                    const held = [];
                    setTimeout(() => { for (let n = 0; n < 40; n++) held.push(new Uint8Array(100e6).fill(1)); }, 0);
                </script>"""
            case "/many":
                text = "<p>many</p><script>for (let n = 0; n < 30; n++) window.open('/cookie')</script>"
            case "/cookie":
                text = f"<p>cookies: {http.headers.get('Cookie')}</p>"
            case "/endless":
                text = "<p>" + "word " * 10_000
            case _:
                return web.Response(status=404, text="<p>Not here.", content_type="text/html")
        return web.Response(text=text, content_type="text/html")


@pytest_asyncio.fixture(loop_scope="module")
async def shop() -> AsyncIterator[Shop]:
    made = Shop()
    runner = web.ServerRunner(web.Server(made.page), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.port = runner.addresses[0][1]
    await web.TCPSite(runner, "127.0.0.2", made.port).start()
    yield made
    await runner.cleanup()


class Surfer:
    """Calls the tools of a browser, as a model does."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser
        self.runs: dict[str, RunScope] = {}

    def of(self, run: str) -> Browser:
        return self.runs.setdefault(run, RunScope(run, TaskInfo(run))).own(self.browser)

    async def __call__(self, what: str, /, run: str = "run", **arguments: Any) -> Any:
        tools = {tool.name: tool for tool in await self.of(run).list_tools()}
        return await tools[f"browser_{what}"].invoke(json.dumps(arguments), at(run))


@pytest_asyncio.fixture(loop_scope="module")
async def surfer() -> AsyncIterator[Surfer]:
    browser = Browser(allow_private=["127.0.0.1"], timeout=20)
    surfer = Surfer(browser)
    yield surfer
    for run in surfer.runs:
        await surfer.of(run).end_run()


async def test_a_page_is_read_and_used_by_numbers(surfer: Surfer, shop: Shop) -> None:
    text = await surfer("open", url=shop.url())
    assert (
        text
        == f"""The shop
{shop.url()}

# Fruit

We sell [1] pears and [2] more .

What [3: text "What" = "kiwi"] [4: select "size" chosen "small" of ["small","large"]] [5: password "p"] \
[6: checkbox "fresh" not checked] fresh [7: button] Search
[8: button] Press"""
    )
    assert "It was clicked." in await surfer("click", number=8)
    await surfer("type", number=4, text="large")
    await surfer("click", number=6)
    found = await surfer("type", number=3, text="plum & pear", submit=True)
    assert '{"q": "plum & pear", "h": "1", "size": "large", "p": "pw", "fresh": "on"}' in found
    assert "# Fruit" in await surfer("back")
    assert "Not here." in await surfer("click", number=2)
    picture = await surfer("screenshot")
    assert picture[0] == Text(shop.url("/secret"))
    assert isinstance(picture[1], Image)
    assert picture[1].url.startswith("data:image/jpeg;base64,")


async def test_what_cannot_be_done_is_told(surfer: Surfer, shop: Shop) -> None:
    with pytest.raises(ToolError, match="No page is open"):
        await surfer("read")
    for url in ("file:///etc/passwd", "chrome://version", "javascript:1"):
        with pytest.raises(ToolError, match="only http and https"):
            await surfer("open", url=url)
    assert (await surfer("open", url=shop.url("/nothing"))).startswith("[HTTP 404]\n")
    with pytest.raises(ToolError, match=r"There is no \[7\]"):
        await surfer("click", number=7)
    text = await surfer("open", url=shop.url("/endless"))
    assert text.endswith("[characters 0 to 15,000 of 49,999]")
    assert (await surfer("read", start=49_990)).count("word") == 2


async def test_without_a_page_before_it_stays(surfer: Surfer, shop: Shop) -> None:
    await surfer("open", url=shop.url())
    with pytest.raises(ToolError, match="no page before this one"):
        await surfer("back")
    assert "# Fruit" in await surfer("read")


async def test_a_page_that_goes_on_while_it_is_read(
    surfer: Surfer, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    await surfer("open", url=shop.url("/endless"))
    tab = surfer.of("run")._tab_of_run
    assert tab is not None
    evaluate, times = tab.page.evaluate, 2

    async def going_on(*arguments: Any) -> Any:
        nonlocal times
        if times:
            times -= 1
            await evaluate("to => { location = to; return new Promise(() => {}) }", shop.url())
        return await evaluate(*arguments)

    monkeypatch.setattr(tab.page, "evaluate", going_on)
    assert "# Fruit" in await surfer("read")
    times = 99
    with pytest.raises(ToolError, match="keeps opening other pages"):
        await surfer("read")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"timeout": -1}, "timeout=-1: a number, more than zero"),
        ({"size": 5}, "size=5 | give width and height in pixels, such as (1280, 900)"),
        ({"size": (0, 5)}, "size=(0, 5) | give width"),
    ],
)
async def test_bad_settings_are_refused_at_once(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(why)):
        Browser(**options)


async def test_private_addresses_are_refused_to_every_part_of_a_page(surfer: Surfer, shop: Shop) -> None:
    for url in (shop.url("/", "127.0.0.2"), shop.url("/away"), shop.url("/", "[::1]")):
        with pytest.raises(ToolError, match=r"Refused: .*may not be reached"):
            await surfer("open", url=url)
    await surfer("open", url=shop.url("/spy"))
    tab = surfer.of("run")._tab_of_run
    assert tab is not None
    await tab.go_on()
    page = tab._context.pages[0]  # pyright: ignore[reportOptionalMemberAccess]
    await page.wait_for_function("document.getElementById('out').textContent != 'waiting'")
    assert await page.evaluate("document.getElementById('out').textContent") == "no: TypeError"
    assert shop.private == []


class Packets(asyncio.DatagramProtocol):
    """What comes to a UDP socket."""

    def __init__(self) -> None:
        self.count = 0

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.count += 1


async def packets_of_a_call(surfer: Surfer, shop: Shop) -> int:
    loop = asyncio.get_running_loop()
    transport, packets = await loop.create_datagram_endpoint(Packets, local_addr=("127.0.0.1", 0))
    port = transport.get_extra_info("sockname")[1]
    await surfer("open", url=shop.url(f"/call?port={port}"))
    tab = surfer.of("run")._tab_of_run
    assert tab is not None
    async with asyncio.timeout(60):
        await tab.go_on()
        await tab.page.wait_for_function("document.getElementById('out').textContent != 'waiting'")
    assert await tab.page.text_content("#out") == "tried"
    transport.close()
    return packets.count


@pytest.mark.parametrize("way", ["own network", "shared network", "control"])
async def test_no_packet_of_a_page_goes_around_the_gate(
    way: str, shop: Shop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if way != "own network":  # as on a machine where none can be made
        program = Path(inside.__file__).with_name("chromium.py").read_text()
        lines = program.replace(
            "def private_listener() -> socket.socket:", "def private_listener():\n    raise OSError(1)"
        )
        (tmp_path / "chromium.py").write_text(lines)
        monkeypatch.setattr(browser.inside, "__file__", str(tmp_path / "__init__.py"))
    if way == "control":
        monkeypatch.setattr(browser, "_ARGUMENTS", ())
    process = browser._BrowserProcess()
    monkeypatch.setattr(browser, "_process_here", lambda: process)
    surfer = Surfer(Browser(allow_private=["127.0.0.1"], timeout=60))
    try:
        packets = await packets_of_a_call(surfer, shop)
    finally:
        await surfer.of("run").end_run()
    assert (packets > 0) == (way == "control")


def processes() -> list[Path]:
    """Those of Chromium that run on this machine for these tests."""
    ours: list[Path] = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"aworld-browser-" in (place / "cmdline").read_bytes() and b"type=" in (place / "cmdline").read_bytes():
                ours.append(place)
    return ours


async def test_it_has_no_rights_and_no_keys_of_ours(
    surfer: Surfer, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_API_KEY", "sk-secret")
    process = browser._BrowserProcess()
    monkeypatch.setattr(browser, "_process_here", lambda: process)
    own = Surfer(Browser(allow_private=["127.0.0.1"], timeout=60))
    before = set(processes())
    await own("open", url=shop.url())
    started = set(processes()) - before
    assert started
    for place in started:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            assert b"sk-secret" not in (place / "environ").read_bytes()
            status = dict(line.split(":\t", 1) for line in (place / "status").read_text().splitlines() if ":\t" in line)
            assert "0" not in status["Uid"].split()
            if b"type=renderer" in (place / "cmdline").read_bytes():
                assert b"--no-sandbox" not in (place / "cmdline").read_bytes()
                assert status["Seccomp"] == "2"
    folder = own.of("run")._tab_of_run._process._folder  # pyright: ignore[reportOptionalMemberAccess]
    await own.of("run").end_run()
    assert folder is not None
    assert not folder.exists()


async def test_between_calls_a_page_stands_still(surfer: Surfer, shop: Shop) -> None:
    def number(text: str) -> int:
        return int(text.splitlines()[-1])

    text = await surfer("open", url=shop.url("/busy"))
    before = number(await surfer("read"))
    loop = asyncio.get_running_loop()
    passed = asyncio.Event()
    loop.call_later(3, passed.set)
    await passed.wait()
    assert number(await surfer("read")) - before < 75, "it would count 150"
    assert isinstance((await surfer("screenshot"))[1], Image)
    assert text


async def test_a_page_that_never_rests_is_closed(surfer: Surfer, shop: Shop) -> None:
    await surfer("open", url=shop.url("/busy"))
    await surfer("open", url=shop.url("/stuck"))
    tab = surfer.of("run")._tab_of_run
    assert tab is not None
    await tab.go_on()
    await asyncio.wait_for(tab.pause(), 60)
    assert "# Fruit" in await surfer("open", url=shop.url())


async def test_a_page_has_so_much_memory_and_so_many_windows(surfer: Surfer, shop: Shop) -> None:
    await surfer("open", url=shop.url("/many"))
    assert len(surfer.of("run")._tab_of_run._context.pages) <= browser.MOST_PAGES  # pyright: ignore[reportOptionalMemberAccess]
    with contextlib.suppress(ToolError):
        await surfer("open", url=shop.url("/greedy"))
    with contextlib.suppress(ToolError):
        await surfer("read")
    for place in processes():
        with contextlib.suppress(OSError):
            resident = int((place / "statm").read_text().split()[1]) * 4096
            assert resident < 1.5 * browser.DATA_BYTES
    assert "# Fruit" in await surfer("open", run="other", url=shop.url())


async def test_without_leave_this_machine_is_private_too(shop: Shop) -> None:
    surfer = Surfer(Browser(timeout=20))
    for host in ("127.0.0.1", "localhost"):
        with pytest.raises(ToolError, match="Refused"):
            await surfer("open", url=shop.url("/", host))
    await surfer.of("run").end_run()
    everywhere = Surfer(Browser(allow_private=True, timeout=20))  # without the protection it is reached
    assert "SECRET" in await everywhere("open", url=shop.url("/away"))
    await everywhere.of("run").end_run()


async def test_runs_share_a_browser_and_nothing_else(surfer: Surfer, shop: Shop) -> None:
    await surfer("open", url=shop.url())
    assert "cookies: a=1" in await surfer("open", url=shop.url("/cookie"))
    assert "cookies: None" in await surfer("open", run="other", url=shop.url("/cookie"))
    assert len({id(surfer.of(run)._tab_of_run._process) for run in surfer.runs}) == 1  # pyright: ignore[reportOptionalMemberAccess]
    await surfer.of("run").end_run()
    assert "cookies: None" in await surfer("open", run="other", url=shop.url("/cookie"))
    with pytest.raises(ToolError, match="No page is open"):
        await surfer("read")


async def test_an_agent_surfs_and_its_window_closes_with_the_run(shop: Shop) -> None:
    browser = Browser(allow_private=["127.0.0.1"], timeout=20)
    script = [call("browser_open", url=shop.url()), call("browser_click", number=1), "done"]
    agent = Agent("surfer", model=ScriptedModel(script), tools=[browser])
    response = await Runners.run("Look at the pears.", agent)
    assert response.success, response.msg
    assert "We sell [1] pears" in response.trajectory[0]["observation"][0]["content"]
    assert "Not here." in response.trajectory[1]["observation"][0]["content"]
    assert browser._tab_of_run is None
    assert len(_process_here()._tabs) == 1, "that of the tests alone"


async def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWORLD_CHROMIUM", "/nowhere/chromium")
    with pytest.raises(ConfigError, match="AWORLD_CHROMIUM='/nowhere/chromium' is no program"):
        await Browser().list_tools()
    monkeypatch.delenv("AWORLD_CHROMIUM")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="apt install chromium"):
        await Browser().list_tools()


async def test_the_gate_speaks_no_more_than_it_must() -> None:
    gate = await Gate(AddressPolicy()).start()
    port = int(gate.url.rpartition(":")[2])
    for sent, answer in (
        (b"\x05\x01\x00" + b"\x05\x02\x00\x01\x7f\x00\x00\x01\x00\x50", b"\x05\x00\x05\x07"),  # BIND
        (b"\x05\x01\x00" + b"\x05\x01\x00\x09", b"\x05\x00\x05\x08"),  # an unknown kind of address
        (b"\x05\x01\x00" + b"\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50", b"\x05\x00\x05\x02"),  # 127.0.0.1
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        assert (await reader.read()).startswith(answer)
        writer.close()
    assert gate.take_refused() == ["127.0.0.1 is a private or reserved address, which may not be reached."]
    await gate.close()
