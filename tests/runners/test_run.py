"""Running one task and many."""

from __future__ import annotations

import asyncio
import gc
import json
import traceback
from pathlib import Path
from typing import Any

import pytest

from aworld.agents.llm_agent import Agent
from aworld.config import AgentConfig, EngineName, RunConfig, TaskConfig
from aworld.core.agent.base import BaseAgent
from aworld.core.common import ActionModel, Observation
from aworld.core.exceptions import ConfigError, TaskError
from aworld.core.message import Image, Text
from aworld.core.model import ModelRequest
from aworld.core.task import Task, TaskResponse
from aworld.models import ScriptedModel
from aworld.models.doubles import call
from aworld.runner import Runners
from aworld.runners.local import store_of
from aworld.trajectory import MemoryStore, TrajectoryStore
from tests.runners.scenes import Gate, adder, assert_sound, kinds, scripted, thinking


def echo(request: ModelRequest) -> str:
    return f"you said {request.messages[-1].text}"


async def test_a_run_gives_its_answer_and_everything_that_it_did() -> None:
    response = await Runners.run("1 + 2?", adder())

    assert response.answer == "It is 3."
    assert (response.status, response.success, response.msg) == ("finished", True, "")
    assert response.id == response.trajectory_id == response.record.id
    assert response.time_cost > 0
    assert response.context is not None
    assert response.usage.estimated  # a double reports none
    assert kinds(response.record) == [
        "started", "agent_started", "message", "message",
        "message", "toolset", "model_call", "tool_call", "message", "tool_result",
        "message", "model_call", "agent_finished", "finished",
    ]  # fmt: skip
    assert_sound(response.record)


async def test_rows_are_json_and_show_each_step() -> None:
    response = await Runners.run("1 + 2?", adder(), name="sum", session_id="s1")

    first, second = json.loads(json.dumps(response.trajectory))
    assert first["meta"] | {"execute_time": 0} == {
        "trajectory_id": response.id,
        "task_id": response.id,
        "task_name": "sum",
        "session_id": "s1",
        "agent": "adder",
        "agent_id": "adder#0",
        "step": 0,
        "execute_time": 0,
        "pre_agent": None,
        "caller": None,
    }
    assert first["state"]["input"] == "1 + 2?"
    assert [message["role"] for message in first["state"]["messages"]] == ["system", "user"]
    assert [tool["function"]["name"] for tool in first["state"]["tools"]] == ["add", "search"]
    assert first["action"] == {
        "content": None,
        "reasoning": None,
        "tool_calls": [
            {"id": "call_0_0", "type": "function", "function": {"name": "add", "arguments": '{"a":1,"b":2}'}}
        ],
        "is_agent_finished": False,
    }
    (seen,) = first["observation"]
    assert (seen["tool_call_id"], seen["name"], seen["content"], seen["error"]) == ("call_0_0", "add", "3", None)
    assert first["reward"] == {"score": None, "rewards": []}
    assert first["model"]["attempts"] == 1
    assert second["meta"]["pre_agent"] == "adder"
    assert second["action"]["content"] == "It is 3."
    assert second["action"]["is_agent_finished"]
    assert second["tokens"] is None


def test_sync_run_needs_no_loop() -> None:
    assert Runners.sync_run(input="1 + 2?", agent=adder()).answer == "It is 3."


async def test_sync_run_inside_a_running_loop_twice() -> None:
    assert Runners.sync_run("1 + 2?", adder()).answer == "It is 3."
    assert Runners.sync_run("1 + 2?", adder()).answer == "It is 3."


def test_sync_run_task_takes_one_or_many() -> None:
    one, many = Task("1 + 2?", adder()), [Task("1 + 2?", adder()) for _ in range(3)]
    assert Runners.sync_run_task(one)[one.id].success
    assert list(Runners.sync_run_task(many)) == [task.id for task in many]


def test_misuse_is_raised_without_the_way_through_our_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLM_MODEL_NAME", raising=False)
    with pytest.raises(ConfigError, match="No model name: set LLM_MODEL_NAME") as misuse:
        Runners.sync_run("Hello", agent=Agent("a"))
    assert len(traceback.extract_tb(misuse.value.__traceback__)) == 3  # the caller's line, sync_run, what it calls
    assert misuse.value.__suppress_context__


async def test_misuse_inside_sync_run_in_a_loop_is_raised() -> None:
    with pytest.raises(ConfigError, match="LLM_MODEL_NAME"):
        Runners.sync_run("hello", Agent("a"))


