"""An environment over HTTP: many episodes at once, each in a place of its own, for trainers on other machines.

    async with EnvironmentServer(environment) as server:
        print(server.url)                                # RemoteEnvironment(url) is this environment elsewhere

It speaks OpenEnv's protocol, so that OpenEnv's clients can use it too: a WebSocket at `/ws` is a place, in which
`reset`, `step` and `state` are asked and answered one after the other, and whose end is the end of its episode;
`POST /mcp` makes, lists, calls and closes such places by JSON-RPC. What is ours: `GET /describe`, `POST /problems`, and
the actions `message` and `end`.

    {"type": "reset", "data": {"split": "test", "index": 3}}
    {"type": "step", "data": {"type": "call_tool", "tool_name": "look", "arguments": {"where": "left"}}}
    {"type": "step", "data": {"type": "message", "content": "It is on the left."}}

Answers are `{"type": "observation", "data": {"observation", "reward", "done", "metadata"}}`. A problem is named by its
split, seed and index, and made again from them: what it hides stays here, and a server that was restarted knows it too.
A place that nobody uses expires.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import logging
import math
import secrets
from collections import OrderedDict
from contextlib import suppress
from itertools import islice
from typing import Annotated, Any, cast

import msgspec
from fastapi import APIRouter, Request, Response, WebSocket
from msgspec import Meta, Struct
from starlette.websockets import WebSocketDisconnect

from aworld import __version__
from aworld.core.checks import positive
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
from aworld.environments.problem import SPLITS, Problem, Split
from aworld.environments.remote import PROTOCOL
from aworld.environments.session import STEP_SOURCE, Session, tool_names
from aworld.server.shell import RequestProblem, Serving, json_response, read_json

logger = logging.getLogger(__name__)

_MOST_PROBLEMS = 10_000
"""Problems of one answer."""
_PIECE = 500
"""Most problems that are made in one go; others can be answered between two of them."""
_AHEAD = 100_000
"""How far beyond the problems of a stream that there are somebody may ask: nobody shall occupy the server, or fill its
memory, by asking for the billionth."""
_KEPT = 1_000_000
"""Problems that are kept, and `_STREAMS` streams of them; the least used streams are made again."""
_STREAMS = 64
_GONE = (WebSocketDisconnect, OSError, RuntimeError)
"""What a WebSocket raises whose client has gone, or which this end has closed already."""


class RequestRefused(RequestProblem):
    """A request that cannot be met, with its code in the protocol."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(status, message, code=code)
        self.code = code

    @property
    def reply(self) -> dict[str, Any]:
        """What a WebSocket answers."""
        return {"type": "error", "data": {"message": self.detail, "code": self.code}}


def _unknown(message: str) -> RequestRefused:
    return RequestRefused("UNKNOWN_PROBLEM", message, 404)


def _invalid(message: str) -> RequestRefused:
    return RequestRefused("VALIDATION_ERROR", message)


class _Split(Struct):
    """A split, and the seed of the order in which its problems stand."""

    split: Split = "train"
    order: int | None = None


class _Page(_Split):
    """Problems of a split that a client asks for: so many, after the first of them."""

    first: Annotated[int, Meta(ge=0)] = 0
    n: Annotated[int, Meta(ge=0, le=_MOST_PROBLEMS)] = _MOST_PROBLEMS


class _Reference(_Split, kw_only=True):
    """A problem by its place in a split. With its id it is another one where the server has another environment."""

    index: Annotated[int, Meta(ge=0)]
    id: str | None = None


class _Reset(_Split):
    """What an episode shall begin with: a problem, or one that the seed chooses."""

    index: Annotated[int, Meta(ge=0)] | None = None
    problem: _Reference | None = None
    seed: int | None = None
    limits: str | None = None
    """`client` where the client keeps the limits."""


class ClientMessage(Struct):
    """A message of the protocol."""

    type: str | None = None
    data: dict[str, Any] | None = None


