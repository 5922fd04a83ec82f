"""Rollouts: groups, order, concurrency, retries, and going on after an end that nobody wanted."""

from __future__ import annotations

import asyncio
import gc
import itertools
import re
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from aworld.agents.llm_agent import Agent
from aworld.config.conf import RunConfig
from aworld.core.event import Event
from aworld.core.exceptions import BudgetUsed, ConfigError, EnvironmentFailed, ModelError, StoreError, TaskError
from aworld.core.message import Message, Usage
from aworld.core.model import ModelReply, ModelRequest
from aworld.core.tool import tool
from aworld.environments import (
    Environment,
    Part,
    Problem,
    Rollout,
    RolloutProgress,
    Rubric,
    ScoredEpisode,
    by_group,
    rollouts,
    split_by_hash,
)
from aworld.environments.environment import derived_seed
from aworld.models import FunctionModel
from aworld.models.doubles import Said, ScriptedModel, call
from aworld.models.embedded.embedded_model import EmbeddedModel
from aworld.runner import Runners
from aworld.trajectory import MemoryStore, Query, TrajectoryStore, open_store
from tests.environments.shop import Shop, agent_of, buying, problem, saying, shop, stream
from tests.training.small import small_policy

OLD_STORE = Path(__file__).parents[1] / "trajectory" / "fixtures" / "schema_2.db"
"""Has a rollout of a version in which sessions and ids told what labels tell now."""


async def all_of(*given: Any, **settings: Any) -> list[Rollout]:
    return [rollout async for rollout in rollouts(*given, **settings)]


async def test_samples_of_a_problem_are_a_group(store: TrajectoryStore) -> None:
    environment = shop()
    found = await all_of(environment, agent_of(), environment.problems(), samples=3, store=store, run="first")
    assert len(found) == 30
    assert list(Counter(rollout.group_id for rollout in found).values()) == [3] * 10
    assert sorted((int(r.problem.id), r.sample) for r in found) == [(p, s) for p in range(10) for s in range(3)]
    assert all(r.score == 1.0 and r.status == "finished" and r.attempts == 1 and not r.recorded for r in found)
    assert {r.record.task.group_id for r in found} == {r.group_id for r in found}
    assert await store.count(Query(labels={"run": "first"})) == 30
    assert await store.count(Query(group=found[0].group_id)) == 3


async def test_they_come_in_order_of_finishing_and_no_more_run_than_were_asked_for() -> None:
    running, most = 0, 0
    release = [asyncio.Event() for _ in range(10)]

    async def think(request: ModelRequest) -> Said:
        nonlocal running, most
        running += 1
        most = max(most, running)
        number = int(request.messages[-1].text.split()[3])
        await release[number].wait()
        running -= 1
        return "done"

    episodes = rollouts(shop(), agent_of(think), shop().problems(), max_concurrency=4)
    first = asyncio.ensure_future(anext(episodes))
    release[2].set()
    assert (await first).problem.id == "2"
    release[4].set()
    assert (await anext(episodes)).problem.id == "4"
    for event in release:
        event.set()
    assert len([rollout async for rollout in episodes]) == 8
    assert most == 4


async def test_seeds_depend_on_seed_problem_and_sample_alone() -> None:
    def think(request: ModelRequest) -> Said:
        return str(request.params["seed"])

    async def answers(seed: int, order: list[Problem]) -> dict[tuple[str, int], str]:
        found = await all_of(shop(), agent_of(think), order, samples=2, seed=seed, max_concurrency=3)
        return {(r.problem.id, r.sample): r.answer for r in found}

    problems = shop().problems()
    once, again, other = await answers(1, problems), await answers(1, problems[::-1]), await answers(2, problems)
    assert once == again
    assert len({*once.values(), *other.values()}) == 40
    assert once["3", 1] == str(derived_seed(derived_seed(1, "3", 1), "buyer", 0))


