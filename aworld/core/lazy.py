"""Packages whose names are imported when they are asked for, so that a user pays for what is used."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any


def exports(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` (PEP 562) of a package.

    Its names are those that it imports under `if TYPE_CHECKING:`, where type checkers look for them: one list serves
    both. The list is read at the first name that is asked for, not at import.
    """

    def names() -> list[str]:
        return sorted(_homes(package))

    def value_of(name: str) -> Any:
        if name == "__all__":
            return names()
        # Modules of the package are asked for as attributes too, and before they are imported.
        home = None if name.startswith("__") else _homes(package).get(name)
        if home is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(home), name)
        setattr(sys.modules[package], name, value)
        return value

    return value_of, names


@cache
def _homes(package: str) -> dict[str, str]:
    """The module of each name that a package imports for type checkers."""
    loader: Any = sys.modules[package].__spec__.loader  # pyright: ignore[reportOptionalMemberAccess]
    tree = ast.parse(loader.get_source(package))
    checked = next(node for node in tree.body if isinstance(node, ast.If))
    return {
        alias.name: node.module
        for node in checked.body
        if isinstance(node, ast.ImportFrom) and node.module is not None
        for alias in node.names
    }
