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
import difflib
import hashlib
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from aworld.config.errors import ConfigError
from aworld.core.exceptions import ToolError
from aworld.core.tool.base import Tool, ToolContext
from aworld.tools.mcp_config import Resolved, read_servers
from aworld.tools.mcp_session import Elicit, Hub, Listed, Sample, Server, hub_of, hubs_here

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
    if find_spec("mcp") is None:
        raise ConfigError("MCP servers need the MCP SDK: pip install 'aworld[mcp]'.")
    found = [Server.of(name, conf, sample, elicit) for name, conf in read_servers(mcp_config, servers).items()]
    return [McpToolset(found)] if found else []


class McpToolset:
    """The tools of some servers, in the order of the servers."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self.servers = tuple(servers)

    def sampled_by(self, sample: Sample) -> McpToolset:
        """The same servers, asking another model."""
        return McpToolset([Server.of(s.name, s.conf, sample, s.elicit) for s in self.servers])

    def check(self) -> None:
        """Look for the variables that the configuration names. Raises ConfigError for one that is not set."""
        for server in self.servers:
            if "${" in server.written:
                Resolved(server.name, server.conf)

    async def list_tools(self) -> Sequence[Tool]:
        """The tools of all servers that are up. Raises ToolError when none is, and ConfigError."""
        listed = await asyncio.gather(*(_listed(server) for server in self.servers), return_exceptions=True)
        down: dict[str, str] = {}
        up: list[tuple[Server, list[Listed]]] = []
        for server, found in zip(self.servers, listed):
            if isinstance(found, ToolError):
                down[server.name] = str(found)
            elif isinstance(found, BaseException):
                raise found
            else:
                up.append((server, [tool for tool in found if _offered(server, tool)]))
        if not up:
            raise ToolError(" ".join(down.values()))
        for name, why in down.items():
            logger.warning("server=%s | its tools are missing: %s", name, why)
        taken = _names([(server.name, tool.name) for server, tools in up for tool in tools])
        every = [(server, tool) for server, tools in up for tool in tools]
        missing = _Missing(down)
        return [McpTool(server, tool, name, missing) for (server, tool), name in zip(every, taken)]

    async def end_run(self, trajectory_id: str) -> None:
        """Close the sessions that the run had for itself."""
        for hub in hubs_here():
            if hub.server.conf.stateful and hub.server in self.servers:
                hub.end_run(trajectory_id)

    def __repr__(self) -> str:
        return f"<McpToolset of {', '.join(server.name for server in self.servers)}>"


class McpTool(Tool):
    """A tool of a server."""

    def __init__(self, server: Server, tool: Listed, name: str, missing: _Missing) -> None:
        self.name = name
        self.description = tool.description
        self.parameters = tool.schema
        self.timeout = server.conf.call_timeout
        self.idempotent = tool.again
        self._server = server
        self._tool = tool.name
        self._missing = missing

    async def invoke(self, arguments: str, context: ToolContext) -> Any:
        """Call it at the server; cancelling cancels there too. Raises ToolError."""
        try:
            values = msgspec.json.decode(arguments or "{}", type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeError) as error:
            raise ToolError(f"The arguments are not a JSON object: {error}") from None
        self._missing.tell(context)
        hub = await hub_of(self._server)
        return await hub.call(self._tool, values, context)


class _Missing:
    """Servers that were down when a run's tools were listed; readers of its stream are told once."""

    def __init__(self, down: dict[str, str]) -> None:
        self._down = down

    def tell(self, context: ToolContext) -> None:
        if self._down and context.notify is not None:
            for name, why in self._down.items():
                context.notify("mcp_server_down", {"server": name, "error": why})
            self._down = {}


async def _listed(server: Server) -> list[Listed]:
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


def _tell_unknown(hub: Hub, names: list[str]) -> None:
    """Say in the log, once, which names of the configuration the server does not have: it may get them yet."""
    conf = hub.server.conf
    strange: list[str] = []
    for setting, chosen in (("allowed_tools", conf.allowed_tools or []), ("denied_tools", conf.denied_tools)):
        for name in chosen:
            if name not in names and name not in hub.unknown:
                hub.unknown.add(name)
                near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
                strange.append(f"{name!r} in {setting}{f' (did you mean {near[0]!r}?)' if near else ''}")
    if strange:
        logger.warning("server=%s | it has no %s; its tools are %s", hub.server.name, ", no ".join(strange), names)


def _offered(server: Server, tool: Listed) -> bool:
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
    exact = Counter(asked for name, asked in zip(valid, wanted) if name == asked)
    # A name that several come to is for the tool whose own it is, or else for the only one that asked for just that.
    stays = [
        alike[name] == 1 or (name == asked and (asked == tool or exact[name] == 1))
        for name, asked, (_, tool) in zip(valid, wanted, tools)
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
