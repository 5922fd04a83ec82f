"""Runners: the front door. Run, step, stream, resume, fork and replay tasks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast, overload

from aworld.config.conf import RunConfig, TaskConfig
from aworld.core.agent.base import BaseAgent
from aworld.core.common import Observation
from aworld.core.exceptions import AWorldError, TaskError
from aworld.core.hooks import Hooks
from aworld.core.output import AnyOutput
from aworld.core.task import Prefix, Task, TaskResponse, content_of
from aworld.core.tool.results import to_content
from aworld.core.trajectory import Trajectory
from aworld.runners.answering import put_answer
from aworld.runners.blocking import run_blocking
from aworld.runners.episode import Episode
from aworld.runners.journal import Journal, give_reward
from aworld.runners.local import fork_point, forked, load, run_config, run_many, run_one, store_of
from aworld.runners.replay import ReplayReport, replay
from aworld.runners.stream import RunStream
from aworld.trajectory.store import Query

Conf = RunConfig | dict[str, Any] | None
Run = str | Trajectory | TaskResponse


@dataclass(slots=True)
class Resumed:
    """What `Runners.resume_all` did: how many runs finished, did not finish well, and were left as they were."""

    finished: int = 0
    failed: int = 0
    left: int = 0
    errors: dict[str, str] = field(default_factory=dict[str, str])
    """Why a run that should have gone on was left, by id."""
    responses: dict[str, TaskResponse] = field(default_factory=dict[str, TaskResponse])


class Runners:
    """Runs agents and swarms. Nothing is written to disk unless a store is named in `RunConfig(store=...)`."""

    @staticmethod
    async def run(
        input: Any, agent: BaseAgent | None = None, swarm: Any = None, *, run_conf: Conf = None, **task: Any
    ) -> TaskResponse:
        """Run one input to its end. `task` takes the arguments of `Task`, such as `conf` and `tools`.

        A failure, limit, time-out or refusal comes back as a response with its status. Raises ConfigError and
        TaskError for misuse, and CancelledError when the caller cancels.
        """
        return await run_one(Task(input, agent, swarm, **task), store_of(run_config(run_conf).store))

    @staticmethod
    def sync_run(
        input: Any, agent: BaseAgent | None = None, swarm: Any = None, *, run_conf: Conf = None, **task: Any
    ) -> TaskResponse:
        """`run` for code without an event loop; works inside a running one too, by a thread of its own."""
        return run_blocking(Runners.run(input, agent, swarm, run_conf=run_conf, **task))

    @staticmethod
    async def run_task(
        task: Task | Sequence[Task],
        run_conf: Conf = None,
        *,
        on_done: Callable[[TaskResponse], None] | None = None,
    ) -> dict[str, TaskResponse]:
        """Run one or many tasks, at most `run_conf.max_concurrency` at once.

        Returns responses by task id, in the order of the tasks. `on_done` is called after each.
        """
        return await run_many(_tasks(task), run_config(run_conf), on_done)

    @staticmethod
    def sync_run_task(task: Task | Sequence[Task], run_conf: Conf = None) -> dict[str, TaskResponse]:
        """`run_task` for code without an event loop."""
        return run_blocking(Runners.run_task(task, run_conf))

    @staticmethod
    def streamed_run_task(task: Task, run_conf: Conf = None, *, keep_running: bool = False) -> RunStream:
        """A run to be read while it goes on: `async for output in stream.stream_events()`.

        Leaving the loop early cancels the run, unless `keep_running`.
        """
        conf = run_config(run_conf)
        return RunStream(lambda emit: run_one(task, store_of(conf.store), emit), keep_running=keep_running)

    @staticmethod
    def streaming_run_task(task: Task, run_conf: Conf = None) -> AsyncIterator[AnyOutput]:
        """The outputs of a task while it runs; the last is `RunFinished` with the response."""
        return Runners.streamed_run_task(task, run_conf).stream_events()

    @staticmethod
    def streaming_run(
        input: Any, agent: BaseAgent | None = None, swarm: Any = None, *, run_conf: Conf = None, **task: Any
    ) -> AsyncIterator[AnyOutput]:
        """`run`, read while it goes on."""
        return Runners.streaming_run_task(Task(input, agent, swarm, **task), run_conf)

    @staticmethod
    async def step(
        task: Task,
        run_conf: Conf = None,
        *,
        observation: Any = None,
        tool_results: dict[str, Any] | None = None,
    ) -> tuple[bool, Observation, TaskResponse]:
        """Take one turn: one model call and what it caused.

        Before it, `observation` adds something for the agent to see, and `tool_results` (by call id) takes the place
        of results of the last turn; the model is not asked again for that turn. A task that another process has
        begun in the same store goes on from there.

        Returns whether the run is over, what the agent will see next (the answer when it has finished), and a response
        whose `trajectory` is the row of this step.
        """
        _tasks(task)
        if task.episode is None:
            store = store_of(run_config(run_conf).store)
            record = forked(task)
            if record is None and await store.count(Query(ids=(task.id,))):
                record = await load(task.id, store)
                if record.finished is not None:
                    raise TaskError(f"Task {task.id!r} has already ended; fork it, or give the task another id.")
            task.episode = Episode(task, store, record)
        given = None if observation is None else content_of(observation)
        results = {id: to_content(value) for id, value in (tool_results or {}).items()}
        return await task.episode.step(given, results)

    @staticmethod
    async def resume(
        id: Run, agent: BaseAgent | None = None, swarm: Any = None, *, store: Any = None,
        answers: dict[str, str] | None = None, **task: Any,
    ) -> TaskResponse:  # fmt: skip
        """Continue a run whose process ended, or that waits for people, from its last event.

        `answers` replies to open questions, by question id. A tool that was running is closed as interrupted, unless
        it says that it is idempotent. A run that has ended comes back as it was recorded; `fork` it to go on.
        """
        record, opened = await _find(id, store)
        actor = _actor(record, agent, swarm)
        episode = Episode(_task_of(record, actor, task), opened, record)
        if record.finished is not None:
            return episode.recorded_response()
        for question, answer in (answers or {}).items():
            episode.answer(question, answer)
        return await episode.run()

    @staticmethod
    async def answer(id: Run, text: str, *, question: str | None = None, store: Any = None) -> Trajectory:
        """Answer what a waiting run asked; the run goes on when it is resumed, by whichever process.

        `question` is the id of the question, needed when several are open. Durable when it returns; returns the
        record, whose `open_questions()` tells what is left. Raises `TaskError` when the run asks no such thing or
        is still at work, and for an empty answer.
        """
        record, opened = await _find(id, store)
        if not isinstance(id, str):  # somebody else may have answered since
            stored = await load(record.id, opened)
            record = stored if len(stored.events) > len(record.events) else record
        await put_answer(record, opened, text, question)
        return record

    @staticmethod
    async def resume_all(store: Any, agents: Iterable[BaseAgent], run_conf: Conf = None) -> Resumed:
        """Continue every unfinished run of a store whose agent is among `agents`; the others, and those that wait for
        people, are left."""
        opened, conf, counts = store_of(store), run_config(run_conf), Resumed()
        if not isinstance(agents, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TaskError(f"agents takes a list; got {agents!r}.")
        known = {agent.name: agent for agent in agents}
        gate = asyncio.Semaphore(conf.max_concurrency)

        async def go_on(id: str) -> None:
            async with gate:
                record = await load(id, opened)
                name = record.activations[0].agent if record.activations else ""
                if name not in known or record.status == "waiting":
                    counts.left += 1
                    return
                try:
                    response = await Episode(_task_of(record, known[name], {}), opened, record).run()
                except AWorldError as error:  # this one cannot go on; the others can
                    counts.left += 1
                    counts.errors[id] = str(error)
                    return
                counts.responses[id] = response
                if response.success:
                    counts.finished += 1
                else:
                    counts.failed += 1

        await asyncio.gather(*(go_on(run.id) for run in await opened.query(Query(status=("running", "waiting")))))
        return counts

    @overload
    @staticmethod
    async def fork(
        id: Run, agent: BaseAgent | None = None, swarm: Any = None, *, at: int | None = None, n: None = None,
        store: Any = None, observation: Any = None, **task: Any,
    ) -> TaskResponse: ...  # fmt: skip

    @overload
    @staticmethod
    async def fork(
        id: Run, agent: BaseAgent | None = None, swarm: Any = None, *, at: int | None = None, n: int,
        store: Any = None, observation: Any = None, **task: Any,
    ) -> list[TaskResponse]: ...  # fmt: skip

    @staticmethod
    async def fork(
        id: Run, agent: BaseAgent | None = None, swarm: Any = None, *, at: int | None = None, n: int | None = None,
        store: Any = None, observation: Any = None, **task: Any,
    ) -> TaskResponse | list[TaskResponse]:  # fmt: skip
        """Go on from a point of a recorded run, in a trajectory of its own that shares the steps before.

        `at` is the first step that is taken anew (None: after the last; a run that had ended needs an `observation`
        to have something to do). `n` gives that many independent continuations, side by side, as a list.
        """
        if n is not None and n < 1:
            raise TaskError(f"fork(n={n}): at least one continuation.")
        tasks = [await Runners.forked_task(id, agent, swarm, at=at, store=store, **task) for _ in range(n or 1)]
        if observation is not None:
            for forked_task in tasks:
                forked_task.said = content_of(observation)
        responses = await run_many(tasks, RunConfig(store=await _store_for(id, store)))
        return list(responses.values()) if n is not None else responses[tasks[0].id]

    @staticmethod
    async def forked_task(
        id: Run, agent: BaseAgent | None = None, swarm: Any = None, *, at: int | None = None, store: Any = None,
        **task: Any,
    ) -> Task:  # fmt: skip
        """A task that goes on from a point of a recorded run: to be run, streamed or stepped in the same store."""
        record, _ = await _find(id, store)
        child = _task_of(record, _actor(record, agent, swarm), task, same=False)
        child.prefix = Prefix(record, fork_point(record, at))
        return child

    @staticmethod
    async def replay(
        id: Run, agent: BaseAgent | None = None, swarm: Any = None, *, store: Any = None, hooks: Sequence[Hooks] = ()
    ) -> ReplayReport:
        """Run a recorded trajectory again without any model or tool, and report the first difference.

        With today's `agent` or `swarm` it tells whether prompts, tools and parsing still do what they did; without one
        it checks that the log is consistent in itself.
        """
        record, _ = await _find(id, store)
        return await replay(record, agent if agent is not None else swarm, hooks)

    @staticmethod
    async def reward(
        run: Task | Run,
        value: float,
        *,
        name: str = "reward",
        step: int | None = None,
        weight: float = 1.0,
        source: str | None = None,
        detail: Any = None,
        store: Any = None,
    ) -> None:
        """Reward a step, or the whole run when `step` is None; at any time, also long after the run.

        Durable when it returns. Raises ValueError for a value that is not a finite number or an unknown step.
        """
        fields: dict[str, Any] = {"name": name, "weight": weight, "step": step, "source": source, "detail": detail}
        if isinstance(run, Task) and run.episode is not None:
            await give_reward(run.episode.journal, value, **fields)
            return
        if isinstance(run, TaskResponse) and run.give_reward is not None:
            await run.give_reward(value, **fields)
            return
        opened = await _store_for(run.id if isinstance(run, Task) else run, store)
        journal = Journal.live(opened, _id_of(run))
        if journal is None:
            record, _ = await _find(run.id if isinstance(run, Task) else run, store)
            journal = Journal(record, opened)
        await give_reward(journal, value, **fields)


def _tasks(given: object) -> list[Task]:
    tasks: list[object] = [given] if isinstance(given, Task) else list(cast("Iterable[object]", given))
    for task in tasks if not isinstance(given, str) else [given]:
        if not isinstance(task, Task):
            raise TaskError(f"Expected a Task, such as Task({task!r}, agent=...); got {type(task).__name__}.")
    return cast("list[Task]", tasks)


def _id_of(run: Task | Run) -> str:
    if isinstance(run, TaskResponse):
        return run.trajectory_id
    return run if isinstance(run, str) else run.id


async def _find(run: Run, store: Any) -> tuple[Trajectory, Any]:
    opened = await _store_for(run, store)
    if isinstance(run, str):
        return await load(run, opened), opened
    return (run.record if isinstance(run, TaskResponse) else run), opened


async def _store_for(run: Run, store: Any) -> Any:
    if store is None and isinstance(run, TaskResponse) and run.store is not None:
        return run.store
    return store_of(store)


def _actor(record: Trajectory, agent: BaseAgent | None, swarm: Any) -> Any:
    actor = agent if agent is not None else swarm
    if actor is None:
        names = ", ".join(repr(name) for name in record.agents) or "its agent"
        raise TaskError(f"Trajectory {record.id} was made by {names}: pass agent=... (code is not in the log).")
    return actor


def _task_of(record: Trajectory, actor: Any, given: dict[str, Any], *, same: bool = True) -> Task:
    """A task for a recorded run; what is `given` takes the place of what was recorded."""
    info = record.task
    fields: dict[str, Any] = {
        "name": info.name,
        "session_id": info.session_id,
        "user_id": info.user_id,
        "group_id": info.group_id,
        "conf": TaskConfig(**(record.started.conf if record.started else {})),
        **given,
    }
    if same:
        fields["id"] = record.id
    said = next((node.message.content for node in record.messages.values() if node.origin == "input"), None)
    return Task(said or "(the log has no input)", agent=actor, **fields)
