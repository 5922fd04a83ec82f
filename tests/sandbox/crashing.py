"""The runtime that the crash test kills: it has sandboxes of two kinds, and processes in each."""

from __future__ import annotations

import asyncio
import sys

from aworld.core.sandbox import SandboxLimits
from aworld.sandbox import open_sandbox
from tests.sandbox.places import NamedPool

MARK = sys.argv[1]


async def main() -> None:
    limits = SandboxLimits(memory_mb=128, disk_mb=16)
    boxed = NamedPool(lambda: open_sandbox("local", limits), size=4, warm=1)
    bare = NamedPool(lambda: open_sandbox("none", limits), size=2)
    for pool, names in ((boxed, "abc"), (bare, "de")):
        for name in names:
            sandbox = await pool.lease(name)
            await sandbox.write("left", b"behind")
            await sandbox.exec(f"setsid -f sh -c \"trap '' TERM HUP; while :; do sleep {MARK}; done\" >/dev/null 2>&1")
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await (await boxed.lease("a")).exec(f"sleep {MARK}")


asyncio.run(main())
