"""A task, and what comes back from running it."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, TypeAlias, TypedDict, cast

from typing_extensions import TypeVar

from aworld.config.conf import TaskConfig
from aworld.core.agent.base import BaseAgent
from aworld.core.agent.flow import Topology, Unit
from aworld.core.checks import UNCHECKED, Kind, Seconds, as_text, nearest, typed
from aworld.core.context.base import Context
from aworld.core.event import ArtifactKept, Status, TaskInfo
from aworld.core.exceptions import TaskError
from aworld.core.hooks import Hooks
from aworld.core.message import Audio, Content, File, Image, Message, Part, Text, Usage, message_of
from aworld.core.rows import rows, step_row
from aworld.core.run_environment import RunEnvironment
from aworld.core.tool.base import Tool, Toolset
from aworld.core.tool.func_to_tool import as_tools, find_tools
from aworld.core.tool.results import ENCODER
from aworld.core.trajectory import Trajectory

TaskStatus = Status

T = TypeVar("T")
D = TypeVar("D")
Answer = TypeVar("Answer", covariant=True, default=Any)
"""What the agent of a task answers; Any of a team."""

DepsSource: TypeAlias = (
    D | Callable[[], D] | Callable[[], Awaitable[D]] | Callable[[], AsyncIterator[D]] | Callable[[], Iterator[D]] | str
)
"""`deps=` of a run: the dependencies, or the function that makes them, by itself or as `module:function`."""


def _opens(value: Any) -> bool:
    return callable(getattr(value, "open", None))


_ENVIRONMENT = Kind("the environment of a run", _opens)

_ids = random.Random()
"""Source of ids: seeded by the system, apart from the program's own seed; 15 µs cheaper than a system call a task."""
os.register_at_fork(after_in_child=_ids.seed)


@dataclass(slots=True)
class Prefix:
    """The part of another trajectory that a task shares: its events before `seq`."""

    trajectory: Trajectory
    seq: int
    after: bool = False
    """Whether the task is the next turn of its conversation, and not a fork."""


class TaskChanges(TypedDict, total=False):
    """The arguments of `Task` that may take the place of what was recorded."""

    conf: TaskConfig | dict[str, Any] | None
    name: str | None
    session_id: str | None
    user_id: str | None
    group_id: str | None
    labels: Mapping[str, str] | None
    after: TaskResponse[Any] | Trajectory | str | None
    tools: Sequence[Any]
    tool_names: Sequence[str]
    context: dict[str, Any] | None
    timeout: float | None
    hooks: Sequence[Hooks]
    environment: RunEnvironment | None


class TaskOptions(TaskChanges, total=False):
    """The arguments of `Task` beside input, agent and dependencies."""

    id: str | None


