"""Rollouts: many episodes of an environment side by side, as they finish.

Labels say which episode a trajectory is: `run`, `problem`, `sample`, `attempt`, `seed` and `split`. A second start of
the same run in the same store asks for them, does what is missing, and no finished episode twice. Ids depend on the
same and on nothing else, so that no episode can be recorded twice; nobody reads anything from them. Only what is not
the policy's doing is tried again (a session that died, a provider that could not be reached); a policy that fails is
data.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, NamedTuple, cast

from aworld.config.conf import RunConfig
from aworld.core.agent.flow import Unit
from aworld.core.checks import Count, positive, typed
from aworld.core.event import Status
from aworld.core.exceptions import (
    BudgetUsed,
    ConfigError,
    EnvironmentFailed,
    StoreError,
    TaskError,
    UsageUnknown,
)
from aworld.core.hooks import Hooks
from aworld.core.task import TaskResponse
from aworld.core.trajectory import Trajectory
from aworld.environments.environment import Environment, derived_seed
from aworld.environments.problem import Problem, as_problem, content_key, digest_of
from aworld.environments.report import RolloutProgress
from aworld.runners.budget import stopped_short
from aworld.runners.local import Executor, executor_of, load, run_config, store_of
from aworld.runners.named_run import another_run, check_agent
from aworld.runners.run import units_of_task
from aworld.trajectory.store import Query, TrajectoryStore
from aworld.trajectory.summary import Summary

MOST_AT_ONCE = 128
"""Episodes in flight at once, where nobody says."""

RETRY_WAIT = 0.25
"""Seconds before the first retry of an episode whose surroundings failed; doubled each time."""

LOST_IN_A_ROW = 20
"""So many episodes may be lost one after the other however few run at once."""

ENDED: tuple[Status, ...] = ("finished", "failed", "timeout", "limit_reached")
"""Statuses of an episode that is not run again, unless its surroundings failed."""

_ANY = Problem("any", "Anything.")
"""Stands for the problems of a run, where only the rest of its tasks is looked at."""

_PLAIN = re.compile(r"[\w-]{1,48}")

_OWN_LABELS = ("run", "problem", "sample", "attempt", "seed")
"""Labels that are not for the caller to say."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One episode that has ended."""

    problem: Problem
    sample: int
    """Its number among the samples of the problem, from 0."""
    group_id: str
    """Shared by the samples of one problem."""
    seed: int
    """The seed of the episode."""
    record: Trajectory
    attempts: int = 1
    """How often it was begun by this call."""
    recorded: bool = False
    """Whether it was finished before, and comes from the store."""
    response: TaskResponse | None = None
    """The response of the run; None for one that comes from the store."""

    @property
    def id(self) -> str:
        """The id of the trajectory."""
        return self.record.id

    @property
    def status(self) -> Status:
        """How the episode ended."""
        return self.record.status

    @property
    def answer(self) -> Any:
        """What the agent answered, in JSON form; None when it did not."""
        return self.record.answer

    @property
    def score(self) -> float | None:
        """Sum of the weighted rewards; None when there is none, or one that counts has failed."""
        return self.record.score

    @property
    def error(self) -> str | None:
        """Why the episode did not finish well."""
        return self.record.error

    @property
    def truncated(self) -> bool:
        """Whether a limit or a deadline cut the episode off."""
        return self.status in ("limit_reached", "timeout")

    @property
    def lost(self) -> bool:
        """Whether its surroundings failed, also when tried again: it is no sample of what the agent does."""
        return self.record.surroundings_failed

    def reward(self, name: str) -> float | None:
        """The last value of the reward of this name; None when it was not given or has failed."""
        return next((r.value for r in reversed(self.record.rewards) if r.name == name), None)


