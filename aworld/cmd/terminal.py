"""The one border between what others wrote and a terminal.

Models, tools, servers and records of strangers say what they like. On a terminal everything that is printed passes a
`CleanStream`, and what Rich draws passes a `Terminal`: control characters, which could clear the screen, hide or turn
text or set a title, become `�`. Files and pipes get what was written, byte by byte.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any, Self, TextIO, cast

if TYPE_CHECKING:  # the command line starts fast: what a command needs is imported when it runs
    from rich.console import Console

PLAIN_EVERY = 5.0
"""Seconds between the lines of progress where there is no terminal."""

_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\U000e0000-\U000e007f]"
)


def clean(text: str) -> str:
    """`text` without what could drive a terminal: each control character becomes `�`."""
    return _CONTROL.sub("�", text.replace("\r\n", "\n"))


class CleanStream:
    """A terminal that prints what it is given as text alone; `terminal` is the stream behind it, for colours."""

    def __init__(self, terminal: TextIO) -> None:
        self.terminal = terminal
        self.buffer = self
        """Bytes are text here, too: what is exported to a terminal is printed."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.terminal, name)

    def write(self, text: str | bytes) -> int:
        """Print text, or bytes of UTF-8."""
        self.terminal.write(clean(text if isinstance(text, str) else bytes(text).decode(errors="replace")))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Print all of them."""
        for line in lines:
            self.write(line)


@contextlib.contextmanager
def clean_terminals() -> Generator[None]:
    """Put the border before standard output and standard error, each if it is a terminal."""
    streams = sys.stdout, sys.stderr
    if None in streams:  # closed by the shell, as by >&-
        nowhere = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - as long as the process
        sys.stdout, sys.stderr = (nowhere if s is None else s for s in streams)
    sys.stdout, sys.stderr = (cast("TextIO", CleanStream(s)) if s.isatty() else s for s in (sys.stdout, sys.stderr))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


def console(*, stderr: bool = False) -> Console:
    """Standard output (or standard error), as wide as it is; colour if it takes any."""
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class Terminal(Console):
        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else Segment(clean(segment.text), segment.style)

    stream = sys.stderr if stderr else sys.stdout
    return Terminal(file=stream.terminal if isinstance(stream, CleanStream) else None, stderr=stderr, highlight=False)


def aside(text: str, end: str = "\n") -> None:
    """Say something beside the answer: on standard error, dim on a terminal."""
    stream = sys.stderr
    if isinstance(stream, CleanStream):
        stream.terminal.write(f"\x1b[2m{clean(text)}\x1b[0m{end}")
    else:
        stream.write(f"{text}{end}")
    stream.flush()


class TerminalWatch:
    """Tells on standard error how work goes: lines, and with `total` a bar on a terminal, a line every few seconds
    elsewhere. Says nothing when `quiet`."""

    def __init__(self, total: int | None = None, *, quiet: bool) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

        self.console: Console = console(stderr=True)
        self.quiet = quiet
        self.total = total
        self._live = self.console.is_terminal and not quiet and total is not None
        self._next = 0.0 if total is None else time.monotonic() + PLAIN_EVERY
        columns = (SpinnerColumn(), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False))
        self._bar = Progress(*columns, console=self.console, disable=not self._live)
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """A line of its own."""
        if not self.quiet:
            style = "dim" if self._live else None
            self.console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    def show(self, done: int, text: str) -> None:
        """Bring the bar up to date; without a terminal, the line when it is due."""
        if self._live:
            self._bar.update(self._task, completed=done, description=text)
        elif self.is_due():
            self.say(f"{done}/{self.total}  {text}".rstrip())

    def is_due(self) -> bool:
        """Whether the next line may be said; if so, the one after it a few seconds later."""
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + PLAIN_EVERY
        return True
