"""A run: the state of one execution of a task, and the two seams through which it is seen and acts.

`SharedState` is what agents and tools of the task share; `World` is the outside, which answers for models and tools.
Turns, tool calls and activations work on a `Run`; who takes its turns, and when, is the driver's business alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

from aworld.config.conf import TaskConfig
from aworld.core import event as ev
from aworld.core.agent.base import BaseAgent, plain
from aworld.core.agent.flow import Topology, Unit, UnitTool, units_of
from aworld.core.bounded import bounded, described, own_failure
from aworld.core.common import ActionResult
from aworld.core.context.base import NOT_KEPT, Context, RunScope
from aworld.core.exceptions import (
    AWorldError,
    ConfigError,
    EnvironmentFailed,
    LimitReached,
    ModelError,
    StoreError,
    TaskError,
    ToolError,
)
from aworld.core.message import ToolCall, Usage, content_text
from aworld.core.model import Delta, Model, ModelRequest
from aworld.core.output import RunFinished
from aworld.core.task import Task, TaskResponse
from aworld.core.tool.base import Guardrail, Question, Tool, ToolContext, calling
from aworld.core.tool.results import to_content
from aworld.core.tool.toolkit import Offer
from aworld.core.tool.wrappers import means_always
from aworld.core.trajectory import Activation, Spending, Trajectory
from aworld.models.call import Outcome, call_model
from aworld.runners.budget import check_spending
from aworld.runners.functions import On, reason_of, system_message
from aworld.runners.journal import Journal, Recorder, give_reward
from aworld.trajectory.store import TrajectoryStore

logger = logging.getLogger(__name__)

LET_GO = 10.0
"""Seconds that what a run held has to let go."""
PUT_ASIDE = 60.0
"""Seconds that it has to be put aside while the run waits."""

_resting: WeakKeyDictionary[Any, dict[str, RunScope]] = WeakKeyDictionary()
"""Scopes of runs that wait for people, by store and trajectory."""


class Run:
    """What is known of one execution, and the ways to write it."""

    def __init__(self, task: Task, store: TrajectoryStore, record: Trajectory, world: World | None = None) -> None:
        self.task = task
        self.conf = task.conf
        self.share = task.share
        """Its part in what many runs may spend together; None where each has its own limits alone."""
        self.record = record
        self.journal = Journal(record, store)
        self.recorder = Recorder(self.journal)
        self.world = world or _LIVE
        self.environment = task.environment
        self.units = units_of_task(task.agent, task.tools)
        """The agents and teams by name."""
        if world is not None:
            self.units = {name: world.stand_in(unit) for name, unit in self.units.items()}
        self.state = SharedState(self.journal, self.units)
        self.context = self.state.context_of(None)
        self.scope = RunScope(record.id, task.info, artifacts=record.artifacts, blobs=store)
        self.deps: Any = None
        """What tools and instructions work with; see `aworld.runners.dependencies`."""
        self.is_fork = False
        """Whether the run begins within the events of another."""
        self.spent = 0.0
        """Seconds that it has taken in this process."""
        self.reserved: dict[tuple[int, str], list[Usage]] = {}
        """What open tool calls have models do, by activation and call: asked for, or used and not on record yet."""
        self.samples = 0
        """How often tools have asked models in this process; each counts as a step where a tool asks."""

    @property
    def is_read(self) -> bool:
        """Whether somebody reads the run right now."""
        return self.record.id in self.journal.topics

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

    def context_for(self, activation: Activation, step: int) -> ToolContext:
        """What a function of the agent's author may know of the run, as a tool does."""
        return ToolContext(
            self.record.id, activation.agent, step, "", self.state.context_of(activation), deps=self.deps
        )

    # People

    def answers_to(self, called: ev.ToolCalled) -> dict[str, str]:
        """What people answered to the questions of one call, by question."""
        answers = self.record.answers
        if not answers:
            return {}
        return {q.question: answers[q.id] for q in self.record.questions_of(called) if q.id in answers}

    def always(self, called: ev.ToolCalled) -> bool:
        """Whether a person has answered `always` to a question of this tool."""
        record = self.record
        answers = record.answers
        calls = {(q.step, q.call_id) for q in record.questions.values() if means_always(answers.get(q.id, ""))}
        return bool(calls) and any(
            isinstance(e, ev.ToolCalled) and e.name == called.name and (e.step, e.call_id) in calls
            for e in record.events
        )

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
        self.scope.artifacts = self.record.artifacts
        self.scope.used |= {event.name for event in self.record.own_events if isinstance(event, ev.ToolCalled)}

    async def keep_artifacts(self) -> None:
        """Put on record what has changed in the files that outlive the run. Raises StoreError."""
        for source in self.scope.sources:
            try:
                async with asyncio.timeout(PUT_ASIDE):
                    changed = await source.artifacts()
            except StoreError:
                raise
            except BaseException as raised:  # noqa: BLE001 - such as a sandbox that has died: the run goes on
                changed = [{"name": "", "error": own_failure(raised)}]
            for fields in changed:
                if "error" in fields:
                    self.journal.add(ev.Noted, source="sandbox", name=NOT_KEPT, data=fields)
                else:
                    self.journal.add(ev.ArtifactKept, **fields)

    async def let_go(self) -> None:
        """The run is over; nothing that it held may hold it up."""
        for copy in self.scope.copies():
            await self.tell(copy, "end_run", LET_GO)

    async def rest(self) -> None:
        """The run waits for a person; it keeps in this process what it has, such as the variables of its sandbox."""
        _resting.setdefault(self.journal.store, {})[self.record.id] = self.scope
        for copy in self.scope.copies():
            await self.tell(copy, "rest", PUT_ASIDE)

    async def tell(self, copy: Any, what: str, limit: float) -> None:
        """Call a method of what the run holds, if it has it; what that raises is logged."""
        method: Callable[[], Coroutine[Any, Any, None]] | None = getattr(copy, what, None)
        if method is None:
            return
        try:
            async with asyncio.timeout(limit):
                await method()
        except BaseException as raised:
            own_failure(raised)
            logger.exception("trajectory=%s | %s of %r failed", self.record.id, what, copy)

    def spending(self) -> Spending:
        """What was spent, and what open tool calls have set aside to spend."""
        spending = self.record.spending
        if self.reserved:
            spending = replace(spending)
            for usage in chain.from_iterable(self.reserved.values()):
                spending.add(usage, "a model that a tool asks", self.record.next_step - 1)
        return spending

    def check_limits(self, steps: int) -> None:
        """Refuse one more step, after `steps` of them. Raises `LimitReached`, which names the setting."""
        conf = self.conf
        if conf.max_steps is not None and steps >= conf.max_steps:
            remedy = "fork the run with a higher one to go on" if self.environment is None else "give a higher one"
            raise LimitReached("max_steps", f"max_steps={conf.max_steps} reached; {remedy}.", remedy=remedy)
        if conf.max_tokens is not None or conf.max_cost is not None:
            check_spending(conf, self.spending())


