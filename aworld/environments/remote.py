"""Environments that are served elsewhere: the client's end of OpenEnv's protocol, and our own servers behind it.

    shop = RemoteEnvironment("http://trainer-2:8100", token=...)
    async for rollout in rollouts(shop, agent, shop.problems("train", 64)): ...

The agent, its model and the log are here; the state of the episodes, their tools and their rubric are there. Every
episode holds a WebSocket, on which one question after the other is answered; whatever ends it (the server died, was
stopped, let the episode expire, does not let us in) is a failure of the surroundings, and rollouts begin the episode
anew. What the environment is and which problems it has is asked by plain, blocking HTTP.
"""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import msgspec

from aworld.config.conf import TaskConfig
from aworld.core.checks import typed
from aworld.core.exceptions import ConfigError, EnvironmentFailed, ToolError
from aworld.core.message import Content, Message
from aworld.core.tool.base import Tool, ToolContext
from aworld.environments.environment import Environment, Origin, parts_of
from aworld.environments.problem import FetchedProblems, Problem, Source, Split
from aworld.environments.rubric import Part, Rubric, ScoredEpisode
from aworld.environments.session import Session

if TYPE_CHECKING:
    import aiohttp

PROTOCOL = 1
"""Of what is ours in it: raised when older clients would misunderstand."""

MAX_MESSAGE = 64 * 1024 * 1024
"""Bytes of an answer of the server: observations may hold pictures."""

_PAGE = 256
"""Most problems that are asked for at once."""

_GRACE = 15.0
"""Seconds beyond the server's own limit of a tool call after which it is given up here."""

_REFERENCE = ("split", "order", "index")
"""What names a problem on the server."""

_content = partial(msgspec.convert, type=Content | None)


class ServerRefusal(EnvironmentFailed):
    """The server answered with an error; `code` is that of the protocol."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class ServerAddress:
    """Where environments are served, what is shown there, and how many seconds an answer may take."""

    def __init__(self, url: str, token: str | None, timeout: float) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"environment(url={url!r}): an address begins with http:// or https://, as http://{url}.")
        self.url, self.timeout = url.rstrip("/"), timeout
        self.headers = {} if token is None else {"Authorization": f"Bearer {token}"}

    def fetch(self, path: str, body: Any = None) -> Any:
        """The JSON that a path answers, by POST where there is a body. Blocks. Raises ConfigError."""
        url, data = self.url + path, None if body is None else msgspec.json.encode(body)
        request = urllib.request.Request(url, data, {**self.headers, "Content-Type": "application/json"})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # as the WebSockets: straight to it
        try:
            with opener.open(request, timeout=self.timeout) as answer:
                return msgspec.json.decode(answer.read())
        except urllib.error.HTTPError as refused:
            with refused:
                raise ConfigError(f"{url} | HTTP {refused.code}: {_reason(refused.read())}") from refused
        except (OSError, msgspec.DecodeError) as error:
            raise ConfigError(f"{url} | no environment is served there: {error}") from error


class ServedSession(Session):
    """One episode on a server, with the WebSocket that holds it."""

    def __init__(self, server: ServerAddress, problem: Problem) -> None:
        super().__init__(problem)
        self.server = server
        self._http: aiohttp.ClientSession | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._turn = asyncio.Lock()
        self._under_way: set[asyncio.Task[Any]] = set()

    async def begin(self, data: dict[str, Any]) -> dict[str, Any]:
        """Connect and reset; returns the first observation. Raises EnvironmentFailed."""
        import aiohttp

        self._http = aiohttp.ClientSession()
        url = f"{self.server.url}/ws"
        try:
            connecting = self._http.ws_connect(url, headers=self.server.headers, max_msg_size=MAX_MESSAGE)
            self._socket = await asyncio.wait_for(connecting, self.server.timeout)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise EnvironmentFailed(f"{self.server.url} | no episode can begin there: {_named(error)}") from error
        return await self.ask("reset", data)

    async def ask(self, kind: str, data: dict[str, Any], timeout: float | None = None) -> dict[str, Any]:
        """Ask, and wait for the answer, also when the caller does not: the next answer must be that to the next
        question. Raises ServerRefusal for an error and EnvironmentFailed when there is no answer."""
        exchange = self._exchange({"type": kind, "data": data}, timeout or self.server.timeout)
        task = asyncio.create_task(exchange)
        self._under_way.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Hang up: the server lets go of the episode."""
        for task in self._under_way:
            task.cancel()
        if self._socket is not None:
            await self._socket.close()
        if self._http is not None:
            await self._http.close()

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # where nobody waits any more, it is nobody's news

    async def _exchange(self, message: dict[str, Any], timeout: float) -> dict[str, Any]:
        import aiohttp

        socket, url = self._socket, self.server.url
        if socket is None:
            raise EnvironmentFailed(f"{url} | the episode has not begun.")
        async with self._turn:
            try:
                with suppress(aiohttp.ClientConnectionError):  # it is closed: what was last said there tells why
                    await socket.send_str(msgspec.json.encode(message).decode())
                answer = await socket.receive(timeout=timeout)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                raise EnvironmentFailed(f"{url} | the server is gone: {_named(error)}") from error
        if answer.type is not aiohttp.WSMsgType.TEXT:
            raise EnvironmentFailed(f"{url} | the server has ended the episode: {answer.extra or answer.type.name}")
        reply = msgspec.json.decode(answer.data, type=dict[str, Any])
        if reply["type"] == "error":
            code = str(reply["data"].get("code"))
            raise ServerRefusal(f"{url} | {code}: {reply['data'].get('message')}", code)
        return reply["data"]


