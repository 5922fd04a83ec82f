"""Tools of MCP servers: `mcp_tools` makes a toolset of the servers of a configuration.

The servers start when a run first needs their tools, all at once, and stay up for the runs that follow
(`aworld.tools.mcp_session`). A server that cannot be started is left out while another one can be: the log has a
warning, and readers of the stream a note with the first call of a tool of the others; with all of them down the run
fails and says why. One that dies later keeps its tools, and calling one starts it anew or says why not.

The schema of a tool goes to the model as the server wrote it. Its name stays too, unless another server's tool has it,
or providers refuse it: then it gets the server's name in front, or what is refused is replaced.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aworld.config.errors import ConfigError
from aworld.core.checks import nearest
from aworld.core.context.base import RunScope
from aworld.core.exceptions import ToolError
from aworld.core.extras import has
from aworld.core.tool.base import Tool, ToolContext
from aworld.core.tool.wrappers import decoded
from aworld.tools.mcp_config import Resolved, read_servers
from aworld.tools.mcp_session import Elicit, McpHub, McpServer, McpSession, McpToolInfo, Sample, hub_of

logger = logging.getLogger(__name__)

_NAME_LENGTH = 64
_REFUSED = re.compile(r"[^a-zA-Z0-9_-]")


def mcp_tools(
    mcp_config: Mapping[str, Any] | str | Path,
    servers: Iterable[str] | None = None,
    *,
    sample: Sample | None = None,
    elicit: Elicit | None = None,
) -> list[McpToolset]:
    """The tools of MCP servers, for `tools=[…]`.

    Args:
        mcp_config: `{"mcpServers": {name: {…}}}` as of `aworld.tools.mcp_config.McpServerConfig`, or a JSON file of it.
        servers: Names of those to use; None for all. Disabled ones are left out.
        sample: Answers the servers that may ask a model (`"sampling": true`). `Agent(mcp_servers=…)` sets its own.
        elicit: Answers what servers ask of people; without it they are declined.

    Returns:
        One toolset for all of them, or none: together they start at once, and give their tools different names.

    Raises:
        ConfigError: A setting is wrong, a server is unknown, or the SDK is not installed.
    """
    if not has("mcp"):
        raise ConfigError('MCP servers need the MCP SDK; install it with pip install "mcp>=2.3"')
    chosen = [McpServer.of(name, conf, sample, elicit) for name, conf in read_servers(mcp_config, servers).items()]
    return [McpToolset(chosen)] if chosen else []


class McpToolset:
    """The tools of some servers, in the order of the servers."""

    def __init__(self, servers: Sequence[McpServer]) -> None:
        self.servers = tuple(servers)
        self._sessions: dict[McpHub, McpSession] = {}
        """With stateful servers, of the run whose copy this is."""

    def for_run(self, scope: RunScope) -> McpToolset:
        """The run's own: it has sessions of its own with stateful servers, and shares the others with all runs."""
        stateful = any(server.conf.stateful for server in self.servers)
        return McpToolset(self.servers) if stateful else self

    def sampled_by(self, sample: Sample) -> McpToolset:
        """The same servers, asking another model."""
        return McpToolset([McpServer.of(s.name, s.conf, sample, s.elicit) for s in self.servers])

    def check(self) -> None:
        """Look for the variables that the configuration names. Raises ConfigError for one that is not set."""
        for server in self.servers:
            if "${" in server.written:
                Resolved(server.name, server.conf)

    async def list_tools(self) -> Sequence[Tool]:
        """The tools of all servers that are up. Raises ToolError when none is, and ConfigError."""
        listed = await asyncio.gather(*(_listed(server) for server in self.servers), return_exceptions=True)
        down: dict[str, str] = {}
        up: list[tuple[McpServer, list[McpToolInfo]]] = []
        for server, tools in zip(self.servers, listed):
            if isinstance(tools, ToolError):
                down[server.name] = str(tools)
            elif isinstance(tools, BaseException):
                raise tools
            else:
                up.append((server, [tool for tool in tools if _offered(server, tool)]))
        if not up:
            raise ToolError(" ".join(down.values()))
        for name, why in down.items():
            logger.warning("server=%s | its tools are missing: %s", name, why)
        taken = _names([(server.name, tool.name) for server, tools in up for tool in tools])
        every = [(server, tool) for server, tools in up for tool in tools]
        missing = _Missing(down)
        return [McpTool(self, server, tool, name, missing) for (server, tool), name in zip(every, taken)]

    async def session(self, server: McpServer) -> McpSession:
        """The session in which tools of a server are called."""
        hub = await hub_of(server)
        if not server.conf.stateful:
            return hub.session
        if hub not in self._sessions:
            self._sessions[hub] = hub.own_session()
        return self._sessions[hub]

    async def end_run(self) -> None:
        """Close the sessions that the run had for itself, without waiting for their servers to end."""
        while self._sessions:
            hub, session = self._sessions.popitem()
            hub.leave(session)

    def __repr__(self) -> str:
        return f"<McpToolset of {', '.join(server.name for server in self.servers)}>"


