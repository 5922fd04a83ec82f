"""A write or a restore that is refused leaves what was there, and nothing of its own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from dataclasses import replace

import pytest

from aworld.core.sandbox import Sandbox, SandboxError
from aworld.sandbox import open_sandbox
from aworld.sandbox.local_sandbox import UnisolatedSandbox
from tests.sandbox.places import IMAGE, SMALL, needs_bubblewrap, needs_engine

LIMITS = replace(SMALL, disk_mb=5, wall_seconds=60)


@pytest.fixture(
    params=[
        pytest.param("local", marks=needs_bubblewrap),
        "none",
        pytest.param(f"container:{IMAGE}", marks=needs_engine, id="container"),
    ]
)
async def box(request: pytest.FixtureRequest) -> AsyncGenerator[Sandbox]:
    opened = await open_sandbox(request.param, LIMITS)
    yield opened
    await opened.close()


async def everything(box: Sandbox) -> bytes:
    """All that is there, with its modes and contents."""
    return (await box.exec("find . -printf '%P %M %s %l\\n' | sort; find . -type f -exec cat {} +")).stdout


async def test_a_bad_archive_is_refused_whole(box: Sandbox) -> None:
    await box.exec("mkdir -p a/b; echo 1 > a/b/c; echo 2 > d; ln -s d link; chmod 555 a/b; chmod 500 a; touch .hidden")
    kept = await box.snapshot()
    header = kept.index(b"ustar", 1024)
    broken = kept[: header - 100] + b"\xff" * 90 + kept[header - 10 :]
    await box.write("precious.txt", b"data")
    before = await everything(box)
    at_a_header = (header // 512) * 512
    for bad in (b"", b"junk", b"junk" * 1000, kept[:700], kept[: at_a_header + 100], kept[:at_a_header], broken):
        with pytest.raises(SandboxError):
            await box.restore(bad)
        assert await everything(box) == before


async def test_what_is_restored_is_as_it_was(box: Sandbox) -> None:
    await box.exec("mkdir -p a/b; echo 1 > a/b/c; echo 2 > d; ln -s d link; chmod 555 a/b; chmod 500 a; touch .hidden")
    before, kept = await everything(box), await box.snapshot()
    await box.exec("chmod 700 a; echo 3 > d; mkdir locked; touch locked/x; chmod 500 locked; rm link")
    await box.restore(kept)
    after = await everything(box)
    if isinstance(box, UnisolatedSandbox):  # there an archive does not say what modes folders have
        after, before = (b"".join(line[-4:] for line in text.splitlines()) for text in (after, before))
    assert after == before


async def test_a_restore_without_room_changes_nothing(box: Sandbox) -> None:
    large = await open_sandbox("none", replace(LIMITS, disk_mb=50))
    await large.write("large", bytes(6 << 20))
    kept = await large.snapshot()
    await large.close()
    await box.write("precious.txt", b"data")
    before = await everything(box)
    with pytest.raises(SandboxError, match=r"disk_mb=5 is reached .* larger disk_mb"):
        await box.restore(kept)
    assert await everything(box) == before


async def test_a_write_over_the_limit_keeps_the_old_file(box: Sandbox) -> None:
    await box.write("notes.txt", b"old")
    with pytest.raises(SandboxError, match=r"notes\.txt: disk_mb=5 is reached .* larger disk_mb"):
        await box.write("notes.txt", bytes(6 << 20))
    assert await box.read("notes.txt") == b"old"
    assert [entry.name for entry in await box.list()] == ["notes.txt"]
    await box.write("more", bytes(4 << 20))  # what was written is free again


async def test_a_cancelled_write_keeps_the_old_file(box: Sandbox) -> None:
    await box.write("notes.txt", b"old")
    writing = asyncio.create_task(box.write("notes.txt", bytes(4 << 20)))
    while not any(entry.name.startswith(".aworld-part") for entry in await box.list()):
        if writing.done():
            pytest.skip("the write was faster than the look at it")  # as a rule in a container
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    # The rename may have come before the news of it: then the new file is there, whole.
    assert await box.read("notes.txt") in (b"old", bytes(4 << 20))
    assert [entry.name for entry in await box.list()] == ["notes.txt"]


async def test_a_file_keeps_its_mode_and_its_links(box: Sandbox) -> None:
    await box.exec("mkdir bin; echo old > bin/run; chmod 751 bin/run; ln -s bin/run link")
    await box.exec("echo x > locked; chmod 444 locked")
    await box.write("link", b"new")
    assert (await box.exec("readlink link; stat -c %a bin/run; cat bin/run")).stdout == b"bin/run\n751\nnew"
    if not (isinstance(box, UnisolatedSandbox) and os.geteuid() == 0):
        with pytest.raises(SandboxError, match="locked: is read-only"):
            await box.write("locked", b"y")
    await box.write("fresh", b"")
    assert (await box.exec("stat -c %a fresh; umask; cat locked")).stdout in (b"644\n0022\nx\n", b"644\n022\nx\n")