class EnvironmentServer(Serving):
    """Serves an environment.

    Args:
        environment: What is served.
        host, port, token, options: As of `Serving`; port 8100 unless told otherwise.
        max_episodes: Places that exist at once; more are refused, and clients try again.
        per_client: Places that one address may have of them; three quarters unless told otherwise.
        idle: Seconds without a message after which a place expires.
        store: Where the episodes are recorded; None keeps nothing.
    """

    def __init__(
        self, environment: Environment, host: str = "127.0.0.1", port: int = 8100, *, max_episodes: int = 1024,
        per_client: int | None = None, idle: float = 600.0, store: Any = None, **options: Any,
    ) -> None:  # fmt: skip
        router = APIRouter()
        router.add_route("/metadata", self._metadata)
        router.add_route("/describe", self._describe)
        router.add_route("/problems", self._problems, methods=["POST"])
        router.add_route("/mcp", self._mcp, methods=["POST"])
        router.add_websocket_route("/ws", self._socket)
        super().__init__(router, host=host, port=port, **options)
        self.environment = environment
        self.max_episodes = positive("max_episodes", max_episodes, whole=True)
        most = math.ceil(0.75 * max_episodes) if per_client is None else per_client
        self.per_client = positive("per_client", most, whole=True)
        self.idle = positive("idle", idle)
        self.store = store
        self.book = ProblemIndex(environment)
        self.places: dict[str, EnvironmentConnection] = {}
        """Those that exist, by id."""

    async def stop(self) -> None:
        """Stop to serve; episodes under way are cancelled."""
        await super().stop()
        await asyncio.gather(*(self._leave(id) for id in list(self.places)))

    async def _metadata(self, _: Request) -> Response:
        name = self.environment.name
        return json_response({"name": name, "description": f"The AWorld environment {name}.", "version": __version__})

    async def _describe(self, _: Request) -> Response:
        return json_response({**described(self.environment), "max_episodes": self.max_episodes, "idle": self.idle})

    async def _problems(self, request: Request) -> Response:
        return json_response({"problems": await self.book.page(await read_json(request, _Page))})

    def _enter(self, client: Request | WebSocket) -> EnvironmentConnection:
        address = client.client.host if client.client is not None else ""
        if len(self.places) >= self.max_episodes:
            raise RequestRefused("CAPACITY_REACHED", f"All {self.max_episodes} places are taken; try again later.", 503)
        if sum(place.client == address for place in self.places.values()) >= self.per_client:
            raise RequestRefused("CAPACITY_REACHED", f"{address} has {self.per_client} places, all it may have.", 503)
        id = secrets.token_urlsafe(16)  # who knows it may use the place
        place = self.places[id] = EnvironmentConnection(id, address, self.environment, self.book, self.store)
        self._watch(place)
        return place

    def _watch(self, place: EnvironmentConnection) -> None:
        """Look again when the place may have been idle for too long."""
        loop = asyncio.get_running_loop()
        left = self.idle if place.busy else place.used + self.idle - loop.time()
        if self.places.get(place.id) is not place:
            return
        if left > 0:
            loop.call_later(max(left, 0.001), self._watch, place)
            return
        why = RequestRefused("EXPIRED", f"The episode expired: nothing was asked for {self.idle:g} s.")
        place.expiry = loop.create_task(self._leave(place.id, why))

    async def _leave(self, id: str, why: RequestRefused | None = None) -> None:
        """Close a place and then its WebSocket, which hears why."""
        place = self.places.pop(id, None)
        if place is None:
            return
        await place.close()
        if place.socket is not None:
            await _hang_up(place.socket, why)

    def _place(self, id: object) -> EnvironmentConnection:
        place = self.places.get(str(id))
        if place is None:
            raise RequestRefused("SESSION_ERROR", f"There is no place {id!r} (any more); it may have expired.", 404)
        return place

    async def _socket(self, socket: WebSocket) -> None:
        await socket.accept()
        id = socket.query_params.get("session_id")
        try:
            place = self._enter(socket) if id is None else self._place(id)
            if place.socket is not None:
                raise RequestRefused("SESSION_ERROR", f"Place {id!r} already has a WebSocket.")
        except RequestRefused as refused:
            return await _hang_up(socket, refused)
        place.socket = socket
        try:
            async for message in socket.iter_text():
                if (reply := await _answered(place, message)) is None:
                    break
                await socket.send_text(_text(reply))
        except (*_GONE, KeyError):  # in mid-answer, or what came is no text
            logger.debug("place=%s | the client has gone", place.id)
        finally:
            place.socket = None
            if id is None:  # one that was made by JSON-RPC is closed by it
                await self._leave(place.id)
            await _hang_up(socket)

    async def _mcp(self, request: Request) -> Response:
        call = await read_json(request, dict[str, Any])
        head, params = {"jsonrpc": "2.0", "id": call.get("id")}, cast("dict[str, Any]", call.get("params") or {})
        try:
            return json_response({**head, "result": await self._called(str(call.get("method")), params, request)})
        except AWorldError as error:
            return json_response({**head, "error": {"code": -32602, "message": str(error)}})

    async def _called(self, method: str, params: dict[str, Any], request: Request) -> dict[str, Any]:
        match method:
            case "openenv/session/create":
                return {"session_id": self._enter(request).id}
            case "openenv/session/close":
                place = self._place(params.get("session_id"))
                await self._leave(place.id)
                return {"session_id": place.id, "closed": True}
            case "tools/list":
                place = self.places.get(str(params.get("session_id")))
                tools = place.tools if place is not None and place.tools else static_tools(self.environment)
                return {"tools": [{**tool, "inputSchema": tool["input_schema"]} for tool in tools]}
            case "tools/call":
                action = {"type": "call_tool", "tool_name": params.get("name"), "arguments": params.get("arguments")}
                reply = await self._place(params.get("session_id")).answer(ClientMessage("step", action))
                seen = cast("dict[str, Any]", reply)["data"]["observation"]
                if seen.get("error"):
                    raise RequestRefused("EXECUTION_ERROR", str(seen["error"]["message"]))
                return {"data": seen["result"]}
            case _:
                raise RequestRefused("UNKNOWN_TYPE", f"Method not found: {method}")


