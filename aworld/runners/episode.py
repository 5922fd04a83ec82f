"""An episode: one run in progress.

`turn` is the one loop body: `run` takes turns until the end, `step` takes one, a stream listens while they are taken,
and resume, fork and replay begin with a log that is not empty. What is due next is read off the log alone.
"""

from __future__ import annotations

import asyncio
import logging
import platform
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from aworld import __version__
from aworld.core import event as ev
from aworld.core.agent.base import BaseAgent, plain
from aworld.core.common import Observation
from aworld.core.context.base import Context
from aworld.core.exceptions import AWorldError, LimitReached, StoreError, TaskError
from aworld.core.hooks import HookContext
from aworld.core.limits import check_limits
from aworld.core.message import Content, Message, Origin
from aworld.core.output import AnyOutput, RunFinished, StepFinished, StepStarted
from aworld.core.task import Task, TaskResponse
from aworld.core.tool.toolkit import Offer
from aworld.core.trajectory import Activation, Trajectory
from aworld.runners.action import interrupt_call, replace_results, run_tools
from aworld.runners.journal import Journal, give_reward
from aworld.runners.turn import AgentTurn, observe
from aworld.runners.world import World
from aworld.trajectory.store import TrajectoryStore

logger = logging.getLogger(__name__)

CORRECTION = "\nAnswer again, in the required form only."
"""What follows the error when an answer is sent back to the agent."""

_VERSIONS = {"aworld": __version__, "python": platform.python_version()}