def units_of_task(root: Unit, tools: Sequence[Any]) -> dict[str, Unit]:
    """The agents and teams of a run by name: those of its root, and those among the tools of its task.

    Raises ConfigError when two different ones share a name.
    """
    units = units_of(root)
    for tool in tools:
        for name, unit in units_of(tool.unit).items() if isinstance(tool, UnitTool) else ():
            if units.setdefault(name, unit) is not unit:
                raise ConfigError(f"A tool of the task and a member are both named {name!r}; give one another name=.")
    return units


def unit_tools(units: Iterable[Unit]) -> bool:
    """Whether any of these agents calls another."""
    for unit in units:
        items = unit.toolkit.items if isinstance(unit, BaseAgent) else [t for ts in unit.tools_of.values() for t in ts]
        if any(isinstance(tool, UnitTool) for tool in items):
            return True
    return False


def run_finished(response: TaskResponse, seq: int | None = None) -> RunFinished:
    """The last output of a run, for its readers."""
    record = response.record
    agent = record.activations[0].agent if record.activations else ""
    step = max(record.next_step - 1, 0)
    return RunFinished(trajectory_id=record.id, agent=agent, step=step, seq=seq, response=response)


def recorded_seconds(record: Trajectory) -> float:
    """How long a run took, by its log."""
    return record.events[-1].at - record.own_events[0].at


