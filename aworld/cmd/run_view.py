"""A run as a person at a terminal sees it: its steps as they happen, the questions that it asks, and Ctrl-C.

The answer goes to standard output, all else to standard error. Where both ends are a terminal a question is answered on
the spot, and the run goes on. Ctrl-C stops a run so that `aworld resume` goes on with it.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

from aworld.cmd.terminal import aside
from aworld.core.agent.flow import Topology, Unit, readable
from aworld.core.event import Asked
from aworld.core.output import (
    HandoffOutput,
    MessageOutput,
    ReasoningOutput,
    RetryOutput,
    RunFinished,
    TextOutput,
    ToolCallOutput,
    ToolResultOutput,
)
from aworld.core.task import TaskResponse
from aworld.core.tool.wrappers import ALWAYS, CONSENT, means_always
from aworld.runner import Runners
from aworld.runners.blocking import one_loop
from aworld.runners.feed import RunStream
from aworld.trajectory import TrajectoryStore

LONG = 2_000
"""Characters of a question that fit on a screen."""


class RunView:
    """Shows one run, with `quiet` nothing of it."""

    def __init__(self, unit: Unit, store: TrajectoryStore, *, quiet: bool) -> None:
        self.suspended = False
        """Whether it was left by Ctrl-C."""
        self._unit, self._store, self._quiet = unit, store, quiet
        self._is_team = isinstance(unit, Topology)
        self._shown_calls: set[tuple[int, str]] = set()

    def attend(self, begin: Callable[[], Coroutine[Any, Any, RunStream]]) -> TaskResponse:
        """Show the run until it has ended, was stopped, or asks something that nobody here answers."""
        with one_loop() as run:
            response: TaskResponse = run(self._show(begin))
            while not self._quiet and not self.suspended:
                # Outside of the loop, so that Ctrl-C ends the waiting for a line.
                answers = at_terminal(response.record.open_questions())
                if answers is None:
                    break
                going_on = partial(
                    Runners.streamed_resume, response.trajectory_id, swarm=self._unit, store=self._store,
                    answers=answers,
                )  # fmt: skip
                response = run(self._show(going_on))
        return response

    async def _show(self, begin: Callable[[], Coroutine[Any, Any, RunStream]]) -> TaskResponse:
        stream, loop = await begin(), asyncio.get_running_loop()

        def stop() -> None:
            loop.remove_signal_handler(signal.SIGINT)  # the next one is not waited for
            self.suspended = True
            stream.suspend()

        loop.add_signal_handler(signal.SIGINT, stop)
        try:
            response = await self._shown(stream)
        finally:
            loop.remove_signal_handler(signal.SIGINT)
        if self.suspended and not response.record.events:  # it had not begun
            raise KeyboardInterrupt
        self.suspended = self.suspended and response.status == "waiting"
        return response

    async def _shown(self, stream: RunStream) -> TaskResponse:
        pending = False  # text without the end of its line
        wrote = False
        async for output in stream.stream_events():
            if isinstance(output, RunFinished):
                if wrote:
                    print()
                elif output.response.success and not self._quiet:  # by code, or a team: no text on the way
                    print(readable(output.response.record.answer))
                return output.response
            if self._quiet:
                continue
            # Members talk at the same time, so what each says is shown when it is said.
            who = f"[{output.agent}] " if self._is_team else "\n" if pending else ""
            match output:
                case TextOutput() if not self._is_team:
                    print(output.text, end="", flush=True)
                    pending = wrote = True
                    continue
                case ReasoningOutput() if not self._is_team:
                    aside(output.text, end="")
                    pending = True
                    continue
                case MessageOutput() if self._is_team and output.message.text:
                    aside(f"{who}{output.message.text}")
                case RetryOutput():
                    aside(f"{who}retry in {output.wait:.1f} s: {output.error}")
                case ToolCallOutput() if (call := (output.step, output.call.id)) not in self._shown_calls:
                    self._shown_calls.add(call)  # with a person's answer it is made again
                    aside(f"{who}→ {output.call.name}({output.call.arguments})")
                case ToolResultOutput():
                    aside(f"{who}← {short(output.result.content)}")
                case HandoffOutput():
                    aside(f"{who}hands over to {output.to}")
                case _:
                    continue
            pending = False
        raise AssertionError("a stream ends with RunFinished")


def at_terminal(questions: list[Asked]) -> dict[str, str] | None:
    """What the person at the terminal answers, by question; None when nobody is there or asked, and when they leave."""
    if not questions or sys.stdin is None or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    answers: dict[str, str] = {}
    always: set[str] = set()
    for question in questions:
        consent, head = question.question.endswith(CONSENT), question.question.partition("\n")[0]
        if consent and head in always:  # another call of that tool in the same turn
            answers[question.id] = ALWAYS
            continue
        text = question.question.removesuffix(CONSENT).rstrip()
        print(text, file=sys.stderr)
        if len(text) > LONG:  # its beginning may have left the screen
            print(f"{short(head)} That was {len(text):,} characters: read them from the beginning.", file=sys.stderr)
        forget_typed()
        while not answers.get(question.id):
            print("[y/n/always, or why not] " if consent else "> ", end="", file=sys.stderr, flush=True)
            try:
                line = sys.stdin.readline()
            except KeyboardInterrupt:
                line = ""
            if not line:
                print(file=sys.stderr)
                return None
            answers[question.id] = line.strip()
        if means_always(answers[question.id]):
            always.add(head)
    return answers


def forget_typed() -> None:
    """Forget what was typed before a question was there: it is no answer to it."""
    try:
        import termios
    except ImportError:  # a system without
        return
    with suppress(OSError, ValueError, termios.error):  # a stream that is none
        termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)


def short(content: Any, width: int = 200) -> str:
    """The beginning of a content, on one line."""
    text = content if isinstance(content, str) else str(content)
    text = " ".join(text.split())
    return text if len(text) <= width else f"{text[: width - 1]}…"
