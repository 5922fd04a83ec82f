"""Environments that OpenEnv serves. Speaks its protocol directly, so OpenEnv itself need not be installed here.

    echo = openenv_environment("http://127.0.0.1:8000")

What the server offers by MCP are the tools of the episode; where it offers none, one tool `act` takes its action. The
reward of a step is a step reward, and `done` ends the episode. Its tasks are the problems, by split and index, where
the server has tasks; where it has none, a problem is a seed, and seeds are split by a hash.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast
from urllib.parse import quote

import msgspec

from aworld.config.conf import TaskConfig
from aworld.core.exceptions import ConfigError, EnvironmentFailed, ToolError
from aworld.core.message import Content, Message
from aworld.core.tool.base import Tool, ToolContext
from aworld.core.tool.results import to_content
from aworld.environments.environment import Environment
from aworld.environments.problem import Problem, split_by_hash
from aworld.environments.rubric import Part, Rubric, ScoredEpisode
from aworld.environments.session import Session
from aworld.environments.wire import Refusal, Wire, fetch

Describe = Callable[[Mapping[str, Any]], Content]
"""Tells a model of an observation."""

INSTRUCTIONS = (
    "Act in the environment {name} by calling tools, until the episode ends; collect as much reward as you can."
)


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
    served = _Served(url.rstrip("/"), {} if token is None else {"Authorization": f"Bearer {token}"}, timeout)
    served.describe, served.say, served.reset = describe or _told, say, dict(reset or {})
    name = name or served.name
    text = instructions or INSTRUCTIONS.format(name=name)
    shared: dict[str, Any] = {
        "session": partial(OpenEnvSession, served),
        "rubric": Rubric(Part("return", _return, weight=0.0, inline=True)),
        "conf": conf,
    }
    splits = served.splits()
    if splits:
        train, test = (served.tasks(text, split) if split in splits else () for split in ("train", "test"))
        return Environment(name, train=train, test=test, key=_task, **shared)
    train_seeds, test_seeds = split_by_hash(partial(_seeds, text))
    return Environment(name, train=train_seeds, test=test_seeds, **shared)


class _Served:
    """What a server says of its environment."""

    describe: Describe
    say: Callable[[str], Mapping[str, Any]] | None
    reset: dict[str, Any]

    def __init__(self, url: str, headers: dict[str, str], timeout: float) -> None:
        self.url, self.headers, self.timeout = url, headers, timeout
        self.name = str(self._ask("/metadata").get("name") or "openenv")
        listed = self._ask("/mcp", {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}})
        result: dict[str, Any] = listed.get("result") or {}
        self.tools: list[dict[str, Any]] = [_tool(tool) for tool in result.get("tools", [])]
        if not self.tools:
            self.action = _without_metadata(self._ask("/schema").get("action") or {})

    def splits(self) -> list[str]:
        """The names of the splits of its tasks; none where it has no tasks."""
        try:
            listed = fetch(f"{self.url}/list_environments", self.headers, self.timeout)
            self._tasks = f"/{quote(str(listed[0]), safe='')}" if listed else ""
            splits: list[dict[str, Any]] = (
                fetch(f"{self.url}{self._tasks}/splits", self.headers, self.timeout) if listed else []
            )
        except ConfigError:  # servers of older versions, and those whose environment has no tasks
            return []
        return [split["name"] for split in splits]

    def tasks(self, instructions: str, split: str) -> list[Problem]:
        """The tasks of a split."""
        number = self._ask(f"{self._tasks}/num_tasks", {"split": split})["num_tasks"]
        tasks = self._ask(f"{self._tasks}/task_range", {"split": split, "start": 0, "stop": number})["tasks"]
        return [
            Problem(f"{split}-{index}", instructions, data={"reset": {"split": split, "index": index}, "task": task})
            for index, task in enumerate(tasks)
        ]

    def _ask(self, path: str, body: Any = None) -> dict[str, Any]:
        return cast("dict[str, Any]", fetch(self.url + path, self.headers, self.timeout, body))


class OpenEnvSession(Session):
    """One episode on the server. `total` is the sum of its rewards so far."""

    def __init__(self, served: _Served, problem: Problem) -> None:
        super().__init__(problem)
        self.served = served
        self.total = 0.0
        self._wire = Wire(served.url, served.headers, served.timeout)

    async def start(self) -> Content:
        """Begin the episode there."""
        await self._wire.open()
        asked = {**self.served.reset, **self.problem.data.get("reset", {})}
        told = await self._wire.ask("reset", asked)
        seen = to_content(self.served.describe(told.get("observation") or {}))
        text = str(self.problem.input)
        return f"{text}\n\nFirst observation: {seen}" if isinstance(seen, str) else to_content([text, *seen])

    def tools(self) -> Sequence[Tool]:
        """The tools that the server offers, or the one that acts."""
        if not self.served.tools:
            return [_Act(self)]
        return [_ServedTool(self, tool) for tool in self.served.tools]

    async def respond(self, message: Message) -> Content | None:
        """What comes of the agent's words, where words are an action."""
        if self.served.say is None:
            return None
        told, done = await self.step(dict(self.served.say(message.text)))
        return None if done else told

    async def step(self, action: dict[str, Any]) -> tuple[Content, bool]:
        """Act, take over the reward, and end here when the episode has ended there."""
        if self.over:
            raise ToolError("The episode is over; this action was not taken.")
        try:
            told = await self._wire.ask("step", action)
        except Refusal as refused:
            if refused.code != "VALIDATION_ERROR":
                raise
            raise ToolError(f"The environment does not take this action: {refused}") from refused
        reward, done = told.get("reward"), bool(told.get("done"))
        if reward is not None:
            self._reward(reward)
        seen = cast("dict[str, Any]", told.get("observation") or {})
        if seen.get("error"):
            raise ToolError(str(seen["error"].get("message")))
        content = to_content(self.served.describe(seen))
        if done:
            self.finish(content if isinstance(content, str) else None)
        return content, done

    def _reward(self, value: Any) -> None:
        try:
            self.total += float(value)
            self.reward(float(value))
        except (TypeError, ValueError) as error:
            raise EnvironmentFailed(f"{self.served.url} | step gave the reward {value!r}: {error}") from error

    async def close(self) -> None:
        """Leave."""
        await self._wire.close()