@typed(TaskError)
async def rollouts(
    environment: Environment,
    agent: Unit,
    problems: Iterable[Problem | dict[str, Any]],
    *,
    samples: int = 1,
    seed: int = 0,
    store: Any = None,
    max_concurrency: int | None = None,
    retries: int = 2,
    run: str | None = None,
    labels: Mapping[str, str] | None = None,
    yield_finished: bool = False,
    on_progress: Callable[[RolloutProgress], None] | None = None,
    hooks: Sequence[Hooks] = (),
    session_id: str | None = None,
    deps: Any = None,
    conf: RunConfig | dict[str, Any] | None = None,
) -> AsyncGenerator[Rollout, None]:
    """Run `samples` episodes of each problem; yields them in the order of finishing.

        async for rollout in rollouts(shop, buyer, shop.problems("train", 20), samples=4, run="first", store=store):
            report.add(rollout)

    Leaving the loop early cancels what runs. What has been yielded is not kept, so that memory does not grow with the
    number of episodes; a reader that is slow slows the episodes, not the memory.

    Args:
        environment: Says what an episode is.
        agent: An agent or a swarm.
        problems: Taken one after the other, as episodes come free.
        samples: Episodes of each problem. They share a group.
        seed: Each episode has a seed derived from it, and each request to a model one derived from that.
        store: A store or its address; None keeps nothing but what is yielded.
        max_concurrency: Episodes in flight at once; 128, or what `conf` says.
        retries: How often an episode whose surroundings failed is begun again.
        run: The name of this run, also a label of its trajectories. With the name of an earlier run in the same store,
            what has finished is not run again, and what had not finished is begun anew. One process a run.
        labels: Further labels of every episode, names and values both text. `run`, `problem`, `sample`, `attempt` and
            `seed` are there already; `split` too, where the environment can tell and this does not say otherwise.
        yield_finished: Whether episodes that were finished before are yielded too, first.
        on_progress: Called after each episode.
        hooks: Called around every episode.
        session_id: Whose conversations the episodes belong to; says nothing else.
        deps: What tools and instructions work with, or the function that makes it for each episode; see `Task`.
        conf: Where the episodes run: `RunConfig(engine_name="processes", worker_num=4, store="sqlite:///runs.db")` for
            worker processes. The episodes of one that dies are begun anew in another.

    Raises:
        ConfigError: The agent misses a setting, two problems have one id, `labels` takes a name that is not free, or
            `run` is the name of another run: of another environment, seed or agent.
        LimitReached: What `conf` lets them spend together is used up (`BudgetUsed`), or nobody knows what they spend.
            What had ended was yielded; the same call with a larger budget goes on.
        EnvironmentFailed: Twice as many episodes as run at once, and at least 20, were lost in a row.
        StoreError: The store can no longer be written; what was acknowledged is safe.
        TaskError: A label is no text, or something cannot travel to the worker processes that `conf` asks for.
    """
    conf = _run_config(conf, store, max_concurrency)
    positive("samples", samples, whole=True)
    positive("retries", retries, zero=True, whole=True)
    more = dict(labels or {})
    if taken := [name for name in _OWN_LABELS if name in more]:
        raise ConfigError(f"labels[{taken[0]!r}]: rollouts gives this label itself; take another name.")
    agent.check()  # misuse is told before anything begins
    listed = cast("Sequence[Any]", problems) if isinstance(problems, Sequence) else None
    progress = RolloutProgress(None if listed is None else len(listed) * samples)
    fields: dict[str, Any] = {"hooks": hooks, "session_id": session_id, "deps": deps}
    name = run or uuid.uuid4().hex[:12]
    executor = executor_of(conf, store_of(conf.store))
    executor.check(environment.task(_ANY, agent, seed=seed, **fields))
    work = _Work(environment, agent, listed or (), samples, seed, executor, retries, name, more, fields, progress)
    if run is not None:
        await work.look_up()
    if yield_finished:
        async for rollout in work.finished_before():
            yield rollout
    most_lost = max(LOST_IN_A_ROW, 2 * conf.max_concurrency)
    async with aclosing(executor.each(work.missing(problems), work.episode, conf.max_concurrency)) as episodes:
        async for rollout in episodes:
            if rollout is None:
                continue
            progress.count(rollout)
            if on_progress is not None:
                on_progress(progress)
            yield rollout
            if progress.lost_in_a_row >= most_lost:
                raise EnvironmentFailed(
                    f"run={work.run!r} | the last {progress.lost_in_a_row} episodes were all lost, retries included. "
                    f"The last one: {progress.reason}\nWhat has ended is kept; start again with the same run and store "
                    "to go on."
                )
    if work.stopped is not None:
        error = UsageUnknown if work.stopped.status == "usage_unknown" else BudgetUsed
        raise error("budget", f"run={work.run!r} | {progress.done} episodes have ended. {work.stopped.msg}")


