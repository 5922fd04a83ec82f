"""An episode: one run in progress.

`turn` is the one loop body: `run` takes turns until the end, `step` takes one, a stream listens while they are taken,
and resume, fork and replay begin with a log that is not empty. What is due next is read off the log alone.
"""

from __future__ import annotations

import asyncio
import logging
import platform
import time
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import count

from aworld import __version__
from aworld.core import event as ev
from aworld.core.agent.base import BaseAgent
from aworld.core.agent.flow import readable
from aworld.core.common import Observation
from aworld.core.context.scope import RunScope
from aworld.core.exceptions import AgentLimit, AWorldError, EnvironmentFailed, LimitReached, StoreError, TaskError
from aworld.core.hooks import HookContext, Hooks
from aworld.core.limits import check_agent_limits, check_limits
from aworld.core.message import Content, Message, Origin
from aworld.core.output import AnyOutput, RunFinished, StepFinished, StepStarted
from aworld.core.task import Task, TaskResponse
from aworld.core.tool.toolkit import Offer
from aworld.core.trajectory import Activation, Trajectory
from aworld.runners import scoped, setting
from aworld.runners.action import interrupt_call, replace_results, run_tools
from aworld.runners.answering import refuse_empty
from aworld.runners.cast import Cast
from aworld.runners.journal import Journal, give_reward
from aworld.runners.recovery import Recovery
from aworld.runners.setting import is_unreachable
from aworld.runners.state import SharedState
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
        self.environment = task.environment
        self.scope = RunScope(self.record.id, task.info)
        self.cast = Cast(self, task.agent)
        self.state = SharedState(self.journal, self.cast.units)
        self.context = self.state.context_of(None)
        self.is_fork = task.prefix is not None
        self.spent = 0.0
        self.response: TaskResponse | None = None
        self._begun = False
        self._unreachable = False
        """Whether a model could not be reached."""
        self._entered: list[Hooks] = []
        self._workers: dict[int, asyncio.Task[None]] = {}
        self._failed: list[asyncio.Task[None]] = []
        self._news: asyncio.Event | None = None
        self._numbers = count(self.record.next_step)
        self._steps = self.record.next_step
        if self.is_fork:  # parallel steps behind the fork are taken anew, also where a later one was shared
            self._numbers = (number for number in count() if number not in self.record.calls)
            self._steps = len(self.record.calls)
        self._turns: dict[str, int] = {}
        self._now: dict[int, int] = {}
        self._over: list[StepFinished] = []
        """What readers of the stream are told when it is durable."""

    # The ways to drive it

    async def run(self) -> TaskResponse:
        """Take turns until the end. Raises only CancelledError, after the log says so."""
        return await self._guarded(self._drive)

    async def step(
        self, observation: Content | None = None, tool_results: dict[str, Content] | None = None
    ) -> tuple[bool, Observation, TaskResponse]:
        """Take one turn; first add an observation or replace pending results, if given."""
        if self.response is not None and self.record.finished is not None:
            return True, Observation(self._final_content()), self.response
        misuse: TaskError | None = None

        async def one_turn() -> None:
            nonlocal misuse
            try:
                self._intervene(observation, tool_results)
            except TaskError as error:  # the caller's mistake, not the run's: nothing was done
                misuse = error
                return
            if self.cast.ready:
                await self.turn(self.record.activations[self.next_due()])

        response = await self._guarded(one_turn)
        if misuse is not None:
            raise misuse
        response.step = next(reversed(self.record.calls), 0)
        over = response.status != "running"
        call = self.record.calls.get(response.step)
        if self.record.finished is not None or call is None:
            return over, Observation(self._final_content()), response
        if response.status == "waiting":
            return over, Observation("\n".join(q.question for q in self.open_questions())), response
        seen = self.record.activations[call.activation]
        if self.cast.ready and seen.id not in self.cast.ready:  # it has ended, or waits for others: the next one's view
            seen = self.record.activations[self.cast.ready[0]]
        return over, observe(self.record, seen), response

    async def begin(self) -> TaskResponse:
        """Begin without taking a turn, for who wants to see first what the agent is told."""

        async def nothing() -> None:
            return

        return await self._guarded(nothing)

    async def abandon(self, why: str) -> None:
        """End a run between two steps, as cancelled. Does nothing when it has ended or never began."""
        if self._begun and self.record.finished is None:
            await self._close("cancelled", why, False)

    async def offered(self) -> Offer:
        """The tools that whoever is due will be offered."""
        return await self.cast.offer(self.record.activations[self.cast.ready[0] if self.cast.ready else 0])

    def next_due(self) -> int:
        """Whose turn the next step takes: the one that has waited longest."""
        return self.cast.ready.popleft()

    def recorded_response(self) -> TaskResponse:
        """The response of a run that has ended, as it was recorded."""
        known = self.cast.units.keys() >= {a.agent for a in self.record.activations.values()}
        return TaskResponse(
            self.record,
            self.record.status,
            Recovery(self.cast).recall() if known else self.record.answer,
            self.record.error,
            self.record.events[-1].at - self.record.events[0].at,
            self.context if self.conf.resp_carry_context else None,
            give_reward=partial(give_reward, self.journal),
            store=self.journal.store,
        )

    async def _drive(self) -> None:
        """Take all turns: one after the other while one agent is due, side by side when several are."""
        try:
            while self.state.conflict is None:
                if not self._workers and len(self.cast.ready) == 1 and self.cast.is_alone():
                    await self.turn(self.record.activations[self.cast.ready.popleft()])
                    continue
                self._news = self._news or asyncio.Event()
                self._news.clear()
                while self.cast.ready:
                    id = self.cast.ready.popleft()
                    worker = self._workers[id] = asyncio.create_task(self._work(self.record.activations[id]))
                    worker.add_done_callback(partial(self._stopped, id))
                if not self._workers:
                    return
                await self._news.wait()
                if self._failed:
                    self._failed[0].result()
        finally:
            if self._workers:
                for worker in self._workers.values():
                    worker.cancel()
                await asyncio.gather(*self._workers.values(), return_exceptions=True)
                self._workers.clear()

    async def _work(self, activation: Activation) -> None:
        """Take the turns of one agent until it is not due at once."""
        ready = self.cast.ready
        await self.turn(activation)
        while ready and ready[-1] == activation.id and self.state.conflict is None:
            ready.pop()
            await self.turn(activation)

    def _stopped(self, id: int, worker: asyncio.Task[None]) -> None:
        """A worker has ended: the driver looks at how."""
        if self._workers.get(id) is worker:  # the agent may be due again, and have another
            del self._workers[id]
        if not worker.cancelled() and worker.exception() is not None:
            self._failed.append(worker)
        self.wake()

    def wake(self) -> None:
        """There is news for the driver: somebody is due, or has stopped."""
        if self._news is not None:
            self._news.set()

    def stop_work(self, activation: int) -> None:
        """Nobody waits for this agent any more: stop what it is doing."""
        worker = self._workers.get(activation)
        if worker is not None:
            worker.cancel()

    # One turn

    async def turn(self, activation: Activation) -> None:
        """Let one agent decide once and let the world answer. What an agent cannot get over ends its work."""
        agent = self.cast.agent(activation)
        self.cast.begin_turn(activation)
        try:
            try:
                await self._turn(activation, agent)
            except (LimitReached, StoreError, EnvironmentFailed):
                raise
            except AWorldError as error:
                self._unreachable = self._unreachable or is_unreachable(error)
                self.cast.fail(activation, str(error), "limit_reached" if isinstance(error, AgentLimit) else None)
            except Exception as bug:
                logger.exception("trajectory=%s agent=%s | failed", self.record.id, agent.name)
                self.cast.fail(activation, f"{type(bug).__name__}: {bug}")
            if self.journal.emit is not None:
                await self._show_end(activation)
        finally:
            self.cast.end_turn(activation)  # last: from here on another worker may take the agent's next turn

    async def _show_end(self, activation: Activation) -> None:
        """Tell readers of the stream that a step is over, and durable; of the last one with the end."""
        step = self._now.pop(activation.id, None)
        if step is not None:
            call = self.record.calls.get(step)
            usage = call.usage if call is not None else None
            self._over.append(
                StepFinished(trajectory_id=self.record.id, agent=activation.agent, step=step, usage=usage)
            )
        if self.record.activations[0].finished is None:
            await self.journal.commit()
            self._show_over()

    def _show_over(self) -> None:
        emit, over = self.journal.emit, self._over
        while over and emit is not None:
            emit(over.pop(0))

    async def _turn(self, activation: Activation, agent: BaseAgent) -> None:
        offer = await self.cast.offer(activation)
        last = activation.last
        if last is not None and (activation.open_calls or self._has_answered(activation)):
            self._now[activation.id] = last.step  # the process died, or a person was asked, in mid-turn
        else:
            await self._decide(activation, agent, offer)
        if not activation.calls:
            await self._conclude(activation, agent)
            return
        self.cast.start_called(activation, offer)
        await run_tools(self, activation, offer)
        self.cast.hand_over(activation, offer)
        if self.environment is not None and self.environment.over:
            self.cast.end(self.environment.answer)

    async def _decide(self, activation: Activation, agent: BaseAgent, offer: Offer) -> None:
        check_limits(self.conf, self.record, self._steps)
        check_agent_limits(agent, activation)
        self._steps += 1
        step = self._now[activation.id] = next(self._numbers)
        index = max(self._turns.get(agent.name, 0), self.record.steps_by_agent.get(agent.name, 0))
        self._turns[agent.name] = index + 1
        if self.journal.emit is not None:
            self.journal.emit(StepStarted(trajectory_id=self.record.id, agent=agent.name, step=step))
        turn = AgentTurn(self, activation, agent, offer, step, index)
        started = time.time()
        message = await agent.decide(turn)
        if not turn.called:
            message = turn.decided(message, started)
        turn.show(message)
        if message.tool_calls:
            await self.journal.commit()

    def _has_answered(self, activation: Activation) -> bool:
        leaf = activation.leaf
        if activation.calls or activation.last is None or leaf is None:
            return False
        return self.record.messages[leaf].message.role == "assistant"

    async def _conclude(self, activation: Activation, agent: BaseAgent) -> None:
        """The agent has answered: end its work, or tell it why the answer does not do."""
        assert activation.leaf is not None  # it has just said something
        message = self.record.messages[activation.leaf].message
        try:
            answer = agent.answer_of(message)
        except ValueError as error:
            if self._corrections(activation) >= agent.output_retries:
                text = f"agent={agent.name} | no valid answer after {agent.output_retries} corrections: {error}"
                self.cast.fail(activation, text)
            else:
                self.add_message(activation, Message("user", f"{error}{CORRECTION}"), activation.leaf, "agent")
            return
        if self.environment is not None and activation.caller is None:
            told = await setting.respond(self.environment, message)
            if told is not None:
                self.add_message(activation, Message("user", told), activation.leaf, "input")
                return
        self.cast.finish(activation, answer)

    def _corrections(self, activation: Activation) -> int:
        path = (self.record.messages[id] for id in self.record.path_ids(activation.leaf))
        return sum(1 for n in path if n.activation == activation.id and n.message.text.endswith(CORRECTION))

    # From the first event to the last

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> TaskResponse:
        """The one place that says how a run ended. Whatever breaks in it becomes the run's status."""
        began = time.perf_counter()
        deadline = asyncio.timeout(None if self.conf.timeout is None else max(self.conf.timeout - self.spent, 0.0))
        status: ev.Status | None = None
        error: str | None = None
        cancelled: asyncio.CancelledError | None = None
        surroundings = False
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
            status, error, surroundings = "failed", str(trouble), isinstance(trouble, EnvironmentFailed)
        except Exception as bug:
            logger.exception("trajectory=%s | the run failed", self.record.id)
            status, error = "failed", f"{type(bug).__name__}: {bug}"
        self.spent += time.perf_counter() - began
        surroundings = surroundings or (status == "failed" and self._unreachable)
        surroundings = surroundings or (
            status == "timeout" and not self.record.activations
        )  # the environment never opened
        if self.environment is not None and not surroundings:
            try:
                await setting.judge(self, status, error)
            except asyncio.CancelledError as request:
                cancelled, status, error = request, "cancelled", "The run was cancelled by its caller."
        closing = asyncio.ensure_future(self._close(status, error, surroundings))
        while not closing.done():  # what was opened is closed, however often the caller cancels
            try:
                await asyncio.shield(closing)
            except asyncio.CancelledError as request:
                cancelled = request
        response = closing.result()
        if cancelled is not None:
            raise cancelled
        return response

    def _verdict(self) -> tuple[ev.Status | None, str | None]:
        """How the run stands after work has been done; None while turns are left."""
        if self.state.conflict is not None:
            return "failed", self.state.conflict
        root = self.record.activations[0]
        if root.finished is None:
            if self.cast.ready:
                return None, None
            if self.open_questions():
                return "waiting", None
            return "failed", "Nobody is due, and nobody has answered: a member waits for one that never began."
        if root.finished.error is not None:
            return self.cast.status or "failed", root.finished.error
        for agent in self.cast.agents():
            unused = agent.unused_replies(self.record.steps_by_agent.get(agent.name, 0))
            if unused is not None:
                return "failed", unused
        return "finished", None

    async def _close(self, status: ev.Status | None, error: str | None, surroundings: bool) -> TaskResponse:
        """Write the end, if this is it, and make the response."""
        ended = status not in (None, "waiting", "interrupted")
        self.journal.held = False
        try:
            if ended and self.record.finished is None:
                self._close_open_calls(status or "")
                root = self.root_finish()
                answer = root.answer if root else None
                self.journal.add(ev.Finished, status=status, answer=answer, error=error, surroundings=surroundings)
            if status != "interrupted":
                await self.journal.commit()
        except StoreError as broken:
            status, error = "interrupted", str(broken)
        response = TaskResponse(
            self.record,
            status or "running",
            self.cast.answers.get(0),
            error,
            self.spent,
            self.context if self.conf.resp_carry_context else None,
            give_reward=partial(give_reward, self.journal),
            store=self.journal.store,
        )
        self.response = response
        if status is not None:
            await self._leave(response)
        if ended:
            self.cast.leave()
            self.journal.emit = None
        return response

    async def _leave(self, response: TaskResponse) -> None:
        if self.environment is not None:
            await setting.close(self.environment, self.record, scoped.LET_GO)
        await (scoped.rest(self) if response.status == "waiting" else scoped.let_go(self))
        at = HookContext(self.record, self.context)
        for hook in reversed(self._entered):
            try:
                await hook.after_task(at, response)
            except Exception:  # the run has ended: its outcome stands
                logger.exception("trajectory=%s | after_task of %s failed", self.record.id, type(hook).__name__)
        if self.journal.emit is not None:
            if response.status != "interrupted":
                self._show_over()
            step = max(self.record.next_step - 1, 0)
            self.journal.emit(
                RunFinished(trajectory_id=self.record.id, agent=self.task.agent.name, step=step, response=response)
            )

    def _close_open_calls(self, why: str) -> None:
        for activation in self.record.activations.values():
            for called in activation.open_calls:
                interrupt_call(self, activation, called, why)

    def root_finish(self) -> ev.AgentFinished | None:
        """How the agent or team of the task has ended, None while it has not."""
        root = self.record.activations.get(0)
        return root.finished if root is not None else None

    def _final_content(self) -> Content:
        finished = self.record.finished
        if finished is None or finished.answer is None:
            return ""
        return readable(finished.answer)

    # Beginning, and beginning again

    async def _begin(self) -> None:
        if self._begun:
            return
        self.check()
        prefix = self.task.prefix
        setting.check_environment(
            self.record if prefix is None else prefix.trajectory, self.environment
        )  # the one that was named
        if not self.record.events or self.task.prefix is not None:
            self._start()
        if self.record.activations:
            Recovery(self.cast).recover()
            self.scope = scoped.go_on(self)
        elif self.environment is None:
            self.cast.start(self.task.agent, self.task.input)
        self.journal.store.attach(self.record)
        await self.journal.commit()
        self._begun = True
        if self.environment is not None:
            await setting.open_environment(self, self.environment)
        self._intervene(self.task.said, None)
        at = HookContext(self.record, self.context)
        for hook in self.task.hooks:
            self._entered.append(hook)
            await hook.before_task(at)

    def check(self) -> None:
        """Raise ConfigError when an agent misses a setting."""
        self.task.agent.check()

    def _start(self) -> None:
        prefix = self.task.prefix
        self.journal.add(
            ev.Started,
            trajectory_id=self.record.id,
            task=self.task.info,
            agents={name: unit.settings() for name, unit in self.cast.units.items()},
            conf=self.conf.model_dump(mode="json", exclude_defaults=True),
            forked_from=ev.Fork(prefix.trajectory.id, prefix.seq) if prefix is not None else None,
            environment=self.environment.name if self.environment is not None else None,
            versions=_VERSIONS,
            schema=ev.SCHEMA_VERSION,
        )
        for key, value in self.task.context.items():
            self.context.set(key, value)

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

    def answer(self, question: str, text: str) -> None:
        """Record a person's answer to an open question."""
        if question not in {q.id for q in self.open_questions()}:
            raise TaskError(f"No open question {question!r}; open are: {[q.id for q in self.open_questions()]}.")
        refuse_empty(question, text)
        self.journal.add(ev.Answered, id=question, answer=text)

    def open_questions(self) -> list[ev.Asked]:
        """Questions that nobody has answered."""
        return self.record.open_questions()

    def answers_to(self, called: ev.ToolCalled) -> dict[str, str]:
        """What people answered to the questions of one call, by question."""
        if not self.record.answers:
            return {}
        answers = self.record.answers
        return {q.question: answers[q.id] for q in self.record.questions_of(called) if q.id in answers}

    def unanswered(self, called: ev.ToolCalled) -> bool:
        """Whether a person still has to answer before a call can go on."""
        if not self.record.questions:
            return False
        return any(q.id not in self.record.answers for q in self.record.questions_of(called))

    def _intervene(self, observation: Content | None, tool_results: dict[str, Content] | None) -> None:
        """What the caller of `step` puts in before the next turn."""
        if observation is None and not tool_results:
            return
        active = [a for a in self.record.activations.values() if a.finished is None]
        known = {c.call_id for a in active for c in a.calls}
        if unknown := (tool_results or {}).keys() - known:
            raise TaskError(f"No pending tool call {sorted(unknown)}; pending are {sorted(known)}.")
        for id in tool_results or {}:
            owners = [a.agent for a in active if any(c.call_id == id for c in a.calls)]
            if len(owners) > 1:
                raise TaskError(
                    f"Tool call {id!r} is one of {' and one of '.join(owners)}: their models gave both the same id, so "
                    "it is not known which of them is meant. Step until only one of them is pending."
                )
        for activation in active:
            mine = {c.call_id for c in activation.calls} & (tool_results or {}).keys()
            if mine:
                replace_results(self, activation, {id: (tool_results or {})[id] for id in mine})
                self.cast.drop_called(activation)
                if not activation.open_calls:
                    self.cast.make_due(activation)
        if observation is not None:
            agents = [a for a in active if isinstance(self.cast.units[a.agent], BaseAgent)]
            if not agents:
                raise TaskError("Nobody is at work who could be told; fork before the last step.")
            activation = self.record.activations[self.cast.ready[0]] if self.cast.ready else agents[0]
            self.add_message(activation, Message("user", observation), activation.leaf, "human")
