"""The contract of an agent.

An agent is a value: it holds settings and tools, never the state of a run, so one instance serves any number of
concurrent tasks. What it decides in a turn is one message: text is its answer, tool calls are its actions. Retries,
limits, capture and streaming are the runtime's.

Write a rule-based agent by giving `BaseAgent.policy`; the language-model agent lives in `aworld.agents.llm_agent`.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Generic, Protocol, Self

import msgspec
from typing_extensions import TypeVar

from aworld.core.checks import UNCHECKED, typed
from aworld.core.common import ActionModel, Observation
from aworld.core.context.base import Context
from aworld.core.definition import AgentDefinition, Defined, Description
from aworld.core.exceptions import AWorldError, ConfigError
from aworld.core.message import Content, Message, ToolCall
from aworld.core.model import Model, OutputSchema
from aworld.core.tool.base import Guardrail, Instructions
from aworld.core.tool.func_to_tool import FunctionTool, as_tools
from aworld.core.tool.results import json_form
from aworld.core.tool.toolkit import Toolkit

Deps = TypeVar("Deps", contravariant=True, default=None)
"""What a run of the agent is given to work with: `Agent(deps_type=...)`."""
Out = TypeVar("Out", covariant=True, default=str)
"""What it answers: `Agent(output_type=...)`."""

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_TOOL = (
    "Only a function that stands in a module, with @tool on it or without, can be written: name another object as "
    "module:object in a definition, or register it with @tool(tool_name=...) and name it in tool_names."
)


class Turn(Protocol):
    """What an agent may see and do while it decides. One per turn, made by the runtime."""

    @property
    def messages(self) -> tuple[Message, ...]:
        """The agent's branch of the conversation, from its system prompt to the newest message."""
        ...

    @property
    def observation(self) -> Observation:
        """What came in since its last decision."""
        ...

    @property
    def context(self) -> Context:
        """The state of the task."""
        ...

    @property
    def deps(self) -> Any:
        """What was given to the run as `deps=`, or made for it."""
        ...

    @property
    def index(self) -> int:
        """How many decisions this agent has made before in this run."""
        ...

    def show(self, messages: Sequence[Message]) -> None:
        """Show these messages in this call alone; the conversation stays as it is."""
        ...

    def replace(
        self,
        messages: Sequence[Message],
        strategy: str,
        *,
        tokens_before: int | None = None,
        tokens_after: int | None = None,
    ) -> None:
        """Let the conversation go on from these messages (compaction); what was before stays on record."""
        ...

    async def instruct(self) -> None:
        """Show, in this call alone, what the agent's function of instructions returns before everything else."""
        ...

    async def generate(
        self, model: Model, *, output: OutputSchema | None = None, params: dict[str, Any] | None = None
    ) -> Message:
        """Ask a model, once a turn; `params` are settings of this call (`ModelSettings`).

        The call is captured, retried and streamed by the runtime. Raises `ModelError`.
        """
        ...


