"""Environments of verifiers with the real package. Run by `make test-trainers`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verifiers")

from aworld.agents.llm_agent import Agent
from aworld.core.exceptions import ConfigError
from aworld.core.model import ModelRequest
from aworld.core.task import TaskResponse
from aworld.environments import Environment, Problem
from aworld.environments.adapters.verifiers import verifiers_environment
from aworld.models.doubles import FunctionModel, Said, call
from aworld.runner import Runners
from tests.trainers import verifiers_setting as setting

vf = setting.vf


def backwards(request: ModelRequest) -> Said:
    return "21"


@pytest.fixture
def boxes(monkeypatch: pytest.MonkeyPatch) -> Environment:
    monkeypatch.setattr(
        sys, "path", [str(Path(__file__).parent), *sys.path]
    )  # an id is the name of a module on the path
    return verifiers_environment("verifiers-setting")


def looker(request: ModelRequest) -> Said:
    seen = "".join(message.text for message in request.messages if message.role == "tool")
    return call("box_look", place=len(seen)) if len(seen) < 2 else seen


async def play(environment: Environment, problem: Problem, policy: Any = looker) -> TaskResponse:
    task = environment.task(problem, Agent("looker", model=FunctionModel(policy)))
    return (await Runners.run_task(task))[task.id]


async def test_its_tools_its_state_and_its_rewards_make_the_episode(boxes: Environment) -> None:
    problem = boxes.problems("test", 1)[0]
    response = await play(boxes, problem)
    assert response.answer == problem.answer
    assert {r.name: (r.value, r.weight) for r in response.record.rewards} == {
        "correct": (1.0, 2.0),
        "polite": (0.5, 1.0),
        "looked": (2.0, 0.0),
    }
    assert response.record.score == 2.5
    (tool,) = response.trajectory[0]["state"]["tools"]
    assert tool["function"]["name"] == "box_look"
    assert tool["function"]["parameters"]["properties"]["place"]["type"] == "integer"


async def test_episodes_side_by_side_keep_their_state_to_themselves(boxes: Environment) -> None:
    problems = boxes.problems("train", 30)
    tasks = [boxes.task(p, Agent(f"a{n}", model=FunctionModel(looker))) for n, p in enumerate(problems)]
    responses = await Runners.run_task(tasks)
    assert [responses[task.id].answer for task in tasks] == [problem.answer for problem in problems]
    mirrored = {p.answer for p in problems if p.answer == p.answer[::-1]}  # these raise, see below
    scores = {responses[task.id].record.score for task, p in zip(tasks, problems) if p.answer not in mirrored}
    assert scores == {2.5}


async def test_a_reward_that_raises_fails_alone_and_the_score_is_unknown(boxes: Environment) -> None:
    problem = next(p for p in boxes.problems("train") if p.answer == "12")
    response = await play(boxes, problem, backwards)
    rewards = {reward.name: reward for reward in response.record.rewards}
    assert rewards["correct"].value == 0.0
    assert rewards["polite"].value is None
    assert "backwards" in (rewards["polite"].error or "")
    assert response.record.score is None


def test_tasks_are_split_by_content_and_their_ids_are_those_of_verifiers(boxes: Environment) -> None:
    train, test = boxes.problems("train"), boxes.problems("test")
    assert len(train) + len(test) == 60
    assert not {p.input for p in train} & {p.input for p in test}
    assert all(problem.id.startswith("task-") for problem in train)
    boxes.check_disjoint()
    view = verifiers_environment(setting.taskset(), test=setting.taskset(answer="2"))
    assert len(view.problems("train")) == len(view.problems("test")) == 1
    with pytest.raises(ConfigError, match="held out too"):
        verifiers_environment(setting.taskset(), test=setting.taskset()).problems("train")


def test_an_endless_taskset_is_a_stream() -> None:
    environment = verifiers_environment(setting.Endless(vf.TasksetConfig(id="endless")))
    first, again, other = (environment.problems("train", 20, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    with pytest.raises(ConfigError, match="without end"):
        environment.problems("train")


@pytest.mark.parametrize(
    ("kind", "fields", "why"),
    [
        (setting.Stopping, {}, "enough looks into the exchange"),
        (setting.Grading, {}, "graded needs a `runtime`"),
        (setting.Boxed, {}, "NEEDS_CONTAINER"),
        (setting.Elsewhere, {}, "Box runs elsewhere"),
        (setting.Find, {"image": "python:3.12"}, "image='python:3.12'"),
        (setting.Find, {"network_block": ["example.org"]}, "network_block"),
        (setting.Find, {"resources": {"cpu": 2}}, "resources"),
        (setting.Find, {"timeout": {"agent": 5.0}}, "allows the agent 5 s"),
        (setting.Find, {"prompt": None}, "no prompt"),
        (
            setting.Find,
            {"prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]},
            "only one message",
        ),
    ],
)
def test_what_cannot_be_carried_over_is_refused(kind: Any, fields: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        verifiers_environment(setting.taskset(kind, **fields)).problems("train")


def test_an_unknown_taskset_is_refused() -> None:
    with pytest.raises(ConfigError, match="no-such-taskset"):
        verifiers_environment("no-such-taskset")
    with pytest.raises(ConfigError, match="takes the id"):
        verifiers_environment(7)
