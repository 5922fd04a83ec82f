"""Agents and teams as tools of an MCP server, for other people's clients.

Each is a tool under its own name that takes an `input` and gives the answer; a call is a run of its own, recorded like
any other. What the run does meanwhile is told as progress, and a client that cancels its call cancels the run. A run
that does not finish is an error that says why, and under which id it was recorded.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Annotated, Any, cast

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import CallToolResult, TextContent
from pydantic import Field

from aworld import __version__
from aworld.config.conf import RunConfig, TaskConfig
from aworld.config.errors import AWorldError
from aworld.core.agent.base import plain
from aworld.core.agent.flow import Unit, UnitTool, readable
from aworld.core.checks import unique
from aworld.core.output import AnyOutput, HandoffOutput, RunFinished, StepStarted, ToolCallOutput
from aworld.core.task import Task, TaskResponse
from aworld.runner import Runners
from aworld.server.shell import Serving

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
    for _, unit in units:
        unit.check()
    tools = [UnitTool(unit) for _, unit in units]
    unique("Two of those to be served are named", (tool.name for tool in tools))
    for tool, (reference, unit) in zip(tools, units, strict=True):
        run = _runner(unit, store, conf, (put, f" --agent {shlex.quote(reference)}{put}"))
        server.add_tool(run, name=tool.name, description=tool.description, structured_output=False)
    return server


def _runner(unit: Unit, store: Any, conf: TaskConfig | None, options: tuple[str, str]) -> Any:
    """The function behind a tool. `options` are those of `aworld answer` and `aworld resume` for a run that waits."""

    async def run(input: Annotated[str, Field(description=_INPUT)], ctx: Context) -> CallToolResult:
        steps = 0
        try:
            task = Task(input, swarm=unit, conf=conf or TaskConfig())
            async for output in Runners.streaming_run_task(task, RunConfig(store=store)):
                if isinstance(output, RunFinished):
                    return _result(output.response, *options)
                if text := _progress(output):
                    steps += 1
                    await ctx.report_progress(steps, message=text)
        except AWorldError as error:  # a run that could not begin
            raise ToolError(str(error)) from error
        raise AssertionError("a stream ends with RunFinished")

    return run


def _result(response: TaskResponse, answer_options: str, resume_options: str) -> CallToolResult:
    if response.status == "waiting":
        questions = response.record.open_questions()
        answers = [
            f'aworld answer {response.id} "…"'
            + (f" --question {each.id}" if len(questions) > 1 else "")
            + answer_options
            for each in questions
        ]
        raise ToolError(
            f"The run waits for a person: {' '.join(each.question for each in questions)} Answer with: "
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


class MCPService(Serving):
    """Serves it over streamable HTTP, at `/mcp`. The options are those of `Serving`."""

    def __init__(self, server: MCPServer, host: str = "127.0.0.1", port: int = 8000, **options: Any) -> None:
        super().__init__(server.streamable_http_app(host=host), host=host, port=port, **options)
