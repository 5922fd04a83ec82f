"""Python in a sandbox, with variables that stay from one call to the next.

A small program of our own (`inside/kernel.py`) runs in the sandbox for as long as the run lasts; a call costs one
exchange of lines with it. The runtime never executes, imports or unpickles anything of it.
"""

from __future__ import annotations

import asyncio

import msgspec

from aworld.core.exceptions import ToolError
from aworld.core.sandbox import Sandbox, SandboxError, SandboxProcess, SandboxSource, check_amount
from aworld.core.tool.base import Tool, ToolContext
from aworld.core.tool.func_to_tool import FunctionTool
from aworld.tools.inside import source
from aworld.tools.place import LONGEST, Place, shown, time_of

LONGEST_ANSWER = 30 * LONGEST
"""Bytes of an answer of the kernel: output and error of `LONGEST` bytes each, escaped as JSON. More is no answer."""
LOST = "Variables and imports are lost, files are kept; the next call starts anew."


class _Request(msgspec.Struct):
    code: str
    limit: int


class _Answer(msgspec.Struct):
    output: str
    dropped: int
    error: str | None


class _Ended(Exception):
    """The kernel is gone, or what it says is no answer."""


class _Kernel:
    """The Python of one run."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self._process: SandboxProcess | None = None
        self._read = bytearray()
        self._lock = asyncio.Lock()

    async def run(self, code: str, timeout: float) -> _Answer:
        """Run code after all that was asked before. Raises `ToolError` when the kernel did not survive it."""
        seconds, limit = time_of(self.sandbox, timeout)
        async with self._lock:
            try:
                async with asyncio.timeout(seconds):
                    return await self._exchange(_Request(code, LONGEST))
            except TimeoutError:
                await self.stop()
                raise ToolError(f"The code was killed after {seconds:g} s (limit: {limit}). {LOST}") from None
            except (SandboxError, _Ended) as ended:
                await self.stop()
                why = f" ({ended})" if str(ended) else ", because of the code or for using too much memory"
                raise ToolError(f"Python ended{why}. {LOST}") from ended
            except BaseException:  # a cancelled call: its answer must not become that of the next one
                await self.stop()
                raise

    async def _exchange(self, request: _Request) -> _Answer:
        if self._process is None:
            self._process = await self.sandbox.open_process(["python3", "-I", "-c", source("kernel")])
        await self._process.send(msgspec.json.encode(request) + b"\n")
        while (end := self._read.find(b"\n")) < 0:
            data = await self._process.receive()
            if not data:
                raise _Ended
            self._read += data
            if len(self._read) > LONGEST_ANSWER:
                raise _Ended("its answer was too long")
        line = bytes(self._read[:end])
        del self._read[: end + 1]
        try:
            return msgspec.json.decode(line, type=_Answer)
        except msgspec.MsgspecError as error:
            raise _Ended("its answer was no answer") from error

    async def stop(self) -> None:
        """Kill it; the next call starts another."""
        process, self._process = self._process, None
        self._read.clear()
        if process is not None:
            await process.stop()


class _Kernels:
    """The kernels of the runs that are under way."""

    def __init__(self) -> None:
        self._kernels: dict[str, _Kernel] = {}
        self._anew: set[str] = set()
        """Runs that had another kernel, and whose model was not told yet."""

    def of(self, trajectory_id: str, sandbox: Sandbox) -> _Kernel:
        """The kernel of a run, in the sandbox that it has now."""
        kernel = self._kernels.get(trajectory_id)
        if kernel is None or kernel.sandbox is not sandbox:
            if kernel is not None:
                self._anew.add(trajectory_id)
            kernel = self._kernels[trajectory_id] = _Kernel(sandbox)
        return kernel

    def news(self, trajectory_id: str) -> list[str]:
        """What the model is to know of its kernel; once."""
        if trajectory_id not in self._anew:
            return []
        self._anew.discard(trajectory_id)
        return ["[Python was started anew: variables and imports of earlier calls are lost]"]

    async def rest(self, trajectory_id: str) -> None:
        """A kernel rests by itself."""

    def go_on(self, trajectory_id: str) -> None:
        """The run goes on, and had a kernel."""
        if trajectory_id not in self._kernels:
            self._anew.add(trajectory_id)

    async def end_run(self, trajectory_id: str) -> None:
        """Stop the kernel of a run."""
        self._anew.discard(trajectory_id)
        kernel = self._kernels.pop(trajectory_id, None)
        if kernel is not None:
            await kernel.stop()


def python_tool(sandbox: Sandbox | SandboxSource | Place, *, timeout: float = 60.0) -> Tool:
    """The tool `python` for a sandbox, or for that of each run.

    A call has `timeout` seconds, or the sandbox's `wall_seconds` where they are fewer.
    """
    check_amount("timeout", timeout)
    place, kernels = Place.of(sandbox), _Kernels()

    async def python(code: str, at: ToolContext) -> str:
        """Run Python code in the sandbox. Variables, functions and imports stay for the next call.

        What the code prints is returned, and the value of its last line when that is an expression. `await` may be
        used at the top.

        Args:
            code: The code.
        """
        kernel = kernels.of(at.trajectory_id, await place.sandbox(at))
        news = kernels.news(at.trajectory_id)
        answer = await kernel.run(code, timeout)
        parts = [*news, *([shown(answer.output).rstrip("\n")] if answer.output else [])]
        if answer.dropped:
            parts.append(f"[{answer.dropped:,} more bytes of output were dropped]")
        if answer.error is not None:
            raise ToolError("\n".join((*parts, answer.error)))
        return "\n".join(parts) or "[no output]"

    made = FunctionTool(python, timeout=2 * timeout + 15)  # calls of one turn stand in line; our own limit speaks first
    made.uses = (kernels, place)
    return made
