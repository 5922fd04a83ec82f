"""Agents and teams as tools of an MCP server, for other people's clients.

Each is a tool under its own name that takes an `input` and gives the answer; a call is a run of its own, recorded like
any other. What the run does meanwhile is told as progress, and a client that cancels its call cancels the run. A run
that does not finish is an error that says why, and under which id it was recorded.
"""

from __future__ import annotations

import hmac
import logging
import shlex
import socket
import sys
from collections.abc import Sequence
from typing import Annotated, Any, cast

import uvicorn
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import CallToolResult, TextContent
from pydantic import Field
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from aworld import __version__
from aworld.cmd.listening import listening
from aworld.config.conf import RunConfig, TaskConfig
from aworld.config.errors import AWorldError, ConfigError
from aworld.core.agent.base import plain
from aworld.core.agent.flow import Unit, UnitTool, readable
from aworld.core.output import AnyOutput, HandoffOutput, RunFinished, StepStarted, ToolCallOutput
from aworld.core.task import Task, TaskResponse
from aworld.runner import Runners

logger = logging.getLogger(__name__)

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})

_INPUT = "What it shall do, with all it needs to know."


def server_of(
    units: Sequence[tuple[str, Unit]], store: Any = None, conf: TaskConfig | None = None, put: str = ""
) -> MCPServer:
    """An MCP server with a tool for each agent or team.

    Args:
        units: Agents and teams, each after what `--agent` calls it; their models are looked for now.
        store: Where runs are recorded, as of `RunConfig(store=…)`.
        conf: Limits of each run.
        put: The option by which a command finds the store.

    Raises:
        ConfigError: Two have the same name, or a setting is missing.
    """
    server = MCPServer("aworld", version=__version__, log_level="WARNING")
    names: set[str] = set()
    for reference, unit in units:
        unit.check()
        tool = UnitTool(unit)
        if tool.name in names:
            raise ConfigError(f"Two of those to be served are named {tool.name!r}; give one another name.")
        names.add(tool.name)
        run = _runner(unit, store, conf, (put, f" --agent {shlex.quote(reference)}{put}"))
        server.add_tool(run, name=tool.name, description=tool.description, structured_output=False)
    return server


def _runner(unit: Unit, store: Any, conf: TaskConfig | None, options: tuple[str, str]) -> Any:
    """The function behind a tool. `options` are those of `aworld answer` and `aworld resume` for a run that waits."""

    async def run(input: Annotated[str, Field(description=_INPUT)], ctx: Context) -> CallToolResult:
        told = 0
        try:
            task = Task(input, swarm=unit, conf=conf or TaskConfig())
            async for output in Runners.streaming_run_task(task, RunConfig(store=store)):
                if isinstance(output, RunFinished):
                    return _result(output.response, *options)
                if text := _progress(output):
                    told += 1
                    await ctx.report_progress(told, message=text)
        except AWorldError as error:  # a run that could not begin
            raise ToolError(str(error)) from error
        raise AssertionError("a stream ends with RunFinished")

    return run


def _result(response: TaskResponse, answer_options: str, resume_options: str) -> CallToolResult:
    if response.status == "waiting":
        asked = response.record.open_questions()
        answers = [
            f'aworld answer {response.id} "…"' + (f" --question {each.id}" if len(asked) > 1 else "") + answer_options
            for each in asked
        ]
        raise ToolError(
            f"The run waits for a person: {' '.join(each.question for each in asked)} Answer with: "
            f"{' and '.join(answers)}, then go on with: aworld resume {response.id}{resume_options}"
        )
    if not response.success:
        raise ToolError(f"{response.status}: {response.msg} (run {response.id})")
    answer: Any = plain(response.answer)
    structured = cast("dict[str, Any]", answer) if isinstance(answer, dict) else None
    return CallToolResult(content=[TextContent(text=readable(response.answer))], structured_content=structured)


def _progress(output: AnyOutput) -> str | None:
    match output:
        case StepStarted():
            return f"{output.agent}: step {output.step + 1}"
        case ToolCallOutput():
            return f"{output.agent} calls {output.call.name}"
        case HandoffOutput():
            return f"{output.agent} hands over to {output.to}"
        case _:
            return None


async def serve_http(server: MCPServer, host: str, port: int, token: str | None) -> None:
    """Serve streamable HTTP at `/mcp` until the process is asked to end; says where on standard error.

    Raises:
        ConfigError: The address is for others than this machine and there is no token, or nothing can listen there.
    """
    if host not in LOOPBACK and not token:
        raise ConfigError(f"--host {host}: others can reach it there, so set AWORLD_TOKEN to a secret they must show.")
    app: ASGIApp = server.streamable_http_app(host=host)
    if token:
        app = _Guarded(app, token)
    served = _Announced(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    with listening(host, port):  # bound here: uvicorn would log what cannot be, and end the process
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.create_server(address[:2], family=family)
    with bound:
        await served.serve([bound])


class _Announced(uvicorn.Server):
    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        for server in self.servers if self.started else ():
            host, port = server.sockets[0].getsockname()[:2]
            print(f"aworld: MCP server at http://{host}:{port}/mcp", file=sys.stderr, flush=True)


class _Guarded:
    """Lets in only those who show the token."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            shown: bytes = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(shown, self._expected):
                refusal = PlainTextResponse("Show the token: Authorization: Bearer …", 401)
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)
