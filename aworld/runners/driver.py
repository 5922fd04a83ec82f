"""The driver of a run: takes its turns, and says how it ended.

`turn` is the one loop body: `run` takes turns until the end, `step` takes one, readers follow the log while they are
taken, and resume, fork and replay begin with a log that is not empty. What is due next is read off the log alone. What
others want of a run (cancel, pause, steer, an answer) comes by the inbox of its lease and is obeyed between two turns,
cancelling at once.
"""

from __future__ import annotations

import asyncio
import logging
import platform
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from functools import partial
from itertools import count
from typing import Any

from aworld import __version__
from aworld.config.conf import TaskConfig, TaskRunMode
from aworld.core import event as ev
from aworld.core.agent.base import BaseAgent
from aworld.core.agent.flow import HandoffTool, UnitTool, readable
from aworld.core.bounded import failure_of, own_failure
from aworld.core.common import Observation
from aworld.core.exceptions import (
    AgentLimit,
    AWorldError,
    BudgetUsed,
    DependencyError,
    EnvironmentFailed,
    LimitReached,
    StoreError,
    TaskError,
    UsageUnknown,
)
from aworld.core.hooks import HookContext, Hooks
from aworld.core.message import Content, Message
from aworld.core.output import StepStarted
from aworld.core.run_environment import Reward
from aworld.core.task import Prefix, Task, TaskResponse
from aworld.core.tool.toolkit import Offer
from aworld.core.trajectory import RUNTIME, Activation, Trajectory
from aworld.runners import surroundings
from aworld.runners.activations import Activations, Recovery
from aworld.runners.budget import check_prices, status_of
from aworld.runners.dependencies import Dependencies, dependencies
from aworld.runners.functions import check_input, refusal_of
from aworld.runners.journal import Journal
from aworld.runners.run import LET_GO, Run, World, recorded_seconds, run_finished
from aworld.runners.turn import AgentTurn, interrupt_call, observe, replace_results, run_tools
from aworld.trajectory.store import TrajectoryStore, lease_lost

logger = logging.getLogger(__name__)

CORRECTION = "\nAnswer again, in the required form only."
"""What follows the error when an answer is sent back to the agent."""
PAUSED = "pause_turn"
"""How a reply ends whose provider is still at work with its own tools: asked again, it goes on."""

_VERSIONS = {"aworld": __version__, "python": platform.python_version()}


