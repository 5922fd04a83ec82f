"""The environments of the demonstration, driven by a model that knows how."""

from __future__ import annotations

import json
from itertools import islice

from aworld.agents.llm_agent import Agent
from aworld.core.model import ModelRequest
from aworld.environments.environment import Environment
from aworld.environments.parity import parity
from aworld.environments.problem import content_key
from aworld.environments.shop import ITEMS, shop
from aworld.environments.sums import WORDS, sums
from aworld.models.doubles import FunctionModel, Said, call
from aworld.runner import Runners
from aworld.training.embedded.demonstrations import Demonstrator


def reckoner(request: ModelRequest) -> Said:
    """Takes the tool that the word asks for, and says its result."""
    if request.turn == 1:
        return request.messages[-1].text
    a, word, b = request.messages[-1].text.removeprefix("What is ").rstrip("?").split()
    return call(WORDS[word], a=int(a), b=int(b))


def buyer(request: ModelRequest) -> Said:
    """Looks at the price, multiplies it, says the result."""
    said = [message.text for message in request.messages]
    count, item = said[0].removeprefix("What do ").removesuffix("s cost?").split()
    if request.turn == 0:
        return call("price", item=item)
    return call("multiply", a=int(count), b=int(said[-1])) if request.turn == 1 else said[-1]


def guesser(request: ModelRequest) -> Said:
    """Says a number without asking."""
    return "62"


async def scores(environment: Environment, model: FunctionModel, count: int = 20) -> list[float | None]:
    agent = Agent("clerk", model=model)
    tasks = [environment.task(problem, agent) for problem in environment.problems("test", count)]
    responses = await Runners.run_task(tasks)
    return [responses[task.id].record.score for task in tasks]


def by_parity(request: ModelRequest) -> Said:
    """Takes the tool that the first number asks for, and says its result."""
    if request.turn == 1:
        return request.messages[-1].text
    a, _, b = request.messages[-1].text.removeprefix("What is ").rstrip("?").split()
    return call("subtract" if int(a) % 2 else "add", a=int(a), b=int(b))


async def test_all_can_be_solved() -> None:
    assert await scores(parity(), FunctionModel(by_parity)) == [1.0] * 20
    assert await scores(sums(), FunctionModel(reckoner)) == [1.0] * 20
    assert await scores(shop(), FunctionModel(buyer)) == [1.0] * 20


async def test_a_guess_earns_nothing() -> None:
    """Not even where it happens to be right: the answer must have been computed."""
    assert await scores(sums(), FunctionModel(guesser), 400) == [0.0] * 400


async def test_who_is_blind_to_the_digits_gets_half_of_parity() -> None:
    solved = await scores(parity(), FunctionModel(reckoner), 200)
    assert 80 <= sum(score or 0.0 for score in solved) <= 120


def test_items_of_held_out_purchases_are_in_no_training_problem() -> None:
    environment = shop()
    held_out = {problem.data["item"] for problem in environment.problems("test")}
    learnt = {problem.data["item"] for problem in environment.problems("train", 4000, seed=1)}
    assert held_out == {"bun", "fig", "kiwi", "pea", "roll", "yam"}
    assert learnt == set(ITEMS) - held_out
    demonstrated = {content_key(problem)[0]: problem for problem in islice(Demonstrator(5)._shop, 20_000)}
    shown = {json.dumps(content_key(problem)) for problem in demonstrated.values()}
    assert not shown & {json.dumps(content_key(problem)) for problem in environment.problems("test")}


async def test_the_price_differs_from_episode_to_episode() -> None:
    seen: dict[str, set[str]] = {}
    for problem in shop().problems("test"):
        seen.setdefault(str(problem.input), set()).add(json.dumps(problem.data))
    assert sum(len(prices) for prices in seen.values()) > 3 * len(seen)


def test_held_out_problems_are_never_trained_on() -> None:
    for environment, size in ((sums(), 400), (shop(), 400), (parity(), 200)):
        test = environment.problems("test")
        assert len({problem.id for problem in test}) == len(test) == size
        held = {json.dumps(content_key(problem)) for problem in test}
        assert callable(environment.train)
        trained = {json.dumps(content_key(problem)) for problem in islice(environment.train(7), 4000)}
        assert not held & trained
        assert environment.problems("train", 5, seed=3) == environment.problems("train", 5, seed=3)