async def test_responses_stand_in_the_order_of_the_tasks_whichever_ends_first() -> None:
    turns = [asyncio.Event() for _ in range(5)]
    turns[-1].set()

    async def last_first(request: ModelRequest) -> str:
        number = int(request.messages[-1].text)
        await turns[number].wait()
        turns[number - 1].set()
        return str(number)

    ended: list[str] = []
    agent = thinking(last_first)
    tasks = [Task(str(number), agent, id=f"t{number}") for number in range(5)]
    responses = await Runners.run_task(tasks, on_done=lambda response: ended.append(response.id))
    assert list(responses) == ["t0", "t1", "t2", "t3", "t4"]
    assert ended == ["t4", "t3", "t2", "t1", "t0"]


async def test_no_more_than_max_concurrency_run_at_once() -> None:
    gate = Gate()

    async def wait(_: ModelRequest) -> str:
        await gate.pass_through()
        return "done"

    tasks = [Task("x", thinking(wait)) for _ in range(50)]
    running = asyncio.create_task(Runners.run_task(tasks, RunConfig(max_concurrency=7)))
    await gate.until(7)
    assert gate.inside == 7
    gate.open.set()
    responses = await running
    assert gate.most == 7
    assert all(response.success for response in responses.values())


async def test_sequence_dependent_tasks_run_one_after_another_until_one_fails() -> None:
    order: list[str] = []

    async def note(request: ModelRequest) -> str:
        text = request.messages[-1].text
        order.append(f"begin {text}")
        await asyncio.sleep(0)
        order.append(f"end {text}")
        if text == "b":
            raise RuntimeError("no")
        return text

    tasks = [Task(text, thinking(note), id=text) for text in "abc"]
    responses = await Runners.run_task(tasks, RunConfig(sequence_dependent=True))
    assert order == ["begin a", "end a", "begin b", "end b"]
    assert [(id, response.status) for id, response in responses.items()] == [("a", "finished"), ("b", "failed")]


async def test_one_agent_serves_a_thousand_tasks_at_once() -> None:
    gate = Gate()

    async def think(request: ModelRequest) -> Any:
        if request.turn == 0:
            await gate.pass_through()
            return call("add", a=int(request.messages[-1].text), b=1)
        return f"{request.messages[-3].text} + 1 = {request.messages[-1].text}"

    agent = thinking(think, tools=adder().toolkit.items)
    tasks = [Task(str(number), agent) for number in range(1000)]
    running = asyncio.create_task(Runners.run_task(tasks))
    await gate.until(1000)
    gate.open.set()
    responses = await running
    assert [response.answer for response in responses.values()] == [f"{n} + 1 = {n + 1}" for n in range(1000)]


async def test_an_empty_list_of_tasks_is_no_work() -> None:
    assert await Runners.run_task([]) == {}


async def test_two_tasks_with_one_id_are_refused_before_anything_runs() -> None:
    asked: list[str] = []

    def note(request: ModelRequest) -> str:
        asked.append(request.trajectory_id)
        return "x"

    with pytest.raises(TaskError, match="'twice'"):
        await Runners.run_task([Task("a", thinking(note), id="twice"), Task("b", thinking(note), id="twice")])
    assert asked == []


async def test_an_id_is_used_once_in_a_store(store: TrajectoryStore) -> None:
    conf = RunConfig(store=store)
    first = await Runners.run("x", adder(), id="mine", run_conf=conf)
    before = first.record.events
    with pytest.raises(TaskError, match=r"'mine'.*resume"):
        await Runners.run("y", adder(), id="mine", run_conf=conf)
    assert await store.read("mine") == before
    assert (await Runners.run("y", adder(), id="mine", run_conf=RunConfig(store=MemoryStore()))).success


async def test_an_id_is_free_again_when_nobody_holds_the_run_and_there_is_no_store() -> None:
    gc.disable()
    try:
        await Runners.run("x", adder(), id="daily")
        assert (await Runners.run("x", adder(), id="daily")).success
    finally:
        gc.enable()


@pytest.mark.parametrize("failing", [RuntimeError("broken"), ValueError(""), TimeoutError("slow"), KeyError("k")])
async def test_a_failing_model_is_a_status_not_a_crash(failing: Exception) -> None:
    def fail(request: ModelRequest) -> Any:
        if request.turn == 0:
            return call("add", a=1, b=2)
        raise failing

    response = await Runners.run("x", thinking(fail, tools=[*adder().toolkit.items]))
    assert response.status == "failed"
    assert type(failing).__name__ in response.msg
    assert not response.success
    first, second = response.trajectory
    assert first["observation"][0]["content"] == "3"  # what was done is kept
    assert second["action"]["content"] is None
    assert_sound(response.record)
    assert response.answer is None