class Episode:
    """Takes the turns of one run. Made by `Runners`; used once."""

    def __init__(
        self, task: Task, store: TrajectoryStore, record: Trajectory | None = None, world: World | None = None
    ) -> None:
        self._run = Run(task, store, record or Trajectory(task.id), world)
        self._activations = Activations(self._run)
        self._activations.on_due, self._activations.on_stop = self._wake, self._stop_work
        self.response: TaskResponse | None = None
        """How the run stood when it was left last."""
        self._begun = False
        self._unreachable = False
        """Whether a model could not be reached."""
        self._entered: list[Hooks] = []
        self._workers: dict[int, asyncio.Task[None]] = {}
        self._failed: list[asyncio.Task[None]] = []
        self._due: asyncio.Event | None = None
        """Set when somebody is due, or has stopped: made when several are at work."""
        self._steps = 0
        self._numbers: Iterator[int] = count()
        self._turns: dict[str, int] = {}
        self._at_work: asyncio.Task[Any] | None = None
        """The task that drives the run right now."""
        self._ended_by: tuple[ev.Status, str] | None = None
        """How somebody else has ended the run: by cancelling it, or by taking it over."""
        self._paused = False
        self._answers: dict[str, str] = {}
        self._deps: Dependencies | None = None
        """What the run works with, until it has it."""

    @property
    def record(self) -> Trajectory:
        """The trajectory so far."""
        return self._run.record

    @property
    def conf(self) -> TaskConfig:
        """The limits of the task."""
        return self._run.conf

    # The ways to drive it

    def run(self) -> Coroutine[Any, Any, TaskResponse]:
        """Take turns until the end. Raises only CancelledError, after the log says so."""
        return self._guarded(self._drive)

    async def step(
        self, observation: Content | None = None, tool_results: dict[str, Content] | None = None
    ) -> tuple[bool, Observation, TaskResponse]:
        """Take one turn; first add an observation or replace pending results, if given."""
        if self.response is not None and self.record.finished is not None:
            return True, self._final(), self.response
        misuse: TaskError | None = None

        async def one_turn() -> None:
            nonlocal misuse
            try:
                self._intervene(observation, tool_results)
            except TaskError as error:  # the caller's mistake, not the run's: nothing was done
                misuse = error
                return
            self._obey()
            if self._activations.ready and not self._paused:
                await self._turn_of(self._run.world.next_due(self._activations.ready, self.record))

        response = await self._guarded(one_turn)
        if response.status == "running":
            self._run.journal.release()  # another process may take the next step
        if misuse is not None:
            raise misuse
        response.step = next(reversed(self.record.calls), 0)
        over = response.status != "running"
        call = self.record.calls.get(response.step)
        if self.record.finished is not None or call is None:
            return over, self._final(), response
        if response.status == "waiting":
            return over, Observation("\n".join(asked.question for asked in self.record.open_questions())), response
        ready = self._activations.ready  # the view of who took the step, or of the next where that one is not due
        seen = ready[0] if ready and call.activation not in ready else call.activation
        return over, observe(self.record, self.record.activations[seen]), response

    async def begin(self) -> TaskResponse:
        """Begin without taking a turn, for who wants to see first what the agent is told."""
        return await self._guarded(partial(asyncio.sleep, 0))

    async def abandon(self, why: str) -> None:
        """End a run between two steps, as cancelled. Does nothing when it has ended or never began."""
        if self._begun and self.record.finished is None:
            await self._run.journal.claim()
            await self._close("cancelled", why, False)

    async def score_now(self, status: ev.Status, answer: Any, error: str | None) -> list[Reward]:
        """Let the environment judge a run that somebody else ends; the rewards are written and returned."""
        await self._run.journal.claim()
        return await surroundings.score(self._run, status, answer, error)

    async def offered(self) -> Offer:
        """The tools that whoever is due will be offered."""
        ready = self._activations.ready
        return await self._activations.offer(self.record.activations[ready[0] if ready else 0])

    def answer(self, question: str, text: str) -> None:
        """A person's answer to an open question, to be recorded when the run goes on."""
        open_ids = [asked.id for asked in self.record.open_questions()]
        if question not in open_ids:
            raise TaskError(f"No open question {question!r}; open are: {open_ids}.")
        refuse_empty(question, text)
        self._answers[question] = text

    def recorded_response(
        self, status: ev.Status = "running", error: str | None = None, seconds: float = 0.0
    ) -> TaskResponse:
        """The response of a run that was taken elsewhere, its answer as the object that it was. One that has not ended
        stands as whoever took it says."""
        run, record = self._run, self.record
        if record.finished is None:
            return run.response(status, None, error, seconds)
        complete = run.units.keys() >= {activation.agent for activation in record.activations.values()}
        answer = Recovery(self._activations).recall() if complete else record.answer
        return run.response(record.status, answer, record.error, seconds or recorded_seconds(record))

    async def _drive(self) -> None:
        """Take all turns: one after the other while one agent is due, side by side when several are."""
        ready, state, lease = self._activations.ready, self._run.state, self._run.journal.lease
        try:
            while state.conflict is None:
                if lease is not None and lease.inbox:
                    self._obey()
                if self._paused and not self._workers:
                    return
                if not self._workers and len(ready) == 1 and self._activations.is_alone:
                    await self._turn_of(ready.popleft())
                    continue
                self._due = self._due or asyncio.Event()
                self._due.clear()
                while ready and not self._paused:
                    id = ready.popleft()
                    worker = self._workers[id] = asyncio.create_task(self._work(id))
                    worker.add_done_callback(partial(self._stopped, id))
                if not self._workers:
                    return
                await self._due.wait()
                if self._failed:
                    self._failed[0].result()
        finally:
            if self._workers:
                for worker in self._workers.values():
                    worker.cancel()
                await asyncio.gather(*self._workers.values(), return_exceptions=True)
                self._workers.clear()

    async def _work(self, id: int) -> None:
        """Take the turns of one agent until it is not due at once."""
        ready = self._activations.ready
        await self._turn_of(id)
        while ready and ready[-1] == id and self._run.state.conflict is None and not self._inbox:
            ready.pop()
            await self._turn_of(id)

    def _stopped(self, id: int, worker: asyncio.Task[None]) -> None:
        """A worker has ended: the driver looks at how."""
        if self._workers.get(id) is worker:  # the agent may be due again, and have another
            del self._workers[id]
        if not worker.cancelled() and worker.exception() is not None:
            self._failed.append(worker)
        self._wake(id)

    def _wake(self, _: int) -> None:
        """There is news for the driver: somebody is due, or has stopped."""
        if self._due is not None:
            self._due.set()

    def _stop_work(self, activation: int) -> None:
        """Nobody waits for this agent any more: stop what it is doing."""
        if (worker := self._workers.get(activation)) is not None:
            worker.cancel()

    # What others want

    @property
    def _inbox(self) -> bool:
        lease = self._run.journal.lease
        return lease is not None and bool(lease.inbox)

    def _alarm(self) -> None:
        """Something came into the inbox, or the lease was lost. What cannot wait for the end of a turn is done now."""
        lease = self._run.journal.lease
        if lease is not None and lease.lost is not None:
            self._end_by("interrupted", str(lease_lost(lease.id, self._run.journal.store.url, lease.lost)))
        for note in lease.inbox if lease is not None else ():
            if isinstance(note, ev.Commanded) and note.action == "cancel":
                self._end_by("cancelled", _cancelled(note))
        self._wake(0)

    def _end_by(self, status: ev.Status, why: str) -> None:
        """End the run as soon as can be; the first who does counts."""
        if self._ended_by is None:
            self._ended_by = (status, why)
            if self._at_work is not None:
                self._at_work.cancel()

    def suspend(self) -> None:
        """Stop at once, whatever is under way, and leave the run to be resumed."""
        if self._begun and self.record.finished is None and self._ended_by is None:
            self._run.journal.add(ev.Noted, source=RUNTIME, name="pause", data=self.record.obeyed)
        self._end_by("waiting", _paused(self.record.id))

    def _obey(self) -> None:
        """Take in what others wrote since the last turn: answers of people, and what they want of the run."""
        if self._inbox:
            for note in self._run.journal.news():
                self._take_in(note)

    def _take_in(self, note: ev.Commanded | ev.Answered) -> None:
        journal, record = self._run.journal, self.record
        if isinstance(note, ev.Answered):
            asked = record.questions.get(note.id)
            if asked is None or any(isinstance(e, ev.Answered) and e.id == note.id for e in record.own_events):
                return
            journal.add(ev.Answered, id=note.id, answer=note.answer)
            self._obeyed("answer", note)
            activation = record.activations[asked.activation]
            if activation.finished is None:
                self._activations.make_due(activation)
            return
        self._obeyed(note.action, note)
        if note.action == "cancel":
            self._ended_by = self._ended_by or ("cancelled", _cancelled(note))
            raise asyncio.CancelledError
        if note.action == "pause":
            self._paused = True
        elif note.text:
            self._tell(note.text)

    def _obeyed(self, what: str, note: ev.Note) -> None:
        self._run.journal.add(ev.Noted, source=RUNTIME, name=what, data=note.seq)

    def _tell(self, text: Content) -> None:
        """Say something to whoever is due. Raises TaskError when nobody is at work."""
        record, activations = self.record, self._activations
        units = self._run.units
        active = (a for a in record.activations.values() if a.finished is None)
        agents = [a for a in active if isinstance(units.get(a.agent), BaseAgent)]
        if not agents:
            raise TaskError("Nobody is at work who could be told; fork before the last step.")
        activation = record.activations[activations.ready[0]] if activations.ready else agents[0]
        self._run.recorder.add(activation, Message("user", text), activation.leaf, "human")

    # One turn

    async def _turn_of(self, id: int) -> None:
        """Let one agent decide once and let the world answer. What an agent cannot get over ends its work."""
        activation = self._run.record.activations[id]
        agent = self._activations.agent(activation)
        self._activations.busy.add(id)
        try:
            try:
                await self._turn(activation, agent)
            except (LimitReached, StoreError, EnvironmentFailed):
                raise
            except AWorldError as error:
                self._unreachable = self._unreachable or surroundings.is_unreachable(error)
                status = "limit_reached" if isinstance(error, AgentLimit) else None
                self._activations.fail(activation, str(error), status)
            except BaseException as raised:
                text = own_failure(raised)
                logger.exception("trajectory=%s agent=%s | failed", self.record.id, agent.name)
                self._activations.fail(activation, text)
            if self._run.is_read and self.record.activations[0].finished is None:
                await self._run.journal.commit()  # readers see a step before the next one begins
        finally:
            self._activations.end_turn(activation)  # last: from here on another worker may take the next turn

    async def _turn(self, activation: Activation, agent: BaseAgent) -> None:
        run = self._run
        offer = await self._activations.offer(activation)
        # A process that died, or a person that was asked, left a turn half done: then there is nothing to decide.
        if not (activation.open_calls or self._has_answered(activation)):
            await self._decide(activation, agent, offer)
        if not activation.calls:
            if run.scope.sources:
                await run.keep_artifacts()
            await self._conclude(activation, agent)
            return
        # Members that were called, and hand-overs, are the runtime's to carry out, not a tool's own code.
        by_name, of_runtime = offer.by_name, UnitTool | HandoffTool
        ours = [call.call_id for call in activation.calls if isinstance(by_name.get(call.name), of_runtime)]
        if ours:
            self._activations.start_called(activation, offer)
        await run_tools(run, activation, offer, ours)
        if run.scope.sources:
            await run.keep_artifacts()
        if ours:
            self._activations.hand_over(activation, offer)
        if run.environment is not None and run.environment.over:
            self._activations.end(run.environment.answer)

    async def _decide(self, activation: Activation, agent: BaseAgent, offer: Offer) -> None:
        run = self._run
        run.check_limits(self._steps)
        if agent.max_steps is not None and activation.steps >= agent.max_steps:
            raise AgentLimit(f"max_steps={agent.max_steps} of agent {agent.name!r} reached.")
        if agent.input_guardrails and not activation.steps:
            await check_input(run, activation, agent)
        self._steps += 1
        step = next(self._numbers)
        index = max(self._turns.get(agent.name, 0), run.record.steps_by_agent.get(agent.name, 0))
        self._turns[agent.name] = index + 1
        if run.is_read:
            run.journal.show(StepStarted(trajectory_id=run.record.id, agent=agent.name, step=step))
        turn = AgentTurn(run, activation, agent, offer, step, index)
        started = ev.now()
        message = await agent.decide(turn)
        if not turn.called:
            message = turn.decided(message, started)
        if message.tool_calls:
            await run.journal.commit()

    def _has_answered(self, activation: Activation) -> bool:
        leaf = activation.leaf
        if activation.calls or activation.last is None or leaf is None:
            return False
        return self.record.messages[leaf].message.role == "assistant" and activation.last.finish_reason != PAUSED

    async def _conclude(self, activation: Activation, agent: BaseAgent) -> None:
        """The agent has answered: end its work, or tell it why the answer does not do."""
        assert activation.leaf is not None  # it has just said something
        run, leaf = self._run, activation.leaf
        if activation.last is not None and activation.last.finish_reason == PAUSED:
            return  # the next call goes on from what the provider's tools did so far
        message = run.record.messages[leaf].message
        answer, refusal = None, None
        try:
            answer = agent.answer_of(message)
        except ValueError as error:
            refusal = str(error)
        if refusal is None and agent.output_guardrails:
            context = run.context_for(activation, activation.last.step if activation.last is not None else 0)
            refusal = await refusal_of(run, activation, context, "answer", answer, agent.output_guardrails)
        if refusal is not None:
            if self._corrections(activation) >= agent.output_retries:
                text = f"agent={agent.name} | no valid answer after {agent.output_retries} corrections: {refusal}"
                self._activations.fail(activation, text)
            else:
                run.recorder.add(activation, Message("user", f"{refusal}{CORRECTION}"), leaf, "agent")
            return
        if run.environment is not None and activation.caller is None:
            reply = await surroundings.respond(run.environment, message)
            if reply is not None:
                run.recorder.add(activation, Message("user", reply), leaf, "input")
                return
        self._activations.finish(activation, answer)

    def _corrections(self, activation: Activation) -> int:
        path = (self.record.messages[id] for id in self.record.path_ids(activation.leaf))
        return sum(1 for n in path if n.activation == activation.id and n.message.text.endswith(CORRECTION))

    # From the first event to the last

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> TaskResponse:
        """The one place that says how a run ended. Whatever breaks in it becomes the run's status."""
        run, status, error = self._run, None, None
        cancelled: asyncio.CancelledError | None = None
        lost = stays = False  # for a reason that is not the agent's; and whether the log stays open
        began, timer = time.perf_counter(), self._timer()
        self._at_work = asyncio.current_task()
        try:
            await self._begin()
            if run.record.finished is not None:
                run.journal.release()
                self.response = self.recorded_response()
                return self.response
            await work()
            status, error = self._verdict()
        except LimitReached as reached:
            status, error = status_of(reached), str(reached)
            stays = isinstance(reached, BudgetUsed | UsageUnknown)
        except StoreError as broken:
            if run.journal.lease is None or not run.record.events:  # somebody else has the run, or there is none
                raise
            status, error = "interrupted", str(broken)
        except DependencyError as missing:
            status, error, lost = "interrupted", f"{missing} Runners.resume({run.record.id!r}) tries again.", True
            if run.environment is not None:  # an episode is begun anew
                status, error = "failed", str(missing)
        except AWorldError as trouble:
            if not self._begun:  # misuse by the caller: there is no run to speak of
                run.journal.release()
                raise
            status, error, lost = "failed", str(trouble), isinstance(trouble, EnvironmentFailed)
        except BaseException as raised:
            text = failure_of(raised)
            if self._ended_by is not None or (text is None and isinstance(raised, asyncio.CancelledError)):
                status, error = self._ended_by or ("cancelled", "The run was cancelled by its caller.")
                cancelled = self._heeded()
            elif text is None:
                raise
            else:
                logger.exception("trajectory=%s | the run failed", run.record.id)
                status, error = "failed", text
        finally:
            self._at_work = None
            if timer is not None:
                timer.cancel()
        run.spent += time.perf_counter() - began
        lost = lost or (status == "failed" and self._unreachable)
        lost = lost or (status == "timeout" and not run.record.activations)  # the environment never opened
        if run.environment is not None and not lost and not stays:
            try:
                await surroundings.judge(run, status, error)
            except EnvironmentFailed as failure:
                status, error, lost = "failed", str(failure), True
            except asyncio.CancelledError as request:
                cancelled, status, error = request, "cancelled", "The run was cancelled by its caller."
        return await self._close(status, error, lost, cancelled, stays=stays)

    def _timer(self) -> asyncio.TimerHandle | None:
        """What ends the run when its time is over."""
        limit = self._run.conf.timeout
        if limit is None:
            return None
        text = f"timeout={limit:g} s passed; raise TaskConfig(timeout=...)."
        left = max(limit - self._run.spent, 0.0)
        return asyncio.get_running_loop().call_later(left, self._end_by, "timeout", text)

    def _heeded(self) -> asyncio.CancelledError | None:
        """The cancellation, where it is the caller's own and so goes on; None where the run was ended by others."""
        driving = asyncio.current_task()
        if self._ended_by is not None and driving is not None and driving.cancelling():
            driving.uncancel()
        return asyncio.CancelledError() if driving is not None and driving.cancelling() else None

    def _verdict(self) -> tuple[ev.Status | None, str | None]:
        """How the run stands after work has been done; None while turns are left."""
        run = self._run
        if run.state.conflict is not None:
            return "failed", run.state.conflict
        root = run.record.activations[0]
        if root.finished is None:
            if self._paused:
                return "waiting", _paused(run.record.id)
            if self._activations.ready:
                return None, None
            if run.record.open_questions():
                return "waiting", None
            return "failed", "Nobody is due, and nobody has answered: a member waits for one that never began."
        if root.finished.error is not None:
            return self._activations.status or "failed", root.finished.error
        for agent in (unit for unit in run.units.values() if isinstance(unit, BaseAgent)):
            if (unused := agent.unused_replies(run.record.steps_by_agent.get(agent.name, 0))) is not None:
                return "failed", unused
        return "finished", None

    async def _close(
        self, status: ev.Status | None, error: str | None, lost: bool, cancelled: asyncio.CancelledError | None = None,
        *, stays: bool = False,
    ) -> TaskResponse:  # fmt: skip
        """Write the end, if this is it, let go of what was held, and make the response.

        All of it is done, however often the caller cancels; then that is raised.
        """
        run = self._run
        run.journal.held = False
        try:
            # Of calls that were cut off. Else each step did it, and a fork at the end finds it before the end.
            cut_off = run.scope.sources and any(one.open_calls for one in run.record.activations.values())
            if cut_off and status != "interrupted" and run.record.finished is None:
                cancelled = await _uncut(asyncio.ensure_future(run.keep_artifacts())) or cancelled
            if status not in (None, "waiting", "interrupted") and run.record.finished is None and not stays:
                write_end(run.journal, status, error, lost)
            if status != "interrupted":
                cancelled = await _uncut(run.journal.commit()) or cancelled
        except StoreError as broken:
            status, error = "interrupted", str(broken)
        answer = self._activations.answers.get(0)
        response = self.response = run.response(status or "running", answer, error, run.spent)
        if status is not None:
            if run.environment is not None or self._entered or run.scope.copies():
                cancelled = await _uncut(asyncio.ensure_future(self._leave(response))) or cancelled
            if run.is_read:
                run.journal.show(run_finished(response))
            if run.record.finished is not None and status != "interrupted":  # else the end is not in the store
                self._activations.leave()
                run.journal.stay()
            else:
                run.journal.release()
        if cancelled is not None:
            raise cancelled
        return response

    async def _leave(self, response: TaskResponse) -> None:
        run = self._run
        if run.environment is not None:
            await run.tell(run.environment, "close", LET_GO)
        await (run.rest() if response.status == "waiting" else run.let_go())
        for hook in reversed(self._entered):
            try:
                await hook.after_task(HookContext(run.record, run.context, deps=run.deps), response)
            except BaseException as raised:  # the run has ended: its outcome stands
                own_failure(raised)
                logger.exception("trajectory=%s | after_task of %s failed", run.record.id, type(hook).__name__)

    def _final(self) -> Observation:
        finished = self.record.finished
        return Observation(readable(finished.answer) if finished is not None and finished.answer is not None else "")

    # Beginning, and beginning again

    async def _begin(self) -> None:
        run, journal = self._run, self._run.journal
        if self._begun:
            await journal.claim(self._alarm)
            if self._deps is not None:
                await self._make_deps(self._deps)
            return
        if run.world.live:
            run.task.agent.check()  # raises ConfigError when an agent misses a setting
            if run.conf.max_cost is not None or run.share is not None:
                check_prices(run.task, run.units.values())
            if run.task.deps is not None or run.record.events or [u for u in run.units.values() if u.deps_type]:
                self._deps = dependencies(run.task, run.record)
        prefix = run.task.prefix or await self._turn_before()
        run.is_fork = prefix is not None and not prefix.after
        environment = run.environment
        if environment is None and (run.record.events or run.is_fork):
            surroundings.check_environment(run.record if prefix is None else prefix.trajectory)
        await journal.claim(self._alarm)
        if run.record.events:
            await journal.catch_up()
            if run.record.finished is not None:  # somebody else was faster
                return
        if prefix is not None and not run.record.events:
            for event in prefix.trajectory.events[: prefix.seq]:
                run.record.apply(event)
        if not run.record.events or prefix is not None:
            self._start(prefix)
        self._numbers, self._steps = count(run.record.next_step), run.record.next_step
        if run.is_fork:  # parallel steps behind the fork are taken anew, also where a later one was shared
            taken = run.record.calls
            self._numbers, self._steps = (number for number in count() if number not in taken), len(taken)
        if run.record.paused:
            journal.add(ev.Noted, source=RUNTIME, name="resumed")
        self._take_in_missed()
        for question, text in self._answers.items():
            if question not in run.record.answers:
                journal.add(ev.Answered, id=question, answer=text)
        if run.record.activations:
            run.go_on()
            Recovery(self._activations).recover()
        elif environment is None:
            self._activations.begin(run.task.input)
        await journal.commit()
        self._begun = True
        if self._deps is not None:
            await self._make_deps(self._deps)
        if environment is not None:
            opening = await surroundings.open_environment(run)
            if not run.record.activations:
                self._activations.begin(opening)
        if run.task.said is not None:
            self._tell(run.task.said)
        for hook in run.task.hooks:
            self._entered.append(hook)
            await hook.before_task(HookContext(run.record, run.context, deps=run.deps))

    async def _make_deps(self, deps: Dependencies) -> None:
        """Give the run what it works with. Raises DependencyError when that cannot be made now."""
        self._run.deps = await self._run.scope.own(deps).make(self._run.conf.tool_timeout)
        self._deps = None

    async def _turn_before(self) -> Prefix | None:
        """The turn of the conversation that this run goes on from."""
        run, before = self._run, self._run.task.after
        if before is None or run.record.events:
            return None
        store = run.journal.store
        if isinstance(before, str):
            record = Trajectory.of(before, await store.read(before))
        else:
            record = before.record if isinstance(before, TaskResponse) else before
        if record.finished is None:
            raise not_ended(record.id, record.status)
        return Prefix(record, len(record.events), after=True)

    def _take_in_missed(self) -> None:
        """Answers and commands that came while nobody worked on the run."""
        record = self._run.record
        if not record.notes:
            return
        inbox = self._run.journal.lease.inbox if self._run.journal.lease is not None else ()
        ahead = {(type(note), note.at) for note in inbox}
        for note in list(record.notes):
            missed = note.seq > record.obeyed and (type(note), note.at) not in ahead
            if missed and isinstance(note, ev.Commanded | ev.Answered):
                self._take_in(note)

    def _start(self, prefix: Prefix | None) -> None:
        run = self._run
        run.journal.add(
            ev.Started,
            trajectory_id=run.record.id,
            task=run.scope.task,
            agents={name: unit.settings() for name, unit in run.units.items()},
            definitions={name: unit.described().digest for name, unit in run.units.items()},
            conf=run.conf.model_dump(mode="json", exclude_defaults=True) if run.conf.model_fields_set else {},
            forked_from=ev.Fork(prefix.trajectory.id, prefix.seq) if prefix is not None else None,
            after=prefix is not None and prefix.after,
            environment=run.environment.name if run.environment is not None else None,
            deps=self._deps.reference if self._deps is not None else None,
            versions=_VERSIONS,
            schema=ev.SCHEMA_VERSION,
        )
        for key, value in run.task.context.items():
            run.context.set(key, value)

    def _intervene(self, observation: Content | None, tool_results: dict[str, Content] | None) -> None:
        """What the caller of `step` puts in before the next turn."""
        if observation is None and not tool_results:
            return
        run, results = self._run, tool_results or {}
        active = [a for a in run.record.activations.values() if a.finished is None]
        pending = {c.call_id for a in active for c in a.calls}
        if unknown := results.keys() - pending:
            raise TaskError(f"No pending tool call {sorted(unknown)}; pending are {sorted(pending)}.")
        for id in results:
            owners = [a.agent for a in active if any(c.call_id == id for c in a.calls)]
            if len(owners) > 1:
                raise TaskError(
                    f"Tool call {id!r} is one of {' and one of '.join(owners)}: their models gave both the same id, so "
                    "it is not known which of them is meant. Step until only one of them is pending."
                )
        for activation in active:
            replaced = {call.call_id for call in activation.calls} & results.keys()
            if replaced:
                replace_results(run.journal, activation, {id: results[id] for id in replaced})
                self._activations.drop_called(activation)
                if not activation.open_calls:
                    self._activations.make_due(activation)
        if observation is not None:
            self._tell(observation)


