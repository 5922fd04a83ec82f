"""`aworld answer`: tell a run that waits what it wants to know."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from aworld.cmd.trajectories import STORE_HELP, open_existing, resolve, short, store_option

if TYPE_CHECKING:  # the command line starts fast: what a command needs is imported when it runs
    from aworld.core.trajectory import Trajectory


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `answer` to the parser of `aworld`."""
    parser = commands.add_parser("answer", help="answer what a waiting run asks", description=_ABOUT)
    parser.add_argument("id", metavar="ID", help="id of the run, a piece of it, or `last`")
    parser.add_argument("text", metavar="TEXT", nargs="?", help="the answer; without it, the questions are shown")
    parser.add_argument("--question", metavar="QUESTION_ID", help="which question, when several are open")
    parser.add_argument("--store", metavar="URL", help=STORE_HELP)
    parser.add_argument("--json", action="store_true", help="print one JSON object, for scripts")
    parser.set_defaults(run=_answer)


_ABOUT = (
    "Answer what a waiting run asks. The answer is put on record at once; the run goes on with `aworld resume`, in "
    "this process or on another machine that has the store."
)


async def _answer(args: argparse.Namespace) -> int:
    from aworld.runner import Runners
    from aworld.runners.local import load

    store = open_existing(args.store)
    try:
        id = await resolve(store, args.id)
        if args.text is None:
            record = await load(id, store)
        else:
            record = await Runners.answer(id, args.text, question=args.question, store=store)
    finally:
        await store.close()
    _tell(record, args)
    return 0


def _tell(record: Trajectory, args: argparse.Namespace) -> None:
    still = record.open_questions()
    if args.json:
        import msgspec

        shown = [{"id": question.id, "question": question.question} for question in still]
        print(msgspec.json.encode({"id": record.id, "status": record.status, "questions": shown}).decode())
        return
    for question in still:
        print(f"{question.id}: {question.question}")
    if not still:
        code = " (with the --agent, --tool or --mcp that it had)" if record.toolsets or len(record.agents) > 1 else ""
        print(
            f"Nothing is left to answer; go on with: aworld resume {short(record.id)}{store_option(args.store)}{code}"
        )