class Task(Generic[Answer]):
    """One thing to be done by an agent or a swarm.

        Task("What is 17 * 23?", agent=solver, conf={"max_steps": 5}, labels={"experiment": "a"})
        Task("And in Rome?", agent=guide, after=response)

    Args:
        input: Text, message parts (text, images, audio, files), or a list of messages (`Message`, or dicts in the form
            of the chat-completions API) whose last one is what is asked.
        agent: The agent that does it.
        swarm: Or the team that does it.
        conf: Limits, as `TaskConfig` or a plain dict.
        id: Also the id of the trajectory; a new one when not given.
        group_id: Tasks that belong together, such as the samples of one problem.
        labels: Names and values by which the run is found again, both text: `{"run": "baseline", "problem": "7"}`.
        after: The run whose conversation this goes on with: its response, its trajectory or its id. The new trajectory
            shares its messages; limits, usage and rewards are its own.
        tools: Tools for this task only, added to those of the (root) agent.
        tool_names: The same, by registered name.
        context: First values of the state that agents and tools share.
        deps: What tools and instructions work with, such as a database, in `ToolContext.deps`; or a function without
            arguments that returns or yields it, sync or async, itself or as "module:function". Never stored. A function
            is called in each process that works on the run; what stands behind its `yield` is done at the end.
        timeout: Seconds that the run may take; short for `conf.timeout`.
        hooks: Called around the task, each model call and each tool call.
        environment: The surroundings made for this run, such as an episode of an environment.

    Raises:
        TaskError: When there is no agent or swarm, or both, or the input is empty of meaning.
    """

    @typed(TaskError)
    def __init__(
        self,
        input: Annotated[str | Part | Sequence[str | Part] | Sequence[Message | Mapping[str, Any]], UNCHECKED],
        agent: BaseAgent[D, Answer] | Topology | None = None,
        swarm: Unit | None = None,
        conf: TaskConfig | dict[str, Any] | None = None,
        *,
        id: str | None = None,
        name: str | None = None,
        session_id: str | None = None,
        user_id: str | None = None,
        group_id: str | None = None,
        labels: Mapping[str, str] | None = None,
        after: TaskResponse[Any] | Trajectory | str | None = None,
        tools: Annotated[Sequence[Any], UNCHECKED] = (),
        tool_names: Sequence[str] = (),
        context: dict[str, Any] | None = None,
        deps: Annotated[DepsSource[D] | None, UNCHECKED] = None,
        timeout: Seconds | None = None,
        hooks: Sequence[Hooks] = (),
        environment: Annotated[RunEnvironment, _ENVIRONMENT] | None = None,
    ) -> None:
        if (agent is None) == (swarm is None):
            raise TaskError("A task needs either agent=... or swarm=..., and not both.")
        self.history, self.input = messages_of(input)
        """The messages before the input, and the input."""
        self.agent: Unit = cast("Unit", agent if agent is not None else swarm)
        self.conf = TaskConfig(**conf) if isinstance(conf, dict) else (conf or TaskConfig())
        if timeout is not None:
            self.conf = self.conf.model_copy(update={"timeout": timeout})
        self.id = as_text(id) or f"{_ids.getrandbits(128):032x}"
        self.named = id is not None
        """Whether the id is the caller's own."""
        self.name, self.session_id = as_text(name), as_text(session_id)
        self.user_id, self.group_id = as_text(user_id), as_text(group_id)
        if labels and "" in labels:
            raise TaskError("labels: a label without a name cannot be found again; give each its name.")
        self.labels = {str.__str__(name): str.__str__(value) for name, value in (labels or {}).items()}
        self.after = after
        self.tools: list[Tool | Toolset] = as_tools(tools) if tools else []
        for tool_name in tool_names:
            self.tools += find_tools(tool_name)
        self.context = {key: _writable(value, f"context[{key!r}]") for key, value in (context or {}).items()}
        self.deps: Any = deps
        self.hooks = _checked_hooks(hooks)
        self.environment = environment
        self.prefix: Prefix | None = None
        self.said: Content | None = None
        """What is said to the agent when a forked run goes on."""
        self.share: Any = None
        """Its part in what many runs may spend together; belongs to `Runners`."""
        self.driver: Any = None
        """What takes its turns when the task is stepped; belongs to `Runners`."""

    @property
    def info(self) -> TaskInfo:
        """What the log keeps of the task."""
        return TaskInfo(self.id, self.name, self.session_id, self.user_id, self.group_id, self.labels)

    def __repr__(self) -> str:
        return f"<Task {self.id}>"


