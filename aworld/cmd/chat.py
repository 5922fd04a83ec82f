"""`aworld chat`: a conversation in the terminal. Every turn is a recorded run that goes on from the one before."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
from typing import TYPE_CHECKING, Any

from aworld.core.exceptions import AWorldError, ConfigError

if TYPE_CHECKING:  # the command line starts fast: what a command needs is imported when it runs
    from aworld.config.conf import RunConfig
    from aworld.core.agent.flow import Unit
    from aworld.core.task import TaskResponse
    from aworld.trajectory.store import TrajectoryStore

_ABOUT = (
    "Talk with an agent. Answers are shown as they come, tool calls as they happen; Ctrl-C ends an answer, Ctrl-D the "
    "conversation. --model local needs no key: a small language model in this process."
)
_HELP = """\
/turns     the turns so far, with their numbers
/fork N    go on from turn N, in a branch of its own; what came after it stays on record
/undo      the same as /fork with the turn before the last
/new       begin a new conversation
/exit      leave (or Ctrl-D); aworld chat --continue takes it up again"""
LABEL = "chat"
"""Label of the runs of a conversation: the id of its first turn."""

_SMALL = (
    "smollm2-135m-instruct, in this process: a real language model, and a very small one (135 million parameters). It "
    "shows how things work; what it says is often wrong. --model takes larger ones: local:/path/to/a.gguf, gpt-4o, …"
)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `chat` to the parser of `aworld`."""
    from aworld.cmd.run import add_agent, add_store

    parser = commands.add_parser("chat", help="talk with an agent in the terminal", description=_ABOUT)
    parser.add_argument("--continue", action="store_true", dest="goes_on", help="go on with the last conversation")
    add_agent(parser)
    add_store(parser)
    parser.set_defaults(run=_chat)


def _chat(args: argparse.Namespace) -> int:
    from aworld.cmd.run import agent_of, limits_of
    from aworld.cmd.run_view import at_terminal
    from aworld.config.conf import RunConfig
    from aworld.runners.blocking import one_loop
    from aworld.runners.local import store_of

    agent = agent_of(args)
    _ready(agent)
    conf = RunConfig(store=args.store)
    with one_loop() as run:
        chat = Chat(agent, conf, limits_of(args), args.deps)
        if args.goes_on:
            run(chat.take_up(store_of(args.store)))
        model = getattr(getattr(agent, "model", None), "name", None)
        chat.tell(_SMALL if model and _SMALL.startswith(model) else "")
        chat.tell("Ask something; /help shows the commands.")
        while (text := _line()) is not None:
            try:
                if text.startswith("/"):
                    if not run(chat.command(text)):
                        break
                else:
                    response = run(chat.turn(text))
                    while (answers := at_terminal(response.record.open_questions())) is not None:
                        response = run(chat.go_on(response, answers))
                    chat.note(text, response)
            except AWorldError as error:
                chat.tell(f"aworld: {error}")
            except KeyboardInterrupt:
                chat.tell("\n(ended; the conversation goes on from the turn before)")
        run(store_of(args.store).close())
    return 0


def _ready(agent: Unit) -> None:
    """Say now what is missing, and not at the first question. Raises ConfigError."""
    from aworld.core.agent.flow import units_of

    for unit in units_of(agent).values():
        check: Any = getattr(unit, "check", None)
        if check is not None:
            check()


