"""`aworld mcp serve`: agents and teams as an MCP server."""

from __future__ import annotations

import argparse
import sys

from aworld.cmd.env import add_shell, shell_options
from aworld.cmd.run import add_limits, add_store, limits_of
from aworld.cmd.swarm import named
from aworld.cmd.trajectories import store_option
from aworld.core.exceptions import ConfigError
from aworld.runners.local import store_of

_SERVE = (
    "Serve agents and teams to MCP clients: each is a tool that takes an input. Over standard input and output, as "
    "clients start it, or with --http at http://127.0.0.1:PORT/mcp. Every call is a run, and recorded: see `aworld "
    "trajectories`. An agent without a model of its own takes it from LLM_PROVIDER, LLM_MODEL_NAME, LLM_API_KEY and "
    "LLM_BASE_URL (also read from .env). With AWORLD_TOKEN set, HTTP clients must send it as a bearer token."
)
_HTTP_ONLY = ("host", "port", "host_name", "token")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to the parser of `aworld`."""
    parser = commands.add_parser("mcp", help="serve agents to MCP clients")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    serve = actions.add_parser("serve", help="serve agents as tools", description=_SERVE)
    serve.add_argument("units", nargs="+", metavar="MODULE:OBJECT|FILE.yaml", help="such as my_agents:writer")
    serve.add_argument("--http", action="store_true", help="serve streamable HTTP instead of standard input and output")
    serve.add_argument("--host", help="where --http listens (127.0.0.1)")
    serve.add_argument("--port", type=int, help="where --http listens (8000); 0 takes any")
    add_shell(serve)
    add_limits(serve)
    add_store(serve)
    serve.set_defaults(run=_serve)


async def _serve(args: argparse.Namespace) -> int:
    from aworld.server.mcp_server import MCPService, server_of  # the SDK takes a second to import

    if not args.http and (option := next((o for o in _HTTP_ONLY if getattr(args, o) is not None), None)):
        raise ConfigError(
            f"--{option.replace('_', '-')} says where --http listens, and without it nothing does: give --http too."
        )
    units = [(unit, named(unit)) for unit in args.units]
    server = server_of(units, store_of(args.store), limits_of(args), store_option(args.store))
    if not args.http:
        await server.run_stdio_async()
        return 0
    port = 8000 if args.port is None else args.port
    service = MCPService(server, args.host or "127.0.0.1", port, **shell_options(args))
    return await service.run(lambda url: print(f"aworld: MCP server at {url}/mcp", file=sys.stderr, flush=True))
