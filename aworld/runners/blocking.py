"""Runs for code without an event loop: a loop of its own, closed behind it, Ctrl-C handed to the run."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Future
from contextlib import contextmanager
from importlib.util import find_spec
from types import FrameType
from typing import Any, TypeVar

from aworld.core.exceptions import ConfigError, TaskError

T = TypeVar("T")

logger = logging.getLogger(__name__)

PATIENCE = 0.5
"""Seconds that cancelled tasks have to end before they are left behind."""


def run_blocking(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, in this thread, or in one of its own when this one has a running loop.

    Ctrl-C cancels the work, waits until it has written its end, and is raised as KeyboardInterrupt. Misuse, whose text
    says all that there is to do, is raised from here: its way through our code would bury that text.
    """
    try:
        return (_run if asyncio._get_running_loop() is None else _run_in_thread)(work)
    except (ConfigError, TaskError) as misuse:
        raise misuse.with_traceback(None) from misuse.__cause__


def _run(work: Coroutine[Any, Any, T]) -> T:
    async def main() -> T:
        try:
            return await work
        finally:
            await _close()

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(main())


@contextmanager
def one_loop() -> Generator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """What runs one piece of work after the other in this thread, in a loop that keeps its connections between them.
    Ctrl-C cancels the piece at work, and is raised as KeyboardInterrupt."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        try:
            yield runner.run
        finally:
            runner.run(_close())


async def _close() -> None:
    """End the MCP servers and the HTTP connections of this loop; what no run has used is not imported for it. Cancel
    what is still running, and leave behind what ignores that: closing the loop would wait for it for ever."""
    for module, close in (("aworld.tools.mcp_session", "close_sessions"), ("aworld.models.http", "close_transports")):
        if (imported := sys.modules.get(module)) is not None:
            await getattr(imported, close)()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if not others:
        return
    for task in others:
        task.cancel()
    _, stuck = await asyncio.wait(others, timeout=PATIENCE)
    for task in stuck:
        logger.warning("task=%s | ignores its cancellation and is left behind", task.get_name())
        asyncio._unregister_task(task)  # the documented way for a loop's user to take a task out of its care


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed (extra `uvloop`), else the standard loop."""
    if find_spec("uvloop") is None:
        return None
    import uvloop  # pyright: ignore[reportMissingImports]  # an extra

    return uvloop.new_event_loop  # pyright: ignore


def _run_in_thread(work: Coroutine[Any, Any, T]) -> T:
    outcome: Future[T] = Future()
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any] | None]] = []

    async def main() -> T:
        running.append((asyncio.get_running_loop(), asyncio.current_task()))
        return await work

    def target() -> None:
        try:
            outcome.set_result(_run(main()))
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread, which raises it
            outcome.set_exception(error)

    def interrupt() -> None:
        for loop, task in running:
            if task is not None:
                loop.call_soon_threadsafe(task.cancel)

    thread = threading.Thread(target=target, name="aworld-sync-run", daemon=True)
    with _on_ctrl_c(interrupt):
        thread.start()
        try:
            return outcome.result()
        except KeyboardInterrupt:
            interrupt()
            thread.join()
            raise


@contextmanager
def _on_ctrl_c(act: Callable[[], None]) -> Generator[None]:
    """Do something more on Ctrl-C: the running loop of this thread takes the signal, and would not pass it on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def handler(number: int, frame: FrameType | None) -> None:
        act()
        if callable(before):
            before(number, frame)

    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
