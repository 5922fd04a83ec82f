"""Two that want the same run: in one process, in two, after a kill; one has it, the other is told."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from aworld.config import RunConfig
from aworld.core import event as ev
from aworld.core.exceptions import LeaseError, TaskError
from aworld.core.model import ModelRequest
from aworld.core.task import Task
from aworld.core.tool.func_to_tool import tool
from aworld.core.trajectory import Trajectory
from aworld.models.doubles import call
from aworld.runner import Runners
from aworld.runners.local import store_of
from aworld.trajectory import MemoryStore, TrajectoryStore, open_store
from aworld.trajectory.store import Lease
from tests.runners.scenes import Gate, add, assert_sound, thinking
from tests.runners.test_kill import assert_effects_on_record, lines_until, logs_of, process

RESUMER = """
import asyncio, sys
from aworld.core.tool.func_to_tool import tool
from aworld.models.doubles import call
from aworld.runner import Runners
from aworld.trajectory import open_store
from tests.runners.scenes import thinking

@tool
async def work() -> str:
    "Works."
    return "by another"

@tool(idempotent=True)
async def look() -> str:
    "Looks."
    return "by another"

async def main():
    store = open_store(sys.argv[1])
    agent = thinking(lambda request: "by another", tools=[work, look], name="worker")
    report = await Runners.resume_all(store, [agent])
    await store.close()
    print(report.finished, report.failed, report.left)
    print(*sorted(set(report.errors.values()))[:1])

