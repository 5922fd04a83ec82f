"""`aworld diff` and `aworld apply`: what a run changed in its copy of a folder, shown and brought back."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from aworld.cmd.trajectories import STORE_HELP, open_existing, resolve
from aworld.cmd.wording import counted
from aworld.core.exceptions import ConfigError, TaskError

if TYPE_CHECKING:  # the command line starts fast: what a command needs is imported when it runs
    from aworld.sandbox.changes import FileChange


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `diff` and `apply` to the parser of `aworld`."""
    diff = commands.add_parser("diff", help="what a run changed in its copy of a folder", description=_DIFF)
    diff.set_defaults(run=_diff)
    apply = commands.add_parser("apply", help="bring back what a run changed in its copy", description=_APPLY)
    apply.add_argument("--to", metavar="DIR", help="another folder than that of which the run had a copy")
    apply.set_defaults(run=_apply)
    for command in (diff, apply):
        command.add_argument("id", metavar="ID", help="id of the run, its beginning, or `last`")
        command.add_argument("--store", metavar="URL", help=STORE_HELP)


_DIFF = "Show what a run changed in its copy of a folder, as a unified diff: also of one that failed, or still runs."
_APPLY = (
    "Write what a run changed in its copy into the folder: all of it or nothing. Where a file was changed meanwhile, "
    "nothing is written, the difference is shown, and it ends with 1."
)


async def _changes(args: argparse.Namespace) -> tuple[str, dict[str, list[FileChange]]]:
    from aworld.core.context.base import NOT_KEPT
    from aworld.core.event import Noted
    from aworld.runners.local import load
    from aworld.sandbox.changes import changes_of

    store = open_existing(args.store)
    try:
        record = await load(await resolve(store, args.id), store)
        for event in record.events:
            if isinstance(event, Noted) and event.name == NOT_KEPT:
                print(f"aworld: not kept: {event.data['name']}: {event.data['error']}", file=sys.stderr)
        return record.id, await changes_of(record, store)
    finally:
        await store.close()


async def _diff(args: argparse.Namespace) -> int:
    from aworld.cmd.terminal import console

    id, changes = await _changes(args)
    if not changes:
        print(f"aworld: run {id} has changed no files of a folder.", file=sys.stderr)
    text = "".join(change.diff() for folder in changes.values() for change in folder)
    out = console()
    if not out.is_terminal:
        sys.stdout.write(text)
        return 0
    for line in text.split("\n")[:-1]:
        style = next((style for sign, style in _STYLES.items() if line.startswith(sign)), None)
        out.print(line.removesuffix("\r"), style=style, markup=False, soft_wrap=True)
    return 0


_STYLES = {"diff ": "bold", "+++": "bold", "---": "bold", "+": "green", "-": "red", "@@": "cyan"}


async def _apply(args: argparse.Namespace) -> int:
    from aworld.sandbox.changes import apply

    id, changes = await _changes(args)
    if args.to in changes:
        changes = {args.to: changes[args.to]}
    if args.to is not None and len(changes) > 1:
        raise ConfigError(f"--to names one folder, but run {id} has changed copies of {', '.join(changes)}.")
    places = {Path(args.to or folder): files for folder, files in changes.items()}
    for folder in places:
        if args.to is None and not folder.resolve().is_relative_to(Path.cwd()):  # a record may be a stranger's
            raise ConfigError(
                f"Run {id} says that it had a copy of {str(folder)!r}, which is not in the working folder; nothing was "
                f"written. See `aworld diff {id}`, and go there or give --to {shlex.quote(str(folder))}."
            )
        if not folder.is_dir():
            raise ConfigError(f"There is no folder {str(folder)!r}; name another with --to.")
    try:
        names = [name for folder, files in places.items() for name in apply(files, folder)]
    except TaskError as refused:
        print(f"aworld: {refused}", file=sys.stderr)
        return 1
    if not names:
        print(f"Nothing to do: the files are as run {id} left them." if changes else f"Run {id} has changed no files.")
        return 0
    print(f"{counted(len(names), 'file')} written or deleted in {', '.join(map(str, places))}")
    return 0
