"""Gymnasium environments: one tool acts, each step's reward is a step reward, the end of theirs is the end of ours.

    lake = gymnasium_environment("FrozenLake-v1", make={"is_slippery": False})
    response = await Runners.run_task(lake.task(lake.problems("test", 1)[0], agent))

A problem is a seed: training and held-out seeds are split by a hash, without end. The first observation is what the
agent is told when the episode begins. `step` is a plain function that may compute for long, so it runs in a thread
unless `inline`; the hop costs some 15 µs of CPU, a twelfth of what the runtime does for a step. Calls of one episode
never overlap and keep the model's order, whichever thread they run on.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import msgspec

from aworld.config.conf import TaskConfig
from aworld.core.exceptions import ConfigError, EnvironmentFailed, ToolError
from aworld.core.extras import import_extra
from aworld.core.message import Content, Text
from aworld.core.tool.base import Tool
from aworld.core.tool.results import to_content
from aworld.core.tool.threads import THREADS
from aworld.environments.adapters.spaces import action_of, jsonable, schema, words
from aworld.environments.adapters.stepwise import ActTool, StepwiseSession, returns, seeded
from aworld.environments.environment import Environment, factory
from aworld.environments.problem import Problem

gymnasium: Any = import_extra("gymnasium", "gymnasium_environment", "gymnasium>=1.0")

Describe = Callable[[Any, Mapping[str, Any]], Content]
"""Tells a model of an observation, given it and Gymnasium's `info`."""

_SECTIONS = ("Description", "Action Space", "Observation Space", "Rewards")
"""What of an environment's own documentation a player should know."""


@factory
def gymnasium_environment(
    env: str | Callable[[], Any],
    *,
    make: Mapping[str, Any] | None = None,
    name: str | None = None,
    actions: Sequence[str] | None = None,
    instructions: str | None = None,
    describe: Describe | None = None,
    inline: bool = False,
    system_prompt: str | None = None,
    conf: TaskConfig | dict[str, Any] | None = None,
) -> Environment:
    """A Gymnasium environment as one of ours.

    Args:
        env: The id that `gymnasium.make` takes, or a function that makes a fresh environment.
        make: Further arguments of `gymnasium.make`, such as `{"is_slippery": False}`.
        name: Names the environment in the log; the id when not given.
        actions: Names of the actions of a Discrete space, in order; the model then writes a name, not a number.
        instructions: What the agent is told before the first observation; by default what the spaces and the
            environment's own documentation say of actions, observations and rewards.
        describe: How an observation is told: text or message parts of observation and `info`. By default it is JSON,
            and `info`, which may hold what a player must not know, is left out.
        inline: Run `reset` and `step` on the event loop: for those that must stay on one thread.
        system_prompt: Put before the agent's own.
        conf: Limits of an episode. Gymnasium's own limit of steps truncates an episode all the same.

    Raises:
        ConfigError: There is no such environment, or a model cannot write its actions or read its observations.
    """
    create = partial(_make, env, dict(make or {})) if isinstance(env, str) else env
    name = name or (env if isinstance(env, str) else str(getattr(env, "__name__", "gymnasium")))
    sample = create()
    try:
        game = _Game(create, sample, actions, instructions, describe, inline)
    finally:
        sample.close()
    train, test = seeded(game.instructions, lambda seed: {"seed": seed})
    return Environment(
        name,
        train=train,
        test=test,
        session=partial(GymnasiumSession, game),
        rubric=returns(),
        system_prompt=system_prompt,
        conf=conf,
    )


class _Game:
    """What all episodes of an environment share."""

    def __init__(
        self,
        create: Callable[[], Any],
        sample: Any,
        actions: Sequence[str] | None,
        instructions: str | None,
        describe: Describe | None,
        inline: bool,
    ) -> None:
        self.create, self.inline = create, inline
        self.space: Any = sample.action_space
        self.actions = tuple(actions) if actions is not None else None
        self.first = 0
        if describe is None:
            schema(sample.observation_space)  # refuses what a model cannot read
        self.describe = describe or _as_json
        action = schema(self.space) if self.actions is None else self._named(self.actions)
        choice = f"one of {', '.join(self.actions)}" if self.actions is not None else words(self.space)
        self.description = f"Take one step in the environment with an action: {choice}."
        self.parameters = {
            "type": "object", "properties": {"action": action}, "required": ["action"], "additionalProperties": False,
        }  # fmt: skip
        self.instructions = instructions or _instructions(sample, choice, describe is None)

    def _named(self, names: tuple[str, ...]) -> dict[str, Any]:
        if not isinstance(self.space, gymnasium.spaces.Discrete):
            raise ConfigError(f"actions names the actions of a Discrete space; this one is {self.space!r}.")
        if len(names) != int(self.space.n):
            raise ConfigError(f"actions has {len(names)} names; the environment has {int(self.space.n)} actions.")
        self.first = int(self.space.start)
        return {"type": "string", "enum": list(names)}

    def action(self, arguments: str) -> Any:
        """The action that a model wrote. Raises ToolError that says what would have been right."""
        try:
            fields = msgspec.json.decode(arguments)
        except msgspec.DecodeError as error:
            raise ToolError(f"The arguments are no JSON: {error}.") from error
        if not isinstance(fields, dict) or set(cast("dict[Any, Any]", fields)) != {"action"}:
            raise ToolError('Give the action and nothing else: {"action": …}.')
        value = cast("dict[str, Any]", fields)["action"]
        if self.actions is None:
            return action_of(self.space, value)
        if value not in self.actions:
            raise ToolError(f"action is {value!r:.200}, but must be one of {', '.join(self.actions)}.")
        return action_of(self.space, self.first + self.actions.index(value))


