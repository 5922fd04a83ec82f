"""The agent that asks a language model."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NotRequired, Protocol, Self, cast, get_type_hints
from urllib.parse import urlsplit, urlunsplit

import msgspec
from pydantic import ValidationError
from typing_extensions import TypedDict

from aworld.config.conf import AgentConfig, ModelConfig, ModelSettings
from aworld.core.agent.base import BaseAgent, Deps, Out, Turn
from aworld.core.checks import UNCHECKED, Count, guardrails_of, known_keys, takes, typed
from aworld.core.definition import SECRET, AgentDefinition, Description
from aworld.core.exceptions import ConfigError
from aworld.core.message import Message
from aworld.core.model import Model, ModelReply, ModelRequest, OutputSchema
from aworld.core.sandbox import Sandbox, SandboxSource
from aworld.core.tool.base import Guardrail, Instructions, ToolContext
from aworld.core.tool.toolkit import Toolkit
from aworld.models import build_model, call_model
from aworld.models.fallback import UNAVAILABLE, Fallback, label
from aworld.models.native_tools import NativeTool, open_settings, read_native_tools
from aworld.models.providers import named_model

if TYPE_CHECKING:
    from pydantic import TypeAdapter

    from aworld.tools.mcp import McpToolset

_FENCE = re.compile(r"^\s*```(?:json)?\s*\n(.*?)\n?```\s*$", re.DOTALL)
_KEY_NAME = re.compile(r"key|token|secret|passw|auth|cred", re.IGNORECASE)


class UnionOf(Protocol[Out]):
    """`A | B` as a value, whose type checkers do not know the members: the answer is Any to them."""

    @property
    def __args__(self) -> tuple[Out, ...]: ...


class Agent(BaseAgent[Deps, Out]):
    """An agent that lets a language model decide. To a type checker it is `Agent[Deps, Out]`, by its `deps_type` and
    its `output_type`.

    Args:
        name: Its name in logs and teams.
        conf: Which model, and how it is asked; what is not given comes from the environment when the agent runs.
        desc: What it is good at, for other agents that may call it.
        system_prompt: Said to the model before everything else: a text, or a function of the `ToolContext`, sync or
            async, that returns it. A function is asked before each call; what it returned is on record.
        tools: Functions, tools and toolsets.
        tool_names: Registered tools, by `be_tool(tool_name=...)`.
        sandbox: A source of sandboxes, or one sandbox: the agent gets python, a shell and files in it. From a source
            each run has a sandbox of its own, destroyed when the run is over.
        mcp_servers: Names of servers of `mcp_config` whose tools the agent gets; None for all.
        mcp_config: MCP servers by name, `{"mcpServers": {...}}`, or a JSON file of it; see `aworld.tools.mcp`.
        output_type: Shape of the answer: a pydantic model, a dataclass or any type that pydantic can validate. An
            answer that does not fit is sent back with the error, at most `conf.output_retries` times.
        deps_type: Class of what its tools and instructions work with, such as a database: a run of it needs `deps=`
            of this type, and they read it in `ToolContext[Database].deps`.
        input_guardrails: Functions of the `ToolContext` and the input that return None to let it pass, or the reason
            why not: the agent's work ends as failed with it before the model is asked.
        output_guardrails: The same of an answer: one that is refused is sent back with the reason, as one that does not
            fit `output_type` is.
        max_steps: Most decisions in one piece of work; the task's own limit counts all agents together.
        model: In place of `conf`'s: a model object, a short form such as `"openai:gpt-4o"`, or the folder of a trained
            policy: the `run_path` of a training run, or a checkpoint. Of a list the first is asked, and when it cannot
            serve the next (`Fallback`).
        model_settings: How it is asked (temperature, tool_choice, …), over what `conf` says. A model object keeps what
            it sets itself.
        native_tools: Tools of the provider: `WebSearch()`, `CodeExecution()`, or their words.

    Raises:
        ConfigError: When a setting or a tool cannot work. A missing model name or key is reported when the agent runs.
    """

    _fields: ClassVar[frozenset[str]] = BaseAgent._fields | {
        "conf", "sandbox", "mcp_servers", "mcp_config", "output_type", "deps_type", "input_guardrails",
        "output_guardrails", "max_steps", "model", "model_settings", "native_tools",
    }  # fmt: skip

    @typed()
    def __init__(
        self,
        name: str = "agent",
        conf: AgentConfig | ModelConfig | dict[str, Any] | None = None,
        desc: str | None = None,
        *,
        system_prompt: str | Instructions[Deps] | None = None,
        tools: Annotated[Sequence[Any], UNCHECKED] = (),
        tool_names: Sequence[str] = (),
        sandbox: Sandbox | SandboxSource | None = None,
        mcp_servers: str | Iterable[str] | None = None,
        mcp_config: Mapping[str, Any] | str | Path | None = None,
        output_type: Annotated[type[Out] | UnionOf[Out] | None, UNCHECKED] = None,
        deps_type: type[Deps] | None = None,
        input_guardrails: Sequence[Guardrail] = (),
        output_guardrails: Sequence[Guardrail] = (),
        max_steps: Count | None = None,
        model: Model | str | Path | Sequence[Model | str | Path] | None = None,
        model_settings: Annotated[ModelSettings | None, UNCHECKED] = None,
        native_tools: Sequence[NativeTool | str | Mapping[str, Any]] = (),
    ) -> None:
        self.sandbox = sandbox
        self._sandboxed: list[Any] = []
        if sandbox is not None:
            from aworld.tools.sandboxed import sandbox_tools  # not imported by agents that have no use for it

            self._sandboxed = [*sandbox_tools(sandbox)]
        self._servers = self._mcp_tools(name, mcp_servers, mcp_config)
        supplied = self._supplied()
        super().__init__(name, desc, tools=[*tools, *supplied] if supplied else tools, tool_names=tool_names)
        self.conf = _agent_config(conf)
        if model_settings or native_tools:
            _put_settings(self.conf.llm_config, model_settings or {}, native_tools, f"Agent {name!r}")
        self.max_steps = max_steps
        self.system_prompt = self.conf.system_prompt
        if callable(system_prompt):
            takes(f"system_prompt of agent {name!r}", system_prompt, "context")
            self.system_prompt, self.instructions = None, system_prompt
        elif system_prompt is not None:
            self.system_prompt = system_prompt
        self.input_guardrails = guardrails_of(f"agent {name!r}", input_guardrails)
        self.output_guardrails = guardrails_of(f"agent {name!r}", output_guardrails)
        self.output_type = output_type
        self.deps_type = deps_type
        self.output_retries = self.conf.output_retries
        self._model = _model_of(model)
        self._found: Model | None = None
        self._settings: dict[str, Any] = {}
        """What a model object leaves open: sent with each call."""
        self._output: OutputSchema | None = None
        self._wrapped = False
        self._beginnings: TypeAdapter[Any] | None = None
        if output_type is not None and output_type is not str:
            self._adapter: TypeAdapter[Any] = _adapter(name, output_type)
            self._output, self._wrapped = _output_schema(self._adapter)

    @property
    def model(self) -> Model:
        """The model, with the environment read now. Raises ConfigError that names a missing variable."""
        model = self._model
        if isinstance(model, Fallback):
            return model.built(self._build, self.conf.llm_config.sampling())
        return self._build(model) if model is None or isinstance(model, str) else model

    def _build(self, name: str | None) -> Model:
        """The model of the settings. One that is named by text takes what they say of sampling and limits; a key, an
        address and headers are of the provider that the settings name, and of no other."""
        config = self.conf.llm_config
        if name is None:
            return build_model(config)
        named = named_model(name)
        changed: dict[str, Any] = {"llm_model_name": named.llm_model_name}
        if named.llm_provider not in (None, config.provider):
            changed |= {"llm_provider": named.llm_provider, "llm_base_url": None, "llm_api_version": None}
            changed |= {"llm_api_key": None, "llm_headers": {}, "params": {}}
        return build_model(config.model_copy(update=changed))

    @typed()
    def with_model(self, model: Model | str | Path | Sequence[Model | str | Path]) -> Self:
        """The same agent asking another model."""
        other = copy.copy(self)
        other._model, other._settings = _model_of(model), {}
        other._found = other._description = None
        if self._servers:  # they may ask the agent's model
            others = [item for item in self.toolkit.given if item not in self._servers]
            other._servers = [server.sampled_by(other._sample) for server in self._servers]
            other.toolkit = Toolkit([*others, *other._servers], self.toolkit.tool_names, owner=self.toolkit.owner)
        return other

    @classmethod
    def of(cls, definition: AgentDefinition, like: BaseAgent | None = None) -> Self:
        """The agent that a definition describes; `unit_of` makes those of other classes, and teams.

        `like` is an agent from which comes what no definition holds: keys and headers, a model object, functions
        without a name. Raises ConfigError for what cannot be imported, or is another class's.
        """
        from aworld.agents.definitions import unit_of  # it knows all classes of agents and teams

        agent = unit_of(definition, like)
        if not isinstance(agent, cls):
            raise ConfigError(f"{definition.name!r} is of type {definition.type!r}, not {cls.__name__}: use unit_of.")
        return agent

    def _supplied(self) -> list[Any]:
        """The tools of the sandbox and of the servers."""
        return [*self._sandboxed, *self._servers]

    def _mcp_tools(self, name: str, servers: str | Iterable[str] | None, config: Any) -> list[McpToolset]:
        names = None if servers is None else [servers] if isinstance(servers, str) else list(servers)
        if config is None:
            if names:
                raise ConfigError(f"Agent {name!r}: mcp_servers={names} says which, but there is no mcp_config.")
            return []
        from aworld.tools.mcp import mcp_tools  # an agent without servers does without it

        try:
            return mcp_tools(config, names, sample=self._sample)
        except ConfigError as error:
            raise ConfigError(f"Agent {name!r}: {error}") from None

    async def _sample(self, request: ModelRequest, context: ToolContext) -> ModelReply:
        """Ask this agent's model for an MCP server that may. Raises ModelError."""
        request = msgspec.structs.replace(request, agent=self.name, trajectory_id=context.trajectory_id)
        return (await call_model(self._found or self.model, request)).reply

    def check(self) -> None:
        """Find the model, as the environment stands when a run begins. Raises ConfigError that names a variable."""
        self._found = self.model
        if self.conf.llm_config.model_fields_set and not isinstance(self._model, Fallback | str | None):
            self._settings = open_settings(self._found, self.conf.llm_config.sampling())
        for server in self._servers:
            server.check()

    async def decide(self, turn: Turn) -> Message:
        """Ask the model once."""
        if self.instructions is not None:
            await turn.instruct()
        return await turn.generate(self._found or self.model, output=self._output, params=self._settings)

    def answer_of(self, message: Message) -> Any:
        """The answer: text, or an instance of `output_type`. Raises ValueError that says what does not fit."""
        if self._output is None:
            return message.text
        text = message.text
        fenced = _FENCE.match(text)
        try:
            value: Any = json.loads(fenced.group(1) if fenced else text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"The answer is not JSON: {error}.") from None
        if self._wrapped:
            if not isinstance(value, dict) or "result" not in value:
                raise ValueError('The answer must be a JSON object {"result": ...}.')
            value = value["result"]  # pyright: ignore[reportUnknownVariableType]
        return self.revive(value)

    def partial_of(self, text: str) -> Any:
        """The fields of `output_type` that the beginning of an answer has, validated; None while it says nothing."""
        if self._beginnings is None:
            self._beginnings = _beginnings_of(self.output_type, self._wrapped)
        text = text[max(text.find("{"), 0) :]
        try:
            value = self._beginnings.validate_json(text, experimental_allow_partial="trailing-strings")
        except ValidationError:
            return None
        return value.get("result") if self._wrapped else value or None

    def recorded(self, answer: Any) -> Any:
        """An answer as the log keeps it: the JSON form that its type reads back."""
        if self._output is None or answer is None:
            return answer
        return self._adapter.dump_python(answer, mode="json", by_alias=True, round_trip=True)

    def revive(self, value: Any) -> Any:
        """An answer of `output_type` from its JSON data, as the log keeps it. Raises ValueError."""
        if self._output is None:
            return value
        try:
            return self._adapter.validate_json(json.dumps(value))  # as JSON: tuples from lists, dates from text
        except ValidationError as error:
            lines = [f"- {'.'.join(map(str, e['loc'])) or 'answer'}: {e['msg']}" for e in error.errors()]
            raise ValueError("The answer does not fit the schema:\n" + "\n".join(lines)) from None

    def _facts(self, description: Description) -> dict[str, Any]:
        """The settings of the model, the shape of the answer, and where tools of servers and sandboxes come from."""
        facts: dict[str, Any] = {
            "llm_config": self._llm_config(description), "output_retries": self.output_retries,
            "max_steps": self.max_steps, **self._model_facts(description),
            "mcp_servers": {s.name: self._server(s, description) for toolset in self._servers for s in toolset.servers},
        }  # fmt: skip
        if self.instructions is not None:
            facts["instructions"] = description.code(self.instructions, f"The instructions of agent {self.name!r}")
        for guardrails in ("input_guardrails", "output_guardrails"):
            what = f"A guardrail of agent {self.name!r}"
            facts[guardrails] = tuple(description.code(function, what) for function in getattr(self, guardrails))
        for option in ("sandbox", "deps_type", "output_type"):
            if (value := getattr(self, option)) is not None:
                facts[option] = description.code(value, f"{option} of agent {self.name!r}")
        if self._output is not None:
            facts["output_schema"] = self._output.schema
        return facts

    def _model_facts(self, description: Description) -> dict[str, Any]:
        """The model by its name, or several with the rule."""
        model = self._model
        if model is None or isinstance(model, str):
            return {"model": model}
        facts: dict[str, Any] = {"model": model.names if isinstance(model, Fallback) else label(model)}
        if isinstance(model, Fallback):
            if callable(model.on):
                facts["fallback_on"] = description.code(model.on, f"Fallback(on=...) of agent {self.name!r}")
            elif model.on != UNAVAILABLE:
                facts["fallback_on"] = model.on
            if all(isinstance(member, str) for member in model.models):
                return facts
        refusal = f"Agent {self.name!r} has a model object ({type(model).__name__})"
        remedy = 'name the model in conf= or model="provider:name", or leave it to the environment.'
        facts["model_object"] = f"{type(model).__module__}:{type(model).__qualname__}<{model.name}>"
        description.hold(facts["model_object"], model, f"{refusal}; {remedy}")
        return facts

    def _llm_config(self, description: Description) -> dict[str, Any]:
        conf = self.conf.llm_config
        config = conf.model_dump(exclude={*SECRET_SETTINGS}, exclude_defaults=True, exclude_none=True, mode="json")
        description.secrets |= {key: value for key in SECRET_SETTINGS if (value := getattr(conf, key))}
        if conf.llm_base_url is not None and _without_secrets(conf.llm_base_url) != conf.llm_base_url:
            description.secrets["llm_base_url"] = conf.llm_base_url
            config["llm_base_url"] = _without_secrets(conf.llm_base_url)
        return config

    def _server(self, server: Any, description: Description) -> dict[str, Any]:
        """The configuration of a server. What is written out where keys may stand counts as one."""
        conf: dict[str, Any] = server.conf.model_dump(mode="json", exclude_defaults=True)
        shown = {**conf, **{key: dict(map(_hidden, conf[key].items())) for key in ("env", "headers") if key in conf}}
        if "url" in conf and "${" not in conf["url"]:
            shown["url"] = _without_secrets(conf["url"])
        if "args" in conf:
            shown["args"] = [_hidden_argument(*pair) for pair in zip(["", *conf["args"]], conf["args"])]
        if shown != conf:
            description.secrets[f"mcp_servers.{server.name}"] = conf
        return shown

    def unused_replies(self, turns: int) -> str | None:
        """What a scripted model still holds after `turns` calls."""
        unused = getattr(self._model, "unused", None)
        left = unused(turns) if unused is not None else 0
        return f"{left} scripted replies of agent {self.name!r} were not used." if left else None