def _run_config(conf: RunConfig | dict[str, Any] | None, store: Any, limit: int | None) -> RunConfig:
    """The configuration with the store and the limit that were named beside it. Raises ConfigError."""
    conf = run_config(conf)
    if limit is None:
        limit = conf.max_concurrency if "max_concurrency" in conf.model_fields_set else MOST_AT_ONCE
    positive("max_concurrency", limit, whole=True)
    if store is not None and conf.store not in (None, store):
        raise ConfigError("rollouts: store and conf.store name two stores; name one.", setting="store")
    for name in ("on_progress", "sequence_dependent"):
        if getattr(conf, name):
            raise ConfigError(f"rollouts: conf.{name} is not for rollouts; they take on_progress themselves.")
    return conf.model_copy(update={"max_concurrency": limit, "store": conf.store if store is None else store})


@typed()
async def by_group(episodes: AsyncIterator[Rollout], samples: Count) -> AsyncIterator[list[Rollout]]:
    """The samples of each problem together, as soon as the last of them has ended, in order of their numbers.

    At the end come the groups that have fewer, such as those of a run that was cut short.
    """
    open_groups: dict[str, list[Rollout]] = {}
    async for rollout in episodes:
        group = open_groups.setdefault(rollout.group_id, [])
        group.append(rollout)
        if len(group) == samples:
            del open_groups[rollout.group_id]
            yield sorted(group, key=lambda rollout: rollout.sample)
    for group in open_groups.values():
        yield sorted(group, key=lambda rollout: rollout.sample)


class _Episode(NamedTuple):
    """Which episode of a run is meant."""

    problem: Problem
    group: str
    sample: int


@dataclass(slots=True)
class _Earlier:
    """What a store has of one episode."""

    attempts: int = 0
    finished: str | None = None
    """Id of the trajectory that counts."""


