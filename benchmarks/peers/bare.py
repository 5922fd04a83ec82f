"""The floor: a loop on aiohttp and msgspec that writes every message and call durably to SQLite.

What an agent runtime must do at least: ask, run the tool, keep what happened. Rows are committed in groups by one
thread (WAL, `synchronous=NORMAL`, up to 500 rows, 2 ms linger), and a step ends when its rows are committed.
"""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from queue import Empty, SimpleQueue

import aiohttp
import msgspec

from peers import KEY, QUESTION

LINGER = 0.002
"""Seconds that the writer waits for more rows."""
GROUP = 500
"""Most rows of one commit."""


class Function(msgspec.Struct):
    """Name and arguments of a call."""

    name: str
    arguments: str


class ToolCall(msgspec.Struct):
    """A call that the model asks for."""

    id: str
    function: Function
    type: str = "function"


class Message(msgspec.Struct, omit_defaults=True):
    """A message of the conversation; in a streamed chunk, a piece of it."""

    role: str = ""
    content: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class Choice(msgspec.Struct):
    """One answer, whole (`message`) or a piece (`delta`)."""

    message: Message | None = None
    delta: Message | None = None
    finish_reason: str | None = None


class Completion(msgspec.Struct):
    """A reply or a streamed chunk."""

    choices: list[Choice]
    usage: dict[str, int] | None = None


class Arguments(msgspec.Struct):
    """What `add` takes."""

    a: int
    b: int


NUMBER = {"type": "integer"}
SCHEMA = {"type": "object", "properties": {"a": NUMBER, "b": NUMBER}, "required": ["a", "b"]}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Add two numbers.", "parameters": SCHEMA}}]

ENCODER = msgspec.json.Encoder()
DECODER = msgspec.json.Decoder(Completion)
ARGUMENTS = msgspec.json.Decoder(Arguments)

Row = tuple[str, int, str, bytes]


async def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class Log:
    """Appends rows to SQLite from one thread; `await log.append(rows)` returns when they are committed."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "bare.db"
        self.queue: SimpleQueue[tuple[list[Row], asyncio.Future[None]] | None] = SimpleQueue()
        self.loop = asyncio.get_running_loop()
        self.thread = threading.Thread(target=self._write, daemon=True)
        self.thread.start()

    def append(self, rows: list[Row]) -> asyncio.Future[None]:
        """Queue rows; the future is done when they are committed."""
        done: asyncio.Future[None] = self.loop.create_future()
        self.queue.put((rows, done))
        return done

    def close(self) -> None:
        """Write what is queued and delete the file."""
        self.queue.put(None)
        self.thread.join()
        self.folder.cleanup()

    def _write(self) -> None:
        base = sqlite3.connect(self.path, isolation_level=None)
        base.execute("PRAGMA journal_mode=WAL")
        base.execute("PRAGMA synchronous=NORMAL")
        base.execute("CREATE TABLE row (run TEXT, seq INT, kind TEXT, body BLOB, PRIMARY KEY (run, seq)) WITHOUT ROWID")
        while (first := self.queue.get()) is not None:
            group = [first]
            rows = list(first[0])
            time.sleep(LINGER)
            while len(rows) < GROUP:
                try:
                    item = self.queue.get_nowait()
                except Empty:
                    break
                if item is None:
                    self.queue.put(None)
                    break
                group.append(item)
                rows += item[0]
            base.execute("BEGIN")
            base.executemany("INSERT INTO row VALUES (?, ?, ?, ?)", rows)
            base.execute("COMMIT")
            self.loop.call_soon_threadsafe(_resolve, [done for _, done in group])
        base.close()


def _resolve(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


class _Shared:
    """The session and the log of the process."""

    session: aiohttp.ClientSession | None = None
    log: Log | None = None
    runs = 0


def _opened() -> tuple[aiohttp.ClientSession, Log]:
    if _Shared.session is None or _Shared.log is None:
        _Shared.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        _Shared.log = Log()
    return _Shared.session, _Shared.log


async def close() -> None:
    """Close session and log."""
    session, log = _opened()
    await session.close()
    log.close()
    _Shared.session = _Shared.log = None


async def run_one(base_url: str, model: str) -> str:
    """Run one task."""
    return await _run(base_url, model, stream=False)


async def stream_one(base_url: str, model: str) -> str:
    """Run one task, its texts streamed."""
    return await _run(base_url, model, stream=True)


async def _run(base_url: str, model: str, stream: bool) -> str:
    session, log = _opened()
    _Shared.runs += 1
    run, seq = f"run-{_Shared.runs}", 0
    messages = [Message("user", QUESTION)]
    rows: list[Row] = [(run, seq, "message", ENCODER.encode(messages[0]))]
    while True:
        started = time.time()
        message, usage = await _ask(session, base_url, model, messages, stream)
        new = [message, *await _call(message.tool_calls or [])]
        messages += new
        call = {"model": model, "usage": usage, "started": started, "seconds": time.time() - started}
        rows += [(run, seq + 1 + i, "message", ENCODER.encode(m)) for i, m in enumerate(new)]
        seq += len(new) + 1
        rows.append((run, seq, "call", ENCODER.encode(call)))
        await log.append(rows)
        if not message.tool_calls:
            return message.content or ""
        rows = []


async def _call(calls: list[ToolCall]) -> list[Message]:
    given = [ARGUMENTS.decode(call.function.arguments) for call in calls]
    return [Message("tool", str(await add(g.a, g.b)), tool_call_id=c.id) for g, c in zip(given, calls)]


async def _ask(
    session: aiohttp.ClientSession, base_url: str, model: str, messages: list[Message], stream: bool
) -> tuple[Message, dict[str, int] | None]:
    body: dict[str, object] = {"model": model, "messages": messages, "tools": TOOLS}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    async with session.post(f"{base_url}/chat/completions", data=ENCODER.encode(body), headers=headers) as reply:
        if reply.status != 200:
            raise RuntimeError(await reply.text())
        if stream:
            return await _joined(reply)
        completion = DECODER.decode(await reply.read())
    message = completion.choices[0].message
    assert message is not None
    return message, completion.usage


async def _joined(reply: aiohttp.ClientResponse) -> tuple[Message, dict[str, int] | None]:
    texts: list[str] = []
    usage = None
    async for piece in _pieces(reply):
        usage = piece.usage or usage
        texts += [choice.delta.content or "" for choice in piece.choices if choice.delta is not None]
    return Message("assistant", "".join(texts)), usage


async def _pieces(reply: aiohttp.ClientResponse) -> AsyncIterator[Completion]:
    rest = b""
    async for data in reply.content.iter_any():
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data: {"):
                yield DECODER.decode(line[6:])