class SharedState:
    """Writes the state that agents and tools of a run share.

    Whether two members may work at the same time, and so may not set one key both, is said by their team, not by the
    clock: else a conflict would come and go by luck.
    """

    def __init__(self, journal: Journal, units: dict[str, Unit]) -> None:
        self.conflict: str | None = None
        """Two members have set one key, and nobody said how to join that: the run ends with these words."""
        self._journal = journal
        self._record = journal.record
        self._units = units

    def context_of(self, activation: Activation | None) -> Context:
        """The task's context, as one agent writes it."""
        return Context(self._record.id, self._record.task, self._record.state, partial(self._set, activation))

    def _set(self, activation: Activation | None, key: str, value: Any) -> None:
        with self._journal.lock:  # a tool may run in a thread
            if self._record.finished is not None or (activation is not None and activation.finished is not None):
                raise TaskError(f"{key!r} was not set: the work that it belongs to has ended.")
            teams = (unit for unit in self._units.values() if isinstance(unit, Topology))
            reducer = next((team.reducers[key] for team in teams if key in team.reducers), None)
            other = self._beside(activation, key, every=reducer is not None) if activation is not None else None
            if other is not None and activation is not None:
                if reducer is None:
                    raise self._conflict(other.agent, activation.agent, key)
                value = reducer(self._record.state[key], value)
            number = activation.id if activation is not None else None
            self._journal.add(ev.StateSet, key=key, value=plain(value), activation=number)

    def _conflict(self, one: str, other: str, key: str) -> TaskError:
        """End the run: which of two values counts would be a matter of luck."""
        text = (
            f"{one!r} and {other!r} work side by side and both set {key!r}: give them different keys, or say how to "
            f"join them: Swarm(..., state={{{key!r}: function}})."
        )
        self.conflict = self.conflict or text
        self._journal.held = True
        return TaskError(text)

    def _side_by_side(self, one: Activation, other: Activation) -> bool:
        """Whether two activations may work at the same time, neither for the other: their team says, not the clock."""
        above, beside = self._callers(one), self._callers(other)
        depth = 0
        while depth < min(len(above), len(beside)) and above[depth] is beside[depth]:
            depth += 1
        if depth == min(len(above), len(beside)):
            return False
        first, second = above[depth], beside[depth]
        common = self._units[above[depth - 1].agent]
        if isinstance(common, Topology) and first.node is not None and second.node is not None:
            return common.side_by_side(first.node, second.node)
        if second.began < first.began:
            first, second = second, first
        return first.finished is None or first.finished.seq > second.began  # called in one turn of an agent

    def _beside(self, activation: Activation, key: str, *, every: bool) -> Activation | None:
        """Who set a key before and works side by side with `activation`.

        The last one says it all, unless there is a function that joins such writes: then an earlier one may, whose
        value is in what a later one joined.
        """
        activations = self._record.activations
        writers = self._record.writers.get(key, ())
        for number in reversed(writers) if every else writers[-1:]:
            if number is not None and self._side_by_side(activation, activations[number]):
                return activations[number]
        return None

    def _callers(self, activation: Activation) -> list[Activation]:
        """The activations from the root down to this one."""
        callers = [activation]
        while callers[-1].caller is not None:
            callers.append(self._record.activations[callers[-1].caller])
        return callers[::-1]