class BaseAgent(Defined, Generic[Deps, Out]):
    """Base of every agent.

    `tools` takes functions, tools, toolsets, agents and swarms; `tool_names` finds those that
    `be_tool(tool_name=...)` registered.
    """

    _fields: ClassVar[frozenset[str]] = Defined._fields | {"system_prompt", "tools", "tool_names"}
    system_prompt: str | None = None
    instructions: Instructions | None = None
    """Asked before each call of a model: its text follows the system prompt."""
    input_guardrails: Sequence[Guardrail] = ()
    output_guardrails: Sequence[Guardrail] = ()
    output_type: Any = None
    output_retries: int = 0
    max_steps: int | None = None
    """Most decisions in one piece of work; the task's own limit counts all agents together."""

    @typed()
    def __init__(
        self,
        name: str,
        desc: str | None = None,
        *,
        tools: Annotated[Sequence[Any], UNCHECKED] = (),
        tool_names: Sequence[str] = (),
    ) -> None:
        if not name:
            raise ConfigError("An agent needs a name.")
        self.name = name
        self.desc = desc
        self.toolkit = Toolkit(tools, tool_names, owner=f"agent {name!r}")

    @property
    def id(self) -> str:
        """The name as a model or a provider takes it: letters, digits, `_` and `-`, at most 64."""
        return checked_id(self.name)

    def _define(self, description: Description) -> AgentDefinition:
        """The definition, made anew."""
        facts: dict[str, Any] = {
            "system_prompt": self.system_prompt,
            "tool_names": self.toolkit.tool_names,
            **self._facts(description),
        }
        callees = {unit.name: unit.definition for unit in self.callees()}
        supplied = self._supplied()
        tools = [self._tool(tool, description) for tool in self.toolkit.given if not any(tool is s for s in supplied)]
        return AgentDefinition(**self._head(description), **facts, tools=tuple(tools), units=callees)

    def _facts(self, description: Description) -> dict[str, Any]:
        """Further fields of the definition."""
        return {}

    def _supplied(self) -> Sequence[Any]:
        """Tools that follow from other settings, such as those of a sandbox: a definition does not name them."""
        return ()

    def callees(self) -> list[Any]:
        """Agents and teams among the tools."""
        from aworld.core.agent.flow import UnitTool

        return [tool.unit for tool in self.toolkit.items if isinstance(tool, UnitTool)]

    def _tool(self, tool: Any, description: Description) -> Any:
        from aworld.core.agent.flow import UnitTool

        if isinstance(tool, UnitTool):
            return tool.part(description)
        what = f"Tool {getattr(tool, 'name', type(tool).__name__)!r} of agent {self.name!r}"
        if isinstance(tool, FunctionTool):
            return description.code(tool, what, lambda there: _same_tool(there, tool), _TOOL)
        return description.code(tool, what, remedy=_TOOL)

    def with_system_prompt(self, text: str, instructions: Instructions | None = None) -> Self:
        """The same agent with another system prompt, and other instructions or none."""
        other = copy.copy(self)
        other.system_prompt, other.instructions, other._description = text or None, instructions, None
        return other

    async def policy(self, observation: Observation) -> ActionModel | Sequence[ActionModel]:
        """Decide: observation in, actions out. An action with content and no tool ends the agent's work."""
        raise NotImplementedError(f"{type(self).__name__} must define `policy(observation)` or `decide(turn)`.")

    async def decide(self, turn: Turn) -> Message:
        """Take one decision. The default asks `policy` and turns its actions into a message."""
        actions = await self.policy(turn.observation)
        actions = [actions] if isinstance(actions, ActionModel) else list(actions)
        calls = tuple(
            ToolCall(f"call_{turn.index}_{i}", action.tool_name, json.dumps(action.params, ensure_ascii=False))
            for i, action in enumerate(actions)
            if action.tool_name is not None
        )
        texts = [action.content for action in actions if action.tool_name is None and action.content is not None]
        content: Content | None = texts[0] if texts else None
        if len(texts) > 1:
            content = "\n".join(text if isinstance(text, str) else "" for text in texts)
        return Message("assistant", content=content, tool_calls=calls)

    def answer_of(self, message: Message) -> Any:
        """The answer that a final message gives. Raises ValueError, shown to the agent, when it does not fit."""
        return message.text

    def partial_of(self, text: str) -> Any:
        """What the beginning of an answer says so far, for who reads along; None while it says nothing."""
        return None

    def recorded(self, answer: Any) -> Any:
        """An answer as the log keeps it: JSON-able, in the form that `revive` reads."""
        return plain(answer)

    def revive(self, value: Any) -> Any:
        """An answer out of the form in which the log keeps it."""
        return value

    def check(self) -> None:
        """Called before a run begins. Raises ConfigError when a setting is missing."""

    def unused_replies(self, turns: int) -> str | None:
        """What a test double of this agent's model still held after `turns` calls; None when nothing."""
        return None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"


def _same_tool(there: Any, tool: Any) -> bool:
    """Whether what others find makes the same tool; a decorated function stands in its module in place of the bare."""
    if there is tool or not callable(there):
        return there is tool
    try:
        tools = as_tools(there)
    except AWorldError:  # such as a method, without the object that it is bound to
        return False
    traits = ("schema", "timeout", "idempotent", "_inline", "guardrails", "retries", "retry_on", "__wrapped__")
    return all(getattr(tools[0], trait, None) == getattr(tool, trait) for trait in traits)


def checked_id(name: str) -> str:
    """A name as a provider takes it: 1 to 64 letters, digits, `_` and `-`. Raises ConfigError when nothing is left."""
    if _NAME.fullmatch(name):
        return name
    id = re.sub(r"[^a-zA-Z0-9_-]+", "_", name).strip("_")[:64]
    if not re.search(r"[a-zA-Z0-9]", id):
        raise ConfigError(f"No provider accepts {name!r} as a name; use letters, digits, '_' and '-'.")
    return id


def plain(value: Any) -> Any:
    """An answer as JSON-able data for the log."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return msgspec.to_builtins(value, enc_hook=json_form, str_keys=True)
