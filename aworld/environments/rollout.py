"""Rollouts: many episodes of an environment side by side, as they finish.

The id of an episode depends on the run, the environment, the problem, the seed and the number of the sample, and on
nothing else: a second start of the same run in the same store does what is missing, and no finished episode twice.
Only what is not the policy's doing is tried again (a session that died, a provider that could not be reached); a policy
that fails is data.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from aworld.core.event import Status
from aworld.core.exceptions import ConfigError, EnvironmentFailed, StoreError
from aworld.core.hooks import Hooks
from aworld.core.task import TaskResponse
from aworld.core.trajectory import Trajectory
from aworld.environments.environment import Environment, derived_seed
from aworld.environments.problem import Problem, as_problem, content_key, digest_of
from aworld.environments.progress import Progress
from aworld.environments.same_run import check_agent, check_setting
from aworld.runners.local import load, run_one, store_of
from aworld.runners.run import units_of_task
from aworld.trajectory.store import Query, TrajectoryStore
from aworld.trajectory.summary import Summary

T = TypeVar("T")

RETRY_WAIT = 0.25
"""Seconds before the first retry of an episode whose surroundings failed; doubled each time."""

LOST_IN_A_ROW = 20
"""So many episodes may be lost one after the other however few run at once."""

ENDED: tuple[Status, ...] = ("finished", "failed", "timeout", "limit_reached")
"""Statuses of an episode that is not run again, unless its surroundings failed."""

_PLAIN = re.compile(r"[\w-]{1,48}")


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


async def rollouts(
    environment: Environment,
    agent: Any,
    problems: Iterable[Problem | dict[str, Any]],
    *,
    samples: int = 1,
    seed: int = 0,
    store: Any = None,
    max_concurrency: int = 128,
    retries: int = 2,
    run: str | None = None,
    yield_finished: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    hooks: Sequence[Hooks] = (),
) -> AsyncGenerator[Rollout, None]:
    """Run `samples` episodes of each problem; yields them in the order of finishing.

    Leaving the loop early cancels what runs. What has been yielded is not kept, so that memory does not grow with the
    number of episodes; a reader that is slow slows the episodes, not the memory.

    Args:
        environment: Says what an episode is.
        agent: An agent or a swarm.
        problems: Taken one after the other, as episodes come free.
        samples: Episodes of each problem. They share a group.
        seed: Each episode has a seed derived from it, and each request to a model one derived from that.
        store: A store or its address; None keeps nothing but what is yielded.
        max_concurrency: Episodes in flight at once.
        retries: How often an episode whose surroundings failed is begun again.
        run: The name of this run, also the session id of its trajectories. With the name of an earlier run in the same
            store, what has finished is not run again, and what had not finished is begun anew. One process a run.
        yield_finished: Whether episodes that were finished before are yielded too, first.
        on_progress: Called after each episode.
        hooks: Called around every episode.

    Raises:
        ConfigError: The agent misses a setting, two problems have one id, or `run` is the name of another run: of
            another environment, seed or agent.
        EnvironmentFailed: Twice as many episodes as run at once, and at least 20, were lost in a row.
        StoreError: The store can no longer be written; what was acknowledged is safe.
    """
    if samples < 1 or max_concurrency < 1 or retries < 0:
        raise ConfigError("rollouts: samples and max_concurrency must be at least 1, and retries at least 0.")
    agent.check()  # misuse is told before anything begins
    work = _Work(environment, agent, problems, samples, seed, store_of(store), retries, run, hooks)
    progress = work.progress
    if run is not None:
        await work.look_up()
    if yield_finished:
        async for rollout in work.finished_before():
            yield rollout
    most_lost = max(LOST_IN_A_ROW, 2 * max_concurrency)
    results: asyncio.Queue[Rollout | None] = asyncio.Queue(max_concurrency)
    workers = [asyncio.create_task(work.take_turns(results)) for _ in range(max_concurrency)]
    driver = asyncio.create_task(_drain(workers, results))
    try:
        while (rollout := await results.get()) is not None:
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
        await asyncio.gather(*workers)
    finally:
        for task in (driver, *workers):
            task.cancel()
        await asyncio.gather(driver, *workers, return_exceptions=True)


async def _drain(workers: Sequence[asyncio.Task[None]], results: asyncio.Queue[Rollout | None]) -> None:
    """Wait for all workers, or for the first that breaks, then say that nothing more comes."""
    await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
    await results.put(None)


async def by_group(episodes: AsyncIterator[Rollout], samples: int) -> AsyncIterator[list[Rollout]]:
    """The samples of each problem together, as soon as the last of them has ended, in order of their numbers.

    At the end come the groups that have fewer, such as those of a run that was cut short.
    """
    open_groups: dict[str, list[Rollout]] = {}
    async for rollout in episodes:
        group = open_groups.setdefault(rollout.group_id, [])
        group.append(rollout)
        if len(group) == samples:
            del open_groups[rollout.group_id]
            yield sorted(group, key=lambda each: each.sample)
    for group in open_groups.values():
        yield sorted(group, key=lambda each: each.sample)


def _attempt(id: str) -> tuple[str, int]:
    """The id of an episode's first attempt, and which attempt the trajectory of this id is, from 0."""
    name, _, attempt = id.rpartition("~")
    return (name, int(attempt)) if name and attempt.isdecimal() else (id, 0)  # the name of a run may have a ~ too


@dataclass(slots=True)
class _Known:
    """What a store has of one episode."""

    attempts: int = 0
    finished: str | None = None
    """Id of the trajectory that counts."""