async def test_a_second_start_does_only_what_is_missing(store: TrajectoryStore) -> None:
    environment, asked = shop(), Counter[str]()

    def think(request: ModelRequest) -> Said:
        asked[request.trajectory_id] += 1
        return buying(request)

    problems = environment.problems()
    given: dict[str, Any] = {"samples": 2, "store": store, "run": "r"}
    episodes = rollouts(environment, agent_of(think), problems, max_concurrency=3, **given)
    first = [await anext(episodes) for _ in range(7)]
    await episodes.aclose()
    before = await store.query(Query(labels={"run": "r"}))
    finished = {summary.id for summary in before if summary.status == "finished"}
    assert {rollout.id for rollout in first} <= finished
    assert {summary.status for summary in before} <= {"finished", "cancelled"}
    asked.clear()

    states: list[tuple[int, int]] = []

    def note(progress: RolloutProgress) -> None:
        states.append((progress.done, progress.skipped))

    rest = await all_of(environment, agent_of(think), problems, on_progress=note, **given)
    assert {rollout.id for rollout in rest} | finished == {
        s.id for s in await store.query(Query(labels={"run": "r"}, status=("finished",)))
    }
    assert len(rest) == 20 - len(finished)
    assert states[-1] == (20, len(finished))
    assert not finished & asked.keys()

    everything = await all_of(environment, agent_of(think), problems, yield_finished=True, **given)
    assert len(everything) == 20
    assert all(rollout.recorded and rollout.score == 1.0 for rollout in everything)
    assert {r.seed for r in everything} == {derived_seed(0, r.problem.id, r.sample) for r in everything}


async def test_the_name_of_a_run_may_hold_what_marks_an_attempt(store: TrajectoryStore) -> None:
    environment = shop()
    task = environment.task(problem(7), agent_of(), id="mine~x", session_id="a~b")
    await Runners.run_task(task, RunConfig(store=store))
    for samples, new in ((1, 1), (2, 1)):
        assert len(await all_of(environment, agent_of(), [problem(1)], samples=samples, store=store, run="a~b")) == new


async def test_another_seed_or_another_problem_of_that_id_is_no_finished_episode(store: TrajectoryStore) -> None:
    given: dict[str, Any] = {"store": store, "run": "r"}
    assert len(await all_of(shop(), agent_of(), [problem(1)], **given)) == 1
    assert await all_of(shop(), agent_of(), [problem(1)], **given) == []
    assert len(await all_of(shop(), agent_of(), [Problem("1", "Another?", 3, {"price": 3})], **given)) == 1
    assert len(await all_of(shop(), agent_of(), [problem(1)], seed=1, store=store)) == 1


async def test_one_name_is_one_run(store: TrajectoryStore) -> None:
    """Of one environment and one seed, also when no problem of the second start was in the first."""
    given: dict[str, Any] = {"store": store, "run": "r"}
    await all_of(shop(), agent_of(), [problem(1)], samples=2, **given)
    with pytest.raises(ConfigError, match=r"run='r' .* with another seed than 1, such as r\.1\."):
        await all_of(shop(), agent_of(), [problem(1)], seed=1, **given)
    with pytest.raises(ConfigError, match="with another seed than 1"):
        await all_of(shop(), agent_of(), iter([problem(2)]), seed=1, **given)
    longer = shop()
    longer.conf.max_steps = 20
    with pytest.raises(ConfigError, match=r"with other limits: max_steps was .* and is now 20, .* Take another name"):
        await all_of(longer, agent_of(), [problem(1)], **given)
    other = Environment("other", train=[problem(1)], session=Shop)
    with pytest.raises(ConfigError, match="of environment 'shop', and this is 'other'"):
        await all_of(other, agent_of(), [problem(1)], **given)
    assert await store.count(Query(labels={"run": "r"})) == 2
    assert len(await all_of(shop(), agent_of(), [problem(2)], **given)) == 1  # more problems, more samples
    assert len(await all_of(shop(), agent_of(), [problem(1)], samples=3, **given)) == 1
    assert len(await all_of(shop(), agent_of(), iter([problem(3)]), **given)) == 1


