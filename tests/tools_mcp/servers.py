"""A server written with the SDK, over the transport that its first argument names: stdio, sse or streamable-http.

Over HTTP it chooses a port and prints the address.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from typing import Annotated, Any

import uvicorn
from mcp import SamplingMessage
from mcp.server.elicitation import AcceptedElicitation, CancelledElicitation, DeclinedElicitation
from mcp.server.mcpserver import Audio, Context, Image, MCPServer
from mcp.server.mcpserver.resolve import Elicit, Resolve, Sample
from mcp_types import (
    BlobResourceContents,
    CallToolResult,
    CreateMessageResult,
    EmbeddedResource,
    ResourceLink,
    TextContent,
    TextResourceContents,
)
from pydantic import BaseModel

server = MCPServer("everything")
notes: list[str] = []
cancelled = asyncio.Event()


class Weather(BaseModel):
    city: str
    degrees: float


class Booking(BaseModel):
    seats: int


@server.tool()
def add(a: int, b: int = 1) -> str:
    """Add two numbers."""
    return str(a + b)


@server.tool()
def note(text: str) -> str:
    """Keep a note in the server's memory."""
    notes.append(text)
    return "noted"


@server.tool()
def read_notes() -> list[str]:
    """All notes, and by whom they are kept."""
    return [*notes, str(os.getpid())]


@server.tool()
def environment() -> dict[str, str]:
    """Everything in the server's environment."""
    return dict(os.environ)


@server.tool()
def weather(city: str) -> Weather:
    """Structured content with a schema."""
    return Weather(city=city, degrees=21.5)


@server.tool(structured_output=False)
def mixed() -> list[Any]:
    """Text, a picture, a sound, resources and a link."""
    blob = BlobResourceContents(uri="file:///tmp/report.pdf", mime_type="application/pdf", blob="JVBERg==")
    plain = TextResourceContents(uri="file:///tmp/a.txt", mime_type="text/plain", text="inside")
    return [
        TextContent(text="look:"),
        Image(data=b"\x89PNG", format="png"),
        Audio(data=b"RIFF", format="wav"),
        EmbeddedResource(resource=plain),
        EmbeddedResource(resource=blob),
        ResourceLink(uri="https://example.org/x", name="x", description="an example"),
    ]


@server.tool()
def both() -> CallToolResult:
    """Text for people, and more in the structured content."""
    return CallToolResult(content=[TextContent(text="three rows")], structured_content={"rows": [1, 2, 3]})


@server.tool()
def fail() -> str:
    """Never works."""
    raise ValueError("the disk is full")


@server.tool()
async def work(ctx: Context, steps: int) -> str:
    """Tells of its progress, and writes to the log."""
    for step in range(steps):
        await ctx.report_progress(step + 1, steps, f"step {step + 1}")
    await ctx.info("all done")  # pyright: ignore[reportDeprecated]
    return "worked"


@server.tool()
async def hang(ctx: Context) -> str:
    """Says that it has begun, and never ends by itself."""
    cancelled.clear()
    await ctx.report_progress(0, 1, "begun")
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        cancelled.set()
        raise
    return "never"


@server.tool()
async def was_cancelled() -> str:
    """Waits until the last `hang` was cancelled."""
    async with asyncio.timeout(10):
        await cancelled.wait()
    return "cancelled"


async def ask_seats(city: str) -> Elicit[Booking]:
    return Elicit(f"How many seats to {city}?", Booking)


@server.tool()
async def book(
    city: str,
    answer: Annotated[AcceptedElicitation[Booking] | DeclinedElicitation | CancelledElicitation, Resolve(ask_seats)],
) -> str:
    """Asks a person."""
    if isinstance(answer, AcceptedElicitation):
        return f"{answer.data.seats} seats to {city}"
    return f"no seats: {answer.action}"


async def ask_model(topic: str) -> Sample:
    return Sample([SamplingMessage(role="user", content=TextContent(text=f"A word about {topic}?"))], max_tokens=50)


@server.tool()
async def muse(topic: str, thought: Annotated[CreateMessageResult, Resolve(ask_model)]) -> str:
    """Asks the model of whoever calls."""
    return f"the model says: {thought.content.text}" if thought.content.type == "text" else "?"


@server.tool()
async def learn(name: str, ctx: Context) -> str:
    """Adds a tool to the server."""

    def skill() -> str:
        return f"{name} done"

    server.add_tool(skill, name=name)
    await ctx.notify_tools_changed()
    await ctx.session.send_tool_list_changed()
    return "learnt"


@server.tool(name="odd name/with.dots")
def odd() -> str:
    """A name that providers refuse."""
    return "odd"


@server.tool()
def die() -> str:
    """Ends the process at once."""
    os._exit(3)


def main() -> None:
    kind = sys.argv[1]
    if kind == "stdio":
        server.run()
        return
    listener = socket.create_server(("127.0.0.1", int(sys.argv[2]) if len(sys.argv) > 2 else 0))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # asyncio does so only for sockets of its own
    app = server.sse_app() if kind == "sse" else server.streamable_http_app()
    path = "sse" if kind == "sse" else "mcp"
    os.write(1, f"http://127.0.0.1:{listener.getsockname()[1]}/{path}\n".encode())
    config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=0)
    asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))


if __name__ == "__main__":
    main()
