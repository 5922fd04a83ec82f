"""The two errors that the lowest floor needs; `aworld.core.exceptions` shows the whole tree."""

from __future__ import annotations


class AWorldError(Exception):
    """Base of every error that AWorld raises itself."""


class ConfigError(AWorldError, ValueError):
    """A setting is missing, unknown or impossible. The message names the option or variable and the remedy."""
