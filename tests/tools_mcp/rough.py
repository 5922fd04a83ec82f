"""A stdio server in plain lines, as of 2025, that starts in an instant and misbehaves as its arguments say.

It speaks no more than the tests need. Arguments: `mute` never answers, `shy` does not list its tools, `loud` floods
standard error before every answer, `babble` prints what is no JSON before every answer, `stubborn` ignores the end of
its input and SIGTERM, `family` has a child that outlives it, `dead` ends at once, `endless` answers calls with one
line that never ends, `twice` lists each of its tools on two pages, `broken` lists some that are none, `many` lists new
ones on every page, `idle` asks the client's model before it lists its tools.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

QUESTION = {"messages": [{"role": "user", "content": {"type": "text", "text": "hello?"}}], "maxTokens": 100_000}
MODES = set(sys.argv[1:])
TOOLS = ["echo", "crash", "garble", "pids", "log", "elicit", "sample", "swallow", "half"]


def put(line: str, fd: int = 1) -> None:
    """One line, at once."""
    data = f"{line}\n".encode()
    while data:
        data = data[os.write(fd, data) :]


def say(message: dict[str, Any]) -> None:
    """One line."""
    if "babble" in MODES:
        put("loading model… 50 %\n{not json}\n\x00\xff")
    put(json.dumps({"jsonrpc": "2.0", **message}))


def answer(id: Any, text: str) -> None:
    """The result of a call."""
    say({"id": id, "result": {"content": [{"type": "text", "text": text}]}})


def ask(method: str, params: dict[str, Any]) -> Any:
    """What the client says to a question."""
    say({"id": f"ask-{method}", "method": method, "params": params})
    for line in sys.stdin:
        message = json.loads(line)
        if message.get("id") == f"ask-{method}":
            return message.get("result", message.get("error"))
    raise SystemExit


def call(id: Any, name: str, arguments: dict[str, Any]) -> None:
    """Run a tool."""
    while "endless" in MODES:
        os.write(1, b"x" * 65536)
    match name:
        case "crash":
            put(f"cannot go on, key={os.environ.get('SERVICE_API_KEY')}", 2)
            os._exit(1)
        case "garble":
            put('{"jsonrpc": "2.0", "id": ' + str(id) + ', "result": {"content": [{"type": "te')
            answer(id, "garbled, then clear")
        case "pids":
            answer(id, json.dumps([os.getpid(), *(child.pid for child in CHILDREN)]))
        case "log":
            say({"method": "notifications/message", "params": {"level": "info", "data": arguments["text"]}})
            answer(id, "logged")
        case "elicit":
            asked: dict[str, Any] = {"message": "Your name?", "requestedSchema": {"type": "object", "properties": {}}}
            answer(id, json.dumps(ask("elicitation/create", asked)))
        case "sample":
            said = [ask("sampling/createMessage", QUESTION) for _ in range(arguments.get("times", 1))]
            answer(id, json.dumps(said if "times" in arguments else said[0]))
        case "half":
            answer(id, "half a letter: \ud800")
        case "swallow":
            pass  # no answer, ever
        case _:
            answer(id, arguments.get("text", json.dumps(dict(os.environ))))


def handle(message: dict[str, Any]) -> None:
    """Answer one message."""
    id, method = message.get("id"), message.get("method")
    params: dict[str, Any] = message.get("params") or {}
    if "loud" in MODES:
        put("noise\n" * 200_000, 2)
    if id is None or method is None:
        return
    if method == "initialize":
        info = {"name": "rough", "version": "1"}
        capabilities = {"tools": {"listChanged": True}, "logging": {}}
        version = params["protocolVersion"]
        say({"id": id, "result": {"protocolVersion": version, "capabilities": capabilities, "serverInfo": info}})
    elif method == "tools/list" and "shy" in MODES:
        pass
    elif method == "tools/list":
        tools = [{"name": name, "inputSchema": {"type": "object"}} for name in TOOLS]
        page = params.get("cursor") or ""
        more = {"nextCursor": "more"} if "twice" in MODES and not page else {}
        if "many" in MODES:
            tools = [{"name": f"tool{page}-{number}", "inputSchema": {"type": "object"}} for number in range(300)]
            more = {"nextCursor": f"{page}x"}
        if "broken" in MODES:
            tools += [{"name": "bad", "inputSchema": {"type": "object", "properties": 5}}, {"name": "none"}, 7]
        if "idle" in MODES:
            put(json.dumps(ask("sampling/createMessage", QUESTION)), 2)
        say({"id": id, "result": {"tools": tools, **more}})
    elif method == "tools/call":
        call(id, params["name"], params.get("arguments") or {})
    else:
        say({"id": id, "error": {"code": -32601, "message": f"no {method}"}})


CHILDREN: list[subprocess.Popen[bytes]] = []

if __name__ == "__main__":
    if "dead" in MODES:
        put("no licence", 2)
        sys.exit(2)
    if "stubborn" in MODES:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "family" in MODES:
        CHILDREN.append(subprocess.Popen(["sleep", "600"]))
    for line in sys.stdin:
        if "mute" not in MODES:
            handle(json.loads(line))
    while "stubborn" in MODES:
        signal.pause()
