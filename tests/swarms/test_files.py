"""Agents and teams in YAML: what is written is read back the same, and a bad file says where it is bad."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aworld.agents.files import AGENT, dump, load
from aworld.agents.llm_agent import Agent
from aworld.agents.patterns import FunctionAgent, function_agent, majority_vote, solver_verifier
from aworld.config.conf import AgentConfig
from aworld.core.agent.base import BaseAgent
from aworld.core.agent.flow import Topology, Unit, units_of
from aworld.core.agent.swarm import Edge, HandoffSwarm, Loop, Map, Swarm, TeamSwarm, WorkflowNode, WorkflowSwarm
from aworld.core.exceptions import ConfigError
from aworld.core.tool.func_to_tool import tool
from aworld.models import FunctionModel
from aworld.runner import Runners
from tests.swarms import rules

# What a unit is, read off its own attributes: equal for equal settings and structure.


def described(unit: Unit) -> dict[str, Any]:
    return {name: _facts(member) for name, member in units_of(unit).items()} | {"": unit.name}


def _facts(unit: Unit) -> dict[str, Any]:
    if isinstance(unit, Agent):
        conf = unit.conf.llm_config.model_dump(exclude={"llm_api_key", "llm_headers"})
        tools = [(getattr(item, "name", ""), type(item)) for item in unit.toolkit.items]
        said = (unit.desc, unit.system_prompt, unit.output_type, unit.output_retries, unit.max_steps, unit._model)
        return {"agent": said, "conf": conf, "tools": tools, "tool_names": unit.toolkit.tool_names}
    if isinstance(unit, FunctionAgent):
        return {"function": (unit.function, unit.desc)}
    assert isinstance(unit, Topology)
    facts: dict[str, Any] = {"kind": type(unit), "desc": unit.desc, "state": unit.reducers}
    for name, value in vars(unit).items():
        if name not in ("items", "graph", "tools_of", "reducers", "_callees", "_description"):
            facts[name] = _named(value)
    if isinstance(unit, WorkflowSwarm):
        facts["places"] = [
            (p.id, p.unit.name, p.node.input, p.node.on_error, p.node.retries, p.before, p.after)
            for p in unit.graph.vertices.values()
        ]
    return facts


def _named(value: Any) -> Any:
    if isinstance(value, BaseAgent | Topology):
        return value.name
    if isinstance(value, list | tuple):
        return [_named(item) for item in cast("list[Any]", value)]
    return value


# Any agents and teams

_texts = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20)
_some_text = st.none() | _texts
_confs = st.none() | st.builds(
    AgentConfig,
    llm_model_name=_some_text,
    llm_provider=st.sampled_from((None, "openai", "anthropic")),
    llm_temperature=st.none() | st.floats(0, 2),
    llm_stop=st.none() | st.lists(_texts, max_size=2),
    llm_api_key=_some_text,
    output_retries=st.integers(0, 5),
    params=st.dictionaries(_texts, st.none() | st.booleans() | st.integers() | _texts, max_size=2),
)


class _Builder:
    """Draws units with names that differ, some of them used again."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.units: list[Unit] = []
        self.count = 0

    def name(self) -> str:
        self.count += 1
        return f"{self.draw(_texts)}{self.count}x"

    def unit(self, depth: int) -> Unit:
        if self.units and self.draw(st.integers(0, 4)) == 0:
            return self.draw(st.sampled_from(self.units))
        kinds = (
            ("agent", "function")
            if depth == 0
            else ("agent", "workflow", "edges", "team", "handoff", "loop", "map", "guard")
        )
        made: Unit = getattr(self, self.draw(st.sampled_from(kinds)))(depth - 1)
        self.units.append(made)
        return made

    def fresh(self, depth: int) -> Unit:
        made = self.agent(depth) if depth <= 0 else self.workflow(depth - 1)
        self.units.append(made)
        return made

    def agent(self, depth: int) -> Agent[None, Any]:
        draw = self.draw
        tools: list[Any] = draw(st.lists(st.sampled_from((rules.lookup, rules.add)), unique=True, max_size=2))
        if depth > 0 and draw(st.booleans()):
            tools.append(self.fresh(0))
        return Agent(
            self.name(), draw(_confs), draw(_some_text), system_prompt=draw(_some_text), tools=tools,
            tool_names=draw(st.sampled_from(((), ("swarm-files",)))),
            output_type=draw(st.sampled_from((None, rules.Report, int))),
            max_steps=draw(st.none() | st.integers(1, 9)),
            model=draw(st.sampled_from((None, "openai:gpt-4o"))),
        )  # fmt: skip

    def function(self, depth: int) -> Unit:
        return function_agent(rules.shout, self.name(), self.draw(_some_text))

    def options(self) -> dict[str, Any]:
        state = self.draw(st.sampled_from(({}, {"seen": rules.union})))
        return {"name": self.name(), "desc": self.draw(_some_text), "state": state}

    def node(self, unit: Unit) -> Any:
        draw = self.draw
        if draw(st.booleans()):
            return unit
        return WorkflowNode(
            unit, input=draw(st.sampled_from((None, rules.all_of))), retries=draw(st.integers(0, 2)),
            on_error=draw(st.sampled_from((None, "fail", "skip", "tell"))), name=draw(st.none() | st.just(self.name())),
        )  # fmt: skip

    def workflow(self, depth: int) -> Unit:
        def group(level: int) -> Any:
            kind = self.draw(st.integers(0, 3)) if level else 0
            if kind < 2:
                return self.node(self.unit(max(depth, 0)))
            members = [group(level - 1) for _ in range(self.draw(st.integers(1, 3)))]
            return members if kind == 2 else tuple(members)

        items = [group(2) for _ in range(self.draw(st.integers(1, 3)))]
        if all(isinstance(item, tuple) for item in items):  # pairs only would be edges
            items.insert(0, self.agent(0))
        return WorkflowSwarm(
            *items, **self.options(),
            on_error=self.draw(st.sampled_from(("fail", "skip", "tell"))),
            answer=self.draw(st.sampled_from((None, rules.all_of))),
        )  # fmt: skip

    def edges(self, depth: int) -> Unit:
        ends = [self.node(self.fresh(max(depth, 0))) for _ in range(self.draw(st.integers(2, 4)))]
        pairs = [(i, j) for j in range(len(ends)) for i in range(j)]
        chosen = self.draw(st.lists(st.sampled_from(pairs), min_size=1, unique=True))
        whens = [self.draw(st.sampled_from((None, rules.good))) for _ in chosen]
        edges = [
            (ends[i], ends[j]) if when is None else Edge(ends[i], ends[j], when) for (i, j), when in zip(chosen, whens)
        ]
        return Swarm(*edges, **self.options())

    def team(self, depth: int) -> Unit:
        return TeamSwarm(
            self.agent(0), *(self.fresh(max(depth, 0)) for _ in range(self.draw(st.integers(1, 3)))), **self.options()
        )

    def handoff(self, depth: int) -> Unit:
        agents = [self.agent(0) for _ in range(self.draw(st.integers(2, 4)))]
        pairs = self.draw(st.lists(st.permutations(agents).map(lambda p: (p[0], p[1])), min_size=1, unique=True))
        history = self.draw(st.sampled_from(("full", "summary", "none", 0, 3)))
        root = self.draw(st.sampled_from([agent for pair in pairs for agent in pair]))
        return HandoffSwarm(*pairs, root_agent=root, history=history, max_handoffs=7, max_repeats=2, **self.options())

    def loop(self, depth: int) -> Unit:
        draw = self.draw
        return Loop(
            self.unit(max(depth, 0)), until=rules.good, must_hold=draw(st.booleans()),
            max_rounds=draw(st.integers(1, 9)), input=draw(st.sampled_from((None, rules.longer))),
            answer=draw(st.sampled_from((None, rules.yes))),
            name=self.name(), desc=draw(_some_text),
        )  # fmt: skip

    def map(self, depth: int) -> Unit:
        over = self.draw(st.sampled_from((None, rules.lines)))
        return Map(
            self.unit(max(depth, 0)), over=over, times=None if over else self.draw(st.none() | st.integers(1, 5)),
            reduce=self.draw(st.sampled_from((None, rules.first))) if self.draw(st.booleans()) else self.unit(0),
            max_parallel=self.draw(st.none() | st.integers(1, 5)), name=self.name(),
            on_error=self.draw(st.sampled_from(("fail", "skip", "tell"))),
        )  # fmt: skip

    def guard(self, depth: int) -> Unit:
        accept: dict[str, Any] = self.draw(st.sampled_from(({}, {"accept": rules.yes})))
        return solver_verifier(self.unit(max(depth, 0)), self.agent(0), max_rounds=3, name=self.name(), **accept)


