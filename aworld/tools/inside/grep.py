"""Finds lines by a regular expression in the files of a folder. Needs Python 3.8.

Runs where the files are: an expression that takes for ever costs the sandbox's time, not the runtime's. The arguments
are one JSON object; the answer is one too.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import stat
import sys
from collections.abc import Iterator

LINE = 500
"""Characters shown of a line."""
LARGEST = 20_000_000
"""Bytes of a file that is searched."""


def files(start: str, glob: str) -> Iterator[str]:
    """Paths of plain files, in order; links are not followed, and what is hidden is left out."""
    if os.path.isfile(start) and not os.path.islink(start):
        yield start
        return
    for folder, names, files_here in os.walk(start):
        names[:] = sorted(name for name in names if not name.startswith("."))
        for name in sorted(files_here):
            path = os.path.normpath(os.path.join(folder, name))
            if name.startswith(".") or not (fnmatch.fnmatch(name, glob) or fnmatch.fnmatch(path, glob)):
                continue
            mode = os.lstat(path)
            if stat.S_ISREG(mode.st_mode) and mode.st_size <= LARGEST:
                yield path


def main() -> None:
    """Search, and print what was found."""
    query = json.loads(sys.argv[1])
    most = int(query["most"])
    try:
        expression = re.compile(query["pattern"])
    except re.error as error:
        sys.exit(f"{query['pattern']!r} is no regular expression: {error}")
    home, start = os.path.realpath("."), os.path.realpath(query["path"])
    if os.path.commonpath((home, start)) != home:
        sys.exit(f"{query['path']} leads out of the work folder.")
    if not os.path.exists(start):
        sys.exit(f"There is no {query['path']}.")
    hits: list[str] = []
    searched = 0
    more = False
    for path in files(query["path"], query["glob"]):
        try:
            with open(path, "rb") as file:
                data = file.read()
        except OSError:
            continue  # gone, or not ours to read
        if b"\0" in data[:8192]:
            continue
        searched += 1
        for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
            if expression.search(line):
                if len(hits) == most:
                    more = True
                    break
                hits.append(f"{path}:{number}: {line.strip()[:LINE]}")
        if more:
            break
    print(json.dumps({"hits": hits, "searched": searched, "more": more}))


main()
