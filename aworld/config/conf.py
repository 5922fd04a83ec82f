"""Settings of models, agents, tasks and runs.

What is not given comes from the environment when an agent runs, never at import: `LLM_PROVIDER`, `LLM_MODEL_NAME`,
`LLM_API_KEY`, `LLM_BASE_URL`, `LLM_TEMPERATURE`, then the provider's own variables (`OPENAI_API_KEY` and the like).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import Enum, StrEnum
from typing import Any, Literal, Never, Self, TypeAlias, TypedDict, cast

from msgspec import to_builtins
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from aworld.config.errors import ConfigError, known_keys

ToolMode: TypeAlias = Literal["auto", "native", "structured", "prompt"]


class ModelSettings(TypedDict, total=False):
    """How a model is asked, whichever it is: `Agent(model_settings={...})`, and `ModelRequest.params` for one call.

    Each is the setting `llm_...` of that name; what a provider cannot take is refused.
    """

    temperature: float
    top_p: float
    max_tokens: int
    seed: int
    stop: list[str]
    reasoning_effort: str
    logit_bias: dict[str, float]
    tool_choice: str
    parallel_tool_calls: bool
    prompt_cache: bool | Literal["1h"]
    native_tools: list[Any]
    params: dict[str, Any]
    """Extras that only one provider knows."""


SETTINGS = tuple(name for name in ModelSettings.__annotations__ if name != "params")
"""Names of those that every request may have."""


class Settings(BaseModel):
    """Base of all settings. What cannot be is a ConfigError, which names the setting, or the nearest known one."""

    model_config = ConfigDict(
        extra="forbid",
        validate_assignment=True,
        arbitrary_types_allowed=True,
        hide_input_in_errors=True,  # an error about a setting must not show a key
        allow_inf_nan=False,  # JSON has neither, and settings travel as JSON
        defer_build=True,  # its validator is built at the first use: a sixth of what importing an agent costs
    )

    def __init__(self, *positional: Never, **data: Any) -> None:
        if positional:
            raise ConfigError(f"{type(self).__name__} takes its settings by name, such as {self.known()[0]}=....")
        if data:
            self._refuse_unknown(data)
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise self._worded(error) from error

    def __setattr__(self, name: str, value: Any) -> None:
        try:
            super().__setattr__(name, value)
        except ValidationError as error:
            raise self._worded(error) from error

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """See pydantic. Raises `ConfigError`."""
        try:
            return super().model_validate(obj, **options)
        except ValidationError as error:
            raise cls._worded(error) from error

    @classmethod
    def _worded(cls, error: ValidationError) -> ConfigError:
        problems = error.errors(include_input=False, include_url=False)
        first = problems[0].get("ctx", {}).get("error")
        if isinstance(first, ConfigError):
            return first
        lines = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in problems]
        return ConfigError(f"{cls.__name__}: {'; '.join(lines)}.", setting=str(problems[0]["loc"][-1]))

    @classmethod
    def known(cls) -> list[str]:
        """The keywords that this class takes."""
        return list(cls.model_fields)

    @classmethod
    def _refuse_unknown(cls, data: dict[str, Any]) -> None:
        extras = "Extras that only the provider knows go into params={...}." if "params" in cls.known() else ""
        known_keys(cls.__name__, data, cls.known(), more=extras)


class ModelConfig(Settings):
    """Which model answers, and how it is asked."""

    llm_provider: str | None = None
    """`openai` (also every OpenAI-compatible server), `openai-responses`, `azure`, `anthropic`, `gemini`, … as
    `known_providers()` lists them. Default `openai`."""
    llm_model_name: str | None = None
    llm_api_key: str | None = Field(default=None, repr=False)
    llm_base_url: str | None = None
    """Where the API lives, such as `https://api.openai.com/v1`."""
    llm_temperature: float | None = None
    llm_top_p: float | None = None
    llm_max_tokens: int | None = None
    """Most tokens that one answer may have."""
    llm_seed: int | None = None
    llm_stop: list[str] | None = None
    llm_reasoning_effort: str | None = None
    llm_logit_bias: dict[str, float] | None = None
    """What is added to the chance of a token, by its id."""
    llm_tool_choice: str | None = None
    """`auto`, `required` (one of the tools must be called), `none`, or the name of the tool that must be."""
    llm_parallel_tool_calls: bool | None = None
    """Whether one answer may call several tools."""
    llm_prompt_cache: bool | Literal["1h"] | None = None
    """Let the provider keep what it has read of a conversation for the next call; `1h`: for an hour."""
    llm_native_tools: list[dict[str, Any]] | None = None
    """Tools of the provider itself (`aworld.models.native_tools`): `{"type": "web_search"}`, or just the word."""
    llm_api_version: str | None = None
    """Azure's `api-version`, or the `anthropic-version` header."""
    llm_headers: dict[str, str] = Field(default_factory=dict, repr=False)
    """Extra HTTP headers; their values never enter the log."""
    llm_timeout: float = 600.0
    """Seconds that one try of a call may take."""
    llm_stall_timeout: float = 120.0
    """Seconds without a byte after which a streamed answer counts as stalled."""
    llm_max_retries: int = Field(default=4, ge=0)
    """Tries after the first, for failures that may pass (408, 409, 429, 5xx, connection, stall)."""
    llm_retry_wait: float = Field(default=0.5, ge=0)
    """Seconds before the first retry; doubled each time, with jitter."""
    llm_retry_wait_max: float = Field(default=60.0, ge=0)
    """Longest wait in seconds between tries; also the longest `Retry-After` that is obeyed."""
    llm_max_concurrency: int | None = Field(default=None, ge=1)
    """Requests in flight to this provider, over all tasks of the process."""
    llm_requests_per_minute: float | None = Field(default=None, gt=0)
    llm_tokens_per_minute: float | None = Field(default=None, gt=0)
    llm_input_price: float | None = None
    """US dollars for a million input tokens, where the provider reports no cost."""
    llm_output_price: float | None = None
    """US dollars for a million output tokens."""
    prices: str | None = None
    """A file of prices, which come before those of the package; see `aworld.models.prices`."""
    llm_tool_mode: ToolMode = "auto"
    """How tools are offered: `native` calls of the API; `structured`, a JSON schema of calls and answers, to which the
    server holds the model; `prompt`, in words, and the first JSON object of its text is read. `auto`: native, where a
    model has them."""
    llm_capture_tokens: bool = False
    """Ask the server for token ids and log-probabilities (vLLM's `return_token_ids` and `logprobs`)."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Extras sent as they are in the request body."""

    @field_validator("params")
    @classmethod
    def _leave_what_is_logged(cls, params: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted({"messages", "model"} & params.keys()):
            raise ValueError(f"{', '.join(taken)}: would be sent in place of what the log says; leave it out")
        return params

    @field_validator("llm_native_tools", mode="before")
    @classmethod
    def _as_data(cls, tools: Any) -> Any:
        """Tools as they are written down, whether they were given as objects or by their words."""
        if not isinstance(tools, list | tuple):
            return tools
        try:
            return [{"type": tool} if isinstance(tool, str) else to_builtins(tool) for tool in cast("list[Any]", tools)]
        except TypeError as error:
            raise ValueError(f"give WebSearch(), CodeExecution() or their words: {error}") from None

    @property
    def provider(self) -> str:
        """The provider, from the setting, `LLM_PROVIDER`, or `openai`."""
        return self.llm_provider or os.environ.get("LLM_PROVIDER") or "openai"

    def sampling(self) -> dict[str, Any]:
        """The settings of a request that are set, in the words of `ModelSettings`, and `params`."""
        settings = {name: getattr(self, f"llm_{name}") for name in SETTINGS}
        return {**{name: value for name, value in settings.items() if value not in (None, [])}, **self.params}


class AgentConfig(Settings):
    """Settings of an agent. Every `llm_*` setting of `ModelConfig` may be given, read and written here too."""

    llm_config: ModelConfig = Field(default_factory=ModelConfig)
    system_prompt: str | None = None
    output_retries: int = Field(default=2, ge=0)
    """How often an answer that does not fit `output_type` is sent back to the model with the error."""

    def __init__(self, *positional: Never, **data: Any) -> None:  # for checkers: the settings of a model are taken too
        super().__init__(*positional, **data)

    @classmethod
    def known(cls) -> list[str]:
        """The keywords of this class and of `ModelConfig`."""
        return [*cls.model_fields, *ModelConfig.model_fields]

    @model_validator(mode="before")
    @classmethod
    def _nest(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        settings: dict[str, Any] = dict(data)  # pyright: ignore[reportUnknownArgumentType]
        flat = {k: settings.pop(k) for k in list(settings) if k in ModelConfig.model_fields}
        if flat:
            nested: Any = settings.get("llm_config") or {}
            kind = type(nested) if isinstance(nested, ModelConfig) else ModelConfig
            base: dict[str, Any] = nested.model_dump() if isinstance(nested, ModelConfig) else nested
            settings["llm_config"] = kind(**{**base, **flat})
        return settings

    def __getattr__(self, name: str) -> Any:
        if name in ModelConfig.model_fields:
            return getattr(self.llm_config, name)
        return super().__getattr__(name)  # type: ignore[misc]

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ModelConfig.model_fields:
            setattr(self.llm_config, name, value)
        elif name in type(self).model_fields or name.startswith("_"):
            super().__setattr__(name, value)
        else:
            self._refuse_unknown({name: value})


class TaskRunMode(Enum):
    """How a task is driven."""

    ONE_WAY = "one_way"
    """To its end; it may be stepped too."""
    INTERACTIVE = "interactive"
    """Step by step, by the caller: `Runners.step` only."""


class TaskConfig(Settings):
    """Limits and habits of one task. Every limit is enforced in mid-run."""

    max_steps: int | None = Field(default=100, ge=1)
    """Most steps (model calls) of the run, all agents counted; None for no limit."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Most tokens, input and output of all calls; the call that passes it is the last."""
    max_cost: float | None = Field(default=None, gt=0)
    """Most US dollars."""
    timeout: float | None = Field(default=None, gt=0)
    """Seconds that the run may take, waiting included."""
    tool_timeout: float = Field(default=300.0, gt=0)
    """Seconds that one tool call may take from when it begins, unless the tool sets its own."""
    max_tool_result: int = Field(default=200_000, ge=100)
    """Characters of a tool's answer that go to the model; the rest is cut, and the text says so."""
    run_mode: TaskRunMode = TaskRunMode.ONE_WAY
    """Whether the task may be run to its end, or only stepped."""
    resp_carry_context: bool = True
    """Whether the response carries the task's context."""


class EngineName(StrEnum):
    """Where runs are executed."""

    LOCAL = "local"
    """In this event loop."""
    PROCESSES = "processes"
    """In worker processes of this machine."""
    RAY = "ray"


class RunConfig(Settings):
    """How one or many tasks are run."""

    engine_name: EngineName = EngineName.LOCAL
    worker_num: int = Field(default=1, ge=1)
    """Worker processes of the engine `processes`."""
    max_concurrency: int = Field(default=1000, ge=1)
    """Tasks in flight at once."""
    max_cost: float | None = Field(default=None, gt=0)
    """Most US dollars that the runs of one call may spend together; see `aworld.runners.budget` for what is kept."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Most tokens that they may use together."""
    sequence_dependent: bool = False
    """Run the tasks one after another, in the order given; the first that does not finish stops the rest."""
    on_progress: Callable[..., Any] | None = None
    """Called with a `RunProgress` (total, running, done) when a task of many begins and ends."""
    rare_collection: bool = True
    """Whether the garbage collector looks less often while more than one task runs (restored afterwards)."""
    store: Any = None
    """Where logs go: a store, a URL such as `sqlite:///runs.db`, or None for memory."""
