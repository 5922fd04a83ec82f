"""One noun, one concept: what the names of the package promise, and how large each room may be."""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "aworld"

SAME_FILES = {
    "__init__.py": "what a package is",
    "base.py": "the contract that the other files of its folder meet",
    "files.py": "`aworld.agents.files` and `aworld.tools.files`: what people import by these names",
    "memory.py": "`aworld.core.memory`, which people import by this name; and the store of logs in memory",
}
"""Names of files that several rooms may have, and why."""

VAGUE = {"found", "given", "told", "known", "own", "each", "made", "asked", "said"}
"""What happened to a thing is not its name."""
VAGUE_A_FUNCTION = 0.03


@cache
def files() -> dict[Path, ast.Module]:
    """Every module, by its path below the package."""
    paths = sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)
    return {path.relative_to(PACKAGE): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def rooms() -> dict[str, list[Path]]:
    """The files of each room; a module beside the rooms is one of its own."""
    members: dict[str, list[Path]] = defaultdict(list)
    for path in files():
        members[f"{path.parts[0]}/" if len(path.parts) > 1 else path.name].append(path)
    return dict(members)


def names_bound(tree: ast.Module) -> Iterator[str]:
    """Every variable that a module binds, arguments too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg


def test_a_public_class_has_a_name_of_its_own() -> None:
    homes: dict[str, list[str]] = defaultdict(list)
    for path, tree in files().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(f"{path}:{node.lineno}")
    twice = [f"{name}: {', '.join(places)}" for name, places in sorted(homes.items()) if len(places) > 1]
    assert not twice, "\n".join(twice)


def test_no_two_rooms_have_a_file_of_the_same_name() -> None:
    # A command is named after what it drives: `cmd/swarm.py` and the topologies hold the same thing.
    homes: dict[str, set[str]] = defaultdict(set)
    for room, paths in rooms().items():
        for path in paths:
            if room != "cmd/" and path.name not in SAME_FILES:
                homes[path.name].add(room)
    twice = [f"{name}: {', '.join(sorted(places))}" for name, places in sorted(homes.items()) if len(places) > 1]
    assert not twice, "\n".join(twice)


def test_variables_are_nouns() -> None:
    vague: Counter[str] = Counter()
    functions = 0
    for path, tree in files().items():
        vague[str(path)] = sum(name in VAGUE for name in names_bound(tree))
        functions += sum(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in ast.walk(tree))
    assert vague.total() <= VAGUE_A_FUNCTION * functions, vague.most_common(20)


def budgets() -> dict[str, int]:
    """Lines that each room may have, as `docs/architecture.md` says: the table `| room | lines at most |`."""
    lines = iter((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").splitlines())
    table: dict[str, int] = {}
    for line in lines:
        if re.fullmatch(r"\|\s*room\s*\|\s*lines at most\s*\|", line):
            next(lines)  # the rule below the head
            for row in lines:
                cells = [cell.strip() for cell in row.strip("|").split("|")]
                if len(cells) != 2:
                    break
                table[cells[0].strip("`")] = int(cells[1].replace(",", ""))
    return table


def test_each_room_keeps_within_its_lines() -> None:
    table = budgets()
    sizes = {
        room: sum(len((PACKAGE / path).read_text(encoding="utf-8").splitlines()) for path in paths)
        for room, paths in rooms().items()
    }
    assert sorted(table) == sorted(sizes), "docs/architecture.md and the package have other rooms"
    over = [f"{room} has {size} lines, and {table[room]} at most" for room, size in sizes.items() if size > table[room]]
    assert not over, "\n".join(over)
