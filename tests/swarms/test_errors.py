"""What breaks in a swarm is told by name, and nothing is left running."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from aworld.agents.llm_agent import Agent
from aworld.core import event as ev
from aworld.core.agent.flow import Unit
from aworld.core.agent.swarm import Edge, HandoffSwarm, Loop, Map, Swarm, TeamSwarm, WorkflowNode, WorkflowSwarm
from aworld.core.context.base import Context
from aworld.core.exceptions import ConfigError
from aworld.core.hooks import HookContext, Hooks
from aworld.core.message import Message, ToolCall, Usage
from aworld.core.model import ModelReply, ModelRequest
from aworld.core.output import HandoffOutput, RunFinished, StepFinished, StepStarted, ToolCallOutput, ToolResultOutput
from aworld.core.task import Task, TaskResponse
from aworld.core.tool.func_to_tool import tool
from aworld.models import ScriptedModel
from aworld.models.doubles import Said, call
from aworld.runner import Runners
from tests.runners.scenes import Gate, add, scripted
from tests.swarms.stage import assert_whole, echo, fails, outcome, ran, revived, says, stepped, streamed


async def run(unit: Unit, input: Any = "Q", **task: Any) -> TaskResponse:
    async with asyncio.timeout(5):
        response, _ = await ran(unit, input, **task)
    assert_whole(response.record, complete=response.success)
    return response


def stuck(name: str, gate: Gate) -> Agent:
    async def think(request: ModelRequest) -> Said:
        await gate.pass_through()
        return name

    return says(name, think)


def busy(name: str, gate: Gate) -> Agent:
    """An agent whose tool does not come back."""

    @tool
    async def wait() -> str:
        """Wait."""
        await gate.pass_through()
        return "over"

    return scripted(call("wait"), name, name=name, tools=[wait])


def bad(name: str, gate: Gate, arrived: int) -> Agent:
    """An agent that fails when the others have arrived."""

    async def think(request: ModelRequest) -> Said:
        await gate.until(arrived)
        raise ValueError("boom")

    return says(name, think)


async def test_the_failure_of_one_stops_the_others_and_closes_their_calls() -> None:
    gate = Gate()
    response = await run(Swarm([stuck("s", gate), busy("t", gate), bad("f", gate, 2)], echo("z"), name="work"))
    assert response.status == "failed"
    assert "'f' of 'work'" in response.msg
    assert gate.inside == 0
    ends = {e.agent: e.error or "" for e in response.record.events if isinstance(e, ev.AgentFinished)}
    assert ends["s"] == ends["t"] == "stopped: work has ended"
    closed = [e for e in response.record.events if isinstance(e, ev.ToolReturned)]
    assert [(e.name, e.error) for e in closed] == [("wait", "interrupted")]


async def test_what_was_done_before_the_failure_comes_back() -> None:
    response = await run(Swarm(echo("a"), fails("b"), echo("c")))
    assert [row["meta"]["agent"] for row in response.trajectory] == ["a", "b"]
    assert response.trajectory[0]["action"]["content"] == "a(Q)"


async def test_a_deep_failure_names_the_way_to_it() -> None:
    deep = Swarm(echo("a"), Loop(Swarm(fails("b"), name="in"), until=lambda _, __: True, name="again"), name="out")
    response = await run(deep)
    assert all(f"'{name}'" in response.msg for name in ("in", "again", "out", "b")), response.msg
    assert "boom" in response.msg


async def test_a_leader_that_fails_stops_its_members() -> None:
    gate = Gate()

    class Broken(Hooks):
        async def before_tool(self, at: HookContext, call: ToolCall) -> None:
            await gate.until(1)
            raise RuntimeError("hook broke")

    lead = Agent("lead", model=ScriptedModel([[call("s", input="x"), call("add", a=1, b=1)], "done"]), tools=[add])
    response = await run(TeamSwarm(lead, stuck("s", gate)), hooks=[Broken()])
    assert response.status == "failed"
    assert "hook broke" in response.msg
    assert gate.inside == 0
    assert all(a.finished for a in response.record.activations.values())


def broken(_: Any, __: Any = None) -> Any:
    raise LookupError("not there")


BROKEN: dict[str, Callable[[], Unit]] = {
    "condition": lambda: WorkflowSwarm(Edge(echo("a"), echo("b"), when=broken), name="team"),
    "input of a node": lambda: Swarm(echo("a"), WorkflowNode(echo("b"), input=broken), name="team"),
    "until": lambda: Loop(echo("a"), until=broken, name="team"),
    "input of a loop": lambda: Loop(echo("a"), until=lambda _, __: False, input=broken, name="team"),
    "answer": lambda: Loop(echo("a"), until=lambda _, __: True, answer=broken, name="team"),
    "over": lambda: Map(echo("a"), over=broken, name="team"),
    "reduce": lambda: Map(echo("a"), times=2, reduce=broken, name="team"),
    "answer that is not data": lambda: Map(echo("a"), times=2, reduce=lambda _: object(), name="team"),
    "answer of a loop that is not data": lambda: Loop(
        echo("a"), until=lambda _, __: True, answer=lambda _: object(), name="team"
    ),
}


@pytest.mark.parametrize("make", BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize("nested", [False, True], ids=["alone", "nested"])
async def test_a_function_of_a_swarm_that_raises_fails_the_swarm_by_name(
    make: Callable[[], Unit], nested: bool
) -> None:
    def unit() -> Unit:
        return Swarm(echo("x"), make(), name="outer") if nested else make()

    response = await run(unit())
    assert response.status == "failed"
    assert "'team'" in response.msg, response.msg
    assert "LookupError: not there" in response.msg or "JSON" in response.msg, response.msg
    by_step = await stepped(unit())
    assert_whole(by_step.record)
    assert outcome(by_step) == outcome(response)
    whole, ends, _ = await streamed(unit())
    for cut in ends:
        again, _ = await revived(unit(), whole.record, cut)
        assert outcome(again) == outcome(response)


async def test_a_failing_function_of_a_member_is_told_to_the_leader() -> None:
    lead = Agent("lead", model=ScriptedModel([call("team", input="x"), "done"]))
    response = await run(TeamSwarm(lead, Loop(echo("a"), until=broken, name="team")))
    assert response.answer == "done"
    assert "LookupError: not there" in response.trajectory[0]["observation"][0]["content"]


async def test_cancelling_ends_a_swarm_within_a_second() -> None:
    gate = Gate()
    store_task = Task("Q", swarm=Swarm([stuck("a", gate), busy("b", gate), Swarm(stuck("c", gate), name="in")]))
    running = asyncio.create_task(Runners.run_task(store_task))
    await gate.until(3)
    began = time.perf_counter()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert time.perf_counter() - began < 1
    assert gate.inside == 0


async def test_a_timeout_ends_a_swarm_with_all_calls_closed() -> None:
    gate = Gate()
    response = await run(Swarm([stuck("a", gate), busy("b", gate)]), timeout=0.05)
    assert response.status == "timeout"
    assert gate.inside == 0
    assert not any(a.open_calls for a in response.record.activations.values())


async def test_leaving_a_stream_cancels_the_swarm() -> None:
    gate = Gate()
    stream = Runners.streamed_run_task(Task("Q", swarm=Swarm([stuck("a", gate), busy("b", gate)])))
    began = 0.0
    async for output in stream.stream_events():
        if isinstance(output, ToolCallOutput):
            await gate.until(2)
            began = time.perf_counter()
            break
    response = await stream.response()
    assert time.perf_counter() - began < 1
    assert response.status == "cancelled"
    assert_whole(response.record, complete=False)


def metered(name: str, tokens: int) -> Agent:
    usage = Usage(input_tokens=tokens, output_tokens=1, total_tokens=tokens + 1)
    return says(name, lambda _: ModelReply(Message("assistant", name), "stop", usage))


async def test_usage_and_token_limits_count_over_the_whole_tree() -> None:
    def swarm() -> Swarm:
        return Swarm(metered("a", 10), [metered("b", 20), Swarm(metered("c", 30), name="in")], metered("d", 40))

    whole = await run(swarm())
    assert whole.usage.total_tokens == 104
    limited = await run(swarm(), conf={"max_tokens": 60})
    assert limited.status == "limit_reached"
    assert "max_tokens=60 reached: 63 tokens" in limited.msg
    assert len(limited.trajectory) == 3


async def test_an_unknown_member_in_the_log_is_misuse() -> None:
    whole, ends, _ = await streamed(Swarm(echo("a"), echo("b"), name="team"))
    with pytest.raises(Exception, match="give the agent or team with those names"):
        await revived(Swarm(echo("a"), echo("c"), name="team"), whole.record, ends[-1])


async def test_a_member_under_the_name_of_a_tool_is_refused_when_the_team_is_made() -> None:
    @tool(name="helper")
    def function() -> str:
        """Help."""
        return ""

    with pytest.raises(ConfigError, match="'helper'"):
        TeamSwarm(Agent("lead", model=ScriptedModel(["x"]), tools=[function]), echo("helper"))


async def test_a_stream_tells_of_all_members_in_order() -> None:
    both = [call("add", a=1, b=1), call("pair", input="x")]
    lead = Agent("lead", model=ScriptedModel([both, "done"]), tools=[add])
    _, _, outputs = await streamed(TeamSwarm(lead, Swarm(echo("a"), echo("b"), name="pair")))
    assert [o.agent for o in outputs if isinstance(o, StepStarted)] == ["lead", "a", "b", "lead"]
    assert [o.step for o in outputs if isinstance(o, StepStarted)] == [0, 1, 2, 3]
    assert sorted(o.step for o in outputs if isinstance(o, StepFinished)) == [0, 1, 2, 3]
    assert [isinstance(o, RunFinished) for o in outputs].index(True) == len(outputs) - 1
    calls = [o.call.id for o in outputs if isinstance(o, ToolCallOutput)]
    results = [o.result.tool_call_id for o in outputs if isinstance(o, ToolResultOutput)]
    assert sorted(calls) == sorted(results) == ["call_0_0", "call_0_1"]
    for id in calls:
        kinds: list[Any] = [
            type(o)
            for o in outputs
            if getattr(getattr(o, "call", None), "id", None) == id
            or getattr(getattr(o, "result", None), "tool_call_id", None) == id
        ]
        assert kinds == [ToolCallOutput, ToolResultOutput]


async def test_a_stream_tells_of_hand_overs() -> None:
    a = Agent("a", model=ScriptedModel([call("handoff_to_b", message="go")]))
    _, _, outputs = await streamed(HandoffSwarm((a, echo("b"))))
    (handoff,) = [o for o in outputs if isinstance(o, HandoffOutput)]
    assert (handoff.agent, handoff.to, handoff.step) == ("a", "b", 0)
    order: list[Any] = [type(o) for o in outputs]
    assert order.index(ToolCallOutput) < order.index(ToolResultOutput) < order.index(HandoffOutput)
    assert order.index(HandoffOutput) < next(n for n, o in enumerate(outputs) if isinstance(o, StepFinished))


async def test_the_steps_of_a_stream_begin_and_end_once_also_when_members_fail() -> None:
    _, _, outputs = await streamed(Swarm(echo("z"), [echo("a"), fails("b"), echo("c")], echo("d"), on_error="tell"))
    started = sorted((o.step, o.agent) for o in outputs if isinstance(o, StepStarted))
    finished = sorted((o.step, o.agent) for o in outputs if isinstance(o, StepFinished))
    assert started == finished
    assert [step for step, _ in started] == [0, 1, 2, 3, 4]


async def test_a_hundred_runs_of_one_swarm_at_once_do_not_mix() -> None:
    def remember(context: Context, text: str) -> str:
        """Keep it."""
        context.set("text", text)
        return text

    keeper = says(
        "keeper",
        lambda r: (
            ToolCall("1", "remember", f'{{"text": "{r.messages[0].text}"}}')
            if len(r.messages) == 1
            else r.messages[-1].text
        ),
        tools=[tool(inline=True)(remember)],
    )
    swarm = Swarm([keeper, echo("b")], echo("c"))
    tasks = [Task(f"Q{n}", swarm=swarm) for n in range(100)]
    responses = await Runners.run_task(tasks)
    for n, task in enumerate(tasks):
        response = responses[task.id]
        assert response.record.state == {"text": f"Q{n}"}
        assert response.answer == f'c(<result from="keeper">\nQ{n}\n</result>\n\n<result from="b">\nb(Q{n})\n</result>)'
