"""Checks that many rooms need: what they refuse, they refuse in the same words.

Each takes the error that it raises, so that a front door raises its own kind. The text names the setting and the
remedy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Real
from typing import Any, TypeVar

from aworld.config.errors import hint as hint
from aworld.config.errors import known_keys as known_keys
from aworld.config.errors import nearest as nearest
from aworld.core.exceptions import AWorldError, ConfigError

T = TypeVar("T")


def one_of(setting: str, value: T, names: Iterable[Any], error: type[AWorldError] = ConfigError) -> T:
    """`value`, if it is one of those. Raises `error`."""
    choices = list(names)
    if value not in choices:
        raise error(f"{setting}={value!r} is not known; {hint(value, map(str, choices))}", setting=setting)
    return value


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
