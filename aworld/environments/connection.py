"""What a client of an environment server is connected to: one episode at a time, by messages in OpenEnv's protocol.

    {"type": "reset", "data": {"split": "test", "index": 3}}
    {"type": "step", "data": {"type": "call_tool", "tool_name": "look", "arguments": {"where": "left"}}}
    {"type": "step", "data": {"type": "message", "content": "It is on the left."}}

Answers are `{"type": "observation", "data": {"observation", "reward", "done", "metadata"}}`. A problem is named by its
split, seed and index, and made again from them: what it hides stays here, and a server that was restarted knows it too.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import math
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import msgspec

from aworld.core.common import Observation
from aworld.core.event import Rewarded, Status
from aworld.core.exceptions import AWorldError, ConfigError, EnvironmentFailed, TaskError
from aworld.core.message import Message, ToolCall
from aworld.core.model import ToolSchema
from aworld.core.run_environment import Reward
from aworld.core.tool.base import Tool
from aworld.core.tool.func_to_tool import as_tools
from aworld.core.tool.threads import THREADS
from aworld.environments.environment import Environment
from aworld.environments.episode import EpisodeEnv, as_message
from aworld.environments.problem import Problem, Split
from aworld.environments.session import STEP_SOURCE, Session, _tool_names

PROTOCOL = 1
"""Of what is ours: raised when older clients would misunderstand."""

_STREAMS = 64
"""Streams of problems that are kept, the least used are made again."""

_FURTHEST = 1_000_000
"""Problems of one stream; nobody shall fill the memory by asking for the billionth."""


class RequestRefused(AWorldError):
    """A request that cannot be met, with its code in the protocol and the status of an HTTP answer."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code, self.status = code, status

    @property
    def response(self) -> dict[str, Any]:
        """What a WebSocket answers."""
        return {"type": "error", "data": {"message": str(self), "code": self.code}}


def _unknown(message: str) -> RequestRefused:
    return RequestRefused("UNKNOWN_PROBLEM", message, 404)


def _invalid(message: str) -> RequestRefused:
    return RequestRefused("VALIDATION_ERROR", message)


