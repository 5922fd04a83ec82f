"""A run: the state of one execution of a task.

Turns, tools, activations and recovery work on a `Run`; who takes its turns, and when, is the driver's business alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from aworld.config.conf import TaskConfig
from aworld.core import event as ev
from aworld.core.agent.base import BaseAgent
from aworld.core.agent.flow import Topology, Unit, UnitTool, units_of
from aworld.core.common import Observation
from aworld.core.context.scope import RunScope
from aworld.core.exceptions import AgentLimit, ConfigError, LimitReached
from aworld.core.message import Content
from aworld.core.run_environment import Reward
from aworld.core.task import Task, TaskResponse
from aworld.core.tool.toolkit import Offer
from aworld.core.trajectory import Activation, Trajectory
from aworld.runners.journal import Journal, give_reward
from aworld.runners.recorder import Recorder
from aworld.runners.state import SharedState
from aworld.runners.world import World
from aworld.trajectory.store import TrajectoryStore

logger = logging.getLogger(__name__)

LET_GO = 10.0
"""Seconds that what a run held has to let go."""
PUT_ASIDE = 60.0
"""Seconds that it has to be put aside while the run waits."""


_LIVE = World()

_resting: WeakKeyDictionary[Any, dict[str, RunScope]] = WeakKeyDictionary()
"""Scopes of runs that wait for people, by store and trajectory."""


class Driven(Protocol):
    """A run and who takes its turns: to the end, or step by step as its caller says."""

    @property
    def record(self) -> Trajectory:
        """The trajectory so far."""
        ...

    @property
    def conf(self) -> TaskConfig:
        """The limits of the task."""
        ...

    @property
    def response(self) -> TaskResponse | None:
        """How the run stood when it was left last; None before."""
        ...

    def run(self) -> Coroutine[Any, Any, TaskResponse]:
        """Take turns until the end. Raises only CancelledError, after the log says so."""
        ...

    async def begin(self) -> TaskResponse:
        """Begin without taking a turn, for who wants to see first what the agent is told."""
        ...

    async def step(
        self, observation: Content | None = None, tool_results: dict[str, Content] | None = None
    ) -> tuple[bool, Observation, TaskResponse]:
        """Take one turn; first add an observation or replace pending results, if given."""
        ...

    async def abandon(self, why: str) -> None:
        """End the run between two steps, as cancelled. Does nothing when it has ended or never began."""
        ...

    async def offered(self) -> Offer:
        """The tools that whoever is due will be offered."""
        ...

    async def score_now(self, status: ev.Status, answer: Any, error: str | None) -> list[Reward]:
        """Let the environment judge a run that somebody else ends; the rewards are written and returned."""
        ...


class Run:
    """What is known of one execution, and the ways to write it."""

    def __init__(self, task: Task, store: TrajectoryStore, record: Trajectory, world: World | None = None) -> None:
        self.task = task
        self.conf = task.conf
        self.record = record
        self.journal = Journal(record, store)
        self.recorder = Recorder(self.journal)
        self.world = world or _LIVE
        self.environment = task.environment
        self.units = {n: self.world.stand_in(u) for n, u in units_of_task(task.agent, task.tools).items()}
        """The agents and teams by name."""
        self.state = SharedState(self.journal, self.units)
        self.context = self.state.context_of(None)
        self.scope = RunScope(record.id, task.info)
        self.is_fork = False
        """Whether the run begins within the events of another."""
        self.spent = 0.0
        """Seconds that it has taken in this process."""

    def agents(self) -> list[BaseAgent]:
        """All agents, of all teams."""
        return [unit for unit in self.units.values() if isinstance(unit, BaseAgent)]

    def response(self, status: ev.Status, answer: Any, error: str | None, seconds: float) -> TaskResponse:
        """How the run stands, for its caller."""
        return TaskResponse(
            self.record,
            status,
            answer,
            error,
            seconds,
            self.context if self.conf.resp_carry_context else None,
            give_reward=partial(give_reward, self.journal),
            store=self.journal.store,
        )

    # People

    def answers_to(self, called: ev.ToolCalled) -> dict[str, str]:
        """What people answered to the questions of one call, by question."""
        answers = self.record.answers
        if not answers:
            return {}
        return {q.question: answers[q.id] for q in self.record.questions_of(called) if q.id in answers}

    def unanswered(self, called: ev.ToolCalled) -> bool:
        """Whether a person still has to answer before a call can go on."""
        if not self.record.questions:
            return False
        return any(q.id not in self.record.answers for q in self.record.questions_of(called))

    # What is held for the length of the run

    def go_on(self) -> None:
        """The run goes on from a record, here or in another process than it began; or a fork of one does.

        One that waited in this process has its scope again; any other has a new one, which knows what it had used.
        """
        self.scope = _resting.get(self.journal.store, {}).pop(self.record.id, self.scope)
        self.scope.used |= {event.name for event in self.record.own_events if isinstance(event, ev.ToolCalled)}

    async def let_go(self) -> None:
        """The run is over; nothing that it held may hold it up."""
        await self._tell("end_run", LET_GO)

    async def rest(self) -> None:
        """The run waits for a person; it keeps in this process what it has, such as the variables of its sandbox."""
        _resting.setdefault(self.journal.store, {})[self.record.id] = self.scope
        await self._tell("rest", PUT_ASIDE)

    async def _tell(self, what: str, limit: float) -> None:
        for copy in self.scope.copies():
            method: Callable[[], Coroutine[Any, Any, None]] | None = getattr(copy, what, None)
            if method is None:
                continue
            try:
                async with asyncio.timeout(limit):
                    await method()
            except Exception:  # the run's outcome stands
                logger.exception("trajectory=%s | %s of %r failed", self.record.id, what, copy)


def units_of_task(root: Unit, tools: Sequence[Any]) -> dict[str, Unit]:
    """The agents and teams of a run by name: those of its root, and those among the tools of its task.

    Raises ConfigError when two different ones share a name.
    """
    units = units_of(root) if _has_members(root) else {root.name: root}
    for tool in tools:
        for name, unit in units_of(tool.unit).items() if isinstance(tool, UnitTool) else ():
            if units.setdefault(name, unit) is not unit:
                raise ConfigError(f"A tool of the task and a member are both named {name!r}; give one another name=.")
    return units


def _has_members(unit: Unit) -> bool:
    return isinstance(unit, Topology) or any(isinstance(item, UnitTool) for item in unit.toolkit.items)


def unit_tools(units: Iterable[Unit]) -> bool:
    """Whether any of these agents calls another."""
    for unit in units:
        items = unit.toolkit.items if isinstance(unit, BaseAgent) else [t for ts in unit.tools_of.values() for t in ts]
        if any(isinstance(tool, UnitTool) for tool in items):
            return True
    return False


def check_limits(run: Run, steps: int) -> None:
    """Refuse one more step, after `steps` of them. Raises `LimitReached`, which names the setting."""
    conf, spending = run.conf, run.record.spending
    if conf.max_steps is not None and steps >= conf.max_steps:
        remedy = "fork the run with a higher one to go on"
        raise LimitReached("max_steps", f"max_steps={conf.max_steps} reached; {remedy}.", remedy=remedy)
    if conf.max_tokens is not None:
        if spending.uncounted is not None:
            who, number = spending.uncounted
            raise LimitReached("max_tokens", f"max_tokens is set, but {who} reported no usage for step {number}.")
        if spending.tokens >= conf.max_tokens:
            raise LimitReached("max_tokens", f"max_tokens={conf.max_tokens} reached: {spending.tokens} tokens used.")
    if conf.max_cost is not None:
        if spending.unpriced is not None:
            who, number = spending.unpriced
            remedy = "set llm_input_price and llm_output_price (US dollars for a million tokens) for its model"
            text = f"max_cost is set, but {who} reported no cost for step {number}: {remedy}."
            raise LimitReached("max_cost", text, remedy=remedy)
        if spending.cost >= conf.max_cost:
            text = f"max_cost={conf.max_cost} reached: {spending.cost:.6f} US dollars spent."
            raise LimitReached("max_cost", text)


def check_agent_limits(agent: BaseAgent, activation: Activation) -> None:
    """Refuse one more decision of one agent in one piece of work. Raises `AgentLimit`."""
    if agent.max_steps is not None and activation.steps >= agent.max_steps:
        raise AgentLimit(f"max_steps={agent.max_steps} of agent {agent.name!r} reached.")
