"""A program that goes on running in a sandbox, of every kind: its pipes, its limits, its end."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aworld.core.sandbox import Sandbox, SandboxError, SandboxProcess
from aworld.sandbox import channel, open_sandbox
from aworld.sandbox.e2b import E2BSandbox
from aworld.sandbox.local_sandbox import Isolation
from tests.sandbox.e2b_server import served
from tests.sandbox.places import IMAGE, SMALL, gone, local, marked, needs_bubblewrap, needs_e2b, needs_engine, new_mark

SHELL = ["sh", "-c"]


@pytest.fixture(
    params=[
        pytest.param("bubblewrap", marks=needs_bubblewrap),
        "none",
        pytest.param("container", marks=needs_engine),
        pytest.param("e2b", marks=needs_e2b),
    ]
)
async def box(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, open_folder: Path
) -> AsyncGenerator[Sandbox]:
    kind: Any = request.param
    async with AsyncExitStack() as stack:
        if kind in ("bubblewrap", "none"):
            yield await stack.enter_async_context(local(isolation=kind))
            return
        if kind == "e2b":
            await stack.enter_async_context(served(monkeypatch, open_folder))
        opened = await open_sandbox(f"container:{IMAGE}" if kind == "container" else "e2b", SMALL)
        stack.push_async_callback(opened.close)
        yield opened


async def line(process: SandboxProcess) -> bytes:
    """What comes until a line ends, or the program."""
    read = b""
    while not read.endswith(b"\n") and (piece := await process.receive()):
        read += piece
    return read


async def rest(process: SandboxProcess) -> bytes:
    read = b""
    while piece := await process.receive():
        read += piece
    return read


async def test_back_and_forth(box: Sandbox) -> None:
    process = await box.open_process(["cat"])
    for number in range(3):
        await process.send(b"%d\n" % number)
        assert await line(process) == b"%d\n" % number
    await process.send(b"abc")
    assert await process.receive(1) == b"a"
    big = os.urandom(1 << 20)
    sending = asyncio.create_task(process.send(big))  # which waits, because cat waits for us
    read = b""
    while len(read) < len(big) + 2:
        read += await process.receive()
    await sending
    assert read == b"bc" + big
    assert (await box.exec("echo meanwhile")).stdout == b"meanwhile\n"
    await process.stop()
    await process.stop()
    assert await process.receive() == b""
    with pytest.raises(SandboxError, match="ended"):
        await process.send(b"x")


async def test_folder_environment_and_errors(box: Sandbox) -> None:
    await box.exec("mkdir deep")
    process = await box.open_process(
        [*SHELL, 'echo oops >&2; echo "$(basename "$PWD") $SIZE"'], cwd="deep", env={"SIZE": "9"}
    )
    assert await rest(process) == b"deep 9\n"


async def test_what_it_wrote_before_its_end_is_kept(box: Sandbox) -> None:
    process = await box.open_process([*SHELL, "head -c 60000 /dev/zero; exit 3"])
    await box.exec("true")
    assert len(await rest(process)) == 60_000  # before the news that it has ended, or after
    with pytest.raises(SandboxError, match="exit code 3"):
        await process.send(b"x")


async def test_what_cannot_be_started(box: Sandbox) -> None:
    for command, folder in ((["no-such-program"], "."), (["cat"], "no-such-folder"), (["cat"], "../..")):
        with pytest.raises(SandboxError, match="cannot be started"):
            await box.open_process(command, cwd=folder)
    with pytest.raises(SandboxError, match="no command"):
        await box.open_process([])
    assert (await box.exec("true")).exit_code == 0


async def test_stop_kills_its_children(box: Sandbox) -> None:
    mark, other = new_mark(), new_mark()
    stays = await box.open_process(["sleep", other])
    process = await box.open_process(
        [*SHELL, f"trap '' TERM; setsid sleep {mark} & (setsid sleep {mark} &) ; echo; sleep {mark}"]
    )
    assert await line(process) == b"\n"
    reading = asyncio.create_task(process.receive())
    await process.stop()
    assert await reading == b""
    assert gone(marked(mark), 0)
    assert marked(other)
    await stays.stop()
    assert gone(marked(other), 0)


async def test_its_own_end_is_that_of_its_children(box: Sandbox) -> None:
    mark = new_mark()
    process = await box.open_process([*SHELL, f"(setsid sleep {mark} &); read line; echo $line"])
    await process.send(b"x\n")
    assert await line(process) == b"x\n"
    assert await process.receive() == b""  # though the sleep had the pipe as well
    assert gone(marked(mark), 0)


@pytest.mark.parametrize("isolation", [pytest.param("bubblewrap", marks=needs_bubblewrap), "none"])
async def test_of_the_limits_only_those_of_time_do_not_count(isolation: Isolation) -> None:
    program = """
