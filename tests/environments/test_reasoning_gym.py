"""Tasks of reasoning-gym, with the real package: its scorer, endless seeded splits that never share a question."""

from __future__ import annotations

import sys
from importlib import reload
from typing import Any

import pytest
import reasoning_gym

from aworld.agents.llm_agent import Agent
from aworld.core.exceptions import ConfigError
from aworld.core.task import TaskResponse
from aworld.environments import Environment, Problem
from aworld.environments.adapters import reasoning_gym as adapter
from aworld.environments.adapters.reasoning_gym import answer_in, reasoning_gym_environment
from aworld.models.doubles import FunctionModel
from aworld.runner import Runners


async def answered(environment: Environment, problem: Problem, answer: str) -> TaskResponse:
    task = environment.task(problem, Agent("solver", model=FunctionModel(lambda _: answer)))
    return (await Runners.run_task(task))[task.id]


@pytest.mark.parametrize(
    ("dataset", "options"), [("chain_sum", {"min_terms": 2}), ("basic_arithmetic", {}), ("acre", {})]
)
async def test_its_own_scorer_rewards_the_right_answer(dataset: str, options: dict[str, Any]) -> None:
    environment = reasoning_gym_environment(dataset, **options)
    problem = environment.problems("test", 2, 3)[1]
    right = await answered(environment, problem, f"Let me see. <answer>{problem.answer}</answer>")
    wrong = await answered(environment, problem, "<answer>no idea</answer>")
    assert right.record.score == 1.0
    assert [(reward.name, reward.source) for reward in right.record.rewards] == [("score_answer", "rubric")]
    assert wrong.record.score is not None
    assert wrong.record.score < 0.5


async def test_a_problem_without_one_right_answer_is_scored_by_its_metadata() -> None:
    """Where many answers are right, there is no oracle answer: only the task, made again, tells."""
    environment = reasoning_gym_environment("graph_color", min_num_vertices=3, max_num_vertices=3)
    problem = environment.problems("train", 1)[0]
    assert problem.answer is None
    place = problem.data
    create: Any = getattr(reasoning_gym, "create_dataset")  # noqa: B009 - its keywords have no types
    task = create("graph_color", seed=place["seed"], size=place["size"], min_num_vertices=3, max_num_vertices=3)[
        place["index"]
    ]
    solution = task["metadata"]["possible_answer"]
    text = "{" + ", ".join(f'"{node}": {color}' for node, color in solution.items()) + "}"
    assert (await answered(environment, problem, f"<answer>{text}</answer>")).record.score == 1.0


def test_splits_are_endless_seeded_and_share_no_question() -> None:
    environment = reasoning_gym_environment("chain_sum", min_terms=2, max_terms=2, min_digits=1, max_digits=2)
    train = {seed: environment.problems("train", 300, seed) for seed in (0, 1, 2)}
    held_out = environment.problems("test", 100, 0)
    assert environment.problems("train", 5, 0) == train[0][:5]
    asked = {seed: {problem.input for problem in problems} for seed, problems in train.items()}
    assert all(len(questions) == 300 for questions in asked.values()), "no question twice in one stream"
    assert asked[0] != asked[1]
    assert not set().union(*asked.values()) & {problem.input for problem in held_out}
    assert len({problem.id for problem in train[0]}) == 300


def test_a_generator_that_runs_out_says_how_many_there_are() -> None:
    environment = reasoning_gym_environment("chain_sum", min_terms=2, max_terms=2, min_digits=1, max_digits=1)
    with pytest.raises(ConfigError, match=r"has \d+ different problems; 100000 were asked for"):
        environment.problems("train", 100_000)


def test_the_answer_is_what_stands_in_its_tags() -> None:
    assert answer_in("First <answer>1</answer>, no: <Answer> 2\n</Answer>.") == "2"
    assert answer_in(" 42 ") == "42"


def test_what_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ConfigError, match="no_such_set"):
        reasoning_gym_environment("no_such_set")
    with pytest.raises(ConfigError, match="min_words"):
        reasoning_gym_environment("chain_sum", min_words=3)
    with pytest.raises(ConfigError, match="size is not for you to say"):
        reasoning_gym_environment("chain_sum", size=3)


def test_without_the_package_the_package_to_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "reasoning_gym", None)
        with pytest.raises(ConfigError, match=r'pip install "reasoning-gym>=0\.1\.20"'):
            reload(adapter)
    reload(adapter)
