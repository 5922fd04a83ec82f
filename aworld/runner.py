"""Runners: the front door. Run, step, stream, resume, fork and replay tasks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Annotated, Any, Literal, Unpack, cast, overload
from weakref import WeakSet

import msgspec
from typing_extensions import TypeVar

from aworld.config.conf import EngineName, RunConfig, TaskConfig
from aworld.core.agent.base import BaseAgent
from aworld.core.agent.flow import Topology, Unit, refuse_strangers
from aworld.core.bounded import described
from aworld.core.checks import UNCHECKED, Count, Number, typed
from aworld.core.common import Observation
from aworld.core.event import Answered, Asked, Commanded, now
from aworld.core.exceptions import AWorldError, LeaseError, TaskError
from aworld.core.hooks import Hooks
from aworld.core.output import AnyOutput
from aworld.core.task import D, DepsSource, Prefix, Task, TaskChanges, TaskOptions, TaskResponse, content_of
from aworld.core.tool.results import to_content
from aworld.core.trajectory import Trajectory
from aworld.runners import feed
from aworld.runners.blocking import run_blocking
from aworld.runners.budget import Budget
from aworld.runners.driver import Episode, refuse_empty, run_to_end, write_end
from aworld.runners.feed import RunStream
from aworld.runners.journal import Journal, give_reward
from aworld.runners.local import executor_of, fork_point, load, run_config, run_many, store_of
from aworld.runners.named_run import ManyRuns, Question, run_questions
from aworld.runners.replay import ReplayReport, replay
from aworld.trajectory.query import Query

Conf = RunConfig | dict[str, Any] | None
Run = str | Trajectory | TaskResponse[Any]
R = TypeVar("R", default=Any)
"""What an agent answers."""

_stepping: WeakSet[Task] = WeakSet()
"""Tasks that take a step right now."""


class Runners:
    """Runs agents and swarms. Nothing is written to disk unless a store is named in `RunConfig(store=...)`."""

    @overload
    @staticmethod
    async def run(
        input: Any, agent: BaseAgent[None, R] | Topology | None = None, swarm: Unit | None = None, *, deps: None = None,
        run_conf: Conf = None, **task: Unpack[TaskOptions],
    ) -> TaskResponse[R]: ...  # fmt: skip

    @overload
    @staticmethod
    async def run(
        input: Any, agent: BaseAgent[D, R] | Topology | None = None, swarm: Unit | None = None, *, deps: DepsSource[D],
        run_conf: Conf = None, **task: Unpack[TaskOptions],
    ) -> TaskResponse[R]: ...  # fmt: skip

    @staticmethod
    async def run(
        input: Any, agent: Unit | None = None, swarm: Unit | None = None, *, deps: Any = None,
        run_conf: Conf = None, **task: Unpack[TaskOptions],
    ) -> TaskResponse[Any]:  # fmt: skip
        """Run one input to its end. `deps` and `task` are the arguments of `Task`, such as `conf` and `tools`.

        A failure, limit, time-out or refusal comes back as a response with its status. Raises ConfigError and
        TaskError for misuse, and CancelledError when the caller cancels.
        """
        asked, conf = Task(input, agent, swarm, deps=deps, **task), run_config(run_conf)
        if conf.engine_name is not EngineName.LOCAL:
            return (await run_many([asked], conf, None))[asked.id]
        return await run_to_end(asked, _store_within(asked, conf))

    @overload
    @staticmethod
    def sync_run(
        input: Any, agent: BaseAgent[None, R] | Topology | None = None, swarm: Unit | None = None, *, deps: None = None,
        run_conf: Conf = None, **task: Unpack[TaskOptions],
    ) -> TaskResponse[R]: ...  # fmt: skip

    @overload
    @staticmethod
    def sync_run(
        input: Any, agent: BaseAgent[D, R] | Topology | None = None, swarm: Unit | None = None, *, deps: DepsSource[D],
        run_conf: Conf = None, **task: Unpack[TaskOptions],
    ) -> TaskResponse[R]: ...  # fmt: skip

    @staticmethod
    def sync_run(
        input: Any, agent: Unit | None = None, swarm: Unit | None = None, *, deps: Any = None,
        run_conf: Conf = None, **task: Unpack[TaskOptions],
    ) -> TaskResponse[Any]:  # fmt: skip
        """`run` for code without an event loop; works inside a running one too, by a thread of its own."""
        return run_blocking(Runners.run(input, cast("Any", agent), swarm, deps=deps, run_conf=run_conf, **task))

    @staticmethod
    @typed(TaskError)
    async def run_task(
        task: Task[R] | Iterable[Task[R]],
        run_conf: Conf = None,
        *,
        on_done: Callable[[TaskResponse[R]], Awaitable[None] | None] | None = None,
    ) -> dict[str, TaskResponse[R]]:
        """Run one or many tasks, at most `run_conf.max_concurrency` at once.

        Returns responses by task id, in the order of the tasks. `on_done` is called after each, and awaited where it is
        async; what it raises is logged, and ends nothing.
        """
        return await run_many(_tasks(task), run_config(run_conf), on_done)

    @staticmethod
    @typed(TaskError)
    async def run_many(
        questions: Iterable[Question],
        agent: BaseAgent[D, R] | Topology | None = None,
        swarm: Unit | None = None,
        *,
        run: str,
        store: Any = None,
        run_conf: Conf = None,
        on_done: Callable[[TaskResponse[R]], Awaitable[None] | None] | None = None,
        deps: Annotated[DepsSource[D] | None, UNCHECKED] = None,
        **task: Unpack[TaskChanges],
    ) -> ManyRuns[R]:
        """Put many questions to an agent, under a name: `print(await Runners.run_many(questions, agent, run="survey",
        store="sqlite:///runs.db"))`.

        A question is a text, `{"id": ..., "input": ...}` (also `labels` and `context`), or a `Task`. The same call
        again reads from the store what has ended, goes on with what has not, and begins the rest; what was cancelled,
        or failed because no model could be reached, goes on as a fork. The labels `run` and `problem`, the id of the
        question or its number, tell trajectories apart. `deps` and `task` are arguments of `Task` for all of them;
        `on_done` is called after each that this call ran.

        Without a store nothing is kept, and the same call begins anew. Raises ConfigError where the store has another
        agent, or another question, under these names.
        """
        conf = run_config(run_conf)
        conf = conf if store is None else conf.model_copy(update={"store": store})
        return await run_questions(
            questions, agent if agent is not None else swarm, run, conf, on_done, {**task, "deps": deps}
        )

    @staticmethod
    @typed(TaskError)
    def sync_run_task(task: Task[R] | Iterable[Task[R]], run_conf: Conf = None) -> dict[str, TaskResponse[R]]:
        """`run_task` for code without an event loop."""
        return run_blocking(Runners.run_task(task, run_conf))

    @staticmethod
    @typed(TaskError)
    def streamed_run_task(task: Task, run_conf: Conf = None, *, keep_running: bool = False) -> RunStream:
        """A run to be read while it goes on: `async for output in stream.stream_events()`, by any number of readers.

        Leaving the loop early cancels the run, unless somebody else reads it or `keep_running`.
        """
        _tasks(task)
        return RunStream(task, _store_within(task, run_conf), keep_running=keep_running)

    @staticmethod
    @typed(TaskError)
    def streaming_run_task(task: Task, run_conf: Conf = None) -> AsyncIterator[AnyOutput]:
        """The outputs of a task while it runs; the last is `RunFinished` with the response."""
        return Runners.streamed_run_task(task, run_conf).stream_events()

    @staticmethod
    def streaming_run(
        input: Any, agent: BaseAgent[D, Any] | Topology | None = None, swarm: Unit | None = None, *,
        deps: DepsSource[D] | None = None, run_conf: Conf = None, **task: Unpack[TaskOptions],
    ) -> AsyncIterator[AnyOutput]:  # fmt: skip
        """`run`, read while it goes on."""
        return Runners.streaming_run_task(Task(input, agent, swarm, deps=deps, **task), run_conf)

    @staticmethod
    @typed(TaskError)
    async def step(
        task: Task[R],
        run_conf: Conf = None,
        *,
        observation: Any = None,
        tool_results: dict[str, Any] | None = None,
    ) -> tuple[bool, Observation, TaskResponse[R]]:
        """Take one turn: one model call and what it caused.

        Before it, `observation` adds something for the agent to see, and `tool_results` (by call id) takes the place
        of results of the last turn; the model is not asked again for that turn. A task that another process has
        begun in the same store goes on from there.

        Returns whether the run is over, what the agent will see next (the answer when it has finished), and a response
        whose `trajectory` is the row of this step.
        """
        _tasks(task)
        if task in _stepping:
            raise TaskError(f"Task {task.id!r} is in the middle of a step; await it before the next.")
        _stepping.add(task)
        try:
            if task.driver is None:
                store = _store_within(task, run_conf)
                record = None
                if task.prefix is None and await store.count(Query(ids=(task.id,))):
                    record = await load(task.id, store)
                    if record.finished is not None:
                        raise TaskError(f"Task {task.id!r} has already ended; fork it, or give the task another id.")
                task.driver = Episode(task, store, record)
            content = None if observation is None else content_of(observation)
            results = {id: to_content(value) for id, value in (tool_results or {}).items()}
            return await task.driver.step(content, results)
        finally:
            _stepping.discard(task)

    @staticmethod
    @typed(TaskError)
    async def resume(
        id: Run, agent: BaseAgent[D, R] | Topology | None = None, swarm: Unit | None = None, *, store: Any = None,
        answers: dict[str, str] | None = None, deps: Annotated[DepsSource[D] | None, UNCHECKED] = None,
        **task: Unpack[TaskChanges],
    ) -> TaskResponse[R]:  # fmt: skip
        """Continue a run whose process ended, or that waits for people, from its last event.

        `deps` is given again where a value was given, or a function that stands in no module under a name.

        `answers` replies to open questions, by question id. A tool that was running is closed as interrupted, unless
        it says that it is idempotent. A run that has ended comes back as it was recorded; `fork` it to go on.
        """
        episode, _, _ = await _going_on(id, agent, swarm, store, answers, {**task, "deps": deps})
        return episode.recorded_response() if episode.record.finished is not None else await episode.run()

    @staticmethod
    @typed(TaskError)
    async def streamed_resume(
        id: Run, agent: Unit | None = None, swarm: Unit | None = None, *, store: Any = None,
        answers: dict[str, str] | None = None, deps: Any = None, **task: Unpack[TaskChanges],
    ) -> RunStream:  # fmt: skip
        """`resume`, to be read as `streamed_run_task` is; what was shown before is not shown again."""
        episode, goes_on, opened = await _going_on(id, agent, swarm, store, answers, {**task, "deps": deps})
        return RunStream(goes_on, opened, episode=episode)

    @staticmethod
    @typed(TaskError)
    async def answer(id: Run, text: str, *, question: str | None = None, store: Any = None) -> Trajectory:
        """Answer what a run asked, from any process. One that waits goes on when it is resumed, one that is still at
        work goes on by itself.

        `question` is the id of the question, needed when several are open. Durable when it returns; returns the
        record, whose `open_questions()` tells what is left. Raises `TaskError` when the run asks no such thing, and for
        an empty answer.
        """
        record, opened = await _find(id, store)
        if not isinstance(id, str):  # somebody else may have answered since
            stored = await load(record.id, opened)
            record = stored if len(stored.events) + len(stored.notes) > len(record.events) else record
        asked = _picked(record, question)
        refuse_empty(asked.id, text)
        note = Answered(seq=-1, at=now(), id=asked.id, answer=text)
        await opened.note(record.id, [note])
        record.apply_note(note)
        return record

    @staticmethod
    @typed(TaskError)
    async def cancel(id: Run, *, reason: str | None = None, store: Any = None) -> None:
        """End a run, whichever process works on it, as `cancelled`: within a second; at once where nobody does.

        Raises `TaskError` when it has ended.
        """
        opened = _store_for(id, store)
        record = await load(_id_of(id), opened)
        journal = Journal(record, opened)
        try:
            await journal.claim()
        except LeaseError:
            await _command(id, store, "cancel", reason)
            return
        try:
            await journal.catch_up()
            if record.finished is not None:
                raise _has_ended(record)
            write_end(journal, "cancelled", f"The run was cancelled: {reason or 'nobody worked on it'}.")
            await journal.commit()
        finally:
            journal.release()

    @staticmethod
    @typed(TaskError)
    async def steer(id: Run, text: str, *, store: Any = None) -> None:
        """Say something to a run that is at work, in any process: its agent reads it before its next decision.

        One that waits or was left unfinished reads it when it is resumed. Raises `TaskError` when it has ended.
        """
        content_of(text)
        await _command(id, store, "steer", text)

    @staticmethod
    @typed(TaskError)
    async def pause(id: Run, *, store: Any = None) -> None:
        """Let a run stop after its turn, in any process: its status is `waiting` then, and `resume` goes on with it."""
        await _command(id, store, "pause", None)

    @staticmethod
    @typed(TaskError)
    def follow(id: Run | Query | Sequence[str], *, store: Any = None, after: int = -1) -> AsyncIterator[AnyOutput]:
        """The outputs of runs, from their beginning and then as they come, whichever process works on them.

        With ids it ends when those runs have ended, and waits for those that have not begun; with a query it goes on
        until it is left, and takes in runs that begin later. `after` leaves out what events up to this number show
        (`output.seq`).
        """
        which: Any = id if isinstance(id, Query | list | tuple) else _id_of(cast("Run", id))
        return feed.follow(_store_for(cast("Run", id), store), which, after)

    @staticmethod
    @typed(TaskError)
    async def resume_all(store: Any, agents: Iterable[Unit], run_conf: Conf = None, *, deps: Any = None) -> ManyRuns:
        """Continue every unfinished run of a store whose agent is among `agents`; the others, those that wait for
        people, and those that a live process works on are left."""
        opened, conf, counts = store_of(store), run_config(run_conf), ManyRuns()
        executor = executor_of(conf.model_copy(update={"store": opened}), opened)
        by_name = {agent.name: agent for agent in refuse_strangers("resume_all", *agents, error=TaskError)}

        async def go_on(id: str) -> TaskResponse | None:
            try:
                record = await load(id, opened)
                name = record.activations[0].agent if record.activations else ""
                if name not in by_name or record.status == "waiting":
                    return None
                return await executor.run_one(_task_of(record, by_name[name], {"deps": deps}), record)
            except Exception as error:  # noqa: BLE001 - this one cannot go on; the others can
                counts.errors[id] = str(error) if isinstance(error, AWorldError) else described(error)
                return None

        unfinished = await opened.query(Query(status=("running", "waiting")))
        limit = max(1, min(conf.max_concurrency, len(unfinished)))
        async with aclosing(executor.each((run.id for run in unfinished), go_on, limit)) as responses:
            async for response in responses:
                if response is None:
                    counts.left += 1
                else:
                    counts.add(response)
        return counts

    @overload
    @staticmethod
    async def fork(
        id: Run, agent: BaseAgent[D, R] | Topology | None = None, swarm: Unit | None = None, *, at: int | None = None,
        n: None = None, store: Any = None, observation: Any = None, deps: DepsSource[D] | None = None,
        **task: Unpack[TaskChanges],
    ) -> TaskResponse[R]: ...  # fmt: skip

    @overload
    @staticmethod
    async def fork(
        id: Run, agent: BaseAgent[D, R] | Topology | None = None, swarm: Unit | None = None, *, at: int | None = None,
        n: int, store: Any = None, observation: Any = None, deps: DepsSource[D] | None = None,
        **task: Unpack[TaskChanges],
    ) -> list[TaskResponse[R]]: ...  # fmt: skip

    @staticmethod
    @typed(TaskError)
    async def fork(
        id: Run, agent: Unit | None = None, swarm: Unit | None = None, *, at: Number | None = None,
        n: Count | None = None, store: Any = None, observation: Any = None,
        deps: Any = None, **task: Unpack[TaskChanges],
    ) -> TaskResponse[Any] | list[TaskResponse[Any]]:  # fmt: skip
        """Go on from a point of a recorded run, in a trajectory of its own that shares the steps before.

        `at` is the first step that is taken anew (None: after the last; a run that had ended needs an `observation`
        to have something to do). `n` gives that many independent continuations, side by side, as a list.
        """
        tasks = [
            await Runners.forked_task(id, agent, swarm, at=at, store=store, deps=deps, **task) for _ in range(n or 1)
        ]
        if observation is not None:
            for forked_task in tasks:
                forked_task.said = content_of(observation)
        responses = await run_many(tasks, RunConfig(store=_store_for(id, store)))
        return list(responses.values()) if n is not None else responses[tasks[0].id]

    @staticmethod
    @typed(TaskError)
    async def forked_task(
        id: Run, agent: Unit | None = None, swarm: Unit | None = None, *, at: Number | None = None, store: Any = None,
        deps: Any = None, **task: Unpack[TaskChanges],
    ) -> Task:  # fmt: skip
        """A task that goes on from a point of a recorded run: to be run, streamed or stepped in the same store."""
        record, _ = await _find(id, store)
        child = _task_of(record, _actor(record, agent, swarm), {**task, "deps": deps}, same=False)
        child.prefix = Prefix(record, fork_point(record, at))
        return child

    @staticmethod
    @typed(TaskError)
    async def replay(
        id: Run, agent: Unit | None = None, swarm: Unit | None = None, *, store: Any = None, hooks: Sequence[Hooks] = ()
    ) -> ReplayReport:
        """Run a recorded trajectory again without any model or tool, and report the first difference.

        With today's `agent` or `swarm` it tells whether prompts, tools and parsing still do what they did; without one
        it checks that the log is consistent in itself.
        """
        record, _ = await _find(id, store)
        return await replay(record, agent if agent is not None else swarm, hooks)

    @staticmethod
    @typed(TaskError)
    async def reward(
        run: Task | Run,
        value: float | bool,
        *,
        name: str = "reward",
        step: Number | None = None,
        weight: float = 1.0,
        source: str | None = None,
        detail: Any = None,
        store: Any = None,
    ) -> None:
        """Reward a step, or the whole run when `step` is None; at any time, also long after the run.

        Durable when it returns. Raises TaskError for a value that is not a finite number or an unknown step.
        """
        fields: dict[str, Any] = {"name": name, "weight": weight, "step": step, "source": source, "detail": detail}
        if isinstance(run, Task) and run.driver is not None:
            run = run.driver.record.id if run.driver.response is None else run.driver.response
        if isinstance(run, TaskResponse) and run.give_reward is not None:
            await run.give_reward(value, **fields)
            return
        record, opened = await _find(run.id if isinstance(run, Task) else run, store)
        await give_reward(Journal(record, opened), value, **fields)
        await asyncio.sleep(0)  # who holds the run in this process hears of it now


def _store_within(task: Task, run_conf: Conf) -> Any:
    """The store of a single task, which gets what its run may spend. It runs here."""
    conf = run_config(run_conf)
    if conf.engine_name is not EngineName.LOCAL:
        raise TaskError(
            f"engine_name={conf.engine_name.value!r} is for whole runs: a run that is streamed or stepped is of this "
            "process. Run it with run_task, and read it with Runners.follow."
        )
    if conf.max_cost is not None or conf.max_tokens is not None:
        task.share = Budget(conf)
    return store_of(conf.store, task)


def _tasks(value: object) -> list[Task]:
    tasks: list[object] = [value] if isinstance(value, Task | str) else list(cast("Iterable[object]", value))
    for task in tasks:
        if not isinstance(task, Task):
            raise TaskError(f"Expected a Task, such as Task({task!r}, agent=...); got {type(task).__name__}.")
    return cast("list[Task]", tasks)


def _id_of(run: Run) -> str:
    if isinstance(run, TaskResponse):
        return run.trajectory_id
    return run if isinstance(run, str) else run.id


async def _find(run: Run, store: Any) -> tuple[Trajectory, Any]:
    id, opened = _id_of(run), _store_for(run, store)
    if isinstance(run, str):
        return await load(id, opened), opened
    return (run.record if isinstance(run, TaskResponse) else run), opened


async def _going_on(
    id: Run, agent: Unit | None, swarm: Unit | None, store: Any, answers: dict[str, str] | None, task: dict[str, Any]
) -> tuple[Episode, Task, Any]:
    """What goes on with a recorded run, its task and its store."""
    record, opened = await _find(id, store)
    goes_on = _task_of(record, _actor(record, agent, swarm), task)
    episode = Episode(goes_on, opened, record)
    for question, answer in (answers or {}).items() if record.finished is None else ():
        episode.answer(question, answer)
    return episode, goes_on, opened


def _store_for(run: Run, store: Any) -> Any:
    return run.store if store is None and isinstance(run, TaskResponse) and run.store is not None else store_of(store)


async def _command(run: Run, store: Any, action: Literal["cancel", "pause", "steer"], text: str | None) -> None:
    opened = _store_for(run, store)
    record = await load(_id_of(run), opened)
    if record.finished is not None:
        raise _has_ended(record)
    await opened.note(record.id, [Commanded(seq=-1, at=now(), action=action, text=text)])


def _has_ended(record: Trajectory) -> TaskError:
    return TaskError(f"Run {record.id} has ended ({record.status}); fork it, or go on with Task(..., after=...).")


def _picked(record: Trajectory, question: str | None) -> Asked:
    """The question that is meant: the named one, or the only one."""
    still = record.open_questions()
    if question is not None and (answer := record.answers.get(question)) is not None:
        raise TaskError(f"Question {question!r} of run {record.id} has been answered already: {answer!r}.")
    if not still:
        raise TaskError(f"Run {record.id} asks nothing; its status is {record.status}.")
    meant = [asked for asked in still if asked.id == question] if question is not None else still
    if len(meant) == 1:
        return meant[0]
    listed = "\n".join(f"  {asked.id}: {asked.question}" for asked in still)
    wrong = "Several questions are open" if question is None else f"There is no open question {question!r}"
    raise TaskError(f"{wrong}; name one of\n{listed}")


def _actor(record: Trajectory, agent: Unit | None, swarm: Unit | None) -> Any:
    actor = agent if agent is not None else swarm
    if actor is None:
        names = ", ".join(repr(name) for name in record.agents) or "its agent"
        raise TaskError(f"Trajectory {record.id} was made by {names}: pass agent=... (code is not in the log).")
    return actor


def _task_of(record: Trajectory, actor: Any, changes: dict[str, Any], *, same: bool = True) -> Task:
    """A task for a recorded run; `changes` take the place of what was recorded."""
    conf = TaskConfig(**(record.started.conf if record.started else {}))
    recorded = msgspec.structs.asdict(record.task)
    fields: dict[str, Any] = {**recorded, "conf": conf, **changes, "id": record.id if same else None}
    root = record.activations.get(0)
    input = record.messages[root.input].message.content if root is not None and root.input is not None else None
    return Task(input or "(the log has no input)", agent=actor, **fields)
