"""What a caller gives that cannot be is refused in words by an error of ours, at every front door."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from enum import StrEnum
from inspect import isawaitable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aworld.agents.definitions import diff, unit_of
from aworld.agents.files import dump, load
from aworld.agents.llm_agent import Agent
from aworld.agents.patterns import best_of_n, debate, majority_vote
from aworld.config import AgentConfig, ModelConfig, RunConfig, TaskConfig
from aworld.core.agent.swarm import HandoffSwarm, Loop, Map, Swarm, TeamSwarm, WorkflowNode
from aworld.core.definition import AgentDefinition, TeamDefinition
from aworld.core.event import ModelCalled, ToolReturned
from aworld.core.exceptions import AWorldError, ConfigError, StoreError, TaskError
from aworld.core.hooks import HookContext, Hooks
from aworld.core.message import Image, Message, Text, ToolCall
from aworld.core.model import ModelReply, ModelRequest
from aworld.core.task import Task, TaskResponse
from aworld.core.tool import approval_required, filtered, find_tools, prefixed, renamed, tool
from aworld.environments import Environment, EpisodeEnv, Problem, rollouts, split_by_hash
from aworld.models import FunctionModel, ScriptedModel
from aworld.models.doubles import call
from aworld.runner import Runners
from aworld.sandbox import open_sandbox
from aworld.training import AgentTrainer
from aworld.trajectory import Query, TrajectoryStore, open_store
from aworld.trajectory.memory import MemoryStore

HALF = "a\ud800"
"""What `os.fsdecode` makes of a file name that is no UTF-8."""


def agent(name: str = "ann", *replies: Any, **options: Any) -> Agent:
    return Agent(name, model=ScriptedModel(list(replies) or ["done"]), **options)


ann, ben = agent(), agent("ben")


def new(**fields: Any) -> Task:
    arguments: dict[str, Any] = {"input": "x", "agent": ann, **fields}
    return Task(**arguments)


async def run(**fields: Any) -> Any:
    return await Runners.run("x", ann, **fields)


def add(a: int, b: int) -> int:
    """Add."""
    return a + b


def door(function: Any, *args: Any, **options: Any) -> Callable[[], Any]:
    """A call whose arguments no type checker looks at."""
    return lambda: function(*args, **options)


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    # Agents and their settings
    "agent name": (door(Agent, 5), "Agent: name=5; give text"),
    "agent desc": (door(Agent, "a", desc=5), "Agent 'a': desc=5; give text or None"),
    "agent system_prompt": (door(Agent, "a", system_prompt=b"x"), "system_prompt=bytes"),
    "agent half text": (door(Agent, "a", system_prompt=HALF), "system_prompt has a lone surrogate"),
    "agent max_steps as text": (door(Agent, "a", max_steps="3"), "max_steps='3'; give a whole number from 1"),
    "agent max_steps as a float": (door(Agent, "a", max_steps=1.5), "max_steps=1.5; give a whole number from 1"),
    "agent max_steps as a bool": (door(Agent, "a", max_steps=True), "max_steps=True"),
    "agent mcp_config": (door(Agent, "a", mcp_config=5), "mcp_config=5; give a dict"),
    "agent mcp_servers": (door(Agent, "a", mcp_config={}, mcp_servers=5), "mcp_servers=5"),
    "agent tools": (door(Agent, "a", tools=5), "5 is not callable"),
    "agent tool_names": (door(Agent, "a", tool_names="search"), "tool_names='search'; give a list of text"),
    "agent sandbox": (door(Agent, "a", sandbox=5), "sandbox"),
    "agent model": (door(Agent, "a", model=5), "model=5"),
    "agent conf": (door(Agent, "a", 5), "conf=5; give an AgentConfig, a ModelConfig, a dict or None"),
    "agent conf of a wrong value": (door(Agent, "a", {"llm_temperature": "hot"}), "ModelConfig: llm_temperature: "),
    "agent argument": (door(Agent, "a", temperature=1), "Agent 'a' has no argument 'temperature'"),
    "agent with_model": (door(ann.with_model, 5), "model=5"),
    "AgentConfig": (door(AgentConfig, llm_temperature="hot"), "llm_temperature: Input should be a valid number"),
    "AgentConfig later": (door(setattr, AgentConfig(), "output_retries", -1), "AgentConfig: output_retries"),
    "AgentConfig later, of its model": (door(setattr, AgentConfig(), "llm_top_p", "x"), "ModelConfig: llm_top_p"),
    "ModelConfig": (door(ModelConfig, llm_max_retries=-1), "ModelConfig: llm_max_retries: Input should be greater"),
    "ModelConfig messages": (door(ModelConfig, params={"messages": []}), "messages: would be sent in place of what"),
    "TaskConfig": (door(TaskConfig, max_steps=1.5), "TaskConfig: max_steps"),
    "RunConfig": (door(RunConfig, max_concurrency=0), "RunConfig: max_concurrency"),
    "RunConfig on_progress": (door(RunConfig, on_progress=5), "RunConfig: on_progress"),
    # Teams
    "swarm desc": (door(Swarm, ann, ben, desc=5), "desc=5; give text"),
    "swarm name": (door(Swarm, ann, ben, name=5), "name=5; give text"),
    "swarm state": (door(Swarm, ann, ben, state={"n": 5}), r"state\['n'\]=5; give a function"),
    "swarm topology": (door(Swarm, topology=5), "topology=5; give a list"),
    "swarm build_type": (door(Swarm, ann, build_type=5), "build_type=5 is not known"),
    "team root": (door(TeamSwarm, ann, ben, root_agent="ann"), "root_agent='ann'; give an agent"),
    "hand-off history": (door(HandoffSwarm, (ann, ben), history=1.5), "history=1.5"),
    "loop": (door(Loop, ann, until=print, max_rounds=2.5), "max_rounds=2.5"),
    "map": (door(Map, ann, times="3"), "times='3'"),
    "node name": (door(WorkflowNode, ann, name=5), "name=5; give text"),
    "debate": (door(debate, 5, ann), "debaters=5; give a list"),
    "best_of_n": (door(best_of_n, ann, "3", scorer=len), "n='3'"),
    "majority_vote": (door(majority_vote, [ann, 5]), r"agents\[1\]=5; give an agent"),
    "draw": (door(Swarm(ann, ben).draw, style="svg"), "style='svg'; give one of 'mermaid', 'tree'"),
    "load": (door(load, 5), "load: path_or_text=5; give text or a path"),
    "dump": (door(dump, 5), "dump: unit=5; give an agent, a swarm, an AgentDefinition or a TeamDefinition"),
    "unit_of": (door(unit_of, {"name": "a"}), "definition=dict"),
    "diff": (door(diff, ann.definition, 5), "after=5"),
    "definition": (
        door(AgentDefinition, name=5, type="Agent"),
        "AgentDefinition: name: Input should be",
    ),
    "definition of a team": (door(TeamDefinition, name="t", type="Loop", members=5), "TeamDefinition: members"),
    "definition argument": (door(AgentDefinition, name="a", typ="Agent"), "has no setting 'typ'; did you mean 'type'"),
    # Tools
    "tool name": (door(tool, name=5), "tool: name=5; give text"),
    "tool timeout": (door(tool, timeout="5"), "timeout='5'; give a number of seconds above 0"),
    "tool timeout of nothing": (door(tool, timeout=0), "timeout=0; give a number of seconds above 0"),
    "tool argument": (door(tool, timout=5), "tool has no argument 'timout'; did you mean 'timeout'"),
    "find_tools": (door(find_tools, 5), "tool_name=5; give text"),
    "filtered": (door(filtered, [add], 5), "keep=5; give a function or a list of text"),
    "filtered of one": (door(filtered, [add], "add"), "keep='add'; give a function or a list of text"),
    "prefixed": (door(prefixed, [add], 5), "prefix=5; give text"),
    "renamed": (door(renamed, [add], ["b"]), "names=list.*give a dict of text to text"),
    "approval_required": (door(approval_required, [add], approve="yes"), "approve='yes'; give a function"),
    # Tasks
    **{
        f"task {name}": (door(new, **{name: 7}), f"{name}=7; give text")
        for name in ("id", "name", "session_id", "user_id", "group_id")
    },
    **{
        f"task {name}, half text": (door(new, **{name: HALF}), f"{name} has a lone surrogate")
        for name in ("id", "name", "session_id", "user_id", "group_id", "after")
    },
    "task agent": (door(new, agent="ann"), "agent='ann'; give an agent"),
    "task swarm": (door(new, agent=None, swarm=5), "swarm=5; give an agent"),
    "task input": (door(new, input=5), "Input must be text or message parts"),
    "task input, half text": (door(new, input=HALF), "Input has a lone surrogate"),
    "task part, half text": (door(new, input=[Text(HALF)]), "Input has a lone surrogate"),
    "task image, half text": (door(new, input=Image(HALF)), "Input has a lone surrogate"),
    "task message, half text": (
        door(new, input=[Message("user", HALF), Message("user", "x")]),
        "A message of the input has a lone surrogate",
    ),
    "task last message, half text": (door(new, input=[Message("user", HALF)]), "Input has a lone surrogate"),
    "task conf": (door(new, conf=5), "conf=5; give a TaskConfig, a dict"),
    "task conf of a wrong value": (door(new, conf={"max_steps": "many"}), "TaskConfig: max_steps"),
    "task timeout": (door(new, timeout=-1), "timeout=-1"),
    "task timeout as text": (door(new, timeout="5"), "timeout='5'"),
    "task labels": (door(new, labels={"run": 5}), r"labels\['run'\]=5; give text"),
    "task names of labels": (door(new, labels={5: "a"}), "a key of labels=5; give text"),
    "task labels, half text": (door(new, labels={"run": HALF}), r"labels\['run'\] has a lone surrogate"),
    "task labels as a list": (door(new, labels=["run"]), "labels=list"),
    "task context": (door(new, context=5), "context=5; give a dict"),
    "task keys of the context": (door(new, context={1: 2}), "a key of context=1; give text"),
    "task keys of the context, half text": (door(new, context={HALF: 2}), "a key of context has a lone surrogate"),
    "task context, half text": (door(new, context={"a": [HALF]}), r"context\['a'\] has a lone surrogate"),
    "task context of objects": (door(new, context={"a": object()}), r"context\['a'\] cannot be written"),
    "task hooks": (door(new, hooks=[5]), r"hooks\[0\]=5; give a Hooks"),
    "task hooks as one": (door(new, hooks=Hooks()), "hooks=Hooks"),
    "task after": (door(new, after=5), "after=5"),
    "task environment": (door(new, environment=5), "environment=5; give the environment of a run"),
    "task tools": (door(new, tools=[5]), "5 is not callable"),
    "task tool_names": (door(new, tool_names="search"), "tool_names='search'; give a list"),
    "task argument": (door(new, agnet=5), "Task has no argument 'agnet'; did you mean 'agent'"),
    # Runners
    "run argument": (door(run, foo=1), "Task has no argument 'foo'"),
    "run run_conf": (door(run, run_conf=5), "run_conf=5; give a RunConfig, a dict"),
    "run run_conf of a wrong value": (door(run, run_conf={"worker_num": 0}), "RunConfig: worker_num"),
    "run worker_num for nothing": (door(run, run_conf={"worker_num": 4}), "worker_num=4 needs engine_name='processes'"),
    "run store": (door(run, run_conf={"store": 5}), "store takes a store or an address"),
    "sync_run": (door(Runners.sync_run, "x", "ann"), "agent='ann'"),
    "run_task": (door(Runners.run_task, 5), "task=5; give a Task or a list"),
    "run_task of text": (door(Runners.run_task, "x"), "task='x'; give a Task"),
    "run_task of a list of text": (door(Runners.run_task, ["x"]), "Expected a Task"),
    "run_task on_done": (door(Runners.run_task, [], on_done=5), "on_done=5; give a function"),
    "sync_run_task": (door(Runners.sync_run_task, None), "task=None; give a Task"),
    "streaming_run_task": (door(Runners.streaming_run_task, "x"), "task='x'; give a Task"),
    "streaming_run": (door(Runners.streaming_run, "x", 5), "agent=5; give an agent"),
    "step": (door(Runners.step, "x"), "task='x'; give a Task"),
    "step tool_results": (door(Runners.step, new(), tool_results=["x"]), "tool_results=list.*give a dict"),
    "step observation": (door(Runners.step, new(), observation=5), "Input must be text"),
    "resume": (door(Runners.resume, 5), "id=5; give text, a Trajectory or a TaskResponse"),
    "resume nothing": (door(Runners.resume, None), "id=None"),
    "resume answers": (door(Runners.resume, "x", ann, answers=["yes"]), "answers=list.*give a dict"),
    "answer": (door(Runners.answer, "x", 5), "text=5; give text"),
    "answer, half text": (door(Runners.answer, "x", HALF), "text has a lone surrogate"),
    "cancel": (door(Runners.cancel, "x", reason=5), "reason=5; give text"),
    "steer": (door(Runners.steer, "x", HALF), "text has a lone surrogate"),
    "pause": (door(Runners.pause, b"x"), "id=bytes"),
    "follow": (door(Runners.follow, 5), "id=5"),
    "follow after": (door(Runners.follow, "x", after="3"), "after='3'; give a whole number"),
    "resume_all": (door(Runners.resume_all, "memory:", "ann"), "agents='ann'; give a list"),
    "resume_all of one": (door(Runners.resume_all, "memory:", ann), "agents=Agent"),
    "resume_all of text": (door(Runners.resume_all, "memory:", ["ann"]), "resume_all takes agents and swarms"),
    "resume_all store": (door(Runners.resume_all, 5, [ann]), "store takes a store or an address"),
    "fork": (door(Runners.fork, "x", ann, n="2"), "n='2'; give a whole number from 1"),
    "fork none": (door(Runners.fork, "x", ann, n=0), "n=0; give a whole number from 1"),
    "fork at": (door(Runners.fork, "x", ann, at=True), "at=True"),
    "replay": (door(Runners.replay, 5), "id=5"),
    "replay hooks": (door(Runners.replay, "x", hooks=[5]), r"hooks\[0\]=5"),
    "reward": (door(Runners.reward, "x", "good"), "value='good'; give a finite number"),
    "reward of nan": (door(Runners.reward, "x", float("nan")), "value=nan; give a finite number"),
    "reward beyond all floats": (door(Runners.reward, "x", 10**400), "value=1000.*give a finite number"),
    "reward name": (door(Runners.reward, "x", 1, name=5), "name=5; give text"),
    "reward name, half text": (door(Runners.reward, "x", 1, name=HALF), "name has a lone surrogate"),
    "reward source": (door(Runners.reward, "x", 1, source=5), "source=5; give text"),
    "reward step": (door(Runners.reward, "x", 1, step=True), "step=True; give a whole number"),
    "reward step as a float": (door(Runners.reward, "x", 1, step=0.0), "step=0.0; give a whole number"),
    "reward weight": (door(Runners.reward, "x", 1, weight="2"), "weight='2'; give a finite number"),
    "run elsewhere": (
        door(run, run_conf={"engine_name": "processes", "store": "memory:"}),
        "needs a store that processes share",
    ),
    "stream elsewhere": (
        door(Runners.streamed_run_task, new(), {"engine_name": "processes"}),
        "is for whole runs",
    ),
    "no store": (door(Runners.resume, "nosuch", ann), "no trajectory 'nosuch' here: .* Give store="),
    "follow without a store": (
        door(anext, Runners.follow("nosuch")),
        "no trajectory 'nosuch' here: .* Give store=",
    ),
    # Stores
    "open_store": (door(open_store, None), "open_store: url=None; give text"),
    "query": (door(MemoryStore().query, "finished"), "query='finished'; give a Query"),
    "count": (door(MemoryStore().count, "finished"), "query='finished'; give a Query"),
    "read": (door(MemoryStore().read, 5), "id=5; give text"),
    "read after": (door(MemoryStore().read, "x", after="y"), "after='y'; give a whole number"),
    "scan": (door(MemoryStore().scan, 5), "query=5; give a Query"),
    "store follow": (door(MemoryStore().follow, 5), "ids=5; give text, a list or a Query"),
    "delete": (door(MemoryStore().delete, None), "id=None; give text"),
    "facets": (door(MemoryStore().facets, "status"), "fields='status'; give a list of text"),
    "Query order": (door(Query, order="nonsense"), "nonsense"),
    "Query status": (door(Query, status="finished"), "Query: status='finished'; give a list of one of 'finished'"),
    "Query limit": (door(Query, limit="5"), "Query: limit='5'; give a whole number or None"),
    "Query since": (door(Query, since=datetime.now(tz=UTC)), "Query: since=datetime.*; give a finite number or None"),
    "Query argument": (door(Query, ordr="id"), "Query: .*'ordr'; it takes where, labels"),
    "definition of JSON": (door(AgentDefinition.model_validate, {"nam": "a"}), "has no setting 'nam'; did you mean"),
    # Environments and training
    "environment": (door(Environment, 5), "Environment: name=5; give text"),
    "environment argument": (door(Environment, "e", trian=[]), "Environment 'e' has no argument 'trian'; did you mean"),
    "environment session": (door(Environment, "e", session="s"), "session='s'; give a function"),
    "environment system prompt": (door(Environment, "e", system_prompt=5), "system_prompt=5; give text"),
    "problem id": (door(Problem, 1, "x"), "Problem: id=1; give text"),
    "episode": (door(EpisodeEnv, 5), "EpisodeEnv: environment=5; give an Environment"),
    "episode split": (door(EpisodeEnv, Environment("e"), "dev"), "split='dev'; give one of 'train', 'test'"),
    "rollouts": (door(rollouts, Environment("e"), 5, []), "agent=5; give an agent or a swarm"),
    "split by hash": (door(split_by_hash, 5), "split_by_hash: generate=5; give a function"),
    "a stream of nothing": (
        door(Environment("e", train=lambda seed: seed).problems, "train", 1),  # type: ignore[arg-type, return-value]
        "a function of a seed makes problems; it returned 0",
    ),
    "problem": (door(Problem, "a", "b", 3, {}, 5), "Problem: .*it takes id, input, answer, data"),
    "trainer": (door(AgentTrainer, ann, on_event="tell"), "on_event='tell'; give a function"),
    "trainer argument": (door(AgentTrainer, ann, run_pth="x"), "has no argument 'run_pth'; did you mean 'run_path'"),
    "settings by place": (door(RunConfig, 5), "RunConfig takes its settings by name, such as engine_name="),
    "settings of a model by place": (door(AgentConfig, 5), "AgentConfig takes its settings by name"),
    "output type": (door(Agent, "a", output_type="Advice"), "output_type='Advice' of agent 'a' is a text"),
    "script": (door(ScriptedModel, 5), "ScriptedModel: replies=5; give a list"),
    "function model": (door(FunctionModel, 5), "FunctionModel: function=5; give a function"),
    "sandbox": (door(open_sandbox, 5), "open_sandbox: name=5; give text"),
    "settings": (door(TaskConfig, tool_timeout=float("inf")), "tool_timeout: Input should be a finite number"),
    # How many
    "too few": (door(Task), "Task needs input="),
    "too many": (door(Agent, "a", None, None, "system"), "Agent 'a' takes 3 by place and got 4; give the others by"),
}


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[TrajectoryStore]:
    opened = open_store(f"sqlite:///{tmp_path}/runs.db")
    yield opened
    await opened.close()


@pytest.mark.parametrize("case", BAD)
async def test_every_front_door_refuses_in_words(case: str) -> None:
    knock, words = BAD[case]

    async def knocked() -> None:
        pending = knock()
        if isawaitable(pending):
            await pending

    with pytest.raises(AWorldError, match=words) as refused:
        await asyncio.wait_for(knocked(), 20)
    assert isinstance(refused.value, ValueError | StoreError) or case.endswith("tools")


async def test_text_of_other_kinds_is_kept_as_text(store: TrajectoryStore) -> None:
    class Split(StrEnum):
        TRAIN = "train"

    subclass: Any = np.str_("g")
    fields = {"name": subclass, "group_id": subclass, "session_id": subclass, "user_id": subclass}
    one = Task("x", ann, **fields, labels={"split": Split.TRAIN, subclass: subclass})
    response = (await Runners.run_task(one, RunConfig(store=store)))[one.id]
    assert response.status == "finished"
    read = await Runners.replay(one.id, ann, store=store)
    assert read.same
    (found,) = await store.query(Query(group="g"))
    assert (found.task_name, found.labels) == ("g", {"split": "train", "g": "g"})


async def test_a_reward_that_no_log_can_hold_is_refused_at_the_response_too(store: TrajectoryStore) -> None:
    response = await Runners.run("x", ann, run_conf=RunConfig(store=store))
    wrong: Any = [{"name": 5}, {"name": HALF}, {"source": 5}, {"source": HALF}, {"detail": HALF}, {"detail": object()}]
    for fields in wrong:
        with pytest.raises(ValueError, match=next(iter(fields)) if "detail" not in fields else "JSON-able"):
            await response.reward(1.0, **fields)
        with pytest.raises(ValueError):
            await Runners.reward(response.id, 1.0, store=store, **fields)
    await response.reward(True, name="passed")
    assert (await Runners.replay(response.id, ann, store=store)).same


class Returns(Hooks):
    """A hook whose methods return what they may not."""

    def __init__(self, point: str, value: Any) -> None:
        self.point, self.value = point, value

    async def before_model(self, at: HookContext, request: ModelRequest) -> Any:
        return self.value if self.point == "before_model" else None

    async def after_model(
        self, at: HookContext, request: ModelRequest, reply: ModelReply | None, error: Exception | None
    ) -> Any:
        return self.value if self.point == "after_model" else None

    async def before_tool(self, at: HookContext, call: ToolCall) -> Any:
        return self.value if self.point == "before_tool" else None

    async def after_tool(self, at: HookContext, call: ToolCall, result: Any) -> Any:
        return self.value if self.point == "after_tool" else None


@pytest.mark.parametrize("value", ["no", 0, False, {}], ids=repr)
@pytest.mark.parametrize("point", ["before_model", "after_model", "before_tool", "after_tool"])
async def test_a_hook_that_returns_what_it_may_not_is_named(point: str, value: Any) -> None:
    adder = agent("adder", [call("add", a=1, b=2)], "3", tools=[add])
    response = await Runners.run("1 + 2?", adder, hooks=[Returns(point, value)])
    errors = [event.error for event in response.record if isinstance(event, ToolReturned | ModelCalled)]
    words = " ".join([response.msg, *filter(None, errors)])
    assert f"Returns returned {value!r}, where a hook returns" in words


async def test_on_done_may_be_async_and_what_it_raises_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []

    async def later(response: TaskResponse) -> None:
        await asyncio.sleep(0)
        seen.append(response.id)
        if len(seen) == 1:
            raise KeyError("mine")

    tasks = [Task("x", agent()) for _ in range(3)]
    with caplog.at_level(logging.ERROR):
        responses = await Runners.run_task(tasks, on_done=later)
    assert sorted(seen) == sorted(responses)
    assert all(response.success for response in responses.values())
    assert "the runs go on" in caplog.text
    assert "mine" in caplog.text


async def test_on_progress_that_raises_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def broken(progress: Any) -> None:
        raise KeyError("mine")

    with caplog.at_level(logging.ERROR):
        responses = await Runners.run_task([Task("x", agent())], RunConfig(on_progress=broken))
    assert all(response.success for response in responses.values())


async def test_nothing_is_run_of_what_is_refused(store: TrajectoryStore) -> None:
    wrong: Any = 7
    with pytest.raises(TaskError):
        await Runners.run("x", ann, group_id=wrong, run_conf=RunConfig(store=store))
    with pytest.raises(ConfigError):
        await Runners.run("x", ann, conf={"max_steps": "many"}, run_conf=RunConfig(store=store))
    assert await store.count() == 0
