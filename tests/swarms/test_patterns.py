"""Solver and verifier, debate, votes, best of n, map and reduce, functions as members."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from aworld.agents.llm_agent import Agent
from aworld.agents.patterns import (
    accepted,
    best_of_n,
    debate,
    function_agent,
    majority_vote,
    map_reduce,
    solver_verifier,
)
from aworld.core.agent.flow import Unit
from aworld.core.agent.swarm import Edge, Loop, Map, Swarm, WorkflowNode, WorkflowSwarm
from aworld.core.context.base import Context
from aworld.core.event import AgentFinished
from aworld.core.message import Image, Text
from aworld.core.model import ModelRequest
from aworld.core.task import TaskResponse
from aworld.models import FunctionModel, ScriptedModel
from aworld.models.doubles import Said
from aworld.runner import Runners
from tests.swarms.stage import ran, revived, stepped


def saying(name: str, say: Callable[[str], Said], **settings: Any) -> Agent:
    """An agent that answers what it last heard."""

    def reply(request: ModelRequest) -> Said:
        return say(request.messages[-1].text)

    return Agent(name, model=FunctionModel(reply), **settings)


def scripted(name: str, *replies: Said) -> Agent:
    return Agent(name, model=ScriptedModel(replies))


def heard(response: TaskResponse, step: int) -> str:
    """What the agent of a step was told."""
    return response.trajectory[step]["state"]["messages"][-1]["content"]


async def everywhere(make: Callable[[], Unit], question: Any = "Q") -> TaskResponse:
    """Run; then the same by steps, by resuming where a kill may cut the log, by forking at every step."""
    response, cuts = await ran(make(), question)
    again = await stepped(make(), question)
    assert (again.status, again.answer, again.msg) == (response.status, response.answer, response.msg)
    for cut in cuts:
        resumed, _ = await revived(make(), response.record, cut)
        assert (resumed.status, resumed.answer) == (response.status, response.answer), f"resumed at {cut}"
    for at in range(len(response.record.calls)):
        forked = await Runners.fork(response, swarm=make(), at=at)
        assert (forked.status, forked.answer) == (response.status, response.answer), f"forked at {at}"
    return response


async def test_the_accepted_solution_is_the_answer_and_remarks_come_back() -> None:
    response = await everywhere(
        lambda: solver_verifier(
            scripted("solver", "x = 1", "x = 2"), scripted("verifier", "The sign is wrong.", "**ACCEPT** it is.")
        )
    )
    assert (response.status, response.answer) == ("finished", "x = 2")
    again = heard(response, 2)
    for piece in ("<task>\nQ\n</task>", 'last solution">\nx = 1', 'remarks of verifier">\nThe sign is wrong.'):
        assert piece in again
    assert "x = 1" not in heard(response, 3)  # the verifier judges what is before it


async def test_rounds_that_run_out_are_a_limit_with_the_last_solution() -> None:
    def make() -> Unit:
        return solver_verifier(scripted("s", "1", "2"), scripted("v", "no", "no"), max_rounds=2)

    response = await everywhere(make)
    assert (response.status, response.answer) == ("limit_reached", "2")
    assert "max_rounds=2" in response.msg
    lenient = solver_verifier(scripted("s", "1"), scripted("v", "no"), max_rounds=1, must_hold=False)
    assert (await Runners.run("Q", swarm=lenient)).answer == "1"


async def test_a_picture_in_the_task_reaches_the_verifier() -> None:
    guard = solver_verifier(scripted("s", "a cat"), scripted("v", "ACCEPT"))
    response = await Runners.run([Text("What is this?"), Image("https://example.org/a.png")], swarm=guard)
    parts = response.trajectory[1]["state"]["messages"][-1]["content"]
    assert [part["type"] for part in parts] == ["text", "image_url", "text", "text"]


@pytest.mark.parametrize(
    ("remarks", "verdict"),
    [
        (True, True),
        (False, False),
        ("ACCEPTED.", True),
        ("I cannot ACCEPT", False),
        ({"accepted": True}, True),
        (3, False),
    ],
)
def test_what_counts_as_accepting(remarks: Any, verdict: bool) -> None:
    assert accepted(remarks) is verdict


async def test_a_failed_solver_fails_the_loop_by_name() -> None:
    guard = solver_verifier(scripted("solver", ValueError("boom")), scripted("v", "ACCEPT"), name="guard")
    response = await Runners.run("Q", swarm=guard)
    assert response.status == "failed"
    assert "'solver' failed in round 1 of 'guard'" in response.msg


async def test_debaters_hear_each_other_and_the_judge_hears_the_last_round() -> None:
    def debater(name: str) -> Agent:
        return saying(name, lambda text: f"{name} answers {'others' if 'statements so far' in text else 'first'}")

    response = await everywhere(
        lambda: debate([debater("ann"), debater("ben")], saying("judge", lambda text: text), rounds=3)
    )
    assert [row["meta"]["agent"] for row in response.trajectory] == ["ann", "ben", "ann", "ben", "ann", "ben", "judge"]
    assert '<result from="ben">\nben answers first' in heard(response, 2)
    assert '<result from="ann">\nann answers others' in response.answer
    assert "<task>\nQ\n</task>" in response.answer
    assert "answers first" not in response.answer


async def test_the_answer_of_most_is_elected_and_who_fails_does_not_vote() -> None:
    def make() -> Unit:
        bad = scripted("e", ValueError("boom"))
        return majority_vote([scripted("a", "4"), scripted("b", "5."), scripted("c", " 5"), scripted("d", "4."), bad])

    assert (await everywhere(make)).answer == "4"  # between equal counts, the earlier
    parity = majority_vote([scripted(str(n), str(n)) for n in (1, 2, 4)], key=lambda answer: int(answer) % 2)
    assert (await Runners.run("Q", swarm=parity)).answer == "2"
    nobody = majority_vote([scripted("a", ValueError("x")), scripted("b", ValueError("x"))])
    assert (await Runners.run("Q", swarm=nobody)).status == "failed"


async def test_one_agent_votes_n_times_at_once() -> None:
    both, inside = asyncio.Event(), 0

    async def think(request: ModelRequest) -> str:
        nonlocal inside
        inside += 1
        if inside == 5:
            both.set()
        await both.wait()
        return "yes"

    response = await Runners.run("Q", swarm=majority_vote(Agent("a", model=FunctionModel(think)), n=5), timeout=10)
    assert (response.answer, len(response.trajectory)) == ("yes", 5)


class Candidate(BaseModel):
    text: str
    grade: int


async def test_best_of_n_by_a_function_and_by_an_agent() -> None:
    def lengths(say: Callable[[], str]) -> Agent:
        return Agent("a", model=FunctionModel(lambda request: say()))

    texts = iter(["aa", "aaaa", "a"])
    assert (await Runners.run("Q", swarm=best_of_n(lengths(lambda: next(texts)), 3, scorer=len))).answer == "aaaa"

    def graded() -> Unit:
        author = Agent(
            "author", model=ScriptedModel([Candidate(text="x", grade=7).model_dump_json()] * 3), output_type=Candidate
        )
        scorer = saying("scorer", lambda text: f"I say {8.5 if 'grade' in text else 0}, no more.")
        return best_of_n(author, 3, scorer=scorer)  # fmt: skip

    response = await everywhere(graded)
    assert response.answer == Candidate(text="x", grade=7)
    assert "<task>\nQ\n</task>" in heard(response, len(response.trajectory) - 1)


async def test_a_scorer_without_a_number_fails_the_try_and_says_so() -> None:
    response = await Runners.run("Q", swarm=best_of_n(scripted("a", "x"), 1, scorer=scripted("s", "nice")))
    assert response.status == "failed"
    assert "every try failed" in response.msg


async def test_map_reduce_keeps_the_order_of_the_parts() -> None:
    def make() -> Unit:
        return map_reduce(saying("up", str.upper), saying("all", lambda text: text), over=str.split)

    response = await everywhere(make, "b a c")
    assert [line for line in response.answer.splitlines() if len(line) == 1] == ["B", "A", "C"]
    numbers = map_reduce(function_agent(int, name="int"), sum, name="total")
    assert (await Runners.run("[1, 2, 39]", swarm=numbers)).answer == 42


async def test_functions_keep_their_answers_and_may_use_the_state() -> None:
    async def later(text: str) -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"said": text, "n": [1, None]}

    def remember(text: str, context: Context) -> int:
        context.set("seen", text)
        return 3

    def text_three(text: str) -> str:
        return "3"

    def make() -> Unit:
        return Swarm(
            [function_agent(later), function_agent(remember), function_agent(text_three), function_agent(bool)]
        )

    response = await everywhere(make)
    assert response.answer == {"later": {"said": "Q", "n": [1, None]}, "remember": 3, "text_three": "3", "bool": True}
    assert response.context is not None
    assert dict(response.context) == {"seen": "Q"}
    assert all(call.model is None for call in response.record.calls.values())


async def test_a_function_that_raises_fails_by_name() -> None:
    def broken(text: str) -> str:
        raise KeyError(text)

    response = await Runners.run("Q", swarm=Swarm(function_agent(broken), function_agent(bool)))
    assert response.status == "failed"
    assert "Member 'broken'" in response.msg
    assert "KeyError: 'Q'" in response.msg


@pytest.mark.parametrize("where", ["until", "answer", "over", "reduce", "input", "when"])
async def test_an_error_in_a_function_of_a_team_ends_the_run_once(where: str) -> None:
    def boom(*given: Any) -> Any:
        raise ZeroDivisionError("boom")

    a, b = scripted("a", "1"), scripted("b", "2")
    teams: dict[str, Callable[[], Unit]] = {
        "until": lambda: Loop(a, until=boom),
        "answer": lambda: WorkflowSwarm(a, b, answer=boom),
        "over": lambda: Map(a, over=boom),
        "reduce": lambda: Map(a, times=1, reduce=boom),
        "input": lambda: Swarm(a, WorkflowNode(b, input=boom)),
        "when": lambda: Swarm(Edge(a, b, when=boom)),
    }
    response = await everywhere(teams[where])
    assert response.status == "failed"
    assert response.msg.endswith("raised ZeroDivisionError: boom")
    ended = [event.activation for event in response.record.events if isinstance(event, AgentFinished)]
    assert len(ended) == len(set(ended))
