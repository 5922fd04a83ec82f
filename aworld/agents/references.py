"""References to Python objects in text, such as `my_tools:search`: how files and commands name code."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aworld.core.exceptions import ConfigError


def find(reference: str, what: str) -> Any:
    """The object that `module:name` refers to; imports the module. `what` begins an error, such as `--tool`.

    Raises:
        ConfigError: It is not written so, or there is no such module or object.
    """
    module, colon, name = reference.partition(":")
    if not colon or not module or not name:
        raise ConfigError(f"{what} {reference!r}: write MODULE:NAME, such as my_module:my_function.")
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"{what} {reference!r}: cannot import {module!r}: {error}.") from error
    except (ValueError, TypeError) as error:  # a relative or otherwise impossible name
        raise ConfigError(f"{what} {reference!r}: {module!r} is no module: {error}.") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"{what} {reference!r}: {module!r} has no {name!r}.")
        found = getattr(found, part)
    return found


@contextmanager
def importable(folder: Path) -> Generator[None, None, None]:
    """Within it, the modules of this folder are found, and before others."""
    place = str(folder)
    sys.path.insert(0, place)
    try:
        yield
    finally:
        sys.path.remove(place)


def reference_of(value: Any, what: str) -> str:
    """The reference by which `find` finds exactly `value` again. `what` begins an error.

    Raises:
        ConfigError: It has none: a lambda, a function inside a function, a bound method, something of the main program.
    """
    module: Any = getattr(value, "__module__", None)
    name: Any = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    remedy = "Only what stands in a module under a name of its own can be written: move it there."
    if not isinstance(module, str) or not isinstance(name, str):
        raise ConfigError(f"{what}, {value!r}, has no name in a module. {remedy}")
    if module == "__main__":
        raise ConfigError(f"{what}, {name!r}, is part of the main program, which nobody else can import. {remedy}")
    if "<" in name:
        kind = "a lambda" if name.endswith("<lambda>") else "inside a function"
        raise ConfigError(f"{what}, {name!r}, is {kind}. {remedy}")
    reference = f"{module}:{name}"
    try:
        found = find(reference, what)
    except ConfigError as error:
        raise ConfigError(f"{error} {remedy}") from error
    if found is not value:
        raise ConfigError(f"{what}, {reference!r}, is another object than the one of that name. {remedy}")
    return reference
