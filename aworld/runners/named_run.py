"""Runs of a name: many questions to one agent, begun once however often they are asked for.

Labels say which question a trajectory answers: `run`, `problem`, and `attempt` from the second on. A second call with
the same name and store reads what has ended, goes on with what has not, and begins the rest; so do rollouts. Under one
name stands one agent, with the same settings, and one list of questions, which may grow.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Generic, TypeAlias, cast

from aworld.config.conf import EngineName, RunConfig
from aworld.core.agent.flow import Unit
from aworld.core.checks import known_keys, unique
from aworld.core.exceptions import AWorldError, ConfigError, LeaseError, TaskError
from aworld.core.message import Usage
from aworld.core.task import Answer, Prefix, Task, TaskResponse
from aworld.core.trajectory import Trajectory
from aworld.runners.driver import Episode
from aworld.runners.local import executor_of, fork_point, load, store_of, tell, watched
from aworld.runners.run import units_of_task
from aworld.trajectory import Query
from aworld.trajectory.summary import Summary

Question: TypeAlias = str | Mapping[str, Any] | Task
"""A text; `input` with an `id` of its own, `labels` and `context`; or a task."""

_PLAIN = re.compile(r"[\w-]{1,48}")

_OWN_LABELS = ("run", "problem", "attempt")

_MODEL = ("model", "model_object", "llm_config.llm_provider", "llm_config.llm_model_name")
"""Settings that say where a policy is; it is the same one wherever it was read from, if its version is."""

_REACHED = {"llm_config.prices"} | frozenset(
    f"llm_config.llm_{name}"
    for name in (
        "base_url", "timeout", "stall_timeout", "max_retries", "retry_wait", "retry_wait_max", "max_concurrency",
        "requests_per_minute", "tokens_per_minute", "input_price", "output_price", "capture_tokens",
    )
)  # fmt: skip
"""Settings that say how a model is reached, not what it is asked: they may be others when a run goes on, such as on
another machine."""

_SHOWN = 60
"""Characters of a setting that are shown; of longer ones the difference would hardly be seen."""


@dataclass(slots=True)
class ManyRuns(Generic[Answer]):
    """What came of many runs."""

    finished: int = 0
    """Those with an answer."""
    failed: int = 0
    """Those that ended without one."""
    left: int = 0
    """Those that have not ended: they wait for people, another process has them, or nothing was left of the budget."""
    recorded: int = 0
    """Those that had ended before, and come from the store."""
    errors: dict[str, str] = field(default_factory=dict[str, str])
    """Why a run that should have gone on was left, by id."""
    responses: dict[str, TaskResponse[Answer]] = field(default_factory=dict[str, Any])
    """By id; those to questions in the order of the questions."""

    @property
    def usage(self) -> Usage:
        """What all of them took, before this call too; `usage.cost` in US dollars."""
        return reduce(Usage.__add__, (response.usage for response in self.responses.values()), Usage())

    def add(self, response: TaskResponse[Any]) -> None:
        """Count one more."""
        self.responses[response.trajectory_id] = response
        ended = response.record.finished is not None
        self.finished += response.success
        self.failed += ended and not response.success
        self.left += not ended and not response.success
        if not ended and response.error:
            self.errors[response.trajectory_id] = response.error

    def __str__(self) -> str:
        cost = self.usage.cost
        spent = "" if cost is None else f", {cost:.4f} US dollars"
        return f"{self.finished} finished, {self.failed} failed, {self.left} left{spent}"

    def _repr_html_(self) -> str:
        from aworld.core.notebook import html

        runs = ((one.id, one.status, one.answer or one.msg) for one in self.responses.values())
        return html(str(self), {}, ("run", "status", "answer"), runs)


async def run_questions(
    questions: Iterable[Question],
    unit: Unit | None,
    run: str,
    conf: RunConfig,
    on_done: Callable[[TaskResponse], Any] | None,
    fields: dict[str, Any],
) -> ManyRuns:
    """See `Runners.run_many`."""
    if not run.strip():
        raise TaskError("run='' names nothing: give this run a name, by which it is found again.")
    tasks = [_task(question, number, unit, run, fields) for number, question in enumerate(questions)]
    unique("Two questions have the id", (task.labels["problem"] for task in tasks), TaskError)
    executor = executor_of(conf, store_of(conf.store))
    store, earlier = executor.store, dict[str, Summary]()
    ids = {task.labels["problem"]: task.id for task in tasks}
    for summary in await store.query(Query(labels={"run": run})):
        problem, attempt = summary.labels.get("problem", ""), _attempt(summary)
        ours = summary.id == _id(ids.get(problem), attempt)  # and no fork of somebody's, which has the labels too
        if ours and (problem not in earlier or attempt > _attempt(earlier[problem])):
            earlier[problem] = summary
    report, records = ManyRuns(), dict[str, Trajectory]()
    for task in tasks:
        if (summary := earlier.get(task.labels["problem"])) is None:
            continue
        record = await load(summary.id, store)
        _check_same(run, task, record)
        if record.status == "cancelled" or record.surroundings_failed:  # not the agent's doing: once more
            attempt = _attempt(summary) + 1
            task.id, task.labels["attempt"] = _id(task.id, attempt), str(attempt)
            if record.calls and conf.engine_name is EngineName.LOCAL:  # steps that were paid for are kept
                task.prefix = Prefix(record, fork_point(record, None))
            continue
        task.id = record.id
        if record.finished is not None or record.open_questions():
            report.add(Episode(task, store, record).recorded_response(record.status, record.error))
            report.recorded += record.finished is not None
        else:
            records[task.id] = record
    rest = [task for task in tasks if task.id not in report.responses]
    for task in rest:
        task.agent.check()
        executor.check(task)

    async def work(task: Task) -> TaskResponse:
        refused: AWorldError | None = None
        try:
            response = await executor.run_one(task, records.pop(task.id, None))
        except (LeaseError, TaskError) as error:
            refused, response = error, TaskResponse(Trajectory(task.id), "interrupted", error=str(error), store=store)
        if response.status != "interrupted":
            return response
        if await store.count(Query(ids=(task.id,))):  # another process is at work on it, or done; or the store broke
            return Episode(task, store, await load(task.id, store)).recorded_response("interrupted", response.error)
        if refused is not None:
            raise refused
        return response

    limit = max(min(conf.max_concurrency, len(rest)), 1)
    async with aclosing(executor.each(rest, watched(work, len(rest), conf.on_progress), limit)) as ended:
        async for response in ended:
            report.add(response)
            if on_done is not None:
                await tell(on_done, response)
    report.responses = {task.id: report.responses[task.id] for task in tasks}
    return report


def _task(question: Question, number: int, unit: Unit | None, run: str, fields: dict[str, Any]) -> Task:
    """The task of a question; its id depends on the names of the run and of the question alone."""
    if isinstance(question, Task):
        task, problem = copy.copy(question), question.id if question.named else str(number)
    else:
        named = cast("Mapping[str, Any]", question if isinstance(question, Mapping) else {"input": question})
        known_keys("A question", named, ("id", "input", "labels", "context"))
        if "input" not in named:
            raise TaskError(f"Question {number} has no input: a question is a text, {{'input': ...}}, or a Task.")
        for name in named.keys() & {"labels", "context"}:  # its own beside those of all
            own = named[name]
            fields = {**fields, name: {**fields.get(name, {}), **own} if isinstance(own, dict) else own}
        task = Task(named["input"], swarm=unit, **fields)
        problem = str(named.get("id", number))
    if taken := [name for name in _OWN_LABELS if name in task.labels]:
        raise TaskError(f"labels[{taken[0]!r}]: run_many gives this label itself; take another name.")
    if not task.named:
        plain = problem if _PLAIN.fullmatch(problem) else hashlib.blake2b(problem.encode(), digest_size=8).hexdigest()
        task.id = f"{run}.{plain}"
    task.labels = {**task.labels, "run": run, "problem": problem}
    return task


def _id(base: str | None, attempt: int) -> str:
    return f"{base}~{attempt}" if attempt else f"{base}"


def _attempt(summary: Summary) -> int:
    attempt = summary.labels.get("attempt", "")
    return int(attempt) if attempt.isdecimal() else 0


def _check_same(run: str, task: Task, record: Trajectory) -> None:
    """Refuse to mix two runs under one name, and to take the answer to one question for that to another."""
    if record.started is not None and record.started.environment is not None:
        raise another_run(run, record, f"of environment {record.started.environment!r}, and these are questions")
    check_agent(run, record, units_of_task(task.agent, task.tools))
    root = record.activations.get(0)
    before = task.input if root is None or root.input is None else record.messages[root.input].message.content
    if before != task.input:
        number = task.labels["problem"]
        raise another_run(
            run,
            record,
            f"with another question {number!r}: it was {before!r:.80}, and is now {task.input!r:.80}. A list may grow "
            "at its end; questions with an id may stand in any order",
        )


def another_run(run: str, record: Trajectory, what: str) -> ConfigError:
    """The error for a name that the store has for another run."""
    return ConfigError(
        f"run={run!r} | the store has trajectories of this run {what}, such as {record.id}. Take another name for this "
        "run (--run), or go on with the same.",
        setting="run",
        remedy="take another name for this run",
    )


def check_agent(run: str, record: Trajectory, units: Mapping[str, Unit]) -> None:
    """Raise ConfigError when an episode was done by other agents than these, or with other settings."""
    if record.started is None:
        return
    if record.agents.keys() != units.keys():
        names, others = (", ".join(map(repr, agents)) for agents in (record.agents, units))
        raise another_run(run, record, f"by another agent: {names}, and this is {others}")
    for name, unit in units.items():
        before, now = _flat(record.agents[name]), _flat(unit.settings())
        for setting in {**before, **now} if record.started.definitions else before:  # older logs tell less
            old, new = before.get(setting), now.get(setting)
            if old == new or setting in _REACHED or (setting in _MODEL and _same_policy(record, unit)):
                continue
            short = max(len(repr(old)), len(repr(new))) <= _SHOWN
            change = f"was {old!r} and is now {new!r}" if short else "was another"
            raise another_run(run, record, f"by another agent: {setting} of {name!r} {change}")


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an agent, those of its model one by one."""
    config: Mapping[str, Any] = settings.get("llm_config") or {}
    rest = {key: value for key, value in settings.items() if key not in ("llm_config", "members", "units")}
    return rest | {f"llm_config.{key}": value for key, value in config.items()}


def _same_policy(record: Trajectory, unit: Unit) -> bool:
    """Whether the log has samples of the trained policy that the agent asks in this process: its version has a digest
    of the weights. The version "0" says nothing."""
    version = getattr(getattr(getattr(unit, "model", None), "policy", None), "version", None)
    calls = (call for call in record.calls.values() if call.agent == unit.name and call.tokens is not None)
    return version not in (None, "0") and any(call.tokens and call.tokens.policy_version == version for call in calls)
