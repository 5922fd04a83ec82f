"""Processes that write the same file at once, and are killed: what was acknowledged is there, and nothing is half."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from aworld.core.memory import MemoryConfig
from aworld.memory.main import Memory

PROGRAM = Path(__file__).with_name("killed.py")


@pytest.mark.timeout(120)
async def test_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    path = str(tmp_path / "m.db")
    reader = Memory(MemoryConfig(path=path))

    async def run(user: str) -> dict[str, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.memory.killed", path, user, stdout=asyncio.subprocess.PIPE,
            cwd=PROGRAM.parents[2],
        )  # fmt: skip
        assert process.stdout is not None
        lines = [await process.stdout.readline() for _ in range(40)]
        await reader.search("number", user_id=user)  # it indexes what the others write
        lines += [await process.stdout.readline() for _ in range(40)]
        process.kill()
        lines += (await process.stdout.read()).splitlines(keepends=True)
        await process.wait()
        whole = [line.decode().split() for line in lines if line.endswith(b"\n")]
        return {line[0]: line[1] for line in whole}

    anna, bob = await asyncio.gather(run("anna"), run("bob"))
    memory = Memory(MemoryConfig(path=path))
    for user, acknowledged in (("anna", anna), ("bob", bob)):
        assert len(acknowledged) >= 80
        items = {item.id: item for item in await memory.recent(100_000, user_id=user)}
        assert set(acknowledged.values()) <= set(items)
        for number, id in list(acknowledged.items())[-10:]:
            assert (await memory.search(f"n{number}", user_id=user))[0].item.id == id
    assert await memory.erase("anna") >= len(anna)
