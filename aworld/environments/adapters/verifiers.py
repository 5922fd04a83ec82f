"""Environments of verifiers (0.4): its tasks, tools, state, rewards and judges; the rollout is ours.

    train = verifiers_environment("my-taskset", config={"difficulty": "hard"})

A taskset gives the problems. Tool servers that would run beside the rollout run in it: their classes are made for each
episode, and their `state` is the episode's. At the end the conversation becomes a verifiers trace, on which the task's
own metrics, rewards and judges are called, each a part of the rubric; a metric counts 0.

What cannot be carried over is refused with a ConfigError that names it, when the environment or the problem is made:
containers and their settings, harnesses and environments of a taskset's own, hooks that need a runtime or that look
into the exchange with the model, and servers that run elsewhere.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from itertools import islice
from typing import Any, cast

from aworld.config.conf import TaskConfig
from aworld.core.exceptions import ConfigError
from aworld.core.extras import import_extra
from aworld.core.message import Content, Image, Message, Part, Text
from aworld.core.tool.base import Tool, ToolContext
from aworld.core.tool.func_to_tool import FunctionTool
from aworld.environments.environment import Environment, factory
from aworld.environments.problem import Problem, split_by_hash
from aworld.environments.rubric import Part as RubricPart
from aworld.environments.rubric import Rubric, ScoredEpisode
from aworld.environments.session import Session

vf: Any = import_extra("verifiers.v1", "verifiers_environment", "verifiers>=0.4,<0.5")
_loaders: Any = import_module("verifiers.v1.utils.loaders")
_decorators: Any = import_module("verifiers.v1.utils.decorators")
_server: Any = import_module("verifiers.v1.mcp.server")

_FAR = 10_000
"""How far into an endless taskset a seed may lead: its own stream has no seed."""

_UNKNOWN = {
    "image": None, "workdir": None, "agent_user": None, "skills": [], "network_allow": ["*"], "network_block": [],
    "artifacts": [],
}  # fmt: skip
"""Fields of a task that speak of a container, with the value that asks for nothing."""


@factory
def verifiers_environment(
    taskset: Any,
    *,
    config: Mapping[str, Any] | None = None,
    test: Any = 0.1,
    name: str | None = None,
    conf: TaskConfig | dict[str, Any] | None = None,
) -> Environment:
    """A taskset of verifiers as an environment.

    Args:
        taskset: The id of an installed taskset, or a `Taskset` (a view of one, such as `taskset.take(100)`).
        config: Settings of a taskset that is given by its id.
        test: The share of tasks that is held out, told apart by a hash of their content; or a second taskset.
        name: Names the environment in the log; the taskset's id when not given.
        conf: Limits of an episode. Tasks with a time-out of their own for the agent need `timeout` here.

    Raises:
        ConfigError: There is no such taskset, or it needs what cannot be carried over.
    """
    limits = TaskConfig(**conf) if isinstance(conf, dict) else (conf or TaskConfig())
    loaded = _load(taskset, config)
    tasks = _Tasks(loaded, limits)
    shared: dict[str, Any] = {"session": partial(VerifiersSession, tasks), "key": _content, "conf": limits}
    shared |= {"rubric": tasks.rubric(), "system_prompt": tasks.template.data.system_prompt}
    name = name or str(loaded.config.id or type(loaded).__name__)
    if not isinstance(test, float):
        held_out = _Tasks(_load(test, None), limits)
        return Environment(name, train=tasks.source(), test=held_out.source(), **shared)
    train_side, test_side = split_by_hash(tasks, test=test, key=_content)
    if loaded.bounded:
        return Environment(name, train=list(train_side(0)), test=list(test_side(0)), **shared)
    return Environment(name, train=train_side, test=test_side, **shared)


def _load(taskset: Any, config: Mapping[str, Any] | None) -> Any:
    if not isinstance(taskset, str):
        if not isinstance(taskset, vf.Taskset):
            raise ConfigError(f"taskset takes the id of an installed taskset, or a Taskset; got {taskset!r:.200}.")
        return taskset
    try:
        settings = _loaders.taskset_config_type(taskset)(id=taskset, **(config or {}))
        kind = _loaders.environment_class(taskset).__name__
        harness = _loaders.default_harness_id(taskset)
        loaded = _loaders.load_taskset(settings)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"verifiers taskset {taskset!r} | {error}") from error
    if kind != "SingleAgentEnv":
        raise ConfigError(f"Taskset {taskset!r} brings the environment {kind}; only single agents are carried over.")
    if harness != "bash":
        raise ConfigError(
            f"Taskset {taskset!r} brings the harness {harness!r}, which runs its own loop; ours runs here."
        )
    return loaded


class _Tasks:
    """The tasks of a taskset: the source of problems, and how a problem becomes a task again."""

    def __init__(self, taskset: Any, limits: TaskConfig) -> None:
        self.taskset, self.limits = taskset, limits
        first: Any = next(iter(taskset), None)
        if first is None:
            raise ConfigError("The taskset has no tasks.")
        self.template = first
        self._check_kind(first)

    def __call__(self, seed: int) -> Iterator[Problem]:
        start = random.Random(seed).randrange(_FAR) if seed and not self.taskset.bounded else 0
        for task in islice(iter(self.taskset), start, None):
            yield self._problem(task)

    def source(self) -> Any:
        """A list, or a stream of an endless taskset."""
        return list(self(0)) if self.taskset.bounded else self

    def task(self, problem: Problem) -> Any:
        """The task of a problem, made anew from its data."""
        task = copy.copy(self.template)
        task.data = cast(Any, type(self.template.data)).model_validate(problem.data["task"])
        return task

    def rubric(self) -> Rubric | None:
        """The task's rewards, judges and metrics as parts; None where it has none."""
        limit = self.template.data.timeout.scoring or 60.0
        weights = {fn.__name__: float(getattr(fn, "_vf_weight", 1.0)) for fn in self.template.hooks("reward")}
        weights |= {judge.reward_name: float(judge.config.weight) for judge in self.template.plugged_judges()}
        weights |= {fn.__name__: 0.0 for fn in self.template.hooks("metric")}
        parts = [RubricPart(name, partial(_score, name), weight, limit) for name, weight in weights.items()]
        return Rubric(*parts) if parts else None

    def toolsets(self) -> list[tuple[Any, bool]]:
        """Fresh tool servers of one episode, with whether they are told of the task."""
        of_task = [(server, True) for server in self.template.toolsets(self.template.config)]
        return [*of_task, *((server, False) for server in cast(Any, type(self.taskset)).toolsets(self.taskset.config))]

    def _problem(self, task: Any) -> Problem:
        self._check_data(task)
        data = task.data.model_dump(mode="json", exclude_none=True)
        problem = Problem(
            task.data.id or f"task-{task.key[:24]}",
            _input(task.data),
            getattr(task.data, "answer", None),
            {"task": data},
        )
        if type(task) is not type(self.template) or self.task(problem).key != task.key:
            raise ConfigError(f"Task {problem.id!r} cannot be made again from its data: it is not plain JSON.")
        return problem

    def _check_kind(self, task: Any) -> None:
        kind = type(task).__name__
        if task.NEEDS_CONTAINER:
            raise ConfigError(f"{kind} needs a container (NEEDS_CONTAINER), which is verifiers' own runtime.")
        hooks = [*task.hooks("reward"), *task.hooks("metric"), *(judge.score for judge in task.plugged_judges())]
        hooks += [getattr(task, name) for name in ("setup", "finalize") if _overrides(task, name)]
        for hook in hooks:
            runtime = inspect.signature(hook).parameters.get("runtime")
            if runtime is not None and runtime.default is inspect.Parameter.empty:
                raise ConfigError(f"{kind}.{hook.__name__} needs a `runtime`, which is verifiers' own container.")
        looking = [*task.hooks("stop"), *_decorators.discover_decorated(task, "intercept")]
        if looking:
            raise ConfigError(
                f"{kind}.{looking[0].__name__} looks into the exchange with the model (@stop, @intercept)."
            )
        for server, _ in self.toolsets():
            elsewhere = server.config.url or getattr(server.config, "colocated", False)
            if elsewhere or server.config.runtime.type != "subprocess":
                raise ConfigError(
                    f"Toolset {type(server).__name__} runs elsewhere (url, colocated or a runtime of its own)."
                )

    def _check_data(self, task: Any) -> None:
        data = task.data
        for field, nothing in _UNKNOWN.items():
            if getattr(data, field) != nothing:
                raise ConfigError(f"A task sets {field}={getattr(data, field)!r:.100}: there is no container here.")
        if any(value is not None for value in data.resources.model_dump().values()):
            raise ConfigError(f"A task sets resources={data.resources!r}: there is no container here.")
        if data.system_prompt != self.template.data.system_prompt:
            raise ConfigError(
                "The tasks have different system prompts; an environment has one. Put it into the prompts."
            )
        if data.timeout.agent is not None and self.limits.timeout is None:
            raise ConfigError(
                f"A task allows the agent {data.timeout.agent:g} s; say so for all: conf={{'timeout': …}}."
            )


