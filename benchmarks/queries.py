"""Speed of lists, counts and facets of the SQLite store, and what its indexes cost.

    python benchmarks/queries.py [--rows 1000000] [--keep FILE] [--json FILE]

Builds the list of a million trajectories directly (no events: a list does not read them), asks for pages in every
order with every filter, for counts and facets, and measures what a run costs the writer. Takes four minutes; the file
has 730 MB.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sqlite3
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aworld.core import event as ev
from aworld.core.message import Usage
from aworld.trajectory import Query, Where, open_store
from aworld.trajectory.query import cursor
from aworld.trajectory.sql import QUICK, STORED
from aworld.trajectory.sqlite_file import connect, connect_to_read
from aworld.trajectory.sqlite_reader import counted, faceted, listed

AGENTS = [f"agent-{n}" for n in range(10)]
ENVIRONMENTS = ["sums", "shop", "maze", "web", None]
MODELS = ["small", "large", "policy-a", "policy-b"]
STATUSES = ["finished"] * 88 + ["failed"] * 7 + ["limit_reached"] * 3 + ["timeout", "cancelled"]
BEGIN = 1_790_000_000.0
LIMIT_MS = 100.0


def rows(count: int) -> Iterator[tuple[dict[str, Any], dict[str, str]]]:
    """Trajectories as a busy store has them: two thirds are episodes of 200 rollouts, the rest are conversations."""
    draw = random.Random(7)
    for n in range(count):
        environment, agent = draw.choice(ENVIRONMENTS), draw.choice(AGENTS)
        status = "running" if n > count - 300 else draw.choice(STATUSES)
        started, duration = BEGIN + 2.0 * n + draw.random(), draw.expovariate(0.05)
        ended = status != "running"
        labels: dict[str, str] = {}
        if environment is not None:
            run, problem, sample = n * 200 // count, draw.randrange(1000), draw.randrange(8)
            labels = {"run": f"run-{run}", "problem": str(problem), "sample": str(sample), "attempt": "0"}
            labels["split"] = "test" if problem < 100 else "train"
            id, group = f"run-{run}.{problem}.{n:08x}.{sample}", f"run-{run}.{problem}"
        else:
            id, group = f"{draw.getrandbits(64):016x}", None
        score = None if environment is None and draw.random() < 0.8 else float(draw.random() < 0.4)
        summary: dict[str, Any] = dict.fromkeys(STORED) | {
            "id": id, "task_id": id, "task_name": f"task {n % 5000}", "group_id": group, "agent": agent,
            "version": f"{draw.randrange(400) * 99991:08x}", "environment": environment, "model": draw.choice(MODELS),
            "status": status, "score": score, "started_at": started, "updated_at": started + duration,
            "steps": draw.randrange(20), "events": 50, "notes": 0, "input_tokens": draw.randrange(50_000),
            "output_tokens": draw.randrange(5000), "answer": "so it is " * draw.randrange(40),
        }  # fmt: skip
        if environment is None:
            summary |= {"session_id": f"session-{n % 60_000}", "user_id": f"user-{n % 9000}"}
        if draw.random() < 0.3:
            summary["cost"] = draw.expovariate(20.0)
        if ended:
            summary |= {"finished_at": started + duration, "duration": duration}
        yield summary, labels


def build(path: Path, count: int) -> None:
    """Write the list. The indexes are made afterwards, which takes a tenth of the time."""
    connection = connect(str(path))
    connection.execute("PRAGMA cache_size = -500000")
    made = "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
    indexes = connection.execute(made).fetchall()
    connection.execute("BEGIN")
    for name, _ in indexes:
        connection.execute(f"DROP INDEX {name}")
    sizes: Counter[tuple[Any, ...]] = Counter()
    cohorts: dict[tuple[Any, ...], int] = {}
    some: list[tuple[Any, ...]] = []
    labelled: list[tuple[int, str, str]] = []
    columns, marks = ", ".join(STORED), ", ".join("?" * len(STORED))
    insert = f"INSERT INTO trajectories ({columns}, cohort, first) VALUES ({marks}, ?, 0)"
    for key, (summary, labels) in enumerate(rows(count), 1):
        cohort = tuple(summary[name] or "" for name in ("status", "agent", "environment", "model"))
        filed = None
        if summary["finished_at"] is not None:
            sizes[cohort] += 1
            filed = cohorts.setdefault(cohort, len(cohorts) + 1)
        some.append((*(summary[name] for name in STORED), filed))
        labelled += [(key, *label) for label in sorted(labels.items())]
        if len(some) == 10_000 or key == count:
            connection.executemany(insert, some)
            connection.executemany("INSERT INTO labels VALUES (?, ?, ?)", labelled)
            some, labelled = [], []
    connection.executemany(
        "INSERT INTO cohorts VALUES (?, ?, ?, ?, ?, ?)",
        [(key, *cohort, sizes[cohort]) for cohort, key in cohorts.items()],
    )
    for _, sql in indexes:
        connection.execute(sql)
    connection.execute("COMMIT")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


Asked = tuple[str, Callable[[sqlite3.Connection], Any]]


def filters(count: int) -> dict[str, dict[str, Any]]:
    """Each filter alone, with and without a match, rare and common."""
    middle = BEGIN + count
    return {
        "nothing": {}, "status": {"status": ("failed",)}, "agent": {"agent": "agent-3"},
        "no such agent": {"agent": "x"},
        "environment": {"environment": "shop"}, "model": {"model": "small"}, "version": {"version": "00030d3e"},
        "no such version": {"version": "zz"}, "session": {"session": "session-4"}, "user": {"user": "user-4"},
        "group": {"group": "run-7.7"}, "task": {"task": "x"}, "prefix, common": {"prefix": "run-"},
        "prefix, rare": {"prefix": "run-17.4"}, "id": {"ids": ("x",)}, "since, half": {"since": middle},
        "until, some": {"until": BEGIN + 2000}, "label run": {"labels": {"run": "run-150"}},
        "label problem": {"labels": {"problem": "7"}}, "label sample": {"labels": {"sample": "3"}},
        "label split": {"labels": {"split": "train"}}, "no such label": {"labels": {"problem": "x"}},
        "min_score": {"min_score": 0.5}, "no such score": {"min_score": 2.0},
        "cost": {"where": (Where("cost", ">", 0.3),)},
        "duration": {"where": (Where("duration", "<", 0.001),)},
        "two labels": {"labels": {"run": "run-9", "split": "test"}},
    }  # fmt: skip


SECOND: dict[str, dict[str, Any]] = {
    "": {}, "status": {"status": ("failed",)}, "rare status": {"status": ("running",)}, "agent": {"agent": "agent-5"},
    "environment": {"environment": "maze"}, "label": {"labels": {"sample": "5"}},
    "label of no row": {"labels": {"run": "x"}}, "status, agent, model": {
        "status": ("failed", "timeout"), "agent": "agent-1", "model": "large"},
}  # fmt: skip
ORDERS = ("newest", "oldest", *(sign + column for column in QUICK if column != "started_at" for sign in ("", "-")))


def both(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    labels = {**one.get("labels", {}), **other.get("labels", {})}
    return {**one, **other, "labels": labels}


class Table:
    """What was measured: for each kind of question its median, its slowest and which that was."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.lines: list[dict[str, Any]] = []
        self.slow: list[tuple[float, str]] = []
        print(f"{'':44} {'asked':>6} {'median ms':>10} {'slowest':>8}")

    def add(self, kind: str, asked: list[Asked]) -> None:
        times: list[tuple[float, str]] = []
        for name, ask in asked:
            best = min(self._time(ask) for _ in range(2))
            times.append((best, name))
        worst, name = max(times)
        self.slow += [(took, f"{kind}: {what}") for took, what in times if took > LIMIT_MS]
        median = statistics.median(took for took, _ in times)
        figures = {"asked": len(times), "median_ms": round(median, 2), "slowest_ms": round(worst, 1)}
        self.lines.append({"what": kind, **figures, "slowest": name})
        print(f"{kind:44} {len(times):>6} {median:>10.2f} {worst:>8.1f}  {name}", flush=True)

    def _time(self, ask: Callable[[sqlite3.Connection], Any]) -> float:
        begun = time.perf_counter()
        ask(self.connection)
        return 1000 * (time.perf_counter() - begun)