async def _hang_up(socket: WebSocket, why: RequestRefused | None = None) -> None:
    with suppress(*_GONE):
        if why is not None:
            await socket.send_text(_text(why.reply))
        await socket.close(1001)


async def _answered(place: EnvironmentConnection, text: str) -> dict[str, Any] | None:
    """The answer to a message; None when it says good-bye."""
    try:
        return await place.answer(msgspec.json.decode(text, type=ClientMessage))
    except RequestRefused as refused:
        return refused.reply
    except msgspec.ValidationError as error:
        return _invalid(f"The message does not fit: {error}").reply
    except (msgspec.DecodeError, RecursionError) as error:
        return RequestRefused("INVALID_JSON", f"Invalid JSON: {error}").reply
    except Exception as bug:  # one episode must not take the others with it
        logger.exception("place=%s | answering raised", place.id)
        return RequestRefused("EXECUTION_ERROR", f"{type(bug).__name__}: {bug}").reply


def _text(data: dict[str, Any]) -> str:
    return msgspec.json.encode(data).decode()


class _Made:
    """The problems of one split and order, as far as somebody asked. Those to come are made in pieces, in a thread."""

    def __init__(self, environment: Environment, split: Split, order: int | None) -> None:
        source = environment.source(split)
        self.size = None if callable(source) else len(source)
        self.problems: list[Problem] = []
        self.ended = False
        self._left = environment.stream(split, order)
        self._piece: asyncio.Task[None] | None = None

    async def until(self, end: int) -> list[Problem]:
        """At least `end` of them, or all. Raises RequestRefused when that is too far ahead, and ConfigError."""
        if self.size is None and end > len(self.problems) + _AHEAD:
            raise _unknown(
                f"Problem {end - 1:,} of a stream was asked for, and {len(self.problems):,} are made; at most "
                f"{_AHEAD:,} more are made for a request. Ask for some before it first."
            )
        while len(self.problems) < end and not self.ended:
            if self._piece is None:  # all who wait share it, and it is made whoever goes
                self._piece = asyncio.create_task(self._make(min(end - len(self.problems), _PIECE)))
            await asyncio.shield(self._piece)
        return self.problems

    async def _make(self, n: int) -> None:
        try:
            piece = await THREADS.run(lambda: list(islice(self._left, n)))
        finally:
            self._piece = None
        self.problems += piece
        self.ended = len(piece) < n