class ProblemIndex:
    """The problems of an environment by split, seed and index."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self._streams: OrderedDict[tuple[Split, int | None], list[Problem]] = OrderedDict()
        self._lock = asyncio.Lock()

    async def page(self, wanted: Mapping[str, Any]) -> list[dict[str, Any]]:
        """At most `n` problems from `first` on, without what they hide: fewer where a split ends.

        Raises RequestRefused.
        """
        split, order = _stream(wanted)
        first, n = wanted.get("first", 0), wanted.get("n")
        if not isinstance(first, int) or first < 0:
            raise _invalid(f"first={first!r}: a number of problems to leave out.")
        end = None if n is None else first + n
        problems = (await self._until(split, order, end))[first:end]
        return [
            {"id": problem.id, "input": problem.input, "split": split, "order": order, "index": first + number}
            for number, problem in enumerate(problems)
        ]

    async def find(self, reference: Mapping[str, Any]) -> Problem:
        """The problem of a reference. Raises RequestRefused."""
        split, order = _stream(reference)
        index = reference.get("index")
        if not isinstance(index, int) or index < 0:
            raise _unknown(f"index={index!r}: the number of a problem, from 0.")
        problems = await self._until(split, order, index + 1)
        if index >= len(problems):
            raise _unknown(f"{split} has {len(problems)} problems; number {index} was asked for.")
        problem = problems[index]
        if reference.get("id", problem.id) != problem.id:
            raise _unknown(
                f"There is no problem {reference['id']!r} here (number {index} of {split} is {problem.id!r}): the "
                "server was started with another environment."
            )
        return problem

    async def _until(self, split: Split, seed: int | None, end: int | None) -> list[Problem]:
        """At least `end` problems of a split, or all that it has; of a list all when it is None."""
        async with self._lock:
            problems = self._streams.get((split, seed), [])
            if end is None or len(problems) < end:
                problems = await self._make(split, seed, end, 2 * len(problems))
                self._streams[split, seed] = problems
                if len(self._streams) > _STREAMS:
                    self._streams.popitem(last=False)
            self._streams.move_to_end((split, seed))
            return problems

    async def _make(self, split: Split, seed: int | None, end: int | None, ahead: int) -> list[Problem]:
        problems = partial(self.environment.problems, split)
        stream = callable(self.environment.train if split == "train" else self.environment.test)
        if stream and end is not None and end > _FURTHEST:
            raise _unknown(f"Only the first {_FURTHEST:,} problems of a stream are served.")
        n = max(end, ahead) if stream and end is not None else None
        try:  # making problems may take long: in a thread
            return await THREADS.run(partial(problems, n, seed, fewer=True))
        except ConfigError as wrong:
            raise _unknown(str(wrong)) from wrong


class EnvironmentConnection:
    """Where one client plays one episode after the other."""

    def __init__(self, id: str, environment: Environment, problems: ProblemIndex, store: Any) -> None:
        self.id = id
        self.problems = problems
        self.used = asyncio.get_running_loop().time()
        self.tools: list[dict[str, Any]] = []
        self.expiry: asyncio.Task[None] | None = None
        self._environment = environment
        self._store = store
        self._env: EpisodeEnv | None = None
        self._system_prompt = environment.system_prompt
        self._lock = asyncio.Lock()
        self._closed = False

    @property
    def busy(self) -> bool:
        """Whether it is answering."""
        return self._lock.locked()

    async def answer(self, message: Mapping[str, Any]) -> dict[str, Any] | None:
        """The answer to a message, None to `close`. Raises RequestRefused and other AWorldErrors."""
        async with self._lock:
            if self._closed:  # who still has its WebSocket: nobody would ever end an episode that begins now
                raise RequestRefused("SESSION_ERROR", f"Connection {self.id!r} has been closed.", 404)
            try:
                return await self._answer(message.get("type"), _mapping(message.get("data"), "data"))
            except EnvironmentFailed as failed:
                raise RequestRefused("ENVIRONMENT_FAILED", str(failed), 500) from failed
            except TaskError as wrong:
                raise _invalid(str(wrong)) from wrong
            finally:
                self.used = asyncio.get_running_loop().time()

    async def close(self) -> None:
        """Cancel the episode that is running, and begin no other."""
        async with self._lock:
            self._closed = True
            if self._env is not None:
                await self._env.close()

    async def _answer(self, kind: object, data: dict[str, Any]) -> dict[str, Any] | None:
        match kind:
            case "reset":
                return await self._reset(data)
            case "step":
                return await self._step(data)
            case "state":
                record = self._env.record if self._env is not None else None
                state = {"episode_id": record and record.id, "step_count": len(record.calls) if record else 0}
                return {"type": "state", "data": state}
            case "close":
                return None
            case _:
                raise RequestRefused("UNKNOWN_TYPE", f"Unknown message type: {kind}")

    async def _reset(self, data: dict[str, Any]) -> dict[str, Any]:
        reference = _mapping(data.get("problem"), "problem") or (data if "index" in data else None)
        problem = None if reference is None else await self.problems.find(reference)
        seed = data.get("seed")
        if seed is not None and not isinstance(seed, int):
            raise _invalid(f"seed={seed!r} is no whole number.")
        if self._env is not None:
            await self._env.close()
        environment = self._environment if data.get("limits") != "client" else _without_limits(self._environment)
        self._env = EpisodeEnv(environment, _split(data), store=self._store)
        observation, info = await self._env.reset(seed=seed, problem=problem)
        self.tools = [_described(tool) for tool in self._env.tools]
        seen = {"content": observation.content, "problem_id": info["problem_id"], "system_prompt": self._system_prompt}
        metadata = {"tools": self.tools, "episode_id": info["trajectory_id"], "problem_id": info["problem_id"]}
        return _observed(seen, None, False, metadata)

    async def _step(self, data: dict[str, Any]) -> dict[str, Any]:
        match data:
            case {"type": "list_tools"}:
                tools = self.tools or static_tools(self._environment)
                return _observed({"tools": tools}, None, False, {})
            case {"type": "call_tool", "tool_name": str(name)}:
                arguments = data.get("arguments")
                text = arguments if isinstance(arguments, str) else msgspec.json.encode(arguments or {}).decode()
                call = ToolCall(str(data.get("call_id") or ""), name, text)
                return await self._act(Message("assistant", data.get("content"), tool_calls=(call,)), name)
            case {"type": "message", **message}:
                return await self._act(as_message(message))
            case {"action": str(text)}:
                return await self._act(Message("assistant", text))
            case {"type": "end", "status": "finished" | "failed" | "timeout" | "limit_reached" as status}:
                return await self._end(status, data.get("answer"), data.get("error"))
            case _:
                raise _invalid(
                    'An action is {"type": "list_tools"}, {"type": "call_tool", "tool_name": …, "arguments": {…}} or '
                    '{"type": "message", "content": …}.',
                )

    async def _act(self, message: Message, tool: str | None = None) -> dict[str, Any]:
        env = self._running()
        before = len(env.record.rewards)
        observation, gain, terminated, truncated, info = await env.step(message)
        done = terminated or truncated
        metadata: dict[str, Any] = {
            "status": info["status"],
            "score": env.record.score,
            "rewards": [_reward(reward) for reward in env.record.rewards[before:]],
            "truncated": truncated,
            "answer": env.record.answer if done else None,
            "error": info.get("error"),
        }
        return _observed(_seen(env, observation, tool), None if math.isnan(gain) else gain, done, metadata)

    async def _end(self, status: Status, answer: Any, error: str | None) -> dict[str, Any]:
        """The client's run has ended in its own way: score it so."""
        env = self._running()
        rewards: list[Reward | Rewarded] = [r for r in env.record.rewards if r.source != STEP_SOURCE]
        if env.record.finished is None:
            rewards += await env._running().score_now(status, answer, error)
            await env.close()
        metadata = {"status": status, "score": env.record.score, "rewards": [_reward(reward) for reward in rewards]}
        return _observed({"content": ""}, None, True, metadata)

    def _running(self) -> EpisodeEnv:
        if self._env is None:
            raise _invalid("No episode has begun; send reset first.")
        return self._env


