"""A run that is read while it goes on.

Outputs wait in memory for their reader, so a slow one slows nobody. Leaving the loop early cancels the run, unless
the stream was told to let it finish.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable

from aworld.core.output import AnyOutput, RunFinished
from aworld.core.task import TaskResponse

Emit = Callable[[AnyOutput], None]


class RunStream:
    """The outputs of one run, and its response. Made by `Runners.streamed_run_task`; starts when it is read."""

    def __init__(self, start: Callable[[Emit], Awaitable[TaskResponse]], *, keep_running: bool = False) -> None:
        self._start = start
        self._keep_running = keep_running
        self._outputs: deque[AnyOutput] = deque()
        self._news = asyncio.Event()
        self._task: asyncio.Task[TaskResponse] | None = None
        self._end: RunFinished | None = None

    async def stream_events(self) -> AsyncIterator[AnyOutput]:
        """Yield what happens, in order; exactly one `RunFinished` last. Raises what misuse raises."""
        task = self._run()
        outputs, news = self._outputs, self._news
        try:
            while True:
                while outputs:
                    output = outputs.popleft()
                    yield output
                    if output is self._end:
                        return
                if task.done():
                    if not task.cancelled():
                        task.result()
                    return
                news.clear()
                await news.wait()
        finally:
            if not self._keep_running:
                await self.cancel()

    async def response(self) -> TaskResponse:
        """Wait for the end. Outputs that were not read are kept for a reader."""
        task = self._run()
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if self._end is None or not task.done():
                raise
            return self._end.response

    async def cancel(self) -> None:
        """End the run with status `cancelled`, within a second. Does nothing once it has ended."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait((self._task,))

    def _run(self) -> asyncio.Task[TaskResponse]:
        if self._task is None:
            self._task = asyncio.ensure_future(self._start(self._emit))
            self._task.add_done_callback(self._done)
        return self._task

    def _emit(self, output: AnyOutput) -> None:
        if type(output) is RunFinished:
            self._end = output
        self._outputs.append(output)
        if not self._news.is_set():
            self._news.set()

    def _done(self, task: asyncio.Task[TaskResponse]) -> None:
        self._news.set()
        if not task.cancelled() and task.exception() is not None and self._keep_running:
            task.get_loop().call_exception_handler({"message": "a run left alone failed", "task": task})
