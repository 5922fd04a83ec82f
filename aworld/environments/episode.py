"""An episode driven by hand, in the manner of Gymnasium: `reset`, then `step` after `step`, until it is over.

Underneath is a run like any other, whose agent says what the caller decides: tools, limits, rewards and the log are
those of `Runners`.
"""

from __future__ import annotations

import json
import math
import random
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeAlias, cast

import msgspec

from aworld.core.agent.base import BaseAgent, Turn
from aworld.core.checks import typed
from aworld.core.common import Observation
from aworld.core.event import Rewarded, Status
from aworld.core.exceptions import EnvironmentFailed, TaskError
from aworld.core.message import Message, ToolCall
from aworld.core.model import ToolSchema
from aworld.core.run_environment import Reward
from aworld.core.trajectory import Trajectory
from aworld.environments.environment import Environment
from aworld.environments.problem import Problem, Split, as_problem
from aworld.runners.driver import Episode
from aworld.runners.local import store_of
from aworld.runners.turn import observe

Action: TypeAlias = str | ToolCall | Sequence[ToolCall] | Message | Mapping[str, Any]
"""What an agent may do: say a text, call tools, or both (a message, or one in the form of the chat-completions API)."""


class EpisodeEnv:
    """Episodes of an environment, one after the other, driven by the caller.

    Args:
        environment: Says what an episode is.
        split: Where its problems come from.
        store: A store or its address, for the logs of the episodes; None keeps them as long as they are held.
    """

    @typed()
    def __init__(self, environment: Environment, split: Split = "train", *, store: Any = None) -> None:
        self.environment = environment
        self.split: Split = split
        self.store = store_of(store)
        self._chance = random.Random()
        self._agent = _Puppet("policy")
        self._episode: Episode | None = None
        self._offered: tuple[ToolSchema, ...] = ()
        self._seen = 0
        """Rewards that `step` has told of."""

    @property
    def record(self) -> Trajectory:
        """The trajectory of the episode. Raises TaskError before the first `reset`."""
        return self._running().record

    @property
    def tools(self) -> tuple[ToolSchema, ...]:
        """The tools of the episode, as a model sees them."""
        return self._offered

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation so far, as a model would be sent it."""
        record = self.record
        return record.path(record.activations[0].leaf) if record.activations else ()

    @typed(TaskError)
    async def reset(
        self, *, seed: int | None = None, problem: Problem | Mapping[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode: of this problem, or of one that the seed chooses. One that is running is cancelled.

        Returns what the agent is told, and what is known besides: `problem_id`, `trajectory_id`, `tools`. Raises
        EnvironmentFailed when the session did not start.
        """
        await self.close()
        seed = self._chance.getrandbits(31) if seed is None else seed
        if problem is None:
            source = self.environment.source(self.split)
            if not callable(source) and not source:
                raise TaskError(f"Environment {self.environment.name!r} has no problems in {self.split!r}.")
            chosen = self.environment.problems(self.split, 1, seed)[0]
        else:
            chosen = as_problem(problem)
        task = self.environment.task(chosen, self._agent, seed=seed)
        episode = self._episode = Episode(task, self.store)
        self._seen, self._offered = 0, ()
        self._agent.actions.clear()
        response = await episode.begin()
        if response.status != "running":
            raise EnvironmentFailed(response.msg)
        self._offered = (await episode.offered()).schemas
        info = {"problem_id": chosen.id, "trajectory_id": episode.record.id, "tools": [_schema(t) for t in self.tools]}
        return observe(episode.record, episode.record.activations[0]), info

    async def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Act once, and see what comes of it.

        Returns the observation, the reward (weight times value of all that was given since the last step; NaN when one
        that counts could not be computed), whether the episode has ended, whether it was cut off by a limit, and what
        is known besides: `status`, `rewards`, `score`. Raises EnvironmentFailed when the session died, and TaskError
        when no episode is running.
        """
        episode = self._running()
        if episode.record.finished is not None:
            raise TaskError("The episode is over; begin another with reset().")
        self._agent.actions.append(as_message(action))
        over, observation, response = await episode.step()
        limit = episode.conf.max_steps
        if not over and limit is not None and len(episode.record.calls) >= limit:
            over, _, response = await episode.step()  # the runtime says so before the next decision, Gymnasium at once
        if response.record.surroundings_failed:
            raise EnvironmentFailed(response.msg)
        rewards = episode.record.rewards[self._seen :]
        self._seen += len(rewards)
        info: dict[str, Any] = {
            "status": response.status,
            "rewards": [_described(reward) for reward in rewards],
            "score": episode.record.score,
        }
        if response.error is not None:
            info["error"] = response.error
        truncated = response.status in ("limit_reached", "timeout")
        return observation, _sum(rewards), over and not truncated, truncated, info

    async def score_now(self, status: Status, answer: Any, error: str | None) -> Sequence[Rewarded | Reward]:
        """The rewards of an episode that somebody else ends in this way; it is over then."""
        rewards = await self._running().score_now(status, answer, error)
        await self.close()
        return rewards

    async def close(self) -> None:
        """Cancel the episode that is running, if there is one."""
        if self._episode is not None:
            await self._episode.abandon("The episode was cut short by its caller.")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _running(self) -> Episode:
        if self._episode is None:
            raise TaskError("No episode has begun; call reset() first.")
        return self._episode


class _Puppet(BaseAgent):
    """An agent that says what it was told to."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.actions: deque[Message] = deque()
        """What it says next; shared with copies that have another system prompt."""

    async def decide(self, turn: Turn) -> Message:
        """Say it, with an id for each call that has none."""
        message = self.actions.popleft()
        calls = tuple(
            call if call.id else ToolCall(f"call_{turn.index}_{place}", call.name, call.arguments)
            for place, call in enumerate(message.tool_calls)
        )
        return msgspec.structs.replace(message, tool_calls=calls)