async def test_it_stops_when_nothing_answers_any_more_and_can_be_gone_on_with(store: TrajectoryStore) -> None:
    dead: set[str] = {str(number) for number in range(5, 90)}

    class Dying(Shop):
        async def start(self) -> None:
            if self.problem.id in dead:
                raise EnvironmentFailed("http://there:1 | the server is gone")

    environment = shop(session=Dying)
    problems = [problem(number) for number in range(90)]
    given: dict[str, Any] = {"store": store, "run": "r", "retries": 0, "max_concurrency": 4}
    told: list[RolloutProgress] = []
    found: list[Rollout] = []

    async def read() -> None:
        async for rollout in rollouts(environment, agent_of(), problems, on_progress=told.append, **given):
            found.append(rollout)  # noqa: PERF401 - what was read before the error counts

    with pytest.raises(EnvironmentFailed, match=r"last 2\d episodes were all lost.*: http://there:1 . the server"):
        await read()
    assert sum(not each.lost for each in found) == 5
    assert sum(each.lost for each in found) < 30
    assert told[-1].reason == "http://there:1 | the server is gone"
    dead.clear()
    again = await all_of(environment, agent_of(), problems, **given)
    assert (len(again), {each.status for each in again}) == (85, {"finished"})


async def test_failures_of_the_surroundings_are_tried_again_and_kept(store: TrajectoryStore) -> None:
    visits = Counter[str]()

    class Flaky(Shop):
        async def start(self) -> None:
            visits[self.problem.id] += 1
            if visits[self.problem.id] <= int(self.problem.id):
                raise EnvironmentFailed("the shop is closed")

    environment = shop(session=Flaky)
    problems = [problem(number) for number in range(4)]
    progress: list[RolloutProgress] = []
    given: dict[str, Any] = {"store": store, "run": "r", "retries": 2, "on_progress": progress.append}
    found = {r.problem.id: r for r in await all_of(environment, agent_of(), problems, **given)}
    assert [(r.status, r.attempts, r.lost) for _, r in sorted(found.items())] == [
        ("finished", 1, False), ("finished", 2, False), ("finished", 3, False), ("failed", 3, True),
    ]  # fmt: skip
    assert (progress[-1].retried, progress[-1].lost, progress[-1].failed) == (5, 1, 1)
    assert await store.count(Query(labels={"run": "r"}, status=("failed",))) == 1 + 2 + 3
    assert found["3"].score is None

    again = await all_of(environment, agent_of(), problems, **given)
    assert [(r.problem.id, r.status, r.attempts) for r in again] == [("3", "finished", 1)]
    assert again[0].id.endswith("~3")


async def test_an_unreachable_provider_is_tried_again_and_a_failing_policy_is_data() -> None:
    asked = Counter[str]()

    def think(request: ModelRequest) -> Said:
        number = request.messages[-1].text.split()[3] if request.turn == 0 else "tool"
        asked[number] += 1
        if number == "1" and asked[number] == 1:
            raise ModelError("connection refused", retryable=True)
        if number == "2":
            raise ModelError("the prompt is too long", status=400)
        if number == "3" and request.turn == 0:
            return call("ask_price", item="nothing")
        return "wrong"

    found = {r.problem.id: r for r in await all_of(shop(), agent_of(think), [problem(n) for n in range(4)])}
    assert [(r.attempts, r.status, r.score) for _, r in sorted(found.items())] == [
        (1, "finished", 0.0), (2, "finished", 0.0), (1, "failed", 0.0), (1, "finished", 0.0),
    ]  # fmt: skip


async def test_a_group_of_which_one_sample_finished_is_still_a_group() -> None:
    class Once(Shop):
        async def start(self) -> None:
            if self.seed != derived_seed(0, "1", 0):
                raise EnvironmentFailed("sold out")

    episodes = rollouts(shop(session=Once), agent_of(), [problem(1)], samples=4, retries=0)
    groups = [group async for group in by_group(episodes, 4)]
    assert [[(r.sample, r.lost, r.score) for r in group] for group in groups] == [
        [(0, False, 1.0), (1, True, None), (2, True, None), (3, True, None)]
    ]


async def test_groups_come_when_they_are_whole_and_the_rest_at_the_end() -> None:
    async def cut() -> AsyncIterator[Rollout]:
        count = 0
        async for rollout in rollouts(shop(), agent_of(), shop().problems(), samples=4, max_concurrency=1):
            yield rollout
            count += 1
            if count == 10:
                return

    groups = [[(r.problem.id, r.sample) for r in group] async for group in by_group(cut(), 4)]
    assert groups == [[("0", s) for s in range(4)], [("1", s) for s in range(4)], [("2", 0), ("2", 1)]]


