"""Evaluation, its uncertainty, and the picture of it."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree as ET

import pytest
from msgspec.structs import replace

from aworld.agents.llm_agent import Agent
from aworld.core.exceptions import ConfigError
from aworld.core.model import ModelRequest
from aworld.environments import Environment, Problem, ScoredEpisode
from aworld.models import FunctionModel
from aworld.training import Evaluation, StepReport, TrainingResult, curve
from aworld.training.evaluation import SamplingParams, compare, comparisons, evaluate, held_out_problems, mcnemar
from aworld.training.training_config import TrainingConfig
from aworld.training.training_run import stop_of


def repeats(episode: ScoredEpisode) -> float:
    return float(episode.text == episode.problem.answer)


ENVIRONMENT = Environment("echo", test=[Problem(str(n), f"say {n}", str(n % 4)) for n in range(8)], rubric=repeats)


def speaker(seen: list[dict[str, Any]]) -> Agent:
    def say(request: ModelRequest) -> str:
        seen.append(request.params)
        return request.messages[-1].text[-1]

    return Agent("speaker", model=FunctionModel(say))


async def test_one_episode_of_each_held_out_problem() -> None:
    seen: list[dict[str, Any]] = []
    problems = held_out_problems(ENVIRONMENT, 400)
    evaluation = await evaluate(ENVIRONMENT, speaker(seen), problems, mode="greedy", step=3)
    assert (evaluation.tasks, evaluation.successes, evaluation.success, evaluation.score) == (8, 4, 0.5, 0.5)
    assert list(evaluation.outcomes) == [str(n) for n in range(8)]
    assert {params["temperature"] for params in seen} == {0.0}
    low, high = evaluation.interval
    assert (low, high) == (pytest.approx(0.2152, abs=1e-4), pytest.approx(0.7848, abs=1e-4))  # Wilson, 4 of 8


async def test_sampled_at_the_temperature_with_the_same_seeds_each_time() -> None:
    one: list[dict[str, Any]] = []
    other: list[dict[str, Any]] = []
    problems = held_out_problems(ENVIRONMENT, 3)
    for seen in (one, other):
        await evaluate(ENVIRONMENT, speaker(seen), problems, mode="sampled", temperature=0.7, seed=5)
    assert [params["temperature"] for params in one] == [0.7] * 3
    assert sorted(params["seed"] for params in one) == sorted(params["seed"] for params in other)


async def test_other_agents_keep_their_settings() -> None:
    seen: list[dict[str, Any]] = []
    hook = SamplingParams(["another"], temperature=0.0)
    await evaluate(ENVIRONMENT, speaker(seen), held_out_problems(ENVIRONMENT, 1), agents=["another"], hooks=[hook])
    assert "temperature" not in seen[0]


def evaluation(step: int, outcomes: str, mode: Any = "greedy") -> Evaluation:
    return Evaluation(
        step=step, mode=mode, outcomes={str(n): {"1": True, "0": False}.get(m) for n, m in enumerate(outcomes)}
    )


def test_the_paired_test_is_exact() -> None:
    found = compare(evaluation(0, "0000001111"), evaluation(9, "1111110111"))
    assert (found.before, found.after, found.gained, found.lost) == (0.4, 0.9, 6, 1)
    assert found.p_value == pytest.approx(2 * (1 + 7) / 2**7)
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 5) == 1.0
    assert mcnemar(0, 10) == pytest.approx(2 / 2**10)
    with pytest.raises(ConfigError, match="no problem in common"):
        compare(evaluation(0, ""), evaluation(1, "1"))


def test_what_is_unknown_is_left_out() -> None:
    before, after = evaluation(0, "?0011"), evaluation(9, "111?1")
    assert (before.success, before.unknown, evaluation(0, "??").success) == (0.5, 1, None)
    found = compare(before, after)
    assert (found.tasks, found.unknown, found.before, found.after, found.gained) == (3, 2, 1 / 3, 1.0, 2)
    with pytest.raises(ConfigError, match="known both times"):
        compare(evaluation(0, "?1"), evaluation(1, "1?"))
    assert comparisons([evaluation(0, "?1"), evaluation(1, "1?")]) == ()
    config = TrainingConfig(target=0.9, patience=1)
    assert stop_of([evaluation(0, "??")], config) is None
    assert stop_of([evaluation(0, "1?"), evaluation(1, "??")], TrainingConfig(target=1.0)) is None


def test_a_curve_with_gaps() -> None:
    result = result_of(3)
    gap = replace(result, evaluations=(*result.evaluations, evaluation(3, "??")),
                  history=(*result.history, replace(result.history[0], success=None)))  # fmt: skip
    ET.fromstring(curve.svg(gap))
    assert curve.points(gap)["held_out"][-1]["success"] is None
    assert curve.terminal(gap) == curve.terminal(result)


async def test_an_evaluation_says_why_it_does_not_know() -> None:
    def boom(episode: ScoredEpisode) -> float:
        if episode.problem.id in ("0", "1"):
            raise KeyError("boom")
        return repeats(episode)

    environment = Environment("echo", test=ENVIRONMENT.problems("test"), rubric=boom)
    found = await evaluate(environment, speaker([]), held_out_problems(environment, 400))
    assert (found.success, found.unknown) == (2 / 6, 2)
    assert found.reason is not None
    assert found.reason.startswith("reward 'boom': KeyError: 'boom' (trajectory ")


def result_of(steps: int = 10) -> TrainingResult:
    return TrainingResult(
        engine="e", policy="p", run_path="r", steps=steps,
        history=tuple(
            StepReport(step=n, episodes=8, score=n / 10, success=n / steps, samples=8) for n in range(1, steps + 1)
        ),
        evaluations=(
            evaluation(0, "0000"), evaluation(0, "0100", "sampled"),
            evaluation(steps, "1111"), evaluation(steps, "1110", "sampled"),
        ),
    )  # fmt: skip


def test_before_and_after() -> None:
    result = result_of()
    before, after = result.before(), result.after("sampled")
    assert before is not None
    assert after is not None
    assert (before.success, after.success) == (0.0, 0.75)


@pytest.mark.parametrize("steps", [0, 1, 10])
def test_the_curve_in_three_forms(steps: int) -> None:
    result = result_of(steps)
    data = curve.points(result)
    assert [point["success"] for point in data["held_out"]] == [0.0, 0.25, 1.0, 0.75]
    assert len(data["training"]) == steps
    root = ET.fromstring(curve.svg(result, "sums & <more>"))
    assert root.tag.endswith("svg")
    assert len(root.findall("{http://www.w3.org/2000/svg}circle")) == 4
    lines = curve.terminal(result, 60).splitlines()
    assert max(map(len, lines)) <= 60
    assert "●" in lines[0]
    assert lines[0].startswith("100 % ┤")


def test_the_curve_of_no_step_ends_at_step_0() -> None:
    result = result_of(0)
    assert curve.terminal(result).splitlines()[-2].strip() == "step 0"
    assert ">1</text>" not in curve.svg(result)
    assert curve.terminal(result_of(1)).splitlines()[-2].split() == ["0", "step", "1"]


def test_a_curve_of_nothing() -> None:
    empty = TrainingResult(engine="e", policy="p", run_path="r")
    ET.fromstring(curve.svg(empty))
    assert "0 %" in curve.terminal(empty)