class McpTool(Tool):
    """A tool of a server."""

    def __init__(self, toolset: McpToolset, server: McpServer, tool: McpToolInfo, name: str, missing: _Missing) -> None:
        self.name = name
        self.description = tool.description
        self.parameters = tool.schema
        self.timeout = server.conf.call_timeout
        self.idempotent = tool.again
        self._toolset = toolset
        self._server = server
        self._tool = tool.name
        self._missing = missing

    async def invoke(self, arguments: str, context: ToolContext) -> Any:
        """Call it at the server; cancelling cancels there too. Raises ToolError."""
        values = decoded(arguments)
        self._missing.tell(context)
        session = await self._toolset.session(self._server)
        return await session.call(self._tool, values, context)


class _Missing:
    """Servers that were down when a run's tools were listed; readers of its stream are told once."""

    def __init__(self, down: dict[str, str]) -> None:
        self._down = down

    def tell(self, context: ToolContext) -> None:
        if self._down and context.notify is not None:
            for name, why in self._down.items():
                context.notify("mcp_server_down", {"server": name, "error": why})
            self._down = {}


async def _listed(server: McpServer) -> list[McpToolInfo]:
    """A server's tools; those of earlier when it is down now."""
    hub = await hub_of(server)
    try:
        tools = await hub.tools()
    except ToolError as error:
        if hub.known is None:
            raise
        logger.warning("server=%s | its tools are those of earlier: %s", server.name, error)
        return hub.known
    _tell_unknown(hub, [tool.name for tool in tools])
    return tools


def _tell_unknown(hub: McpHub, names: list[str]) -> None:
    """Say in the log, once, which names of the configuration the server does not have: it may get them yet."""
    conf = hub.server.conf
    strange: list[str] = []
    for setting, chosen in (("allowed_tools", conf.allowed_tools or []), ("denied_tools", conf.denied_tools)):
        for name in chosen:
            if name not in names and name not in hub.unknown:
                hub.unknown.add(name)
                near = nearest(name, names)
                strange.append(f"{name!r} in {setting}{f' (did you mean {near!r}?)' if near else ''}")
    if strange:
        logger.warning("server=%s | it has no %s; its tools are %s", hub.server.name, ", no ".join(strange), names)


def _offered(server: McpServer, tool: McpToolInfo) -> bool:
    allowed, denied = server.conf.allowed_tools, server.conf.denied_tools
    return (allowed is None or tool.name in allowed) and tool.name not in denied


def _names(tools: Sequence[tuple[str, str]]) -> list[str]:
    """Names for a model, of (server, tool): the tool's own where it is valid and nobody else's.

    The same set of tools gives the same names.
    """
    plain = Counter(tool for _, tool in tools)
    wanted = [tool if plain[tool] == 1 else f"{server}_{tool}" for server, tool in tools]
    valid = [_valid(name, name) for name in wanted]
    alike = Counter(valid)
    exact = Counter(name for name, wish in zip(valid, wanted) if name == wish)
    # A name that several come to is for the tool whose own it is, or else for the only one that asked for just that.
    stays = [
        alike[name] == 1 or (name == wish and (wish == tool or exact[name] == 1))
        for name, wish, (_, tool) in zip(valid, wanted, tools)
    ]
    taken = {name for name, keep in zip(valid, stays) if keep}
    names: list[str] = []
    for name, keep, (server, tool) in zip(valid, stays, tools):
        whole = f"{server}/{tool}"
        while not keep and (name := _valid(f"{server}_{tool}", whole, always=True)) in taken:
            whole += "/"  # "a/b" has a tool "c", and "a" a tool "b/c"
        taken.add(name)
        names.append(name)
    return names


def _valid(name: str, whole: str, *, always: bool = False) -> str:
    """The name as every provider takes it; what had to be cut, or must differ, ends with a digest of the `whole`."""
    clean = _REFUSED.sub("_", name)
    if 0 < len(clean) <= _NAME_LENGTH and not always:
        return clean
    digest = hashlib.sha256(whole.encode()).hexdigest()[:8]
    return f"{clean[: _NAME_LENGTH - 9]}_{digest}"
