"""Random swarms of agents that are pure functions of what they see: however one is driven, it says the same."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aworld.agents.llm_agent import Agent
from aworld.core.agent.flow import Unit
from aworld.core.agent.swarm import Edge, HandoffSwarm, Loop, Map, Swarm, TeamSwarm, WorkflowNode, WorkflowSwarm
from aworld.core.message import ToolCall
from aworld.core.model import ModelRequest
from aworld.core.trajectory import Trajectory
from aworld.models.doubles import Said
from aworld.runner import Runners
from tests.swarms.stage import (
    asks,
    assert_whole,
    calls,
    digest,
    double,
    outcome,
    ran,
    revived,
    says,
    stepped,
    streamed,
    yields,
)

MOST_AGENTS = 8


@dataclass(frozen=True)
class Plan:
    """A swarm as data, so that fresh objects are made of it for each way of driving it."""

    kind: str
    parts: tuple[Plan, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def agents(self) -> int:
        own = {"agent": 1, "team": 1, "asker": 1, "handoff": len(self.option("edges", ()))}.get(self.kind, 0)
        return own + sum(part.agents for part in self.parts) + bool(self.option("reduce", False))

    def option(self, name: str, default: Any = None) -> Any:
        return dict(self.options).get(name, default)


# What agents say: a digest of the whole prompt, so that any difference in what they see is heard to the end.


def thinks(name: str, manner: str) -> Callable[[ModelRequest], Any]:
    async def think(request: ModelRequest) -> Said:
        seen = digest(request.messages)
        await yields(int(seen, 16) % 5)
        own = sum(1 for message in request.messages if message.role == "assistant")
        if manner == "tool" and request.messages[-1].role == "user":
            return [asks("double", f"{name}-{own}-{n}", text=f"{seen}{n}") for n in range(1 + int(seen, 16) % 2)]
        if manner == "frail" and int(seen, 16) % 2:
            raise ValueError(f"{name} is tired of {seen}")
        return f"{name}:{seen}"

    return think


def leads(name: str, members: Sequence[str], rounds: int) -> Callable[[ModelRequest], Any]:
    """Asks all members at once, then fewer; some of it in words that they cannot take."""

    async def think(request: ModelRequest) -> Said:
        seen = digest(request.messages)
        await yields(int(seen, 16) % 3)
        turn = sum(1 for message in request.messages if message.role == "assistant")
        if turn >= rounds:
            return f"{name}:{seen}"
        asked: list[ToolCall] = [
            asks(member, f"{name}-{turn}-{n}", input=f"{seen}/{n}")
            for n, member in enumerate(members[: len(members) - turn] or members[:1])
        ]
        if int(seen, 16) % 3 == 0:
            asked.append(asks("double", f"{name}-{turn}-d", text=seen))
        if int(seen, 16) % 5 == 0:
            asked.append(ToolCall(f"{name}-{turn}-x", members[0], '{"input": 1}'))
        return asked

    return think


def passes_on(name: str, targets: Sequence[str]) -> Callable[[ModelRequest], Any]:
    """Hands over as often as the newest message says, counting down."""

    async def think(request: ModelRequest) -> Said:
        seen = digest(request.messages)
        await yields(int(seen, 16) % 3)
        said = re.findall(r"left=(\d+)", request.messages[-1].text)
        left = int(said[-1]) if said else 3
        if left == 0 or not targets:
            return f"{name}:{seen}"
        target = targets[int(seen, 16) % len(targets)]
        turn = sum(1 for message in request.messages if message.role == "assistant")
        asked = [asks(f"handoff_to_{target}", f"{name}-{turn}-{seen}", message=f"{seen} left={left - 1}")]
        if int(seen, 16) % 3 == 0:
            asked.append(asks("double", f"{name}-{turn}-{seen}-d", text=seen))
        return asked

    return think


def build(plan: Plan, names: Any = None) -> Unit:
    """Fresh objects, with the same names every time."""
    names = names or count()
    name = f"{plan.kind}{next(names)}"

    def agent(name: str, manner: str = "plain") -> Agent:
        return says(name, thinks(name, manner), tools=[double], system_prompt=f"You are {name}.")

    parts = [build(part, names) for part in plan.parts]
    match plan.kind:
        case "agent":
            return agent(name, plan.option("manner"))
        case "chain":
            return WorkflowSwarm(*parts, name=name, on_error="tell")
        case "side":
            first, *others = parts
            return Swarm(first, list(others), name=name, on_error=plan.option("on_error"))
        case "graph":
            nodes = [WorkflowNode(part, retries=n % 2) for n, part in enumerate(parts)]
            edges = [Edge(nodes[a], nodes[b], _WHEN[when]) for (a, b), when in plan.option("edges")]
            return WorkflowSwarm(*edges, name=name, on_error=plan.option("on_error"))
        case "team":
            think = leads(name, [part.name for part in parts], plan.option("rounds"))
            return TeamSwarm(says(name, think, tools=[double]), *parts, name=f"{name}-swarm")
        case "asker":
            think = leads(name, [part.name for part in parts], plan.option("rounds"))
            return says(name, think, tools=[double, *parts], system_prompt="Ask them.")
        case "handoff":
            hosts = [f"{name}-{n}" for n in range(len(plan.option("edges")))]
            reached: list[frozenset[int]] = plan.option("edges")
            targets = [[hosts[number] for number in sorted(numbers)] for numbers in reached]
            targets[-1] += [part.name for part in parts]
            agents: dict[str, Unit] = {
                host: says(host, passes_on(host, targets[n]), tools=[double], system_prompt=f"{host}!")
                for n, host in enumerate(hosts)
            }
            agents |= {part.name: part for part in parts}
            pairs = [(agents[host], agents[target]) for n, host in enumerate(hosts) for target in targets[n]]
            return HandoffSwarm(*pairs, name=name, history=plan.option("history"), max_handoffs=4)
        case "loop":
            rounds = plan.option("rounds")
            return Loop(parts[0], until=_is_round, max_rounds=rounds, name=name)
        case _:
            reduce: Any = agent(f"{name}-r") if plan.option("reduce") else None
            items = plan.option("items")
            return Map(
                parts[0], over=lambda text: [f"{text[:20]} {n}" for n in range(items)], reduce=reduce, name=name,
                max_parallel=plan.option("max_parallel"), on_error=plan.option("on_error"),
            )  # fmt: skip


def digest_of(output: Any) -> int:
    return sum(map(ord, str(output)))


def _is_round(_: Any, output: Any) -> bool:
    return digest_of(output) % 3 == 0


def _is_odd(_: Any, output: Any) -> bool:
    return digest_of(output) % 2 == 1


_WHEN: dict[str, Any] = {"always": None, "odd": _is_odd}

_agents = st.sampled_from(["plain", "plain", "tool", "frail"]).map(lambda m: Plan("agent", options=(("manner", m),)))
_policies = st.sampled_from(["tell", "skip"])


@st.composite
def _graphs(draw: st.DrawFn, parts: st.SearchStrategy[Plan]) -> Plan:
    members = draw(st.lists(parts, min_size=2, max_size=4))
    pairs = [(a, b) for b in range(len(members)) for a in range(b)]
    chosen = draw(st.lists(st.sampled_from(pairs), min_size=1, max_size=5, unique=True))
    edges = tuple((pair, draw(st.sampled_from(["always", "odd"]))) for pair in chosen)
    return Plan("graph", tuple(members), (("edges", edges), ("on_error", draw(_policies))))


@st.composite
def _handoffs(draw: st.DrawFn, parts: st.SearchStrategy[Plan]) -> Plan:
    size = draw(st.integers(2, 3))
    edges = tuple(
        frozenset(draw(st.sets(st.integers(0, size - 1).filter(lambda t, n=n: t != n), min_size=1)))
        for n in range(size)
    )
    history = draw(st.sampled_from(["full", 3, "summary", "none"]))
    return Plan("handoff", tuple(draw(st.lists(parts, max_size=1))), (("edges", edges), ("history", history)))


def _teams(parts: st.SearchStrategy[Plan]) -> st.SearchStrategy[Plan]:
    members = st.lists(parts, min_size=1, max_size=3).map(tuple)
    counts = st.integers(1, 3)
    return st.one_of(
        members.map(lambda p: Plan("chain", p)),
        st.tuples(st.lists(parts, min_size=2, max_size=3).map(tuple), _policies).map(
            lambda pair: Plan("side", pair[0], (("on_error", pair[1]),))
        ),
        _graphs(parts),
        st.tuples(st.sampled_from(["team", "asker"]), members, st.integers(1, 2)).map(
            lambda three: Plan(three[0], three[1], (("rounds", three[2]),))
        ),
        _handoffs(parts),
        st.tuples(parts, counts).map(lambda pair: Plan("loop", (pair[0],), (("rounds", pair[1]),))),
        st.tuples(parts, counts, st.sampled_from([None, 1, 2]), st.booleans(), _policies).map(
            lambda five: Plan(
                "map",
                (five[0],),
                (("items", five[1]), ("max_parallel", five[2]), ("reduce", five[3]), ("on_error", five[4])),
            )
        ),
    )


plans = st.recursive(_agents, _teams, max_leaves=6).filter(
    lambda plan: plan.kind != "agent" and plan.agents <= MOST_AGENTS
)

_checks = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
_LIMIT: dict[str, Any] = {"conf": {"max_steps": None}}


@given(plan=plans)
@_checks
def test_stepping_says_what_running_says(plan: Plan) -> None:
    async def check() -> None:
        whole, _ = await ran(build(plan), **_LIMIT)
        assert_whole(whole.record)
        by_step = await stepped(build(plan), **_LIMIT)
        assert_whole(by_step.record)
        assert outcome(by_step) == outcome(whole)

    asyncio.run(check())


@given(plan=plans, data=st.data())
@_checks
def test_killed_and_resumed_says_what_running_says(plan: Plan, data: st.DataObject) -> None:
    async def check() -> None:
        whole, _ = await ran(build(plan), **_LIMIT)
        once, ends, _ = await streamed(build(plan))
        assert outcome(once) == outcome(whole)
        for cut in ends:
            again, _ = await revived(build(plan), once.record, cut)
            assert_whole(again.record, complete=False)
            assert outcome(again) == outcome(whole)
        record = once.record
        while ends:  # killed again and again
            again, ends = await revived(build(plan), record, data.draw(st.sampled_from(ends)))
            assert outcome(again) == outcome(whole)
            record = again.record

    asyncio.run(check())


@given(plan=plans)
@_checks
def test_forked_at_every_step_says_what_running_says(plan: Plan) -> None:
    async def check() -> None:
        whole, _ = await ran(build(plan), **_LIMIT)
        for at in range(len(whole.record.calls) + (whole.status == "finished")):
            fork = await Runners.fork(whole, swarm=build(plan), at=at)
            assert outcome(fork) == outcome(whole)
            assert fork.record.complete

    asyncio.run(check())


@given(plan=plans)
@_checks
def test_a_replay_finds_no_difference(plan: Plan) -> None:
    async def check() -> None:
        whole, _ = await ran(build(plan), **_LIMIT)
        report = await Runners.replay(whole, swarm=build(plan))
        assert report.difference is None
        report = await Runners.replay(whole)
        assert report.difference is None

    asyncio.run(check())


@given(plan=plans)
@_checks
def test_every_prefix_is_a_valid_state(plan: Plan) -> None:
    async def check() -> None:
        whole, _ = await ran(build(plan), **_LIMIT)
        events = whole.record.events
        follower = Trajectory(whole.record.id)
        for number, event in enumerate(events):
            follower.apply(event)
            assert calls(follower) <= calls(whole.record)
            if number % 7 == 0:
                other = Trajectory.of(whole.record.id, events[: number + 1])
                assert (other.status, other.state, other.messages) == (
                    follower.status,
                    follower.state,
                    follower.messages,
                )
        assert calls(follower) == calls(whole.record)

    asyncio.run(check())
