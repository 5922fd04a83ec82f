"""The two errors that the lowest floor needs; `aworld.core.exceptions` shows the whole tree."""

from __future__ import annotations


class AWorldError(Exception):
    """Base of every error that AWorld raises itself.

    `setting` is the name of the setting that is to blame, and `remedy` what to do about it, where the error knows: the
    text says both in the words of Python; whoever shows it elsewhere (a command, a page) may say them in its own.
    """

    def __init__(self, *message: object, setting: str | None = None, remedy: str | None = None) -> None:
        super().__init__(*message)
        self.setting = setting
        self.remedy = remedy


class ConfigError(AWorldError, ValueError):
    """A setting is missing, unknown or impossible. The message names the option or variable and the remedy."""
