"""An assistant for a folder: it reads and edits a copy of the folder in a sandbox, and shows what it changed.

The agent never touches the folder itself. `--write` takes its changes over when it has finished. Without LLM_MODEL_NAME
a few rules stand in for the model, which write a table of contents, so that no key is needed.

    python examples/folder_assistant.py FOLDER ["Write a table of contents."] [--write]
"""

from __future__ import annotations

import argparse
import asyncio
import difflib
import os
import sys
from pathlib import Path, PurePosixPath

from aworld.agents.llm_agent import Agent
from aworld.core.exceptions import AWorldError
from aworld.core.message import ToolCall
from aworld.core.model import ModelRequest
from aworld.core.sandbox import Sandbox
from aworld.core.task import TaskResponse
from aworld.models import FunctionModel
from aworld.models.doubles import call
from aworld.runner import Runners
from aworld.tools.files import file_tools

LARGEST = 1_000_000
"""Bytes of a file that is copied."""


def stand_in(request: ModelRequest) -> str | ToolCall:
    """What a model would do: look, write down what is there, and say so."""
    seen = request.messages[-1].text
    if request.turn == 0:
        return call("list_files")
    if request.turn == 1:
        names = [line.split("  ")[0] for line in seen.splitlines()]
        listed = "".join(f"- {name}\n" for name in names if name != "CONTENTS.md")
        return call("write_file", path="CONTENTS.md", content=f"# Contents\n\n{listed}")
    return "CONTENTS.md lists what is in the folder."


def files_of(folder: Path) -> dict[str, bytes]:
    """The plain files of a folder, by their path in it; links and what is hidden or large are left out."""
    found: dict[str, bytes] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        if path.is_file() and not path.is_symlink() and not hidden and path.stat().st_size <= LARGEST:
            found[name.as_posix()] = path.read_bytes()
    return found


async def assist(request: str, folder: Path, box: Sandbox) -> tuple[TaskResponse, dict[str, bytes]]:
    """Let an agent work on a copy of `folder` in `box`. Returns its response, and the files that it changed or made."""
    before = files_of(folder)
    for name, data in before.items():
        await box.write(name, data)
    agent = Agent(
        "assistant",
        system_prompt="You help with the files of a folder. Look before you write; keep what you were not asked about.",
        model=None if os.environ.get("LLM_MODEL_NAME") else FunctionModel(stand_in),
        tools=file_tools(box),
    )
    response = await Runners.run(request, agent)
    after = await _files_in(box, ".")
    return response, {name: data for name, data in after.items() if before.get(name) != data}


async def _files_in(box: Sandbox, folder: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for entry in await box.list(folder):
        path = str(PurePosixPath(folder) / entry.name)
        if entry.is_folder:
            found |= await _files_in(box, path)
        elif entry.size <= LARGEST:
            found[path] = await box.read(path)
    return found


def difference(name: str, before: bytes, after: bytes) -> str:
    """The change of a text file, line by line."""
    old, new = (data.decode(errors="replace").splitlines(keepends=True) for data in (before, after))
    return "".join(difflib.unified_diff(old, new, f"a/{name}", f"b/{name}"))


def take_over(folder: Path, changed: dict[str, bytes]) -> None:
    """Write the changes into the folder. Raises ValueError for a path that would lead out of it."""
    home = folder.resolve()
    for name, data in changed.items():
        target = (home / name).resolve()
        if not target.is_relative_to(home):
            raise ValueError(f"{name} leads out of {folder}.")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


async def main() -> int:
    """Run the assistant in a local sandbox."""
    from aworld.sandbox import open_sandbox

    parser = argparse.ArgumentParser(description="An assistant for a folder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("request", nargs="?", default="Write a table of contents.")
    parser.add_argument("--write", action="store_true", help="take the changes over into the folder")
    args = parser.parse_args()
    box = await open_sandbox("local")
    try:
        response, changed = await assist(args.request, args.folder, box)
    finally:
        await box.close()
    before = files_of(args.folder)
    for name, data in changed.items():
        print(difference(name, before.get(name, b""), data))
    print(response.answer if response.success else f"{response.status}: {response.msg}")
    if args.write and response.success:
        take_over(args.folder, changed)
    return 0 if response.success else 1


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main()))
    except AWorldError as trouble:
        sys.exit(str(trouble))