class ServedTool(Tool):
    """A tool as a server describes it, called with the text of its arguments, the id of the call and its limit."""

    def __init__(
        self, description: dict[str, Any], call: Callable[[str, str, str, float | None], Any], timeout: float | None
    ) -> None:
        schema = description.get("input_schema") or description.get("inputSchema")
        self.name, self.description = description["name"], description.get("description") or ""
        self.parameters = schema or {"type": "object", "properties": {}}
        self.timeout = timeout
        self._call = call

    async def invoke(self, arguments: str, context: ToolContext) -> Any:
        """What the server answers."""
        return await self._call(self.name, arguments, context.call_id, self.timeout)


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

    @typed()
    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        conf: TaskConfig | dict[str, Any] | None = None,
        timeout: float = 120.0,
    ) -> None:
        self.server = ServerAddress(url, token, timeout)
        described: dict[str, Any] = self.server.fetch("/describe")
        if described.get("protocol") != PROTOCOL:
            raise ConfigError(
                f"{url} speaks version {described.get('protocol')} of the protocol; this client knows {PROTOCOL}."
            )
        self.described = described
        """What the server says of itself: name, tools, limits, splits."""
        pair = object()  # the server has checked that the splits do not meet
        super().__init__(
            described["name"],
            train=self._source("train", pair),
            test=self._source("test", pair),
            session=partial(RemoteSession, self),
            rubric=Rubric(*map(_part, described["rubric"])) if described["rubric"] else None,
            system_prompt=described["system_prompt"],
            conf=described["conf"] if conf is None else conf,
        )
        self.origin = Origin(RemoteEnvironment, [url], {"token": token, "timeout": timeout}, parts_of(self))

    def split_of(self, problem: Problem) -> Split | None:
        """The split in which the server has a problem."""
        return problem.data.get("split")

    def _source(self, split: Split, pair: object) -> Source:
        """The problems of a split, without what they hide. Fetching them blocks."""
        size: int | None = self.described["splits"][split]["size"]
        if size is None:
            return _Stream(partial(self._page, split), pair)
        if size == 0:
            return ()
        return FetchedProblems(size, lambda first: self._page(split, min(_PAGE, size - first), None, first), pair)

    def _page(self, split: Split, n: int, seed: int | None, first: int) -> list[Problem]:
        page = self.server.fetch("/problems", {"split": split, "n": n, "order": seed, "first": first})["problems"]
        return [
            Problem(item["id"], msgspec.convert(item["input"], Content), data={key: item[key] for key in _REFERENCE})
            for item in page
        ]


