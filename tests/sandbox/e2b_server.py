"""A server that speaks what E2B's does, on this machine, for E2B's own SDK: its sandbox is a box of bubblewrap.

The SDK brings the protocol of commands and folders; the paths of its two REST services are the few that it asks for.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
import uvicorn


class Machine:
    """The box in which commands run: one for the whole server, entered for each command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("home", "tmp"):
            (folder / name).mkdir()
        info, told = os.pipe()
        self.process = subprocess.Popen(
            [
                *("bwrap", "--unshare-all", "--unshare-user", "--ro-bind", "/usr", "/usr"),
                *(word for name in ("bin", "lib", "lib64") for word in ("--symlink", f"usr/{name}", f"/{name}")),
                *("--proc", "/proc", "--dev", "/dev"),
                *("--bind", str(folder / "home"), "/home/user", "--bind", str(folder / "tmp"), "/tmp"),
                *("--die-with-parent", "--info-fd", str(told), "sleep", "infinity"),
            ],
            pass_fds=[told],
        )  # fmt: skip
        os.close(told)
        with open(info, "rb") as file:
            self.pid = json.loads(file.read())["child-pid"]

    def enter(self, argv: list[str]) -> list[str]:
        """The command line that runs inside."""
        return ["nsenter", "-t", str(self.pid), "-U", "-m", "-p", "-n", "--preserve-credentials", *argv]

    def place(self, path: str) -> Path:
        """Where a path of the box is on this machine."""
        for inside, outside in (("/home/user", "home"), ("/tmp", "tmp")):
            if path == inside or path.startswith(f"{inside}/"):
                return self.folder / outside / path[len(inside) :].lstrip("/")
        raise FileNotFoundError(path)

    def close(self) -> None:
        """End everything in it. Does nothing the second time."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)  # the first process inside: with it all others end
        self.process.wait()


class Service:
    """What the SDK asks for is there; everything else of the protocol is refused."""

    def __getattr__(self, name: str) -> Any:
        def unknown(*_: Any) -> Any:
            raise _refused("UNIMPLEMENTED", name)

        return unknown


class Commands(Service):
    """The service of processes."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._pb = import_module("e2b.envd.process.process_pb")
        self._oneof = import_module("protobuf").Oneof
        self._running: dict[int, asyncio.subprocess.Process] = {}

    async def start(self, request: Any, ctx: Any) -> AsyncIterator[Any]:
        wanted = request.process
        if wanted.cwd not in ("", "/") and not self._machine.place(wanted.cwd).is_dir():
            raise _refused("INVALID_ARGUMENT", f"cwd {wanted.cwd!r} does not exist")
        argv = ["sh", "-c", 'cd "$1"; shift; exec "$@"', "sh", wanted.cwd or "/", wanted.cmd, *wanted.args]
        process = await asyncio.create_subprocess_exec(
            *self._machine.enter(argv),
            env={"PATH": "/usr/bin:/bin", "HOME": "/home/user", **dict(wanted.envs)},
            stdin=asyncio.subprocess.PIPE if request.stdin else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        self._running[process.pid] = process
        event = self._pb.ProcessEvent
        yield self._event("start", event.StartEvent(pid=process.pid))
        assert process.stdout is not None
        try:
            while piece := await process.stdout.read(1 << 15):
                yield self._event("data", event.DataEvent(output=self._oneof("stdout", piece)))
            code = await process.wait()
            yield self._event("end", event.EndEvent(exit_code=code if code >= 0 else 128 - code, exited=code >= 0))
        finally:
            del self._running[process.pid]

    async def send_input(self, request: Any, ctx: Any) -> Any:
        process = self._found(request)
        assert process.stdin is not None
        process.stdin.write(request.input.input.value)
        await process.stdin.drain()
        return self._pb.SendInputResponse()

    async def send_signal(self, request: Any, ctx: Any) -> Any:
        self._found(request).send_signal(signal.SIGKILL)
        return self._pb.SendSignalResponse()

    def _found(self, request: Any) -> asyncio.subprocess.Process:
        process = self._running.get(request.process.selector.value)
        if process is None:
            raise _refused("NOT_FOUND", "no such process")
        return process

    def _event(self, field: str, value: Any) -> Any:
        return self._pb.StartResponse(event=self._pb.ProcessEvent(event=self._oneof(field, value)))


class Folders(Service):
    """The service of folders."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._pb = import_module("e2b.envd.filesystem.filesystem_pb")

    async def make_dir(self, request: Any, ctx: Any) -> Any:
        self._machine.place(request.path).mkdir(parents=True, exist_ok=True)
        return self._pb.MakeDirResponse()

    async def list_dir(self, request: Any, ctx: Any) -> Any:
        place = self._machine.place(request.path)
        if not place.is_dir():
            raise _refused("NOT_FOUND", f"{request.path} is no folder")
        kinds = self._pb.FileType
        entries = [
            self._pb.EntryInfo(
                name=entry.name, path=f"{request.path}/{entry.name}", size=entry.stat().st_size,
                type=kinds.DIRECTORY if entry.is_dir() else kinds.FILE,
            )
            for entry in place.iterdir()
        ]  # fmt: skip
        return self._pb.ListDirResponse(entries=entries)


class Server:
    """The API and one sandbox, within `async with`; every sandbox that is made is the same."""

    def __init__(self, folder: Path) -> None:
        self.machine = Machine(folder)
        self.made: list[dict[str, Any]] = []
        self.killed: list[str] = []
        process, folders = import_module("e2b.envd.process.process_connect"), "e2b.envd.filesystem.filesystem_connect"
        self._services = {
            "/process.Process": process.ProcessASGIApplication(Commands(self.machine)),
            "/filesystem.Filesystem": import_module(folders).FilesystemASGIApplication(Folders(self.machine)),
        }
        self._server = uvicorn.Server(uvicorn.Config(self, log_level="warning", lifespan="off"))
        self._serving: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Server:
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._serving = asyncio.create_task(self._server.serve([listener]))  # who comes before it serves waits
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.should_exit = self._server.force_exit = True
        assert self._serving is not None
        await self._serving
        self.machine.close()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        service = next((found for prefix, found in self._services.items() if scope["path"].startswith(prefix)), None)
        if service is not None:
            await service(scope, receive, send)
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        status, answer = self._answer(scope["method"], scope["path"], parse_qs(scope["query_string"].decode()), body)
        kind = b"application/octet-stream" if isinstance(answer, bytes) else b"application/json"
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        await send({"type": "http.response.body", "body": data})

    def _answer(self, method: str, path: str, query: dict[str, list[str]], body: bytes) -> tuple[int, Any]:
        match method, path.strip("/").split("/"):
            case "POST", [*_, "sandboxes"]:
                self.made.append(json.loads(body))
                return 201, {"templateID": "base", "sandboxID": "box1", "clientID": "c", "envdVersion": "0.6.2"}
            case "DELETE", [*_, "sandboxes", id]:
                self.killed.append(id)
                self.machine.close()
                return 204, b""
            case "GET", ["files"]:
                place = self.machine.place(query["path"][0])
                return (200, place.read_bytes()) if place.is_file() else (404, {"message": "no such file"})
            case "POST", ["files"]:
                place = self.machine.place(query["path"][0])
                place.parent.mkdir(parents=True, exist_ok=True)
                # The SDK sends a form with one field.
                place.write_bytes(body.split(b"\r\n\r\n", 1)[1].rsplit(b"\r\n--", 1)[0])
                return 200, [{"name": place.name, "type": "file", "path": query["path"][0]}]
            case _:
                return 404, {"message": f"no {method} {path}"}


def _refused(code: str, message: str) -> Exception:
    return import_module("connectrpc.errors").ConnectError(
        getattr(import_module("connectrpc.code").Code, code), message
    )


@asynccontextmanager
async def served(monkeypatch: pytest.MonkeyPatch, folder: Path) -> AsyncGenerator[Server]:
    """A server, and the settings that lead the SDK there."""
    async with Server(folder) as server:
        monkeypatch.setenv("E2B_API_KEY", "a-key")
        monkeypatch.setenv("E2B_API_URL", server.url)
        monkeypatch.setenv("E2B_SANDBOX_URL", server.url)
        monkeypatch.setenv("E2B_HTTP_VERSION", "1.1")
        yield server
