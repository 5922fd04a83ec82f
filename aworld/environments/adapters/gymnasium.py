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
import math
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
from aworld.environments.adapters.stepwise import ActTool, StepwiseSession, returns, seeded
from aworld.environments.environment import Environment, factory
from aworld.environments.problem import Problem

gymnasium: Any = import_extra("gymnasium", "gymnasium_environment", "gymnasium>=1.0")
import numpy as np  # noqa: E402 - it comes with gymnasium, which may be missing
from gymnasium import spaces  # noqa: E402

Describe = Callable[[Any, Mapping[str, Any]], Content]
"""Tells a model of an observation, given it and Gymnasium's `info`."""

LARGEST = 1024
"""Numbers in an array that a model is shown or asked for: a page of digits. Pictures need a `describe` of their own."""

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
        return self.opening(to_content(self.game.describe(observation, info)))

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


def schema(space: spaces.Space[Any]) -> dict[str, Any]:
    """The JSON schema of the values of a space. Raises ConfigError for a space that has none."""
    match space:
        case spaces.Discrete():
            first = int(space.start)
            return {"type": "integer", "minimum": first, "maximum": first + int(space.n) - 1}
        case spaces.Box():
            return _array(_box_item(space), space.shape)
        case spaces.MultiBinary():
            return _array({"type": "integer", "enum": [0, 1]}, space.shape)
        case spaces.MultiDiscrete():
            return _multi_discrete(space)
        case spaces.Text():
            return {"type": "string", "minLength": space.min_length, "maxLength": space.max_length}
        case spaces.Tuple():
            items = [schema(part) for part in _parts(space)]
            return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
        case spaces.Dict():
            properties = {str(key): schema(part) for key, part in space.spaces.items()}
            return {
                "type": "object", "properties": properties, "required": list(properties),
                "additionalProperties": False,
            }  # fmt: skip
        case _:
            raise ConfigError(
                f"A model cannot write or read {type(space).__name__} values; wrap the environment so that its spaces "
                "are Discrete, Box, MultiDiscrete, MultiBinary, Text, or a Tuple or Dict of them."
            )


def action_of(space: spaces.Space[Any], value: Any, where: str = "action") -> Any:
    """A JSON value as an action of the space. Raises ToolError that tells the model what would have been right."""
    try:
        action = _converted(space, value, where)
    except (TypeError, ValueError, OverflowError) as error:
        raise ToolError(f"{where} is {value!r:.200}, but must be {words(space)}.") from error
    if not space.contains(action):
        raise ToolError(f"{where} is {value!r:.200}, but must be {words(space)}.")
    return action


def jsonable(value: Any) -> Any:
    """An observation as JSON-able data."""
    match value:
        case np.ndarray():
            return jsonable(cast("np.ndarray[Any, Any]", value).tolist())
        case np.generic():
            return jsonable(value.item())
        case float():
            # Seven digits are what 32 bits hold; more of them only cost tokens.
            return float(f"{value:.7g}") if math.isfinite(value) else str(value)
        case Mapping():
            return {str(key): jsonable(item) for key, item in cast("Mapping[Any, Any]", value).items()}
        case list() | tuple():
            return [jsonable(item) for item in cast("Sequence[Any]", value)]
        case _:
            return value


def words(space: spaces.Space[Any]) -> str:
    """A space as a model is told of it."""
    match space:
        case spaces.Discrete():
            return f"an integer from {int(space.start)} to {int(space.start) + int(space.n) - 1}"
        case spaces.Box():
            whole = "integers" if np.issubdtype(space.dtype, np.integer) else "numbers"
            low, high = _bound(space.low), _bound(space.high)
            between = f" from {low:g} to {high:g}" if low is not None and high is not None else ""
            return f"{_shaped(whole, space.shape)}{between}"
        case spaces.MultiBinary():
            return f"{_shaped('0s and 1s', space.shape)}"
        case spaces.MultiDiscrete():
            return f"{_shaped('integers', space.shape)}, each from {space.start.tolist()} to {_last(space).tolist()}"
        case spaces.Text():
            return f"a text of {space.min_length} to {space.max_length} of the characters {space.characters!r}"
        case spaces.Tuple():
            return "a list of " + ", then ".join(words(part) for part in _parts(space))
        case spaces.Dict():
            return "an object of " + ", ".join(f"{key}: {words(part)}" for key, part in space.spaces.items())
        case _:
            return str(space)


def _converted(space: spaces.Space[Any], value: Any, where: str) -> Any:
    match space:
        case spaces.Discrete():
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{where} is no integer")
            return np.int64(value)
        case spaces.Box() | spaces.MultiBinary() | spaces.MultiDiscrete():
            array = np.asarray(value)
            if array.dtype.kind not in "iuf" or (np.issubdtype(space.dtype, np.integer) and array.dtype.kind == "f"):
                raise TypeError(f"{where} is not made of such numbers")
            return array.astype(space.dtype).reshape(space.shape)
        case spaces.Tuple():
            parts = _parts(space)
            if not isinstance(value, list) or len(cast("list[Any]", value)) != len(parts):
                raise TypeError(f"{where} has another length")
            pairs = zip(parts, cast("list[Any]", value), strict=True)
            return tuple(action_of(part, item, f"{where}[{n}]") for n, (part, item) in enumerate(pairs))
        case spaces.Dict():
            if not isinstance(value, dict) or set(cast("dict[Any, Any]", value)) != set(space.spaces):
                raise TypeError(f"{where} has other keys")
            items = cast("dict[str, Any]", value)
            return {key: action_of(part, items[key], f"{where}.{key}") for key, part in space.spaces.items()}
        case _:
            return value


def _parts(space: Any) -> tuple[spaces.Space[Any], ...]:
    return cast("tuple[spaces.Space[Any], ...]", space.spaces)


def _array(item: dict[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    if math.prod(shape) > LARGEST:
        raise ConfigError(
            f"An array of shape {shape} has {math.prod(shape):,} numbers, more than a model can write or read. For "
            "observations give describe=..., a function of observation and info that tells of them in text or pictures."
        )
    for size in reversed(shape):
        item = {"type": "array", "items": item, "minItems": size, "maxItems": size}
    return item


def _box_item(space: spaces.Box) -> dict[str, Any]:
    item: dict[str, Any] = {"type": "integer" if np.issubdtype(space.dtype, np.integer) else "number"}
    for key, bounds in (("minimum", space.low), ("maximum", space.high)):
        bound = _bound(bounds)
        if bound is not None:
            item[key] = int(bound) if item["type"] == "integer" else bound
    return item


def _bound(bounds: Any) -> float | None:
    """The bound that all numbers of an array share; None when there is none or they differ."""
    first = float(np.asarray(bounds).flat[0]) if np.asarray(bounds).size else math.inf
    return first if math.isfinite(first) and bool(np.all(np.asarray(bounds) == first)) else None


def _multi_discrete(space: spaces.MultiDiscrete) -> dict[str, Any]:
    first, last = np.asarray(space.start), _last(space)
    return _array({"type": "integer", "minimum": int(first.min()), "maximum": int(last.max())}, space.shape)


def _last(space: spaces.MultiDiscrete) -> Any:
    return np.asarray(space.start) + np.asarray(space.nvec) - 1


def _shaped(what: str, shape: tuple[int, ...]) -> str:
    if not shape:
        return f"one of {what}"
    return f"a list of {shape[0]} {what}" if len(shape) == 1 else f"nested lists of shape {list(shape)} of {what}"
