"""Optional packages: imported when something needs them, and named when they are missing."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from aworld.core.exceptions import AWorldError, ConfigError


def import_extra(module: str, what: str, *packages: str, error: type[AWorldError] = ConfigError) -> ModuleType:
    """The module of an optional package. Raises `error` that says what needs it and what to install.

    Args:
        module: Its import path.
        what: What needs it, the subject of the sentence, such as `format=parquet`.
        packages: As `pip install` takes them, such as `pyarrow>=18`.
    """
    try:
        return importlib.import_module(module)
    except ImportError as missing:
        if missing.name is not None and missing.name.partition(".")[0] != module.partition(".")[0] and has(module):
            raise  # the package is there and broken
        wanted = " ".join(f'"{package}"' for package in packages)
        raise error(
            f"{what} needs {module.partition('.')[0]}; install it with pip install {wanted}",
            remedy=f"pip install {wanted}",
        ) from missing


def has(module: str) -> bool:
    """Whether an optional package is installed, without importing it."""
    return importlib.util.find_spec(module.partition(".")[0]) is not None
