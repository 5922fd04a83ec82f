"""Episodes whose policy is sampled by somebody else: a trainer that keeps the model to itself.

Our runtime owns the loop: prompts, tools, limits, scores, the log. Whoever owns the model carries calls: `begin` an
episode and hear what the model is asked, `say` what it answered and hear the next question, until the episode has
ended. It also tells the ids that were read and sampled, so the log is as exact as with a model of our own.

One conversation is one row for such a trainer. An agent that asks anything that does not go on from its last answer (a
second agent, a compaction, two calls at once) is refused, and its episode ends as failed, with the reason in the log.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from msgspec import Struct

from aworld.agents.llm_agent import Agent
from aworld.config.conf import RunConfig
from aworld.core.bounded import described
from aworld.core.exceptions import ConfigError, ModelError
from aworld.core.message import Message, Tokens, Usage, chat_format
from aworld.core.model import Delta, ModelReply, ModelRequest, function_format
from aworld.core.task import TaskResponse
from aworld.environments import Environment, Problem
from aworld.runner import Runners

Parse: TypeAlias = Callable[[str, ModelRequest], Message]
"""Makes the message of what the model wrote."""


class OutsidePrompt(Struct, frozen=True):
    """What the model is asked, in the shape of the chat-completions API."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = []


class OutsideReply(Struct, frozen=True):
    """What the model answered."""

    text: str
    """As it was sampled, without the end of the turn."""
    prompt_ids: tuple[int, ...] | None = None
    completion_ids: tuple[int, ...] | None = None
    """With the end of the turn, where one was sampled."""
    logprobs: tuple[float, ...] | None = None
    finish_reason: str | None = None


class OutsideEnd(Struct, frozen=True):
    """How an episode ended."""

    trajectory: str
    status: str
    score: float | None
    """None when a part of the reward could not be computed, or nobody scored."""
    turns: int
    error: str | None = None


class OutsideEpisode:
    """One episode: where prompt and reply meet."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.news: asyncio.Queue[OutsidePrompt | OutsideEnd] = asyncio.Queue()
        self.answer: asyncio.Future[OutsideReply] | None = None
        self.run: asyncio.Task[None] | None = None
        self.messages: tuple[Message, ...] = ()
        """The conversation up to the model's last words."""


class OutsideModel:
    """The model of such episodes: it passes on what it is asked, and waits."""

    provider = "outside"

    def __init__(self, rollouts: OutsideRollouts, name: str, params: Mapping[str, Any] | None = None) -> None:
        self.name = name
        self.params: dict[str, Any] = dict(params or {})
        self._rollouts = rollouts

    async def generate(self, request: ModelRequest) -> ModelReply:
        """Ask whoever owns the model. Raises `ModelError` for a question that does not go on from the last answer."""
        return await self._rollouts.ask(request)

    async def stream(self, request: ModelRequest, on_delta: Callable[[Delta], None]) -> ModelReply:
        """The same: the answer comes whole."""
        return await self._rollouts.ask(request)