def page(**fields: Any) -> Callable[[sqlite3.Connection], Any]:
    query = Query(limit=50, **fields)
    return lambda connection: listed(connection, "", query)


def deep(order: str, share: float, count: int, **fields: Any) -> Asked:
    """A page that begins at a place inside."""
    query = Query(order=order, limit=50, **fields)
    values = {
        "newest": BEGIN + 2 * count * share,
        "-score": None if share > 0.8 else 0.0,
        "-cost": 0.01,
        "duration": 20.0,
    }
    after = cursor(query, (values[order], int(count * share)))
    return f"{order} after {share:.0%} {sorted(fields)}", page(order=order, after=after, **fields)


def ask_all(table: Table, count: int) -> None:
    one = filters(count)
    for second, more in SECOND.items():
        table.add(f"pages, one filter{' and ' + second if second else ''}", [
            (f"{name}, {order}", page(order=order, **both(fields, more)))
            for name, fields in one.items() for order in ORDERS
        ])  # fmt: skip
    table.add("pages by a cursor inside", [
        deep(order, share, count, **fields)
        for order in ("newest", "-score", "-cost", "duration") for share in (0.1, 0.5, 0.9)
        for fields in ({}, {"agent": "agent-2"}, {"labels": {"split": "test"}}, {"status": ("finished",)})
    ])  # fmt: skip
    table.add("pages by an offset of 90 %", [("newest", page(offset=count * 9 // 10))])
    for second, more in SECOND.items():
        queries = {name: Query(**both(fields, more)) for name, fields in one.items()}
        table.add(f"counts up to 10,000{', ' + second if second else ''}", [
            (name, lambda connection, query=query: counted(connection, query, 10_000))
            for name, query in queries.items()
        ])  # fmt: skip
    fields = ["status", "agent", "environment", "model", "version", "labels.split", "labels.run", "labels.problem"]
    table.add("facets, one field", [
        (f"{field} of {name}", lambda connection, field=field, query=Query(**more): faceted(connection, [field], query))
        for field in fields for name, more in one.items()
    ])  # fmt: skip


def sizes(connection: sqlite3.Connection, count: int) -> None:
    """Bytes a trajectory that each index takes."""
    try:
        found = connection.execute("SELECT name, sum(pgsize) FROM dbstat GROUP BY name ORDER BY 2 DESC").fetchall()
    except sqlite3.Error:
        return  # this SQLite was built without the table of sizes
    print("bytes a trajectory: " + ", ".join(f"{name} {size / count:.0f}" for name, size in found if size > count))


async def run_costs(path: Path, runs: int = 2000) -> dict[str, float]:
    """CPU microseconds of the writer for a run's beginning and its end, each awaited alone."""
    store = open_store(str(path))
    draw = random.Random(time.time_ns())  # other ids than those of an earlier measurement
    spent = {"begin": 0.0, "step": 0.0, "end": 0.0}

    async def write(what: str, id: str, events: list[ev.Event]) -> None:
        begun = time.process_time()
        await store.append(id, events)
        spent[what] += time.process_time() - begun

    for n in range(runs):
        id, at = f"new-{draw.getrandbits(64):x}", BEGIN + 1e8 + n
        task = ev.TaskInfo(id, "new", f"s-{n % 99}", "u", f"g-{n // 8}")
        started = ev.Started(seq=0, at=at, trajectory_id=id, task=task, agents={"a": {}})
        await write("begin", id, [started, ev.AgentStarted(seq=1, at=at, activation=0, agent="a")])
        for step in range(2):
            called = ev.ModelCalled(
                seq=2 + step, at=at, step=step, agent="a", model="m", usage=Usage(9, 9), started=at, ended=at
            )
            await write("step", id, [called])
        ending = ev.Finished(seq=5, at=at + draw.random() * 50, status="finished", answer="x" * 100)
        await write("end", id, [ev.Rewarded(seq=4, at=at, value=float(draw.random() < 0.5)), ending])
    await store.close()
    return {what: round(1e6 * seconds / runs, 1) for what, seconds in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="trajectories of the list")
    parser.add_argument("--keep", type=Path, help="where the file stays, and is taken from if it is there")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.keep or Path(folder) / "queries.db"
        if not path.exists():
            begun = time.perf_counter()
            build(path, arguments.rows)
            took = time.perf_counter() - begun
            print(f"{arguments.rows:,} trajectories, {path.stat().st_size / 1e6:,.0f} MB, {took:.0f} s")
        connection = connect_to_read(str(path))
        table = Table(connection)
        ask_all(table, arguments.rows)
        sizes(connection, arguments.rows)
        connection.close()
        costs = asyncio.run(run_costs(path))
        print(f"CPU µs of a run alone in its store: {costs}")
    print(f"{len(table.slow)} of {sum(line['asked'] for line in table.lines)} take more than {LIMIT_MS:.0f} ms")
    for took, what in sorted(table.slow, reverse=True)[:40]:
        print(f"  {took:8.1f} ms  {what}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"tables": table.lines, "run_us": costs}, indent=2) + "\n")


if __name__ == "__main__":
    main()
