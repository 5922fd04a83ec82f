"""`aworld swarm show`: a team as a tree, or as Mermaid text for a document."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from aworld.cmd.wording import a
from aworld.core.exceptions import ConfigError

if TYPE_CHECKING:  # the command line starts fast: what a command needs is imported when it runs
    from aworld.core.agent.flow import Unit


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `swarm` and its commands to the parser of `aworld`."""
    parser = commands.add_parser("swarm", help="show a team of agents", description=__doc__)
    below = parser.add_subparsers(dest="command", required=True, metavar="{show}")
    show = below.add_parser("show", help="a team as a tree, or as a Mermaid flowchart")
    show.add_argument("unit", metavar="MODULE:OBJECT|FILE.yaml", help="such as my_agents:team or team.yaml")
    show.add_argument("--mermaid", action="store_true", help="Mermaid text, for a document")
    show.set_defaults(run=_show)


def is_file(text: str) -> bool:
    """Whether an argument names a YAML file rather than asking something. Raises ConfigError for a missing one."""
    if not text.endswith((".yaml", ".yml")) or (" " in text and not Path(text).exists()):
        return False
    if not Path(text).is_file():
        raise ConfigError(f"There is no file {text!r}.")
    return True


def named(reference: str) -> Unit:
    """The agent or team that `MODULE:OBJECT` or a YAML file names. Raises ConfigError."""
    from aworld.agents.files import load
    from aworld.agents.references import find
    from aworld.core.agent.flow import is_unit

    if is_file(reference):
        return load(Path(reference))
    unit = find(reference, "Agent or swarm")
    if not is_unit(unit):
        raise ConfigError(f"{reference!r} is {a(type(unit).__name__)}; name an agent or a swarm.")
    return unit


def _show(args: argparse.Namespace) -> int:
    from aworld.core.agent.picture import mermaid, tree

    unit = named(args.unit)
    print((mermaid if args.mermaid else tree)(unit), end="")
    return 0
