"""The file system of the Berkeley Function-Calling Leaderboard as an MCP server.

The functions, their arguments and their results are those that the benchmark documents for `GorillaFileSystem`: a tree
of folders in memory, and a shell-like session that stands in one of them. A mistake is a result `{"error": ...}`, which
the model reads, not a failure of the server. Nothing of the real file system is ever read or written.

    python gorilla_file_system.py [--scenario FILE.json] [--transport stdio|sse|streamable-http] [--port 8000]

One process is one file system: over stdio each client has its own, over HTTP all clients share it.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, cast

from mcp.server import MCPServer
from pydantic import Field

Result: TypeAlias = dict[str, Any]

SCENARIO: dict[str, Any] = {
    "root": {
        "workspace": {
            "type": "directory",
            "contents": {
                "hello_world.py": {"type": "file", "content": 'print("Hello, World!")'},
                "notes.txt": {"type": "file", "content": "Buy bread\nCall Ada\nWater the plants\n"},
                "reports": {
                    "type": "directory",
                    "contents": {"march.txt": {"type": "file", "content": "Sales went up.\nCosts went down.\n"}},
                },
            },
        }
    }
}
"""What a server starts with, in the form of the benchmark's `initial_config`."""

FileName = Annotated[str, Field(description="Name of a file in the current directory. No path is allowed.")]


class File:
    """A text in a folder."""

    def __init__(self, content: str = "") -> None:
        self.content = content


class Folder:
    """Files and folders by name, in the order in which they came."""

    def __init__(self, name: str, parent: Folder | None = None) -> None:
        self.name = name
        self.parent = parent
        self.entries: dict[str, File | Folder] = {}

    def path(self) -> str:
        """From the root, which is named too."""
        return f"{self.parent.path() if self.parent else ''}/{self.name}"

    def walk(self, below: str) -> list[tuple[str, str, File | Folder]]:
        """Everything inside, each folder before what it holds: path, name and entry."""
        found: list[tuple[str, str, File | Folder]] = []
        for name, entry in self.entries.items():
            path = f"{below.rstrip('/')}/{name}"
            found.append((path, name, entry))
            if isinstance(entry, Folder):
                found += entry.walk(path)
        return found


