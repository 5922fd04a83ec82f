"""Dependencies: given to a run or made for it, never stored, and made again by whoever goes on with it."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Protocol

import msgspec
import pytest

from aworld import Agent, Hooks, RunConfig, Runners, Task, TeamSwarm, ToolContext
from aworld.agents.definitions import travels, unit_of
from aworld.config.conf import EngineName
from aworld.core.agent.base import BaseAgent, Turn
from aworld.core.exceptions import ConfigError, TaskError
from aworld.core.hooks import HookContext
from aworld.core.message import Message
from aworld.core.output import RunFinished
from aworld.core.task import TaskResponse
from aworld.core.tool.base import Question
from aworld.environments import Environment, Problem, rollouts
from aworld.models import ScriptedModel
from aworld.models.doubles import call
from aworld.runners.local import load
from aworld.trajectory import TrajectoryStore
from tests.runners import travelling
from tests.runners.scenes import assert_sound, scripted
from tests.runners.travelling import Shelf, clerk, shelf

SECRET = "sk-a-key-that-no-log-holds"


class Database:
    """A connection with a key, which nothing may write down."""

    def __init__(self, rows: dict[str, int]) -> None:
        self.rows, self.key, self.open = rows, SECRET, True


def stock(item: str, context: ToolContext[Database]) -> int:
    """How many there are."""
    return context.deps.rows[item]


def keeper(*replies: Any, **settings: Any) -> Agent[Database, str]:
    return Agent(
        "keeper", model=ScriptedModel(replies or [call("stock", item="nails"), "done"]), tools=[stock],
        deps_type=Database, **settings,
    )  # fmt: skip


def results(response: Any) -> list[str]:
    return [seen["content"] for row in response.trajectory for seen in row["observation"]]


async def test_tools_instructions_and_hooks_read_them(store: TrajectoryStore, tmp_path: Path) -> None:
    seen: list[object] = []

    class Watch(Hooks):
        async def before_task(self, at: HookContext) -> None:
            seen.append(at.deps)

        async def before_tool(self, at: HookContext, call: Any) -> None:
            seen.append(at.deps)

    def brief(context: ToolContext[Database]) -> str:
        return f"There are {', '.join(context.deps.rows)}."

    def known(context: ToolContext[Database], value: object) -> str | None:
        seen.append(context.deps)
        return None

    database = Database({"nails": 7})
    agent = keeper(system_prompt=brief, input_guardrails=[known])
    response = await Runners.run("x", agent, deps=database, hooks=[Watch()], run_conf=RunConfig(store=store))
    assert response.success, response.msg
    assert results(response) == ["7"]
    assert response.trajectory[0]["state"]["messages"][0]["content"] == "There are nails."
    assert seen == [database, database, database]
    await store.flush()
    assert SECRET.encode() not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


async def test_a_custom_agent_reads_them_in_its_turn() -> None:
    class Counting(BaseAgent[Database, str]):
        deps_type = Database

        async def decide(self, turn: Turn) -> Message:
            return Message("assistant", str(turn.deps.rows["nails"]))

    response = await Runners.run("x", Counting("counting"), deps=Database({"nails": 4}))
    assert response.answer == "4"


async def test_members_of_a_team_and_agents_among_tools_see_the_same() -> None:
    leader = scripted(call("keeper", input="count"), "counted", name="leader", tools=())
    for unit in (TeamSwarm(leader, keeper()), scripted(call("keeper", input="count"), "counted", tools=[keeper()])):
        response = await Runners.run("x", swarm=unit, deps=Database({"nails": 7}))
        assert response.success, response.msg
        assert "7" in results(response)
        with pytest.raises(TaskError, match=r"Agent 'keeper' works with Database \(deps_type\): give the run deps="):
            await Runners.run("x", swarm=unit)


def plain() -> Database:
    return Database({"nails": 1})


async def awaited() -> Database:
    return Database({"nails": 1})


closed: list[Database] = []


def yielding() -> Iterator[Database]:
    database = Database({"nails": 1})
    yield database
    closed.append(database)


async def yielding_async() -> AsyncIterator[Database]:
    for database in yielding():
        yield database


HERE = "tests.runners.test_deps"


@pytest.mark.parametrize("deps", [plain, awaited, yielding, yielding_async, f"{HERE}:awaited", lambda: plain()])
async def test_a_function_makes_them_for_each_run(deps: Any) -> None:
    closed.clear()
    tasks = [Task("x", keeper(), deps=deps) for _ in range(3)]
    for response in (await Runners.run_task(tasks)).values():
        assert response.success, response.msg
        assert results(response) == ["1"]
    assert len({id(database) for database in closed}) == (3 if "yield" in getattr(deps, "__name__", "") else 0)


async def test_what_stands_behind_the_yield_is_done_however_the_run_ends() -> None:
    closed.clear()
    assert (await Runners.run("x", keeper(RuntimeError("no")), deps=yielding)).status == "failed"
    response = await Runners.run("x", keeper(call("stock", item="nails")), deps=yielding, conf={"max_steps": 1})
    assert response.status == "limit_reached"
    assert len(closed) == 2


@pytest.mark.parametrize(("deps", "words"), [
    (None, r"Agent 'keeper' works with Database \(deps_type\): give the run deps="),
    (3, r"deps= is of type int, and agent 'keeper' works with Database \(deps_type\)"),
    (Database, r"deps= is called as f\(\), which it does not take: missing a required argument: 'rows'"),
    (int, r"deps= makes int, and agent 'keeper' works with Database"),
    ("nowhere", "deps= is a text: write MODULE:NAME"),
    ("postgres://me:hunter22@host/shop", "^((?!hunter22).)*$"),
    ("tests.runners.test_deps:awaitd", "did you mean 'awaited'"),
])  # fmt: skip
async def test_misuse_is_told_before_anything_begins(deps: Any, words: str, store: TrajectoryStore) -> None:
    conf = RunConfig(store=store)
    with pytest.raises(TaskError, match=words):
        await Runners.run("x", keeper(), deps=deps, run_conf=conf)
    good = Task("x", keeper(), deps=plain)
    with pytest.raises(TaskError, match=words):
        await Runners.run_task([good, Task("x", keeper(), deps=deps)], conf)
    with pytest.raises(TaskError, match=words):
        await Runners.step(Task("x", keeper(), deps=deps), conf)
    assert await store.count() == 0


def test_deps_type_is_a_class() -> None:
    with pytest.raises(ConfigError, match="deps_type=3; give a type"):
        Agent("a", deps_type=3)  # pyright: ignore[reportArgumentType]


async def test_a_protocol_is_left_to_the_type_checker() -> None:
    class Counts(Protocol):
        rows: dict[str, int]

    agent: Agent[Counts, str] = Agent("a", model=ScriptedModel(["done"]), deps_type=Counts)
    assert (await Runners.run("x", agent, deps=Database({}))).success


# A function that fails


up = False


def flaky() -> Database:
    if not up:
        raise ConnectionError("refused")
    return Database({"nails": 3})


async def late() -> Database:
    await asyncio.Event().wait()
    raise AssertionError


@pytest.mark.parametrize(("deps", "words"), [
    (flaky, rf"deps= \({HERE}:flaky\) raised ConnectionError: refused"),
    (late, "had no answer"),
    (lambda: 3, "made of type int, and agent 'keeper' works with Database"),
    (lambda: exit(1), "raised SystemExit"),
])  # fmt: skip
async def test_a_function_that_fails_interrupts_its_run_alone(deps: Any, words: str, store: TrajectoryStore) -> None:
    conf = RunConfig(store=store)
    tasks = [Task("x", keeper(), deps=deps, conf={"tool_timeout": 0.1}), Task("x", keeper(), deps=plain)]
    broken, fine = (await Runners.run_task(tasks, conf)).values()
    assert fine.success, fine.msg
    assert broken.status == "interrupted"
    assert re.search(words, broken.msg)
    assert f"Runners.resume({broken.trajectory_id!r})" in broken.msg
    response = await Runners.resume(broken.trajectory_id, keeper(), store=store, deps=plain)
    assert response.success, response.msg
    assert results(response) == ["1"]
    assert_sound(response.record)


async def test_a_run_is_stepped_and_resumed_when_they_can_be_made_again(
    store: TrajectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, conf = Task("x", keeper(), deps=flaky), RunConfig(store=store)
    finished, _, response = await Runners.step(task, conf)
    assert (finished, response.status) == (True, "interrupted")
    done = await Runners.resume_all(store, [keeper()])
    assert (done.finished, done.left) == (0, 1)
    monkeypatch.setattr(f"{HERE}.up", True)
    finished, _, response = await Runners.step(task)
    assert results(response) == ["3"]
    done = await Runners.resume_all(store, [keeper()])
    assert (done.finished, done.left) == (1, 0)
    assert_sound(await load(task.id, store))


# Going on


async def begun(store: TrajectoryStore, deps: Any) -> str:
    """A run that asks a person, and waits."""
    response = await Runners.run("x", asking(), deps=deps, run_conf=RunConfig(store=store))
    assert response.status == "waiting", response.msg
    return response.trajectory_id


def may_i(context: ToolContext[Database]) -> str:
    """Ask."""
    if not context.answers:
        raise Question("May I?")
    return f"{context.answers['May I?']}, there are {context.deps.rows['nails']}"


def asking() -> Agent[Database, str]:
    return Agent("asking", model=ScriptedModel([call("may_i"), "done"]), tools=[may_i], deps_type=Database)


async def test_a_run_that_goes_on_has_them_made_again(store: TrajectoryStore) -> None:
    closed.clear()
    id = await begun(store, yielding)
    assert len(closed) == 1  # it may wait for days
    record = await load(id, store)
    assert record.started is not None
    assert record.started.deps == f"{HERE}:yielding"
    (question,) = record.open_questions()
    response = await Runners.resume(id, asking(), store=store, answers={question.id: "Yes"})
    assert results(response) == ["Yes, there are 1"]
    assert len(closed) == 2
    forked = await Runners.fork(id, asking(), store=store, at=1)
    assert forked.success, forked.msg
    assert forked.record.started is not None
    assert forked.record.started.deps == f"{HERE}:yielding"


@pytest.mark.parametrize(("deps", "words"), [
    (Database({}), rf"The run began with deps='{HERE}:Database<value>'.*give deps= again"),
    (lambda: Database({}), "which is a lambda; give deps= again"),
])  # fmt: skip
async def test_what_cannot_be_made_again_must_be_given_again(deps: Any, words: str, store: TrajectoryStore) -> None:
    id = await begun(store, deps)
    (question,) = (await load(id, store)).open_questions()
    await Runners.answer(id, "Yes", store=store)
    size = len((await load(id, store)).events)
    wrong: Any
    for wrong, told in ((None, words), (3, "deps= is of type int")):
        with pytest.raises(TaskError, match=told):
            await Runners.resume(id, asking(), store=store, deps=wrong)
        with pytest.raises(TaskError, match=told):
            await Runners.fork(id, asking(), store=store, deps=wrong)
    done = await Runners.resume_all(store, [asking()])
    assert done.left == 1
    assert len((await load(id, store)).events) == size  # nothing was written
    response = await Runners.resume(id, asking(), store=store, deps=Database({"nails": 9}))
    assert results(response) == ["Yes, there are 9"]
    assert question.question == "May I?"


def unannotated():
    raise AssertionError("called because a log says so")


def elsewhere() -> int:
    raise AssertionError("called because a log says so")


@pytest.mark.parametrize("function", [unannotated, elsewhere, os.abort])
async def test_a_log_of_a_stranger_has_nothing_else_called(
    function: Any, store: TrajectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{function.__module__.replace('posix', 'os')}:{function.__name__}"
    monkeypatch.setattr(f"{HERE}.plain.__module__", name.partition(":")[0])
    id = await begun(store, plain)
    record = await load(id, store)
    assert record.started is not None
    record.started = msgspec.structs.replace(record.started, deps=name)
    with pytest.raises(TaskError, match="not annotated to return what deps_type of the agents says; give deps= again"):
        await Runners.resume(record, asking(), store=store)


# Ends in between


async def test_a_run_that_is_cancelled_while_they_are_made_has_a_sound_end(store: TrajectoryStore) -> None:
    begun = asyncio.Event()

    async def never() -> Database:
        begun.set()
        return await late()

    run = asyncio.create_task(Runners.run("x", keeper(), id="one", deps=never, run_conf=RunConfig(store=store)))
    async with asyncio.timeout(10):
        await begun.wait()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
    record = await load("one", store)
    assert record.status == "cancelled"
    assert_sound(record)
    response = await Runners.run("x", keeper(), deps=never, timeout=0.05)
    assert response.status == "timeout"
    assert_sound(response.record)


async def test_what_stands_behind_the_yield_may_fail(caplog: pytest.LogCaptureFixture) -> None:
    async def fragile() -> AsyncIterator[Database]:
        yield Database({"nails": 1})
        raise OSError("it was closed already")

    response = await Runners.run("x", keeper(), deps=fragile)
    assert response.success, response.msg
    assert "it was closed already" in caplog.text


async def test_a_stepped_run_has_them_for_all_of_its_steps() -> None:
    closed.clear()
    task = Task("x", keeper(), deps=yielding)
    over, _, response = await Runners.step(task)
    assert (over, results(response), closed) == (False, ["1"], [])
    over, _, response = await Runners.step(task)
    assert over
    assert len(closed) == 1


async def test_a_stream_and_the_next_turn_of_a_conversation() -> None:
    outputs = [output async for output in Runners.streaming_run("x", keeper(), deps=plain)]
    assert isinstance(outputs[-1], RunFinished)
    response: TaskResponse = outputs[-1].response
    assert response.success, response.msg
    with pytest.raises(TaskError, match="give the run deps="):
        await Runners.run_task(Task("and now?", keeper(), after=response))
    again = await Runners.run("and now?", keeper(), after=response, deps=plain)
    assert again.success, again.msg


async def test_episodes_and_named_runs(store: TrajectoryStore) -> None:
    world = Environment("stock", train=[Problem("nails", "How many?", "done")])
    async for rollout in rollouts(world, keeper(), world.problems("train"), deps=yielding):
        assert rollout.response is not None
        assert results(rollout.response) == ["1"]
    lost = [rollout async for rollout in rollouts(world, keeper(), world.problems("train"), deps=flaky, retries=0)]
    assert [rollout.response.status for rollout in lost if rollout.response] == ["failed"]
    assert lost[0].record.surroundings_failed
    with pytest.raises(TaskError, match="give the run deps="):
        async for _ in rollouts(world, keeper(), world.problems("train")):
            pass
    with pytest.raises(TaskError, match="give the run deps="):
        await Runners.run_many(["one", "two"], keeper(), run="count", store=store)
    assert await store.count() == 0
    report = await Runners.run_many(["one", "two"], keeper(), run="count", store=store, deps=plain)
    assert report.finished == 2


# Other processes


def processes(tmp_path: Path) -> RunConfig:
    return RunConfig(engine_name=EngineName.PROCESSES, worker_num=2, store=f"sqlite:///{tmp_path}/runs.db")


@pytest.mark.parametrize("deps", [shelf, "tests.runners.travelling:shelf"])
async def test_each_worker_makes_its_own(deps: Any, tmp_path: Path) -> None:
    async with asyncio.timeout(60):
        responses = await Runners.run_task([Task(f"take {n}", clerk, deps=deps) for n in range(4)], processes(tmp_path))
    for response in responses.values():
        assert response.success, response.msg
        assert str(os.getpid()) not in str(response.answer)
        assert response.record.started is not None
        assert response.record.started.deps == "tests.runners.travelling:shelf"


async def test_what_cannot_travel_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"deps= of task 'one' is a Shelf, which cannot travel.*give a function"):
        await Runners.run_task(Task("x", clerk, id="one", deps=Shelf(1)), processes(tmp_path))
    with pytest.raises(TaskError, match=r"Deps= of task 'two', '<lambda>', cannot travel.*top of a module"):
        await Runners.run_task(Task("x", clerk, id="two", deps=lambda: Shelf(1)), processes(tmp_path))
    async with asyncio.timeout(60):
        task = Task("take 1", clerk, id="three", deps=travelling.no_shelf)
        (response,) = (await Runners.run_task(task, processes(tmp_path))).values()
    assert response.status == "interrupted"
    assert "raised OSError: the door is locked" in response.msg


async def test_a_definition_names_the_type() -> None:
    definition = travels(Agent("a", deps_type=Shelf, model="openai:gpt-4o"))
    assert definition.deps_type == "tests.runners.travelling:Shelf"  # pyright: ignore
    assert unit_of(definition).deps_type is Shelf


async def test_workers_go_on_with_what_is_given_again_or_recorded(tmp_path: Path) -> None:
    conf = processes(tmp_path)
    async with asyncio.timeout(60):
        await Runners.run_task(Task("take 1", clerk, id="one", deps=travelling.no_shelf), conf)
        done = await Runners.resume_all(conf.store, [clerk], conf)  # the record names the function, which fails again
        assert (done.finished, done.left) == (0, 1)
        assert "no_shelf) raised OSError: the door is locked" in done.errors["one"]
        done = await Runners.resume_all(conf.store, [clerk], conf, deps=Shelf(1))
        assert done.left == 1
        assert "cannot travel to another process: give a function" in done.errors["one"]
        done = await Runners.resume_all(conf.store, [clerk], conf, deps=shelf)
    assert done.finished == 1
    assert done.responses["one"].answer.startswith("1 of ")
