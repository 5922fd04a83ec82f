"""Taking one turn at a time, with rewards, observations and other results put in between."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from aworld.config import RunConfig, TaskConfig, TaskRunMode
from aworld.core.exceptions import TaskError
from aworld.core.message import Image, Text
from aworld.core.model import ModelRequest
from aworld.core.rows import rows
from aworld.core.task import Task
from aworld.core.trajectory import Trajectory
from aworld.models.doubles import call
from aworld.runner import Runners
from aworld.trajectory import MemoryStore, TrajectoryStore
from tests.runners.scenes import add, adder, assert_sound, facts, scripted, server_of, thinking


async def test_a_step_is_one_model_call_and_what_it_caused() -> None:
    task = Task("1 + 2?", adder())

    over, observation, response = await Runners.step(task)
    assert not over
    assert response.status == "running"
    assert [result.content for result in observation.results] == ["3"]
    (row,) = response.trajectory
    assert row["meta"]["step"] == 0
    assert row["observation"][0]["content"] == "3"
    assert response.answer is None

    over, observation, response = await Runners.step(task)
    assert over
    assert observation.content == response.answer == "It is 3."
    (row,) = response.trajectory
    assert row["meta"]["step"] == 1
    assert row["action"]["is_agent_finished"]
    assert response.status == "finished"
    assert_sound(response.record)


async def test_the_record_of_a_step_holds_all_so_far() -> None:
    task = Task("x", scripted(*[call("add", a=n, b=0) for n in range(4)], "done"))
    for number in range(4):
        _, _, response = await Runners.step(task)
        assert response.record.next_step == number + 1
        json.dumps(response.trajectory)


async def test_stepping_writes_the_log_that_running_writes() -> None:
    agent = scripted([call("add", a=1, b=2), call("search", query="x")], call("nothing"), "done", system_prompt="Hm.")
    ran = await Runners.run("x", agent)
    task, over = Task("x", agent), False
    while not over:
        over, _, _ = await Runners.step(task)
    assert facts(task.driver.record) == facts(ran.record)


async def test_stepping_after_the_end_says_the_end_again() -> None:
    task = Task("1 + 2?", adder())
    await Runners.step(task)
    _, _, last = await Runners.step(task)
    events = len(last.record.events)
    for _ in range(3):
        over, observation, response = await Runners.step(task)
        assert (over, observation.content, response.status) == (True, "It is 3.", "finished")
    assert len(last.record.events) == events


async def test_a_failed_step_ends_the_run_and_keeps_all() -> None:
    task = Task("x", scripted(call("add", a=1, b=2), RuntimeError("down")))
    await Runners.step(task)
    over, observation, response = await Runners.step(task)
    assert over
    assert (response.status, observation.content) == ("failed", "")
    assert "down" in response.msg
    assert response.trajectory[0]["action"]["content"] is None
    assert len(response.record.calls) == 2
    assert_sound(response.record)


async def test_a_reward_on_a_step_is_in_its_row_and_in_the_log() -> None:
    task = Task("1 + 2?", adder())
    _, _, first = await Runners.step(task)
    await first.reward(0.5, name="progress", source="code")
    _, _, last = await Runners.step(task)
    await last.reward(1.0, weight=2.0)

    assert first.trajectory[0]["reward"] == {
        "score": 0.5,
        "rewards": [{"name": "progress", "value": 0.5, "weight": 1.0, "source": "code"}],
    }
    assert last.trajectory[0]["reward"]["score"] == 2.0
    assert [(reward.step, reward.value) for reward in last.record.rewards] == [(0, 0.5), (1, 1.0)]
    assert last.record.score == 2.5
    assert_sound(last.record)


async def test_an_observation_is_seen_by_the_next_call() -> None:
    async with server_of(call("add", a=1, b=2), "done") as server:
        task = Task("x", server.agent())
        await Runners.step(task)
        _, _, response = await Runners.step(task, observation="Be quick.")
        assert [message["role"] for message in server.bodies[1]["messages"]] == ["user", "assistant", "tool", "user"]
        assert server.bodies[1]["messages"][-1]["content"] == "Be quick."
        server.assert_exact(response.record)
    assert_sound(response.record)


async def test_an_observation_may_come_before_the_first_step() -> None:
    seen: list[list[str]] = []

    def look(request: ModelRequest) -> str:
        seen.append([message.text for message in request.messages])
        return "ok"

    await Runners.step(Task("x", thinking(look)), observation="by the way")
    assert seen == [["x", "by the way"]]


async def test_an_observation_may_be_a_picture() -> None:
    async with server_of(call("add", a=1, b=2), "a cat") as server:
        task = Task("x", server.agent())
        await Runners.step(task)
        await Runners.step(task, observation=[Text("Look:"), Image("data:image/png;base64,AA==")])
        assert server.bodies[1]["messages"][-1]["content"][1]["image_url"] == {"url": "data:image/png;base64,AA=="}


async def test_a_replaced_result_is_what_the_model_reads_and_the_question_is_not_asked_again() -> None:
    async with server_of([call("add", a=1, b=2), call("search", query="x"), call("add", a=5, b=5)], "done") as server:
        task = Task("x", server.agent())
        _, observation, _ = await Runners.step(task)
        second = observation.results[1].tool_call_id
        over, _, response = await Runners.step(task, tool_results={second: "found it"})
        assert over
        assert server.requests == 2
        told = [message["content"] for message in server.bodies[1]["messages"] if message["role"] == "tool"]
        assert told == ["3", "found it", "10"]
        server.assert_exact(response.record)
    assert_sound(response.record)
    assert [seen["content"] for seen in rows(response.record)[0]["observation"]] == ["3", "found it", "10"]


async def test_a_result_may_be_replaced_together_with_an_observation() -> None:
    async with server_of(call("add", a=1, b=2), "done") as server:
        task = Task("x", server.agent())
        await Runners.step(task)
        await Runners.step(task, observation="Trust it.", tool_results={"call_0_0": "4"})
        assert [message["content"] for message in server.bodies[1]["messages"]] == ["x", None, "4", "Trust it."]


async def test_results_of_earlier_turns_and_unknown_calls_cannot_be_replaced() -> None:
    task = Task("x", scripted(call("add", a=1, b=2), call("add", a=3, b=4), "done"))
    await Runners.step(task)
    await Runners.step(task)
    events = len(task.driver.record.events)
    with pytest.raises(TaskError, match=r"call_0_0.*pending are \['call_1_0'\]"):
        await Runners.step(task, tool_results={"call_0_0": "4"})
    assert len(task.driver.record.events) == events  # the mistake is the caller's: the run goes on
    over, _, response = await Runners.step(task)
    assert over
    assert response.success


async def test_a_mistake_among_right_results_changes_nothing() -> None:
    task = Task("x", scripted(call("add", a=1, b=2), "done"))
    await Runners.step(task)
    events = len(task.driver.record.events)
    with pytest.raises(TaskError, match="nobody"):
        await Runners.step(task, tool_results={"call_0_0": "4", "nobody": "5"})
    assert len(task.driver.record.events) == events


async def test_an_observation_that_is_no_content_is_refused_and_the_run_goes_on() -> None:
    task = Task("1 + 2?", adder())
    await Runners.step(task)
    with pytest.raises(TaskError, match="Input must be text or message parts"):
        await Runners.step(task, observation=object())
    over, _, response = await Runners.step(task)
    assert over
    assert response.success


_FIRST_STEP = """
import asyncio, sys
from aworld.config import RunConfig
from aworld.core.task import Task
from aworld.runner import Runners
from tests.runners.scenes import adder

