"""Sessions with MCP servers: who opens them, who shares them, and what happens when they die.

- A session is opened and closed by one task, its owner; callers wait for it and then speak over its connection.
- There is one session to a server for each event loop, whatever the number of agents and runs that name the same
  server; a stateful server has one for each run. It starts at the first need and stays open.
- One that dies is started again at the next call: at once after a long life, later and later while it fails.
- Sessions end with their loop, or by `close_sessions`.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias

from aworld.core.exceptions import ConfigError, ToolError
from aworld.core.message import Content
from aworld.core.model import ModelReply, ModelRequest
from aworld.core.tool.base import ToolContext
from aworld.tools.mcp_config import McpServerConfig, Resolved
from aworld.tools.mcp_process import ServerProcess

if TYPE_CHECKING:
    from aworld.tools.mcp_client import Link

logger = logging.getLogger(__name__)

Sample: TypeAlias = Callable[[ModelRequest, ToolContext], Awaitable[ModelReply]]
"""Asks a model for a server, during the call that the context is of."""
Elicit: TypeAlias = Callable[[str, dict[str, Any], ToolContext | None], Awaitable[dict[str, Any] | None]]
"""Asks a person for a server: its words, a JSON schema of the answer and the call it is for; None declines."""

BACKOFF = 0.5
"""Seconds before a server that could not be started is tried again; doubled each time."""
BACKOFF_MAX = 30.0
LONG_LIFE = 5.0
"""Seconds after which a server that dies is started again at once."""
FRESH = 5.0
"""Seconds for which a list of tools is believed, unless the server says that it has changed."""

_SDK = "aworld.tools.mcp_client"


class SessionLost(ToolError):
    """The server does not know the session any more, so it has not done what was asked."""


@dataclass(frozen=True, slots=True)
class McpToolInfo:
    """A tool as a server lists it."""

    name: str
    description: str
    schema: dict[str, Any]
    again: bool
    """Whether it may be called again when nobody knows what came of the first call."""


@dataclass(frozen=True)
class McpServer:
    """A server and who answers it. Equal ones share their sessions."""

    name: str
    conf: McpServerConfig = field(compare=False)
    sample: Sample | None = None
    elicit: Elicit | None = None
    written: str = ""
    """The configuration as text; by it servers are told apart."""

    @classmethod
    def of(cls, name: str, conf: McpServerConfig, sample: Sample | None, elicit: Elicit | None) -> McpServer:
        """A server; a model to ask is left out where the server may not ask it, so that it can be shared."""
        written = json.dumps(conf.model_dump(mode="json"), sort_keys=True)
        return cls(name, conf, sample if conf.sampling else None, elicit, written)


class McpSession:
    """A connection that comes and goes, with one owner at a time."""

    def __init__(self, server: McpServer, tools_changed: Callable[[], None]) -> None:
        self.link: Link | None = None
        """The open connection."""
        self._server = server
        self._name, self._conf = server.name, server.conf
        self._tools_changed = tools_changed
        self._loop = asyncio.get_running_loop()
        self._opening: asyncio.Future[Link] | None = None
        self._owner: asyncio.Task[None] | None = None
        self._closing = False
        self._failures = 0
        self._not_before = 0.0
        self._reason = ""
        self._resolved: Resolved | None = None
        self._process: ServerProcess | None = None

    async def open(self) -> Link:
        """The connection; opened if there is none, by whoever comes first. Raises ToolError and ConfigError."""
        if self.link is not None and not self.link.ended.is_set():
            return self.link
        if self._closing:  # nobody would close it again
            raise ToolError(f"MCP server {self._name!r} was closed.")
        if self._opening is None:
            if self._owner is not None:  # the last one is still at its end
                await asyncio.wait((self._owner,))
                return await self.open()
            wait = self._not_before - self._loop.time()
            if wait > 0:
                raise ToolError(f"MCP server {self._name!r} is down ({self._reason}). Tried again in {wait:.1f} s.")
            self._opening = self._loop.create_future()
            self._opening.add_done_callback(_seen)
            # An empty context: what the first caller holds in context variables is not the owner's.
            self._owner = self._loop.create_task(self._own(self._opening), context=contextvars.Context())
        return await asyncio.shield(self._opening)  # one caller's end is not the others'

    def drop(self, link: Link) -> None:
        """This connection is of no use any more."""
        link.ended.set()
        if self.link is link:
            self.link = None

    async def call(self, tool: str, arguments: dict[str, Any], context: ToolContext) -> Content:
        """Call a tool. Raises ToolError."""
        link = self.link
        if link is None or link.ended.is_set():
            link = await self.open()
        try:
            return await link.call(tool, arguments, context)
        except SessionLost:  # a server that was started anew; it has done nothing yet
            self.drop(link)
            return await (await self.open()).call(tool, arguments, context)

    async def close(self) -> None:
        """End the connection and whatever stands behind it."""
        self._closing = True
        if self.link is not None:
            self.link.ended.set()
        elif self._owner is not None and self._opening is not None:
            self._owner.cancel()
        if self._owner is not None:
            await asyncio.wait((self._owner,))

    async def _own(self, opening: asyncio.Future[Link]) -> None:
        """Hold the connection from its first to its last moment."""
        began = self._loop.time()
        reason: str | None = None
        self._resolved = self._process = None
        try:
            async with AsyncExitStack() as stack:
                async with asyncio.timeout(self._conf.timeout):
                    link = await self._open(stack)
                self.link = link
                self._opening = None
                opening.set_result(link)
                await link.ended.wait()
            reason = f"it ended{link.last_words()}"
        except ConfigError as wrong:
            opening.set_exception(wrong)
        except asyncio.CancelledError:
            if not opening.done():
                opening.set_exception(ToolError(f"MCP server {self._name!r} was closed while it started."))
            raise
        except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001 - a server may cause anything; callers are told
            reason = self._describe(error)
        finally:
            self.link = self._opening = self._owner = None
            self._take_note(reason, began, opened=opening.done())
            if not opening.done():
                opening.set_exception(ToolError(f"MCP server {self._name!r} cannot be started: {reason}."))

    async def _open(self, stack: AsyncExitStack) -> Link:
        self._resolved = resolved = Resolved(self._name, self._conf)
        if self._conf.type == "stdio":
            # Before the SDK is imported: the two take a second each, and can do so side by side.
            self._process = await ServerProcess.spawn(resolved)
            stack.push_async_callback(self._process.stop)
        sdk = await _sdk()
        return await stack.enter_async_context(sdk.Link(resolved, self._server, self._tools_changed, self._process))

    def _describe(self, error: BaseException) -> str:
        """Why there is no connection, in one line without keys."""
        if isinstance(error, TimeoutError) and not error.args:
            text = f"no answer within {self._conf.timeout:g} s (timeout)"
        elif isinstance(error, OSError) and self._process is None and self._conf.type == "stdio":
            text = f"{error.strerror or type(error).__name__}: {error.filename or self._conf.command}"
        else:
            sdk = sys.modules.get(_SDK)  # not there where it could not be imported
            text = sdk.reason_of(error) if sdk is not None else f"{type(error).__name__}: {error}"
        if self._resolved is not None:
            text = self._resolved.redact(text)
        words = self._process.last_words if self._process is not None else ""
        return f"{text}, {words}" if words else text

    def _take_note(self, reason: str | None, began: float, *, opened: bool) -> None:
        if reason is None or self._closing:
            return
        if opened:  # why it could not be started, the callers are told
            logger.warning("server=%s | %s", self._name, reason)
        now = self._loop.time()
        wait = BACKOFF * 2 ** min(self._failures, 10)
        if opened:
            if now - began > LONG_LIFE:
                self._failures = 0
            wait = 0.0 if self._failures == 0 else wait / 2
        self._failures += 1
        self._reason = reason
        self._not_before = now + min(wait, BACKOFF_MAX)


class McpHub:
    """All that one event loop has to do with one server."""

    def __init__(self, server: McpServer) -> None:
        self.server = server
        self._session: McpSession | None = None
        self._own_sessions: set[McpSession] = set()
        """Each of one run, with a stateful server."""
        self._leaving: set[asyncio.Task[None]] = set()
        self._tools: list[McpToolInfo] | None = None
        self._listed_at = 0.0
        self._listing: asyncio.Task[list[McpToolInfo]] | None = None
        self.unknown: set[str] = set()
        """Names that the configuration allows or denies and the server does not have, of which the log has told."""

    async def tools(self) -> list[McpToolInfo]:
        """The server's tools, as of `FRESH` seconds ago at most. Raises ToolError and ConfigError."""
        now = asyncio.get_running_loop().time()
        if self._tools is not None and now - self._listed_at < FRESH:
            return self._tools
        if self._listing is None:
            self._listing = asyncio.create_task(self._list(), context=contextvars.Context())
            self._listing.add_done_callback(_seen)
        listing = self._listing
        try:
            return await asyncio.shield(listing)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if listing.cancelled() and caller is not None and not caller.cancelling():
                raise ToolError(f"MCP server {self.server.name!r} was closed while it listed its tools.") from None
            raise

    @property
    def known(self) -> list[McpToolInfo] | None:
        """The tools as they were last listed, however long ago."""
        return self._tools

    async def _list(self) -> list[McpToolInfo]:
        try:
            session = self.session
            link = await session.open()
            limit = self.server.conf.timeout
            try:
                async with asyncio.timeout(limit):
                    self._tools = await link.list_tools()
            except SessionLost:
                session.drop(link)
                self._tools = await (await session.open()).list_tools()
            except TimeoutError:
                raise ToolError(f"MCP server {self.server.name!r} did not list its tools within {limit:g} s.") from None
            self._listed_at = asyncio.get_running_loop().time()
            return self._tools
        finally:
            self._listing = None

    @property
    def session(self) -> McpSession:
        """The session that all runs share; that of a stateful server only lists its tools."""
        if self._session is None:
            self._session = McpSession(self.server, self._tools_changed)
        return self._session

    def own_session(self) -> McpSession:
        """A session for one run: that which has listed the tools, if there is one, as this leaves no trace in a
        server's state."""
        session, self._session = self.session, None
        self._own_sessions.add(session)
        return session

    def leave(self, session: McpSession) -> None:
        """The run is over: its own session is closed, without anybody waiting for it."""
        self._own_sessions.discard(session)
        task = asyncio.create_task(session.close())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def _tools_changed(self) -> None:
        self._listed_at = float("-inf")

    async def close(self) -> None:
        """Close all sessions."""
        if self._listing is not None:
            self._listing.cancel()
        sessions = [*self._own_sessions, *((self._session,) if self._session is not None else ())]
        self._session = None
        self._own_sessions.clear()
        await asyncio.gather(*(session.close() for session in sessions), *self._leaving, return_exceptions=True)