class VerifiersSession(Session):
    """One episode: the task, its state, its tool servers, and the trace that is scored."""

    def __init__(self, tasks: _Tasks, problem: Problem) -> None:
        super().__init__(problem)
        self.task: Any = tasks.task(problem)
        self.state: Any = import_module("verifiers.v1.state").state_cls(type(self.task))()
        self.trace: Any = _trace(self.task, self.state)
        self._servers = tasks.toolsets()
        self._tools: list[Tool] = []
        self._outcomes: asyncio.Task[dict[str, Any]] | None = None

    async def start(self) -> None:
        """Prepare the task and its tool servers."""
        if _overrides(self.task, "setup"):
            await _decorators.invoke(self.task.setup, {"trace": self.trace})
        for server, for_task in self._servers:
            await server.setup()
            if for_task:
                await server.setup_task(self.task.data)
            prefix = f"{server.server_name}_" if server.server_name else ""
            for function in _decorators.discover_decorated(server, "tool"):
                name = prefix + (getattr(function, "tool_name", None) or function.__name__)
                self._tools.append(_ServerTool(self.state, function, name))

    def tools(self) -> Sequence[Tool]:
        """The tools of the servers, under the names that verifiers gives them."""
        return self._tools

    def outcomes(self, episode: ScoredEpisode) -> asyncio.Task[dict[str, Any]]:
        """Values or errors of all metrics, rewards and judges, in verifiers' order; computed once."""
        if self._outcomes is None:
            self._outcomes = asyncio.create_task(self._scored(episode))
        return self._outcomes

    async def _scored(self, episode: ScoredEpisode) -> dict[str, Any]:
        fill(self.trace, episode)
        if _overrides(self.task, "finalize"):
            await _decorators.invoke(self.task.finalize, {"trace": self.trace})
        available = {"task": self.task.data, "trace": self.trace}
        outcomes: dict[str, Any] = {}
        stages = (self.task.hooks("metric"), self.task.hooks("reward"), self.task.plugged_judges())
        for kind, hooks in zip(("metric", "reward", "judge"), stages):
            calls: dict[str, Callable[..., Any]] = {
                (hook.reward_name if kind == "judge" else hook.__name__): (hook.score if kind == "judge" else hook)
                for hook in hooks
            }
            values = await asyncio.gather(*(_called(call, available) for call in calls.values()))
            for name, value in zip(calls, values):
                outcomes[name] = value
                self._note(kind, name, value)
        return outcomes

    def _note(self, kind: str, name: str, value: Any) -> None:
        """Tell later hooks, which may look at the trace."""
        items = cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {name: value}
        for key, item in items.items():
            if isinstance(item, int | float):
                (self.trace.record_metric if kind == "metric" else self.trace.record_reward)(key, item)

    async def close(self) -> None:
        """Let go of what the tool servers hold."""
        if self._outcomes is not None:
            self._outcomes.cancel()
        for server, _ in self._servers:
            await server._exit_stack.aclose()