class GymnasiumSession(StepwiseSession):
    """One episode. `env` is Gymnasium's own object."""

    def __init__(self, game: _Game, problem: Problem) -> None:
        super().__init__(problem)
        self.game = game
        self.env: Any = None
        self.terminated = self.truncated = False
        self._turn = asyncio.Lock()
        self._lost = False

    async def start(self) -> Content:
        """Make the environment, reset it with the problem's seed, and tell the first observation."""
        self.env = await self._call(self.game.create)
        observation, info = await self._call(partial(self.env.reset, seed=self.problem.data.get("seed")))
        first = to_content(self.game.describe(observation, info))
        if isinstance(first, str):
            return f"{_text(self.problem.input)}\n\nFirst observation: {first}"
        return (Text(f"{_text(self.problem.input)}\n\nFirst observation:\n"), *first)

    def tools(self) -> Sequence[Tool]:
        """The one tool."""
        return (ActTool(self, self.game.description, self.game.parameters),)

    async def act(self, arguments: str) -> Content:
        """Take a step with the action that the model wrote, reward it, and tell what came of it."""
        action = self.game.action(arguments)
        async with self._turn:
            if self.over:
                raise ToolError("The episode is over; this action was not taken.")
            observation, reward, self.terminated, self.truncated, info = await self._call(
                partial(self.env.step, action)
            )
            self.earn(reward)
            content = to_content(self.game.describe(observation, info))
            if not (self.terminated or self.truncated):
                return content
            end = "The episode has ended." if self.terminated else "The episode was cut off: it took too many steps."
            self.finish(f"{end} Return: {self.total:g}.")
            return f"{content}\n{end}" if isinstance(content, str) else (*content, Text(end))

    async def _call(self, function: Callable[[], Any]) -> Any:
        """What the environment answers. What it raises is its own failure, not the agent's."""
        if self._lost:
            raise EnvironmentFailed("A step was cut off before it ended; what state the environment is in is unknown.")
        try:
            return function() if self.game.inline else await THREADS.run(function)
        except asyncio.CancelledError:
            self._lost = True  # its thread cannot be stopped, and may still be at work in the environment
            raise
        except Exception as error:
            raise EnvironmentFailed(f"The environment raised {type(error).__name__}: {error}") from error

    async def close(self) -> None:
        """Close the environment, unless a step that was cut off may still be at work in it."""
        env, self.env = self.env, None
        if env is not None and not self._lost:
            await self._call(env.close)


def _make(id: str, arguments: dict[str, Any]) -> Any:
    try:
        return gymnasium.make(id, **arguments)
    except (gymnasium.error.Error, TypeError) as error:
        raise ConfigError(f"gymnasium.make({id!r}) | {error}") from error


def _as_json(observation: Any, info: Mapping[str, Any]) -> str:
    value = jsonable(observation)
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _instructions(env: Any, actions: str, as_json: bool) -> str:
    name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
    documentation = _sections(inspect.getdoc(type(cast(object, env.unwrapped))) or "")
    paragraphs = [
        f"You act in the environment {name}. Call the tool `act` with one action at a time until the episode ends; "
        "collect as much reward as you can.",
        f"An action is {actions}.",
    ]
    if documentation:
        paragraphs.append(documentation)
    if as_json:
        paragraphs.append(f"An observation is {words(env.observation_space)}.")
    return "\n\n".join(paragraphs)


def _sections(documentation: str) -> str:
    """What the documentation says under the headings that a player should know."""
    parts = re.split(r"^ *#+ *(.+?) *$", documentation, flags=re.MULTILINE)
    texts = {heading: text.strip() for heading, text in zip(parts[1::2], parts[2::2])}
    return "\n\n".join(f"{heading}:\n{texts[heading]}" for heading in _SECTIONS if texts.get(heading))


def _text(content: Content) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content if isinstance(part, Text))
