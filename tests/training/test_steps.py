"""The problems of each step."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from aworld.core.exceptions import ConfigError
from aworld.environments import Environment
from aworld.environments.environment import derived_seed
from aworld.training import TrainingConfig
from aworld.training.evaluation import held_out_problems
from aworld.training.steps import problems_of


def ending(seed: int) -> Iterator[dict[str, Any]]:
    """The same fifty, whatever the seed."""
    return ({"id": f"p{n}", "input": f"What is {n}?"} for n in range(50))


def too_few(seed: int) -> list[dict[str, Any]]:
    return list(ending(seed))[:23]


def leaking(seed: int) -> list[dict[str, Any]]:
    return [*exam(seed), *ending(seed)]


def nothing(seed: int) -> list[dict[str, Any]]:
    return []


def exam(seed: int) -> Iterator[dict[str, Any]]:
    return ({"id": f"t{n}", "input": f"Tell {n}!"} for n in range(20))


def repeating(seed: int) -> Iterator[dict[str, Any]]:
    """Without end, and yet there are only forty."""
    draw = random.Random(seed)
    while True:
        yield {"id": f"p{(number := draw.randrange(40))}", "input": f"What is {number}?"}


def environment(train: Any, test: Any = ()) -> Environment:
    return Environment("numbers", train=train, test=test)


def ids(environment: Environment, step: int) -> list[str]:
    return [problem.id for problem in problems_of(environment, TrainingConfig(groups=24), step)]


def test_what_ends_is_gone_round() -> None:
    for numbers in (environment(ending), environment(list(ending(0)))):
        first, second, third, fourth = (ids(numbers, step) for step in (1, 2, 3, 4))
        assert len({*first, *second}) == len({*third, *fourth}) == 48
        assert first != third
        assert ids(numbers, 1) == first


def test_an_endless_stream_is_drawn_anew_for_each_step() -> None:
    numbers = environment(repeating)
    assert len(set(ids(numbers, 1))) == 24
    assert ids(numbers, 1) != ids(numbers, 2)
    seed = derived_seed(0, "problems", 2)
    assert ids(numbers, 2) == [problem.id for problem in numbers.problems("train", 24, seed=seed)]


def test_too_few_for_one_step_are_refused() -> None:
    for few in (too_few, too_few(0)):
        assert len(problems_of(environment(few), TrainingConfig(), 1)) == 23
        with pytest.raises(ConfigError, match=r"config.groups=24 .* has only 23"):
            ids(environment(few), 1)


def test_a_test_set_that_ends_is_evaluated_whole() -> None:
    for test in (exam, list(exam(0))):
        numbers = environment(ending, test)
        numbers.check_disjoint()
        assert [problem.id for problem in held_out_problems(numbers, 400)] == [f"t{n}" for n in range(20)]
        assert len(held_out_problems(numbers, 5)) == 5
    with pytest.raises(ConfigError, match="held out too"):
        environment(ending, leaking).check_disjoint()
    with pytest.raises(ConfigError, match="has 0 different problems"):
        held_out_problems(environment(ending, nothing), 400)
