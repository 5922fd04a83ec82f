"""Definitions: agents and teams as data that can be compared, stored, sent elsewhere and made again."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, cast

import pytest

from aworld.agents.definitions import diff, secrets_of, travels, unit_of
from aworld.agents.files import dump, load
from aworld.agents.llm_agent import Agent
from aworld.agents.patterns import Guard, function_agent, majority_vote
from aworld.config.conf import AgentConfig
from aworld.core.agent.flow import Unit, units_of
from aworld.core.agent.swarm import Edge, HandoffSwarm, Loop, Map, Swarm, TeamSwarm, WorkflowNode
from aworld.core.definition import AgentDefinition, TeamDefinition
from aworld.core.exceptions import ConfigError
from aworld.core.tool.func_to_tool import tool
from aworld.models import ScriptedModel
from aworld.models.doubles import call
from aworld.runner import Runners
from tests.agents import code


def newsroom() -> Unit:
    """A team of many kinds."""
    conf = AgentConfig(llm_model_name="m", llm_temperature=0.2, output_retries=3)
    helper = Agent("helper", desc="Helps.")
    writer = Agent("writer", conf, system_prompt="Write.", tools=[code.lookup, helper], output_type=code.Report)
    critic = code.Counter("critic", 2, words=code.shout)
    short = Loop(Guard(writer, Agent("judge"), max_rounds=2), until=code.is_long, name="short")
    end = WorkflowNode(Agent("end"), retries=1)
    flow = Swarm((short, critic), Edge(short, end, code.is_long), name="flow")
    desk = TeamSwarm(Agent("chief"), HandoffSwarm((Agent("a"), Agent("b")), history=2), name="desk")
    return Swarm(flow, [desk, Map(function_agent(code.shout), times=2)], name="newsroom")


ALONE = """
import sys
from tests.agents.test_definitions import newsroom
print(newsroom().definition.digest)
"""


def test_a_digest_is_the_same_in_every_process() -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == newsroom().definition.digest
    assert Agent("a").definition.digest == "52f6c4e0a5943dcd", "what is stored by digest would not be found again"


def test_a_digest_differs_when_anything_does() -> None:
    agents = [
        Agent("a"), Agent("b"), Agent("a", desc="D"), Agent("a", system_prompt="S"), Agent("a", tools=[code.lookup]),
        Agent("a", AgentConfig(llm_temperature=0.1)), Agent("a", output_type=code.Report), Agent("a", max_steps=3),
        Agent("a", tools=[Agent("c")]), Agent("a", tools=[Agent("c", desc="D")]), code.Counter("a", 1),
    ]  # fmt: skip
    teams = [Swarm(agent, Agent("z"), name="t") for agent in agents]
    digests = {unit.definition.digest for unit in (*agents, *teams)}
    assert len(digests) == len(agents) + len(teams)
    assert agents[0].definition.digest == Agent("a").definition.digest
    assert agents[0].with_system_prompt("S").definition.digest == agents[3].definition.digest


def test_the_log_has_each_body_once_and_members_by_digest() -> None:
    team = newsroom()
    definitions = {name: (unit.described().digest, unit.settings()) for name, unit in units_of(team).items()}
    assert json.loads(json.dumps(definitions)) == {name: list(pair) for name, pair in definitions.items()}
    _, body = definitions["desk"]
    assert body["members"]["chief"] == definitions["chief"][0]
    assert definitions["writer"][1]["units"] == {"helper": definitions["helper"][0]}
    assert team.described() is team.described(), "made once, as teams are values"


def test_what_changed_is_told_by_its_path() -> None:
    before = cast("Swarm", newsroom()).definition
    flow = before.members["flow"]
    short = flow.members["short"]
    changed = short.model_copy(update={"options": {**short.options, "max_rounds": 7}, "desc": "Shorter."})
    flow = flow.model_copy(update={"members": {**flow.members, "short": changed}})
    after = before.model_copy(update={"members": {**before.members, "flow": flow}})
    assert {str(change) for change in diff(before, after)} == {
        "members.flow.members.short.options.max_rounds: None → 7",
        "members.flow.members.short.desc: None → 'Shorter.'",
    }
    assert diff(before, before) == []
    assert before.digest != after.digest


OWN = [
    code.Counter("c", 3, tools=[code.lookup]),
    code.Polite("p", "now", system_prompt="S"),
    code.Twice(Agent("a"), [Agent("b")]),
]


@pytest.mark.parametrize("unit", [newsroom(), *OWN])
def test_yaml_is_read_back_to_an_equal_definition(unit: Unit) -> None:
    text = dump(unit)
    again = load(text)
    assert again.definition == unit.definition
    assert again.definition.digest == unit.definition.digest
    assert dump(unit.definition) == text


def test_a_unit_is_made_of_its_definition_as_text() -> None:
    team = newsroom()
    text = team.definition.model_dump_json()
    again = unit_of(TeamDefinition.model_validate_json(text))
    assert again.definition == team.definition
    assert again.definition.digest == team.definition.digest
    assert {name: type(unit) for name, unit in units_of(again).items()} == {
        name: type(unit) for name, unit in units_of(team).items()
    }
    assert units_of(again)["critic"].words is code.shout  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]


async def test_an_agent_of_a_definition_does_the_same() -> None:
    agent = Agent("a", system_prompt="S", tools=[code.lookup], output_type=code.Report)
    script = [call("lookup", word="tea"), '{"title": "tea"}']
    agents = agent, Agent.of(agent.definition)
    first, second = [await Runners.run("what?", one.with_model(ScriptedModel(script))) for one in agents]
    assert second.answer == first.answer == code.Report(title="tea")
    assert [row["state"] for row in second.trajectory] == [row["state"] for row in first.trajectory]


async def test_a_changed_definition_takes_the_rest_from_a_living_agent() -> None:
    """Such as evolution does: another prompt, the same model object, key and closure."""
    found: list[str] = []

    def remember(word: str) -> str:
        """Keep it."""
        found.append(word)
        return "kept"

    conf = AgentConfig(llm_api_key="sk-1", llm_headers={"X": "sk-2"})
    agent = Agent("a", conf, model=ScriptedModel([call("remember", word="tea"), "ok"]), tools=[remember])
    definition = agent.definition.model_copy(update={"system_prompt": "Be brief."})
    with pytest.raises(ConfigError, match="inside a function"):
        Agent.of(definition)
    other = Agent.of(definition, like=agent)
    response = await Runners.run("x", other)
    assert (response.answer, found) == ("ok", ["tea"])
    assert response.trajectory[0]["state"]["messages"][0]["content"] == "Be brief."
    assert (other.conf.llm_api_key, other.conf.llm_headers) == ("sk-1", {"X": "sk-2"})


def test_keys_are_in_no_body_and_travel_apart() -> None:
    conf = AgentConfig(
        llm_model_name="m", llm_api_key="sk-1", llm_headers={"X": "sk-2"}, llm_base_url="http://u:sk-3@h/v1?key=sk-4"
    )
    servers = {
        "disk": {
            "command": "serve",
            "args": ["--token", "sk-5", "--api-key=sk-6"],
            "env": {"KEY": "sk-7", "ANY": "${OK}"},
        },
        "net": {"url": "http://h/mcp?key=sk-8", "headers": {"Authorization": "Bearer sk-9", "X": "${OK:-sk-10}"}},
    }
    agent = Agent("a", conf, mcp_config={"mcpServers": servers})
    shown = repr(agent.definition) + repr(agent.settings()) + agent.definition.model_dump_json() + dump(agent)
    assert "sk-" not in shown
    assert "${OK}" in shown
    with pytest.raises(ConfigError, match=r"MCP server 'disk' of agent 'a' has a key written out.*\$\{NAME\}"):
        Agent.of(agent.definition)
    again = unit_of(travels(agent), secrets=secrets_of(agent))
    assert isinstance(again, Agent)
    assert again.definition == agent.definition
    assert (again.conf.llm_api_key, again.conf.llm_base_url) == ("sk-1", "http://u:sk-3@h/v1?key=sk-4")
    assert secrets_of(again) == secrets_of(agent)


def test_what_is_no_data_is_recorded_and_refused_with_its_name() -> None:
    def inner(text: str) -> str:
        """Say it."""
        return text

    class Local(code.Counter):
        """Nobody else finds it."""

    a, b = Agent("ann"), Agent("ben")
    cases: list[tuple[Unit, str]] = [
        (Agent("ann", tools=[inner]), "Tool 'inner' of agent 'ann'.*inside a function.*module:object"),
        (Agent("ann", tools=[tool(name="other")(code.shout)]), "Tool 'other' of agent 'ann'.*another object"),
        (Agent("ann", model=ScriptedModel(["x"])), "Agent 'ann' has a model object .ScriptedModel.; name the model"),
        (Agent("ann", output_type=list[int]), "output_type of agent 'ann'.*another object"),
        (Swarm(Edge(a, b, lambda state, output: True)), "when= from 'ann' to 'ben'.*a lambda.*move it there"),
        (Loop(a, until=lambda state, output: True), "until= of 'ann-loop'.*a lambda"),
        (majority_vote(a, n=3), "reduce= of 'ann-vote'"),
        (Local("own", 1), "The class of 'own'.*inside a function"),
    ]  # fmt: skip
    for unit, words in cases:
        definition = unit.definition
        assert len(definition.digest) == 16, "the log says who acted all the same"
        for refused in (lambda: travels(unit), lambda: dump(unit)):  # noqa: B023
            with pytest.raises(ConfigError, match=words):
                refused()
        with pytest.raises(ConfigError, match=r"Definition of .*(a lambda|inside a function|no name in a module)"):
            unit_of(definition)


def test_the_main_program_is_refused() -> None:
    """Unlike multiprocessing, which imports it under another name: what it would then be is another object."""
    script = (
        "from aworld.agents.definitions import travels\nfrom aworld.agents.llm_agent import Agent\n"
        "def look(word: str) -> str:\n    'Look.'\n    return word\n"
        "try:\n    travels(Agent('a', tools=[look]))\nexcept ValueError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert "Tool 'look' of agent 'a', 'look', is part of the main program, which nobody else can import." in done.stdout


def test_what_a_definition_names_and_nobody_has_is_told_with_the_nearest() -> None:
    team = cast("Swarm", newsroom()).definition
    flow = team.members["flow"]
    critic = flow.members["critic"].model_copy(update={"type": "tests.agents.code:Conter"})
    flow = flow.model_copy(update={"members": {**flow.members, "critic": critic}})
    with pytest.raises(ConfigError, match=r"Definition of newsroom\.flow\.critic: .*did you mean 'Counter'\?"):
        unit_of(team.model_copy(update={"members": {**team.members, "flow": flow}}))
    changes: list[tuple[Any, str]] = [
        ({"type": "Agnet"}, "type='Agnet' is not known; did you mean 'Agent'"),
        ({"tools": ["tests.agents.code:lokup"]}, "Tool of Agent 'a' .*did you mean 'lookup'"),
        ({"tools": ["nowhere.at:all"]}, "cannot import 'nowhere.at'"),
        ({"options": {"temper": 1}}, "Agent 'a' has no argument 'temper'"),
        ({"type": "tests.agents.code:Report"}, "is no class of BaseAgent"),
        (
            {"type": "tests.agents.code:Stubborn"},
            "Stubborn makes another 'a' of its definition: name: 'a' → 'stubborn'",
        ),
    ]
    for change, words in changes:
        with pytest.raises(ConfigError, match=words):
            unit_of(AgentDefinition.model_validate({"name": "a", "type": "Agent", **change}))
    two: dict[str, Any] = {
        "one": AgentDefinition(name="x", type="Agent"),
        "two": AgentDefinition(name="x", type="Agent", desc="D"),
    }
    with pytest.raises(ConfigError, match="two different definitions are named 'x'"):
        unit_of(TeamDefinition(name="t", type="TeamSwarm", parts=["one", "two"], members=two))


def test_a_definition_is_a_value() -> None:
    with pytest.raises(ConfigError, match="has no setting 'sytem_prompt'; did you mean 'system_prompt'"):
        AgentDefinition(**cast("Any", {"name": "a", "type": "Agent", "sytem_prompt": "x"}))
    definition = Agent("a").definition
    with pytest.raises(ConfigError, match="frozen"):
        definition.name = "b"
    with pytest.raises(ConfigError, match=r"'c' is of type 'tests.agents.code:Counter', not Agent: use unit_of"):
        Agent.of(code.Counter("c", 1).definition)
    assert isinstance(unit_of(code.Counter("c", 1).definition), code.Counter)
