"""Threads for synchronous tools: off the loop, reused, bounded, and never in the way of the exit."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
from contextvars import ContextVar
from typing import Any

import pytest

from aworld.core.tool.threads import DaemonThreads, _ThreadCall

who: ContextVar[str] = ContextVar("who")


async def _when(event: threading.Event | threading.Semaphore) -> None:
    """Wait, off the loop, for what another thread signals."""
    if isinstance(event, threading.Event):
        assert await asyncio.to_thread(event.wait, 20)
    else:
        assert await asyncio.to_thread(event.acquire, timeout=20)


async def test_a_call_runs_off_the_loop_and_gives_back_its_result() -> None:
    threads = DaemonThreads()
    assert await threads.run(threading.get_ident) != threading.get_ident()


async def test_context_variables_are_kept() -> None:
    who.set("alice")
    assert await DaemonThreads().run(who.get) == "alice"


async def test_calls_one_after_the_other_share_one_thread() -> None:
    threads = DaemonThreads()
    idents = {await threads.run(threading.get_ident) for _ in range(200)}
    assert len(idents) == threads.size == 1


async def test_threads_grow_to_the_bound_and_further_calls_queue() -> None:
    threads = DaemonThreads(bound=3)
    gate = threading.Event()
    calls = [asyncio.create_task(threads.run(gate.wait)) for _ in range(10)]
    await asyncio.sleep(0)
    assert threads.size == 3
    gate.set()
    assert await asyncio.gather(*calls) == [True] * 10
    assert threads.size == 3


async def test_threads_are_daemons() -> None:
    assert await DaemonThreads().run(lambda: threading.current_thread().daemon)


class _OddError(BaseException):
    pass


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3), _OddError()])
async def test_what_a_function_raises_is_raised_where_it_is_awaited(error: BaseException) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        await DaemonThreads().run(fail)
    assert caught.value is error


@pytest.mark.parametrize("error", [StopIteration(), asyncio.CancelledError()])
async def test_errors_that_mean_something_else_to_the_loop_arrive_as_runtime_errors(error: BaseException) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(RuntimeError, match=type(error).__name__):
        await DaemonThreads().run(fail)


async def test_a_cancelled_call_is_abandoned_without_noise() -> None:
    """Neither an unhandled error nor a lost result is reported, also when the function fails afterwards."""
    noise: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, report: noise.append(report))
    threads = DaemonThreads()
    gate, entered, left = threading.Event(), threading.Event(), threading.Event()

    def fail() -> None:
        entered.set()
        gate.wait()
        left.set()
        raise ValueError("nobody listens")

    call = asyncio.create_task(threads.run(fail))
    await _when(entered)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    gate.set()
    await _when(left)
    assert await threads.run(lambda: 1) == 1
    gc.collect()
    assert noise == []


@pytest.mark.parametrize("cancel_first", [True, False])
async def test_an_error_that_arrives_with_the_cancellation_makes_no_noise(
    cancel_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, report: noise.append(report))
    calls: list[asyncio.Task[None]] = []
    settle = _ThreadCall._settle

    def cancel_and_settle(call: _ThreadCall) -> None:
        if cancel_first:
            calls[0].cancel()
        settle(call)
        calls[0].cancel()

    def fail() -> None:
        raise ValueError("too late")

    monkeypatch.setattr(_ThreadCall, "_settle", cancel_and_settle)
    calls.append(asyncio.create_task(DaemonThreads().run(fail)))
    with pytest.raises(asyncio.CancelledError):
        await calls[0]
    calls.clear()
    gc.collect()
    assert noise == []


async def test_a_call_cancelled_while_it_queues_never_runs() -> None:
    threads = DaemonThreads(bound=1)
    gate = threading.Event()
    ran: list[int] = []
    busy = asyncio.create_task(threads.run(gate.wait))
    queued = asyncio.create_task(threads.run(lambda: ran.append(1)))
    await asyncio.sleep(0)
    queued.cancel()
    await asyncio.gather(queued, return_exceptions=True)
    gate.set()
    await busy
    assert await threads.run(lambda: "after") == "after"
    assert ran == []


async def test_hanging_calls_do_not_use_up_the_threads_of_others() -> None:
    gate, ended, entered = threading.Event(), threading.Event(), threading.Semaphore(0)

    class Watched(DaemonThreads):
        def _work(self, calls: Any) -> None:
            super()._work(calls)
            ended.set()

    def hang() -> None:
        entered.release()
        gate.wait()

    threads = Watched(bound=2)
    hanging = [asyncio.create_task(threads.run(hang)) for _ in range(2)]
    await _when(entered)
    await _when(entered)
    waiting = asyncio.create_task(threads.run(lambda: "through"))
    await asyncio.sleep(0)
    for call in hanging:
        call.cancel()
    assert await waiting == "through"
    assert threads.size == 3
    gate.set()
    await _when(ended)
    assert threads.size == 2


async def test_stand_ins_are_bounded_too() -> None:
    threads = DaemonThreads(bound=1, spare=2)
    gate, entered = threading.Event(), threading.Semaphore(0)

    def hang() -> None:
        entered.release()
        gate.wait()

    for i in range(6):
        call = asyncio.create_task(threads.run(hang))
        if i < 3:
            await _when(entered)
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    waiting = asyncio.create_task(threads.run(lambda: "through"))
    await asyncio.sleep(0)
    assert threads.size == 3
    gate.set()
    assert await waiting == "through"


def test_several_loops_share_the_threads() -> None:
    threads = DaemonThreads(bound=4)
    out: list[int] = []

    async def many() -> int:
        return sum(await asyncio.gather(*(threads.run(lambda: 1) for _ in range(50))))

    loops = [threading.Thread(target=lambda: out.append(asyncio.run(many()))) for _ in range(3)]
    for loop in loops:
        loop.start()
    for loop in loops:
        loop.join()
    assert out == [50, 50, 50]


def test_a_result_for_a_closed_loop_is_dropped_and_the_thread_goes_on() -> None:
    threads = DaemonThreads(bound=1)
    gate = threading.Event()
    loop = asyncio.new_event_loop()
    left = loop.create_task(threads.run(gate.wait))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    gate.set()
    assert asyncio.run(threads.run(lambda: 5)) == 5
    left._log_destroy_pending = False  # pyright: ignore[reportAttributeAccessIssue] - it is left behind on purpose


_HANG = """
import asyncio, threading
from aworld.core.tool.threads import THREADS

async def main():
    entered = threading.Event()
    def hang():
        entered.set()
        threading.Event().wait()
    call = asyncio.create_task(THREADS.run(hang))
    while not entered.is_set():
        await asyncio.sleep(0)
    call.cancel()

asyncio.run(main())
print("left")
"""


def test_a_hung_call_never_blocks_the_exit_of_the_interpreter() -> None:
    done = subprocess.run([sys.executable, "-c", _HANG], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "left\n"
    assert done.stderr == ""


_FORK = """
import asyncio, os
from aworld.core.tool.threads import THREADS
asyncio.run(THREADS.run(lambda: 1))
child = os.fork()
value = asyncio.run(THREADS.run(lambda: 7))
if child == 0:
    os._exit(value)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks exist on POSIX only")
def test_a_forked_child_has_threads_of_its_own() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _FORK], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "7\n"
