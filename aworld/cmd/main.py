"""The command line: `aworld COMMAND`, see `aworld --help` for the commands.

Every error is a line `aworld: ...` on standard error. Exit codes: see `_CODES`.
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from aworld import __version__
from aworld.cmd import answer, chat, diff, env, init, mcp, rollout, run, swarm, train, trajectories
from aworld.cmd.terminal import clean_terminals
from aworld.cmd.wording import worded
from aworld.core.exceptions import AWorldError, ConfigError, TaskError
from aworld.runners.blocking import run_blocking


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    with clean_terminals():
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    _read_env_file()  # before the options, whose defaults it may set
    parser = parser_of_commands()
    if not (sys.argv[1:] if argv is None else argv):
        print(_BEGIN, end="")
        return 0
    args = parser.parse_args(argv)
    sys.path.insert(0, os.getcwd())  # so that --tool finds the modules of the working directory
    try:
        outcome = args.run(args)
        code: int = run_blocking(outcome) if inspect.iscoroutine(outcome) else outcome
        sys.stdout.flush()
    except (ConfigError, TaskError) as misuse:
        print(f"aworld: {worded(misuse, args)}", file=sys.stderr)
        return 2
    except AWorldError as error:
        print(f"aworld: {worded(error, args)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("aworld: cancelled; what was done is in the store", file=sys.stderr)
        return 130
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to print has no place to go
        if isinstance(error, BrokenPipeError):  # the reader of a pipe has seen enough
            return 0
        print(f"aworld: {error.filename or 'standard output'}: {error.strerror or error}", file=sys.stderr)
        return 1
    return code


_BEGIN = """\
aworld: agents that are run, recorded, scored and made better. Where to begin:

  aworld chat --model local                    talk with a small model in this process, without a key
  aworld init my_project                       a folder with an agent, an environment and tests
  aworld run "What is 17 * 23?"                one question; the model is named by LLM_MODEL_NAME, or --model
  aworld run --sandbox local --approve shell "fix the test"     on a copy of this folder, see aworld diff
  aworld trajectories show last                what the model was sent and said, step by step
  aworld rollout aworld.environments.parity:parity --model embedded --tasks 20 --samples 4
  aworld train aworld.environments.parity:parity     a policy that learns, on one core

aworld --help lists all commands, aworld COMMAND --help what each takes.
"""

_CODES = (
    "Exit codes: 0 all ended well; 1 something did not, and its status or error says what; 2 wrong usage or settings; "
    "3 a run waits for an answer (see aworld answer); 130 Ctrl-C."
)

_LATER = {
    "web": "aworld chat talks with an agent in the terminal, aworld trajectories shows what it did.",
    "api_server": "aworld mcp serve offers an agent to other programs, aworld env serve an environment.",
    "eval": "aworld rollout measures an agent on an environment, with intervals.",
    "evolve": "aworld train makes a policy better on an environment.",
    "synthesize": "aworld trajectories export writes training data out of recorded runs.",
    "gateway": "aworld run and aworld chat record what an agent of your own does.",
}
"""Commands of the plan, and what there is in their place."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with options as every other error is said."""

    def error(self, message: str) -> NoReturn:
        word = re.search("COMMAND: invalid choice: '(.*?)'", message)
        if word is not None and word[1] in _LATER:
            self.exit(2, f"aworld: {word[1]} is not built yet; until then: {_LATER[word[1]]}\n")
        self.exit(2, f"{self.format_usage()}aworld: {message}\n")


def parser_of_commands() -> argparse.ArgumentParser:
    """What reads the words of a command line."""
    parser = _Parser(prog="aworld", description="The agent runtime for self-improvement.", epilog=_CODES)
    parser.add_argument("--version", action="version", version=f"aworld {__version__}")
    commands: argparse._SubParsersAction[Any] = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    init.add_parser(commands)
    run.add_parsers(commands)
    chat.add_parser(commands)
    answer.add_parser(commands)
    diff.add_parsers(commands)
    rollout.add_parser(commands)
    train.add_parser(commands)
    trajectories.add_parser(commands)
    swarm.add_parser(commands)
    mcp.add_parser(commands)
    env.add_parser(commands)
    return parser


def _read_env_file() -> None:
    """Settings from `.env` in the working directory; what is set already stays."""
    if os.path.exists(".env"):
        from dotenv import load_dotenv

        load_dotenv(".env")