class World:
    """The outside: a run asks models and calls tools through this, and through nothing else.

    This is the live one; `aworld.runners.replay` has one that reads the answers out of a recorded trajectory.
    """

    live = True
    """Whether models are asked, so that their settings must be complete."""

    def stand_in(self, unit: Unit) -> Unit:
        """Who acts in the place of an agent or a team: itself."""
        return unit

    def next_due(self, ready: deque[int], record: Trajectory) -> int:
        """Whose turn the next step takes: the one that has waited longest. It is taken out of `ready`."""
        return ready.popleft()

    async def ask(
        self,
        model: Model,
        request: ModelRequest,
        on_delta: Callable[[Delta], None] | None = None,
        on_retry: Callable[[ModelError, float], None] | None = None,
    ) -> Outcome:
        """Ask a model, with its retries and limits. Raises `CallFailed`, and `ModelError` for what a model of somebody
        else's making raised."""
        try:
            return await call_model(model, request, on_delta=on_delta, on_retry=on_retry)
        except AWorldError:
            raise
        except BaseException as raised:
            text = own_failure(raised)
            logger.exception("trajectory=%s model=%s | raised", request.trajectory_id, model.name)
            raise ModelError(f"Model {model.name!r} raised {text}") from raised

    async def instruct(self, agent: BaseAgent, context: ToolContext, limit: float) -> str:
        """The system message of one call, of an agent whose instructions are a function. Raises TaskError."""
        return await system_message(agent, context, limit)

    async def judge(
        self, guardrail: Guardrail, context: ToolContext, value: Any, on: On, activation: int, limit: float
    ) -> str | None:
        """Why a guardrail refuses a value, None when it lets it pass. Raises TaskError for one that fails."""
        return await reason_of(guardrail, context, value, limit)

    async def act(self, offer: Offer, call: ToolCall, context: ToolContext, conf: TaskConfig) -> ActionResult:
        """Call a tool. Every failure is a result that tells the model what was wrong. Raises only
        `Question`, and `EnvironmentFailed` where the world of the run has died."""
        tool = offer.by_name.get(call.name)
        if tool is None:
            text = f"There is no tool named {call.name!r}. Tools: {', '.join(offer.by_name) or 'none'}."
            return ActionResult(call.id, call.name, text, f"unknown tool {call.name!r}")
        limit, clock = tool.timeout or conf.tool_timeout, context.clock
        error: str | None = None
        try:
            value = await bounded(_invoked(tool, call.arguments, context), limit, clock)
            content = to_content(value, conf.max_tool_result)
        except (Question, EnvironmentFailed):
            raise
        except TimeoutError as late:
            error = str(late) or "TimeoutError"
            content = f"Tool {call.name!r} failed. {error}"
        except asyncio.InvalidStateError:
            content = error = f"Tool {call.name!r} cancelled itself."
        except ToolError as refused:
            content = error = str(refused)
        except Exception as raised:  # whatever a tool raises is the model's to read
            logger.info("trajectory=%s tool=%s | raised", context.trajectory_id, call.name, exc_info=raised)
            error = described(raised)
            content = f"Tool {call.name!r} failed. {error}"
        if error is not None:  # as text that can be stored, and no longer than a result may be
            error = content_text(to_content(error, conf.max_tool_result))
            content = to_content(content, conf.max_tool_result)
        return ActionResult(call.id, call.name, content, error, clock.seconds, attempts=tuple(context.attempts))


async def _invoked(tool: Tool, arguments: str, context: ToolContext) -> Any:
    """The tool's value. A task that ends with SystemExit would take the event loop with it."""
    calling.set(context)  # in the task of this call alone
    context.clock.begin()
    try:
        return await tool.invoke(arguments, context)
    except SystemExit as raised:
        raise ToolError(f"Tool {tool.name!r} tried to end the program (exit code {raised.code}).") from raised
    except (Exception, asyncio.CancelledError):
        raise
    except BaseException as raised:
        raise RuntimeError(own_failure(raised)) from raised
    finally:
        context.clock.end()


_LIVE = World()