async def test_leaving_early_cancels_what_runs() -> None:
    store, forever = MemoryStore(), asyncio.Event()

    async def think(request: ModelRequest) -> Said:
        if "item 0" not in request.messages[-1].text:
            await forever.wait()
        return "x"

    async for _ in (episodes := rollouts(shop(), agent_of(think), shop().problems(), store=store, max_concurrency=3)):
        break
    await episodes.aclose()
    statuses = Counter(summary.status for summary in await store.query())
    assert statuses.keys() <= {"finished", "cancelled"}
    assert statuses["finished"] == 1


async def test_a_slow_reader_may_leave_while_episodes_wait_to_be_read() -> None:
    begun, third = itertools.count(1), asyncio.Event()

    def note(_: Any) -> str:
        if next(begun) == 3:
            third.set()
        return "no"

    problems = [problem(number) for number in range(5)]
    async with aclosing(rollouts(shop(), agent_of(note), problems, max_concurrency=1)) as episodes:
        await anext(episodes)
        await third.wait()  # one has been read, one waits, and one more is about to
    assert next(begun) == 4


async def test_deadlines_are_those_of_the_environment() -> None:
    async def think(request: ModelRequest) -> Said:
        await asyncio.sleep(30 if "item 3" in request.messages[-1].text else 0)
        return "x"

    found = await all_of(shop(conf={"timeout": 0.3}), agent_of(think), shop().problems())
    assert [(r.problem.id, r.status, r.truncated) for r in found if r.status != "finished"] == [("3", "timeout", True)]


async def test_an_endless_stream_is_drawn_from_as_episodes_come_free() -> None:
    drawn = 0

    def counted() -> Any:
        nonlocal drawn
        for each in stream(0):
            drawn += 1
            yield each

    episodes = rollouts(shop(), agent_of(), counted(), max_concurrency=5)
    found = [await anext(episodes) for _ in range(200)]
    await episodes.aclose()
    assert len({r.problem.id for r in found}) == 200
    assert drawn <= 212


async def test_memory_does_not_grow_with_the_number_of_episodes() -> None:
    def alive() -> int:
        gc.collect()
        return sum(isinstance(each, Shop | Rollout) for each in gc.get_objects())

    before, counts, number = alive(), list[int](), 0
    Shop.closed.clear()
    problems = [problem(number) for number in range(250)]
    async for _ in rollouts(shop(), agent_of(), problems, samples=4, max_concurrency=16):
        number += 1
        if number % 250 == 0:
            counts.append(alive() - before)
    assert max(counts) <= 16 * 3
    await asyncio.sleep(0)
    assert alive() - before <= 1  # the loop's own variable


async def test_misuse_is_told_before_anything_begins() -> None:
    with pytest.raises(ConfigError, match="samples=0: a whole number, more than zero"):
        await all_of(shop(), agent_of(), [problem(1)], samples=0)
    with pytest.raises(ConfigError, match="Two problems have the id '1'"):
        await all_of(shop(), agent_of(), [problem(1), problem(1)])


async def test_problems_may_be_plain_dicts() -> None:
    found = await all_of(shop(), agent_of(), [{"input": "What?", "answer": 6, "price": 6}])
    assert [(r.problem.id, r.problem.data, r.score) for r in found] == [("0", {"price": 6}, 1.0)]


async def test_scorers_that_hang_hold_nobody_up() -> None:
    async def hang(episode: Any) -> float:
        await asyncio.sleep(30)
        return 1.0

    environment = shop(Part("hang", hang, timeout=0.1))
    found = await all_of(environment, saying("x"), environment.problems(), samples=5)
    assert {(r.status, r.score) for r in found} == {("finished", None)}


