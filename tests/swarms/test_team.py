"""Teams: a leader that calls its members, and agents that call agents."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aworld.agents.llm_agent import Agent
from aworld.core import event as ev
from aworld.core.agent.flow import Unit
from aworld.core.agent.swarm import Swarm, TeamSwarm
from aworld.core.exceptions import ConfigError, TaskError
from aworld.core.message import ToolCall
from aworld.core.model import ModelRequest
from aworld.core.task import Task, TaskResponse
from aworld.core.tool.base import Question, ToolContext
from aworld.core.tool.func_to_tool import tool
from aworld.core.tool.wrappers import approval_required, filtered, prefixed, renamed
from aworld.models import ScriptedModel
from aworld.models.doubles import Said, call
from aworld.runner import Runners
from aworld.trajectory import MemoryStore
from tests.runners.scenes import add, scripted
from tests.swarms.stage import assert_whole, echo, fails, heard, outcome, ran, revived, says, stepped, streamed


async def run(unit: Unit, input: Any = "Q", **task: Any) -> TaskResponse:
    async with asyncio.timeout(5):
        response, _ = await ran(unit, input, **task)
    assert_whole(response.record, complete=response.success)
    return response


def leader(*replies: Said, tools: Any = (), name: str = "lead", **settings: Any) -> Agent:
    return Agent(name, model=ScriptedModel(replies), tools=tools, **settings)


def told(response: TaskResponse, row: int) -> list[str]:
    """What the calls of a row were answered."""
    return [seen["content"] for seen in response.trajectory[row]["observation"]]


async def test_members_are_at_work_at_once_and_answer_in_the_order_of_the_calls() -> None:
    barrier = asyncio.Barrier(2)
    order: list[str] = []

    def member(name: str, after: asyncio.Event | None, then: asyncio.Event | None) -> Agent:
        async def think(request: ModelRequest) -> Said:
            await barrier.wait()
            if after is not None:
                await after.wait()
            order.append(name)
            if then is not None:
                then.set()
            return f"{name} did {heard(request)}"

        return says(name, think)

    second_first = asyncio.Event()
    lead = leader([call("a", input="one"), call("b", input="two")], "done")
    response = await run(TeamSwarm(lead, member("a", second_first, None), member("b", None, second_first)))
    assert response.answer == "done"
    assert order == ["b", "a"]
    assert told(response, 0) == ["a did one", "b did two"]
    assert [m["content"] for m in response.trajectory[3]["state"]["messages"][-2:]] == ["a did one", "b did two"]


async def test_a_member_sees_its_own_conversation_only() -> None:
    lead = leader(
        [call("a", input="do a"), call("b", input="do b")], call("a", input="again"), "done", system_prompt="L"
    )
    response = await run(TeamSwarm(lead, echo("a", system_prompt="A"), echo("b")))
    prompts = {row["meta"]["agent_id"]: row["state"]["messages"] for row in response.trajectory}
    assert prompts["a#2"] == [{"role": "system", "content": "A"}, {"role": "user", "content": "do a"}]
    assert prompts["b#3"] == [{"role": "user", "content": "do b"}]
    assert prompts["a#4"] == [{"role": "system", "content": "A"}, {"role": "user", "content": "again"}]
    assert [message["role"] for message in prompts["lead#1"]] == [
        "system", "user", "assistant", "tool", "tool", "assistant", "tool",
    ]  # fmt: skip


async def test_one_member_is_called_twice_in_one_turn() -> None:
    lead = leader([call("a", input="x"), call("a", input="y")], "done")
    response = await run(TeamSwarm(lead, echo("a")))
    assert told(response, 0) == ["a(x)", "a(y)"]


async def test_a_member_is_called_again_under_a_call_id_that_was_used_before() -> None:
    again = [ToolCall("same", "a", '{"input": "x"}'), ToolCall("same", "a", '{"input": "y"}'), "done"]
    response = await run(TeamSwarm(leader(*again), echo("a")))
    assert response.answer == "done"
    assert told(response, 0) == ["a(x)"]
    assert told(response, 2) == ["a(y)"]


async def test_a_failed_member_tells_the_leader() -> None:
    response = await run(TeamSwarm(leader([call("a", input="x"), call("b", input="y")], "done"), fails("a"), echo("b")))
    assert response.success
    first, second = response.trajectory[0]["observation"]
    assert "a failed" in first["content"]
    assert "boom" in first["content"]
    assert first["error"]
    assert (second["content"], second["error"]) == ("b(y)", None)


async def test_a_member_may_be_a_swarm_or_a_team() -> None:
    inner = TeamSwarm(leader(call("c", input="deep"), "inner done", name="boss"), echo("c"), name="inner")
    lead = leader([call("pair", input="x"), call("inner", input="y")], "done")
    response = await run(TeamSwarm(lead, Swarm(echo("a"), echo("b"), name="pair"), inner))
    assert told(response, 0) == ["b(a(x))", "inner done"]
    names = {a.id: a.agent for a in response.record.activations.values()}
    callers = {names[a.id]: names.get(a.caller) for a in response.record.activations.values() if a.caller is not None}
    assert callers == {
        "lead": "lead-team",
        "pair": "lead",
        "a": "pair",
        "b": "pair",
        "inner": "lead",
        "boss": "inner",
        "c": "boss",
    }


async def test_wrong_arguments_go_back_to_the_leader() -> None:
    wrong = [
        ToolCall("1", "a", "{"), ToolCall("2", "a", "{}"), ToolCall("3", "a", '{"input": 7}'), ToolCall("4", "a", "[]"),
        ToolCall("5", "nobody", '{"input": "x"}'), ToolCall("6", "a", '{"input": "right"}'),
    ]  # fmt: skip
    response = await run(TeamSwarm(leader(wrong, "done"), echo("a")))
    answers = response.trajectory[0]["observation"]
    assert all('{"input": "what it shall do"}' in answer["content"] for answer in answers[:4])
    assert all(answer["error"] for answer in answers[:5])
    assert "no tool named 'nobody'" in answers[4]["content"]
    assert answers[5]["content"] == "a(right)"


async def test_a_leader_calls_functions_and_members_in_one_turn() -> None:
    lead = leader([call("add", a=1, b=2), call("a", input="x"), call("add", a=3, b=4)], "done", tools=[add])
    response = await run(TeamSwarm(lead, echo("a")))
    assert told(response, 0) == ["3", "a(x)", "7"]


async def test_members_work_while_the_functions_of_the_leader_do() -> None:
    member_done = asyncio.Event()

    @tool
    async def wait_for_member() -> str:
        """Wait."""
        await member_done.wait()
        return "waited"

    def think(request: ModelRequest) -> Said:
        member_done.set()
        return "quick"

    lead = leader([call("wait_for_member"), call("a", input="x")], "done", tools=[wait_for_member])
    assert told(await run(TeamSwarm(lead, says("a", think))), 0) == ["waited", "quick"]


async def test_an_agent_takes_agents_and_swarms_as_tools() -> None:
    helper = echo("helper", desc="Helps.")
    pair = Swarm(echo("x"), echo("y"), name="pair", desc="Two of them.")
    lone = leader([call("helper", input="1"), call("pair", input="2")], "done", tools=[helper, pair, add])
    response = await Runners.run("Q", agent=lone)
    assert_whole(response.record)
    assert response.answer == "done"
    assert told(response, 0) == ["helper(1)", "y(x(2))"]
    offered = {t["function"]["name"]: t["function"] for t in response.trajectory[0]["state"]["tools"]}
    assert offered["helper"]["description"] == "Helps."
    assert offered["pair"]["description"] == "Two of them."
    assert offered["helper"]["parameters"]["required"] == ["input"]


async def test_an_agent_may_be_a_tool_of_the_task() -> None:
    lone = leader(call("helper", input="1"), "done")
    response = await Runners.run("Q", agent=lone, tools=[echo("helper").as_tool()])
    assert (response.status, response.msg) == ("finished", "")
    assert told(response, 0) == ["helper(1)"]
    led = await run(
        TeamSwarm(leader([call("helper", input="1"), call("a", input="2")], "done"), echo("a")),
        tools=[echo("helper").as_tool()],
    )
    assert told(led, 0) == ["helper(1)", "a(2)"]


async def test_an_agent_under_another_name_is_still_an_agent() -> None:
    pair = Swarm(echo("x"), echo("y"), name="pair")
    known = renamed([echo("helper").as_tool(), pair.as_tool(), add], {"pair": "two"})
    tools = prefixed(filtered(known, ["helper", "two"]), "my_")
    lone = leader([call("my_helper", input="1"), call("my_two", input="2")], "done", tools=tools)
    response = await Runners.run("Q", agent=lone)
    assert_whole(response.record)
    assert told(response, 0) == ["helper(1)", "y(x(2))"]
    assert [a.agent for a in response.record.activations.values()][1:3] == ["helper", "pair"]
    report = await Runners.replay(response, lone)
    assert report.same, report


def test_consent_is_not_asked_for_an_agent_but_for_what_its_tools_do() -> None:
    with pytest.raises(ConfigError, match="'helper' is an agent or a team"):
        approval_required([echo("helper").as_tool()])
    with pytest.raises(ConfigError, match="around its own tools"):
        approval_required([echo("helper").as_tool(), add], ["helper"])
    assert approval_required([echo("helper").as_tool(), add], ["add"])


async def test_rows_are_in_order_of_time_with_their_agents_and_callers() -> None:
    lead = leader([call("a", input="x"), call("b", input="y")], call("b", input="z"), "done")
    response = await run(TeamSwarm(lead, echo("a"), echo("b")))
    metas = [row["meta"] for row in response.trajectory]
    assert [meta["agent"] for meta in metas] == ["lead", "a", "b", "lead", "b", "lead"]
    assert [meta["pre_agent"] for meta in metas] == [None, "lead", "a", "b", "lead", "b"]
    assert [meta["step"] for meta in metas] == list(range(6))
    started = [e for e in response.record.events if isinstance(e, ev.AgentStarted)]
    assert [(e.agent, e.caller, e.call_id) for e in started] == [
        ("lead-team", None, None), ("lead", 0, None), ("a", 1, "call_0_0"), ("b", 1, "call_0_1"), ("b", 1, "call_1_0"),
    ]  # fmt: skip


async def test_the_row_before_is_the_agent_before_also_when_replies_overtake_each_other() -> None:
    gone = asyncio.Event()

    async def slow(request: ModelRequest) -> Said:
        await gone.wait()
        return "slow"

    def quick(request: ModelRequest) -> Said:
        gone.set()
        return "quick"

    response = await run(Swarm(echo("a"), [says("slow", slow), says("quick", quick)], echo("z")))
    metas = [row["meta"] for row in response.trajectory]
    assert [(meta["pre_agent"], meta["agent"]) for meta in metas] == [
        (None, "a"), ("a", "slow"), ("slow", "quick"), ("quick", "z"),
    ]  # fmt: skip


async def test_an_agent_of_its_own_limit_ends_and_the_team_goes_on() -> None:
    busy = Agent("busy", model=ScriptedModel([call("add", a=1, b=1)] * 2), tools=[add], max_steps=2)
    response = await run(TeamSwarm(leader(call("busy", input="x"), "done"), busy))
    assert response.answer == "done"
    assert "max_steps=2 of agent 'busy'" in told(response, 0)[0]


async def test_the_limits_of_the_task_count_all_agents() -> None:
    lead = leader([call("a", input="x"), call("b", input="y")], "done")
    response = await run(TeamSwarm(lead, echo("a"), echo("b")), conf={"max_steps": 3})
    assert response.status == "limit_reached"
    assert "max_steps=3" in response.msg
    assert len(response.trajectory) == 3


def asking(name: str = "asker") -> Agent:
    @tool(inline=True)
    def consent(context: ToolContext) -> str:
        """Ask a person."""
        for answer in context.answers.values():
            return f"{name} got {answer}"
        raise Question(f"May {name}?")

    return scripted(call("consent"), f"{name} ends", name=name, tools=[consent])


async def test_a_member_asks_a_person_and_the_others_go_on() -> None:
    def team() -> TeamSwarm:
        return TeamSwarm(
            leader([call("one", input="x"), call("two", input="y"), call("a", input="z")], "done"),
            asking("one"),
            asking("two"),
            echo("a"),
        )

    store = MemoryStore()
    waiting = await Runners.run("Q", swarm=team(), run_conf={"store": store})
    assert waiting.status == "waiting"
    assert [row["meta"]["agent"] for row in waiting.trajectory] == ["lead", "one", "two", "a"]
    questions = {q.question: q.id for q in waiting.record.questions.values()}
    assert questions.keys() == {"May one?", "May two?"}
    half = await Runners.resume(waiting.id, swarm=team(), store=store, answers={questions["May two?"]: "yes"})
    assert half.status == "waiting"
    whole = await Runners.resume(waiting.id, swarm=team(), store=store, answers={questions["May one?"]: "no"})
    assert whole.answer == "done"
    by_agent = {
        row["meta"]["agent"]: row["observation"][0]["content"] for row in whole.trajectory if row["observation"]
    }
    assert by_agent["one"] == "one got no"
    assert by_agent["two"] == "two got yes"
    assert_whole(whole.record)


async def test_a_result_given_in_place_of_a_members_stops_the_member() -> None:
    task = Task(
        "Q", swarm=TeamSwarm(leader([call("a", input="x"), call("b", input="y")], "done"), echo("a"), echo("b"))
    )
    await Runners.step(task)
    over, _, response = await Runners.step(task, tool_results={"call_0_0": "mine"})
    while not over:
        over, _, response = await Runners.step(task)
    response.step = None
    assert response.answer == "done"
    assert [row["meta"]["agent"] for row in response.trajectory] == ["lead", "b", "lead"]
    assert told(response, 0) == ["mine", "b(y)"]
    assert_whole(response.record)


def nested() -> TeamSwarm:
    inner = TeamSwarm(
        leader([call("c", input="deep"), call("c", input="er")], "inner", name="boss"), echo("c"), name="inner"
    )
    lead = leader([call("pair", input="x"), call("inner", input="y"), call("add", a=1, b=2)], "done", tools=[add])
    return TeamSwarm(lead, Swarm(echo("a"), echo("b"), name="pair"), inner)


async def test_a_killed_team_goes_on_where_it_was() -> None:
    whole, ends, _ = await streamed(nested())
    assert whole.success
    for cut in ends:
        again, _ = await revived(nested(), whole.record, cut)
        lost = "interrupted" in str(told(again, 0))  # of the function that ran when the process died
        assert again.success
        assert lost or outcome(again) == outcome(whole)
        assert_whole(again.record, complete=False)
    assert outcome(await stepped(nested())) == outcome(whole)


async def test_a_result_for_an_id_that_two_agents_gave_is_refused_and_names_both() -> None:
    @tool
    def look() -> str:
        raise Question("What is there?")

    def looker(name: str) -> Agent:
        return leader([call("look")], "done", tools=[look], name=name)

    pair = Swarm([looker("one"), looker("two")])
    task = Task("Q", swarm=pair)
    for _ in range(2):
        await Runners.step(task)
    with pytest.raises(TaskError, match="'call_0_0' is one of one and one of two"):
        await Runners.step(task, tool_results={"call_0_0": "a tree"})