class Episode:
    """Takes the turns of one task. Made by `Runners`; used once."""

    def __init__(
        self,
        task: Task,
        store: TrajectoryStore,
        record: Trajectory | None = None,
        emit: Callable[[AnyOutput], None] | None = None,
        world: World | None = None,
    ) -> None:
        self.task = task
        self.conf = task.conf
        self.record = record if record is not None else Trajectory(task.id)
        self.journal = Journal(self.record, store, emit)
        self.world = world or World()
        self.agents: dict[str, BaseAgent] = {task.agent.name: task.agent}
        self.context = Context(self.record.id, task.info, self.record.state, self._set_state)
        self.spent = 0.0
        self.response: TaskResponse | None = None
        self._begun = False
        self._ready: deque[int] = deque()
        self._offers: dict[str, Offer] = {}
        self._answer: Any = None
        self._trouble: tuple[ev.Status, str] | None = None

    # The three ways to drive it

    async def run(self) -> TaskResponse:
        """Take turns until the end. Raises only CancelledError, after the log says so."""
        return await self._guarded(self._drive)

    async def step(
        self, observation: Content | None = None, tool_results: dict[str, Content] | None = None
    ) -> tuple[bool, Observation, TaskResponse]:
        """Take one turn; first add an observation or replace pending results, if given."""
        if self.response is not None and self.record.finished is not None:
            return True, Observation(self._final_content()), self.response
        at = self.record.next_step
        misuse: TaskError | None = None

        async def one_turn() -> None:
            nonlocal misuse
            try:
                self._intervene(observation, tool_results)
            except TaskError as error:  # the caller's mistake, not the run's: nothing was done
                misuse = error
                return
            if self._ready:
                await self.turn(self.record.activations[self._ready.popleft()])

        response = await self._guarded(one_turn)
        if misuse is not None:
            raise misuse
        response.step = at if self.record.next_step > at else max(at - 1, 0)
        over = response.status != "running"
        call = self.record.calls.get(response.step)
        if self.record.finished is not None or call is None:
            return over, Observation(self._final_content()), response
        if response.status == "waiting":
            return over, Observation("\n".join(q.question for q in self.open_questions())), response
        return over, observe(self.record, self.record.activations[call.activation]), response

    def recorded_response(self) -> TaskResponse:
        """The response of a run that has ended, as it was recorded."""
        answer = self.record.answer
        revive = getattr(self.task.agent, "revive", None)
        return TaskResponse(
            self.record,
            self.record.status,
            revive(answer) if revive is not None and answer is not None else answer,
            self.record.error,
            self.record.events[-1].at - self.record.events[0].at,
            self.context if self.conf.resp_carry_context else None,
            give_reward=self.give_reward,
            store=self.journal.store,
        )

    # One turn

    async def turn(self, activation: Activation) -> None:
        """Let one agent decide once and let the world answer."""
        agent = self.agents[activation.agent]
        offer = await self._offer(agent)
        if activation.open_calls:  # the process died, or a person was asked, in mid-turn
            step = activation.open_calls[0].step
        else:
            step = await self._decide(activation, agent, offer)
        if activation.calls:
            await run_tools(self, activation, offer)
            if not activation.open_calls:
                self._ready.append(activation.id)
        else:
            self._conclude(activation, agent)
        emit = self.journal.emit
        if emit is not None:
            await self.journal.commit()
            call = self.record.calls.get(step)
            usage = call.usage if call is not None else None
            emit(StepFinished(trajectory_id=self.record.id, agent=agent.name, step=step, usage=usage))

    async def _decide(self, activation: Activation, agent: BaseAgent, offer: Offer) -> int:
        step = self.record.next_step
        check_limits(self.conf, self.record, step)
        if self.journal.emit is not None:
            self.journal.emit(StepStarted(trajectory_id=self.record.id, agent=agent.name, step=step))
        turn = AgentTurn(self, activation, agent, offer, step)
        started = time.time()
        message = await agent.decide(turn)
        if not turn.called:
            message = turn.decided(message, started)
        turn.show(message)
        if message.tool_calls:
            await self.journal.commit()
        return step

    def _conclude(self, activation: Activation, agent: BaseAgent) -> None:
        """The agent has answered: end its work, or tell it why the answer does not do."""
        assert activation.leaf is not None  # it has just said something
        message = self.record.messages[activation.leaf].message
        try:
            answer = agent.answer_of(message)
        except ValueError as error:
            if self._corrections(activation) >= agent.output_retries:
                text = f"agent={agent.name} | no valid answer after {agent.output_retries} corrections: {error}"
                self._finish_agent(activation, None, text)
                self._trouble = ("failed", text)
            else:
                text = f"{error}{CORRECTION}"
                self.add_message(activation, Message("user", text), activation.leaf, "agent")
                self._ready.append(activation.id)
            return
        self._finish_agent(activation, answer, None)

    def _corrections(self, activation: Activation) -> int:
        messages = self.record.messages
        path = [messages[id] for id in self.record.path_ids(activation.leaf)]
        return sum(1 for node in path if node.origin == "agent" and node.message.role == "user")

    def _finish_agent(self, activation: Activation, answer: Any, error: str | None) -> None:
        self.journal.add(
            ev.AgentFinished, activation=activation.id, agent=activation.agent, answer=plain(answer), error=error
        )
        self._answer = answer

    # From the first event to the last

    async def _drive(self) -> None:
        while self._ready and self._trouble is None:
            await self.turn(self.record.activations[self._ready.popleft()])

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> TaskResponse:
        """The one place that says how a run ended. Whatever breaks in it becomes the run's status."""
        began = time.perf_counter()
        deadline = asyncio.timeout(None if self.conf.timeout is None else max(self.conf.timeout - self.spent, 0.0))
        status: ev.Status | None = None
        error: str | None = None
        cancelled: asyncio.CancelledError | None = None
        try:
            async with deadline:
                await self._begin()
                await work()
                status, error = self._verdict()
        except LimitReached as reached:
            status, error = "limit_reached", str(reached)
        except StoreError as broken:
            status, error = "interrupted", str(broken)
        except asyncio.CancelledError as request:
            cancelled = request
            status, error = "cancelled", "The run was cancelled by its caller."
        except TimeoutError as late:
            if deadline.expired():
                status, error = "timeout", f"timeout={self.conf.timeout:g} s passed; raise TaskConfig(timeout=...)."
            else:
                status, error = "failed", f"TimeoutError: {late}"
        except AWorldError as trouble:
            if not self._begun:  # misuse by the caller: there is no run to speak of
                raise
            status, error = "failed", str(trouble)
        except Exception as bug:
            logger.exception("trajectory=%s | the run failed", self.record.id)
            status, error = "failed", f"{type(bug).__name__}: {bug}"
        self.spent += time.perf_counter() - began
        response = await self._close(status, error)
        if cancelled is not None:
            raise cancelled
        return response

    def _verdict(self) -> tuple[ev.Status | None, str | None]:
        """How the run stands after work has been done; None while turns are left."""
        if self._trouble is not None:
            return self._trouble
        root = self.record.activations[0]
        if root.finished is None:
            return ("waiting", None) if not self._ready and self.open_questions() else (None, None)
        for agent in self.agents.values():
            unused = agent.unused_replies(self.record.steps_by_agent.get(agent.name, 0))
            if unused is not None:
                return "failed", unused
        return "finished", None

    async def _close(self, status: ev.Status | None, error: str | None) -> TaskResponse:
        """Write the end, if this is it, and make the response."""
        ended = status not in (None, "waiting", "interrupted")
        try:
            if ended and self.record.finished is None:
                self._close_open_calls(status or "")
                root = self._root_finish()
                self.journal.add(ev.Finished, status=status, answer=root.answer if root else None, error=error)
            if status != "interrupted":
                await self.journal.commit()
        except StoreError as broken:
            status, error = "interrupted", str(broken)
        response = TaskResponse(
            self.record,
            status or "running",
            self._answer if self._root_finish() else None,
            error,
            self.spent,
            self.context if self.conf.resp_carry_context else None,
            give_reward=self.give_reward,
            store=self.journal.store,
        )
        self.response = response
        if status is not None:
            await self._leave(response)
        return response

    async def _leave(self, response: TaskResponse) -> None:
        at = HookContext(self.record, self.context)
        for hook in reversed(self.task.hooks):
            await hook.after_task(at, response)
        if self.journal.emit is not None:
            step = max(self.record.next_step - 1, 0)
            self.journal.emit(
                RunFinished(trajectory_id=self.record.id, agent=self.task.agent.name, step=step, response=response)
            )

    def _close_open_calls(self, why: str) -> None:
        for activation in self.record.activations.values():
            for called in activation.open_calls:
                interrupt_call(self, activation, called, why)

    def _root_finish(self) -> ev.AgentFinished | None:
        root = self.record.activations.get(0)
        return root.finished if root is not None else None

    def _final_content(self) -> Content:
        finished = self.record.finished
        if finished is None or finished.answer is None:
            return ""
        return finished.answer if isinstance(finished.answer, str) else str(finished.answer)

    # Beginning, and beginning again

    async def _begin(self) -> None:
        if self._begun:
            return
        for agent in self.agents.values():
            agent.check()
        for name in {a.agent for a in self.record.activations.values() if a.finished is None} - self.agents.keys():
            raise TaskError(f"The log has an agent {name!r} that was not given; given are {list(self.agents)}.")
        if not self.record.events or self.task.prefix is not None:
            self._start()
        if self.record.activations:
            self._recover()
        else:
            self._start_agent(self.task.agent)
        self.journal.store.attach(self.record)
        await self.journal.commit()
        self._begun = True
        self._intervene(self.task.said, None)
        at = HookContext(self.record, self.context)
        for hook in self.task.hooks:
            await hook.before_task(at)

    def _start(self) -> None:
        prefix = self.task.prefix
        self.journal.add(
            ev.Started,
            trajectory_id=self.record.id,
            task=self.task.info,
            agents={agent.name: agent.settings() for agent in self.agents.values()},
            conf=self.conf.model_dump(mode="json", exclude_defaults=True),
            forked_from=ev.Fork(prefix.trajectory.id, prefix.seq) if prefix is not None else None,
            versions=_VERSIONS,
        )
        for key, value in self.task.context.items():
            self.context.set(key, value)

    def _start_agent(self, agent: BaseAgent) -> None:
        number = len(self.record.activations)
        self.journal.add(ev.AgentStarted, activation=number, agent=agent.name)
        activation = self.record.activations[number]
        if agent.system_prompt:
            self.add_message(activation, Message("system", agent.system_prompt), None, "agent")
        self.add_message(activation, Message("user", self.task.input), activation.leaf, "input")
        self._ready.append(number)

    def _recover(self) -> None:
        """Read off the log who is due. Calls whose outcome is lost are closed, unless they may run again."""
        for activation in self.record.activations.values():
            if activation.finished is not None:
                continue
            asked = {q.call_id: q for q in self.record.questions.values()}
            for called in activation.open_calls:
                if called.call_id not in asked and not called.idempotent:
                    interrupt_call(self, activation, called, "the process that ran it ended")
            if any(self._unanswered(called) for called in activation.open_calls):
                continue
            leaf = self.record.messages[activation.leaf] if activation.leaf is not None else None
            if leaf is not None and leaf.message.role == "assistant" and not leaf.message.tool_calls:
                self._conclude(activation, self.agents[activation.agent])
            else:
                self._ready.append(activation.id)

    async def _offer(self, agent: BaseAgent) -> Offer:
        offer = self._offers.get(agent.name)
        if offer is None:
            extra = self.task.tools if agent is self.task.agent else ()
            offer = agent.toolkit.ready() if not extra else None
            offer = self._offers[agent.name] = offer or await agent.toolkit.resolve(extra)
        return offer

    # What others write through it

    def add_message(self, activation: Activation, message: Message, parent: int | None, origin: Origin) -> int:
        """Add a node to the graph; returns its id."""
        id = self.record.next_message
        self.journal.add(
            ev.MessageAdded,
            id=id,
            parent=parent,
            agent=activation.agent,
            activation=activation.id,
            message=message,
            origin=origin,
        )
        return id

    def give_reward(self, value: float, **fields: Any) -> Awaitable[None]:
        """Reward a step, or the whole run; see `journal.give_reward`."""
        return give_reward(self.journal, value, **fields)

    def answer(self, question: str, text: str) -> None:
        """Record a person's answer to an open question."""
        if question not in {q.id for q in self.open_questions()}:
            raise TaskError(f"No open question {question!r}; open are: {[q.id for q in self.open_questions()]}.")
        self.journal.add(ev.Answered, id=question, answer=text)

    def open_questions(self) -> list[ev.Asked]:
        """Questions that nobody has answered."""
        return [q for q in self.record.questions.values() if q.id not in self.record.answers]

    def answers_to(self, called: ev.ToolCalled) -> dict[str, str]:
        """What people answered to the questions of one call, by question."""
        if not self.record.answers:
            return {}
        asked = (q for q in self.record.questions.values() if q.call_id == called.call_id)
        return {q.question: self.record.answers[q.id] for q in asked if q.id in self.record.answers}

    def _unanswered(self, called: ev.ToolCalled) -> bool:
        return any(q.call_id == called.call_id for q in self.open_questions())

    def _set_state(self, key: str, value: Any) -> None:
        self.journal.add(ev.StateSet, key=key, value=plain(value))

    def _intervene(self, observation: Content | None, tool_results: dict[str, Content] | None) -> None:
        """What the caller of `step` puts in before the next turn."""
        if observation is None and not tool_results:
            return
        active = [a for a in self.record.activations.values() if a.finished is None]
        for activation in active:
            mine = {c.call_id for c in activation.calls} & (tool_results or {}).keys()
            if mine:
                replace_results(self, activation, {id: (tool_results or {})[id] for id in mine})
                if not activation.open_calls and activation.id not in self._ready:
                    self._ready.append(activation.id)
        known = {c.call_id for a in active for c in a.calls}
        if unknown := (tool_results or {}).keys() - known:
            raise TaskError(f"No pending tool call {sorted(unknown)}; pending are {sorted(known)}.")
        if observation is not None:
            due = self._ready[0] if self._ready else active[0].id
            activation = self.record.activations[due]
            self.add_message(activation, Message("user", observation), activation.leaf, "human")
