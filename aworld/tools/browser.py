"""A browser for agents: open, read as text with links numbered, click, type, go back, look.

    agent = Agent("surfer", tools=[Browser()])

Needs Playwright (`pip install "playwright>=1.49"`) and a Chromium of the system: `AWORLD_CHROMIUM` names it where it
is not found.
One browser serves all runs of an event loop, each in a context of its own, without cookies of others; it ends with the
last of them. Private addresses are refused by a gate that every connection goes through.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import secrets
import shlex
import shutil
import socket
import sys
import tempfile
import weakref
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import asynccontextmanager
from copy import copy
from ipaddress import IPv4Address
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from aworld.core.checks import positive
from aworld.core.context.base import RunScope
from aworld.core.exceptions import ConfigError, ToolError
from aworld.core.extras import has
from aworld.core.message import Image, Part, Text
from aworld.core.tool.base import Tool
from aworld.core.tool.func_to_tool import tool
from aworld.tools import inside
from aworld.tools.addresses import AddressPolicy, Private
from aworld.tools.fetch import checked_url
from aworld.tools.gate import Gate
from aworld.tools.inside import source

if TYPE_CHECKING:  # an extra, imported when a page is opened
    from playwright.async_api import Browser as Chromium
    from playwright.async_api import BrowserContext, CDPSession, Locator, Page, Playwright

logger = logging.getLogger(__name__)

_PORT = 1080  # as in inside/chromium.py
SHOWN = 15_000
"""Characters of a page shown at once."""
LONGEST = 500_000
"""Characters of a page that are read."""
ANSWER_SECONDS = 5.0
"""Until a page between two calls has shown that it is at rest."""
SETTLING = 5
"""Attempts to read a page that goes on to another one meanwhile."""
_NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
MOST_PAGES = 10
"""Windows that a run may have open; more are closed as they open."""
DATA_BYTES = 1 << 30
"""Memory of its own that each process of the browser may have, such as that of a page."""
FIRST_USER, USERS = 0x70000000, 0x0FFF0000
"""User numbers that no range of the field is given, as those of sandboxes: a browser of root is one of them."""
_ARGUMENTS = (
    # Where Chromium has no network of its own, these two keep it from going around the gate, and from asking names.
    "--webrtc-ip-handling-policy=disable_non_proxied_udp",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.*",
    "--disable-dev-shm-usage",  # containers have little of it
)


class Browser:
    """The tools of a browser: `browser_open`, `_read`, `_click`, `_type`, `_back` and `_screenshot`.

    Args:
        allow_private: Which private addresses may be reached: True for all, or addresses and networks, such as
            `["127.0.0.1"]` for a site on this machine.
        timeout: Seconds that a page has to open.
        size: Width and height of the window in pixels.

    Raises:
        ConfigError: For a timeout or a size that is none; when a run starts and Playwright or Chromium is missing.
    """

    def __init__(
        self, *, allow_private: Private = False, timeout: float = 20.0, size: tuple[int, int] = (1280, 900)
    ) -> None:
        positive("timeout", timeout)
        sides: Any = size
        if not isinstance(sides, tuple | list) or [type(side) is int and side > 0 for side in size] != [True, True]:
            raise ConfigError(f"size={size!r} | give width and height in pixels, such as (1280, 900)")
        self._policy = AddressPolicy(allow_private)
        self._timeout = timeout
        self._size = size
        self._tab_of_run: _Tab | None = None

    def for_run(self, scope: RunScope) -> Browser:
        """The run's own: with a window of its own."""
        own_copy = copy(self)
        own_copy._tab_of_run = None
        return own_copy

    async def list_tools(self) -> Sequence[Tool]:
        """The tools. Raises `ConfigError` that says what to install."""
        find_chromium()
        if not has("playwright"):
            raise ConfigError('The browser needs Playwright; install it with pip install "playwright>=1.49"')
        return [
            self.browser_open, self.browser_read, self.browser_click,
            self.browser_type, self.browser_back, self.browser_screenshot,
        ]  # fmt: skip

    async def end_run(self) -> None:
        """Close the window, and the browser with the last one."""
        tab, self._tab_of_run = self._tab_of_run, None
        if tab is not None:
            await tab.close()

    @tool
    async def browser_open(self, url: str) -> str:
        """Open a web page and read it. Links, buttons and fields are numbered, like [3].

        Args:
            url: The address, with http or https.
        """
        address = checked_url(url)
        async with self._tab(open=True) as tab:
            status = await tab.open(address)
            return (f"[HTTP {status}]\n" if status >= 400 else "") + await tab.read_settled()

    @tool
    async def browser_read(self, start: int = 0) -> str:
        """Read the page that is open, anew or further down.

        Args:
            start: For the next part of a long page: the character to begin with.
        """
        async with self._tab() as tab:
            return await tab.read_settled(start)

    @tool
    async def browser_click(self, number: int) -> str:
        """Click a link, a button or a box by its number, and read what came of it.

        Args:
            number: The number in square brackets.
        """
        async with self._tab() as tab:
            await (await tab.element(number)).click()
            return await tab.read_settled()

    @tool
    async def browser_type(self, number: int, text: str, submit: bool = False) -> str:
        """Fill in a field, or choose an option of a list, by its number.

        Args:
            number: The number in square brackets.
            text: What to write, in place of what is there; or the option.
            submit: Whether to press Enter afterwards.
        """
        async with self._tab() as tab:
            element = await tab.element(number)
            if await element.evaluate("element => element.tagName") == "SELECT":
                await element.select_option(label=text)
            else:
                await element.fill(text)
            if submit:
                await element.press("Enter")
            return await tab.read_settled()

    @tool
    async def browser_back(self) -> str:
        """Go back to the page before, and read it."""
        async with self._tab() as tab:
            await tab.back()
            return await tab.read_settled()

    @tool
    async def browser_screenshot(self) -> list[Part]:
        """Look at the visible part of the page as a picture."""
        async with self._tab() as tab:
            data = await tab.page.screenshot(type="jpeg", quality=70)
            picture = Image(f"data:image/jpeg;base64,{base64.b64encode(data).decode()}")
            return [Text(tab.page.url), picture]

    @asynccontextmanager
    async def _tab(self, *, open: bool = False) -> AsyncGenerator[_Tab]:
        """The window, for one call at a time. What goes wrong in it is told in words for a model."""
        from playwright.async_api import Error

        tab = self._tab_of_run
        if tab is None:
            if not open:
                raise ToolError("No page is open. Use browser_open first.")
            tab = self._tab_of_run = _Tab(self._policy, self._timeout, self._size)
        async with tab.lock:
            try:
                await tab.start()
                await tab.go_on()
                try:
                    yield tab
                except asyncio.CancelledError:  # nobody waits for a page that may not even answer
                    tab.pausing = asyncio.create_task(tab.pause())
                    raise
                except BaseException:
                    await tab.pause()
                    raise
                await tab.pause()
            except Error as error:
                refused = tab.gate.take_refused()
                if refused:
                    raise ToolError(f"Refused: {refused[0]}") from error
                raise ToolError(f"The browser says: {error.message.splitlines()[0]}") from error