@dataclass(frozen=True)
class _Stream:
    """A stream that the server makes."""

    page: Callable[[int, int, int], list[Problem]]
    pair: object

    def __call__(self, seed: int) -> Iterator[Problem]:
        first, n = 0, 16  # making problems may cost the server much: few at first
        while True:
            problems = self.page(n, seed, first)
            yield from problems
            if len(problems) < n:
                return
            first, n = first + n, min(2 * n, _PAGE)


class RemoteSession(ServedSession):
    """One episode of a `RemoteEnvironment`. Its tools are those that the server told when it began."""

    def __init__(self, environment: RemoteEnvironment, problem: Problem) -> None:
        super().__init__(environment.server, problem)
        self.rewards: dict[str, dict[str, Any]] | None = None
        """The rewards of the whole episode by name, once the server has given them."""
        self._limit = environment.described["conf"].get("tool_timeout", TaskConfig().tool_timeout) + _GRACE
        self._tools: list[Tool] = []
        self._scoring = asyncio.Lock()

    async def start(self) -> Content | None:
        """Begin the episode on the server."""
        problem = {"id": self.problem.id, **self.problem.data}
        first = await self.begin({"problem": problem, "seed": self.seed, "limits": "client"})
        self._tools = [ServedTool(tool, self.call, self._limit) for tool in first["metadata"]["tools"]]
        return _content(first["observation"]["content"])

    def tools(self) -> Sequence[Tool]:
        """The tools that the server told of."""
        return self._tools

    async def call(self, name: str, arguments: str, call_id: str, timeout: float | None) -> Content:
        """Call a tool there, take over the rewards of the step, and end here if the episode ended there."""
        if self.over:
            raise ToolError("The episode is over; this call was not made.")
        action = {"type": "call_tool", "tool_name": name, "arguments": arguments, "call_id": call_id}
        reply = await self.ask("step", action, timeout)
        if reply["done"]:
            self.finish(reply["metadata"]["answer"])
        self._take(reply)
        observation = reply["observation"]
        content = cast("Content", _content(observation["result"]))
        if observation["error"] is not None:
            raise ToolError(content if isinstance(content, str) else observation["error"]["message"])
        return content

    async def respond(self, message: Message) -> Content | None:
        """What the environment says to the agent's words; None when the episode ends with them."""
        reply = await self.ask("step", {"type": "message", "content": message.text})
        self._take(reply)
        return None if reply["done"] else _content(reply["observation"]["content"])

    async def end(self, episode: ScoredEpisode) -> dict[str, dict[str, Any]]:
        """The rewards of the whole episode: those that it ended with there, or of the way in which it ended here."""
        async with self._scoring:
            if self.rewards is None:
                end = {"type": "end", "status": episode.status, "answer": episode.answer, "error": episode.error}
                self._take(await self.ask("step", end))
        return self.rewards or {}

    def _take(self, reply: dict[str, Any]) -> None:
        whole: dict[str, dict[str, Any]] = {}
        for reward in reply["metadata"]["rewards"]:
            if not reward["of_step"]:
                whole[reward["name"]] = reward
            elif reward["value"] is not None:
                self.reward(reward["value"], reward["name"], weight=reward["weight"], detail=reward["detail"])
        if reply["done"]:
            self.rewards = {**(self.rewards or {}), **whole}


def _part(part: dict[str, Any]) -> Part:
    return Part(part["name"], partial(_score, part["name"]), part["weight"], timeout=part["timeout"] + _GRACE)


async def _score(name: str, episode: ScoredEpisode) -> float:
    """The value that the server gave. Raises what was wrong there."""
    reward = (await cast("RemoteSession", episode.session).end(episode)).get(name)
    if reward is None:
        raise EnvironmentFailed(f"The server gave no reward {name!r}.")
    if reward["value"] is None:
        raise EnvironmentFailed(reward["error"] or "no value")
    return reward["value"]


def _named(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _reason(body: bytes) -> str:
    try:
        return str(msgspec.json.decode(body)["detail"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return body[:200].decode(errors="replace")
