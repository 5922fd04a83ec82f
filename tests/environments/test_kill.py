"""`kill -9` and Ctrl-C in the middle of a rollout, with a real process and a real store."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from pathlib import Path

import pytest

from aworld.runners.local import load
from aworld.trajectory import Query, open_store
from tests.environments.killed import PROBLEMS, SAMPLES
from tests.runners.scenes import assert_sound
from tests.runners.test_kill import lines_until, process

TOTAL = PROBLEMS * SAMPLES


@pytest.mark.parametrize("engine", ["local", "processes"])
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
async def test_a_rollout_that_was_killed_goes_on_and_does_no_finished_episode_twice(
    sign: signal.Signals, engine: str, tmp_path: Path
) -> None:
    """In a worker, what is printed goes to standard error: who was asked is seen on one loop only."""
    url = f"sqlite:///{tmp_path}/runs.db"
    acknowledged: set[str] = set()
    seeds: dict[str, set[str]] = {}

    def read(lines: list[str]) -> None:
        for line in lines:
            kind, id, *rest = line.split(" ")
            if kind == "asked":
                assert id not in acknowledged, f"{id} had finished, and was run again"
                seeds.setdefault(id, set()).add(rest[0])
            else:
                assert rest == ["finished", "1.0"]
                acknowledged.add(id)

    for until in (90, 200) if engine == "local" else (40, 60):
        async with process("-m", "tests.environments.killed", url, engine) as child:
            lines = await lines_until(child, until)
            child.send_signal(sign)
            out, _ = await asyncio.wait_for(child.communicate(), 30)
            read([*lines, *out.decode().splitlines()])
    async with process("-m", "tests.environments.killed", url, engine) as child:
        out, err = await asyncio.wait_for(child.communicate(), 60)
        assert child.returncode == 0, err.decode()
        read(out.decode().splitlines())
    store = open_store(url)
    try:
        summaries = await store.query(Query(labels={"run": "killed"}))
        for summary in summaries:
            assert_sound(await load(summary.id, store))
    finally:
        await store.close()
    assert Counter(summary.status for summary in summaries) == {"finished": TOTAL}
    assert {summary.score for summary in summaries} == {1.0}
    assert acknowledged <= {summary.id for summary in summaries}
    assert all(len(found) == 1 for found in seeds.values()), "an episode begun anew has the seed that it had"