async def test_a_store_that_breaks_ends_the_rollout() -> None:
    class Full(MemoryStore):
        def append(self, trajectory_id: str, events: Sequence[Event], *, wait: bool = True) -> Awaitable[None]:
            if len(self._logs) > 5:
                raise StoreError("store=memory: | the disk is full")
            return super().append(trajectory_id, events, wait=wait)

    done: list[int] = []

    def note(progress: RolloutProgress) -> None:
        done.append(progress.done)

    given: dict[str, Any] = {"store": Full(), "max_concurrency": 1, "on_progress": note}
    with pytest.raises(StoreError, match="the disk is full"):
        await all_of(shop(), agent_of(), shop().problems(), **given)
    assert done == [1, 2, 3, 4, 5]


async def test_another_agent_is_another_run(store: TrajectoryStore) -> None:
    """Its scores are not those of the first, whose episodes have the same ids."""

    def wrong(request: ModelRequest) -> Said:
        return "wrong"

    given: dict[str, Any] = {"store": store, "run": "r", "yield_finished": True}
    environment, problems = shop(system_prompt="Be quick."), [problem(1)]
    await all_of(environment, agent_of(), problems, **given)
    named = r"run='r' .* by another agent: 'buyer', and this is 'thief', such as r\.1\..* Take another name .*--run"
    others = {
        "model of 'buyer' was 'function:buying' and is now 'function:wrong'": agent_of(wrong),
        "system_prompt of 'buyer' was 'Be quick.' and is now 'Be quick.\\n\\nBe rude.'": agent_of(
            conf={"system_prompt": "Be rude."}
        ),
        "llm_config.llm_temperature of 'buyer' was None and is now 0.5": agent_of(conf={"llm_temperature": 0.5}),
    }
    for said, other in others.items():
        with pytest.raises(ConfigError, match=f"by another agent: {re.escape(said)}"):
            await all_of(environment, other, problems, **given)
    for taken in (problems, iter([problem(2)])):
        with pytest.raises(ConfigError, match=named):
            await all_of(environment, Agent("thief", model=FunctionModel(buying)), taken, **given)
    moved = agent_of(conf={"llm_base_url": "http://elsewhere:8000/v1", "llm_max_retries": 9})
    assert [rollout.recorded for rollout in await all_of(environment, moved, problems, **given)] == [True]


async def test_a_policy_is_the_same_wherever_it_was_read_from(store: TrajectoryStore) -> None:
    given: dict[str, Any] = {"store": store, "run": "r", "yield_finished": True}

    def asking(name: str, version: str) -> Agent:
        policy = small_policy().with_weights(small_policy().weights, version)
        return Agent("speaker", model=EmbeddedModel(policy, name, {"max_tokens": 2}))

    environment = Environment("letters", train=[Problem("1", "say 1")], rubric=lambda episode: 1.0)
    await all_of(environment, asking("here", "3-0a1b"), environment.problems(), **given)
    (found,) = await all_of(environment, asking("there", "3-0a1b"), environment.problems(), **given)
    assert found.recorded
    with pytest.raises(ConfigError, match="model of 'speaker' was 'embedded:here' and is now 'embedded:there'"):
        await all_of(environment, asking("there", "4-0a1b"), environment.problems(), **given)


async def test_labels_say_which_episode_a_trajectory_is(store: TrajectoryStore) -> None:
    train, test = split_by_hash(stream)
    environment = shop(train=train, test=test)
    problems = [*environment.problems("train", 2), *environment.problems("test", 1)]
    settings: dict[str, Any] = {"samples": 2, "store": store, "run": "baseline"}
    episodes = await all_of(environment, agent_of(), problems, labels={"experiment": "a"}, seed=3, **settings)
    for rollout in episodes:
        (summary,) = await store.query(Query(ids=(rollout.id,)))
        assert summary.labels == rollout.record.labels == {
            "run": "baseline", "problem": rollout.problem.id, "sample": str(rollout.sample), "attempt": "0",
            "seed": str(rollout.seed), "split": "test" if rollout.problem is problems[2] else "train",
            "experiment": "a",
        }  # fmt: skip
        assert (summary.session_id, summary.environment) == (None, "shop")
    assert await store.count(Query(labels={"run": "baseline", "problem": problems[0].id})) == 2
    assert await store.count(Query(labels={"split": "test"})) == 2