@st.composite
def units(draw: st.DrawFn) -> Unit:
    return _Builder(draw).unit(draw(st.integers(0, 3)))


@given(units())
@settings(max_examples=100, deadline=None)
def test_what_is_written_is_read_back_the_same(unit: Unit) -> None:
    text = dump(unit)
    again = load(text)
    assert described(again) == described(unit)
    assert again.definition == unit.definition
    assert dump(again) == text


def test_a_key_is_left_out_of_what_is_written_and_refused_in_what_is_read(tmp_path: Path) -> None:
    conf = AgentConfig(llm_model_name="gpt-4o", llm_api_key="sk-secret", llm_headers={"X-Key": "hush"})
    text = dump(Agent("a", conf))
    assert "gpt-4o" in text
    assert "sk-secret" not in text
    assert "hush" not in text
    path = tmp_path / "team.yaml"
    path.write_text(text.replace("llm_model_name: gpt-4o", "llm_model_name: gpt-4o\n      llm_api_key: sk-secret"))
    with pytest.raises(ConfigError, match=r"team.yaml, line 7: Agent 'a': llm_api_key .* set LLM_API_KEY") as raised:
        load(path)
    assert "sk-secret" not in str(raised.value)


def test_every_setting_of_an_agent_can_be_written() -> None:
    """When an agent learns a new argument, files must learn it too."""
    words = set(AGENT) - {"type", "options", "model_object"}
    other_words = {"instructions", "fallback_on"}  # a system_prompt that is code; when the next of model= is asked
    in_conf = {"model_settings", "native_tools"}
    assert set(inspect.signature(Agent).parameters) - {"name", "mcp_config"} - in_conf == words - other_words