class _Tab:
    """The window of one run."""

    page: Page

    def __init__(self, policy: AddressPolicy, timeout: float, size: tuple[int, int]) -> None:
        self.gate = Gate(policy)
        self.lock = asyncio.Lock()
        self._timeout = timeout
        self._size = size
        self._context: BrowserContext | None = None
        self._paused: list[CDPSession] = []
        """That hold pages still."""
        self.pausing: asyncio.Task[None] | None = None
        """Of a call that was cancelled."""
        self._process: _BrowserProcess | None = None

    async def start(self) -> None:
        """Open the window, if it is not; anew where the browser has died."""
        if self._process is not None and self._process.is_alive():
            if not self.page.is_closed():
                return
            assert self._context is not None  # it is opened with the page
            self.page = await self._context.new_page()
            return
        await self.close()
        self.gate = Gate(self.gate.policy)
        process = _process_here()
        await process.enter(self)
        self._process = process
        self._context = await process.context(self.gate, self._size, self._timeout)
        self._context.on("page", self._opened)
        self.page = await self._context.new_page()

    def _opened(self, page: Page) -> Coroutine[Any, Any, None] | None:
        """A page opened another one: that is what a person would look at."""
        if self._context is not None and len(self._context.pages) > MOST_PAGES:
            return page.close()
        self.page = page
        return None

    async def pause(self) -> None:
        """Let the scripts of all pages stand still until the next call, as in a debugger.

        A page that does not even answer, since it computes for ever, is closed.
        """
        if self._context is not None and self._process is not None and self._process.is_alive():
            await asyncio.gather(*(self._pause(self._context, page) for page in self._context.pages))

    async def go_on(self) -> None:
        """Let them go on."""
        if self.pausing is not None:
            await asyncio.wait((self.pausing,))
            self.pausing = None
        paused, self._paused = self._paused, []
        await asyncio.gather(*(session.detach() for session in paused), return_exceptions=True)

    async def _pause(self, context: BrowserContext, page: Page) -> None:
        from playwright.async_api import Error

        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await asyncio.gather(*(worker.evaluate("0") for worker in page.workers), page.evaluate("0"))
                session = await context.new_cdp_session(page)
                self._paused.append(session)
                send: Any = getattr(session, "send")  # noqa: B009 - Playwright says no more of it
                await send("Debugger.enable")
                await send("Debugger.pause")
        except TimeoutError:
            await page.close()
        except Error as error:  # it has just been closed, or goes on to another page
            logger.debug("page=%s | %s", page.url, error.message)

    async def close(self) -> None:
        """Close the window."""
        (context, process), self._context, self._process = (self._context, self._process), None, None
        self._paused.clear()
        if self.pausing is not None:
            self.pausing.cancel()
            self.pausing = None
        try:
            if context is not None and process is not None and process.is_alive():
                await context.close()
        finally:
            await self.gate.close()
            if process is not None:
                await process.leave(self)

    async def open(self, address: str) -> int:
        """Go to a page. Returns the HTTP status, 0 when it is not known."""
        from playwright.async_api import Error

        for attempt in range(2):
            try:
                response = await self.page.goto(address, wait_until="domcontentloaded")
            except Error as error:
                if "interrupted by another navigation" not in error.message:
                    raise
                if "chrome-error:" not in error.message:
                    return 0  # the page itself went on to another one
                if attempt:
                    raise
                continue  # the error page of the address before came late
            return response.status if response is not None else 0
        raise AssertionError("the second attempt returns or raises")

    async def element(self, number: int) -> Locator:
        """What has this number in the page as it was last read."""
        element = self.page.locator(f'[data-aworld="{number}"]')
        if await element.count() != 1:
            raise ToolError(f"There is no [{number}] in the page. Use browser_read to see what there is.")
        return element

    async def back(self) -> None:
        """Go to the page before. Raises `ToolError`, and stays, when there is none but the empty one of the window."""
        assert self._context is not None  # it is opened with the page
        session: Any = await self._context.new_cdp_session(self.page)
        history = await session.send("Page.getNavigationHistory")
        await session.detach()
        before = history["entries"][: history["currentIndex"]]
        if not before or before[-1]["url"] == "about:blank":
            raise ToolError("There is no page before this one.")
        await self.page.go_back(wait_until="domcontentloaded")

    async def read_settled(self, start: int = 0) -> str:
        """Read when an action, or one that failed, may have begun to open another page."""
        from playwright.async_api import Error

        for _ in range(SETTLING):
            await self.page.wait_for_load_state("domcontentloaded")
            try:
                return await self.read(start)
            except Error as error:
                if "context was destroyed" not in error.message:
                    raise
        raise ToolError("The page keeps opening other pages. Use browser_read again in a moment.")

    async def read(self, start: int = 0) -> str:
        """The text of the page, from a character on."""
        content = cast("dict[str, str]", await self.page.evaluate(source("page", "js"), LONGEST))
        text = content["text"]
        if start < 0 or (start and start >= len(text)):
            raise ToolError(f"The page has {len(text):,} characters; start={start} is not among them.")
        part = text[start : start + SHOWN]
        notes = [f"Refused: {refused}" for refused in dict.fromkeys(self.gate.take_refused())]
        if len(part) < len(text):
            notes.append(f"[characters {start:,} to {start + len(part):,} of {len(text):,}]")
        heading = [line for line in (content["title"], self.page.url) if line]
        return "\n".join((*heading, "", part or "[the page has no text]", *notes))