async def main():
    task = Task("1 + 2?", adder(), id="shared")
    over, observation, response = await Runners.step(task, RunConfig(store=sys.argv[1]))
    assert not over
    print(observation.results[0].content, end="")

asyncio.run(main())
"""


async def test_a_task_begun_in_one_process_is_stepped_on_in_another(tmp_path: Path, store: TrajectoryStore) -> None:
    url = f"sqlite:///{tmp_path}/runs.db"
    other = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _FIRST_STEP, url, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    output, _ = await other.communicate()
    assert output == b"3"

    task = Task("1 + 2?", adder(), id="shared")
    over, observation, response = await Runners.step(task, RunConfig(store=store))
    assert over
    assert observation.content == "It is 3."
    assert response.trajectory[0]["meta"]["step"] == 1
    assert_sound(response.record)
    assert facts(response.record) == facts((await Runners.run("1 + 2?", adder())).record)
    with pytest.raises(TaskError, match="already ended"):
        await Runners.step(Task("1 + 2?", adder(), id="shared"), RunConfig(store=store))


async def test_results_and_rewards_survive_the_change_of_process(store: TrajectoryStore) -> None:
    conf = RunConfig(store=store)
    agent = scripted([call("add", a=1, b=2), call("add", a=3, b=4)], "done")
    _, _, response = await Runners.step(Task("x", agent, id="t"), conf)
    await response.reward(0.25)
    again = Task("x", agent, id="t")  # as another process makes it
    _, _, response = await Runners.step(again, conf, tool_results={"call_0_0": "three"})
    sent = response.trajectory[0]["state"]["messages"]
    assert [message["content"] for message in sent] == ["x", None, "three", "7"]
    assert response.record.score == 0.25
    assert_sound(response.record)


async def test_a_thousand_tasks_are_stepped_side_by_side(store: TrajectoryStore) -> None:
    agent = adder()
    conf = RunConfig(store=store)
    tasks = [Task(f"question {n}", agent) for n in range(1000)]
    for expected in (False, True):
        stepped = await asyncio.gather(*(Runners.step(task, conf) for task in tasks))
        assert {over for over, _, _ in stepped} == {expected}
    assert await store.count() == 1000
    assert {summary.status for summary in await store.query()} == {"finished"}


async def test_ten_thousand_tasks_wait_for_their_next_step() -> None:
    agent = scripted("hello", tools=())
    tasks = [Task("x", agent) for _ in range(10_000)]
    stepped = [await Runners.step(task) for task in tasks]
    assert all(over and response.success for over, _, response in stepped)


async def test_hooks_and_limits_count_over_all_steps() -> None:
    task = Task("x", scripted(*[call("add", a=1, b=1)] * 5, "done"), conf=TaskConfig(max_steps=2))
    for _ in range(2):
        over, _, _ = await Runners.step(task)
        assert not over
    over, _, response = await Runners.step(task)
    assert over
    assert response.status == "limit_reached"
    assert len(response.record.calls) == 2


async def test_the_mode_of_the_samples_is_accepted() -> None:
    conf = TaskConfig(resp_carry_context=False, run_mode=TaskRunMode.INTERACTIVE)
    _, _, response = await Runners.step(Task("x", adder(), conf=conf))
    assert response.context is None


async def test_a_task_that_is_to_be_stepped_is_not_run_to_its_end(store: TrajectoryStore) -> None:
    task = Task("x", adder(), conf=TaskConfig(run_mode=TaskRunMode.INTERACTIVE))
    for asking in (
        lambda: Runners.run_task(task, RunConfig(store=store)),
        lambda: Runners.run_task([Task("y", adder()), task], RunConfig(store=store)),
    ):
        with pytest.raises(TaskError, match=r"run_mode=INTERACTIVE: step it with Runners\.step") as refused:
            await asking()
        assert refused.value.setting == "run_mode"
    assert await store.count() == 0
    with pytest.raises(TaskError, match="step it with"):
        [output async for output in Runners.streamed_run_task(task).stream_events()]


async def test_a_cancelled_step_ends_the_run(store: TrajectoryStore) -> None:
    begun = asyncio.Event()

    async def hang(_: ModelRequest) -> str:
        begun.set()
        await asyncio.Event().wait()
        return ""

    stepping = asyncio.create_task(Runners.step(Task("x", thinking(hang, tools=[add])), RunConfig(store=store)))
    await begun.wait()
    stepping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stepping
    assert (await store.query())[0].status == "cancelled"


async def test_a_structured_answer_is_observed_as_json() -> None:
    task = Task("x", scripted('{"result": [1, 2]}', output_type=list[int], tools=()))
    _, observation, response = await Runners.step(task)
    assert response.answer == [1, 2]
    assert json.loads(str(observation.content)) == [1, 2]


async def test_a_structured_answer_with_text_is_observed_as_json() -> None:
    task = Task("x", scripted('{"result": ["a"]}', output_type=list[str], tools=()))
    _, observation, _ = await Runners.step(task)
    assert json.loads(str(observation.content)) == ["a"]


async def test_a_result_may_be_replaced_by_any_json_able_value() -> None:
    task = Task("x", scripted(call("add", a=1, b=2), "done"))
    await Runners.step(task)
    _, _, response = await Runners.step(task, tool_results={"call_0_0": {"temperature": 21}})
    assert json.loads(response.trajectory[0]["state"]["messages"][-1]["content"]) == {"temperature": 21}


async def test_a_store_kept_in_memory_is_enough() -> None:
    conf = RunConfig(store=MemoryStore())
    await Runners.step(Task("1 + 2?", adder(), id="t"), conf)
    over, _, response = await Runners.step(Task("1 + 2?", adder(), id="t"), conf)
    assert over
    assert response.answer == "It is 3."


@pytest.mark.parametrize("begun", [False, True])
async def test_steps_of_one_task_at_once_are_refused(begun: bool, store: TrajectoryStore) -> None:
    task, conf = Task("1 + 2?", adder(), id="run"), RunConfig(store=store)
    if begun:
        await Runners.step(task, conf)
    outcomes = await asyncio.gather(*(Runners.step(task, conf) for _ in range(3)), return_exceptions=True)
    errors = [str(outcome) for outcome in outcomes if isinstance(outcome, BaseException)]
    assert errors == ["Task 'run' is in the middle of a step; await it before the next."] * 2
    over = begun
    while not over:
        over, _, response = await Runners.step(task, conf)
        assert response.msg == ""
    record = Trajectory.of("run", await store.read("run"))
    assert (record.status, record.answer, len(record.calls)) == ("finished", "It is 3.", 2)
    assert_sound(record)
