"""References to Python objects in text, such as `my_tools:search`: how files and commands name code."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aworld.core.bounded import described
from aworld.core.checks import nearest
from aworld.core.exceptions import ConfigError


def find(reference: str, what: str) -> Any:
    """The object that `module:name` refers to; imports the module. `what` begins an error, such as `--tool`.

    Raises:
        ConfigError: It is not written so, or there is no such module or object.
    """
    module, colon, name = reference.partition(":")
    if not colon or not module or not name:
        raise ConfigError(f"{what} {reference!r}: write MODULE:NAME, such as my_module:my_function.", setting=reference)
    try:
        value: Any = importlib.import_module(module)
    except (ImportError, ConfigError) as error:
        raise ConfigError(f"{what} {reference!r}: cannot import {module!r}: {error}.", setting=reference) from error
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # code of somebody else, which may also exit
        place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if (frames := _own(error)) else ""
        raise ConfigError(
            f"{what} {reference!r}: importing {module!r} raised {described(error)}{place}.", setting=reference
        ) from error
    for part in name.split("."):
        if not hasattr(value, part):
            near = nearest(part, dir(value))
            meant = f"; did you mean {near!r}?" if near else "."
            raise ConfigError(f"{what} {reference!r}: {module!r} has no {name!r}{meant}", setting=reference)
        value = getattr(value, part)
    return value


def _own(error: BaseException) -> list[traceback.FrameSummary]:
    """Where it was raised, below the machinery of imports; nothing for a name that is none, and for a syntax error,
    which names its place itself."""
    frames = traceback.extract_tb(error.__traceback__)
    machinery = (__file__, importlib.__file__)
    return [f for f in frames if f.filename not in machinery and not f.filename.startswith("<frozen")]


@contextmanager
def importable(folder: Path) -> Generator[None, None, None]:
    """Within it, the modules of this folder are found, and before others."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
