"""Checks that many rooms need: what they refuse, they refuse in the same words.

Each takes the error that it raises, so that a front door raises its own kind. The text names the setting and the
remedy.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from numbers import Real
from typing import Any, TypeVar

from aworld.config.errors import AWorldError, ConfigError

T = TypeVar("T")


def nearest(name: object, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The known name that is most like `name`; None when none is like it."""
    near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=cutoff)
    return near[0] if near else None


def hint(name: object, known: Iterable[str]) -> str:
    """What to write in the place of a name that is not known."""
    names = list(known)
    near = nearest(name, names)
    return f"did you mean {near!r}?" if near else f"known are: {', '.join(names)}."


def one_of(setting: str, value: T, known: Iterable[Any], error: type[AWorldError] = ConfigError) -> T:
    """`value`, if it is one of those. Raises `error`."""
    choices = list(known)
    if value not in choices:
        raise error(f"{setting}={value!r} is not known; {hint(value, map(str, choices))}", setting=setting)
    return value


def known_keys(
    owner: str,
    given: Iterable[str],
    known: Iterable[str],
    what: str = "setting",
    error: type[AWorldError] = ConfigError,
) -> None:
    """Refuse a key that `owner` does not have. Raises `error`, which names the nearest that it has."""
    names = list(known)
    for key in given:
        if key not in names:
            raise error(f"{owner} has no {what} {key!r}; {hint(key, names)}", setting=str(key))


def positive(
    setting: str, value: Any, *, zero: bool = False, whole: bool = False, error: type[AWorldError] = ConfigError
) -> Any:
    """`value`, if it is a finite number above zero (`zero`: or zero), with `whole` a whole one. Raises `error`."""
    kind = int if whole else Real
    fits = isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or value < 0 or (value == 0 and not zero):
        what = "a whole number" if whole else "a number"
        raise error(f"{setting}={value!r}: {what}, {'zero or more' if zero else 'more than zero'}.", setting=setting)
    return value


def unique(what: str, names: Iterable[T], error: type[AWorldError] = ConfigError) -> list[T]:
    """The names, if none is there twice. Raises `error`: `what` is such as `Two tasks have the id`."""
    seen: dict[T, None] = {}
    for name in names:
        if name in seen:
            raise error(f"{what} {name!r}; give each its own.")
        seen[name] = None
    return list(seen)