def test_how_a_model_is_asked() -> None:
    text = """
    version: 1
    agents:
      a:
        model: ["openai:gpt-4o", "anthropic:claude-x"]
        fallback_on: [server, auth]
        conf: {llm_temperature: 0.2, params: {top_k: 4}, llm_native_tools: [web_search]}
    """
    agent = load(text)
    tools = [{"type": "web_search"}]
    assert agent.definition.llm_config == {"llm_temperature": 0.2, "params": {"top_k": 4}, "llm_native_tools": tools}
    assert agent.definition.model == ("openai:gpt-4o", "anthropic:claude-x")
    assert agent.definition.fallback_on == ("server", "auth")
    assert load(dump(agent)).definition == agent.definition
    with pytest.raises(ConfigError, match=r"line 4: Agent 'a': ModelConfig: llm_native_tools"):
        load("version: 1\nagents:\n  a:\n    conf: {llm_native_tools: [5]}\n")


async def test_a_loaded_team_runs() -> None:
    text = """
    version: 1
    agents:
      shout: {function: "tests.swarms.rules:shout"}
      whisper: {function: "builtins:repr", desc: In quotes}
    swarms:
      both:
        edges: [[shout, whisper], {from: shout, to: again, when: "tests.swarms.rules:good"}]
        nodes: {again: {member: shout, input: "tests.swarms.rules:all_of"}}
    """
    assert (await Runners.run("a good one", swarm=load(text))).answer == "'A GOOD ONE'"  # `good` is in small letters
    assert load(text).name == "both"


EXAMPLE = """\
version: 1
run: newsroom
agents:
  researcher:
    desc: Finds facts
    tools: ["tests.swarms.rules:lookup"]
    conf: {llm_temperature: 0.5}
  writer: {}
  critic: {}
swarms:
  newsroom:
    workflow: [researcher, [writer, {member: critic, retries: 2}], again]
  again:
    loop: writer
    until: tests.swarms.rules:good
    max_rounds: 3
"""

BAD: list[tuple[str, str, str]] = [
    ("version: 1", "version: 9", "line 1: version: 1 is the version that is read here; got 9"),
    ("version: 1\n", "", "line 1: version: 1 is the version"),
    ("agents:", "agent:", "line 3: The file has no 'agent'; did you mean 'agents'?"),
    ("desc: Finds", "descr: Finds", "line 5: Agent 'researcher' has no 'descr'; did you mean 'desc'?"),
    ("llm_temperature", "llm_temperatur", "line 7: .* no setting 'llm_temperatur'; did you mean 'llm_temperature'?"),
    ("0.5", "hot", "line 7: Agent 'researcher': ModelConfig: llm_temperature: Input should be a valid number"),
    ("rules:lookup", "rules:lokup", "line 6: Tool of Agent 'researcher' .* has no 'lokup'"),
    ("rules:lookup", "nowhere.lookup:x", "line 6: .* cannot import"),
    ('["tests.swarms.rules:lookup"]', "lookup", "line 6: tools is a list; got 'lookup'"),
    ("[researcher,", "[resercher,", "line 12: no agent or swarm is named 'resercher'; did you mean 'researcher'?"),
    ("retries: 2", "retry: 2", "line 12: A member has no key 'retry'; did you mean 'retries'?"),
    ("retries: 2", "retries: many", "line 12: WorkflowNode 'critic': retries='many'"),
    ("[researcher,", "[no,", "line 12: a member is text; got False. Put it in quotes"),
    ("loop: writer", "loop: newsroom", "line 14: 'newsroom' would be a member of itself: newsroom → again → newsroom"),
    ("    until: tests.swarms.rules:good\n", "", "line 14: Swarm 'again' needs until: module:function"),
    ("max_rounds: 3", "max_rounds: 0", "line 16: .*max_rounds=0; give a whole number from 1"),
    ("max_rounds: 3", "max_rounds: 3\n    max_rounds: 4", "line 17: 'max_rounds' stands here twice, first in line 16"),
    ("max_rounds: 3", "map: writer", "line 14: swarm 'again' is one of .*; here is loop and map"),
    ("    loop: writer", "    desc: nothing", "line 14: swarm 'again' is one of .*; here is none of them"),
    ("  critic: {}", "  critic: {}\n  idle: {}", "line 10: nobody names 'idle'; give it a place or remove it"),
    ("  again:\n", "  writer:\n", "line 13: 'writer' is an agent already; rename one"),
    ("  critic: {}", "  critic: []", "line 9: 'critic' is a mapping"),
    ("  critic: {}", "  critic: {", "line 11: this is not YAML"),
    ("  critic: {}", "  7: {}", "line 9: a key must be text: put 7 in quotes"),
    ("run: newsroom", "run: newsrom", "line 2: no agent or swarm is named 'newsrom'; did you mean 'newsroom'?"),
]  # fmt: skip