class GorillaFileSystem:
    """The state, and one method for each function of the benchmark."""

    def __init__(self, scenario: dict[str, Any] | None = None) -> None:
        self.root = _loaded(SCENARIO if scenario is None else scenario)
        self.here = self.root

    def pwd(self) -> Result:
        """Return the current working directory path."""
        return {"current_working_directory": self.here.path()}

    def ls(self, a: Annotated[bool, Field(description="Show hidden files and directories.")] = False) -> Result:
        """List the contents of the current directory."""
        return {"current_directory_content": [name for name in self.here.entries if a or not name.startswith(".")]}

    def cd(self, folder: Annotated[str, Field(description="The folder to change to, one level at a time.")]) -> Result:
        """Change the current working directory to the specified folder; `..` goes up, `/` to the root."""
        name = folder.rstrip("/")
        if folder == "..":
            if self.here.parent is None:
                return {"error": "Current directory is already the root. Cannot go back."}
            self.here = self.here.parent
        elif not name:
            self.here = self.root
        elif "/" in name:
            return {"error": f"cd: {folder}: Unsupported path. Only one folder level at a time is supported."}
        elif name != ".":
            entry = self.here.entries.get(name)
            if not isinstance(entry, Folder):
                return {"error": f"cd: '{folder}': No such file or directory"}
            self.here = entry
        return {"current_working_directory": self.here.name}

    def mkdir(
        self, dir_name: Annotated[str, Field(description="Name of the new directory, no path.")]
    ) -> Result | None:
        """Create a new directory in the current directory."""
        return self._make("mkdir: cannot create directory", dir_name, Folder(dir_name, self.here))

    def touch(self, file_name: Annotated[str, Field(description="Name of the new file, no path.")]) -> Result | None:
        """Create a new, empty file in the current directory."""
        return self._make("touch: cannot touch", file_name, File())

    def echo(
        self,
        content: Annotated[str, Field(description="The content to write or display.")],
        file_name: Annotated[
            str | None, Field(description="The existing file to write it to; none displays it.")
        ] = None,
    ) -> Result | None:
        """Write content to a file of the current directory, in place of what it held, or display it."""
        if not file_name:
            return {"terminal_output": content}
        if "/" in file_name:
            return {"error": f"echo: cannot write to '{file_name}': Invalid character"}
        entry = self.here.entries.get(file_name)
        if not isinstance(entry, File):
            why = "No such file" if entry is None else "Is a directory"
            return {"error": f"echo: cannot write to '{file_name}': {why}"}
        entry.content = content
        return None

    def cat(self, file_name: FileName) -> Result:
        """Display the contents of a file of the current directory."""
        if "/" in file_name:
            return {"error": f"cat: '{file_name}': Invalid character"}
        entry = self.here.entries.get(file_name)
        if isinstance(entry, File):
            return {"file_content": entry.content}
        why = "No such file or directory" if entry is None else "Is a directory"
        return {"error": f"cat: '{file_name}': {why}"}

    def find(
        self,
        path: Annotated[str, Field(description="The directory to search in, the current one by default.")] = ".",
        name: Annotated[str | None, Field(description="What the names contain; none returns everything.")] = None,
    ) -> Result:
        """Find files and directories whose name contains a text, in a directory and all below it."""
        start = self.root if path == "/" else self.here if path == "." else self.here.entries.get(path)
        if path not in (".", "/") and "/" in path.rstrip("/"):
            start = self._down(path)
        if not isinstance(start, Folder):
            return {"error": f"find: '{path}': No such file or directory"}
        return {"matches": [found for found, its_name, _ in start.walk(path) if name is None or name in its_name]}

    def wc(
        self,
        file_name: FileName,
        mode: Annotated[str, Field(description="'l' for lines, 'w' for words, 'c' for characters.")] = "l",
    ) -> Result:
        """Count the lines, words or characters of a file of the current directory."""
        if mode not in ("l", "w", "c"):
            return {"error": f"wc: invalid mode '{mode}'"}
        entry = self.here.entries.get(file_name)
        if not isinstance(entry, File):
            return {"error": f"wc: {file_name}: No such file or directory"}
        text = entry.content
        counts = {
            "l": (len(text.splitlines()), "lines"),
            "w": (len(text.split()), "words"),
            "c": (len(text), "characters"),
        }
        return {"count": counts[mode][0], "type": counts[mode][1]}

    def sort(self, file_name: FileName) -> Result:
        """Sort the contents of a file line by line; the file stays as it is."""
        entry = self.here.entries.get(file_name)
        if not isinstance(entry, File):
            return {"error": f"sort: {file_name}: No such file or directory"}
        return {"sorted_content": "\n".join(sorted(entry.content.splitlines()))}

    def grep(
        self, file_name: FileName, pattern: Annotated[str, Field(description="The text to search for.")]
    ) -> Result:
        """Search for the lines of a file of the current directory that contain a text."""
        entry = self.here.entries.get(file_name)
        if not isinstance(entry, File):
            return {"error": f"grep: {file_name}: No such file or directory"}
        return {"matching_lines": [line for line in entry.content.splitlines() if pattern in line]}

    def tail(
        self,
        file_name: FileName,
        lines: Annotated[int, Field(description="How many lines to display from the end.")] = 10,
    ) -> Result:
        """Display the last part of a file of the current directory."""
        entry = self.here.entries.get(file_name)
        if not isinstance(entry, File):
            return {"error": f"tail: {file_name}: No such file or directory"}
        shown = entry.content.splitlines()
        return {"last_lines": "\n".join(shown[-min(lines, len(shown)) :])}

    def diff(self, file_name1: FileName, file_name2: FileName) -> Result:
        """Compare two files of the current directory line by line, each line with its counterpart."""
        one, other = self.here.entries.get(file_name1), self.here.entries.get(file_name2)
        if not isinstance(one, File) or not isinstance(other, File):
            return {"error": f"diff: {file_name1} or {file_name2}: No such file or directory"}
        pairs = zip(one.content.splitlines(), other.content.splitlines())
        return {"diff_lines": "\n".join(f"- {a}\n+ {b}" for a, b in pairs if a != b)}

    def du(self, human_readable: Annotated[bool, Field(description="Sizes such as 1.50 KB.")] = False) -> Result:
        """Estimate the disk usage of the current directory and its contents."""
        size = float(sum(len(e.content) for _, _, e in self.here.walk(".") if isinstance(e, File)))
        if not human_readable:
            return {"disk_usage": f"{int(size)} bytes"}
        for unit in ("B", "KB", "MB", "GB"):
            if size < 1024:
                return {"disk_usage": f"{size:.2f} {unit}"}
            size /= 1024
        return {"disk_usage": f"{size:.2f} TB"}

    def mv(
        self,
        source: Annotated[str, Field(description="The file or directory to move, in the current directory.")],
        destination: Annotated[str, Field(description="A directory to move it into, or its new name. No path.")],
    ) -> Result:
        """Move a file or directory into a directory, or give it another name."""
        return self._carry(source, destination, move=True)

    def cp(
        self,
        source: Annotated[str, Field(description="The file or directory to copy, in the current directory.")],
        destination: Annotated[str, Field(description="A directory to copy it into, or the copy's name. No path.")],
    ) -> Result:
        """Copy a file or directory into a directory, or under another name."""
        return self._carry(source, destination, move=False)

    def rm(self, file_name: Annotated[str, Field(description="The file or directory to remove.")]) -> Result:
        """Remove a file, or a directory with all that it holds."""
        if self.here.entries.pop(file_name, None) is None:
            return {"error": f"rm: cannot remove '{file_name}': No such file or directory"}
        return {"result": f"'{file_name}' removed"}

    def rmdir(self, dir_name: Annotated[str, Field(description="The empty directory to remove, no path.")]) -> Result:
        """Remove an empty directory of the current directory."""
        entry = self.here.entries.get(dir_name)
        if not isinstance(entry, Folder) or entry.entries:
            why = "No such file or directory" if entry is None else "Not a directory"
            why = "Directory not empty" if isinstance(entry, Folder) else why
            return {"error": f"rmdir: cannot remove '{dir_name}': {why}"}
        del self.here.entries[dir_name]
        return {"result": f"'{dir_name}' removed"}

    def _make(self, refusal: str, name: str, entry: File | Folder) -> Result | None:
        if "/" in name:
            return {"error": f"{refusal} '{name}': Invalid character"}
        if name in self.here.entries:
            return {"error": f"{refusal} '{name}': File exists"}
        self.here.entries[name] = entry
        return None

    def _down(self, path: str) -> File | Folder | None:
        entry: File | Folder | None = self.root if path.startswith("/") else self.here
        for part in path.strip("/").split("/"):
            entry = entry if part == "." else entry.entries.get(part) if isinstance(entry, Folder) else None
        return entry

    def _carry(self, source: str, destination: str, *, move: bool) -> Result:
        """Move or copy: into a folder, or under a name that nothing has."""
        command, verb, done = ("mv", "move", "moved") if move else ("cp", "copy", "copied")
        entry = self.here.entries.get(source)
        if entry is None:
            return {"error": f"{command}: cannot {verb} '{source}': No such file or directory"}
        if "/" in destination:
            return {"error": f"{command}: path not allowed in destination. Provide only a file or directory name."}
        folder, name, shown = self._place(source, destination)
        if folder is None:
            return {"error": f"{command}: cannot {verb} '{source}' to '{destination}': Not a directory"}
        if _holds(entry, folder) and (move or folder is entry):
            return {"error": f"{command}: cannot {verb} '{source}' to a place inside itself"}
        if folder.entries.get(name) is not None and not (folder is self.here and name == source):
            return {"error": f"{command}: cannot {verb} '{source}' to '{shown}': File exists"}
        if move:
            del self.here.entries[source]
        elif not (folder is self.here and name == source):
            entry = copy.deepcopy(entry, {id(self.here): self.here})  # a copy of the folder, not of the tree above it
        if isinstance(entry, Folder):
            entry.name, entry.parent = name, folder
        folder.entries[name] = entry
        return {"result": f"'{source}' {done} to '{shown}'"}

    def _place(self, source: str, destination: str) -> tuple[Folder | None, str, str]:
        """Where something goes, its name there, and how the result calls that; no folder when a file is in the way."""
        if destination == "..":
            return self.here.parent, source, destination
        if destination == ".":
            return self.here, source, destination
        entry = self.here.entries.get(destination)
        if isinstance(entry, Folder):
            return entry, source, f"{destination}/{source}"
        return (self.here if entry is None else None), destination, destination


