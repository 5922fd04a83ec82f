"""Many questions under a name: begun once however often they are asked for, also when their process was killed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from aworld.agents.llm_agent import Agent
from aworld.config import EngineName, RunConfig
from aworld.core.agent.swarm import TeamSwarm, WorkflowSwarm
from aworld.core.exceptions import ConfigError, TaskError
from aworld.core.message import Message, Text, Usage
from aworld.core.model import ModelReply, ModelRequest
from aworld.core.task import Task, TaskResponse
from aworld.models.doubles import FunctionModel, call
from aworld.runner import Runners
from aworld.trajectory import Query, TrajectoryStore, open_store
from tests.runners import travelling
from tests.runners.scenes import add, thinking
from tests.runners.test_kill import lines_until, process


def echo(calls: list[str]) -> Agent:
    def think(request: ModelRequest) -> str:
        calls.append(request.messages[-1].text)
        return f"You said {request.messages[-1].text}."

    return thinking(think, name="echo")


async def test_the_same_call_again_reads_what_has_ended_and_runs_the_rest(store: TrajectoryStore) -> None:
    calls: list[str] = []
    agent = echo(calls)
    first = await Runners.run_many(["one", "two"], agent, run="survey", store=store)
    assert [response.answer for response in first.responses.values()] == ["You said one.", "You said two."]
    done: list[TaskResponse] = []
    again = await Runners.run_many(["one", "two", "three"], agent, run="survey", store=store, on_done=done.append)
    assert [response.answer for response in again.responses.values()][1:] == ["You said two.", "You said three."]
    assert (calls, len(done)) == (["one", "two", "three"], 1)
    assert (again.finished, again.failed, again.left, again.recorded) == (3, 0, 0, 2)
    assert str(again) == "3 finished, 0 failed, 0 left, 0.0000 US dollars"
    assert again.usage.total_tokens == sum(response.usage.total_tokens or 0 for response in again.responses.values())
    (two,) = await store.query(Query(labels={"run": "survey", "problem": "1"}))
    assert two.id == "survey.1"


async def test_questions_have_ids_labels_and_tasks(store: TrajectoryStore) -> None:
    agent = echo([])
    questions: list[Any] = [
        {"id": "capital of/France", "input": "Paris?", "labels": {"topic": "cities"}},
        {"id": 7, "input": "seven"},
        Task("a task", agent, id="own"),
    ]
    await Runners.run_many(questions, agent, run="r", store=store, labels={"by": "me"})
    got = await Runners.run_many(reversed(questions), agent, run="r", store=store, labels={"by": "me"})
    problems = [response.record.labels.get("problem") for response in got.responses.values()]
    assert problems == ["own", "7", "capital of/France"]
    assert got.recorded == 3
    ids = [response.id for response in got.responses.values()]
    assert ids[:2] == ["own", "r.7"]
    assert "/" not in ids[2]
    assert got.responses[ids[2]].record.labels == {
        "by": "me", "topic": "cities", "run": "r", "problem": "capital of/France",
    }  # fmt: skip
    assert await store.count() == 3


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        ([{"input": "x", "answer": 1}], "A question has no 'answer'|answer"),
        ([{"id": 1}], "Question 0 has no input"),
        ([{"id": 1, "input": "x"}, {"id": "1", "input": "y"}], "Two questions have the id '1'"),
        ([{"input": "x", "labels": {"run": "z"}}], r"labels\['run'\]: run_many gives this label itself"),
        ([""], "The input is empty"),
    ],
)
async def test_bad_questions_are_refused_before_any_begins(
    store: TrajectoryStore, questions: list[Any], message: str
) -> None:
    with pytest.raises((TaskError, ConfigError), match=message):
        await Runners.run_many(questions, echo([]), run="r", store=store)
    with pytest.raises(TaskError, match="names nothing"):
        await Runners.run_many(["x"], echo([]), run=" ", store=store)
    assert await store.count() == 0


async def test_another_agent_or_another_question_under_the_name_is_refused(store: TrajectoryStore) -> None:
    await Runners.run_many(["one"], echo([]), run="r", store=store)

    def think(_: ModelRequest) -> str:
        return "x"

    other = thinking(think, name="echo", system_prompt="Be short.")
    with pytest.raises(ConfigError, match=r"by another agent: system_prompt of 'echo' was None and is now 'Be short"):
        await Runners.run_many(["one"], other, run="r", store=store)
    with pytest.raises(ConfigError, match=r"another question .0.: it was .one., and is now .zero."):
        await Runners.run_many(["zero", "one"], echo([]), run="r", store=store)


async def test_a_budget_leaves_questions_for_the_next_call(store: TrajectoryStore) -> None:
    def think(request: ModelRequest) -> ModelReply:
        said = (
            Message("assistant", tool_calls=(call("add", a=1, b=2),))
            if request.turn == 0
            else Message("assistant", "3")
        )
        return ModelReply(said, usage=Usage(90, 10, 100, cost=0.1))

    agent = thinking(think, tools=[add])
    questions = [f"What is {n}?" for n in range(10)]
    first = await Runners.run_many(questions, agent, run="r", run_conf=RunConfig(store=store, max_cost=0.5))
    assert (first.finished + first.left, first.failed) == (10, 0)
    assert first.left >= 8
    assert first.usage.cost == pytest.approx(0.5)
    again = await Runners.run_many(questions, agent, run="r", run_conf=RunConfig(store=store, max_cost=5))
    assert (again.finished, again.left) == (10, 0)
    assert again.usage.cost == pytest.approx(2.0)  # no step was paid twice
    assert await store.count() == 10


async def test_what_no_model_could_answer_is_begun_again(store: TrajectoryStore) -> None:
    broken = True

    def think(_: ModelRequest) -> str:
        if broken:
            raise ConnectionError("no network")
        return "here"

    agent = Agent("a", model=FunctionModel(think, "m"))
    first = await Runners.run_many(["one"], agent, run="r", store=store)
    assert (first.failed, first.responses["r.0"].record.surroundings_failed) == (1, True)
    broken = False
    again = await Runners.run_many(["one"], agent, run="r", store=store)
    assert [response.id for response in again.responses.values()] == ["r.0~1"]
    third = await Runners.run_many(["one"], agent, run="r", store=store)
    assert (third.recorded, [response.answer for response in third.responses.values()]) == (1, ["here"])


async def test_cancelled_in_the_middle_it_pays_no_step_twice(store: TrajectoryStore) -> None:
    steps: list[tuple[str, int]] = []
    gate, halfway = asyncio.Event(), asyncio.Semaphore(0)

    async def think(request: ModelRequest) -> Any:
        question = next(message.text for message in request.messages if message.role == "user")
        if request.turn == 1 and question != "q0":
            halfway.release()
            await gate.wait()
        steps.append((question, request.turn))
        return call("add", a=1, b=request.turn) if request.turn < 2 else "done"

    agent = thinking(think, tools=[add])
    reached = asyncio.Event()
    running = asyncio.create_task(
        Runners.run_many([f"q{n}" for n in range(4)], agent, run="r", store=store, on_done=lambda _: reached.set())
    )
    async with asyncio.timeout(10):
        await reached.wait()
        for _ in range(3):
            await halfway.acquire()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        gate.set()
        report = await Runners.run_many([f"q{n}" for n in range(4)], agent, run="r", store=store)
        assert (report.finished, report.recorded) == (4, 1)
        assert sorted(steps) == [(f"q{n}", turn) for n in range(4) for turn in range(3)]
        assert list(report.responses) == ["r.0", "r.1~1", "r.2~1", "r.3~1"]
        again = await Runners.run_many([f"q{n}" for n in range(4)], agent, run="r", store=store)
    assert again.recorded == 4


async def test_killed_in_the_middle_it_goes_on_and_asks_nothing_twice(tmp_path: Path) -> None:
    url, asked = f"sqlite:///{tmp_path}/runs.db", tmp_path / "asked"
    async with asyncio.timeout(60):
        async with process("-m", "tests.runners.surveyed", url, str(asked)) as child:
            assert len(await lines_until(child, 10)) == 10
            child.kill()
        async with process("-m", "tests.runners.surveyed", url, str(asked)) as child:
            lines = await lines_until(child, 1000)
    assert lines[-1].startswith("40 finished, 0 failed, 0 left")
    store = open_store(url)
    try:
        summaries = await store.query(Query(labels={"run": "survey"}))
        assert sorted(int(summary.labels["problem"]) for summary in summaries) == list(range(40))
        assert {(summary.status, summary.steps) for summary in summaries} == {("finished", 3)}
    finally:
        await store.close()
    answered = [line for line in asked.read_text().splitlines() if line.startswith("answered")]
    assert len(answered) - len(set(answered)) <= 8  # those that were under way, and not on record


async def test_two_processes_share_the_questions(tmp_path: Path) -> None:
    url, asked = f"sqlite:///{tmp_path}/runs.db", tmp_path / "asked"
    async with (
        asyncio.timeout(60),
        process("-m", "tests.runners.surveyed", url, str(asked)) as one,
        process("-m", "tests.runners.surveyed", url, str(asked)) as other,
    ):
        ends = [(await lines_until(child, 1000))[-1] for child in (one, other)]
        async with process("-m", "tests.runners.surveyed", url, str(asked)) as last:
            assert (await lines_until(last, 1000))[-1].startswith("40 finished, 0 failed, 0 left")
    assert all(" 0 failed" in end for end in ends)
    store = open_store(url)
    try:
        assert await store.count() == 40
    finally:
        await store.close()


@pytest.mark.parametrize("limit", [{"max_tokens": 300}, {"max_cost": 0.3}])
async def test_worker_processes_share_one_budget(tmp_path: Path, limit: dict[str, Any]) -> None:
    conf = RunConfig(
        engine_name=EngineName.PROCESSES,
        worker_num=2,
        store=f"sqlite:///{tmp_path}/runs.db",
        max_concurrency=6,
        **limit,
    )
    questions = [f"q{n}" for n in range(20)]
    async with asyncio.timeout(60):
        first = await Runners.run_many(questions, travelling.spender, run="r", run_conf=conf)
        assert first.usage.total_tokens == 300  # to the end, and no further
        assert (first.finished + first.left, first.failed) == (20, 0)
        assert all("by all runs" in r.msg for r in first.responses.values() if not r.success)
        begun = sum(bool(response.record.events) for response in first.responses.values() if not response.success)
        free = RunConfig(engine_name=EngineName.PROCESSES, worker_num=2)
        resumed = await Runners.resume_all(conf.store, [travelling.spender], free)
        assert (resumed.finished, resumed.failed, resumed.left) == (begun, 0, 0)
        again = await Runners.run_many(
            questions,
            travelling.spender,
            run="r",
            run_conf=conf.model_copy(update={"max_cost": 99, "max_tokens": None}),
        )
    assert (again.finished, again.left, again.usage.total_tokens) == (20, 0, 4000)


@pytest.mark.parametrize(
    ("questions", "message"),
    [("What?", "questions"), ([3], "Input must be text"), ([{"input": "x", "labels": "a"}], "labels")],
)
async def test_what_is_no_question_is_refused(questions: Any, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        await Runners.run_many(questions, echo([]), run="r")


async def test_a_worker_that_dies_keeps_nothing_of_the_budget(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/runs.db"
    conf = RunConfig(engine_name=EngineName.PROCESSES, worker_num=2, store=store, max_tokens=2000)
    questions = [f"mark {tmp_path}/died", *(f"place city-{n}" for n in range(6))]
    async with asyncio.timeout(60):
        report = await Runners.run_many(questions, travelling.traveller, run="r", run_conf=conf)
    assert (report.finished, report.left) == (7, 0)
    assert report.responses["r.0"].answer == "alive"


async def test_teams_and_questions_of_many_parts_go_on_too(store: TrajectoryStore) -> None:
    def think(request: ModelRequest) -> str:
        return f"{request.agent} heard {request.messages[-1].text[:10]}"

    team = TeamSwarm(thinking(think, name="lead"), thinking(think, name="helper"))
    chain = WorkflowSwarm(thinking(think, name="one"), thinking(think, name="two"))
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}, {"role": "user", "content": "?"}]
    questions: list[Any] = ["plain", {"input": chat}, {"input": [Text("a part"), Text("another")]}]
    for swarm in (team, chain):
        for recorded in (0, 3):
            report = await Runners.run_many(questions, swarm=swarm, run=swarm.name, store=store)
            assert (report.finished, report.recorded) == (3, recorded)
