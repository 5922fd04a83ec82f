"""Workflows: what starts when, what it is told, and what comes out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from aworld.agents.llm_agent import Agent
from aworld.core.agent.flow import Unit
from aworld.core.agent.swarm import Edge, Loop, Map, Swarm, TeamSwarm, WorkflowNode, WorkflowSwarm
from aworld.core.message import Image, Text
from aworld.core.model import ModelRequest
from aworld.core.task import TaskResponse
from aworld.models import ScriptedModel
from aworld.models.doubles import Said, call
from aworld.runner import Runners
from tests.runners.scenes import Gate, scripted
from tests.swarms.stage import assert_whole, echo, fails, heard, outcome, ran, revived, says, stepped, streamed, yields


async def run(unit: Unit, input: Any = "Q", **task: Any) -> TaskResponse:
    async with asyncio.timeout(5):
        response, _ = await ran(unit, input, **task)
    assert_whole(response.record, complete=response.success)
    return response


def agents_of(response: TaskResponse) -> list[str]:
    return [row["meta"]["agent"] for row in response.trajectory]


def meeting(count: int) -> Callable[[str], Agent]:
    """Makes agents that answer only when `count` of them are at work at once."""
    barrier = asyncio.Barrier(count)

    def make(name: str) -> Agent:
        async def think(request: ModelRequest) -> Said:
            await barrier.wait()
            return f"{name} met"

        return says(name, think)

    return make


async def test_a_chain_hands_on_what_was_said() -> None:
    response = await run(Swarm(echo("a"), echo("b"), echo("c")))
    assert response.answer == "c(b(a(Q)))"
    assert agents_of(response) == ["a", "b", "c"]


async def test_a_list_is_at_work_at_once_and_a_tuple_one_after_the_other() -> None:
    meets = meeting(3)
    response = await run(Swarm(echo("a"), [meets("b"), (meets("c"), echo("d")), meets("e")], echo("f")))
    assert response.answer == (
        'f(<result from="b">\nb met\n</result>\n\n<result from="d">\nd(c met)\n</result>\n\n'
        '<result from="e">\ne met\n</result>)'
    )


async def test_serial_groups_side_by_side_do_not_wait_for_each_other() -> None:
    first_done = asyncio.Event()

    async def late(request: ModelRequest) -> Said:
        await first_done.wait()  # b waits for the second of the other group
        return "b"

    def early(request: ModelRequest) -> Said:
        first_done.set()
        return "d"

    response = await run(Swarm([(says("b", late), echo("b2")), (echo("c"), says("d", early))], echo("z")))
    assert response.success


async def test_what_a_join_reads_stands_in_the_order_of_the_members_whoever_ends_first() -> None:
    def slow(name: str, waits: int) -> Agent:
        async def think(request: ModelRequest) -> Said:
            await yields(waits)
            return name

        return says(name, think)

    response = await run(Swarm([slow("a", 9), slow("b", 1), slow("c", 5)], echo("join")))
    assert response.answer == (
        'join(<result from="a">\na\n</result>\n\n<result from="b">\nb\n</result>\n\n<result from="c">\nc\n</result>)'
    )


async def test_edges_make_a_diamond() -> None:
    a, b, c, d = echo("a"), echo("b"), echo("c"), echo("d")
    response = await run(Swarm((a, b), (a, c), (b, d), (c, d)))
    assert response.answer == 'd(<result from="b">\nb(a(Q))\n</result>\n\n<result from="c">\nc(a(Q))\n</result>)'
    assert agents_of(response) == ["a", "b", "c", "d"]


async def test_a_condition_takes_an_edge_or_leaves_the_whole_branch_out() -> None:
    def graph(word: str) -> Swarm:
        router = says("router", lambda _: word)
        left, left2, right, end = echo("left"), echo("left2"), echo("right"), echo("end")
        return WorkflowSwarm(
            Edge(router, left, lambda _, output: output == "left"),
            (left, left2),
            Edge(router, right, when=lambda _, output: output == "right"),
            (left2, end),
            (right, end),
        )

    assert (await run(graph("left"))).answer == "end(left2(left(left)))"
    assert (await run(graph("right"))).answer == "end(right(right))"
    lost = await run(graph("nowhere"))
    assert (lost.status, lost.answer) == ("failed", None)
    assert "left out" in lost.msg


async def test_a_join_of_a_taken_and_a_left_out_edge_reads_the_taken_one() -> None:
    a, b, c, end = echo("a"), echo("b"), echo("c"), echo("end")
    graph = Swarm(topology=[Edge(a, b, when=lambda _, __: False), (a, c), (b, end), (c, end)])
    response = await run(graph)
    assert response.answer == "end(c(a(Q)))"
    assert agents_of(response) == ["a", "c", "end"]


async def test_a_condition_sees_the_state() -> None:
    a, b, c = echo("a"), echo("b"), echo("c")
    graph = WorkflowSwarm(
        Edge(a, b, when=lambda state, _: state["way"] == "b"), Edge(a, c, when=lambda s, _: s["way"] == "c")
    )
    assert (await run(graph, context={"way": "b"})).answer == "b(a(Q))"
    assert (await run(graph, context={"way": "c"})).answer == "c(a(Q))"


async def test_an_aggregation_makes_the_input() -> None:
    a, b = echo("a"), echo("b")
    end = WorkflowNode(echo("end"), input=lambda outputs: f"{outputs['a']}+{outputs['b']}")
    assert (await run(Swarm([a, b], end))).answer == "end(a(Q)+b(Q))"


async def test_several_last_members_answer_by_name() -> None:
    response = await run(Swarm(echo("a"), [echo("b"), echo("c")]))
    assert response.answer == {"b": "b(a(Q))", "c": "c(a(Q))"}
    assert response.record.answer == response.answer


async def test_retries_of_a_node_ask_again_with_the_same_words() -> None:
    inputs: list[str] = []

    def think(request: ModelRequest) -> Said:
        inputs.append(heard(request))
        if len(inputs) < 3:
            raise ValueError("not yet")
        return "at last"

    response = await run(Swarm(echo("a"), WorkflowNode(says("b", think), retries=2)))
    assert response.answer == "at last"
    assert inputs == ["a(Q)"] * 3
    assert agents_of(response) == ["a", "b", "b", "b"]


async def test_retries_that_are_used_up_fail_the_workflow_with_the_name_of_the_node() -> None:
    response = await run(Swarm(echo("a"), WorkflowNode(fails("b"), retries=1), echo("c"), name="work"))
    assert response.status == "failed"
    assert "'b' of 'work'" in response.msg
    assert "boom" in response.msg
    assert agents_of(response) == ["a", "b", "b"]


async def test_a_failure_that_is_told_or_skipped_does_not_end_the_workflow() -> None:
    told = await run(Swarm(echo("a"), [fails("b"), echo("c")], echo("d"), on_error="tell"))
    assert told.success
    assert "(failed: " in told.answer
    assert "boom" in told.answer
    skipped = await run(Swarm(echo("a"), [fails("b"), echo("c")], echo("d"), on_error="skip"))
    assert skipped.answer == "d(c(a(Q)))"
    own = await run(Swarm(echo("a"), [WorkflowNode(fails("b"), on_error="skip"), echo("c")], echo("d")))
    assert own.answer == "d(c(a(Q)))"


async def test_a_name_with_the_sign_of_a_retry_is_a_name() -> None:
    assert (await run(Swarm(echo("a~1"), WorkflowNode(echo("b~x"), retries=1)))).answer == "b~x(a~1(Q))"


async def test_a_loop_goes_on_until_it_is_good_enough() -> None:
    solver = Agent("solver", model=ScriptedModel(["one", "two", "three"]))
    prompts: list[str] = []

    def judge(request: ModelRequest) -> Said:
        prompts.append(heard(request))
        return "good" if heard(request) == "two" else "bad"

    third = Agent("solver", model=ScriptedModel(["one", "two"]))
    response = await run(Loop((third, says("judge", judge)), until=lambda _, output: output == "good"))
    assert response.answer == "good"
    assert prompts == ["one", "two"]
    assert response.trajectory[2]["state"]["input"] == '<task>\nQ\n</task>\n\n<result from="round 1">\nbad\n</result>'
    ended = await run(Loop(solver, until=lambda _, __: False, max_rounds=3))
    assert (ended.status, ended.answer) == ("finished", "three")


async def test_a_loop_that_must_hold_fails_when_its_rounds_run_out() -> None:
    response = await run(Loop(echo("a"), until=lambda _, __: False, max_rounds=2, must_hold=True, name="again"))
    assert response.status == "limit_reached"
    assert "'again' ran out of max_rounds=2" in response.msg
    nested = await run(Swarm(echo("x"), Loop(echo("a"), until=lambda _, __: False, max_rounds=2, must_hold=True)))
    assert nested.status == "failed"


async def test_a_loop_picks_its_answer_and_makes_its_input() -> None:
    response = await run(
        Loop(
            echo("a"),
            until=lambda _, output: output.count("(") == 3,
            input=lambda task, output: f"{task}!{output}",
            answer=lambda output: output.upper(),
        )
    )
    assert response.answer == "A(Q!A(Q!A(Q)))"


async def test_the_answer_of_a_loop_is_picked_out_of_the_last_output_only() -> None:
    looped = Loop(scripted("no", "x=1", name="a"), until=lambda _, o: "=" in o, answer=lambda o: o.split("=")[1])
    assert (await run(looped)).answer == "1"


async def test_a_loop_shows_pictures_of_the_task_in_every_round() -> None:
    parts: list[Any] = []

    def think(request: ModelRequest) -> Said:
        parts.append(request.messages[-1].content)
        return str(len(parts))

    task = (Text("what is it?"), Image(url="https://example.org/a.png"))
    await run(Loop(says("a", think), until=lambda _, output: output == "2"), task)
    assert parts[0] == task
    assert parts[1][:2] == task
    assert '<result from="round 1">' in parts[1][2].text


async def test_a_map_asks_once_for_each_input() -> None:
    listed = await run(Map(echo("a"), over=lambda text: text.split(",")), "x,y,z")
    assert listed.answer == ["a(x)", "a(y)", "a(z)"]
    times = await run(Map(echo("a"), times=2), "x")
    assert times.answer == ["a(x)", "a(x)"]
    from_json = await run(Map(echo("a")), '["x", {"n": 1}, 2]')
    assert from_json.answer == ["a(x)", 'a({"n":1})', "a(2)"]
    reduced = await run(Map(echo("a"), times=3, reduce=len))
    assert reduced.answer == 3
    by_agent = await run(Map(echo("a"), over=lambda _: ["x", "y"], reduce=echo("r")))
    assert by_agent.answer == 'r(<result from="a 1">\na(x)\n</result>\n\n<result from="a 2">\na(y)\n</result>)'
    empty = await run(Map(echo("a")), "[]")
    assert empty.answer == []
    no_list = await run(Map(echo("a"), name="all"), "what?")
    assert no_list.status == "failed"
    assert "'all'" in no_list.msg
    assert "over=" in no_list.msg


async def test_a_map_runs_at_once_and_no_more_than_it_may() -> None:
    gate = Gate()

    async def think(request: ModelRequest) -> Said:
        await gate.pass_through()
        return heard(request)

    every = asyncio.create_task(run(Map(says("a", think), over=lambda _: list("12345"))))
    await gate.until(5)
    gate.open.set()
    assert (await every).answer == list("12345")

    gate = Gate()
    some = asyncio.create_task(run(Map(says("a", think), over=lambda _: list("12345"), max_parallel=2)))
    await gate.until(2)
    await yields(10)
    assert gate.arrived == 2
    gate.open.set()
    assert (await some).answer == list("12345")
    assert gate.most == 2


async def test_a_failed_input_of_a_map() -> None:
    def think(request: ModelRequest) -> Said:
        if heard(request) == "2":
            raise ValueError("no twos")
        return heard(request)

    def mapped(**options: Any) -> Map:
        return Map(says("a", think), over=lambda _: list("123"), **options)

    failed = await run(mapped(name="each"))
    assert failed.status == "failed"
    assert "'each'" in failed.msg
    assert "no twos" in failed.msg
    assert (await run(mapped(on_error="skip"))).answer == ["1", "3"]
    told = (await run(mapped(on_error="tell"))).answer
    assert told[0] == "1"
    assert told[1].startswith("(failed: ")
    assert told[2] == "3"


async def test_swarms_nest_four_deep() -> None:
    inner = Swarm(echo("a"), echo("b"), name="inner")
    looped = Loop(inner, until=lambda _, __: True)
    mapped = Map(Swarm(looped, name="held"), times=2, reduce=" ".join)
    response = await run(Swarm(mapped, [echo("c"), Swarm(echo("d"), [echo("e"), echo("f")], name="g")], echo("h")))
    assert response.success
    b = "b(a(Q)) b(a(Q))"
    assert f'<result from="c">\nc({b})\n</result>' in response.answer
    assert f'{{"e":"e(d({b}))","f":"f(d({b}))"}}' in response.answer


async def test_one_agent_stands_in_two_places() -> None:
    twice = echo("a")
    response = await run(Swarm(twice, echo("b"), twice))
    assert response.answer == "a(b(a(Q)))"
    assert [row["meta"]["agent_id"] for row in response.trajectory] == ["a#1", "b#2", "a#3"]
    side = await run(Swarm([twice, twice], echo("b")))
    assert side.answer == 'b(<result from="a">\na(Q)\n</result>\n\n<result from="a-2">\na(Q)\n</result>)'


class Verdict(BaseModel):
    good: bool
    why: str


def judging(*, good: bool) -> Agent[None, Verdict]:
    verdict = Verdict(good=good, why="because")
    return Agent("judge", model=ScriptedModel([verdict.model_dump_json()]), output_type=Verdict)


def typed(*, good: bool) -> Swarm:
    judge, praise, blame = judging(good=good), echo("praise"), echo("blame")
    return WorkflowSwarm(
        Edge(judge, praise, lambda _, verdict: verdict.good), Edge(judge, blame, lambda _, verdict: not verdict.good)
    )


async def test_typed_outputs_steer_and_are_read_as_json() -> None:
    assert (await run(typed(good=True))).answer == 'praise({"good":true,"why":"because"})'
    assert (await run(typed(good=False))).answer == 'blame({"good":false,"why":"because"})'


def typed_units() -> list[Callable[[], Unit]]:
    def chain() -> Unit:
        return Swarm(echo("a"), judging(good=True))

    def nested() -> Unit:
        return Swarm(echo("a"), Swarm(echo("b"), judging(good=True), name="inner"))

    def looped() -> Unit:
        return Loop(judging(good=True), until=lambda _, verdict: verdict.good)

    def mapped() -> Unit:
        return Map(judging(good=True), over=lambda _: ["x"], reduce=lambda verdicts: verdicts[0])

    def team() -> Unit:
        leader = Agent(
            "lead", model=ScriptedModel([call("b", input="x"), '{"good": true, "why": "because"}']), output_type=Verdict
        )
        return TeamSwarm(leader, echo("b"))

    return [chain, nested, looped, mapped, team]


@pytest.mark.parametrize("make", typed_units(), ids=lambda make: make.__name__)
async def test_a_typed_answer_is_an_object_also_after_a_kill(make: Callable[[], Unit]) -> None:
    whole, ends, _ = await streamed(make())
    assert whole.answer == Verdict(good=True, why="because")
    assert whole.record.answer == {"good": True, "why": "because"}
    for cut in ends:
        again, _ = await revived(make(), whole.record, cut)
        assert outcome(again) == outcome(whole)
    ended = await Runners.resume(whole, swarm=make())
    assert ended.answer == whole.answer


async def test_conditions_on_typed_outputs_hold_after_a_kill() -> None:
    whole, ends, _ = await streamed(typed(good=False))
    for cut in ends:
        again, _ = await revived(typed(good=False), whole.record, cut)
        assert outcome(again) == outcome(whole)


async def test_stepping_takes_parallel_members_in_turn() -> None:
    def worker(name: str) -> Agent:
        return scripted(call("add", a=1, b=1), call("add", a=2, b=2), name, name=name)

    response = await stepped(Swarm([worker("a"), worker("b"), worker("c")], echo("z")))
    assert agents_of(response) == ["a", "b", "c"] * 3 + ["z"]