@dataclass(slots=True)
class _Work:
    """The episodes of a run: which there are, and which of them are yet to be run."""

    environment: Environment
    agent: Any
    problems: Sequence[Any]
    """Those that a list has; none of a stream."""
    samples: int
    seed: int
    executor: Executor
    retries: int
    run: str
    labels: dict[str, str]
    """What the caller wants on every episode."""
    fields: dict[str, Any]
    """What each task is made with besides."""
    progress: RolloutProgress
    earlier: dict[tuple[str, str], _Earlier] = field(default_factory=dict[tuple[str, str], _Earlier])
    """By group and sample."""
    stopped: TaskResponse | None = None
    """The first run that stopped, or did not begin, for want of a budget; no further one begins then."""

    @property
    def store(self) -> TrajectoryStore:
        """Where the episodes are."""
        return self.executor.store

    async def look_up(self) -> None:
        """Find out what the store has of this run; what had not finished is deleted, to be begun anew."""
        summaries = [s for s in await self.store.query(Query(labels={"run": self.run})) if _is_episode(s)]
        if summaries:
            await self._check_same(max(summaries, key=lambda summary: summary.steps))
        for summary in summaries:
            if summary.status not in ENDED:
                await self.store.delete(summary.id, forks=True)
                continue
            earlier = self.earlier.setdefault((summary.group_id or "", summary.labels["sample"]), _Earlier())
            earlier.attempts = max(earlier.attempts, int(summary.labels["attempt"]) + 1)
            if not await self._was_lost(summary):
                earlier.finished = summary.id
        self.progress.skip(sum(self._finished(item) is not None for item in self._episodes(self.problems)))

    async def _check_same(self, summary: Summary) -> None:
        """Refuse to mix two runs under one name, and to take what one agent did for what another does."""
        record = await load(summary.id, self.store)
        _check_setting(self.run, summary, record, self.environment.name, self.seed)
        task = self.environment.task(_ANY, self.agent)
        limits = task.conf.model_dump(mode="json", exclude_defaults=True)
        before = record.started.conf if record.started is not None else limits
        for name in ("max_steps", "max_tokens", "max_cost"):
            if (old := before.get(name)) != (new := limits.get(name)):
                raise another_run(self.run, record, f"with other limits: {name} was {old} and is now {new}")
        check_agent(self.run, record, units_of_task(task.agent, task.tools))

    async def _was_lost(self, summary: Summary) -> bool:
        return summary.status in ("failed", "timeout") and (await load(summary.id, self.store)).surroundings_failed

    def _finished(self, item: _Episode) -> str | None:
        earlier = self.earlier.get((item.group, str(item.sample)))
        return None if earlier is None else earlier.finished

    async def finished_before(self) -> AsyncIterator[Rollout]:
        """Episodes of this run that the store has, when the problems are a list."""
        for item in self._episodes(self.problems):
            id = self._finished(item)
            if id is not None:
                seed = derived_seed(self.seed, item.problem.id, item.sample)
                record = await load(id, self.store)
                yield Rollout(item.problem, item.sample, item.group, seed, record, attempts=0, recorded=True)

    def missing(self, problems: Iterable[Problem | dict[str, Any]]) -> Iterator[_Episode]:
        """The episodes that are yet to be run. Raises ConfigError for two problems with one id."""
        episodes = takewhile(lambda _: self.stopped is None, self._episodes(problems))
        return (item for item in episodes if self._finished(item) is None)

    def _episodes(self, problems: Iterable[Problem | dict[str, Any]]) -> Iterator[_Episode]:
        ids: set[str] = set()
        for number, item in enumerate(problems):
            problem = as_problem(item, number)
            if problem.id in ids:
                raise ConfigError(f"Two problems have the id {problem.id!r}; give each its own.")
            ids.add(problem.id)
            group = self._group(problem)
            yield from (_Episode(problem, group, sample) for sample in range(self.samples))

    def _group(self, problem: Problem) -> str:
        """The id of a problem's group: readable, and another one for another environment, seed or content."""
        content = digest_of(problem, content_key)
        name = problem.id if _PLAIN.fullmatch(problem.id) else "problem"
        mark = f"{self.environment.name}\x1f{self.seed}\x1f{problem.id}".encode() + content
        return f"{self.run}.{name}.{hashlib.blake2b(mark, digest_size=4).hexdigest()}"

    async def episode(self, item: _Episode) -> Rollout | None:
        """One episode, begun again as long as its surroundings fail and there are retries; None for one that stopped
        for want of a budget."""
        problem, group, sample = item
        seed = derived_seed(self.seed, problem.id, sample)
        split = self.environment.split_of(problem)
        labels = {
            "run": self.run, "problem": str(problem.id), "sample": str(sample), "seed": str(seed),
            **({} if split is None else {"split": split}), **self.labels,
        }  # fmt: skip
        earlier = self.earlier.get((group, str(sample)), _Earlier())
        for attempt in range(earlier.attempts, earlier.attempts + self.retries + 1):
            task = self.environment.task(
                problem,
                self.agent,
                id=f"{group}.{sample}~{attempt}" if attempt else f"{group}.{sample}",
                group_id=group,
                seed=seed,
                labels={**labels, "attempt": str(attempt)},
                **self.fields,
            )
            response = await self.executor.run_one(task)
            if response.status == "interrupted":
                raise StoreError(response.msg)
            if stopped_short(response):
                self.stopped = self.stopped or response
                return None
            tries = attempt - earlier.attempts + 1
            if not response.record.surroundings_failed or tries > self.retries:
                return Rollout(problem, sample, group, seed, response.record, tries, response=response)
            self.progress.retried += 1
            self.progress.reason = response.record.error
            await asyncio.sleep(RETRY_WAIT * 2.0 ** (tries - 1))
        raise AssertionError("the last attempt returns")


def _is_episode(summary: Summary) -> bool:
    """Whether a trajectory with the label of a run is one of its episodes, and not a fork of one, or somebody's own."""
    numbers = (summary.labels.get("sample", ""), summary.labels.get("attempt", ""))
    return summary.forked_from is None and all(number.isdecimal() for number in numbers)


def _check_setting(run: str, summary: Summary, record: Trajectory, name: str, seed: int) -> None:
    """Raise ConfigError when an episode is of another environment or seed."""
    if (summary.environment or "") != name:
        raise another_run(run, record, f"of environment {summary.environment or ''!r}, and this is {name!r}")
    labels = summary.labels
    expected = derived_seed(seed, labels.get("problem", ""), labels["sample"])
    if "seed" in labels:
        same = labels["seed"] == str(expected)
    else:  # an older version had no such label: the first call of a model tells
        call = next((call for call in record.calls.values() if "seed" in call.params), None)
        same = call is None or call.params["seed"] == derived_seed(expected, call.agent, 0)
    if not same:
        raise another_run(run, record, f"with another seed than {seed}")
