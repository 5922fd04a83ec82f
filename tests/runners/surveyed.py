"""The process that the tests of `run_many` start, and kill: forty questions, three steps each."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from aworld.config import RunConfig
from aworld.core.model import ModelRequest
from aworld.models.doubles import call
from aworld.runner import Runners
from tests.runners.scenes import add, thinking

STORE, ASKED = sys.argv[1], os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


async def think(request: ModelRequest) -> Any:
    """Adds twice, then answers."""
    await asyncio.sleep(0.005)
    os.write(ASKED, f"answered {request.trajectory_id} {request.turn}\n".encode())
    return call("add", a=request.turn, b=1) if request.turn < 2 else "done"


async def main() -> None:
    """Put the questions, and say how it went."""
    agent = thinking(think, tools=[add], name="surveyor")
    conf = RunConfig(store=STORE, max_concurrency=8)
    questions = [f"What is {n}?" for n in range(40)]
    report = await Runners.run_many(questions, agent, run="survey", run_conf=conf, on_done=lambda r: tell(r.id))
    tell(str(report))


def tell(line: str) -> None:
    """One write, so that a kill leaves whole lines."""
    os.write(1, f"{line}\n".encode())


asyncio.run(main())