import resource, time
print(resource.getrlimit(resource.RLIMIT_CPU)[0], flush=True)
while time.process_time() < 0.6:
    pass
print("still here", flush=True)
input()
kept = [bytearray(b"x" * (8 << 20)) for _ in range(99)]
print("too much", flush=True)
"""
    async with local(replace(SMALL, cpu_seconds=0.2, wall_seconds=0.3), isolation=isolation) as box:
        process = await box.open_process(["python3", "-c", program])
        assert await line(process) == b"-1\n"
        assert await line(process) == b"still here\n"
        await process.send(b"\n")
        assert await rest(process) == b""
        assert box.alive


@needs_bubblewrap
async def test_children_together_have_the_memory_of_one() -> None:
    async with local() as box:
        child = "import time; kept = bytearray(b'x' * (60 << 20)); time.sleep(1000)"
        process = await box.open_process([*SHELL, f'for n in 1 2 3 4; do python3 -c "{child}" & done; wait'])
        assert await process.receive() == b""
        with pytest.raises(SandboxError, match="memory_mb"):
            await process.send(b"x")


async def test_it_ends_with_the_sandbox(box: Sandbox) -> None:
    mark = new_mark()
    process = await box.open_process(["sleep", mark])
    left = marked(mark)
    assert left
    reading = asyncio.create_task(process.receive())
    sending = asyncio.create_task(process.send(bytes(1 << 20)))  # more than a pipe holds: it waits
    await asyncio.sleep(0)
    await box.close()
    assert gone(left, 0)
    assert await reading == b""
    with pytest.raises(SandboxError, match="closed"):
        await sending
    await process.stop()
    with pytest.raises(SandboxError, match="closed"):
        await box.open_process(["cat"])


async def test_nothing_is_left_open(box: Sandbox) -> None:
    if isinstance(box, E2BSandbox):
        pytest.skip("its SDK keeps connections open for later")
    await asyncio.sleep(0.01)  # connections to an engine are closed when the loop comes to it
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        await (await box.open_process(["cat"])).stop()
        await rest(await box.open_process(["true"]))
        with pytest.raises(SandboxError):
            await box.open_process(["no-such-program"])
    opening = asyncio.create_task(box.open_process(["cat"]))
    await asyncio.sleep(0)
    opening.cancel()
    await asyncio.wait([opening])
    await (await box.open_process(["cat"])).stop()  # told after the other, so done after it
    await asyncio.sleep(0.01)
    assert len(os.listdir("/proc/self/fd")) == before


@needs_bubblewrap
async def test_a_worker_that_is_stuck_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "READY_SECONDS", 0.3)
    async with asyncio.timeout(30), local() as box:
        (worker,) = Path(f"/proc/{box.pid}/task/{box.pid}/children").read_text().split()
        os.kill(int(worker), signal.SIGSTOP)
        with pytest.raises(SandboxError, match=r"cat cannot be started in \.: its worker did not start it in 0\.3 s"):
            await box.open_process(["cat"])
        with pytest.raises(SandboxError, match="its worker did not end a command"):
            await box.exec("true", timeout=0.1)


async def test_a_flood_that_nobody_reads_is_stopped(box: Sandbox) -> None:
    async with asyncio.timeout(60):
        program = await box.open_process(["python3", "-c", "import os\nwhile True: os.write(1, bytes(1 << 16))"])
        assert await program.receive()
        await program.stop()
        assert (await box.exec("echo fine")).stdout == b"fine\n"
