"""Rewards of a rubric, and everything that can go wrong in a scorer."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from fractions import Fraction
from typing import Any

import pytest

from aworld.core.event import Rewarded
from aworld.core.exceptions import ConfigError
from aworld.core.rows import rows
from aworld.core.trajectory import Trajectory
from aworld.environments import Part, Rubric, ScoredEpisode
from aworld.runner import Runners
from aworld.runners.replay import replay
from aworld.trajectory import TrajectoryStore
from aworld.trajectory.atif import atif
from aworld.trajectory.sequences import sequences
from tests.environments.shop import agent_of, correct, problem, run, shop


async def test_parts_become_rewards_and_their_weighted_sum_the_score(store: TrajectoryStore) -> None:
    async def short(episode: ScoredEpisode) -> float:
        await asyncio.sleep(0)
        return 1 / len(episode.text)

    environment = shop(
        Part("correct", correct), Part("short", short, weight=0.5), Part("figure", lambda e: 7, weight=0)
    )
    response = await run(environment.task(problem(4), agent_of()), store=store)
    given = [(r.name, r.value, r.weight, r.source, r.step) for r in response.record.rewards]
    assert given == [
        ("correct", 1.0, 1.0, "rubric", None),
        ("short", 0.5, 0.5, "rubric", None),
        ("figure", 7.0, 0.0, "rubric", None),
    ]
    assert response.record.score == 1.25
    stored = Trajectory.of(response.id, await store.read(response.id))
    assert stored.rewards == response.record.rewards
    assert (await store.query())[0].score == 1.25


async def test_rewards_are_durable_with_the_end(store: TrajectoryStore) -> None:
    """They are written before the end, in one piece with it: who sees the end sees the rewards."""
    response = await run(shop().task(problem(1), agent_of()), store=store)
    kinds = [type(event).__name__ for event in await store.read(response.id)]
    assert kinds[-2:] == ["Rewarded", "Finished"]


@pytest.mark.parametrize("value", [True, 1, 1.0, Fraction(1)])
async def test_what_counts_as_a_number(value: Any) -> None:
    record = (await run(shop(Part("part", lambda _: value)).task(problem(1), agent_of()))).record
    assert (record.rewards[0].value, record.score) == (1.0, 1.0)


def explode(episode: ScoredEpisode) -> float:
    raise LookupError("no such key")


def gives(value: Any) -> Any:
    def scorer(episode: ScoredEpisode) -> Any:
        return value

    return scorer


def leave(episode: ScoredEpisode) -> float:
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("scorer", "error"),
    [
        (explode, "LookupError: no such key"),
        (leave, "3"),
        (gives(math.nan), "gave nan, which is no finite number"),
        (gives(math.inf), "gave inf, which is no finite number"),
        (gives("1.0"), "gave '1.0', which is no finite number"),
        (gives(None), "gave None, which is no finite number"),
        (gives([1.0]), "gave [1.0], which is no finite number"),
    ],
)
@pytest.mark.parametrize("inline", [True, False])
async def test_a_scorer_that_fails_is_recorded_and_the_score_unknown(
    scorer: Any, error: str, inline: bool, store: TrajectoryStore
) -> None:
    parts = (Part("good", lambda _: 1.0), Part("bad", scorer, inline=inline))
    response = await run(shop(*parts).task(problem(1), agent_of()), store=store)
    assert response.status == "finished"
    good, bad = response.record.rewards
    assert (good.value, good.error) == (1.0, None)
    assert bad.value is None
    assert error in (bad.error or "")
    assert response.record.score is None
    assert (await store.query())[0].score is None
    assert Trajectory.of(response.id, await store.read(response.id)).score is None


async def test_scorers_that_hang_block_neither_the_loop_nor_each_other() -> None:
    never = threading.Event()
    beats = 0

    def hang(episode: ScoredEpisode) -> float:
        never.wait(30)
        return 1.0

    async def stubborn(episode: ScoredEpisode) -> float:
        while True:  # ignores its first cancellation
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                await asyncio.sleep(0.2)
                raise

    async def beat() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0.01)
            beats += 1

    heart = asyncio.create_task(beat())
    environment = shop(Part("hang", hang, timeout=0.1), Part("stubborn", stubborn, timeout=0.1), Part("good", correct))
    began = time.monotonic()
    record = (await run(environment.task(problem(1), agent_of()))).record
    assert time.monotonic() - began < 10
    heart.cancel()
    never.set()
    assert beats >= 3
    assert [r.value for r in record.rewards] == [None, None, 1.0]
    assert record.rewards[0].error == record.rewards[1].error == "No value within 0.1 s."


async def test_a_failed_figure_of_weight_zero_does_not_matter() -> None:
    record = (
        await run(shop(Part("correct", correct), Part("figure", explode, weight=0)).task(problem(1), agent_of()))
    ).record
    assert record.score == 1.0
    assert record.rewards[1].value is None


async def test_a_later_reward_of_the_same_name_makes_the_score_known(store: TrajectoryStore) -> None:
    """A judge was down; its part is given by hand, from a process that knows the run by its log only."""
    response = await run(
        shop(Part("good", lambda _: 1.0), Part("judge", explode)).task(problem(1), agent_of()), store=store
    )
    id = response.id
    del response
    await Runners.reward(id, 0.25, name="other", store=store)
    assert (await store.query())[0].score is None
    await Runners.reward(id, 0.5, name="judge", store=store)
    assert (await store.query())[0].score == 1.75
    assert Trajectory.of(id, await store.read(id), await store.notes(id)).score == 1.75


async def test_readers_of_rewards_show_a_failed_one(store: TrajectoryStore) -> None:
    record = (await run(shop(Part("good", lambda _: 1.0), Part("bad", explode)).task(problem(1), agent_of()))).record
    row = rows(record)[-1]["reward"]
    assert row["score"] is None
    assert row["rewards"] == [
        {"name": "good", "value": 1.0, "weight": 1.0, "source": "rubric"},
        {"name": "bad", "value": None, "weight": 1.0, "source": "rubric", "error": "LookupError: no such key"},
    ]
    extra = next(iter(atif(record)))["extra"]
    assert extra["rewards"][1] == {
        "name": "bad",
        "weight": 1.0,
        "source": "rubric",
        "error": "LookupError: no such key",
    }
    assert "score" not in extra
    assert all(row.score is None for row in sequences(record).rows)
    assert (await replay(record)).same


async def test_a_run_that_did_not_finish_is_scored_unless_it_was_cancelled() -> None:
    seen: list[ScoredEpisode] = []

    def note(episode: ScoredEpisode) -> float:
        seen.append(episode)
        return 0.0

    environment = shop(Part("note", note, inline=True), conf={"max_steps": 1})
    response = await run(environment.task(problem(1), agent_of()))
    assert (response.status, response.record.score) == ("limit_reached", 0.0)
    assert (seen[0].answer, seen[0].text, seen[0].status) == (None, "", "limit_reached")

    async def slow(request: Any) -> str:
        await asyncio.sleep(30)
        return "never"

    late = await run(shop(Part("note", note), conf={"timeout": 0.05}).task(problem(1), agent_of(slow)))
    assert (late.status, late.record.score) == ("timeout", 0.0)

    task = shop(Part("note", note)).task(problem(1), agent_of(slow))
    running = asyncio.create_task(run(task))
    await asyncio.sleep(0.05)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert len(seen) == 2


async def test_cancelling_a_run_that_is_being_scored_ends_it_as_cancelled(store: TrajectoryStore) -> None:
    begun = asyncio.Event()

    async def slow(episode: ScoredEpisode) -> float:
        begun.set()
        await asyncio.sleep(30)
        return 1.0

    task = shop(Part("slow", slow)).task(problem(1), agent_of())
    running = asyncio.create_task(run(task, store=store))
    await begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    summary = (await store.query())[0]
    assert (summary.status, summary.score) == ("cancelled", None)


def pair(one: ScoredEpisode, other: ScoredEpisode) -> float:
    return 1.0


def scaled(episode: ScoredEpisode, scale: float = 1.0, *more: float) -> float:
    return scale


def test_a_rubric_that_cannot_work_is_refused() -> None:
    with pytest.raises(ConfigError, match="Two parts of the rubric are named 'correct'"):
        Rubric(correct, Part("correct", correct))
    with pytest.raises(ConfigError, match=r"Rubric\(\) has no part"):
        Rubric()
    with pytest.raises(ConfigError, match="a function of the episode is wanted; got 3"):
        Rubric(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match=r"Part 'x', its scorer: .*one argument, the episode"):
        Part("x", pair)  # pyright: ignore[reportArgumentType]
    assert Part("x", scaled).name == "x"
    with pytest.raises(ConfigError, match="Part 'x', its scorer: a function of the episode is wanted"):
        Part("x", 3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="weight must be a finite number"):
        Part("x", correct, weight=math.nan)
    with pytest.raises(ConfigError, match="timeout=0: a number, more than zero"):
        Part("x", correct, timeout=0)


def test_rewards_of_version_1_are_read() -> None:
    """What the first version of the schema wrote has neither null values nor errors."""
    from aworld.core.event import decode_event

    old = b'{"kind":"reward","seq":4,"at":1.5,"value":0.5,"name":"progress","weight":2.0,"step":0}'
    assert decode_event(old) == Rewarded(seq=4, at=1.5, value=0.5, name="progress", weight=2.0, step=0)