_hubs: dict[asyncio.AbstractEventLoop, dict[McpServer, McpHub]] = {}
_lifetimes: dict[asyncio.AbstractEventLoop, AsyncGenerator[None, None]] = {}


async def hub_of(server: McpServer) -> McpHub:
    """The running loop's hub for a server."""
    loop = asyncio.get_running_loop()
    hubs = _hubs.get(loop)
    if hubs is None:
        # A loop that was closed without closing its generators has left its hubs here.
        for stale in [other for other in _hubs if other.is_closed()]:
            _hubs.pop(stale, None)
            _lifetimes.pop(stale, None)
        hubs = _hubs[loop] = {}
        lifetime = _lifetimes[loop] = _lifetime(loop, hubs)
        await anext(lifetime)
    hub = hubs.get(server)
    if hub is None:
        hub = hubs[server] = McpHub(server)
    return hub


def hubs_here() -> list[McpHub]:
    """The hubs of the running loop."""
    return list(_hubs.get(asyncio.get_running_loop(), {}).values())


async def close_sessions() -> None:
    """Close the sessions of the running loop, and end their servers. The next call opens new ones."""
    lifetime = _lifetimes.pop(asyncio.get_running_loop(), None)
    if lifetime is not None:
        await lifetime.aclose()


async def _lifetime(loop: asyncio.AbstractEventLoop, hubs: dict[McpServer, McpHub]) -> AsyncGenerator[None, None]:
    """Hold sessions open. `asyncio.run` and its kin close the generators of a loop before the loop, and with this one
    the sessions: nobody has to remember to close them."""
    try:
        yield
    finally:
        _hubs.pop(loop, None)
        _lifetimes.pop(loop, None)
        await asyncio.gather(*(hub.close() for hub in hubs.values()))


async def _sdk() -> Any:
    """The SDK, imported off the loop the first time: it takes most of a second."""
    module = sys.modules.get(_SDK)
    if module is not None and hasattr(module, "reason_of"):  # wholly imported
        return module
    from aworld.core.tool.threads import THREADS

    return await THREADS.run(lambda: import_module(_SDK))


def _seen(future: asyncio.Future[Any]) -> None:
    """Take note of an outcome that nobody may have waited for."""
    if not future.cancelled():
        future.exception()
