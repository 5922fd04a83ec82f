"""What an MCP call costs through an AWorld tool, against the bare SDK client; and how warm a second task starts.

    python benchmarks/mcp_calls.py [--calls 300] [--rounds 7] [--json FILE]

CPU is of the client's process in all its threads; the server has a process of its own. Both clients call the same
server, in turns, so that a busy machine is as busy for the one as for the other; the median of the rounds counts.
Targets: at most 1.5 times the CPU of the bare client, and a second task on a warm stdio server in under 20 ms.
(Not named after its subject: a script's own folder comes first where it imports from, also for `import mcp`.)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Any

from mcp import Client, StdioServerParameters
from mcp.client.sse import sse_client

from aworld.agents.llm_agent import Agent
from aworld.config.conf import TaskConfig
from aworld.core.context.base import Context, RunScope
from aworld.core.event import TaskInfo
from aworld.core.message import ToolCall
from aworld.core.tool.base import ToolContext
from aworld.core.tool.toolkit import Toolkit
from aworld.models import ScriptedModel
from aworld.models.doubles import call
from aworld.runner import Runners
from aworld.runners.run import World
from aworld.tools.mcp import mcp_tools
from aworld.tools.mcp_session import close_sessions

SERVER = """
import asyncio, socket, sys
from mcp.server.mcpserver import MCPServer

server = MCPServer("benchmark", log_level="ERROR")

@server.tool()
def add(a: int, b: int) -> str:
    return str(a + b)

if sys.argv[1] == "stdio":
    server.run()
else:
    import uvicorn
    listener = socket.create_server(("127.0.0.1", 0))
    app = server.sse_app() if sys.argv[1] == "sse" else server.streamable_http_app()
    path = "sse" if sys.argv[1] == "sse" else "mcp"
    print(f"http://127.0.0.1:{listener.getsockname()[1]}/{path}", flush=True)
    asyncio.run(uvicorn.Server(uvicorn.Config(app, log_level="error")).serve(sockets=[listener]))
"""
ARGUMENTS = {"a": 17, "b": 23}
TRANSPORTS = ("stdio", "sse", "streamable-http")
IN_FLIGHT = 50


class ThroughAWorld:
    """A call as a run makes it: deadline, result as a message, errors told."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config
        self._world, self._conf = World(), TaskConfig()
        self._call = ToolCall("call", "add", json.dumps(ARGUMENTS))
        state: dict[str, Any] = {}
        self._context = ToolContext("run", "a", 0, "call", Context("run", TaskInfo("t"), state, state.__setitem__))

    async def open(self) -> None:
        """Start the server, and learn its tools."""
        toolkit = Toolkit(mcp_tools({"mcpServers": {"s": self._config}}), owner="benchmark")
        self._offer = await toolkit.resolve((), RunScope("run", TaskInfo("t")))

    async def once(self) -> None:
        """One call."""
        result = await self._world.act(self._offer, self._call, self._context, self._conf)
        assert result.content == "40", result


async def cpu_ms(once: Callable[[], Awaitable[Any]], calls: int, in_flight: int) -> float:
    """CPU milliseconds of one of so many calls."""
    began = time.process_time()
    for _ in range(calls // in_flight):
        await asyncio.gather(*(once() for _ in range(in_flight)))
    return (time.process_time() - began) / (calls // in_flight * in_flight) * 1000


async def compare(config: dict[str, Any], calls: int, rounds: int) -> dict[str, Any]:
    """The bare client and ours, one call at a time and many at once."""
    if config["type"] == "stdio":
        bare = Client(StdioServerParameters(command=config["command"], args=config["args"]))
    else:
        bare = Client(sse_client(config["url"]) if config["type"] == "sse" else config["url"])
    ours = ThroughAWorld(config)
    await ours.open()
    found: dict[str, Any] = {}
    async with bare:

        async def once() -> None:
            result = await bare.call_tool("add", ARGUMENTS)
            assert not result.is_error

        await bare.list_tools()
        for in_flight in (1, IN_FLIGHT):
            pairs = [
                (await cpu_ms(once, calls, in_flight), await cpu_ms(ours.once, calls, in_flight))
                for _ in range(rounds + 1)
            ][1:]  # the first warms up
            sdk, aworld = (median(side) for side in zip(*pairs))
            found[f"{in_flight} in flight"] = {
                "sdk_ms": round(sdk, 3),
                "aworld_ms": round(aworld, 3),
                "ratio": round(aworld / sdk, 2),
            }
    await close_sessions()
    return found


async def warmth(config: dict[str, Any], tasks: int = 20) -> dict[str, float]:
    """Milliseconds of the first task with a stdio server, and of those that follow: one call, one answer."""
    model = ScriptedModel([call("add", **ARGUMENTS), "It is 40."])
    agent = Agent("a", model=model, mcp_config={"mcpServers": {"s": config}})
    took: list[float] = []
    for _ in range(tasks):
        began = time.perf_counter()
        response = await Runners.run("17 + 23?", agent)
        took.append((time.perf_counter() - began) * 1000)
        assert response.success
    await close_sessions()
    return {"first_ms": round(took[0]), "second_ms": round(took[1], 1), "later_ms": round(median(took[2:]), 1)}


async def measure(calls: int, rounds: int) -> dict[str, Any]:
    """All of it."""
    stdio = {"type": "stdio", "command": sys.executable, "args": ["-c", SERVER, "stdio"]}
    found: dict[str, Any] = {"warm stdio server": await warmth(stdio)}  # first, while nothing has been imported
    for kind in TRANSPORTS:
        if kind == "stdio":
            found[kind] = await compare(stdio, calls, rounds)
            continue
        server = await asyncio.create_subprocess_exec(
            sys.executable, "-c", SERVER, kind, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        assert server.stdout is not None
        url = (await server.stdout.readline()).decode().strip()
        found[kind] = await compare({"type": kind, "url": url}, calls, rounds)
        server.kill()
        await server.wait()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=300, help="calls a round (300)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds (7)")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "mcp.json", metavar="FILE")
    args = parser.parse_args()
    found = asyncio.run(measure(args.calls, args.rounds))
    print(f"{'transport':<16} {'':<14} {'SDK':>9} {'AWorld':>9} {'ratio':>6}   CPU of a call")
    for kind in TRANSPORTS:
        for load, figures in found[kind].items():
            sdk, ours = f"{figures['sdk_ms']:.3f} ms", f"{figures['aworld_ms']:.3f} ms"
            print(f"{kind:<16} {load:<14} {sdk:>9} {ours:>9} {figures['ratio']:>6.2f}")
    warm = found["warm stdio server"]
    print(
        f"stdio server: first task {warm['first_ms']} ms, second {warm['second_ms']} ms, later {warm['later_ms']} ms "
        f"(median)"
    )
    args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
