"""Training in an environment that is served elsewhere, with the settings as they come."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from aworld.environments import Environment
from aworld.environments.problem import as_problem
from aworld.environments.remote import RemoteEnvironment
from aworld.environments.rubric import Scorer
from aworld.training import AgentTrainer, TrainingConfig
from aworld.training.datasets import environments_of
from aworld.training.evaluation import held_out_problems
from aworld.training.steps import problems_of
from tests.environments.test_env_serve import serving
from tests.training.small import always, letters, says_low, small_agent


@pytest.mark.parametrize("reward", [None, says_low])
async def test_an_environment_elsewhere_trains_like_one_at_home(tmp_path: Path, reward: Scorer | None) -> None:
    """30 problems to learn from and 20 held out: fewer than two steps and an evaluation ask for."""
    home = letters(train=30, test=20)
    with serving(home) as server:
        away = await asyncio.to_thread(RemoteEnvironment, server.url)
        settings = {"steps": 2, "max_completion_tokens": 4}
        trainer = AgentTrainer(small_agent(), settings, reward, away, run_path=tmp_path)
        result = await trainer.train_async()
    assert [report.episodes for report in result.history] == [24 * 8] * 2
    assert [report.dropped.get("failed_rewards") for report in result.history] == [None, None]
    before = result.before()
    assert before is not None
    assert list(before.outcomes) == [f"test-{n}" for n in range(20)]
    for step in (1, 2):
        there, here = (problems_of(each, TrainingConfig(), step) for each in (away, home))
        assert [problem.id for problem in there] == [problem.id for problem in here]


async def test_an_environment_elsewhere_without_a_test_set_has_nothing_held_out() -> None:
    with serving(letters(test=0)) as server:
        away = await asyncio.to_thread(RemoteEnvironment, server.url)
        environment, held_out = environments_of(away, None, always)
        assert held_out is None
        assert len(problems_of(environment, TrainingConfig(groups=8), 1)) == 8


async def test_functions_that_end_are_served_too() -> None:
    home = Environment(
        "ending",
        train=lambda seed: (as_problem({"input": f"say {n}"}, n) for n in range(30)),
        test=lambda seed: (as_problem({"input": f"speak {n}"}, n) for n in range(20)),
        rubric=says_low,
    )
    with serving(home) as server:
        away = await asyncio.to_thread(RemoteEnvironment, server.url)
        environment, held_out = environments_of(away, None, always)
        assert len(held_out_problems(held_out, 400)) == 20
        step = problems_of(environment, TrainingConfig(), 1)
        assert [problem.id for problem in step] == [problem.id for problem in problems_of(home, TrainingConfig(), 1)]
