"""A light OpenAI-compatible chat server on loopback, so that the client's CPU is what a benchmark sees.

The model name says how it behaves: `bench-k4-l0.5-c50` asks for 4 calls of the tool `add(a, b)`, one a turn, then
answers with a text; each reply takes 0.5 s; a text is streamed in 50 chunks when the request says `"stream": true`.
With `-final` at the end the text comes as a call of the tool `final_answer(answer)`, as smolagents wants it.
With `-team` the calls are all made in the first turn, one each of the tools `m0(input)`, `m1(input)` and so on.

The server keeps no state: the number of tool results in the request says which turn it is, counted by
`bytes.count` without parsing JSON, and the sum of the last call must be there, or the reply is a 400.
A streamed reply is one write, every event an HTTP chunk of its own: it costs the client the parsing of
each event, not a wake-up for each.

It prints its port and ends when its standard input is closed, so it never outlives its parent.
`GET /count` returns how many completions were served, which shows hidden retries.
"""

from __future__ import annotations

import asyncio
import json
import re
import resource
import sys
from functools import lru_cache
from typing import Any, NamedTuple

MODEL = re.compile(rb"bench-k(\d+)-l([\d.]+)-c(\d+)(-final|-team)?")
LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
TOOL_RESULTS = (b'"role":"tool"', b'"role": "tool"')
OBSERVATION = b'"Observation:\\n'
"""smolagents sends tool results as texts of the user that start like this."""


class Behaviour(NamedTuple):
    """What a model name asks for."""

    name: str
    calls: int
    """Tool calls before the text."""
    latency: float
    """Seconds from request to reply."""
    chunks: int
    """Pieces in which the text is streamed."""
    final: bool
    """The text comes as a call of `final_answer`."""
    team: bool
    """All calls are made at once, each of a tool of its own."""


def model_name(calls: int, latency: float = 0, chunks: int = 1, final: bool = False, team: bool = False) -> str:
    """Name a model that makes `calls` tool calls, takes `latency` seconds and streams its text in `chunks` pieces."""
    return f"bench-k{calls}-l{latency:g}-c{chunks}{'-final' if final else '-team' if team else ''}"


def arguments(turn: int) -> tuple[int, int]:
    """What `add` is called with in a turn, counted from 0."""
    return 1000 + 7 * turn, 500_000 + 13 * turn


def pieces(calls: int, chunks: int) -> list[str]:
    """The final text, in the pieces in which it is streamed."""
    return [f"Done after {calls} calls.", *(f" word{i}" for i in range(1, chunks))]


def answer(model: str) -> str:
    """The text with which a run of this model ends."""
    behaviour = behaviour_of(model.encode())
    return "".join(pieces(behaviour.calls, behaviour.chunks))


def behaviour_of(body: bytes) -> Behaviour:
    """Find the model name in a request.

    Raises:
        ValueError: No such name is in it.
    """
    found = MODEL.search(body, max(0, body.find(b"bench-k")))
    if found is None:
        raise ValueError("the model must be named like bench-k4-l0-c1")
    name, calls, latency, chunks, kind = (found.group(i) for i in range(5))
    return Behaviour(name.decode(), int(calls), float(latency), int(chunks), kind == b"-final", kind == b"-team")


def turn_of(body: bytes, behaviour: Behaviour) -> int:
    """Count the tool results in a request and check that the last one is right.

    Raises:
        ValueError: The sum of the last call is missing.
    """
    turn = body.count(OBSERVATION) if behaviour.final else sum(body.count(mark) for mark in TOOL_RESULTS)
    if turn and not behaviour.team and str(sum(arguments(turn - 1))).encode() not in body:
        raise ValueError(f"the sum of call {turn} is not in the request")
    return turn


@lru_cache(maxsize=4096)
def _reply(behaviour: Behaviour, turn: int, stream: bool, usage: bool) -> bytes:
    """The whole HTTP reply of one turn; the same for all conversations, so it is built once."""
    call: tuple[str, str] | None = None
    if behaviour.team and turn < behaviour.calls:
        return _json(_team_calls(behaviour))
    if turn < behaviour.calls:
        a, b = arguments(turn)
        call = "add", json.dumps({"a": a, "b": b})
    elif behaviour.final:
        call = "final_answer", json.dumps({"answer": "".join(pieces(behaviour.calls, behaviour.chunks))})
    counts = {"prompt_tokens": 100 + 40 * turn, "completion_tokens": 20, "total_tokens": 120 + 40 * turn}
    if not stream:
        return _json(_completion(behaviour, turn, call, counts))
    return _event_stream(_chunks(behaviour, turn, call), behaviour.name, counts if usage else None)


