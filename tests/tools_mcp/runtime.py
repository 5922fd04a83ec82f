"""A runtime that ends in a way that its first argument names, while it uses the server that the others describe.

It prints the process ids of the server and of its children, and then: `kill` waits to be killed, `sync` runs an agent
until Ctrl-C, `leave` ends its loop without closing anything, `old` does so as it was done before `asyncio.run`,
`crash` ends without any clean-up at all.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from aworld.agents.llm_agent import Agent
from aworld.models import FunctionModel
from aworld.models.doubles import call
from aworld.runner import Runners
from tests.tools_mcp.conftest import Caller, config, rough, tools_of

WAY, *MODES = sys.argv[1:]


def tell(line: str) -> None:
    """To whoever started us."""
    os.write(1, f"{line}\n".encode())


async def use() -> None:
    """One call."""
    tools = await tools_of(s=rough(*MODES))
    tell(await Caller()(tools["pids"]))
    if WAY == "kill":
        await asyncio.Event().wait()
    if WAY == "crash":
        os._exit(7)


def think(request: Any) -> Any:
    """Ask who is there, tell it, and wait for an answer that never comes."""
    if request.turn == 0:
        return call("pids")
    tell(request.messages[-1].text)
    return call("swallow")


if __name__ == "__main__":
    if WAY == "sync":
        Runners.sync_run("go", Agent("a", model=FunctionModel(think), mcp_config=config(s=rough(*MODES))))
    elif WAY == "old":
        loop = asyncio.new_event_loop()
        loop.run_until_complete(use())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
    else:
        asyncio.run(use())
