"""Hand-off: control moves, and what the one who receives it sees."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aworld.agents.llm_agent import Agent
from aworld.core import event as ev
from aworld.core.agent.flow import Unit
from aworld.core.agent.swarm import HandoffSwarm, Swarm, TeamSwarm
from aworld.core.message import ToolCall
from aworld.core.model import ModelRequest
from aworld.core.task import TaskResponse
from aworld.core.trajectory import Trajectory
from aworld.models import ScriptedModel
from aworld.models.doubles import Said, call
from tests.runners.scenes import add
from tests.swarms.stage import asks, assert_whole, echo, fails, outcome, ran, revived, says, stepped, streamed


async def run(unit: Unit, input: Any = "Q", **task: Any) -> TaskResponse:
    async with asyncio.timeout(5):
        response, _ = await ran(unit, input, **task)
    assert_whole(response.record, complete=response.success)
    return response


def agent(name: str, *replies: Said, tools: Any = (add,)) -> Agent:
    return Agent(name, model=ScriptedModel(replies), system_prompt=f"{name}!", tools=tools)


def desk(**options: Any) -> HandoffSwarm:
    front = agent("front", call("add", a=1, b=2), call("handoff_to_bills", message="a bill"), "all done")
    bills = agent("bills", call("handoff_to_front", message="paid"))
    return HandoffSwarm((front, bills), (bills, front), **options)


def shown(response: TaskResponse, row: int) -> list[tuple[str, str | list[str]]]:
    """The prompt of a row: role and words, or the tools called."""
    return [
        (m["role"], m["content"] if not m.get("tool_calls") else [c["function"]["name"] for c in m["tool_calls"]])
        for m in response.trajectory[row]["state"]["messages"]
    ]


async def test_control_moves_and_comes_back_with_the_whole_history() -> None:
    response = await run(desk())
    assert response.answer == "all done"
    assert [row["meta"]["agent"] for row in response.trajectory] == ["front", "front", "bills", "front"]
    began = [("user", "Q"), ("assistant", ["add"]), ("tool", "3"), ("assistant", ["handoff_to_bills"])]
    passed = [("tool", "Control passes to bills."), ("user", "front hands over to you and says:\na bill")]
    assert shown(response, 2) == [("system", "bills!"), *began, *passed]
    back = [("assistant", ["handoff_to_front"]), ("tool", "Control passes to front.")]
    said = ("user", "bills hands over to you and says:\npaid")
    assert shown(response, 3) == [("system", "front!"), *began, *passed, *back, said]


async def test_history_of_some_messages_has_no_answer_without_its_call() -> None:
    said = ("user", "front hands over to you and says:\na bill")
    handed = [("assistant", ["handoff_to_bills"]), ("tool", "Control passes to bills.")]
    assert shown(await run(desk(history=0)), 2) == [("system", "bills!"), said]
    assert shown(await run(desk(history=1)), 2) == [("system", "bills!"), said]
    assert shown(await run(desk(history=2)), 2) == [("system", "bills!"), *handed, said]
    assert shown(await run(desk(history=3)), 2) == [("system", "bills!"), *handed, said]
    assert shown(await run(desk(history=4)), 2) == [
        ("system", "bills!"),
        ("assistant", ["add"]),
        ("tool", "3"),
        *handed,
        said,
    ]


async def test_history_as_a_summary_or_none() -> None:
    summary = await run(desk(history="summary"))
    words = "front hands over to you and says:\na bill"
    assert shown(summary, 2) == [("system", "bills!"), ("user", f"<task>\nQ\n</task>\n\n{words}")]
    assert shown(await run(desk(history="none")), 2) == [("system", "bills!"), ("user", words)]


async def test_of_two_hand_overs_in_one_turn_the_first_counts() -> None:
    a = agent("a", [call("handoff_to_c", message="to c"), call("handoff_to_b", message="to b")])
    b, c = agent("b", "b"), agent("c", "c")
    response = await run(HandoffSwarm((a, b), (a, c), (b, c)), conf=None)
    assert response.status == "failed"  # the script of b is left over
    assert response.record.activations[0].finished
    assert response.record.activations[0].finished.answer == "c"
    answers = response.trajectory[0]["observation"]
    assert [answer["content"] for answer in answers] == [
        "Control passes to c.",
        "Only one hand-over a turn; this is void.",
    ]


async def test_a_hand_over_waits_for_the_functions_of_its_turn() -> None:
    a = agent("a", [call("handoff_to_b", message="go"), call("add", a=1, b=2)])
    response = await run(HandoffSwarm((a, echo("b"))))
    assert [answer["content"] for answer in response.trajectory[0]["observation"]] == ["Control passes to b.", "3"]
    assert shown(response, 1)[-2:] == [("tool", "3"), ("user", "a hands over to you and says:\ngo")]


async def test_a_hand_over_waits_for_the_agents_that_were_called_in_its_turn() -> None:
    def swarm() -> HandoffSwarm:
        both = [call("handoff_to_b", message="go"), call("helper", input="x"), call("add", a=1, b=2)]
        return HandoffSwarm((agent("a", both, tools=[add, echo("helper")]), echo("b")))

    response = await run(swarm())
    assert response.success, response.msg
    answers = ["Control passes to b.", "helper(x)", "3"]
    assert [answer["content"] for answer in response.trajectory[0]["observation"]] == answers
    assert outcome(await stepped(swarm())) == outcome(response)


async def test_words_that_cannot_be_read_are_told_to_the_one_who_hands_over() -> None:
    a = agent("a", ToolCall("1", "handoff_to_b", "{"), call("handoff_to_b", message="go"))
    response = await run(HandoffSwarm((a, echo("b"))))
    assert response.success
    answer = response.trajectory[0]["observation"][0]
    assert answer["error"]
    assert '{"message": ' in answer["content"]


async def test_only_allowed_edges_are_offered() -> None:
    a, b, c = agent("a", call("handoff_to_c", message="x"), "done"), agent("b"), agent("c")
    response = await run(HandoffSwarm((a, b), (b, c)))
    assert "no tool named 'handoff_to_c'" in response.trajectory[0]["observation"][0]["content"]


async def test_a_loop_without_progress_ends_with_a_clear_status() -> None:
    def forever() -> HandoffSwarm:
        a = says("a", lambda request: call("handoff_to_b", message="you"))
        b = says("b", lambda request: call("handoff_to_a", message="you"))
        return HandoffSwarm((a, b), (b, a))

    response = await run(forever())
    assert response.status == "limit_reached"
    assert response.msg == "No progress: 'a' handed over to 'b' 3 times in the same words."
    assert len(response.trajectory) == 5
    whole, ends, _ = await streamed(forever())
    for cut in ends:
        again, _ = await revived(forever(), whole.record, cut)
        assert outcome(again) == outcome(whole)


async def test_hand_overs_are_bounded() -> None:
    a = says("a", lambda request: call("handoff_to_b", message=f"{len(request.messages)}"))
    b = says("b", lambda request: call("handoff_to_a", message=f"{len(request.messages)}"))
    response = await run(HandoffSwarm((a, b), (b, a), max_handoffs=4, name="desk"))
    assert response.status == "limit_reached"
    assert "max_handoffs=4 of 'desk'" in response.msg
    assert len(response.trajectory) == 5


async def test_a_swarm_receives_and_answers() -> None:
    a = agent("a", call("handoff_to_pair", message="both of you"))
    response = await run(HandoffSwarm((a, Swarm(echo("x"), echo("y"), name="pair"))))
    assert response.answer == "y(x(<task>\nQ\n</task>\n\na hands over to you and says:\nboth of you))"


async def test_the_one_that_fails_ends_the_swarm() -> None:
    response = await run(HandoffSwarm((agent("a", call("handoff_to_b", message="go")), fails("b"))))
    assert response.status == "failed"
    assert "boom" in response.msg
    assert "'b'" in response.msg


async def test_a_hand_off_inside_a_team_answers_the_leader() -> None:
    lead = Agent("lead", model=ScriptedModel([call("desk", input="help"), "done"]))
    response = await run(TeamSwarm(lead, desk(name="desk")))
    assert response.trajectory[0]["observation"][0]["content"] == "all done"


def turns(record: Trajectory) -> tuple[int, int]:
    """How many messages were stored, in whole and as a reference."""
    added = [event for event in record.events if isinstance(event, ev.MessageAdded)]
    return sum(e.message is not None for e in added), sum(e.same_as is not None for e in added)


def ring(hand_overs: int, agents: int = 3) -> HandoffSwarm:
    names = [f"a{n}" for n in range(agents)]

    def member(n: int) -> Agent:
        def think(request: ModelRequest) -> Said:
            made = sum(m.text.startswith("Control passes") for m in request.messages)
            if made == hand_overs:
                return "end"
            return asks(f"handoff_to_{names[(n + 1) % agents]}", f"c{made}", message=f"number {made}")

        return says(names[n], think, system_prompt=f"{n}!")

    members = [member(n) for n in range(agents)]
    pairs = [(members[n], members[(n + 1) % agents]) for n in range(agents)]
    return HandoffSwarm(*pairs, max_handoffs=10_000)


async def test_each_message_is_stored_once_and_the_log_grows_linearly() -> None:
    some = await run(ring(20), conf={"max_steps": None})
    more = await run(ring(40), conf={"max_steps": None})
    assert some.answer == more.answer == "end"
    (some_whole, some_again), (more_whole, more_again) = turns(some.record), turns(more.record)
    assert more_whole < 2.1 * some_whole
    assert more_again < 2.3 * some_again
    assert len(more.record.events) < 2.2 * len(some.record.events)
    prompt = shown(more, 40)
    assert prompt[0] == ("system", "1!")
    assert [words for role, words in prompt if role == "tool"] == [f"Control passes to a{n % 3}." for n in range(1, 41)]


@pytest.mark.parametrize("history", ["full", 2, 5, "summary", "none"])
async def test_a_killed_hand_off_goes_on_where_it_was(history: Any) -> None:
    whole, ends, _ = await streamed(desk(history=history))
    for cut in ends:
        again, _ = await revived(desk(history=history), whole.record, cut)
        assert again.success
        assert_whole(again.record, complete=False)
        if "interrupted" not in str([row["observation"] for row in again.trajectory]):
            assert outcome(again) == outcome(whole)
    assert outcome(await stepped(desk(history=history))) == outcome(whole)