def as_message(action: Action) -> Message:
    """An action as the message of an agent. Raises TaskError for what is none."""
    if isinstance(action, Message):
        return action
    if isinstance(action, str):
        return Message("assistant", action)
    if isinstance(action, ToolCall):
        return Message("assistant", tool_calls=(action,))
    if isinstance(action, Mapping):
        calls: Sequence[Any] = action.get("tool_calls") or ([action] if "name" in action else [])
        if "content" in action or calls:
            return Message("assistant", action.get("content"), tool_calls=tuple(map(_call, calls)))
    elif isinstance(action, Sequence) and all(isinstance(call, ToolCall) for call in action):  # pyright: ignore[reportUnnecessaryIsInstance]
        return Message("assistant", tool_calls=tuple(action))
    raise TaskError(
        f"An action is a text, tool calls, or a message such as "
        f'{{"content": "...", "tool_calls": [{{"name": "...", "arguments": {{}}}}]}}; got {action!r:.200}.'
    )


def _call(value: Any) -> ToolCall:
    if isinstance(value, ToolCall):
        return value
    call: Mapping[str, Any] = cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}
    function: Mapping[str, Any] = call.get("function", call)
    if not isinstance(function.get("name"), str):
        raise TaskError(f'A tool call has a "name" and "arguments"; got {value!r:.200}.')
    arguments: Any = function.get("arguments", {})
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return ToolCall(str(call.get("id", "")), function["name"], text)


def _schema(tool: ToolSchema) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}


def _described(reward: Rewarded) -> dict[str, Any]:
    fields = {"name": reward.name, "value": reward.value, "weight": reward.weight}
    return fields if reward.error is None else {**fields, "error": reward.error}


def _sum(rewards: Sequence[Rewarded]) -> float:
    if any(reward.value is None and reward.weight for reward in rewards):
        return math.nan
    return sum((reward.weight * reward.value for reward in rewards if reward.value is not None), 0.0)
