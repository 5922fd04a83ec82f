"""Definitions: all that makes an agent or a team what it is, as data.

Code in a definition (functions, classes, objects) stands by its name, `module:object`. What has no name that another
process could import is recorded all the same, with `<...>` in its name: the log says who acted, and whoever would
build the agent from it refuses. Keys, the values of headers and other secrets are never in a definition.

The digest of a definition is its version: short, the same in every process, and a team's changes with each member's.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias, cast

from pydantic import ConfigDict, JsonValue

from aworld.config.conf import AgentConfig, Settings
from aworld.core.tool.base import Tool
from aworld.core.tool.toolkit import digest_of

SECRET = "<secret>"
"""Stands in the place of a value that may be a key."""

_MOVE = "Only what stands in a module under a name of its own can be written: move it there."


class UnitDefinition(Settings):
    """What the definitions of agents and teams share. Frozen."""

    model_config = ConfigDict(frozen=True)

    name: str
    type: str
    """`Agent`, `Loop` and so on for the classes of this package, `module:Class` for others."""
    desc: str | None = None
    options: dict[str, JsonValue] = {}
    """Arguments of its class beside the fields, those that differ from their defaults; the class checks them."""

    @property
    def below(self) -> dict[str, Definition]:
        """The definitions that this one is made of, by name."""
        return cast("dict[str, Definition]", getattr(self, "units" if isinstance(self, AgentDefinition) else "members"))

    @property
    def digest(self) -> str:
        """The version: 16 characters that differ when anything in it, or in a member, does."""
        return digest_of(self.record())

    def record(self) -> dict[str, Any]:
        """The body that stores keep under the digest: JSON-able, without defaults, members by their digests."""
        body = self.model_dump(mode="json", exclude_defaults=True)
        digests = {name: part.digest for name, part in self.below.items()}
        return {key: digests if key in ("units", "members") else value for key, value in body.items()}


class AgentDefinition(UnitDefinition):
    """An agent."""

    system_prompt: str | None = None
    instructions: str | None = None
    """A function whose text follows the system prompt in each call, by its name."""
    model: str | tuple[str, ...] | None = None
    """A short form such as `openai:gpt-4o`, or the folder of a policy; several are asked in turn (`Fallback`); None
    leaves it to `llm_config`."""
    fallback_on: str | tuple[str, ...] | None = None
    """Of several: the kinds of errors after which the next is asked, or the function that decides."""
    model_object: str | None = None
    """A model object, by its name; `model` says then only what it calls itself."""
    llm_config: dict[str, JsonValue] = {}
    """Settings of `ModelConfig` that differ from the defaults, without key and headers."""
    output_retries: int = AgentConfig.model_fields["output_retries"].default
    tools: tuple[str | dict[str, JsonValue], ...] = ()
    """`module:function`, the name of one of `units`, or `{tool: NAME, name:, description:, input:}` for such a one."""
    tool_names: tuple[str, ...] = ()
    mcp_servers: dict[str, dict[str, JsonValue]] = {}
    sandbox: str | None = None
    deps_type: str | None = None
    output_type: str | None = None
    output_schema: dict[str, JsonValue] | None = None
    """The JSON schema of `output_type`, as it was when the agent was made."""
    input_guardrails: tuple[str, ...] = ()
    output_guardrails: tuple[str, ...] = ()
    max_steps: int | None = None
    units: dict[str, AgentDefinition | TeamDefinition] = {}
    """Agents and teams among the tools."""


class TeamDefinition(UnitDefinition):
    """A team."""

    parts: list[JsonValue] = []
    """How the members of a swarm stand, by their names: `NAME`, `[side, by, side]`, `{serial: [...]}`,
    `{member: NAME, input:, on_error:, retries:, name:}`, for a leader `{tool: NAME, name:, description:, input:}`, or
    as edges `{from:, to:, when:}`."""
    nodes: dict[str, JsonValue] = {}
    """What edges name that is more than a member: `{member: NAME, ...}`."""
    members: dict[str, AgentDefinition | TeamDefinition]


Definition: TypeAlias = AgentDefinition | TeamDefinition


# Describing a living agent or team


@dataclass(slots=True)
class Description:
    """The definition of a living unit, and what of the unit could not go into it."""

    definition: Any = None
    digest: str = ""
    body: dict[str, Any] = field(default_factory=dict[str, Any])
    objects: dict[str, tuple[Any, str]] = field(default_factory=dict[str, tuple[Any, str]])
    """What no other process can import, by the name that the definition has for it, with the words that refuse it."""
    secrets: dict[str, Any] = field(default_factory=dict[str, Any])
    """Keys, headers and other secrets, by setting."""

    def code(self, value: Any, what: str, same: Callable[[Any], bool] | None = None, remedy: str = _MOVE) -> str:
        """The name of code. `what` begins the refusal; `same` says whether what others find will do as `value`."""
        reference, trouble = _reference(value, same or (lambda other: other is value))
        if trouble is not None:
            while self.objects.get(reference, (value,))[0] is not value:
                reference += "<another>"  # two lambdas of one place share a name
            self.hold(reference, value, f"{what}, {reference.partition(':')[2]!r}, is {trouble}. {remedy}")
        return reference

    def hold(self, reference: str, value: Any, refusal: str) -> None:
        """Note what cannot be imported."""
        self.objects[reference] = (value, refusal)

    def written(self, value: Any, what: str, bare: bool) -> Any:
        """An argument as JSON: members and code by their names, told from text by a key unless `bare`."""
        for kind in (bool, int, float, str):
            if isinstance(value, kind):
                return kind(value)  # plain, where it is of a subclass
        if value is None:
            return None
        if isinstance(value, list | tuple):
            return [self.written(item, what, bare) for item in cast("list[Any]", value)]
        if isinstance(value, Mapping):
            pairs = cast("Mapping[Any, Any]", value).items()
            return {str(key): self.written(item, f"{what}, {key!r}", bare) for key, item in pairs}
        if isinstance(value, Defined):
            return value.name if bare else {"member": value.name}
        name = self.code(value, what)
        return name if bare else {"code": name}


class Defined:
    """Base of agents and teams: a value with a name, whose definition says all that it is.

    The arguments of a subclass's constructor go into the definition as well: each is read from the attribute of its
    name (`self.threshold` for `threshold=`).
    """

    name: str
    desc: str | None
    deps_type: Any = None
    """The class of the dependencies without which an agent cannot work; its tools read them in `ToolContext.deps`."""
    _fields: ClassVar[frozenset[str]] = frozenset({"name", "desc"})
    """Arguments that a definition has as fields."""
    _named: ClassVar[frozenset[str]] = frozenset()
    """Options that are functions or members: a definition has their names alone."""
    _description: Description | None = None

    def described(self) -> Description:
        """The definition with what could not go into it; made once, since agents and teams are values."""
        if self._description is None:
            description = Description()
            description.definition = self._define(description)
            description.body, description.digest = description.definition.record(), description.definition.digest
            self._description = description
        return self._description

    def _define(self, description: Description) -> Definition:
        """The definition, made anew; what it cannot hold is put into `description`."""
        raise NotImplementedError

    @property
    def definition(self) -> Any:
        """All that makes it what it is, as data: an `AgentDefinition` or a `TeamDefinition`."""
        return self.described().definition

    def as_tool(self, *, name: str | None = None, description: str | None = None, input: Any = None) -> Tool:
        """The agent or team as a tool of another agent.

        `name` and `description` are what that one's model sees (default: the own name and `desc`). `input` is what it
        is called with: a pydantic model, a dataclass or a `TypedDict`, of which it gets the JSON; without it, a text.
        Raises ConfigError for a name that providers refuse, and an input that is no object.
        """
        from aworld.core.agent.flow import UnitTool  # teams are made of agents, so they know of each other

        return UnitTool(cast("Any", self), name, description, input)

    def settings(self) -> dict[str, Any]:
        """What the log keeps: the definition's body, JSON-able and without secrets."""
        return self.described().body

    def _head(self, description: Description) -> dict[str, Any]:
        """The fields of every definition."""
        kind = type(self)
        named = kind.__name__ if is_ready(kind) else description.code(kind, f"The class of {self.name!r}")
        options: dict[str, Any] = {}
        for option, default in options_of(kind).items():
            value = getattr(self, option, inspect.Parameter.empty)
            if value is inspect.Parameter.empty:
                reference = options[option] = f"<{option}>"
                remedy = f"keep each argument as an attribute of its name, self.{option}"
                description.hold(
                    reference, None, f"{option}= of {self.name!r} is not kept by {kind.__name__}: {remedy}."
                )
            elif value is not default:
                written = description.written(value, f"{option}= of {self.name!r}", option in self._named)
                if written != default:
                    options[option] = written
        return {"name": self.name, "type": named, "desc": self.desc, "options": options}

    @classmethod
    def _parameters(cls) -> list[inspect.Parameter]:
        """The arguments of the constructor."""
        return list(inspect.signature(cls.__init__).parameters.values())[1:]