asyncio.run(main())
"""


@pytest.mark.parametrize("moment", ["in tools", "in models"])
async def test_live_runs_are_left_alone_by_a_resumer_in_another_process(tmp_path: Path, moment: str) -> None:
    url, gate = f"sqlite:///{tmp_path}/runs.db", Gate()

    @tool
    async def work() -> str:
        "Works."
        await (gate.pass_through() if moment == "in tools" else asyncio.sleep(0))
        return "done here"

    @tool(idempotent=True)
    async def look() -> str:
        "Looks."
        return "seen here"

    async def think(request: ModelRequest) -> Any:
        if request.turn == 0:
            return [call("work"), call("look")]
        await (gate.pass_through() if moment == "in models" else asyncio.sleep(0))
        return "by the owner"

    store = open_store(url)
    agent = thinking(think, tools=[work, look], name="worker")
    tasks = [Task("x", agent, id=f"t{number}") for number in range(100)]
    running = asyncio.create_task(Runners.run_task(tasks, RunConfig(store=store)))
    await gate.until(100)
    async with process("-c", RESUMER, url) as child, asyncio.timeout(60):
        output, errors = await child.communicate()
    assert child.returncode == 0, errors.decode()
    counts, why = output.decode().splitlines()
    assert counts == "0 0 100"
    assert "is running trajectory" in why
    gate.open.set()
    responses = await running
    assert {(response.status, response.answer) for response in responses.values()} == {("finished", "by the owner")}
    for id, response in responses.items():
        assert await store.read(id) == response.record.events
        assert_sound(response.record)
        contents = [message.text for message in response.record.path(response.record.activations[0].leaf)]
        assert contents[2:] == ["done here", "seen here", "by the owner"]
    await store.close()


async def test_two_resumers_at_once_after_a_kill_share_the_runs(tmp_path: Path) -> None:
    url, effects = f"sqlite:///{tmp_path}/runs.db", tmp_path / "effects"
    child_of = ("-m", "tests.runners.killed", url, str(effects))
    async with asyncio.timeout(120):
        async with process(*child_of, "begin") as child:
            await lines_until(child, 60)
            child.kill()
            assert await child.wait() == -signal.SIGKILL
        before = await logs_of(url)
        left = sum(not isinstance(events[-1], ev.Finished) for events in before.values())
        async with process(*child_of, "resume") as one, process(*child_of, "resume") as other:
            outputs = [await child.communicate() for child in (one, other)]
        assert (one.returncode, other.returncode) == (0, 0), outputs
    reports = [[int(word) for word in output.decode().split("report ")[1].split()] for output, _ in outputs]
    assert [failed for _, failed, _ in reports] == [0, 0], outputs
    assert sum(finished for finished, _, _ in reports) >= left  # one that was faster is seen by the other
    logs = await logs_of(url)
    assert_effects_on_record(effects.read_text(), logs)
    for id, events in logs.items():
        record = Trajectory.of(id, events)
        assert (record.status, record.answer) == ("finished", "8 answers")
        assert_sound(record)


@pytest.mark.parametrize("kind", ["sqlite", "memory", "of the process"])
async def test_a_live_run_cannot_be_resumed_beside_itself(kind: str, store: TrajectoryStore) -> None:
    store = {"sqlite": store, "memory": MemoryStore()}.get(kind) or store_of(None)
    gate = Gate()

    async def think(_: ModelRequest) -> str:
        await gate.pass_through()
        return "by the owner"

    running = asyncio.create_task(Runners.run("x", thinking(think), id="run", run_conf=RunConfig(store=store)))
    await gate.until(1)
    for _ in range(2):
        with pytest.raises(LeaseError, match="another run of this process is running trajectory 'run'"):
            await Runners.resume("run", thinking(think), store=store)
    if kind != "of the process":  # which has runs of other tests
        report = await Runners.resume_all(store, [thinking(think)])
        assert (report.finished, report.left, list(report.errors)) == (0, 1, ["run"])
    gate.open.set()
    response = await running
    assert (response.status, response.answer) == ("finished", "by the owner")
    assert gate.arrived == 1
    assert await store.read("run") == response.record.events


async def test_who_lost_a_run_closes_its_store_in_peace(tmp_path: Path) -> None:
    gate, url = Gate(), f"sqlite:///{tmp_path}/runs.db"

    async def think(_: ModelRequest) -> str:
        await gate.pass_through()
        return "too late"

    store, other = open_store(url), open_store(url)
    running = asyncio.create_task(Runners.run("x", thinking(think), id="run", run_conf=RunConfig(store=store)))
    await gate.until(1)
    await other.delete("run")
    async with asyncio.timeout(10):
        response = await running
    assert response.status == "interrupted"
    assert "trajectory 'run' was deleted" in response.msg
    await store.close()
    await other.close()


class SlowerStore(MemoryStore):
    """Lets something happen between the reading of a run and the claim of it."""

    meanwhile: Callable[[], Awaitable[Any]] | None = None

    async def claim(self, id: str, *, new: bool = False, notes_after: int = -1) -> Lease:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            await meanwhile()
        return await super().claim(id, new=new, notes_after=notes_after)


@pytest.mark.parametrize("how", ["resume", "resume_all", "a step more", "cancel"])
async def test_who_reads_a_run_before_another_has_gone_on_with_it_sees_that(how: str) -> None:
    asked: list[int] = []

    def think(request: ModelRequest) -> Any:
        asked.append(request.turn)
        return call("add", a=1, b=2) if request.turn < 2 else "done"

    store, agent = SlowerStore(), thinking(think, tools=[add])
    task = Task("x", agent, id="run")
    await Runners.step(task, RunConfig(store=store))

    async def another() -> None:
        if how == "a step more":
            await Runners.step(Task("x", agent, id="run"), RunConfig(store=store))
        else:
            assert (await Runners.resume("run", agent, store=store)).success

    store.meanwhile = another
    if how == "resume_all":
        report = await Runners.resume_all(store, [agent])
        assert (report.finished, report.failed, report.errors) == (1, 0, {})
    elif how == "cancel":
        with pytest.raises(TaskError, match="has ended"):
            await Runners.cancel("run", store=store)
    else:
        response = await Runners.resume("run", agent, store=store)
        assert (response.status, response.answer) == ("finished", "done"), response.msg
    assert asked == [0, 1, 2]  # nothing is paid for twice
    record = Trajectory.of("run", await store.read("run"))
    assert (record.status, record.answer) == ("finished", "done")
    assert_sound(record)
