"""Real processes for tests of stores that several of them use."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

HEAD = """
import asyncio, sys
from aworld.core.event import *
from aworld.trajectory import Query, open_store
from tests.strategies import run_of
store = open_store(sys.argv[1])
"""


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A process that runs `code`, with `store` the one at its first argument; it says by `print` what is read here."""
    text = HEAD + textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-u", "-c", text, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path.cwd(),
    )


def said(process: subprocess.Popen[str]) -> str:
    """The next line that a process says; empty when it has ended."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def slay(process: subprocess.Popen[str]) -> None:
    """Kill a process with -9, and return when it is dead, though not yet buried."""
    process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


async def until(holds: Callable[[], bool]) -> None:
    """Return as soon as something holds that another thread or process brings about."""
    async with asyncio.timeout(10):
        while True:
            if holds():
                return
            await asyncio.sleep(0)


def bury(*processes: subprocess.Popen[str]) -> None:
    """Kill what still runs, and close what is open to it."""
    for process in processes:
        process.kill()
        process.communicate()