def is_ready(kind: type) -> bool:
    """Whether a class of agents or teams is one of this package, which a definition has by its short name."""
    return kind.__module__.startswith("aworld.")


@functools.cache
def options_of(kind: type[Defined]) -> dict[str, Any]:
    """The options of a class of agents or teams with their defaults, `inspect.Parameter.empty` where there is none."""
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {p.name: p.default for p in kind._parameters() if p.kind not in several and p.name not in kind._fields}


def _reference(value: Any, same: Callable[[Any], bool]) -> tuple[str, str | None]:
    """The name of code, and why no other process finds it under that name."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str):
        kind = cast("type[Any]", type(value))
        label = getattr(value, "__name__", getattr(value, "name", ""))
        return f"{kind.__module__}:{kind.__qualname__}<{label}>", "an object that has no name in a module"
    if trouble := why_not(f"{module}:{name}"):
        return f"{module}:{name}", trouble
    there: Any = sys.modules.get(module)
    for part in name.split("."):
        there = getattr(there, part, None)
    if not same(there):
        return f"{module}:{name}<another>", "another object than the one of that name"
    return f"{module}:{name}", None


def why_not(reference: str) -> str | None:
    """Why what a definition names so cannot be imported; None when it can."""
    if reference.startswith("__main__:"):
        return "part of the main program, which nobody else can import"
    if "<" not in reference:
        return None
    if "<locals>" in reference and not reference.endswith("<lambda>"):
        return "inside a function"
    return "a lambda" if "<lambda>" in reference else "an object that has no name in a module"
