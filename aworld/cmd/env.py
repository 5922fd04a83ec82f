"""`aworld env serve`: an environment over HTTP, for trainers on other machines."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING

from aworld.cmd.listening import listening
from aworld.cmd.wording import a
from aworld.core.exceptions import ConfigError

if TYPE_CHECKING:  # the command line starts fast: what a command needs is imported when it runs
    from aworld.environments.environment import Environment

_SERVE = (
    "Serve an environment to `RemoteEnvironment(url)` and to OpenEnv's clients: every client has an episode of its "
    "own. On any address but this machine's own, a token is asked for: --token, or better AWORLD_TOKEN, which nobody "
    "sees in a list of processes."
)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to the parser of `aworld`."""
    parser = commands.add_parser("env", help="serve an environment to trainers elsewhere")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    serve = actions.add_parser("serve", help="serve an environment over HTTP", description=_SERVE)
    serve.add_argument("environment", metavar="MODULE:ENVIRONMENT", help="such as my_tasks:shop, or a function of it")
    serve.add_argument("--host", default="127.0.0.1", help="where it listens (127.0.0.1)")
    serve.add_argument("--port", type=int, default=8100, help="where it listens (8100); 0 takes any")
    serve.add_argument("--token", metavar="SECRET", help="what clients must show (default: $AWORLD_TOKEN)")
    serve.add_argument("--max-episodes", type=int, default=1024, metavar="N", help="episodes at once (1024)")
    serve.add_argument(
        "--idle", type=float, default=600.0, metavar="S", help="seconds until an unused one expires (600)"
    )
    serve.add_argument("--store", metavar="URL", help="record the episodes here too (default: only the client does)")
    serve.set_defaults(run=_serve)


async def _serve(args: argparse.Namespace) -> int:
    from aworld.environments.serve import EnvironmentServer
    from aworld.runners.local import store_of

    server = EnvironmentServer(
        environment_of(args.environment),
        args.host,
        args.port,
        token=args.token or os.environ.get("AWORLD_TOKEN"),
        max_episodes=args.max_episodes,
        idle=args.idle,
        store=None if args.store is None else store_of(args.store),
    )
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    try:
        with listening(args.host, args.port):
            await server.start()
        print(f"aworld: {server.environment.name} at {server.url}", file=sys.stderr, flush=True)
        await stopped.wait()
    finally:
        await server.stop()
    return 0


def environment_of(reference: str) -> Environment:
    """The environment that `MODULE:NAME` refers to, or that the function of that name makes. Raises ConfigError."""
    from aworld.agents.references import find
    from aworld.environments.environment import Environment

    found = find(reference, "Environment")
    if callable(found) and not isinstance(found, Environment):
        found = found()
    if not isinstance(found, Environment):
        raise ConfigError(f"{reference!r} is {a(type(found).__name__)}; name an Environment.")
    return found
