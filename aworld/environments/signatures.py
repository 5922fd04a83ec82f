"""What functions that users hand in are called with, checked before anything runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from aworld.core.exceptions import ConfigError


def check_takes_one(function: Callable[..., Any], where: str, argument: str) -> None:
    """Raise ConfigError when a function cannot be called with one positional argument, as far as that can be told."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some of those written in C have none
        return
    try:
        signature.bind(None)
    except TypeError as error:
        name = getattr(function, "__qualname__", type(function).__name__)
        raise ConfigError(
            f"{where}: it is called with one argument, {argument}, and {name}{signature} cannot be: {error}."
        ) from None
