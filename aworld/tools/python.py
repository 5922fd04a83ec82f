"""Python in a sandbox, with variables that stay from one call to the next.

A small program of our own (`inside/kernel.py`) runs in the sandbox for as long as the run lasts; a call costs one
exchange of lines with it. The runtime never executes, imports or unpickles anything of it.
"""

from __future__ import annotations

import asyncio

import msgspec

from aworld.core.checks import positive
from aworld.core.context.base import RunScope
from aworld.core.exceptions import ToolError
from aworld.core.sandbox import Sandbox, SandboxError, SandboxProcess, SandboxSource
from aworld.core.tool.base import Tool
from aworld.core.tool.func_to_tool import tool
from aworld.tools.inside import source
from aworld.tools.tool_sandbox import LONGEST, ToolSandbox, shown, time_of

LONGEST_ANSWER = 30 * LONGEST
"""Bytes of an answer of the kernel: output and error of `LONGEST` bytes each, escaped as JSON. More is no answer."""
LOST = "Variables and imports are lost, files are kept; the next call starts anew."
ANEW = "[Python was started anew: variables and imports of earlier calls are lost]"


class _CellRequest(msgspec.Struct):
    code: str
    limit: int


class _CellResult(msgspec.Struct):
    output: str
    dropped: int
    error: str | None


class _KernelDied(Exception):
    """The kernel is gone, or what it says is no answer."""


class Kernel:
    """The Python of a run, and the tool that runs code in it."""

    def __init__(self, place: ToolSandbox, timeout: float, *, had_another: bool = False) -> None:
        self._place = place
        self._timeout = timeout
        self._had_another = had_another
        """Whether the run had another kernel, and its model was not told yet."""
        self._sandbox: Sandbox | None = None
        self._process: SandboxProcess | None = None
        self._received = bytearray()
        self._lock = asyncio.Lock()

    def for_run(self, scope: RunScope) -> Kernel:
        """The run's own."""
        return Kernel(scope.own(self._place), self._timeout, had_another="python" in scope.used)

    @tool
    async def python(self, code: str) -> str:
        """Run Python code in the sandbox. Variables, functions and imports stay for the next call.

        What the code prints is returned, and the value of its last line when that is an expression. `await` may be
        used at the top.

        Args:
            code: The code.
        """
        sandbox = await self._place.sandbox()
        if self._sandbox is not None and self._sandbox is not sandbox:  # destroyed with all in it while the run rested
            self._process, self._had_another = None, True
            self._received.clear()
        self._sandbox = sandbox
        parts = [ANEW] if self._had_another else []
        self._had_another = False
        result = await self._run(code, sandbox)
        if result.output:
            parts.append(shown(result.output).rstrip("\n"))
        if result.dropped:
            parts.append(f"[{result.dropped:,} more bytes of output were dropped]")
        if result.error is not None:
            raise ToolError("\n".join((*parts, result.error)))
        return "\n".join(parts) or "[no output]"

    async def _run(self, code: str, sandbox: Sandbox) -> _CellResult:
        """Run code after all that was asked before. Raises `ToolError` when the kernel did not survive it."""
        seconds, limit = time_of(sandbox, self._timeout)
        async with self._lock:
            try:
                async with asyncio.timeout(seconds):
                    return await self._exchange(_CellRequest(code, LONGEST), sandbox)
            except TimeoutError:
                await self.end_run()
                raise ToolError(f"The code was killed after {seconds:g} s (limit: {limit}). {LOST}") from None
            except (SandboxError, _KernelDied) as ended:
                await self.end_run()
                why = f" ({ended})" if str(ended) else ", because of the code or for using too much memory"
                raise ToolError(f"Python ended{why}. {LOST}") from ended
            except BaseException:  # a cancelled call: its answer must not become that of the next one
                await self.end_run()
                raise

    async def _exchange(self, request: _CellRequest, sandbox: Sandbox) -> _CellResult:
        if self._process is None:
            self._process = await sandbox.open_process(["python3", "-I", "-c", source("kernel")])
        await self._process.send(msgspec.json.encode(request) + b"\n")
        while (end := self._received.find(b"\n")) < 0:
            data = await self._process.receive()
            if not data:
                raise _KernelDied
            self._received += data
            if len(self._received) > LONGEST_ANSWER:
                raise _KernelDied("its answer was too long")
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        try:
            return msgspec.json.decode(line, type=_CellResult)
        except msgspec.MsgspecError as error:
            raise _KernelDied("its answer was no answer") from error

    async def end_run(self) -> None:
        """Kill it; a call after that starts another."""
        process, self._process = self._process, None
        self._received.clear()
        if process is not None:
            await process.stop()


def python_tool(sandbox: Sandbox | SandboxSource | ToolSandbox, *, timeout: float = 60.0) -> Tool:
    """The tool `python` for a sandbox, or for that of each run.

    A call has `timeout` seconds, or the sandbox's `wall_seconds` where they are fewer.
    """
    positive("timeout", timeout)
    python = Kernel(ToolSandbox.of(sandbox, "python"), timeout).python
    python.timeout = 2 * timeout + 15  # calls of one turn stand in line; our own limit speaks first
    return python