class _Work:
    """The episodes that are to be run, shared by the workers."""

    def __init__(
        self,
        environment: Environment,
        agent: Any,
        problems: Iterable[Problem | dict[str, Any]],
        samples: int,
        seed: int,
        store: TrajectoryStore,
        retries: int,
        run: str | None,
        hooks: Sequence[Hooks],
    ) -> None:
        self.environment, self.agent, self.samples, self.seed = environment, agent, samples, seed
        self.store, self.retries, self.hooks = store, retries, hooks
        self.run = run or uuid.uuid4().hex[:12]
        self.problems = cast("Sequence[Any]", problems) if isinstance(problems, Sequence) else None
        self.progress = Progress(None if self.problems is None else len(self.problems) * samples)
        self.known: dict[str, _Known] = {}
        self._left = self._episodes(problems)
        self._seen: set[str] = set()

    async def look_up(self) -> None:
        """Find out what the store has of this run; what had not finished is deleted, to be begun anew."""
        found = await self.store.query(Query(session=self.run))
        own = [summary for summary in found if summary.id.startswith(f"{self.run}.")]  # others' are such as forks
        if own:
            await self._check_same(own)
        for summary in own:
            name, attempt = _attempt(summary.id)
            known = self.known.setdefault(name, _Known())
            if summary.status not in ENDED:
                await self.store.delete(summary.id, forks=True)
                continue
            known.attempts = max(known.attempts, attempt + 1)
            if not await self._was_lost(summary):
                known.finished = summary.id
        if self.problems is not None:
            self.progress.skip(sum(self._is_finished(id) for id in self._ids()))

    async def _check_same(self, own: Sequence[Summary]) -> None:
        """Refuse to mix two runs under one name, and to take what one agent did for what another does."""
        most = max(own, key=lambda summary: summary.steps)
        record = await load(most.id, self.store)
        if {_attempt(summary.id)[0] for summary in own}.isdisjoint(self._ids()):  # an id tells of both
            check_setting(self.run, record, self.environment.name, self.seed)
        task = self.environment.task(Problem("any", "Anything."), self.agent)
        check_agent(self.run, record, units_of_task(task.agent, task.tools))

    async def _was_lost(self, summary: Summary) -> bool:
        return summary.status in ("failed", "timeout") and (await load(summary.id, self.store)).surroundings_failed

    def _ids(self) -> Iterator[str]:
        for number, given in enumerate(self.problems or ()):
            group = self.group(as_problem(given, number))
            yield from (f"{group}.{sample}" for sample in range(self.samples))

    def _is_finished(self, id: str) -> bool:
        known = self.known.get(id)
        return known is not None and known.finished is not None

    async def finished_before(self) -> AsyncIterator[Rollout]:
        """Episodes of this run that the store has, when the problems are a list."""
        for number, given in enumerate(self.problems or ()):
            problem = as_problem(given, number)
            group = self.group(problem)
            for sample in range(self.samples):
                known = self.known.get(f"{group}.{sample}")
                if known is not None and known.finished is not None:
                    record = await load(known.finished, self.store)
                    seed = derived_seed(self.seed, problem.id, sample)
                    yield Rollout(problem, sample, group, seed, record, attempts=0, recorded=True)

    def group(self, problem: Problem) -> str:
        """The id of a problem's group: readable, and another one for another environment, seed or content."""
        what = digest_of(problem, content_key)
        mark = hashlib.blake2b(f"{self.environment.name}\x1f{self.seed}\x1f{problem.id}".encode() + what, digest_size=4)
        name = problem.id if _PLAIN.fullmatch(problem.id) else "problem"
        return f"{self.run}.{name}.{mark.hexdigest()}"

    def _episodes(self, problems: Iterable[Problem | dict[str, Any]]) -> Iterator[tuple[Problem, str, int]]:
        for number, given in enumerate(problems):
            problem = as_problem(given, number)
            if problem.id in self._seen:
                raise ConfigError(f"Two problems have the id {problem.id!r}; give each its own.")
            self._seen.add(problem.id)
            group = self.group(problem)
            for sample in range(self.samples):
                if not self._is_finished(f"{group}.{sample}"):
                    yield problem, group, sample

    async def take_turns(self, results: asyncio.Queue[Rollout | None]) -> None:
        """Run one episode after the other, as long as there are any."""
        for problem, group, sample in self._left:  # workers share one iterator: each takes the next when it is free
            await results.put(await self._episode(problem, group, sample))

    async def _episode(self, problem: Problem, group: str, sample: int) -> Rollout:
        """One episode, begun again as long as its surroundings fail and there are retries."""
        seed = derived_seed(self.seed, problem.id, sample)
        known = self.known.get(f"{group}.{sample}")
        before = known.attempts if known is not None else 0
        for attempt in range(before, before + self.retries + 1):
            task = self.environment.task(
                problem,
                self.agent,
                id=f"{group}.{sample}~{attempt}" if attempt else f"{group}.{sample}",
                group_id=group,
                session_id=self.run,
                seed=seed,
                hooks=self.hooks,
            )
            response = await run_one(task, self.store)
            if response.status == "interrupted":
                raise StoreError(response.msg)
            tried = attempt - before + 1
            if not response.record.surroundings_failed or tried > self.retries:
                return Rollout(problem, sample, group, seed, response.record, tried, response=response)
            self.progress.retried += 1
            self.progress.reason = response.record.error
            await asyncio.sleep(RETRY_WAIT * 2.0 ** (tried - 1))
        raise AssertionError("the last attempt returns")
