"""`aworld trajectories`: list, show, export and delete what was recorded."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import shlex
import sys
import time
from collections.abc import Coroutine
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from aworld.core.exceptions import ConfigError, StoreError, TaskError

if TYPE_CHECKING:  # the command line starts fast: what a command needs is imported when it runs
    from aworld.trajectory.query import Query
    from aworld.trajectory.store import TrajectoryStore
    from aworld.trajectory.summary import Summary

DEFAULT_STORE = ".aworld/trajectories.db"
"""Where the command line keeps its runs, under the working directory."""

STORE = f"sqlite:///{DEFAULT_STORE}"
"""The address of that place."""

STORE_HELP = f"address or path of the store (default: $AWORLD_STORE or {DEFAULT_STORE})"

STATUSES = ("finished", "failed", "timeout", "cancelled", "limit_reached", "interrupted", "waiting", "running")
_EXACT = {
    "group": "group id",
    "task": "task id",
    "session": "session id",
    "user": "user id",
    "agent": "name of the agent that began",
    "environment": "the environment whose episodes they are",
    "model": "the first model that was called",
}
FORMATS = ("rows", "openai", "sharegpt", "swift", "atif", "openenv", "parquet")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add `trajectories` and its commands to the parser of `aworld`; the arguments carry `run`."""
    parser = subparsers.add_parser(
        "trajectories", help="list, show, export or delete recorded runs", description=__doc__
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{list,show,export,delete}")
    listing = commands.add_parser("list", help="a table of runs, the newest first")
    _add_filters(listing)
    listing.add_argument(
        "--sort", "--order", dest="order", default="newest", metavar="ORDER",
        help="newest (default), oldest, best, worst, or a column such as cost; --sort=-cost has the largest first",
    )  # fmt: skip
    listing.add_argument("--limit", type=_natural, default=25, help="runs of one page (default: 25)")
    listing.add_argument("--offset", type=_natural, default=0, help="runs to leave out at the beginning")
    listing.add_argument("--after", metavar="ID", help="go on after this run: quick in the middle of a large store")
    listing.add_argument(
        "--facets", type=lambda text: text.split(","), metavar="FIELDS",
        help="instead of runs, how many have which status,agent,environment,model,version,labels.NAME",
    )  # fmt: skip
    show = commands.add_parser("show", help="one run: the conversation, tool calls, timings, tokens, rewards")
    show.add_argument("id", metavar="ID", help="id of the run, a piece of it, or `last`")
    show.add_argument("--full", action="store_true", help="cut nothing")
    export = commands.add_parser("export", help="write runs to a file, for training and analysis")
    export.add_argument("ids", metavar="ID", nargs="*", help="only these runs, or their beginnings")
    export.add_argument("--format", choices=FORMATS, default="rows", help="default: rows, one JSON line a step")
    export.add_argument("--output", "-o", default="-", metavar="FILE", help="default: standard output")
    _add_filters(export)
    export.add_argument("--limit", type=_natural, help="at most so many runs")
    delete = commands.add_parser("delete", help="delete runs for good")
    delete.add_argument("ids", metavar="ID", nargs="+", help="ids, their beginnings, or `last`")
    delete.add_argument("--forks", action="store_true", help="also what was forked from them")
    delete.add_argument("--yes", "-y", action="store_true", help="do not ask")
    for command in (listing, show, export, delete):
        command.add_argument("--store", metavar="URL", help=STORE_HELP)
        command.add_argument("--json", action="store_true", help="one JSON object a line, for scripts")
        command.set_defaults(run=run)
    return parser


def _add_filters(parser: argparse.ArgumentParser) -> None:
    filters = parser.add_argument_group("which runs")
    filters.add_argument(
        "--status", action="append", choices=STATUSES, metavar="STATUS", help=f"may be repeated: {', '.join(STATUSES)}"
    )
    for name, help in _EXACT.items():
        filters.add_argument(f"--{name}", help=help)
    filters.add_argument("--agent-version", metavar="DIGEST", help="digest of the agent's definition, or its beginning")
    filters.add_argument(
        "--label", action="append", type=_label, metavar="NAME=VALUE", help="may be repeated: all of them"
    )
    filters.add_argument("--min-score", type=float, metavar="X", help="score of at least this")
    filters.add_argument("--max-score", type=float, metavar="X", help="score of at most this")
    filters.add_argument(
        "--since", type=moment, metavar="TIME", help="2026-11-21, 2026-11-21T08:00, or 90m, 24h, 7d ago"
    )
    filters.add_argument("--until", type=moment, metavar="TIME", help="started before this time")


async def run(args: argparse.Namespace) -> int:
    """Carry out a command; returns the exit code."""
    commands = {"list": _list, "show": _show, "export": _export, "delete": _delete}
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal without UTF-8 shows `?` where it lacks a sign
            cast(Any, stream).reconfigure(errors="replace")
    store = open_existing(args.store)
    try:
        return await cast("Coroutine[Any, Any, int]", commands[args.command](store, args))
    finally:
        await store.close()


def store_option(address: str | None) -> str:
    """The option by which another command finds the store of this one, also for who has set no AWORLD_STORE."""
    if address is None or (address in (DEFAULT_STORE, STORE) and not os.environ.get("AWORLD_STORE")):
        return ""
    return f" --store {shlex.quote(address)}"


def open_existing(address: str | None) -> TrajectoryStore:
    """The store at `address`, in `AWORLD_STORE` or at the default place. Raises `ConfigError` if there is none."""
    from aworld.trajectory.sqlite import SQLiteStore
    from aworld.trajectory.store import open_store

    store = open_store(address or os.environ.get("AWORLD_STORE") or DEFAULT_STORE)
    if isinstance(store, SQLiteStore) and not Path(store.path).exists():
        raise ConfigError(f"no store at {store.path}; `aworld run` makes one, or give --store")
    return store


async def resolve(store: TrajectoryStore, name: str) -> str:
    """The id that is meant by an id, a piece of one, a task id, or `last`. Raises `TaskError`."""
    from aworld.trajectory.query import Query, Where

    if name == "last":
        newest = await store.query(Query(limit=1))
        if not newest:
            raise TaskError(f"the store {store.url} is empty")
        return newest[0].id
    piece = Query(where=(Where("id", "contains", name.removeprefix("…")),), limit=6)
    for query in (Query(ids=(name,)), Query(prefix=name, limit=6), Query(task=name, limit=6), piece):
        page = await store.query(query)
        if len(page) == 1:
            return page[0].id
        if page:
            named = ", ".join(summary.id for summary in page[:5]) + (", …" if len(page) > 5 else "")
            raise TaskError(f"{name!r} may be {named}; give more of the id")
    await store.read(name)  # says that there is none, and which is near
    return name


def short_id(id: str) -> str:
    """A random id by its first 8 digits, any other as it is."""
    return id[:8] if re.fullmatch("[0-9a-f]{32}", id) else id


async def _list(store: TrajectoryStore, args: argparse.Namespace) -> int:
    from msgspec.structs import replace

    from aworld.trajectory.query import MOST

    query = replace(query_of(args), order=args.order, limit=args.limit, offset=args.offset, after=args.after)
    if args.facets is not None:
        return await _facets(store, args, query)
    page = await store.query(query)
    if args.json:
        _print_json(*page)
        return 0
    from aworld.cmd.terminal import console
    from aworld.cmd.trajectory_view import table

    end = args.offset + len(page)
    total = await store.count(query, most=max(MOST, end + 1))
    out = console()
    if not page:
        out.print(f"No runs{' there' if total else ''}: {total} match in {store.url}", soft_wrap=True, highlight=False)
        return 0
    width = out.width if out.is_terminal else None
    with out.capture() if width is None else contextlib.nullcontext() as piped:
        out.print(table(page, width, time.time(), query.order.removeprefix("-")), crop=False)
    for line in piped.get().splitlines() if piped is not None else ():
        print(line.rstrip())
    count = f"{total:,}{'+' if total >= max(MOST, end + 1) else ''}"
    if args.after is not None:
        line = f"{len(page)} of {count}" + (f" · next page: --after {page[-1].id}" if page.next else "")
    else:
        more = f" · next page: --offset {end}" if end < total else ""
        line = f"{args.offset + 1}–{end} of {count}{more}"
    out.print(line, style="dim", highlight=False)
    return 0


async def _facets(store: TrajectoryStore, args: argparse.Namespace, query: Query) -> int:
    counts = await store.facets(args.facets, query)
    if args.json:
        _print_json(counts)
        return 0
    from aworld.cmd.terminal import console
    from aworld.cmd.trajectory_view import facet_table

    console().print(facet_table(counts))
    return 0


async def _show(store: TrajectoryStore, args: argparse.Namespace) -> int:
    from aworld.core.rows import rows
    from aworld.runners.local import load
    from aworld.trajectory.query import Query

    id = await resolve(store, args.id)
    trajectory = await load(id, store)
    if args.json:
        _print_json(*rows(trajectory))
        return 0
    from aworld.cmd.terminal import console
    from aworld.cmd.trajectory_view import show

    summaries: list[Summary] = await store.query(Query(ids=(id,)))
    show(console(), trajectory, summaries[0], full=args.full)
    return 0


_WHY_NONE = {
    True: "None of the chosen runs is complete and was captured with token ids, which parquet and openenv need: the "
    "server of the model has to return them (llm_capture_tokens=True asks for them). Text goes into --format openai, "
    "sharegpt, atif or rows.",
    False: "None of the chosen runs has a step that could be written.",
}


async def _export(store: TrajectoryStore, args: argparse.Namespace) -> int:
    from msgspec.structs import replace

    from aworld.trajectory.export import export

    ids = tuple([await resolve(store, id) for id in args.ids]) or None
    query = replace(query_of(args), ids=ids, limit=args.limit)
    if not await store.count(query):
        chosen = " ".join([*args.ids, *_filters(args)])
        why = f"no run matches {chosen}" if chosen else "there is no run"
        print(f"aworld: {why} in {store.url}; nothing was written.", file=sys.stderr)
        return 1

    def left_out(error: StoreError) -> None:
        print(f"aworld: left out: {error}", file=sys.stderr)

    count = await asyncio.to_thread(export, store, args.format, args.output, query, on_unreadable=left_out)
    if args.output != "-" and args.json:
        _print_json({"samples": count, "format": args.format, "output": args.output})
    elif args.output != "-":
        print(f"{count:,} sample{'' if count == 1 else 's'} in {args.output}", file=sys.stderr)
    if not count:
        print(f"aworld: {_WHY_NONE[args.format in ('parquet', 'openenv')]}", file=sys.stderr)
    return 0 if count else 1


async def _delete(store: TrajectoryStore, args: argparse.Namespace) -> int:
    ids = [await resolve(store, id) for id in args.ids]
    if not args.yes:
        if not sys.stdin.isatty():
            raise ConfigError("nobody can be asked here; give --yes to delete")
        print(
            f"Delete {', '.join(ids)}{' and what was forked from it' if args.forks else ''}? [y/N] ", end="", flush=True
        )
        if (await asyncio.to_thread(sys.stdin.readline)).strip().lower() not in ("y", "yes"):
            print("Nothing was deleted.")
            return 1
    gone = sum([await store.delete(id, forks=args.forks) for id in dict.fromkeys(ids)])
    if args.json:
        _print_json({"deleted": gone})
    else:
        print(f"{gone} deleted")
    return 0


def _filters(args: argparse.Namespace) -> list[str]:
    """The filter options that were given, as they were."""
    times = {name: getattr(args, name) for name in ("since", "until")}
    shown = {
        name: None if at is None else f"{datetime.fromtimestamp(at):%Y-%m-%dT%H:%M:%S}" for name, at in times.items()
    }
    plain = {name: getattr(args, name) for name in (*_EXACT, "agent_version", "min_score", "max_score")}
    labels = [("label", f"{name}={value}") for name, value in args.label or ()]
    options = [("status", status) for status in args.status or ()] + [*plain.items(), *labels, *shown.items()]
    return [f"--{name.replace('_', '-')} {value}" for name, value in options if value is not None]


def query_of(args: argparse.Namespace) -> Query:
    """The query of the filter options."""
    from aworld.trajectory.query import Query

    return Query(
        **{name: getattr(args, name) for name in _EXACT},
        version=args.agent_version,
        labels=dict(args.label or ()),
        status=tuple(args.status) if args.status else None,
        min_score=args.min_score,
        max_score=args.max_score,
        since=args.since,
        until=args.until,
    )


def _label(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not name or not sign:
        raise argparse.ArgumentTypeError(f"{text!r} is no label; give NAME=VALUE, such as problem=7")
    return name, value


def moment(text: str) -> float:
    """UNIX seconds of an ISO date or time (local unless it says its zone), or of so long ago: `90m`, `24h`, `7d`."""
    ago = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text)
    if ago:
        return time.time() - float(ago[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}[ago[2]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; give 2026-11-21, 2026-11-21T08:00 or 24h") from None


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of runs")
    return int(text)


def _print_json(*values: Any) -> None:
    """One JSON object a line, as all commands print them."""
    import msgspec

    for value in values:
        print(msgspec.json.encode(value).decode())