class _ServedTool(Tool):
    def __init__(self, session: OpenEnvSession, told: dict[str, Any]) -> None:
        self._session = session
        self.name, self.description, self.parameters = told["name"], told["description"], told["parameters"]

    async def invoke(self, arguments: str, context: ToolContext) -> Any:
        action = {"type": "call_tool", "tool_name": self.name, "arguments": _arguments(arguments)}
        return (await self._session.step(action))[0]


class _Act(Tool):
    name = "act"
    description = "Take one step in the environment."

    def __init__(self, session: OpenEnvSession) -> None:
        self._session = session
        self.parameters = session.served.action

    async def invoke(self, arguments: str, context: ToolContext) -> Any:
        return (await self._session.step(_arguments(arguments)))[0]


def _arguments(text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text or "{}", type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise ToolError(f"The arguments are no JSON object: {error}.") from error


def _told(observation: Mapping[str, Any]) -> Content:
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


def _tool(told: Mapping[str, Any]) -> dict[str, Any]:
    parameters: Any = told.get("input_schema") or told.get("inputSchema") or {"type": "object", "properties": {}}
    return {"name": told["name"], "description": told.get("description") or "", "parameters": parameters}


def _without_metadata(schema: dict[str, Any]) -> dict[str, Any]:
    properties = {key: value for key, value in schema.get("properties", {}).items() if key != "metadata"}
    return {"type": "object", **schema, "properties": properties}


def _seeds(instructions: str, seed: int) -> Iterator[Problem]:
    first = random.Random(seed).getrandbits(31)
    for number in range(2**31):
        own = (first + number) & 0x7FFFFFFF
        yield Problem(f"seed-{own}", instructions, data={"reset": {"seed": own}})


def _task(problem: Problem) -> Any:
    """What makes two tasks the same: what the server says of them, their names and places aside."""
    task = problem.data["task"]
    if not isinstance(task, dict):
        return task
    known = {k: v for k, v in cast("dict[str, Any]", task).items() if k not in ("id", "index", "split", "name")}
    return known or problem.data["reset"]


def _return(episode: ScoredEpisode) -> float:
    return cast("OpenEnvSession", episode.session).total