def _completion(behaviour: Behaviour, turn: int, call: tuple[str, str] | None, usage: dict[str, int]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": None}
    if call is None:
        message["content"] = "".join(pieces(behaviour.calls, behaviour.chunks))
    else:
        message["tool_calls"] = [_tool_call(turn, *call)]
    reason = "stop" if call is None else "tool_calls"
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
    return {"id": f"chatcmpl-{turn}", "object": "chat.completion", "created": 1_760_000_000, "model": behaviour.name,
            "choices": [choice], "usage": usage}  # fmt: skip


def _team_calls(behaviour: Behaviour) -> dict[str, Any]:
    """The first reply of a leader: every member is called."""
    counts = {"prompt_tokens": 100, "completion_tokens": 20 * behaviour.calls, "total_tokens": 100}
    reply = _completion(behaviour, 0, ("m0", "{}"), counts)
    told = (json.dumps({"input": f"Do part {n} of the work."}) for n in range(behaviour.calls))
    reply["choices"][0]["message"]["tool_calls"] = [_tool_call(n, f"m{n}", text) for n, text in enumerate(told)]
    return reply


def _tool_call(turn: int, name: str, text: str) -> dict[str, Any]:
    return {"id": f"call_{turn:04d}", "type": "function", "function": {"name": name, "arguments": text}}


def _chunks(behaviour: Behaviour, turn: int, call: tuple[str, str] | None) -> list[dict[str, Any]]:
    """The deltas of a streamed reply."""
    role = {"role": "assistant", "content": None if call else ""}
    if call is None:
        return [role, *({"content": piece} for piece in pieces(behaviour.calls, behaviour.chunks))]
    name, text = call
    size = max(1, -(-len(text) // behaviour.chunks)) if name == "final_answer" else len(text)
    head = {"tool_calls": [{"index": 0, **_tool_call(turn, name, "")}]}
    parts = (text[i : i + size] for i in range(0, len(text), size))
    return [role, head, *({"tool_calls": [{"index": 0, "function": {"arguments": part}}]} for part in parts)]


def _event_stream(deltas: list[dict[str, Any]], name: str, usage: dict[str, int] | None) -> bytes:
    base = {"id": "chatcmpl-s", "object": "chat.completion.chunk", "created": 1_760_000_000, "model": name}
    reason = "tool_calls" if "tool_calls" in deltas[-1] else "stop"
    chunks = [{**base, "choices": [{"index": 0, "delta": d, "finish_reason": None}]} for d in deltas]
    chunks.append({**base, "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
    if usage is not None:
        chunks.append({**base, "choices": [], "usage": usage})
    events = [b"data: " + json.dumps(c, separators=(",", ":")).encode() + b"\n\n" for c in chunks]
    events.append(b"data: [DONE]\n\n")
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%s\r\n" % (len(e), e) for e in events) + b"0\r\n\r\n"


def _json(value: object, status: str = "200 OK") -> bytes:
    body = json.dumps(value, separators=(",", ":")).encode()
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Connection(asyncio.Protocol):
    """One keep-alive connection; requests are answered one after the other, as HTTP clients send them."""

    served = 0
    """Completions of all connections."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None

    def data_received(self, data: bytes) -> None:
        self.received += data
        end = self.received.find(b"\r\n\r\n")
        if end < 0:
            return
        length = LENGTH.search(self.received, 0, end + 2)
        total = end + 4 + (int(length.group(1)) if length else 0)
        if len(self.received) >= total:
            request = bytes(self.received[:total])
            del self.received[:total]
            self._answer(request)

    def _answer(self, request: bytes) -> None:
        if request.startswith(b"GET /count"):
            self._send(_json({"served": Connection.served}))
            return
        try:
            behaviour = behaviour_of(request)
            turn = turn_of(request, behaviour)
        except ValueError as error:
            self._send(_json({"error": {"message": str(error)}}, "400 Bad Request"))
            return
        Connection.served += 1
        stream = b'"stream":true' in request or b'"stream": true' in request
        reply = _reply(behaviour, turn, stream, b'"include_usage"' in request)
        if behaviour.latency:
            asyncio.get_running_loop().call_later(behaviour.latency, self._send, reply)
        else:
            self._send(reply)

    def _send(self, reply: bytes) -> None:
        if self.transport is not None:
            self.transport.write(reply)


class _EndOfInput(asyncio.Protocol):
    """Sets an event when the parent closes the pipe, or ends."""

    def __init__(self, ended: asyncio.Event) -> None:
        self.ended = ended

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set()


async def serve() -> None:
    """Serve on a free loopback port, print it, and return when standard input ends."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    await loop.connect_read_pipe(lambda: _EndOfInput(ended), sys.stdin)
    server = await loop.create_server(Connection, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await ended.wait()
    server.close()


if __name__ == "__main__":
    asyncio.run(serve())
