"""Queries as data: conditions, orders, cursors, counts and facets, in memory and in SQLite alike."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aworld.core import event as ev
from aworld.core.exceptions import ConfigError, TaskError
from aworld.core.message import Usage
from aworld.trajectory import MemoryStore, Query, TrajectoryStore, Where, open_store
from aworld.trajectory.query import COLUMNS, MOST, Facet
from aworld.trajectory.sql import after_all
from aworld.trajectory.sqlite import SQLiteStore
from aworld.trajectory.summary import Summary, Tally

COUNT = 60


def run(number: int) -> list[ev.Event]:
    """A run of which each column has a few values, and is sometimes unknown."""
    draw = random.Random(number)
    labels = {"problem": str(number % 5), "split": "test" if number % 7 == 0 else "train"} if number % 3 else {}
    id, at = f"run-{number:03}", 1000.0 + number // 2  # two begin at each moment
    task = ev.TaskInfo(id if number % 4 else "shared", f"name-{number % 6}", None, f"user-{number % 3}", None, labels)
    environment = draw.choice(["shop", None])
    agent = draw.choice(["solver", "judge"])
    started = ev.Started(
        seq=0, at=at, trajectory_id=id, task=task, agents={agent: {}}, definitions={agent: f"{number % 4}abc"},
        environment=environment,
    )  # fmt: skip
    model = draw.choice(["small", "large"])
    cost = draw.choice([None, 0.5, 2.0])
    events: list[ev.Event] = [
        started,
        ev.AgentStarted(seq=1, at=at, activation=0, agent=agent),
        ev.ModelCalled(
            seq=2, at=at, step=0, agent=agent, model=model, usage=Usage(5, 2, cost=cost), started=at, ended=at
        ),
    ]
    if number % 5 != 4:
        status: Any = draw.choice(["finished", "failed"])
        events.append(ev.Finished(seq=3, at=at + draw.randrange(4), status=status, answer="yes", error=None))
    if number % 2:
        events.append(ev.Rewarded(seq=len(events), at=at, value=draw.choice([0.0, 1.0])))
    return events


SUMMARIES = [Tally.of(f"run-{number:03}", run(number)).summary() for number in range(COUNT)]


@pytest.fixture(params=["memory", "sqlite", "sqlite, filed"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[TrajectoryStore]:
    """A store with all runs; filed ones are found in other indexes."""
    kind: str = request.param
    path = str(tmp_path / "runs.db")
    store = MemoryStore() if kind == "memory" else SQLiteStore(path)
    for number in range(COUNT):
        await store.append(f"run-{number:03}", run(number))
    if "filed" in kind:
        await store.close()
        store = SQLiteStore(path)
        await store.append("run-058", [ev.Rewarded(seq=len(run(58)), at=1.0, value=1.0)])
    else:
        await store.append("run-058", [ev.Rewarded(seq=len(run(58)), at=1.0, value=1.0)])
    yield store
    await store.close()


FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "status": st.sampled_from(("finished", "failed", "running")),
    "agent": st.sampled_from(("solver", "judge")),
    "environment": st.just("shop"),
    "model": st.sampled_from(("small", "large")),
    "version": st.sampled_from(("0abc", "1abc")),
    "user_id": st.sampled_from(("user-0", "user-1")),
    "task_id": st.sampled_from(("shared", "run-001")),
    "task_name": st.just("name-2"),
    "id": st.sampled_from(("run-00", "run-001", "run-031")),
    "labels.problem": st.sampled_from(("1", "4")),
    "labels.split": st.sampled_from(("test", "train")),
    "score": st.sampled_from((0.0, 1.0)),
    "cost": st.sampled_from((0.5, 1.0)),
    "duration": st.sampled_from((0, 1.0, 2.0)),
    "started_at": st.sampled_from((1005.0, 1020.0)),
    "steps": st.just(1),
}


@st.composite
def wheres(draw: st.DrawFn) -> Where:
    field = draw(st.sampled_from(sorted(FIELDS)))
    text = field.startswith("labels.") or COLUMNS[field].type is str
    op: Any = draw(st.sampled_from(("=", "!=", "in", "<", ">=", *(("prefix", "contains") if text else ()))))
    value: Any = draw(FIELDS[field])
    if op == "in":
        return Where(field, op, tuple(draw(st.lists(FIELDS[field], max_size=2))))
    if op in ("=", "!=") and draw(st.booleans()):
        return Where(field, op, None)
    return Where(field, op, value[: draw(st.integers(0, len(value)))] if op == "prefix" else value)


queries = st.builds(
    Query,
    where=st.lists(wheres(), max_size=3).map(tuple),
    order=st.sampled_from(("newest", "oldest", "best", "worst", *(s + c for c in COLUMNS for s in ("", "-")))),
    limit=st.none() | st.integers(0, 9),
    offset=st.sampled_from((0, 0, 3, 17, 40, 59, 99)),
)


@pytest.fixture(scope="module")
def stores() -> Any:
    """One store in memory and two in files, that are only read."""
    with tempfile.TemporaryDirectory() as folder:

        async def fill(store: Any) -> Any:
            for number in range(COUNT):
                await store.append(f"run-{number:03}", run(number))
            await store.flush()
            return store

        async def make() -> list[Any]:
            filed = await fill(SQLiteStore(f"{folder}/filed.db"))
            await filed.close()
            return [await fill(MemoryStore()), await fill(SQLiteStore(f"{folder}/b.db")), open_store(filed.url)]

        made = asyncio.run(make())
        yield made
        for store in made:
            asyncio.run(store.close())


@settings(max_examples=300, deadline=None)
@given(query=queries)
def test_every_query_finds_the_same_in_memory_and_in_a_file(stores: list[Any], query: Query) -> None:
    async def ask(store: Any) -> Any:
        page = await store.query(query)
        after = []
        if page:
            after = await store.query(msgspec.structs.replace(query, after=page[-1].id, offset=0))
        if page.next is not None:
            assert after == await store.query(msgspec.structs.replace(query, after=page.next, offset=0))
        fields = ["status", "environment", "version", "labels.problem"]
        return (
            page,
            await store.count(query),
            await store.count(query, most=5),
            await store.facets(fields, query),
            after,
        )

    first, *others = [asyncio.run(ask(store)) for store in stores]
    for other in others:
        assert other == first


@pytest.mark.parametrize("order", ["newest", "oldest", "best", "worst", "-cost", "duration", "steps", "-model"])
@pytest.mark.parametrize("more", [{}, {"agent": "solver"}, {"labels": {"split": "train"}}, {"min_score": 0.0}])
async def test_pages_by_cursor_add_up_to_the_whole(store: TrajectoryStore, order: str, more: dict[str, Any]) -> None:
    whole = await store.query(Query(order=order, **more))
    assert len(whole) == await store.count(Query(**more))
    paged: list[Summary] = []
    after = None
    while True:
        page = await store.query(Query(order=order, limit=4, after=after, **more))
        paged += page
        after = page.next
        if after is None:
            break
    assert paged == whole
    by_offset = [await store.query(Query(order=order, limit=4, offset=first, **more)) for first in range(0, COUNT, 4)]
    assert [summary for page in by_offset for summary in page] == whole


async def test_unknown_values_come_last_in_either_direction(store: TrajectoryStore) -> None:
    for order in ("cost", "-cost"):
        costs = [summary.cost for summary in await store.query(Query(order=order))]
        known = [cost for cost in costs if cost is not None]
        assert costs == known + [None] * (COUNT - len(known))
        assert known == sorted(known, reverse=order == "-cost")


async def test_a_cursor_outlives_its_row(store: TrajectoryStore) -> None:
    query = Query(order="best", limit=7)
    first = await store.query(query)
    rest = await store.query(Query(order="best", after=first.next))
    await store.delete(first[-1].id)
    assert await store.query(Query(order="best", after=first.next)) == rest
    with pytest.raises(TaskError, match="no trajectory"):
        await store.query(Query(order="best", after=first[-1].id))


async def test_a_cursor_belongs_to_its_query(store: TrajectoryStore) -> None:
    page = await store.query(Query(order="best", limit=2, agent="solver"))
    assert page.next is not None
    for other in (Query(order="worst", agent="solver"), Query(order="best"), Query(order="best", agent="judge")):
        with pytest.raises(ConfigError, match="the cursor of another query; keep order and conditions"):
            await store.query(msgspec.structs.replace(other, after=page.next))
    with pytest.raises(ConfigError, match="no cursor of a page"):
        await store.query(Query(after="cursor:xyz"))
    assert (await store.query(Query(limit=COUNT + 1))).next is None


WRONG: list[tuple[Any, dict[str, Any], str]] = [
    (Query, {"order": "-cots"}, r"order='-cots' is not known; did you mean 'cost'"),
    (Query, {"status": "failed"}, r"Query: status='failed'; give a list of one of 'finished', 'failed'"),
    (Query, {"status": ("done",)}, r"Query: status\[0\]='done'; give one of 'finished'"),
    (Query, {"labels": {"problem": 7}}, r"Query: labels\['problem'\]=7; give text"),
    (Query, {"labels": 7}, r"Query: labels=7; give a dict of text to text"),
    (Query, {"where": Where("score", ">", 1)}, r"Query: where=Where\(...\); give a list of a Where"),
    (Query, {"min_score": "high"}, r"Query: min_score='high'; give a finite number or None"),
    (Query, {"ids": (1,)}, r"Query: ids\[0\]=1; give text"),
    (Query, {"ids": "run-1"}, r"Query: ids='run-1'; give a list of text or None"),
    (Query, {"limit": "5"}, r"Query: limit='5'; give a whole number or None"),
    (Query, {"limit": -1}, r"Query: Expected `int` >= 0 - at `\$.limit`"),
    (Query, {"offset": 1.5}, r"Query: offset=1.5; give a whole number"),
    (Query, {"order": 5}, r"Query: order=5; give text"),
    (Query, {"order": "nonsense"}, r"order='nonsense' is not known; did you mean"),
    (Query, {"agent": "a\ud800"}, r"agent has a lone surrogate"),
    (Where, {"field": "scor", "op": ">", "value": 1}, r"field='scor' is not known; did you mean 'score'"),
    (Where, {"field": "score", "op": "~", "value": 1}, r"Where: op='~'; give one of '=', '!=', '<'"),
    (Where, {"field": "score", "op": ">", "value": "1"}, r"score > '1' \| score is a number"),
    (Where, {"field": "score", "op": ">", "value": None}, r"score > None \| score is a number"),
    (Where, {"field": "score", "op": "=", "value": True}, r"score = True \| score is a number"),
    (Where, {"field": "score", "op": "<", "value": float("nan")}, r"score is a number"),
    (Where, {"field": "steps", "op": ">", "value": 2**63}, r"a whole one at most 9223372036854775807"),
    (Where, {"field": 5, "op": "=", "value": 1}, r"Where: field=5; give text"),
    (Query, {"limit": 2**63}, r"limit"),
    (Where, {"field": "agent", "op": "=", "value": 7}, r"agent = 7 \| agent is text without lone surrogates"),
    (Where, {"field": "steps", "op": "prefix", "value": 1}, r"a number has none; use = != <"),
    (Where, {"field": "agent", "op": "in", "value": "solver"}, r"agent in 'solver' \| give a list of values"),
]


@pytest.mark.parametrize(("kind", "fields", "says"), WRONG)
def test_what_cannot_be_asked_is_said(kind: Any, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        kind(**fields)


async def test_facets(store: TrajectoryStore) -> None:
    counts = await store.facets(["status", "labels.split"], Query(user="user-1"))
    chosen = [summary for summary in SUMMARIES if summary.user_id == "user-1"]
    for facet in counts["status"]:
        assert facet == Facet(facet.value, sum(s.status == facet.value for s in chosen))
    assert {facet.value for facet in counts["labels.split"]} == {"train", "test"}
    ordered = [facet.count for facet in counts["status"]]
    assert ordered == sorted(ordered, reverse=True)
    with pytest.raises(ConfigError, match="facet='statu' is not known; did you mean 'status'"):
        await store.facets(["statu"])


async def test_counting_ends_where_it_is_told(store: TrajectoryStore) -> None:
    assert await store.count(most=10) == 10
    assert await store.count(Query(labels={"split": "train"}), most=3) == 3
    assert await store.count(Query(agent="nobody"), most=3) == 0


async def test_facets_of_many_are_capped(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "runs.db")
    for number in range(MOST + 5):
        labels = {"split": "train" if number else "test"}
        started = ev.Started(seq=0, at=1.0, trajectory_id=f"{number}", task=ev.TaskInfo(f"{number}", labels=labels))
        store.append(f"{number}", [started], wait=False)
    await store.flush()
    assert await store.facets(["status", "labels.split"]) == {
        "status": [Facet("running", MOST, more=True)],
        "labels.split": [Facet("train", MOST, more=True), Facet("test", 1)],
    }
    assert await store.count(most=MOST) == MOST
    await store.close()


def test_the_text_after_all_that_begin_with_a_prefix() -> None:
    assert after_all("run-") == "run."
    assert after_all("a\U0010ffff") == "b"
    assert after_all("\U0010ffff") is None
    assert after_all("") is None
    assert after_all("\ud7ff") == "\ue000"


async def test_the_list_keeps_up_with_runs_that_change_after_they_were_filed(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "runs.db")
    await store.append("run", run(1))
    await store.close()  # files it
    store = SQLiteStore(tmp_path / "runs.db")
    before = (await store.query())[0]
    assert await store.facets(["agent"]) == {"agent": [Facet(str(before.agent), 1)]}
    await store.append("run", [ev.AgentStarted(seq=before.events, at=5000.0, activation=0, agent="another")])
    assert await store.facets(["agent"]) == {"agent": [Facet("another", 1)]}
    assert await store.count(Query(agent=before.agent)) == 0
    assert [summary.updated_at for summary in await store.query(Query(order="best", agent="another"))] == [5000.0]
    await store.delete("run")
    assert await store.count() == 0
    assert await store.facets(["status", "labels.split"]) == {"status": [], "labels.split": []}
    await store.close()
