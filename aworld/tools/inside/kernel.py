"""A Python that keeps its variables: runs one piece of code after the other. Needs Python 3.8.

Each request is a line of JSON, `{"code": ..., "limit": ...}`; each answer one too: what the code printed and what went
wrong, both cut at `limit` bytes. Everything that the code or a child of it writes to standard output or standard error
goes through one pipe, so that it stands in the order in which it was written, and a flood of it fills no memory.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import linecache
import os
import sys
import threading
import traceback
import types
import uuid
from contextlib import suppress
from typing import Any


class Capture:
    """Reads what is written to the standard streams, and keeps the beginning of it."""

    def __init__(self) -> None:
        self._read, write = os.pipe()
        os.dup2(write, 1)
        os.dup2(write, 2)
        os.close(write)
        self._lock = threading.Lock()
        self._kept = bytearray()
        self._total = 0
        self._limit = 0
        self._mark = b""
        self._seen = threading.Event()
        threading.Thread(target=self._drain, daemon=True).start()

    def begin(self, limit: int) -> None:
        """Forget what came before; keep `limit` bytes."""
        with self._lock:
            self._kept.clear()
            self._total, self._limit, self._mark = 0, limit, b""
        self._seen.clear()

    def end(self) -> tuple[str, int]:
        """The text that was kept, and how many bytes were dropped."""
        mark = b"\0" + uuid.uuid4().hex.encode() + b"\0"
        with self._lock:
            self._mark = mark
        os.write(1, mark)  # when it comes out of the pipe, so has all that was written before
        self._seen.wait(5)
        with self._lock:
            return self._kept.decode("utf-8", "backslashreplace"), self._total - len(self._kept)

    def _drain(self) -> None:
        tail = b""
        while True:
            data = tail + os.read(self._read, 65536)
            with self._lock:
                mark = self._mark
                at = data.find(mark) if mark else -1
                if at >= 0:
                    self._keep(data[:at])
                    tail, self._mark = b"", b""
                    self._seen.set()
                    self._keep(data[at + len(mark) :])
                    continue
                held = len(mark) - 1 if mark else 0  # a mark may come in two pieces
                self._keep(data[: len(data) - held])
                tail = data[len(data) - held :]

    def _keep(self, data: bytes) -> None:
        self._total += len(data)
        room = self._limit - len(self._kept)
        if room > 0:
            self._kept += data[:room]


class PythonSession:
    """The variables, and the running of code among them."""

    def __init__(self) -> None:
        self.module = types.ModuleType("__main__")
        self._own = sys.modules["__main__"]  # which would be emptied if nothing held it
        sys.modules["__main__"] = self.module
        self._number = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, code: str) -> str | None:
        """Run code and print the value of a last expression. Returns what went wrong, None when nothing did."""
        self._number += 1
        name = f"<cell {self._number}>"
        linecache.cache[name] = (len(code), None, code.splitlines(True), name)  # so that a traceback shows the lines
        try:
            tree = ast.parse(code, name)
            last = tree.body[-1] if tree.body else None
            if isinstance(last, ast.Expr):
                tree.body.pop()
            self._execute(compile(tree, name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT))
            if isinstance(last, ast.Expr):
                value = self._execute(compile(ast.Expression(last.value), name, "eval", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT))
                if value is not None:
                    self.module.__dict__["_"] = value
                    print(repr(value))
        except BaseException as error:  # noqa: BLE001 - also SystemExit: it is the code's news, not the kernel's end
            return _told(error)
        return None

    def _execute(self, code: types.CodeType) -> Any:
        value = eval(code, self.module.__dict__)
        if code.co_flags & inspect.CO_COROUTINE:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
            return self._loop.run_until_complete(value)
        return value


def _streams() -> tuple[Any, Any]:
    """The standard streams as they were, whatever earlier code did to them."""
    sys.stdin = os.fdopen(0, "r", encoding="utf-8", closefd=False)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, f"__{name}__")
        if stream is None or stream.closed:
            stream = os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
            setattr(sys, f"__{name}__", stream)
        setattr(sys, name, stream)
    return sys.__stdout__, sys.__stderr__


def _told(error: BaseException) -> str:
    """A traceback without the frames of this file."""
    frames = error.__traceback__
    while frames is not None and not frames.tb_frame.f_code.co_filename.startswith("<cell "):
        frames = frames.tb_next
    try:
        return "".join(traceback.format_exception(type(error), error, frames)).rstrip()
    except Exception as worse:  # noqa: BLE001 - an exception whose own text fails
        return f"{type(error).__name__} (and its text raised {type(worse).__name__})"


def main() -> None:
    """Answer requests until there are none."""
    sys.__stdout__ = sys.__stderr__ = None  # those of the start know nothing of UTF-8 and lines
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")  # not inherited by children, as `os.dup` makes it
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # `input()` finds nothing, and not the next request
    sys.path.insert(0, "")
    capture, session = Capture(), PythonSession()
    for line in requests:
        streams = _streams()
        request = json.loads(line)
        limit = int(request["limit"])
        capture.begin(limit)
        error = session.run(request["code"])
        for stream in (sys.stdout, sys.stderr, *streams):
            with suppress(Exception):  # the code may have closed or replaced it
                stream.flush()
        output, dropped = capture.end()
        if error is not None and len(error) > limit:
            error = f"{error[: limit // 2]}\n[…]\n{error[-limit // 2 :]}"
        answers.write(json.dumps({"output": output, "dropped": dropped, "error": error}) + "\n")
        answers.flush()


main()
