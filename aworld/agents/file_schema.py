"""What a YAML file of agents and teams may say: its sections, the kinds of teams, and their options.

Options are read off the classes, so that a new option of a class is one of the file too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aworld.agents.patterns import Guard
from aworld.core.agent.flow import Topology
from aworld.core.agent.swarm import HandoffSwarm, Loop, Map, TeamSwarm, WorkflowSwarm

VERSION = 1
"""Of the schema; see `aworld.agents.files` for its history."""

TOP = ("version", "run", "agents", "swarms")
AGENT = ("desc", "system_prompt", "model", "conf", "tools", "tool_names", "output_type", "max_steps")
FUNCTION_AGENT = ("function", "desc")
NODE = ("member", "name", "input", "on_error", "retries")
EDGE = ("from", "to", "when")

FUNCTIONS = frozenset({"until", "input", "answer", "over", "accept", "when"})
"""Options that are functions, written as `module:function`. `reduce` is one or a member."""

REQUIRED = inspect.Parameter.empty
"""The default of an option that has none."""

SECRET = ("llm_api_key", "llm_headers")
"""Settings of a model that no file has."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of team: its class, and its options with their defaults."""

    make: Callable[..., Topology]
    options: dict[str, Any]
    attributes: dict[str, str]
    """Where an option is found on a team, when not under its own name."""


def _kind(make: type[Topology], options_of: Any, *, swarm: bool = True, **more: Any) -> Kind:
    parameters = inspect.signature(options_of).parameters.values()
    options = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "name"}
    common: dict[str, Any] = {"desc": None, "state": {}} if swarm else {}
    return Kind(make, {**options, **more, **common}, {"state": "reducers", "start": "root"})


KINDS: dict[str, Kind] = {
    "workflow": _kind(WorkflowSwarm, WorkflowSwarm._build),
    "edges": _kind(WorkflowSwarm, WorkflowSwarm._build, nodes={}),
    "team": _kind(TeamSwarm, TeamSwarm._build),
    "handoff": _kind(HandoffSwarm, HandoffSwarm._build, start=None),
    "loop": _kind(Loop, Loop, swarm=False),
    "map": _kind(Map, Map, swarm=False),
    "solver_verifier": _kind(Guard, Guard, swarm=False),
}
"""By the word with which a file begins them."""