class _BrowserProcess:
    """One Chromium of one event loop, open while a window of it is."""

    def __init__(self) -> None:
        self._playwright: Playwright | None = None
        self._browser: Chromium | None = None
        self._tabs: set[_Tab] = set()
        self._lock = asyncio.Lock()
        self._folder: Path | None = None
        self._server: asyncio.Server | None = None
        """Accepts what comes from the network of Chromium, where it has one of its own."""
        self._gates: weakref.WeakValueDictionary[str, Gate] = weakref.WeakValueDictionary()
        """By the address at which that network has them."""
        self._addresses = count(int(IPv4Address("127.1.0.1")))

    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._browser is not None and self._browser.is_connected()

    async def enter(self, tab: _Tab) -> None:
        """Start it for the first window."""
        async with self._lock:
            self._tabs.add(tab)
            if self.is_alive():
                return
            await self._stop()
            try:
                await self._launch()
            except BaseException:
                self._tabs.discard(tab)
                await self._stop()
                raise

    async def leave(self, tab: _Tab) -> None:
        """End it with the last window."""
        async with self._lock:
            self._tabs.discard(tab)
            if not self._tabs:
                await self._stop()

    async def context(self, gate: Gate, size: tuple[int, int], timeout: float) -> BrowserContext:
        """A window with storage of its own, which reaches the network through `gate` only."""
        assert self._browser is not None  # somebody entered
        if self._server is not None:
            address = str(IPv4Address(next(self._addresses)))
            self._gates[address] = gate
            proxy = f"socks5://{address}:{_PORT}"
        else:
            proxy = (await gate.start()).url
        context = await self._browser.new_context(
            proxy={"server": proxy, "bypass": "<-loopback>"},  # by default a browser goes to loopback directly
            viewport={"width": size[0], "height": size[1]},
            accept_downloads=False,
            service_workers="block",
        )
        context.set_default_timeout(timeout * 1000)
        return context

    async def _launch(self) -> None:
        from playwright.async_api import async_playwright

        self._folder, user = Path(tempfile.mkdtemp(prefix="aworld-browser-")), None
        home = self._folder / "home"
        home.mkdir(mode=0o700)
        if os.geteuid() == 0:
            user = FIRST_USER + secrets.randbelow(USERS)
            self._folder.chmod(0o711)  # to be passed through
            os.chown(home, user, user)
        with socket.socket(socket.AF_UNIX) as runtime:
            runtime.bind(str(self._folder / "socket"))
            os.chmod(self._folder / "socket", 0o600)
            runtime.listen()
            conf = {
                "chromium": shutil.which(find_chromium()), "socket": str(self._folder / "socket"), "home": str(home),
                "user": user, "data_bytes": DATA_BYTES,
            }  # fmt: skip
            program = self._folder / "chromium"
            words = [sys.executable, "-I", "-S", str(Path(inside.__file__).with_name("chromium.py")), json.dumps(conf)]
            program.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
            program.chmod(0o700)
            self._playwright = await async_playwright().start()
            self._browser = await self._playwright.chromium.launch(
                executable_path=program,
                chromium_sandbox=True,
                args=list(_ARGUMENTS),
                env={"HOME": str(home), "TMPDIR": str(home), "PATH": os.defpath, "LANG": "C.UTF-8"},
            )
            await self._take_listener(runtime)

    async def _take_listener(self, runtime: socket.socket) -> None:
        """The socket that listens in Chromium's own network; it was sent before Chromium began."""
        runtime.setblocking(False)
        with runtime.accept()[0] as launcher:
            launcher.setblocking(True)
            words, descriptors, *_ = socket.recv_fds(launcher, 1000, 1)
        if descriptors:
            self._server = await asyncio.start_server(self._accepted, sock=socket.socket(fileno=descriptors[0]))
        else:
            logger.warning(
                "browser | it shares the network of this machine, as it cannot be given one of its own (%s); pages are "
                "kept in by a proxy and switches of Chromium alone",
                words.decode(errors="replace"),
            )

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        gate = self._gates.get(writer.get_extra_info("sockname")[0])
        if gate is None:
            writer.close()
        else:
            await gate.accepted(reader, writer)

    async def _stop(self) -> None:
        browser, self._browser = self._browser, None
        playwright, self._playwright = self._playwright, None
        server, self._server = self._server, None
        folder, self._folder = self._folder, None
        try:
            if browser is not None and browser.is_connected():
                await browser.close()
        finally:
            if server is not None:
                server.close()
            if playwright is not None:
                await playwright.stop()
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)


_processes: weakref.WeakKeyDictionary[Any, _BrowserProcess] = weakref.WeakKeyDictionary()


def _process_here() -> _BrowserProcess:
    """The one of the running event loop: Playwright's objects belong to theirs."""
    return _processes.setdefault(asyncio.get_running_loop(), _BrowserProcess())


def find_chromium() -> str:
    """The path of the system's Chromium. Raises `ConfigError` that says how to get one."""
    named = os.environ.get("AWORLD_CHROMIUM")
    if named:
        if shutil.which(named) is None:
            raise ConfigError(f"AWORLD_CHROMIUM={named!r} is no program.")
        return named
    program = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if program is None:
        raise ConfigError(
            "The browser needs Chromium, and there is none on the PATH. Install it (Debian: apt install chromium), or "
            "name its program in AWORLD_CHROMIUM."
        )
    return program