class ProblemIndex:
    """The problems of an environment by split, seed and index."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self._streams: OrderedDict[tuple[Split, int | None], _Made] = OrderedDict()

    async def page(self, wanted: _Page) -> list[dict[str, Any]]:
        """Problems without what they hide: fewer than were asked for where a split ends. Raises RequestRefused."""
        end = wanted.first + wanted.n
        problems = (await self._until(wanted, end))[wanted.first : end]
        return [
            {"id": problem.id, "input": problem.input, "split": wanted.split, "order": wanted.order, "index": index}
            for index, problem in enumerate(problems, wanted.first)
        ]

    async def find(self, wanted: _Reference) -> Problem:
        """The problem of a reference. Raises RequestRefused."""
        problems = await self._until(wanted, wanted.index + 1)
        if wanted.index >= len(problems):
            raise _unknown(f"{wanted.split} has {len(problems)} problems; number {wanted.index} was asked for.")
        problem = problems[wanted.index]
        if wanted.id not in (None, problem.id):
            raise _unknown(
                f"There is no problem {wanted.id!r} here (number {wanted.index} of {wanted.split} is {problem.id!r}): "
                "the server was started with another environment."
            )
        return problem

    async def _until(self, of: _Split, end: int) -> list[Problem]:
        key = of.split, of.order
        made = self._streams.setdefault(key, _Made(self.environment, *key))
        self._streams.move_to_end(key)
        try:
            return await made.until(end)
        except ConfigError as wrong:  # its maker gave up: another request begins anew
            self._streams.pop(key, None)
            raise _unknown(str(wrong)) from wrong
        finally:
            kept = sum(len(stream.problems) for stream in self._streams.values())
            while len(self._streams) > 1 and (len(self._streams) > _STREAMS or kept > _KEPT):
                kept -= len(self._streams.popitem(last=False)[1].problems)


class EnvironmentConnection:
    """Where one client plays one episode after the other."""

    def __init__(self, id: str, client: str, environment: Environment, problems: ProblemIndex, store: Any) -> None:
        self.id, self.client = id, client
        self.socket: WebSocket | None = None
        self.problems = problems
        self.used = asyncio.get_running_loop().time()
        self.tools: list[dict[str, Any]] = []
        self.expiry: asyncio.Task[None] | None = None
        self._environment = environment
        self._store = store
        self._env: EpisodeEnv | None = None
        self._lock = asyncio.Lock()
        self._closed = False

    @property
    def busy(self) -> bool:
        """Whether it is answering."""
        return self._lock.locked()

    async def answer(self, message: ClientMessage) -> dict[str, Any] | None:
        """The answer to a message, None to `close`. Raises RequestRefused."""
        async with self._lock:
            if self._closed:  # who still has its WebSocket: nobody would ever end an episode that begins now
                raise RequestRefused("SESSION_ERROR", f"Connection {self.id!r} has been closed.", 404)
            try:
                return await self._answer(message.type, message.data or {})
            except EnvironmentFailed as failed:
                raise RequestRefused("ENVIRONMENT_FAILED", str(failed), 500) from failed
            except (TaskError, msgspec.ValidationError) as wrong:
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
                return await self._reset(msgspec.convert(data, _Reset))
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

    async def _reset(self, wanted: _Reset) -> dict[str, Any]:
        reference = wanted.problem
        if reference is None and wanted.index is not None:
            reference = _Reference(wanted.split, wanted.order, index=wanted.index)
        problem = None if reference is None else await self.problems.find(reference)
        if self._env is not None:
            await self._env.close()
        environment = self._environment if wanted.limits != "client" else _without_limits(self._environment)
        self._env = EpisodeEnv(environment, wanted.split, store=self._store)
        observation, info = await self._env.reset(seed=wanted.seed, problem=problem)
        self.tools = [_tool(tool) for tool in self._env.tools]
        id, prompt = info["problem_id"], environment.system_prompt
        seen = {"content": observation.content, "problem_id": id, "system_prompt": prompt}
        return _observed(seen, tools=self.tools, episode_id=info["trajectory_id"], problem_id=id)

    async def _step(self, data: dict[str, Any]) -> dict[str, Any]:
        match data:
            case {"type": "list_tools"}:
                return _observed({"tools": self.tools or static_tools(self._environment)})
            case {"type": "call_tool", "tool_name": str(name)}:
                arguments = data.get("arguments")
                text = arguments if isinstance(arguments, str) else _text(arguments or {})
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
        return _observed(
            _seen(env, observation, tool), None if math.isnan(gain) else gain, done, status=info["status"],
            score=env.record.score, rewards=[_reward(reward) for reward in env.record.rewards[before:]],
            truncated=truncated, answer=env.record.answer if done else None, error=info.get("error"),
        )  # fmt: skip

    async def _end(self, status: Status, answer: Any, error: str | None) -> dict[str, Any]:
        """The client's run has ended in its own way: score it so."""
        env = self._running()
        rewards: list[Reward | Rewarded] = [r for r in env.record.rewards if r.source != STEP_SOURCE]
        if env.record.finished is None:
            rewards += await env.score_now(status, answer, error)
        shown = [_reward(reward) for reward in rewards]
        return _observed({"content": ""}, done=True, status=status, score=env.record.score, rewards=shown)

    def _running(self) -> EpisodeEnv:
        if self._env is None:
            raise _invalid("No episode has begun; send reset first.")
        return self._env


