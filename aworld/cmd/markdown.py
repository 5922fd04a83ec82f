"""Markdown on a terminal, while it is written."""

from __future__ import annotations

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.text import Text


class MarkdownStream:
    """Shows a paragraph as plain text while it is written, and as it should look when it is complete.

    Elsewhere than on a terminal the text goes out as it is.
    """

    def __init__(self, out: Console) -> None:
        self._out = out
        self._open = ""
        """The paragraph at work."""
        self._live: Live | None = None
        self.wrote = False
        """Whether any text has come."""

    def __enter__(self) -> MarkdownStream:
        return self

    def __exit__(self, *_: object) -> None:
        self._close(self._open)
        if self.wrote and not self._out.is_terminal:
            self._out.file.write("\n")

    def write(self, text: str) -> None:
        """A piece of the text."""
        self.wrote = True
        if not self._out.is_terminal:
            self._out.file.write(text)
            self._out.file.flush()
            return
        self._open += text
        if end := _complete(self._open):
            whole, self._open = self._open[:end], self._open[end:]
            self._close(whole)
        self._show()

    def aside(self, text: str, end: str = "\n") -> None:
        """Something beside the answer."""
        self._close(self._open)
        self._open = ""
        self._out.print(text, style="dim", markup=False, highlight=False, end=end)

    def _show(self) -> None:
        # A picture taller than the window cannot be replaced: its end is what is shown.
        tail = "\n".join(self._open.splitlines()[-max(self._out.height // 2, 1) :])
        if self._live is None:
            self._live = Live(console=self._out, transient=True, auto_refresh=False)
            self._live.start()
        self._live.update(Text(tail), refresh=True)

    def _close(self, paragraph: str) -> None:
        """Put `paragraph` in the place of what was shown of it."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        if paragraph.strip() and self._out.is_terminal:
            self._out.print(Markdown(paragraph))


def _complete(text: str) -> int:
    """Where the last paragraph that is complete ends: at an empty line outside of a fence."""
    end, at, fenced = 0, 0, False
    for line in text.splitlines(keepends=True):
        at += len(line)
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not line.strip() and line.endswith("\n") and not fenced:
            end = at
    return end