def _line() -> str | None:
    """What the person says; None at the end of the input."""
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")  # the arrows go through the line and its history
    while True:
        try:
            text = input("› " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return None
        except KeyboardInterrupt:
            print()
            continue
        if text:
            return text


class Chat:
    """A conversation: who answers, and the ids of its turns."""

    def __init__(self, agent: Unit, conf: RunConfig, limits: Any, deps: str | None = None) -> None:
        from aworld.cmd.terminal import console

        self.agent, self.conf, self.limits, self.deps = agent, conf, limits, deps
        self.turns: list[tuple[str, str]] = []
        """What was asked, and the id of its run."""
        self._name: str | None = None
        self._out = console()

    def tell(self, text: str) -> None:
        """Say something of our own."""
        if text:
            self._out.print(text, style="dim", markup=False)

    async def take_up(self, store: TrajectoryStore) -> None:
        """Go on with the last conversation of the store. Raises ConfigError if there is none."""
        from aworld.cmd.run import question_of
        from aworld.runners.local import load
        from aworld.trajectory.query import LABEL as PREFIX
        from aworld.trajectory.query import Query, Where

        last = await store.query(Query(status=("finished",), where=(Where(f"{PREFIX}{LABEL}", "!=", None),), limit=1))
        if not last:
            raise ConfigError(f"--continue: there is no conversation in {store.url} yet.")
        self._name = last[0].labels[LABEL]
        id: str | None = last[0].id
        while id is not None:
            record = await load(id, store)
            self.turns.insert(0, (question_of(record), id))
            before = record.started.forked_from if record.started is not None else None
            id = before.id if before is not None else None
        self.tell(f"Going on after turn {len(self.turns)}: {self.turns[-1][0]:.60}")

    async def command(self, text: str) -> bool:
        """Carry out what begins with a slash; False to leave. Raises ConfigError."""
        name, _, argument = text[1:].partition(" ")
        match name:
            case "exit" | "quit":
                return False
            case "new":
                self.turns, self._name = [], None
            case "turns":
                for number, (question, id) in enumerate(self.turns, 1):
                    self.tell(f"{number:>3}  {id[:8]}  {question:.60}")
            case "undo" | "fork":
                number = len(self.turns) - 1 if name == "undo" else -1
                if argument:
                    number = int(argument) if argument.isdecimal() else -1
                if not 0 <= number <= len(self.turns):
                    there = f"the turns are numbered 1 to {len(self.turns)}" if self.turns else "there are no turns yet"
                    raise ConfigError(f"{text}: {there}; /fork N goes on from the end of turn N, /new begins anew.")
                await self._leave_out(self.turns[number:])
                self.turns = self.turns[:number]
                self.tell(f"The next question follows turn {number}." if number else "The conversation begins anew.")
            case "help":
                self.tell(_HELP)
            case _:
                self.tell(f"There is no /{name}.\n{_HELP}")
        return True

    async def _leave_out(self, turns: list[tuple[str, str]]) -> None:
        """Take turns out of the conversation, so that `--continue` does not go on after them."""
        from aworld.core.event import Labelled, now
        from aworld.runners.local import store_of

        for _, id in turns:
            await store_of(self.conf.store).note(id, [Labelled(seq=-1, at=now(), labels={LABEL: None}, source="chat")])

    async def turn(self, text: str) -> TaskResponse:
        """Ask, and show what comes."""
        from aworld.core.task import Task
        from aworld.runner import Runners

        after = self.turns[-1][1] if self.turns else None
        task = Task(text, swarm=self.agent, conf=self.limits, deps=self.deps, after=after)
        self._name = self._name or task.id
        task.labels = {**task.labels, LABEL: self._name}
        return await self._shown(Runners.streamed_run_task(task, self.conf))

    async def go_on(self, response: TaskResponse, answers: dict[str, str]) -> TaskResponse:
        """Go on with a turn that asked something."""
        from aworld.runner import Runners

        return await self._shown(await Runners.streamed_resume(response, swarm=self.agent, answers=answers))

    def note(self, text: str, response: TaskResponse) -> None:
        """Remember a turn, if it was answered."""
        from aworld.cmd.wording import why

        if response.success:
            self.turns.append((text, response.id))
        else:
            self.tell(f"aworld: {response.status}: {why(response)}".removesuffix(": "))

    async def _shown(self, stream: Any) -> TaskResponse:
        from aworld.cmd.markdown import MarkdownStream
        from aworld.core import output as of
        from aworld.core.agent.flow import readable

        with MarkdownStream(self._out) as shown:
            async for output in stream.stream_events():
                match output:
                    case of.TextOutput():
                        shown.write(output.text)
                    case of.ReasoningOutput():
                        shown.aside(output.text, end="")
                    case of.RetryOutput():
                        shown.aside(f"retry in {output.wait:.1f} s: {output.error}")
                    case of.ToolCallOutput():
                        shown.aside(f"→ {output.call.name}({output.call.arguments})")
                    case of.ToolResultOutput():
                        shown.aside(f"← {' '.join(readable(output.result.content).split()):.200}")
                    case of.RunFinished():
                        if output.response.success and not shown.wrote:  # by code, which has no text on the way
                            shown.write(readable(output.response.record.answer))
                        return output.response
                    case _:
                        pass
        raise AssertionError("a stream ends with RunFinished")