def _holds(entry: File | Folder, folder: Folder) -> bool:
    above: Folder | None = folder
    while above is not None and above is not entry:
        above = above.parent
    return above is not None


def _loaded(scenario: dict[str, Any]) -> Folder:
    """The tree of a scenario: `{"root": {name: {"type": "directory", "contents": {...}}}}`."""
    roots = cast("dict[str, Any]", scenario.get("root", {}))
    if not roots:
        return Folder("")
    name, described = next(iter(roots.items()))
    return _folder(name, described, None)


def _folder(name: str, described: dict[str, Any], parent: Folder | None) -> Folder:
    folder = Folder(name, parent)
    for child, inner in cast("dict[str, Any]", described["contents"]).items():
        folder.entries[child] = (
            _folder(child, inner, folder) if inner["type"] == "directory" else File(inner["content"])
        )
    return folder


FUNCTIONS = (
    "cat", "cd", "cp", "diff", "du", "echo", "find", "grep", "ls",
    "mkdir", "mv", "pwd", "rm", "rmdir", "sort", "tail", "touch", "wc",
)  # fmt: skip


def serve(files: GorillaFileSystem) -> MCPServer:
    """The server for one file system."""
    server = MCPServer("GorillaFileSystem", log_level="WARNING")
    for name in FUNCTIONS:
        server.tool()(getattr(files, name))
    return server


def main() -> None:
    """Serve until the client goes away."""
    parser = argparse.ArgumentParser(description="The BFCL file system as an MCP server.")
    parser.add_argument("--scenario", type=Path, help="what the file system holds, as the benchmark's initial_config")
    parser.add_argument("--transport", choices=("stdio", "sse", "streamable-http"), default="stdio")
    parser.add_argument("--port", type=int, default=8000, help="for sse and streamable-http, on 127.0.0.1")
    args = parser.parse_args()
    scenario: dict[str, Any] | None = None
    if args.scenario is not None:
        scenario = json.loads(args.scenario.read_text(encoding="utf-8"))
        scenario = scenario.get("GorillaFileSystem", scenario)  # pyright: ignore[reportOptionalMemberAccess]
    server = serve(GorillaFileSystem(scenario))
    transport: Literal["stdio", "sse", "streamable-http"] = args.transport
    if transport == "stdio":
        server.run("stdio")
    else:
        server.run(transport, port=args.port)


if __name__ == "__main__":
    main()