def described(environment: Environment) -> dict[str, Any]:
    """What a client must know of an environment before its first episode."""
    sources = {split: environment.source(split) for split in SPLITS}
    parts = environment.rubric.parts if environment.rubric is not None else ()
    return {
        "protocol": PROTOCOL,
        "name": environment.name,
        "system_prompt": environment.system_prompt,
        "conf": environment.conf.model_dump(mode="json", exclude_defaults=True),
        "splits": {split: {"size": None if callable(of) else len(of)} for split, of in sources.items()},
        "rubric": [{"name": part.name, "weight": part.weight, "timeout": part.timeout} for part in parts],
        "tools": static_tools(environment),
    }


def static_tools(environment: Environment) -> list[dict[str, Any]]:
    """The tools that are known before an episode begins; others are told by `reset`."""
    general = [tool for tool in as_tools(environment.tools) if isinstance(tool, Tool)]
    kind: Any = environment.session
    methods: list[Tool] = []
    if isinstance(kind, type) and issubclass(kind, Session) and kind.tools is Session.tools:
        methods = [inspect.getattr_static(kind, name) for name in tool_names(kind)]
    return [_tool(tool.schema) for tool in [*general, *methods]]


def _without_limits(environment: Environment) -> Environment:
    """The environment for a client that keeps its limits itself: there a step is a decision, here it is a tool call."""
    freed = copy.copy(environment)
    none = {"max_steps": None, "max_tokens": None, "max_cost": None, "timeout": None}
    freed.conf = environment.conf.model_copy(update=none)
    return freed


def _tool(tool: ToolSchema) -> dict[str, Any]:
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
    fields = {field: getattr(reward, field) for field in ("name", "value", "weight", "error", "detail")}
    return {**fields, "of_step": reward.source == STEP_SOURCE}


def _observed(seen: dict[str, Any], reward: float | None = None, done: bool = False, **metadata: Any) -> dict[str, Any]:
    return {"type": "observation", "data": {"observation": seen, "reward": reward, "done": done, "metadata": metadata}}
