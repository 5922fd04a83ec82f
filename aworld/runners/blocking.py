"""Runs for code without an event loop: a loop of its own, closed behind it, Ctrl-C handed to the run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from importlib.util import find_spec
from typing import Any, TypeVar

from aworld.models import close_transports

T = TypeVar("T")


def run_blocking(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, in this thread, or in one of its own when this one has a running loop.

    Ctrl-C cancels the work, waits until it has written its end, and is raised as KeyboardInterrupt.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _run(work)
    return _run_in_thread(work)


def _run(work: Coroutine[Any, Any, T]) -> T:
    async def main() -> T:
        try:
            return await work
        finally:
            await close_transports()

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(main())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed (extra `uvloop`), else the standard loop."""
    if find_spec("uvloop") is None:
        return None
    import uvloop  # pyright: ignore[reportMissingImports]  # an extra

    return uvloop.new_event_loop  # pyright: ignore


def _run_in_thread(work: Coroutine[Any, Any, T]) -> T:
    outcome: Future[T] = Future()
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = []

    async def main() -> T:
        task = asyncio.current_task()
        assert task is not None  # a runner runs tasks
        running.append((asyncio.get_running_loop(), task))
        return await work

    def target() -> None:
        try:
            outcome.set_result(_run(main()))
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread, which raises it
            outcome.set_exception(error)

    thread = threading.Thread(target=target, name="aworld-sync-run", daemon=True)
    thread.start()
    try:
        return outcome.result()
    except KeyboardInterrupt:
        for loop, task in running:
            loop.call_soon_threadsafe(task.cancel)
        thread.join()
        raise