SECRET_SETTINGS = ("llm_api_key", "llm_headers")
"""Settings of a model that no definition has."""


def _hidden(pair: tuple[str, str]) -> tuple[str, str]:
    """A variable or header with its value, if that is a reference to the environment without a default."""
    return pair if "${" in pair[1] and ":-" not in pair[1] else (pair[0], SECRET)


def _hidden_argument(before: str, argument: str) -> str:
    """An argument, unless it is the value of one that is named like a key."""
    if "${" in argument:
        return argument
    name, equals, _ = argument.partition("=")
    if equals and _KEY_NAME.search(name):
        return f"{name}={SECRET}"
    is_value = before.startswith("-") and "=" not in before and not argument.startswith("-")
    return SECRET if is_value and _KEY_NAME.search(before) else argument


def _without_secrets(url: str) -> str:
    """The address without user, password and query, which may hold a key."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _agent_config(conf: AgentConfig | ModelConfig | dict[str, Any] | None) -> AgentConfig:
    if conf is None:
        return AgentConfig()
    if isinstance(conf, dict):
        return AgentConfig(**conf)
    if isinstance(conf, ModelConfig):
        return AgentConfig(llm_config=conf.model_copy(deep=True))
    return conf.model_copy(deep=True)


def _model_of(model: Any) -> Model | str | None:
    """What an agent asks: several as one."""
    if isinstance(model, Path):
        return str(model.expanduser().absolute())
    return Fallback(model) if isinstance(model, list | tuple) else model  # pyright: ignore[reportUnknownArgumentType]


def _put_settings(config: ModelConfig, settings: Any, native_tools: Sequence[Any], owner: str) -> None:
    """Put what `Agent(model_settings=, native_tools=)` say where `conf` says it. Raises ConfigError."""
    if not isinstance(settings, Mapping):
        raise ConfigError(f"{owner}: model_settings={settings!r:.60}; give a dict, such as {{'temperature': 0.2}}.")
    fields: dict[str, Any] = {**settings, **({"native_tools": native_tools} if native_tools else {})}
    known_keys(f"{owner}: model_settings", fields, ModelSettings.__annotations__)
    try:
        extras = fields.pop("params", {})
        config.params = {**config.params, **extras} if isinstance(extras, dict) else extras
        for name, value in fields.items():
            setattr(config, f"llm_{name}", value)
        read_native_tools(config.llm_native_tools)
    except ConfigError as error:
        raise ConfigError(f"{owner}: {error}", setting=error.setting, remedy=error.remedy) from error


def _adapter(name: str, output_type: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter  # here: it imports what builds schemas, and few agents need it

    if isinstance(output_type, str):
        raise ConfigError(f"output_type={output_type!r} of agent {name!r} is a text; give the type itself.")
    try:
        return TypeAdapter(output_type)
    except Exception as error:
        raise ConfigError(f"output_type of agent {name!r} cannot be validated by pydantic: {error}") from error


def _output_schema(adapter: TypeAdapter[Any]) -> tuple[OutputSchema, bool]:
    """The schema sent to providers, and whether the value is wrapped: they take only objects at the top."""
    schema = adapter.json_schema()
    title = re.sub(r"[^a-zA-Z0-9_-]", "_", str(schema.get("title", "answer")))[:64] or "answer"
    if schema.get("type") == "object":
        return OutputSchema(title, schema), False
    definitions = schema.pop("$defs", None)
    outer: dict[str, Any] = {
        "type": "object", "properties": {"result": schema}, "required": ["result"], "additionalProperties": False,
    }  # fmt: skip
    if definitions:
        outer["$defs"] = definitions
    return OutputSchema(title, outer), True


def _beginnings_of(kind: Any, wrapped: bool) -> TypeAdapter[Any]:
    """What validates answers that are not whole. pydantic takes beginnings of lists and dicts, and of a `TypedDict`
    whose fields may be absent: a model or a dataclass is read as such a one."""
    from pydantic import Field, TypeAdapter

    members: dict[str, Any]
    if wrapped:
        members = {"result": kind}
    elif fields := getattr(kind, "__pydantic_fields__", None):
        members = {
            name: Annotated[field.annotation, *field.metadata, Field(validation_alias=field.validation_alias)]
            for name, field in fields.items()
        }
    elif hasattr(kind, "__annotations__"):
        members = get_type_hints(kind)
    else:  # a dict
        return TypeAdapter(kind)
    make = cast("Any", TypedDict)  # a checker knows only literal members
    return TypeAdapter(make("Beginning", {name: NotRequired[member] for name, member in members.items()}))
