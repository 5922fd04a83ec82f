"""`aworld env serve`: an environment over HTTP, for trainers on other machines."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from aworld.cmd.wording import a
from aworld.core.exceptions import ConfigError

if TYPE_CHECKING:  # the command line starts fast: what a command needs is imported when it runs
    from aworld.environments.environment import Environment

_SERVE = (
    "Serve an environment to `RemoteEnvironment(url)` and to OpenEnv's clients: every client has an episode of its "
    "own. On any address but this machine's own, a token is asked for: --token-file or AWORLD_TOKEN, which nobody sees "
    "in a list of processes, or --token."
)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to the parser of `aworld`."""
    parser = commands.add_parser("env", help="serve an environment to trainers elsewhere")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    serve = actions.add_parser("serve", help="serve an environment over HTTP", description=_SERVE)
    serve.add_argument("environment", metavar="MODULE:ENVIRONMENT", help="such as my_tasks:shop, or a function of it")
    serve.add_argument("--host", default="127.0.0.1", help="where it listens (127.0.0.1)")
    serve.add_argument("--port", type=int, default=8100, help="where it listens (8100); 0 takes any")
    add_shell(serve)
    serve.add_argument("--max-episodes", type=int, default=1024, metavar="N", help="episodes at once (1024)")
    serve.add_argument("--per-client", type=int, metavar="N", help="of them for one address (three quarters)")
    serve.add_argument(
        "--idle", type=float, default=600.0, metavar="S", help="seconds until an unused one expires (600)"
    )
    serve.add_argument("--store", metavar="URL", help="record the episodes here too (default: only the client does)")
    serve.set_defaults(run=_serve)


def add_shell(serve: argparse.ArgumentParser) -> None:
    """Add what every server over HTTP takes, beside its --host and --port."""
    serve.add_argument("--token", metavar="SECRET", help="what clients must show (default: $AWORLD_TOKEN)")
    serve.add_argument("--token-file", metavar="FILE", help="a file that holds it, which no list of processes shows")
    serve.add_argument(
        "--host-name", action="append", metavar="NAME", help="what clients call this machine, where --host does not say"
    )


def shell_options(args: argparse.Namespace) -> dict[str, Any]:
    """Those as arguments of a server."""
    token = args.token or os.environ.get("AWORLD_TOKEN") or None
    if args.token_file is not None:
        try:
            token = Path(args.token_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--token-file {args.token_file}: cannot be read: {error}.", setting="token") from error
        if not token or args.token:
            what = "--token names another one; give one of the two" if token else "the file is empty"
            raise ConfigError(f"--token-file {args.token_file}: {what}.", setting="token")
    return {"token": token, "host_names": args.host_name or (), "command": True}


async def _serve(args: argparse.Namespace) -> int:
    from aworld.runners.local import store_of
    from aworld.server.environment_server import EnvironmentServer

    server = EnvironmentServer(
        environment_of(args.environment),
        args.host,
        args.port,
        max_episodes=args.max_episodes,
        per_client=args.per_client,
        idle=args.idle,
        store=None if args.store is None else store_of(args.store),
        **shell_options(args),
    )
    name = server.environment.name
    return await server.run(lambda url: print(f"aworld: {name} at {url}", file=sys.stderr, flush=True))


def environment_of(reference: str) -> Environment:
    """The environment that `MODULE:NAME` refers to, or that the function of that name makes. Raises ConfigError."""
    from aworld.agents.references import find
    from aworld.environments.environment import Environment, Origin, parts_of

    value: Any = find(reference, "Environment")
    environment: Any = value() if callable(value) and not isinstance(value, Environment) else value
    if not isinstance(environment, Environment):
        raise ConfigError(f"{reference!r} is {a(type(environment).__name__)}; name an Environment.")
    if environment is not value and environment.origin is None:
        environment.origin = Origin(cast(Any, value), [], {}, parts_of(environment))
    return environment