@dataclass(slots=True)
class TaskResponse(Generic[Answer]):
    """How a run ended, and everything that it did."""

    record: Trajectory
    """The trajectory, with all of its events."""
    status: Status
    answer: Answer = None  # pyright: ignore[reportAssignmentType] - of a run that has finished it is one
    """The answer, of the agent's `output_type` where it has one; None when there is none."""
    error: str | None = None
    time_cost: float = 0.0
    """Seconds spent by this process."""
    context: Context | None = None
    step: int | None = None
    """The step that this response tells of, when the task is stepped."""
    give_reward: Callable[..., Awaitable[None]] | None = field(default=None, repr=False)
    store: Any = field(default=None, repr=False)
    """Where the log is."""

    @property
    def id(self) -> str:
        """The task's id."""
        return self.record.task.id

    @property
    def trajectory_id(self) -> str:
        """Under which the log is stored."""
        return self.record.id

    @property
    def success(self) -> bool:
        """Whether the run finished with an answer."""
        return self.status == "finished"

    @property
    def msg(self) -> str:
        """Why the run did not finish well; empty when it did."""
        return self.error or ""

    @property
    def usage(self) -> Usage:
        """Sum of what the model calls reported; fields nobody reported are None."""
        return self.record.usage or Usage()

    @property
    def artifacts(self) -> list[ArtifactKept]:
        """The files that the run made, changed or deleted in its copy of a folder; `await store.blob(digest)` gives
        their contents, `aworld.sandbox.changes` the difference, and brings them back."""
        return [kept for _, kept in sorted(self.record.artifacts.items())]

    @property
    def trajectory(self) -> list[dict[str, Any]]:
        """The rows, JSON-able: all of them, or this step's when the task is stepped."""
        return rows(self.record) if self.step is None else step_row(self.record, self.step)

    def _repr_html_(self) -> str:
        from aworld.core.notebook import html_of

        return html_of(self.record, answer=self.answer, error=self.error, seconds=self.time_cost)

    @typed(TaskError)
    def reward(
        self,
        value: float | bool,
        *,
        name: str = "reward",
        weight: float = 1.0,
        source: str | None = None,
        detail: Any = None,
    ) -> Awaitable[None]:  # fmt: skip
        """Reward this step, or the whole run when the response is of a whole run.

        The reward counts at once; await the result to know that it is durable. Raises TaskError for a value that is
        not a finite number.
        """
        if self.give_reward is None:
            raise TaskError("This response is not bound to a run; use Runners.reward(id, ..., store=...).")
        return self.give_reward(value, name=name, weight=weight, step=self.step, source=source, detail=detail)


def _checked_hooks(hooks: Sequence[Hooks]) -> tuple[Hooks, ...]:
    """The hooks of a task. One whose method is misspelt would never be called, so that is an error."""
    if not hooks:
        return ()
    points = {name for name in vars(Hooks) if not name.startswith("_")}
    for hook in hooks:
        for name in vars(type(hook)):
            if name.startswith(("before_", "after_")) and name not in points:
                near = nearest(name, points, cutoff=0.0)
                raise TaskError(f"{type(hook).__name__} has {name!r}, which nobody calls; did you mean {near!r}?")
    return tuple(hooks)


def _writable(value: T, what: str) -> T:
    """The value, if a log can hold it. Raises TaskError."""
    try:
        ENCODER.encode(value)
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise TaskError(f"{what} has a lone surrogate at {error.start}, which is no text: {half!r}.") from None
    except (TypeError, ValueError) as error:
        raise TaskError(f"{what} cannot be written to the log: {error}.") from error
    return value


def messages_of(value: Any) -> tuple[tuple[Message, ...], Content]:
    """What a caller gave as input: the messages before the question, and the question. Raises TaskError."""
    items = cast("Sequence[Any]", value) if isinstance(value, list | tuple) else ()
    if not any(isinstance(item, Message) or (isinstance(item, Mapping) and "role" in item) for item in items):
        return (), content_of(value)
    try:
        messages = [message_of(item) for item in items]
    except (ValueError, KeyError, TypeError) as error:
        raise TaskError(f"Input is no list of messages: {error}.") from error
    if messages[-1].role != "user":
        raise TaskError(f"The last message of an input is the user's; got one of role {messages[-1].role!r}.")
    history = tuple(_writable(message, "A message of the input") for message in messages[:-1])
    return history, content_of(messages[-1].content)


def content_of(value: Any) -> Content:
    """What a caller gave as input, as message content. Raises TaskError for anything but text and parts."""
    if isinstance(value, str):
        if not value.strip():
            raise TaskError("The input is empty; say what is to be done.")
        return _writable(value, "Input")
    kind = type(value).__name__
    items: list[Any] = list(cast("Any", value)) if isinstance(value, list | tuple) else [value]
    parts = tuple(Text(item) if isinstance(item, str) else item for item in items)
    if parts and all(isinstance(part, Text | Image | Audio | File) for part in parts):
        return _writable(parts, "Input")
    raise TaskError(f"Input must be text or message parts (Text, Image, Audio, File); got {kind}.")