@pytest.mark.parametrize(("right", "wrong", "told"), BAD)
def test_a_bad_file_says_the_line_and_the_remedy(right: str, wrong: str, told: str) -> None:
    assert EXAMPLE.count(right) >= 1
    load(EXAMPLE)
    with pytest.raises(ConfigError, match=told):
        load(EXAMPLE.replace(right, wrong, 1))


def test_a_file_without_run_has_one_member_that_nobody_names(tmp_path: Path) -> None:
    assert load(EXAMPLE.replace("run: newsroom\n", "")).name == "newsroom"
    with pytest.raises(ConfigError, match="say which member is run, such as run: b"):
        load("version: 1\nagents: {a: {}, b: {}}\n")
    with pytest.raises(ConfigError, match=r"missing\.yaml: cannot be read"):
        load(tmp_path / "missing.yaml")


@pytest.mark.parametrize("text", ["a: &a [*a]", "[" * 5000, "a: !!python/object:os.system {}", "\x00", "- 1", "7", ""])
def test_what_is_no_file_of_agents_is_told_so(text: str) -> None:
    with pytest.raises(ConfigError):
        load(text)


def test_aliases_cannot_blow_a_file_up() -> None:
    layers = "".join(f"  x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]\n" for n in range(1, 30))
    with pytest.raises(ConfigError, match="no 'zzz'"):
        load(f"version: 1\nzzz:\n  x0: &x0 [1]\n{layers}")


def local(text: str) -> str:
    return text


@tool(name="other_name")
def decorated(text: str) -> str:
    """Say it."""
    return text


def test_what_cannot_be_written_names_the_member_and_the_remedy() -> None:
    def inner(text: str) -> str:
        """Say it."""
        return text

    class Local(BaseAgent):
        """A rule-based agent that nobody else can import."""

    a, b = Agent("ann"), Agent("ben")
    bare = cast("Any", decorated.__wrapped__)
    cases: list[tuple[Unit, str]] = [
        (Agent("ann", tools=[inner]), r"Tool 'inner' of agent 'ann'.*Only a function that stands in a module"),
        (Agent("ann", tools=[tool(name="renamed")(bare)]), "Tool 'renamed' of agent 'ann'"),
        (Agent("ann", model=FunctionModel(lambda request: "x")), "Agent 'ann' has a model object"),
        (Agent("ann", output_type=list[int]), "output_type of agent 'ann'"),
        (Loop(a, until=lambda state, output: True, name="rounds"), "until= of 'rounds'.*a lambda.*move it there"),
        (Map(a, over=lambda text: [text], name="many"), "over= of 'many'"),
        (Swarm(Edge(a, b, lambda state, output: True)), "when= from 'ann' to 'ben'"),
        (Swarm(a, WorkflowNode(b, input=lambda given: "x"), name="flow"), "input= of 'ben' in 'flow'"),
        (Swarm([a, b], state={"seen": lambda one, other: one}, name="flow"), "state= of 'flow', 'seen'"),
        (function_agent(inner), "function= of 'inner'.*inside a function"),
        (majority_vote(a, n=3), "reduce= of 'ann-vote'"),
        (Swarm(a, Local("own")), "The class of 'own'.*inside a function.*move it there"),
    ]
    for unit, told in cases:
        with pytest.raises(ConfigError, match=told):
            dump(unit)
    assert "tests.swarms.test_files:decorated" in dump(Agent("ann", tools=[decorated, local]))