def run_to_end(
    task: Task, store: TrajectoryStore, record: Trajectory | None = None
) -> Coroutine[Any, Any, TaskResponse]:
    """Run a task to its end, on from `record` if there is one. Raises TaskError for one that is to be stepped."""
    refuse_interactive(task)
    return Episode(task, store, record).run()


async def _uncut(work: Awaitable[None]) -> asyncio.CancelledError | None:
    """Wait for something however often the caller cancels; returns the last of those cancellations."""
    if not isinstance(work, asyncio.Future):  # it is done already
        await work
        return None
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError as request:
            cancelled = request
    work.result()
    return cancelled


def refuse_interactive(task: Task) -> None:
    """Raises TaskError for a task that its caller wants to drive step by step."""
    if task.conf.run_mode is TaskRunMode.INTERACTIVE:
        remedy = "step it with Runners.step, or leave run_mode out"
        raise TaskError(f"Task {task.id!r} has run_mode=INTERACTIVE: {remedy}.", setting="run_mode", remedy=remedy)


def _paused(id: str) -> str:
    return f"The run was paused; it goes on with Runners.resume({id!r})."


def _cancelled(note: ev.Commanded) -> str:
    return f"The run was cancelled{f' by {note.source}' if note.source else ''}{f': {note.text}' if note.text else ''}."


def write_end(journal: Journal, status: ev.Status, error: str | None, lost: bool = False) -> None:
    """Write the end of a run; calls that are open are closed."""
    activations = journal.record.activations
    for activation in activations.values():
        for called in activation.open_calls:
            interrupt_call(journal, activation, called, status)
    root = activations.get(0)
    answer = root.finished.answer if root is not None and root.finished is not None else None
    journal.add(ev.Finished, status=status, answer=answer, error=error, surroundings=lost)


def not_ended(id: str, status: ev.Status) -> TaskError:
    """The error for a conversation that shall go on from a run that goes on itself."""
    remedy = "resume or fork it, or say it to the run itself with Runners.steer"
    return TaskError(f"after={id!r} has not ended (it is {status}): {remedy}.")


def refuse_empty(question: str, text: str) -> None:
    """Raise `TaskError` for an answer without a word: an answer is final, and this one was hardly meant."""
    if not text.strip():
        raise TaskError(
            f'The answer to question {question!r} is empty, and was not recorded: answers are final. If "nothing" is '
            'what you mean, say it in words, such as "none" or "no".'
        )
