"""`aworld answer`: tell a run that waits what it wants to know."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from aworld.cmd.run import add_agent, add_store, again, go_on
from aworld.cmd.trajectories import open_existing, resolve, short_id, store_option

if TYPE_CHECKING:  # the command line starts fast: what a command needs is imported when it runs
    from aworld.core.trajectory import Trajectory


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `answer` to the parser of `aworld`."""
    parser = commands.add_parser("answer", help="answer what a waiting run asks", description=_ABOUT)
    parser.add_argument("id", metavar="ID", help="id of the run, a piece of it, or `last`")
    parser.add_argument("text", metavar="TEXT", nargs="?", help="the answer; without it, the questions are shown")
    parser.add_argument("--question", metavar="QUESTION_ID", help="which question, when several are open")
    parser.add_argument("--json", action="store_true", help="print one JSON object, for scripts")
    add_agent(parser)
    add_store(parser)
    parser.set_defaults(run=_answer)


_ABOUT = (
    "Answer what a waiting run asks. The answer is put on record at once; the run goes on with `aworld resume`, in "
    "this process or on another machine that has the store, or right here where an option names or describes its agent."
)


def _answer(args: argparse.Namespace) -> int:
    from aworld.runners.blocking import run_blocking

    record = run_blocking(_recorded(args))
    described = again(args) != store_option(args.store)
    if args.text is not None and described and not record.open_questions():
        return go_on(args)
    _tell(record, args)
    return 0


async def _recorded(args: argparse.Namespace) -> Trajectory:
    from aworld.runner import Runners
    from aworld.runners.local import load

    store = open_existing(args.store)
    try:
        id = await resolve(store, args.id)
        if args.text is None:
            return await load(id, store)
        return await Runners.answer(id, args.text, question=args.question, store=store)
    finally:
        await store.close()


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
        code = (
            " (with the --agent, --tool, --mcp, --sandbox or --approve that it had)"
            if record.toolsets or len(record.agents) > 1
            else ""
        )
        going_on = f"aworld resume {short_id(record.id)}{store_option(args.store)}"
        print(f"Nothing is left to answer; go on with: {going_on}{code}")
