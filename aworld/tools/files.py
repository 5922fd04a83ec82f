"""Tools for the files of a sandbox: read, write, edit by exact replacement, search, list.

Paths lie in the sandbox's work folder; those that lead out are refused by the sandbox itself, which resolves links
where the files are.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from aworld.core.context.base import RunScope
from aworld.core.exceptions import ToolError
from aworld.core.sandbox import FileInfo, Sandbox, SandboxError, SandboxSource
from aworld.core.tool.base import Tool
from aworld.core.tool.func_to_tool import tool
from aworld.tools.inside import source
from aworld.tools.tool_sandbox import LONGEST, ToolSandbox, time_of

LARGEST = 5_000_000
"""Bytes of a file that is read into the runtime; larger ones are for the shell."""
MOST_LINES = 2_000
"""Lines of a file shown at once."""
MOST_HITS = 200
"""Lines that a search shows."""
MOST_ENTRIES = 1_000
"""Entries of a folder that are listed."""
SEARCH_SECONDS = 20.0
"""An expression that takes longer than this is a mistake."""


class _Matches(msgspec.Struct):
    """What the search inside the sandbox answers."""

    hits: list[str]
    searched: int
    more: bool


class Files:
    """The tools, bound to a place."""

    def __init__(self, place: ToolSandbox) -> None:
        self._place = place

    def for_run(self, scope: RunScope) -> Files:
        """The run's own."""
        return Files(scope.own(self._place))

    @tool(idempotent=True)
    async def read_file(self, path: str, start: int = 1, end: int | None = None) -> str:
        """Read a text file, with line numbers.

        Args:
            path: Path of the file.
            start: First line, from 1; negative counts from the end.
            end: Last line; all that fit when left out.
        """
        lines = (await self._text(await self._place.sandbox(), path)).splitlines()
        if not lines:
            return f"{path} is empty."
        if start < 0:
            start = max(len(lines) + start + 1, 1)
        first = max(start, 1)
        if first > len(lines):
            raise ToolError(f"{path} has {len(lines)} lines; there is no line {first}.")
        last = len(lines) if end is None else min(end, len(lines))
        if last < first:
            raise ToolError(f"end={end} lies before start={start}.")
        text, last = _numbered(lines, first, min(last, first + MOST_LINES - 1))
        if first == 1 and last == len(lines):
            return text
        return f"{text}\n[lines {first} to {last} of {len(lines)}]"

    @tool(idempotent=True)
    async def write_file(self, path: str, content: str) -> str:
        """Write a text file, in place of what it held; folders are made.

        Args:
            path: Path of the file.
            content: The whole new content.
        """
        data = content.encode("utf-8", "surrogatepass")
        await _carried_out(path, (await self._place.sandbox()).write(path, data))
        return f"Wrote {len(data):,} bytes to {path}."

    @tool
    async def edit_file(self, path: str, old: str, new: str) -> str:
        """Replace a piece of a text file. The piece must stand in the file exactly once.

        Args:
            path: Path of the file.
            old: The text to replace, exactly as in the file, with enough around it to be unique.
            new: What takes its place.
        """
        sandbox = await self._place.sandbox()
        text = await self._text(sandbox, path)
        if not old:
            raise ToolError("`old` is empty. Give the text to replace; write_file makes a new file.")
        if old == new:
            raise ToolError("`old` and `new` are the same: nothing would change.")
        line = _only_place(text, old, path)
        await _carried_out(path, sandbox.write(path, text.replace(old, new).encode()))
        return f"Edited {path} at line {line}."

    @tool(idempotent=True)
    async def search_files(self, pattern: str, path: str = ".", glob: str = "*") -> str:
        """Find the lines of text files that match a regular expression, in a folder and all below it.

        Args:
            pattern: A regular expression of Python, matched within lines.
            path: The folder or file to search.
            glob: Which files, by name or path, such as *.py.
        """
        query = json.dumps({"pattern": pattern, "path": path, "glob": glob, "most": MOST_HITS})
        sandbox = await self._place.sandbox()
        seconds, limit = time_of(sandbox, SEARCH_SECONDS)
        result = await sandbox.exec(["python3", "-I", "-c", source("grep"), query], timeout=seconds)
        if result.timed_out:
            raise ToolError(f"The search took longer than {seconds:g} s (limit: {limit}). Search less, or simplify.")
        if result.exit_code:
            errors = result.stderr.decode("utf-8", "replace").strip().splitlines() or ["no reason given"]
            raise ToolError(f"The search failed: {errors[-1]}")
        matches = msgspec.json.decode(result.stdout, type=_Matches)
        if not matches.hits:
            return f"No line matches, in {matches.searched} files."
        hits, left = _as_many_as_fit(matches.hits)
        more = f"\n[more lines match than the {len(hits)} shown]" if matches.more or left else ""
        return "\n".join(hits) + more

    @tool(idempotent=True)
    async def list_files(self, path: str = ".") -> str:
        """List a folder: its folders, and its files with their sizes in bytes.

        Args:
            path: Path of the folder.
        """
        sandbox = await self._place.sandbox()
        entries: list[FileInfo] = await _carried_out(path, sandbox.list(path))
        if not entries:
            return f"{path} is empty."
        lines = [f"{e.name}/" if e.is_folder else f"{e.name}  {e.size}" for e in entries[:MOST_ENTRIES]]
        if len(entries) > MOST_ENTRIES:
            lines.append(f"[{len(entries) - MOST_ENTRIES} more]")
        return "\n".join(lines)

    async def _text(self, sandbox: Sandbox, path: str) -> str:
        """A file as text. Raises `ToolError` for one that is too large or no text."""
        folder, _, name = path.rstrip("/").rpartition("/")
        listed = await _carried_out(path, sandbox.list(folder or ("/" if path.startswith("/") else ".")))
        size = next((entry.size for entry in listed if entry.name == name), 0)
        if size > LARGEST:
            raise ToolError(f"{path} has {size:,} bytes, more than {LARGEST:,}. Use search_files or the shell.")
        data: bytes = await _carried_out(path, sandbox.read(path))
        try:
            if b"\0" in data:
                raise ValueError
            return data.decode()
        except ValueError:
            raise ToolError(f"{path} is no UTF-8 text ({len(data):,} bytes). Use the shell or Python for it.") from None