async def test_a_split_is_told_where_it_is_known(store: TrajectoryStore) -> None:
    settings: dict[str, Any] = {"store": store, "session_id": "ann"}
    mixed = [problem(1), problem(100), problem(50)]
    splits = {r.problem.id: r.record.labels.get("split") for r in await all_of(shop(), agent_of(), mixed, **settings)}
    assert splits == {"1": "train", "100": "test", "50": None}
    assert await store.count(Query(session="ann")) == 3
    (named,) = await all_of(shop(), agent_of(), [problem(50)], labels={"split": "validation"})
    assert named.record.labels["split"] == "validation"


@pytest.mark.parametrize(
    ("labels", "error", "text"),
    [
        ({"experiment": 7}, TaskError, r"labels\['experiment'\]=7; give text"),
        ({7: "a"}, TaskError, "a key of labels=7; give text"),
        (["a"], TaskError, r"labels=list\(...\); give a dict of text to text"),
        ({"sample": "0"}, ConfigError, r"labels\['sample'\]: rollouts gives this label itself; take another name"),
    ],
)
async def test_labels_are_text_and_names_are_free(labels: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        await all_of(shop(), agent_of(), [problem(1)], labels=labels)


async def test_what_only_has_the_label_of_a_run_is_no_episode_of_it(store: TrajectoryStore) -> None:
    settings: dict[str, Any] = {"store": store, "run": "r"}
    await Runners.run_task(shop().task(problem(7), agent_of(), labels={"run": "r"}), RunConfig(store=store))
    (first,) = await all_of(shop(), agent_of(), [problem(1)], **settings)
    (again,) = await all_of(shop(), agent_of(), [problem(1)], yield_finished=True, **settings)
    assert (again.id, again.recorded) == (first.id, True)


async def test_a_run_that_began_before_labels_is_gone_on_with_by_its_name(tmp_path: Path) -> None:
    store = open_store(str(shutil.copy(OLD_STORE, tmp_path / "old.db")))

    @tool(idempotent=True)
    def double(number: int) -> int:
        """Twice the number."""
        return 2 * number

    def exact(episode: ScoredEpisode) -> bool:
        return episode.text == episode.problem.answer

    problems = [Problem("7", "What is twice 21?", "It is 42."), Problem("of two words", "Twice 2?", "4")]
    environment = Environment("doubling", train=problems, tools=[double], rubric=Rubric(Part("exact", exact)))
    model = ScriptedModel([call("double", number=21), "It is 42."], "model-1")
    agent = Agent("solver", system_prompt="Use the tool.", model=model)
    settings: dict[str, Any] = {"store": store, "run": "nightly.1", "yield_finished": True}
    episodes = await all_of(environment, agent, problems, samples=3, **settings)
    assert sorted((r.problem.id, r.sample, r.recorded) for r in episodes) == [
        (each.id, sample, sample < 2) for each in problems for sample in range(3)
    ]
    assert await store.count(Query(labels={"run": "nightly.1"})) == 7
    with pytest.raises(ConfigError, match="of environment 'doubling', and this is 'shop'"):
        await all_of(shop(), agent_of(), [problem(1)], **settings)
    with pytest.raises(ConfigError, match="with another seed than 1"):
        await all_of(environment, agent, problems, seed=1, **settings)
    await store.close()


async def test_a_budget_ends_a_rollout_and_a_larger_one_goes_on(store: TrajectoryStore) -> None:
    def think(_: ModelRequest) -> ModelReply:
        return ModelReply(Message("assistant", "2"), usage=Usage(9, 1, 10))

    environment = Environment("ones", train=[Problem(str(n), "1 + 1?", 2, {"n": n}) for n in range(10)])
    agent = Agent("a", model=FunctionModel(think))
    problems, done = environment.problems("train"), list[RolloutProgress]()
    conf = RunConfig(store=store, max_tokens=40)
    with pytest.raises(BudgetUsed, match=r"run='r' \| 4 episodes have ended. RunConfig\(max_tokens=40\) reached"):
        await all_of(environment, agent, problems, run="r", conf=conf, on_progress=done.append)
    assert len(done) == 4
    conf = RunConfig(store=store, max_tokens=4000)
    assert len(await all_of(environment, agent, problems, run="r", conf=conf)) == 6
    assert await store.count(Query(labels={"run": "r"})) == 10
