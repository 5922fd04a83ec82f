"""The two errors that the lowest floor needs, and how it refuses a name that it does not know.

Above this room errors come from `aworld.core.exceptions`, which shows the whole tree, and checks from
`aworld.core.checks`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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


def nearest(name: object, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The one of these names that is most like `name`; None when none is like it."""
    near = difflib.get_close_matches(str(name), list(names), n=1, cutoff=cutoff)
    return near[0] if near else None


def hint(name: object, names: Iterable[str]) -> str:
    """What to write in the place of a name that is not known."""
    names = list(names)
    near = nearest(name, names)
    if near:
        return f"did you mean {near!r}?"
    return f"known are: {', '.join(names)}." if names else "there is none."


def known_keys(
    owner: str,
    keys: Iterable[str],
    names: Iterable[str],
    what: str = "setting",
    error: type[AWorldError] = ConfigError,
    more: str = "",
) -> None:
    """Refuse a key that is none of the names that `owner` has. Raises `error`, which names the nearest and says
    `more`."""
    names = list(names)
    for key in keys:
        if key not in names:
            text = " ".join(filter(None, (f"{owner} has no {what} {key!r}; {hint(key, names)}", more)))
            raise error(text, setting=str(key))
