"""Problems: finite lists, endless streams, splits that do not meet."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count, islice

import pytest

from aworld.core.exceptions import ConfigError
from aworld.core.message import Text
from aworld.environments import Environment, Problem, split_by_hash
from aworld.environments.problem import FetchedProblems, content_key, digest_of, taken
from tests.environments.shop import Shop, problem, shop, stream


def test_a_list_is_given_in_its_order_or_shuffled_by_a_seed() -> None:
    environment = shop()
    ids = [p.id for p in environment.problems()]
    assert ids == [str(n) for n in range(10)]
    assert [p.id for p in environment.problems("train", 3)] == ids[:3]
    shuffled = [p.id for p in environment.problems("train", seed=1)]
    assert sorted(shuffled) == ids != shuffled == [p.id for p in environment.problems("train", seed=1)]
    assert [p.id for p in environment.problems("train", 4, seed=1)] == shuffled[:4]
    with pytest.raises(ConfigError, match="train of environment 'shop' has 10 different problems; 11 were asked for"):
        environment.problems("train", 11)


def test_a_stream_makes_the_same_problems_for_the_same_seed() -> None:
    environment = shop(train=stream)
    assert environment.problems("train", 5, seed=3) == environment.problems("train", 5, seed=3)
    assert environment.problems("train", 5, seed=3) != environment.problems("train", 5, seed=4)
    with pytest.raises(ConfigError, match="without end; say how many"):
        environment.problems("train")


def test_a_training_set_that_has_a_held_out_problem_is_refused() -> None:
    """By content: the id is another one, and so are blanks, case and the way in which the answer is written."""
    leaked = Problem("leaked", "  what does ITEM 102\ncost?", "306", {"price": 306})
    with pytest.raises(ConfigError, match=r"1 of 2 training problems are held out too, such as 'leaked': .*ITEM 102"):
        shop(train=[problem(1), leaked])


def test_a_stream_that_comes_upon_a_held_out_problem_is_refused_too() -> None:
    environment = shop(train=stream, test=[problem(3)])
    assert len(environment.problems("train", 3, seed=0)) == 3
    with pytest.raises(ConfigError, match="held out too, such as '3'"):
        environment.problems("train", 4, seed=0)
    with pytest.raises(ConfigError, match="held out too"):
        environment.check_disjoint()


def test_the_same_words_with_another_hidden_state_are_another_problem() -> None:
    learnt, held = Problem("a", "Open it.", data={"code": 1}), Problem("b", "Open it.", data={"code": 2})
    Environment("doors", train=[learnt], test=[held]).check_disjoint()
    with pytest.raises(ConfigError, match="held out"):
        Environment("doors", train=[learnt], test=[held], key=lambda problem: problem.input)


def test_a_split_by_hash_makes_streams_that_cannot_meet() -> None:
    train, test = split_by_hash(stream, test=0.25)
    environment = shop(train=train, test=test)
    environment.check_disjoint()
    learnt = {digest_of(p) for p in environment.problems("train", 400, seed=0)}
    held = {digest_of(p) for p in environment.problems("test", 100, seed=0)}
    assert not learnt & held
    share = sum(digest_of(p) in {digest_of(q) for q in islice(test(0), 200)} for p in islice(stream(0), 400)) / 400
    assert 0.18 < share < 0.32
    with pytest.raises(ConfigError, match="between 0 and 1"):
        split_by_hash(stream, test=1.0)


def test_too_few_different_problems_end_in_an_error_that_says_how_many_there_are() -> None:
    def few(seed: int) -> Iterator[Problem]:
        draw = random.Random(seed)
        while True:
            yield problem(draw.randrange(500))

    _, test = split_by_hash(few)
    with pytest.raises(ConfigError, match=r"test of few has \d\d different problems; 400 were asked for"):
        taken(test, 400, 0, "test of few")


def test_a_stream_that_repeats_itself_gives_different_problems() -> None:
    def few(seed: int) -> Iterator[Problem]:
        while True:
            yield from (problem(n) for n in (seed, 1, 1, 2, seed))

    environment = Environment("few", train=few)
    assert [p.id for p in environment.problems("train", 3, seed=5)] == ["5", "1", "2"]
    with pytest.raises(ConfigError, match="has 3 different problems; 4 were asked for"):
        environment.problems("train", 4, seed=5)
    train, test = split_by_hash(few, test=1e-9)
    assert len(Environment("few", train=train).problems("train", 3, seed=5)) == 3
    with pytest.raises(ConfigError, match="none of 20000 problems in a row is held out"):
        Environment("few", test=test).problems("test", 1)


def test_parts_of_text_are_the_same_as_the_text() -> None:
    assert content_key(Problem("a", (Text("What is "), Text("this?")))) == content_key(Problem("b", "what is this?"))


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"train": "problems.jsonl"}, "train of environment 'x' takes a list of problems"),
        ({"train": [{"question": "x"}]}, "Problem 0 needs at least an 'input'"),
        ({"train": [problem(1), problem(1)]}, "two problems with the id '1'"),
        ({"session": 3}, "session=3; give a function"),
        ({"session": lambda: None}, r"'x', session: it is called with one argument, the problem"),
        ({"train": lambda: iter(())}, r"train of environment 'x': it is called with one argument, a seed"),
        (
            {"train": stream(1)},
            r"train of environment 'x' .* got the generator that .* Give the function",
        ),
        ({"test": map(problem, count())}, r"test of environment 'x' .* got the map that .* Give the function itself"),
        ({"train": []}, "train of environment 'x' is empty"),
        ({"rubric": ()}, "'x', rubric: Rubric"),
        ({"rubric": 3}, "'x', rubric: .* a function of the episode is wanted"),
        ({"rubric": lambda: 1.0}, "'x', rubric: Part 'reward', its scorer"),
        ({"train": [problem(1)], "test": [problem(1)]}, "1 of 1 training problems are held out too"),
    ],
)
def test_an_environment_that_cannot_work_is_refused(given: dict[str, object], error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        Environment("x", **given)  # pyright: ignore[reportArgumentType]


def test_an_instance_in_place_of_a_session_class_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"session=Shop, not an instance"):
        Environment("x", session=Shop())  # pyright: ignore[reportArgumentType, reportCallIssue]


def test_a_list_that_is_kept_elsewhere_is_fetched_as_far_as_somebody_looks() -> None:
    every = [problem(number) for number in range(10)]
    fetched: list[int] = []

    def fetch(first: int) -> list[Problem]:
        fetched.append(first)
        return every[first : first + 4]

    listed = FetchedProblems(10, fetch)
    assert (listed[5], listed[1:3], fetched) == (every[5], every[1:3], [0, 4])
    assert (listed[-1], list(listed), fetched) == (every[9], every, [0, 4, 8])
    with pytest.raises(ConfigError, match="12 problems that is kept elsewhere gave none from 10 on"):
        FetchedProblems(12, fetch)[11]
