"""What cannot work is an error when a team is built: it names the member and says what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from aworld.agents.llm_agent import Agent
from aworld.agents.patterns import best_of_n, debate, function_agent, majority_vote, solver_verifier
from aworld.core.agent.flow import Unit
from aworld.core.agent.swarm import (
    Edge,
    GraphBuildType,
    HandoffSwarm,
    Loop,
    Map,
    Swarm,
    TeamSwarm,
    WorkflowNode,
    WorkflowSwarm,
)
from aworld.core.exceptions import ConfigError

a, b, c = Agent("ann"), Agent("ben"), Agent("cleo")
same = Agent("ann")
chinese = Agent("研究")
odd = Agent("a b")
odd_too = Agent("a+b")


def never(state: Any, output: Any) -> bool:
    return False


def other(name: str) -> Any:
    """Arguments that a type checker would refuse."""
    return {"text": "ann", "number": 7, "agent type": Agent, "none": None}[name]


CASES: dict[str, tuple[Callable[[], Unit], str]] = {
    # Workflows
    "empty": (lambda: Swarm(), r"A swarm needs members: Swarm\(agent, ...\)"),
    "empty topology": (lambda: Swarm(topology=[]), "A swarm needs members"),
    "both ways": (lambda: Swarm(a, topology=[b]), r"as arguments or as topology=\[...\], not both"),
    "cycle": (
        lambda: Swarm((a, b), (b, a), name="flow"),
        "'flow' has a cycle through 'ann', 'ben'.*Loop.*HandoffSwarm",
    ),
    "own successor": (lambda: Swarm((a, a)), "cycle through 'ann'"),
    "empty group": (lambda: Swarm(a, [], name="flow"), "'flow' has an empty group; leave it out or put members in"),
    "empty serial group": (lambda: Swarm(a, [b, ()]), "empty group"),
    "text as a member": (lambda: Swarm(a, other("text")), "Swarm 'workflow' takes agents and swarms; got 'ann'"),
    "class as a member": (lambda: Swarm(other("agent type")), "takes agents and swarms; got <class"),
    "unknown end of an edge": (lambda: Swarm((a, b), (b, "cleo")), "takes agents and swarms; got 'cleo'"),
    "two of one name": (lambda: Swarm(a, b, same), "Two members of .* are named 'ann'; give one another name="),
    "two of one name, far apart": (lambda: Swarm(a, TeamSwarm(b, Swarm(c, same))), "are named 'ann'"),
    "two of one name, one a tool": (lambda: Swarm(a, Agent("d", tools=[same])), "are named 'ann'"),
    "named like its swarm": (lambda: Swarm(a, b, name="ann"), "are named 'ann'"),
    "unknown option": (
        lambda: Swarm(a, on_eror="skip"),
        "WorkflowSwarm has no option 'on_eror'; did you mean 'on_error'",
    ),
    "strange option": (lambda: Swarm(a, zzz=1), "no option 'zzz'; known are: answer, on_error, state"),
    "unknown policy": (
        lambda: Swarm(a, on_error="ignore", name="flow"),
        "WorkflowSwarm 'flow': on_error='ignore'; give one of 'fail', 'skip', 'tell'.",
    ),
    "unknown kind": (
        lambda: Swarm(a, build_type="graph"),
        "build_type='graph' is not known; known are: workflow, team, handoff",
    ),
    "answer": (lambda: Swarm(a, answer=7), "WorkflowSwarm: answer=7; give a function or None"),
    "node policy": (
        lambda: Swarm(WorkflowNode(a, on_error=other("text"))),
        "WorkflowNode 'ann': on_error='ann'; give one of 'fail', 'skip', 'tell' or None",
    ),
    "node retries": (
        lambda: Swarm(WorkflowNode(a, retries=-1)),
        "WorkflowNode 'ann': retries=-1; give",
    ),
    "node input": (
        lambda: Swarm(WorkflowNode(a, input=other("number"))),
        "WorkflowNode 'ann': input=7; give a function",
    ),
    "condition": (lambda: Swarm(Edge(a, b, when=other("number"))), "Edge 'ann': when=7; give a function"),
    # Teams
    "no members": (lambda: TeamSwarm(a), r"has a leader, 'ann', and no members: TeamSwarm\(leader, member"),
    "leader is a swarm": (
        lambda: TeamSwarm(Swarm(a, name="flow"), b),
        "leader of a team is an agent.*'flow' is a swarm",
    ),
    "stranger in a team": (lambda: TeamSwarm(a, other("text")), "TeamSwarm takes agents and swarms; got 'ann'"),
    "list in a team": (lambda: TeamSwarm(a, [b, c]), "TeamSwarm takes agents and swarms; got ..Agent"),
    "team option": (
        lambda: TeamSwarm(a, b, root_agnet=a),
        "TeamSwarm has no option 'root_agnet'; did you mean 'root_agent'",
    ),
    "no provider takes the name": (lambda: TeamSwarm(a, chinese), "No provider accepts '研究' as a name; use letters"),
    "two names that become one": (lambda: TeamSwarm(a, odd, odd_too), "offered to a model as 'a_b'; rename one"),
    # Hand-offs
    "no pair": (lambda: HandoffSwarm(a, b), r"HandoffSwarm takes pairs \(from, to\); got <Agent 'ann'>"),
    "three": (lambda: HandoffSwarm((a, b, c)), r"takes pairs \(from, to\)"),
    "no handoffs": (lambda: HandoffSwarm(), "A swarm needs members"),
    "stranger in a pair": (lambda: HandoffSwarm((a, other("text"))), "HandoffSwarm takes agents and swarms; got 'ann'"),
    "a swarm hands over": (lambda: HandoffSwarm((Swarm(a, name="flow"), b)), "'flow' is a swarm: .* only an agent"),
    "pair twice": (lambda: HandoffSwarm((a, b), (a, b)), "the pair 'ann' to 'ben' twice; leave one out"),
    "unknown root": (
        lambda: HandoffSwarm((a, b), root_agent=c),
        "root_agent 'cleo' is in none of the pairs.*add a pair",
    ),
    "root is text": (
        lambda: HandoffSwarm((a, b), root_agent=other("text")),
        "root_agent='ann'; give an agent, a swarm or None",
    ),
    "history": (
        lambda: HandoffSwarm((a, b), history="all"),
        "history='all'; give one of 'full', 'summary', 'none' or a whole number from 0",
    ),
    "history below nothing": (lambda: HandoffSwarm((a, b), history=-1), "history=-1"),
    "max_handoffs": (
        lambda: HandoffSwarm((a, b), max_handoffs=0),
        "max_handoffs=0; give a whole number from 1",
    ),
    "handoff option": (
        lambda: HandoffSwarm((a, b), max_handofs=3),
        "no option 'max_handofs'; did you mean 'max_handoffs'",
    ),
    "no provider takes it": (lambda: HandoffSwarm((a, chinese)), "No provider accepts '研究'"),
    # Loops and maps
    "loop over text": (
        lambda: Loop(other("text"), until=never),
        "Loop: body='ann'; give an agent, a swarm or a list",
    ),
    "loop over nothing": (lambda: Loop((), until=never), "A swarm needs members"),
    "until": (lambda: Loop(a, until=other("none")), "Loop 'ann': until=None; give a function"),
    "loop input": (lambda: Loop(a, until=never, input=other("number")), "Loop 'ann': input=7; give a function"),
    "max_rounds": (lambda: Loop(a, until=never, max_rounds=0), "Loop 'ann': max_rounds=0; give a whole number from 1"),
    "max_rounds as text": (
        lambda: Loop(a, until=never, max_rounds=other("text")),
        "max_rounds='ann'; give",
    ),
    "map over a list": (lambda: Map(a, over=other("number")), "Map 'ann': over=7; give a function"),
    "map of text": (lambda: Map(other("text")), "Map: unit='ann'; give an agent"),
    "over and times": (lambda: Map(a, over=str.split, times=3), "Map 'ann-map': give over= or times=, not both"),
    "times": (lambda: Map(a, times=0), "Map 'ann': times=0; give a whole number from 1"),
    "max_parallel": (lambda: Map(a, max_parallel=0), "Map 'ann': max_parallel=0"),
    "reduce": (lambda: Map(a, reduce=other("number")), "reduce=7; give a function, an agent, a swarm"),
    "map policy": (lambda: Map(a, on_error=other("text")), "Map 'ann': on_error='ann'"),
    "reduced by itself": (lambda: Map(a, reduce=same), "are named 'ann'"),
    # Patterns
    "verifies himself": (lambda: solver_verifier(a, a), "solver_verifier: 'ann' cannot verify itself"),
    "no verifier": (
        lambda: solver_verifier(a, other("none")),
        "Guard 'ann': verifier=None; give an agent",
    ),
    "no rounds": (lambda: solver_verifier(a, b, max_rounds=0), "max_rounds=0; give a whole number from 1"),
    "accept": (lambda: solver_verifier(a, b, accept=other("number")), "accept=7; give a function"),
    "one debater": (lambda: debate([a], b), r"debate needs two debaters or more; got \['ann'\]"),
    "one vote": (lambda: majority_vote([a]), "several agents, or one agent and n="),
    "votes without number": (lambda: majority_vote(a), "majority_vote of 'ann': n, the number of its votes"),
    "scorer": (
        lambda: best_of_n(a, 3, scorer=other("number")),
        "best_of_n 'ann': scorer=7; give a function",
    ),
    "not a function": (lambda: function_agent(other("number")), "FunctionAgent: function=7; give a function"),
    "function of nothing": (
        lambda: function_agent(lambda: 1),
        r"must take \(text\) or \(text, context\); it takes \(\)",
    ),
    # Agents
    "unknown tool name": (
        lambda: Swarm(Agent("dan", tool_names=["nonesuch"])),
        "Agent 'dan' misses a tool.*'nonesuch'",
    ),
    "max_steps": (lambda: Agent("dan", max_steps=0), "Agent 'dan': max_steps=0; give a whole number from 1"),
    "no name": (lambda: Agent(""), "An agent needs a name"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_told_by_name_with_a_remedy(case: str) -> None:
    build, told = CASES[case]
    with pytest.raises(ConfigError, match=told):
        build()


def test_names_that_no_model_sees_may_be_in_any_script() -> None:
    assert Swarm(chinese, a).members() == [chinese, a]
    assert TeamSwarm(chinese, a).leader is chinese


def test_an_agent_may_stand_in_several_places() -> None:
    places = WorkflowSwarm(a, [b, a], a).graph.vertices
    assert list(places) == ["ann", "ben", "ann-2", "ann-3"]


def test_a_swarm_of_one_has_a_name_of_its_own() -> None:
    assert Swarm(a).name != a.name


def test_the_root_agent_may_be_named_among_the_members() -> None:
    team = TeamSwarm(a, b, root_agent=b)
    assert (team.leader, team.team) == (b, [a])
    assert Swarm(a, b, root_agent=a).members() == [a, b]
    assert isinstance(Swarm(a, b, build_type=GraphBuildType.TEAM), TeamSwarm)
