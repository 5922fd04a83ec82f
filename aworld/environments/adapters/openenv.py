"""Environments that OpenEnv serves. Speaks its protocol directly, so OpenEnv itself need not be installed here.

    echo = openenv_environment("http://127.0.0.1:8000")

What the server offers by MCP are the tools of the episode; where it offers none, one tool `act` takes its action. The
reward of a step is a step reward, and `done` ends the episode. Its tasks are the problems, by split and index, where
the server has tasks; where it has none, a problem is a seed, and seeds are split by a hash.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast
from urllib.parse import quote

import msgspec

from aworld.config.conf import TaskConfig
from aworld.core.exceptions import ConfigError, ToolError
from aworld.core.message import Content, Message
from aworld.core.tool.base import Tool
from aworld.core.tool.results import to_content
from aworld.environments.adapters.stepwise import ActTool, StepwiseSession, returns, seeded
from aworld.environments.environment import Environment, factory
from aworld.environments.problem import Problem
from aworld.environments.remote import ServedSession, ServedTool, ServerAddress, ServerRefusal

Describe = Callable[[Mapping[str, Any]], Content]
"""Tells a model of an observation."""

INSTRUCTIONS = (
    "Act in the environment {name} by calling tools, until the episode ends; collect as much reward as you can."
)


@factory
def openenv_environment(
    url: str,
    *,
    token: str | None = None,
    name: str | None = None,
    instructions: str | None = None,
    describe: Describe | None = None,
    say: Callable[[str], Mapping[str, Any]] | None = None,
    reset: Mapping[str, Any] | None = None,
    timeout: float = 120.0,
    conf: TaskConfig | dict[str, Any] | None = None,
) -> Environment:
    """An environment that OpenEnv serves, as one of ours.

    Args:
        url: Where it is served, such as `http://127.0.0.1:8000`.
        token: Shown as `Authorization: Bearer …`.
        name: Names the environment in the log; the server's name for it when not given.
        instructions: What the agent is told before the first observation.
        describe: How an observation is told; by default the result of a tool, or the observation as JSON.
        say: Makes an action of what the agent says without calling a tool. Without it, that ends the episode.
        reset: Further arguments of every `reset`.
        timeout: Seconds that the server may take to begin an episode or to answer an action.
        conf: Limits of an episode.

    Raises:
        ConfigError: Nothing of the kind is served there. Blocks until the server has told.
    """
    server = _Server(ServerAddress(url, token, timeout))
    server.describe, server.say, server.reset = describe or _as_text, say, dict(reset or {})
    name = name or server.name
    text = instructions or INSTRUCTIONS.format(name=name)
    shared: dict[str, Any] = {"session": partial(OpenEnvSession, server), "rubric": returns(), "conf": conf}
    splits = server.splits()
    if splits:
        train, test = (server.tasks(text, split) if split in splits else () for split in ("train", "test"))
        return Environment(name, train=train, test=test, key=_task, **shared)
    train_seeds, test_seeds = seeded(text, lambda seed: {"reset": {"seed": seed}})
    return Environment(name, train=train_seeds, test=test_seeds, **shared)


class _Server:
    """What a server says of its environment, and what the caller says of it."""

    describe: Describe
    say: Callable[[str], Mapping[str, Any]] | None
    reset: dict[str, Any]

    def __init__(self, address: ServerAddress) -> None:
        self.address = address
        self.name = str(address.fetch("/metadata").get("name") or "openenv")
        listed: dict[str, Any] = address.fetch(
            "/mcp", {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
        )
        result: dict[str, Any] = listed.get("result") or {}
        self.tools: list[dict[str, Any]] = result.get("tools", [])
        self.action = {} if self.tools else _without_metadata(address.fetch("/schema").get("action") or {})

    def splits(self) -> list[str]:
        """The names of the splits of its tasks; none where it has no tasks."""
        try:
            listed = self.address.fetch("/list_environments")
            self._tasks = f"/{quote(str(listed[0]), safe='')}" if listed else ""
            splits: list[dict[str, Any]] = self.address.fetch(f"{self._tasks}/splits") if listed else []
        except ConfigError:  # servers of older versions, and those whose environment has no tasks
            return []
        return [split["name"] for split in splits]

    def tasks(self, instructions: str, split: str) -> list[Problem]:
        """The tasks of a split."""
        number = self.address.fetch(f"{self._tasks}/num_tasks", {"split": split})["num_tasks"]
        span = {"split": split, "start": 0, "stop": number}
        return [
            Problem(f"{split}-{index}", instructions, data={"reset": {"split": split, "index": index}, "task": task})
            for index, task in enumerate(self.address.fetch(f"{self._tasks}/task_range", span)["tasks"])
        ]


class OpenEnvSession(ServedSession, StepwiseSession):
    """One episode on the server."""

    def __init__(self, environment: _Server, problem: Problem) -> None:
        super().__init__(environment.address, problem)
        self.environment = environment

    async def start(self) -> Content:
        """Begin the episode there."""
        first = await self.begin({**self.environment.reset, **self.problem.data.get("reset", {})})
        return self.opening(to_content(self.environment.describe(first.get("observation") or {})))

    def tools(self) -> Sequence[Tool]:
        """The tools that the server offers, or the one that acts."""
        if not self.environment.tools:
            return [ActTool(self, "Take one step in the environment.", self.environment.action)]
        return [ServedTool(tool, self._call, None) for tool in self.environment.tools]

    async def respond(self, message: Message) -> Content | None:
        """What comes of the agent's words, where words are an action."""
        if self.environment.say is None:
            return None
        content, done = await self.step(dict(self.environment.say(message.text)))
        return None if done else content

    async def act(self, arguments: str) -> Content:
        """Take the action that the model wrote."""
        return (await self.step(_arguments(arguments)))[0]

    async def _call(self, name: str, arguments: str, *_: Any) -> Content:
        action = {"type": "call_tool", "tool_name": name, "arguments": _arguments(arguments)}
        return (await self.step(action))[0]

    async def step(self, action: dict[str, Any]) -> tuple[Content, bool]:
        """Act, take over the reward, and end here when the episode has ended there."""
        if self.over:
            raise ToolError("The episode is over; this action was not taken.")
        try:
            reply = await self.ask("step", action)
        except ServerRefusal as refusal:
            if refusal.code != "VALIDATION_ERROR":
                raise
            raise ToolError(f"The environment does not take this action: {refusal}") from refusal
        if reply.get("reward") is not None:
            self.earn(reply["reward"], f"{self.server.url} | ")
        observation = cast("dict[str, Any]", reply.get("observation") or {})
        done, error = bool(reply.get("done")), observation.get("error")
        content = str(error.get("message")) if error else to_content(self.environment.describe(observation))
        if done:  # also by a call that failed, such as the last one that a limit there allows
            self.finish(content if isinstance(content, str) else None)
        if error:
            raise ToolError(str(content))
        return content, done