def described(environment: Environment) -> dict[str, Any]:
    """What a client must know of an environment before its first episode."""
    splits: dict[str, Any] = {}
    for split, source in (("train", environment.train), ("test", environment.test)):
        splits[split] = {"size": None if callable(source) else len(source)}
    parts = environment.rubric.parts if environment.rubric is not None else ()
    return {
        "protocol": PROTOCOL,
        "name": environment.name,
        "system_prompt": environment.system_prompt,
        "conf": environment.conf.model_dump(mode="json", exclude_defaults=True),
        "splits": splits,
        "rubric": [{"name": part.name, "weight": part.weight, "timeout": part.timeout} for part in parts],
        "tools": static_tools(environment),
    }


def static_tools(environment: Environment) -> list[dict[str, Any]]:
    """The tools that are known before an episode begins; others are told by `reset`."""
    general = [tool for tool in as_tools(environment.tools) if isinstance(tool, Tool)]
    kind: Any = environment.session
    methods: list[Tool] = []
    if isinstance(kind, type) and issubclass(kind, Session) and kind.tools is Session.tools:
        methods = [inspect.getattr_static(kind, name) for name in _tool_names(kind)]
    return [_described(tool.schema) for tool in [*general, *methods]]


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise _invalid(f"{name} is an object; got {value!r:.200}.")
    return cast("dict[str, Any]", value or {})


def _stream(wanted: Mapping[str, Any]) -> tuple[Split, int | None]:
    order = wanted.get("order")
    if order is not None and not isinstance(order, int):
        raise _invalid(f"order={order!r}: the seed of a stream of problems, a whole number.")
    return _split(wanted), order


def _split(wanted: Mapping[str, Any]) -> Split:
    split = wanted.get("split", "train")
    if split not in ("train", "test"):
        raise _invalid(f"split={split!r}: there are 'train' and 'test'.")
    return split


def _without_limits(environment: Environment) -> Environment:
    """The environment for a client that keeps its limits itself: there a step is a decision, here it is a tool call."""
    freed = copy.copy(environment)
    none = {"max_steps": None, "max_tokens": None, "max_cost": None, "timeout": None}
    freed.conf = environment.conf.model_copy(update=none)
    return freed


def _described(tool: ToolSchema) -> dict[str, Any]:
    return {"name": tool.name, "description": tool.description, "input_schema": tool.parameters}


def _seen(env: EpisodeEnv, observation: Observation, tool: str | None) -> dict[str, Any]:
    results = observation.results
    if tool is None:
        fields = ("tool_call_id", "name", "content", "error")
        shown = [{field: getattr(result, field) for field in fields} for result in results]
        return {"content": observation.content, "results": shown}
    content, error = (results[-1].content, results[-1].error) if results else _last_result(env)
    failure = None if error is None else {"error_type": "execution_error", "message": error}
    return {"tool_name": tool, "result": content, "error": failure}


def _last_result(env: EpisodeEnv) -> tuple[Any, str | None]:
    """What the last call answered, where the episode ended with it and the observation is the answer."""
    step = env.record.steps()[-1]
    returned = next(iter(step.results.values()), None)
    if returned is None:
        return env.record.answer, env.record.error
    return env.record.messages[returned.result].message.content, returned.error


def _reward(reward: Reward | Rewarded) -> dict[str, Any]:
    return {
        "name": reward.name, "value": reward.value, "weight": reward.weight, "error": reward.error,
        "detail": reward.detail, "of_step": reward.source == STEP_SOURCE,
    }  # fmt: skip


def _observed(seen: dict[str, Any], reward: float | None, done: bool, metadata: dict[str, Any]) -> dict[str, Any]:
    return {"type": "observation", "data": {"observation": seen, "reward": reward, "done": done, "metadata": metadata}}