class OutsideRollouts:
    """The episodes of one training run.

    Args:
        environment: Where the episodes happen.
        agent: Whose model is asked outside.
        problems: The problems that may be asked for, by the name under which the trainer does: the number of a row of
            its dataset, say. The ids of problems would not do, as every stream may begin with the same ones.
        parse: Makes a message of what the model wrote, tool calls included.
        name: What the log calls the model.
        run: Ids of episodes begin with it; unique within `store`.
        store: Where the log goes: a store, its address, or None for memory.
        params: Sampling settings, for the log.
        on_end: Told of each episode that has ended.
    """

    def __init__(
        self, environment: Environment, agent: Agent[Any, Any], problems: Mapping[str, Problem], *, parse: Parse,
        name: str, run: str, store: Any = None, params: Mapping[str, Any] | None = None,
        on_end: Callable[[OutsideEnd, TaskResponse], None] | None = None,
    ) -> None:  # fmt: skip
        self.environment = environment
        self.problems = problems
        self.version = "0"
        """What the log calls the weights that answer now."""
        self.step = 0
        """The training step whose episodes begin now."""
        self._agent = agent.with_model(OutsideModel(self, name, params))
        self._parse, self._name, self._run, self._on_end = parse, name, run, on_end
        self._conf = RunConfig(store=store)
        self._open: dict[str, OutsideEpisode] = {}
        self._by_trajectory: dict[str, OutsideEpisode] = {}
        self._begun: Counter[str] = Counter()

    async def begin(self, id: str, problem: str) -> OutsidePrompt | OutsideEnd:
        """Begin an episode, known as `id` from now on, and hear what the model is asked first.

        Raises ConfigError for a problem that is not among ours or an id that is in use.
        """
        if problem not in self.problems:
            raise ConfigError(f"There is no problem {problem!r} in environment {self.environment.name!r}.")
        if id in self._open:
            raise ConfigError(f"Episode {id!r} has begun already.")
        group = f"{self._run}-{self.step:04}-{problem}"
        sample = self._begun[group]
        self._begun[group] += 1
        episode = self._open[id] = OutsideEpisode(f"{group}-{sample}")
        self._by_trajectory[episode.id] = episode
        labels = {"run": self._run, "problem": self.problems[problem].id, "sample": str(sample), "step": str(self.step)}
        task = self.environment.task(self.problems[problem], self._agent, id=episode.id, group_id=group, labels=labels)
        episode.run = asyncio.create_task(self._live(episode, task))
        return await self._next(id, episode)

    async def say(self, id: str, reply: OutsideReply) -> OutsidePrompt | OutsideEnd:
        """Answer what was asked, and hear what comes next. Raises ConfigError for an episode that is not open."""
        episode = self._open.get(id)
        if episode is None:
            raise ConfigError(f"There is no open episode {id!r}: it has ended, or was never begun.")
        if episode.answer is not None and not episode.answer.done():
            episode.answer.set_result(reply)
        return await self._next(id, episode)

    async def close(self) -> None:
        """Cancel what is still open."""
        open_runs = [episode.run for episode in self._open.values() if episode.run is not None]
        for run in open_runs:
            run.cancel()
        await asyncio.gather(*open_runs, return_exceptions=True)
        self._open.clear()
        self._by_trajectory.clear()

    async def ask(self, request: ModelRequest) -> ModelReply:
        """One call of the model; used by `OutsideModel`."""
        episode = self._by_trajectory.get(request.trajectory_id)
        if episode is None:
            raise ModelError(f"Model {self._name!r} answers only inside the episodes of its trainer.")
        if episode.answer is not None or request.messages[: len(episode.messages)] != episode.messages:
            raise ModelError(
                f"Agent {request.agent!r} asks something that does not go on from the model's last answer. This "
                "trainer learns from one unbroken conversation an episode: one agent, one call at a time, nothing "
                "dropped."
            )
        episode.answer = asyncio.get_running_loop().create_future()
        episode.news.put_nowait(
            OutsidePrompt(list(map(chat_format, request.messages)), list(map(function_format, request.tools)))
        )
        try:
            reply = await episode.answer
        finally:
            episode.answer = None
        message = self._parse(reply.text, request)
        episode.messages = (*request.messages, message)
        return _model_reply(reply, message, self._name, self.version)

    async def _next(self, id: str, episode: OutsideEpisode) -> OutsidePrompt | OutsideEnd:
        news = await episode.news.get()
        if isinstance(news, OutsideEnd):
            del self._open[id]
            self._by_trajectory.pop(episode.id, None)
        return news

    async def _live(self, episode: OutsideEpisode, task: Any) -> None:
        """Run the episode to its end, and tell how it ended."""
        response: TaskResponse | None = None
        try:
            response = (await Runners.run_task(task, self._conf))[episode.id]
            end = OutsideEnd(
                episode.id, response.status, response.record.score, len(response.record.calls), response.error
            )
        except Exception as error:  # noqa: BLE001 - the trainer must hear of it, whatever it was
            end = OutsideEnd(episode.id, "failed", None, 0, described(error))
        if response is not None and self._on_end is not None:
            self._on_end(end, response)
        episode.news.put_nowait(end)


def _model_reply(reply: OutsideReply, message: Message, name: str, version: str) -> ModelReply:
    prompt, sampled = reply.prompt_ids, reply.completion_ids
    usage = None
    if prompt is not None and sampled is not None:
        usage = Usage(input_tokens=len(prompt), output_tokens=len(sampled), total_tokens=len(prompt) + len(sampled))
    tokens = Tokens(prompt, sampled, reply.logprobs, policy_version=version)
    finish = "tool_calls" if message.tool_calls else reply.finish_reason
    return ModelReply(message, finish, usage, tokens if sampled is not None else None, model=name)