def _arguments(text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text or "{}", type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise ToolError(f"The arguments are no JSON object: {error}.") from error


def _as_text(observation: Mapping[str, Any]) -> Content:
    """The result of a tool, unwrapped from MCP's own words, or what there is of the observation."""
    if "tool_name" not in observation:
        return msgspec.json.encode({k: v for k, v in observation.items() if v is not None}).decode()
    result = observation.get("result")
    if isinstance(result, dict):
        wrapped = cast("dict[str, Any]", result)
        if wrapped.get("data") is not None:
            result = wrapped["data"]
        elif isinstance(wrapped.get("content"), list):
            result = "\n".join(str(part.get("text", part)) for part in wrapped["content"])
    return result if isinstance(result, str) else msgspec.json.encode(result).decode()


def _without_metadata(schema: dict[str, Any]) -> dict[str, Any]:
    properties = {key: value for key, value in schema.get("properties", {}).items() if key != "metadata"}
    return {"type": "object", **schema, "properties": properties}


def _task(problem: Problem) -> Any:
    """What makes two tasks the same: what the server says of them, their names and places aside."""
    task = problem.data["task"]
    if not isinstance(task, dict):
        return task
    content = {k: v for k, v in cast("dict[str, Any]", task).items() if k not in ("id", "index", "split", "name")}
    return content or problem.data["reset"]
