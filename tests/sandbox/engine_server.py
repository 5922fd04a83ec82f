"""An engine that speaks what Docker does, as far as commands go: they run on this machine, without a container.

So nothing may run here that ends all processes it can reach, which is how a container is told to end its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

Answer: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class StubEngine:
    """What was asked for, and the commands that run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._wanted: dict[str, dict[str, Any]] = {}
        self._running: dict[str, asyncio.subprocess.Process] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, path, _ = head.split(" ", 2)
        size = int(head.lower().split("content-length: ")[1].split("\r\n")[0])
        body: Any = json.loads(await reader.readexactly(size) or b"null")
        match method, path.strip("/").split("/"):
            case "POST", ["containers", _, "exec"]:
                id = str(len(self._wanted))
                self._wanted[id] = body
                self._answer(writer, {"Id": id})
            case "POST", ["exec", id, "start"] if "kill -9 -1" in "".join(self._wanted[id]["Cmd"]):
                self._kill_all()
                self._answer(writer, {})
            case "POST", ["exec", id, "start"]:
                writer.write(b"HTTP/1.1 101 UPGRADED\r\n\r\n")
                await self._run(id, reader, writer)
            case "GET", ["exec", id, "json"]:
                code = self._running[id].returncode
                self._answer(writer, {"Running": code is None, "ExitCode": code})
            case _:
                self._answer(writer, {})

    def _answer(self, writer: asyncio.StreamWriter, body: Any) -> None:
        data = json.dumps(body).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(data), data))

    async def _run(self, id: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Run a command until its output has ended, which may be before its own end."""
        pipe = asyncio.subprocess.PIPE
        process = self._running[id] = await asyncio.create_subprocess_exec(
            *self._wanted[id]["Cmd"],
            cwd=self._folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            start_new_session=True,
        )

        async def pass_on(channel: int, stream: asyncio.StreamReader | None) -> None:
            assert stream is not None
            while piece := await stream.read(1 << 15):
                writer.write(struct.pack(">BxxxI", channel, len(piece)) + piece)
                await writer.drain()

        await asyncio.gather(pass_on(1, process.stdout), pass_on(2, process.stderr))

    def _kill_all(self) -> None:
        for process in self._running.values():
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)

    async def close(self) -> None:
        """End what still runs."""
        self._kill_all()
        for process in self._running.values():
            await process.wait()


@asynccontextmanager
async def serving(folder: Path, answer: Answer) -> AsyncGenerator[str]:
    """A server that answers each connection so, and is done with all of them at the end; its address."""
    answering: set[asyncio.Task[None]] = set()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answering.add(asyncio.create_task(serve(reader, writer)))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            try:
                await answer(reader, writer)
            finally:
                writer.close()
                await writer.wait_closed()

    async with await asyncio.start_unix_server(begin, folder / "engine"):
        yield f"unix://{folder}/engine"
        await asyncio.gather(*answering)


@asynccontextmanager
async def stub_engine(folder: Path) -> AsyncGenerator[str]:
    """An engine whose commands run in a folder; its address."""
    engine = StubEngine(folder)
    async with serving(folder.parent, engine.serve) as address:
        yield address
        await engine.close()
