"""An environment that is served elsewhere, as an environment like any other.

    shop = RemoteEnvironment("http://trainer-2:8100", token=...)
    async for rollout in rollouts(shop, agent, shop.problems("train", 64)): ...

The agent, its model and the log are here; the state of the episodes, their tools and their rubric are there. Every
episode holds a WebSocket; when the server dies or lets the episode expire, that is a failure of the surroundings, and
rollouts begin the episode anew. What the environment is and which problems it has is asked by plain, blocking HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import msgspec

from aworld.config.conf import TaskConfig
from aworld.core.exceptions import ConfigError, EnvironmentFailed, ToolError
from aworld.core.message import Content, Message
from aworld.core.tool.base import Tool, ToolContext
from aworld.environments.environment import Environment
from aworld.environments.place import PROTOCOL
from aworld.environments.problem import FetchedProblems, Problem, Source, Split
from aworld.environments.rubric import Part, Rubric, ScoredEpisode
from aworld.environments.session import Session
from aworld.environments.wire import Wire, fetch

_PAGE = 256
"""Most problems that are asked for at once."""

_GRACE = 15.0
"""Seconds beyond the server's own limit of a tool call after which it is given up here."""

_content = partial(msgspec.convert, type=Content | None)


class RemoteEnvironment(Environment):
    """An environment that an `EnvironmentServer` serves.

    Args:
        url: Where it is served, such as `http://127.0.0.1:8100`.
        token: What the server asks for.
        conf: Limits of an episode in place of the server's.
        timeout: Seconds that the server may take to begin an episode, to answer what the agent says, or to score.

    Raises:
        ConfigError: There is no such server, or it refuses the token. Blocks until the server has told.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        conf: TaskConfig | dict[str, Any] | None = None,
        timeout: float = 120.0,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(
                f"RemoteEnvironment({url!r}): an address begins with http:// or https://, as http://{url}."
            )
        self.url = url.rstrip("/")
        self.headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self.timeout = timeout
        told = self._ask("/describe")
        if told.get("protocol") != PROTOCOL:
            raise ConfigError(
                f"{url} speaks version {told.get('protocol')} of the protocol; this client knows {PROTOCOL}."
            )
        self.described = told
        """What the server says of itself: name, tools, limits, splits."""
        splits = object()  # the server has checked that they do not meet
        super().__init__(
            told["name"],
            train=self._source("train", splits),
            test=self._source("test", splits),
            session=partial(RemoteSession, self),
            rubric=Rubric(*(_part(part) for part in told["rubric"])) if told["rubric"] else None,
            system_prompt=told["system_prompt"],
            conf=told["conf"] if conf is None else conf,
        )

    def _source(self, split: Split, pair: object) -> Source:
        """The problems of a split, without what they hide. Fetching them blocks."""
        size: int | None = self.described["splits"][split]["size"]
        if size is None:
            return _Stream(partial(self._page, split), pair)
        if size == 0:
            return ()
        return FetchedProblems(size, lambda first: self._page(split, min(_PAGE, size - first), None, first), pair)

    def _page(self, split: Split, n: int, seed: int | None, first: int) -> list[Problem]:
        found = self._ask("/problems", {"split": split, "n": n, "order": seed, "first": first})["problems"]
        return [
            Problem(each["id"], msgspec.convert(each["input"], Content), data={k: each[k] for k in _REFERENCE})
            for each in found
        ]

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return fetch(self.url + path, self.headers, self.timeout, body)


@dataclass(frozen=True)
class _Stream:
    """A stream that the server makes."""

    page: Callable[[int, int, int], list[Problem]]
    pair: object

    def __call__(self, seed: int) -> Iterator[Problem]:
        first, n = 0, 16  # making problems may cost the server much: few at first
        while True:
            found = self.page(n, seed, first)
            yield from found
            if len(found) < n:
                return
            first, n = first + n, min(2 * n, _PAGE)


class RemoteSession(Session):
    """One episode on the server. Its tools are those that the server told when it began."""

    def __init__(self, environment: RemoteEnvironment, problem: Problem) -> None:
        super().__init__(problem)
        self.environment = environment
        self.rewards: dict[str, dict[str, Any]] | None = None
        """The rewards of the whole episode by name, once the server has given them."""
        self._tools: list[Tool] = []
        self._wire = Wire(environment.url, environment.headers, environment.timeout)
        self._scoring = asyncio.Lock()

    async def start(self) -> Content | None:
        """Open a place on the server and begin the episode there."""
        await self._wire.open()
        asked = {"problem": {"id": self.problem.id, **self.problem.data}, "seed": self.seed, "limits": "client"}
        told = await self._wire.ask("reset", asked)
        limit = self.environment.described["conf"].get("tool_timeout", TaskConfig().tool_timeout) + _GRACE
        self._tools = [_RemoteTool(self, tool, limit) for tool in told["metadata"]["tools"]]
        return _content(told["observation"]["content"])

    def tools(self) -> Sequence[Tool]:
        """The tools that the server told of."""
        return self._tools

    async def call(self, name: str, arguments: str, call_id: str, timeout: float | None) -> Content:
        """Call a tool there, take over the rewards of the step, and end here if the episode ended there."""
        if self.over:
            raise ToolError("The episode is over; this call was not made.")
        action = {"type": "call_tool", "tool_name": name, "arguments": arguments, "call_id": call_id}
        told = await self._wire.ask("step", action, timeout)
        if told["done"]:
            self.finish(told["metadata"]["answer"])
        self._take(told)
        seen = told["observation"]
        content = cast("Content", _content(seen["result"]))
        if seen["error"] is not None:
            raise ToolError(content if isinstance(content, str) else seen["error"]["message"])
        return content

    async def respond(self, message: Message) -> Content | None:
        """What the environment says to the agent's words; None when the episode ends with them."""
        told = await self._wire.ask("step", {"type": "message", "content": message.text})
        self._take(told)
        return None if told["done"] else _content(told["observation"]["content"])

    async def end(self, episode: ScoredEpisode) -> dict[str, dict[str, Any]]:
        """The rewards of the whole episode: those that it ended with there, or of the way in which it ended here."""
        async with self._scoring:
            if self.rewards is None:
                end = {"type": "end", "status": episode.status, "answer": episode.answer, "error": episode.error}
                self._take(await self._wire.ask("step", end))
        return self.rewards or {}

    async def close(self) -> None:
        """Leave the place: the server lets go of the episode."""
        await self._wire.close()

    def _take(self, told: dict[str, Any]) -> None:
        whole: dict[str, dict[str, Any]] = {}
        for reward in told["metadata"]["rewards"]:
            if not reward["of_step"]:
                whole[reward["name"]] = reward
            elif reward["value"] is not None:
                self.reward(reward["value"], reward["name"], weight=reward["weight"], detail=reward["detail"])
        if told["done"]:
            self.rewards = {**(self.rewards or {}), **whole}


class _RemoteTool(Tool):
    def __init__(self, session: RemoteSession, told: dict[str, Any], timeout: float) -> None:
        self._session = session
        self.name, self.description, self.parameters = told["name"], told["description"], told["input_schema"]
        self.timeout = timeout

    async def invoke(self, arguments: str, context: ToolContext) -> Any:
        return await self._session.call(self.name, arguments, context.call_id, self.timeout)


_REFERENCE = ("split", "order", "index")


def _part(told: dict[str, Any]) -> Part:
    return Part(told["name"], partial(_score, told["name"]), told["weight"], timeout=told["timeout"] + _GRACE)


async def _score(name: str, episode: ScoredEpisode) -> float:
    """The value that the server gave. Raises what was wrong there."""
    reward = (await cast("RemoteSession", episode.session).end(episode)).get(name)
    if reward is None:
        raise EnvironmentFailed(f"The server gave no reward {name!r}.")
    if reward["value"] is None:
        raise EnvironmentFailed(reward["error"] or "no value")
    return reward["value"]