async def test_one_failure_leaves_the_other_tasks_alone() -> None:
    tasks = [Task("x", scripted(RuntimeError("no")) if n == 3 else adder(), id=str(n)) for n in range(6)]
    responses = await Runners.run_task(tasks)
    assert [id for id, response in responses.items() if not response.success] == ["3"]


async def test_a_script_that_is_too_short_is_an_error() -> None:
    response = await Runners.run("x", scripted(call("add", a=1, b=2)))
    assert response.status == "failed"
    assert "reply number 2 was asked for" in response.msg


async def test_a_script_that_is_too_long_is_an_error() -> None:
    response = await Runners.run("x", scripted("done", "and more", "and more"))
    assert response.status == "failed"
    assert response.msg == "2 scripted replies of agent 'agent' were not used."


async def test_input_may_be_message_parts() -> None:
    seen: list[Any] = []

    def look(request: ModelRequest) -> str:
        seen.append(request.messages[-1].content)
        return "a cat"

    response = await Runners.run(["What is it?", Image("https://example.org/cat.png")], thinking(look))
    assert seen == [(Text("What is it?"), Image("https://example.org/cat.png"))]
    assert response.trajectory[0]["state"]["input"] == [
        {"type": "text", "text": "What is it?"},
        {"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}},
    ]


async def test_the_first_values_of_the_context_are_seen_by_tools_and_logged() -> None:
    response = await Runners.run("x", adder(), context={"city": "Ghent", "limits": [1, 2]})
    assert response.context is not None
    assert dict(response.context) == {"city": "Ghent", "limits": [1, 2]}
    assert response.record.state == {"city": "Ghent", "limits": [1, 2]}


class Thermostat(BaseAgent):
    """A rule-based agent: it reads the sensor once and says what it read."""

    async def policy(self, observation: Observation) -> ActionModel:
        if not observation.results:
            return ActionModel(tool_name="add", params={"a": 20, "b": 1})
        return ActionModel(content=f"{observation.results[0].content} degrees")


async def test_a_rule_based_agent_decides_without_a_model() -> None:
    response = await Runners.run("How warm is it?", Thermostat("thermostat", tools=adder().toolkit.items))
    assert response.answer == "21 degrees"
    assert [row["model"]["name"] for row in response.trajectory] == [None, None]
    assert response.trajectory[0]["observation"][0]["content"] == "21"
    assert_sound(response.record)


async def test_a_rule_based_agent_may_take_several_actions_at_once() -> None:
    class Both(BaseAgent):
        async def policy(self, observation: Observation) -> list[ActionModel]:
            if observation.results:
                return [ActionModel(content=", ".join(str(result.content) for result in observation.results))]
            return [ActionModel("add", {"a": 1, "b": n}) for n in range(3)]

    assert (await Runners.run("x", Both("both", tools=adder().toolkit.items))).answer == "1, 2, 3"


async def test_a_policy_that_raises_is_a_failed_run() -> None:
    class Broken(BaseAgent):
        async def policy(self, observation: Observation) -> ActionModel:
            raise LookupError("no idea")

    response = await Runners.run("x", Broken("broken"))
    assert (response.status, response.msg) == ("failed", "LookupError: no idea")
    assert_sound(response.record)


async def test_an_agent_without_a_policy_says_what_is_missing() -> None:
    response = await Runners.run("x", BaseAgent("empty"))
    assert response.status == "failed"
    assert "must define `policy(observation)`" in response.msg


def test_a_task_needs_one_who_does_it() -> None:
    with pytest.raises(TaskError, match="needs either agent="):
        Task("x")
    with pytest.raises(TaskError, match="not both"):
        Task("x", adder(), adder())


@pytest.mark.parametrize("given", [None, 3, [], [1], {"text": "x"}, object()])
def test_input_that_is_no_content_is_refused(given: Any) -> None:
    with pytest.raises(TaskError, match="Input must be text or message parts"):
        Task(given, adder())


def test_a_dict_is_a_configuration_and_its_keys_are_checked() -> None:
    assert Task("x", adder(), conf={"max_steps": 3}).conf.max_steps == 3
    assert Task("x", adder(), conf=TaskConfig(max_steps=3), timeout=2.5).conf.timeout == 2.5
    with pytest.raises(ConfigError, match="TaskConfig has no setting 'max_step'; did you mean 'max_steps'"):
        Task("x", adder(), conf={"max_step": 3})
    with pytest.raises(ValueError, match="max_steps"):
        TaskConfig(max_steps=0)


async def test_a_run_configuration_may_be_a_dict_and_unknown_engines_are_named() -> None:
    with pytest.raises(ConfigError, match="max_concurency"):
        await Runners.run_task(Task("x", adder()), {"max_concurency": 3})
    with pytest.raises(ConfigError, match="'ray' is not in this version"):
        await Runners.run_task(Task("x", adder()), RunConfig(engine_name=EngineName.RAY))
    with pytest.raises(ConfigError, match="not an address of a store"):
        await Runners.run_task(Task("x", adder()), {"store": "carrier-pigeon:"})


async def test_a_missing_setting_is_reported_when_the_agent_runs_and_names_the_variable() -> None:
    agent = Agent("a")
    with pytest.raises(ConfigError, match="LLM_MODEL_NAME"):
        await Runners.run("x", agent)
    agent = Agent("a", AgentConfig(llm_model_name="gpt-4o"))
    with pytest.raises(ConfigError, match=r"LLM_API_KEY or OPENAI_API_KEY"):
        await Runners.run_task([Task("x", adder()), Task("x", agent)])


async def test_cancelling_the_caller_cancels_all_and_keeps_what_was_done(store: TrajectoryStore) -> None:
    gate = Gate()

    async def wait(request: ModelRequest) -> Any:
        if request.turn == 0:
            return call("add", a=1, b=2)
        await gate.pass_through()
        return "done"

    agent = thinking(wait, tools=adder().toolkit.items)
    tasks = [Task("x", agent) for _ in range(20)]
    running = asyncio.create_task(Runners.run_task(tasks, RunConfig(store=store)))
    await gate.until(20)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    found = await store.query()
    assert [summary.status for summary in found] == ["cancelled"] * 20
    assert {summary.steps for summary in found} == {1}


async def test_two_runs_of_one_script_have_equal_logs() -> None:
    first, second = await Runners.run("x", adder()), await Runners.run("x", adder())
    assert kinds(first.record) == kinds(second.record)


async def test_what_is_no_agent_is_misuse() -> None:
    wrong: Any = "researcher"
    with pytest.raises(TaskError):
        await Runners.run("x", wrong)


async def test_a_context_that_json_cannot_hold_is_misuse() -> None:
    with pytest.raises(TaskError):
        await Runners.run("x", adder(), context={"session": object()})


async def test_an_input_that_no_store_can_hold_is_a_clear_error(store: TrajectoryStore) -> None:
    name = b"report-\xff.pdf".decode(errors="surrogateescape")  # as os.listdir gives it
    with pytest.raises(TaskError, match="surrogate"):
        await Runners.run(f"Read {name}", scripted("ok"), run_conf=RunConfig(store=store))


async def test_a_reply_with_a_lone_surrogate_does_not_break_the_log(store: TrajectoryStore) -> None:
    response = await Runners.run("x", scripted("half \ud83d of a face"), run_conf=RunConfig(store=store))
    assert response.status in ("finished", "failed")
    assert (await store.query())[0].status == response.status


def test_done_callbacks_see_every_response() -> None:
    seen: list[TaskResponse] = []

    async def main() -> None:
        await Runners.run_task([Task("x", adder()) for _ in range(4)], on_done=seen.append)

    asyncio.run(main())
    assert len(seen) == 4


def test_a_double_is_shared_by_runs() -> None:
    model = ScriptedModel(["hi"])
    assert [Runners.sync_run("x", Agent("a", model=model)).answer for _ in range(3)] == ["hi"] * 3


def test_echo_of_the_readme() -> None:
    assert Runners.sync_run("hello", thinking(echo)).answer == "you said hello"


async def test_a_store_that_was_closed_is_opened_again_by_its_address(tmp_path: Path) -> None:
    conf = RunConfig(store=f"sqlite:///{tmp_path}/runs.db")
    held = store_of(conf.store)
    assert (await Runners.run("1 + 2?", adder(), run_conf=conf)).success
    await held.close()
    assert (await Runners.run("1 + 2?", adder(), run_conf=conf)).success
    assert len(await store_of(conf.store).query()) == 2
