"""Rollouts in worker processes: the same logs, labels and figures as on one event loop."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aworld.agents.llm_agent import Agent
from aworld.config import RunConfig
from aworld.config.conf import EngineName
from aworld.core.exceptions import BudgetUsed, ConfigError, TaskError
from aworld.environments import Environment, Problem, Report, Rollout, RolloutProgress, rollouts
from aworld.environments.adapters.gymnasium import gymnasium_environment
from aworld.environments.remote import RemoteEnvironment
from aworld.environments.sums import sums
from aworld.models import FunctionModel
from aworld.server import EnvironmentServer
from aworld.trajectory import Query, open_store
from tests.environments.hired import (
    at_the_top,
    buyer,
    hired_shop,
    leaving,
    mortal,
    poisoned,
    unmarked,
    walker,
    watching,
)


def conf(tmp_path: Path, **more: Any) -> RunConfig:
    return RunConfig(engine_name=EngineName.PROCESSES, worker_num=2, store=f"sqlite:///{tmp_path}/runs.db", **more)


async def collected(*given: Any, **settings: Any) -> dict[str, Rollout]:
    async with asyncio.timeout(60):
        return {rollout.id: rollout async for rollout in rollouts(*given, **settings)}


def plainly(rollout: Rollout) -> Any:
    """All of an episode that is not a time, a process or a random id."""
    record = rollout.record
    rewards = [(r.name, r.value, r.weight, r.source) for r in record.rewards if r.name != "process"]
    calls = [(call.agent, call.params) for call in record.calls.values()]
    return (
        rollout.problem, rollout.group_id, rollout.seed, rollout.status, rollout.answer, rollout.attempts,
        record.labels, record.task.name, record.task.session_id, record.started and record.started.environment,
        [type(event).__name__ for event in record.events], rewards, calls,
        [(node.message.role, node.message.text, node.origin) for node in record.messages.values()],
    )  # fmt: skip


async def test_the_same_logs_labels_and_results_as_on_one_event_loop(tmp_path: Path) -> None:
    environment = hired_shop(0)
    settings: dict[str, Any] = {"samples": 2, "seed": 5, "run": "same", "hooks": [watching], "session_id": "s"}
    told: list[tuple[int, int | None]] = []

    def note(progress: RolloutProgress) -> None:
        told.append((progress.done, progress.total))

    here = await collected(environment, buyer, environment.problems(), labels={"more": "x"}, **settings)
    there = await collected(
        environment, buyer, environment.problems(), labels={"more": "x"}, conf=conf(tmp_path), on_progress=note,
        **settings,
    )  # fmt: skip
    assert here.keys() == there.keys()
    assert {id: plainly(rollout) for id, rollout in here.items()} == {
        id: plainly(rollout) for id, rollout in there.items()
    }
    assert told[-1] == (20, 20)
    processes = {rollout.reward("process") for rollout in there.values()}
    assert len(processes) == 2
    assert os.getpid() not in processes
    store = open_store(f"sqlite:///{tmp_path}/runs.db")
    assert await store.count(Query(labels={"run": "same", "problem": "3"})) == 2
    await store.close()
    again = await collected(environment, buyer, environment.problems(), conf=conf(tmp_path), **settings)
    assert again == {}, "a second start does no finished episode twice"


async def test_the_episodes_of_a_killed_worker_are_run_anew_and_none_counts_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWORLD_TEST_MARK", str(tmp_path / "mark"))
    environment, report = hired_shop(0), Report(hired_shop(0))
    seen: list[str] = []
    async with asyncio.timeout(60):
        async for rollout in rollouts(
            environment, mortal, environment.problems(), samples=3, retries=0, run="killed", conf=conf(tmp_path)
        ):
            seen.append(rollout.id)
            report.add(rollout)
            assert Counter(type(event).__name__ for event in rollout.record.events)["Started"] == 1
    assert (tmp_path / "mark").exists(), "a worker was killed"
    assert len(seen) == len(set(seen)) == 30
    assert report.statuses == {"finished": 30}
    assert report.pass_at_1 is not None
    assert report.pass_at_1.value == 1.0
    store = open_store(f"sqlite:///{tmp_path}/runs.db")
    assert await store.count(Query(labels={"run": "killed"})) == 30
    await store.close()


async def test_an_episode_that_takes_down_every_worker_is_lost_and_the_others_go_on(tmp_path: Path) -> None:
    environment, report = hired_shop(0), Report(hired_shop(0))
    done = await collected(
        environment, poisoned, environment.problems(), retries=0, max_concurrency=1, conf=conf(tmp_path)
    )
    for rollout in done.values():
        report.add(rollout)
    assert report.statuses == {"finished": 9, "failed": 1}
    assert report.lost == 1
    (lost,) = [rollout for rollout in done.values() if rollout.lost]
    assert lost.problem.id == "3"
    assert "3 worker processes died" in str(lost.error)


async def test_an_environment_at_the_top_of_a_module_travels_by_its_name(tmp_path: Path) -> None:
    done = await collected(at_the_top, buyer, at_the_top.problems(), conf=conf(tmp_path))
    assert [rollout.status for rollout in done.values()] == ["finished"]


async def test_environments_of_others_travel_by_the_function_that_makes_them(tmp_path: Path) -> None:
    async with EnvironmentServer(hired_shop(0), port=0) as server:
        remote = await asyncio.to_thread(RemoteEnvironment, server.url)
        problems = await asyncio.to_thread(remote.problems, "train", 4)
        away = await collected(remote, buyer, problems, conf=conf(tmp_path))
    assert {rollout.score for rollout in away.values()} == {1.0}
    lake = gymnasium_environment("FrozenLake-v1", make={"is_slippery": False}, actions=("left", "down", "right", "up"))
    done = await collected(lake, walker, lake.problems("train", 4), conf=conf(tmp_path))
    assert [(r.status, r.score) for r in done.values()] == [("finished", 1.0)] * 4


async def test_the_embedded_policy_samples_the_same_tokens_there(tmp_path: Path) -> None:
    environment, policy = sums(), Agent("policy", model="embedded")
    problems = environment.problems("train", 3)
    here = await collected(environment, policy, problems, run="tokens")
    there = await collected(environment, policy, problems, run="tokens", conf=conf(tmp_path))

    def sampled(rollout: Rollout) -> list[Any]:
        return [call.tokens and call.tokens.completion_ids for call in rollout.record.calls.values()]

    assert {id: sampled(rollout) for id, rollout in here.items()} == {
        id: sampled(rollout) for id, rollout in there.items()
    }
    assert all(all(sampled(rollout)) for rollout in there.values())


async def test_what_cannot_travel_is_refused_before_anything_runs(tmp_path: Path) -> None:
    here = hired_shop(0)
    changed = hired_shop(0)
    changed.rubric = None
    strange = Problem("strange", "?", data={"seen": {1, 2}})
    cases: list[tuple[Environment, Any, list[Any], str]] = [
        (unmarked(), buyer, [], "mark the function that makes it"),
        (changed, buyer, [], "made it as it is now"),
        (hired_shop(np.int64(0)), buyer, [], "arguments of hired_shop are no plain data"),  # pyright: ignore[reportArgumentType]
        (here, Agent("made-here", model=FunctionModel(lambda _: "x")), [], "made-here"),
        (here, buyer, [strange], "Problem 'strange' cannot travel .* what JSON has"),
    ]
    for environment, agent, problems, message in cases:
        with pytest.raises(TaskError, match=message):
            await collected(environment, agent, problems, conf=conf(tmp_path))
    with pytest.raises(TaskError, match=r"cannot travel"):
        await collected(here, buyer, [], hooks=[type(watching)()], conf=conf(tmp_path))


async def test_a_maker_that_leaves_the_worker_is_misuse_in_words(tmp_path: Path) -> None:
    here = leaving(os.getpid())
    with pytest.raises(TaskError, match=r"could not begin the task: .*SystemExit: 3"):
        await asyncio.wait_for(collected(here, buyer, here.problems(), conf=conf(tmp_path)), 60)


async def test_a_store_or_a_progress_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    environment = hired_shop(0)
    with pytest.raises(ConfigError, match="two stores"):
        await collected(environment, buyer, [], store="sqlite:///other.db", conf=conf(tmp_path))
    with pytest.raises(ConfigError, match=r"conf\.on_progress"):
        await collected(environment, buyer, [], conf=conf(tmp_path, on_progress=print))
    with pytest.raises(ConfigError, match="a store that processes share"):
        await collected(environment, buyer, [], conf={"engine_name": "processes", "store": "memory:"})


async def test_a_budget_is_one_for_all_workers(tmp_path: Path) -> None:
    shop = hired_shop(0)
    problems = shop.problems("train")
    done: list[RolloutProgress] = []
    few = conf(tmp_path, max_tokens=100, max_concurrency=3)
    with pytest.raises(BudgetUsed, match=r"episodes have ended. RunConfig"):
        await collected(shop, buyer, problems, run="r", conf=few, on_progress=done.append)
    assert 1 <= len(done) < 10
    rest = await collected(shop, buyer, problems, run="r", conf=conf(tmp_path, max_tokens=10_000))
    assert len(rest) == 10 - len(done)
    assert all(rollout.score == 1.0 for rollout in rest.values())