def file_tools(sandbox: Sandbox | SandboxSource | ToolSandbox) -> list[Tool]:
    """`read_file`, `write_file`, `edit_file`, `search_files`, `list_files` for a sandbox, or for that of each run."""
    place = ToolSandbox.of(sandbox, "read_file", "write_file", "edit_file", "search_files", "list_files")
    files = Files(place)
    return [files.read_file, files.write_file, files.edit_file, files.search_files, files.list_files]


async def _carried_out(path: str, work: Any) -> Any:
    """What a sandbox does with a path; its errors in words for a model."""
    try:
        return await work
    except FileNotFoundError:
        raise ToolError(f"There is no {path}. list_files shows what there is.") from None
    except IsADirectoryError:
        raise ToolError(f"{path} is a folder.") from None
    except NotADirectoryError:
        raise ToolError(f"{path} is no folder, or lies below something that is none.") from None
    except (SandboxError, OSError) as error:
        raise ToolError(f"{path}: {error}") from error


def _numbered(lines: list[str], first: int, last: int) -> tuple[str, int]:
    """Lines with their numbers, as many as fit, and the last one shown; of a line that is too long alone, the start."""
    shown: list[str] = []
    room = LONGEST
    for number in range(first, last + 1):
        text = f"{number:>5}  {lines[number - 1]}"
        if len(text) > room:
            if not shown:
                return f"{text[:room]}\n[the rest of this line is cut]", number
            return "\n".join(shown), number - 1
        shown.append(text)
        room -= len(text) + 1
    return "\n".join(shown), last


def _only_place(text: str, old: str, path: str) -> int:
    """The line where `old` begins. Raises `ToolError` when it is not there exactly once."""
    at = text.find(old)
    if at < 0:
        raise ToolError(_not_found(text, old, path))
    places: list[int] = []
    while at >= 0 and len(places) < 6:
        places.append(text.count("\n", 0, at) + 1)
        at = text.find(old, at + 1)
    if len(places) > 1:
        listed = ", ".join(map(str, places[:5])) + (", …" if len(places) > 5 else "")
        raise ToolError(f"`old` is not unique in {path}: it begins at lines {listed}. Give more text around it.")
    return places[0]


def _not_found(text: str, old: str, path: str) -> str:
    """Why `old` is not in a text, as near as can be told."""
    first = next((line.strip() for line in old.splitlines() if line.strip()), "")
    near = [number for number, line in enumerate(text.splitlines(), 1) if first and first in line]
    if not near:
        return f"`old` is not in {path}. Read the file and copy the text exactly."
    listed = ", ".join(map(str, near[:5]))
    return (
        f"`old` is not in {path}, but its first line is (line {listed}): what differs is white space or a line after "
        "it. Read the file and copy the text exactly, without line numbers."
    )


def _as_many_as_fit(hits: list[str]) -> tuple[list[str], int]:
    room = LONGEST
    for number, hit in enumerate(hits):
        room -= len(hit) + 1
        if room < 0 and number:
            return hits[:number], len(hits) - number
    return hits, 0