class _ServerTool(FunctionTool[..., Any]):
    """A tool of a server, called with the state of the episode."""

    def __init__(self, state: Any, function: Callable[..., Any], name: str) -> None:
        super().__init__(function, name=name)
        self._state = state

    async def invoke(self, arguments: str, context: ToolContext) -> Any:
        token = _server._call_state.set(self._state)  # as verifiers itself does around a call
        try:
            return await super().invoke(arguments, context)
        finally:
            _server._call_state.reset(token)


async def _called(hook: Callable[..., Any], available: dict[str, Any]) -> Any:
    try:
        value = _decorators.invoke(hook, available)
        return await value if inspect.isawaitable(value) else value
    except Exception as error:  # noqa: BLE001 - it becomes this part's failure, and not that of the others
        return error


async def _score(name: str, episode: ScoredEpisode) -> float:
    value = (await asyncio.shield(cast("VerifiersSession", episode.session).outcomes(episode)))[name]
    if isinstance(value, Exception):
        raise value
    return float(sum(cast("Mapping[str, float]", value).values())) if isinstance(value, Mapping) else value


def _overrides(task: Any, name: str) -> bool:
    return getattr(cast(object, type(task)), name) is not getattr(vf.Task, name)


def _trace(task: Any, state: Any) -> Any:
    traces = import_module("verifiers.v1.trace")
    agent = traces.AgentInfo(config=import_module("verifiers.v1.configs.agent").AgentConfig())
    return traces.Trace(
        task=traces.TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash),
        state=state,
        agent=agent,
    )


