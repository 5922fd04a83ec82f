"""Sessions: the state of one episode, its tools, and what it says to the agent.

A session is made from a problem when the run begins and closed on every ending. Its methods marked `@tool` are the
tools of the episode; their schemas are built once for the class. Nothing of it enters the log but what its tools and
its own words tell the agent.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from aworld.core.event import Status
from aworld.core.exceptions import ConfigError, EnvironmentFailed
from aworld.core.message import Content, Message
from aworld.core.run_environment import Remake, Reward
from aworld.core.tool.base import Tool, calling
from aworld.core.tool.func_to_tool import FunctionTool
from aworld.core.trajectory import Trajectory
from aworld.environments.problem import Problem
from aworld.environments.rubric import SOURCE, ScoredEpisode

if TYPE_CHECKING:
    from aworld.environments.environment import Environment

__all__ = ["EnvironmentFailed", "ProblemEnvironment", "Session"]

STEP_SOURCE = "session"
"""What the log says of where step rewards come from."""


class Session:
    """The state of one episode. Subclass it, mark methods with `@tool`, override what is needed.

    Sessions are made on the event loop: what takes long belongs into `start`. The problem is shared by all samples and
    must not be changed. In a team, the tools go to the agent that begins, and `respond` is not asked.

    What `start` and `respond` raise, and `EnvironmentFailed` raised by a tool, ends the episode as failed for a reason
    that is not the agent's: it may be run again. Any other exception of a tool is told to the model. Plain tools run in
    threads, side by side when the model calls several at once; `@tool(inline=True)` keeps a tiny one on the event loop.
    """

    seed: int | None = None
    """The seed of the episode, where the caller gave one; set before `start`."""
    over: bool = False
    """Whether the episode is over; see `finish`."""
    final: Any = None
    """What an episode ended by `finish` answers."""
    _give: Callable[[Reward], None] | None = None
    _record: Trajectory | None = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """A session. Raises ConfigError where none of the arguments that it needs was given."""
        if not args and not kwargs:
            try:
                inspect.signature(cls.__init__).bind(None)
            except TypeError:  # Python's own message would not say what to do
                raise ConfigError(
                    f"{cls.__name__}() has no problem: the environment makes a session for each episode. Give it the "
                    f"class, session={cls.__name__}, not an instance."
                ) from None
        return super().__new__(cls)

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    async def start(self) -> Content | None:
        """The episode begins. May return what the agent is told in place of the problem's input."""

    async def respond(self, message: Message) -> Content | None:
        """The agent has spoken without calling a tool. Return what it is told next, or None to let it end."""

    async def close(self) -> None:
        """The episode is over, whatever its ending: let go of everything."""

    def tools(self) -> Sequence[Tool]:
        """The tools of the episode: the methods marked `@tool`."""
        return [getattr(self, name) for name in tool_names(type(self))]

    def reward(self, value: float, name: str = "step", *, weight: float = 1.0, detail: Any = None) -> None:
        """Reward the step in which this is called. Raises ValueError for a value that is not a finite number."""
        if self._give is None or self._record is None:
            raise EnvironmentFailed("A session gives rewards while its episode runs; this one has not begun.")
        call = calling.get()
        step = call.step if call is not None else next(reversed(self._record.calls), None)
        self._give(Reward(value=value, name=name, weight=weight, step=step, source=STEP_SOURCE, detail=detail))

    def finish(self, answer: Any = None) -> None:
        """End the episode after the tool calls of this turn, with this answer."""
        self.over, self.final = True, answer


@lru_cache(maxsize=1024)
def tool_names(kind: type) -> tuple[str, ...]:
    """The methods of a session class that are tools, those of base classes first."""
    names: dict[str, None] = {}
    for base in reversed(kind.__mro__):
        names.update(dict.fromkeys(name for name, value in vars(base).items() if isinstance(value, FunctionTool)))
    return tuple(name for name in names if isinstance(inspect.getattr_static(kind, name), FunctionTool))


class Caller(NamedTuple):
    """What the caller of `Environment.task` gave, to which it adds its own."""

    agent: Any
    tools: Sequence[Any]
    hooks: Sequence[Any]


class ProblemEnvironment:
    """A problem as the environment of one run, and the toolset of its session."""

    def __init__(self, environment: Environment, problem: Problem, seed: int | None, caller: Caller) -> None:
        self.environment = environment
        self.problem = problem
        self.seed = seed
        self.caller = caller
        self.session: Session | None = None
        self._record: Trajectory | None = None

    @property
    def name(self) -> str:
        """The name of the environment."""
        return self.environment.name

    def remake(self) -> Remake:
        """The task as a call of `environment.task`. Raises TaskError."""
        return self.environment.remake(self.problem, self.seed, self.caller)

    async def open(self, record: Trajectory, give: Callable[[Reward], None]) -> Content | None:
        """Make the session and start it."""
        self._record = record
        make = self.environment.session
        if make is None:
            return None
        session = make(self.problem)
        if not isinstance(session, Session):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(
                f"Environment {self.name!r}, session: it makes a Session of a problem; got {session!r:.60}."
            )
        self.session = session
        session.seed = self.seed
        session._give, session._record = give, record
        return await session.start()

    async def respond(self, message: Message) -> Content | None:
        """What the session says."""
        return None if self.session is None or self.session.over else await self.session.respond(message)

    @property
    def over(self) -> bool:
        """Whether the session has ended the episode."""
        return self.session is not None and self.session.over

    @property
    def answer(self) -> Any:
        """The answer with which the session ended it."""
        return None if self.session is None else self.session.final

    async def list_tools(self) -> Sequence[Tool]:
        """The tools of the episode, in the order in which they are offered."""
        return () if self.session is None else self.session.tools()

    async def score(self, status: Status, answer: Any, error: str | None) -> Sequence[Reward]:
        """The parts of the rubric."""
        if self.environment.rubric is None or self._record is None:
            return ()
        episode = ScoredEpisode(self.problem, self._record, answer, status, error, self.session)
        try:
            return await self.environment.rubric.score(episode)
        except Exception as bug:  # noqa: BLE001 - a rubric of somebody else's making
            return [Reward(value=None, name="rubric", source=SOURCE, error=f"{type(bug).__name__}: {bug}")]

    async def close(self) -> None:
        """Close the session."""
        session, self._record = self.session, None
        if session is None:
            return
        session._give = session._record = None
        await session.close()