def _content(problem: Problem) -> Any:
    """What makes two tasks the same: everything but their place in the taskset."""
    return {key: value for key, value in problem.data["task"].items() if key not in ("idx", "id")}


def _input(data: Any) -> Content:
    prompt = data.prompt
    if isinstance(prompt, str):
        return prompt
    if prompt is None:
        raise ConfigError("A task has no prompt: its user would open the conversation, and there is none here.")
    if len(prompt) != 1 or prompt[0].role != "user":
        raise ConfigError("A task's prompt is a conversation; only one message of the user is carried over.")
    content = prompt[0].content
    if isinstance(content, str):
        return content
    parts: list[Part] = [Text(part.text) if part.type == "text" else Image(part.image_url.url) for part in content]
    return tuple(parts)


_STOPPED = {"finished": "agent_completed", "limit_reached": "max_turns", "timeout": "agent_timeout", "failed": "error"}


def fill(trace: Any, episode: ScoredEpisode) -> None:
    """Put the conversation of the episode, its calls and its ending into a fresh trace."""
    types, graph = import_module("verifiers.v1.types"), import_module("verifiers.v1.graph")
    traces = import_module("verifiers.v1.trace")
    record = episode.record
    calls = {call.reply: call for call in record.calls.values() if call.reply is not None}
    leaf = record.activations[0].leaf if record.activations else None
    for number, id in enumerate(record.path_ids(leaf)):
        node = record.messages[id]
        message = _trace_message(types, node.message)
        parent = number - 1 if number else None
        trace.nodes.append(graph.MessageNode(parent=parent, message=message, sampled=node.origin == "model"))
        call = calls.get(id)
        if call is not None:
            trace.calls.append(
                traces.ModelCall(
                    node=number,
                    model=call.model,
                    finish_reason=call.finish_reason
                    if call.finish_reason in ("stop", "length", "tool_calls")
                    else None,
                    usage=_usage(types, call.usage),
                )
            )
    for tools in record.toolsets.values():
        trace.tools = [types.Tool(**{k: tool[k] for k in ("name", "description", "parameters")}) for tool in tools]
    trace.is_completed, trace.ok = True, episode.status == "finished"
    trace.stop_condition = _STOPPED.get(episode.status)
    trace.is_timeout = episode.status == "timeout"


def _trace_message(types: Any, message: Message) -> Any:
    match message.role:
        case "system":
            return types.SystemMessage(content=_trace_content(types, message.content))
        case "user":
            return types.UserMessage(content=_trace_content(types, message.content))
        case "tool":
            content = _trace_content(types, message.content)
            return types.ToolMessage(tool_call_id=message.tool_call_id or "", content=content, name=message.name)
        case "assistant":
            calls = [types.ToolCall(id=c.id, name=c.name, arguments=c.arguments) for c in message.tool_calls]
            text = message.text if message.content is not None else None
            return types.AssistantMessage(content=text, reasoning_content=message.reasoning, tool_calls=calls or None)


def _trace_content(types: Any, content: Content | None) -> Any:
    if content is None or isinstance(content, str):
        return content or ""
    parts: list[Any] = []
    for part in content:
        if isinstance(part, Text):
            parts.append(types.TextContentPart(text=part.text))
        elif isinstance(part, Image):
            parts.append(types.ImageUrlContentPart(image_url=types.ImageUrlSource(url=part.url)))
    return parts


def _usage(types: Any, usage: Any) -> Any:
    if usage is None or usage.input_tokens is None or usage.output_tokens is None:
        return None
    cached = usage.cached_tokens or 0
    return types.Usage(
        prompt_tokens=usage.input_tokens - cached,
        completion_tokens=usage.output_tokens,
        cached_input_tokens=usage.cached_tokens,
    )
