"""The SQL of a list of runs, generated from `Summary`; what databases say differently is in a `Dialect`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import msgspec
from msgspec import Struct

from aworld.trajectory.query import Where
from aworld.trajectory.summary import COLUMNS

SEQ_BITS = 24
"""Bits of an event's key that are its place in the log: 16.7 million events a trajectory."""

COHORT = ("status", "agent", "environment", "model")
"""The columns whose combinations are counted: each combination is a row of `cohorts`, under which the trajectories that
have it are filed. Those that go on, and some that ended lately, are not filed yet: their `cohort` is NULL."""

QUICK = ("started_at", "score", "cost", "duration")
"""The columns by which a store of any size is ordered at once, each by an index `order_COLUMN`. Others are sorted."""

INDEXED = ("id", "task_id", "group_id", "session_id", "user_id", "version")
"""The columns of which one value is found by an index."""


class Dialect(Struct, frozen=True):
    """How one database says it. Each text is a template."""

    placeholder: str
    """Of the value of this number, from 1."""
    among: str
    """The column is one of the values of a JSON list."""
    contains: str
    """A text has a piece."""
    use_index: str
    """Makes the planner take an index; empty where it knows how the values are spread."""
    by_key: str
    """Makes a subselect give its keys in order, so that rows are looked up as they lie in the file."""
    labels: str
    """The labels of a row as a JSON object."""


SQLITE = Dialect(
    placeholder="?{}",
    among="{column} IN (SELECT value FROM json_each({value}))",
    contains="instr({column}, {value}) > 0",
    use_index=" INDEXED BY {}",
    by_key=" ORDER BY key LIMIT -1",
    labels="(SELECT json_group_object(name, value) FROM labels WHERE trajectory = t.key)",
)

STORED = tuple(COLUMNS)
FIGURES = ("updated_at", "steps", "events", "notes", "input_tokens", "output_tokens", "cost")
"""The columns that change with nearly every batch."""

OTHERS = (*(name for name in STORED if name not in FIGURES), "asked")
"""The other columns that follow from a tally."""

INSERT = (
    f"INSERT INTO trajectories ({', '.join((*FIGURES, *OTHERS))}, parent, first, owner, lease_until)"
    f" VALUES ({', '.join('?' * (len(FIGURES) + len(OTHERS)))}, ?, ?, ?, ?)"
)


@cache
def update(columns: Sequence[str]) -> str:
    """The statement that sets these columns of the row with a key."""
    return f"UPDATE trajectories SET {', '.join(f'{name} = ?' for name in columns)} WHERE key = ?"


def selected(dialect: Dialect, *more: str) -> str:
    """All that a summary is made of, more columns, and the labels as a JSON object."""
    return f"SELECT {', '.join([f't.{name}' for name in (*STORED, *more)])}, {dialect.labels} FROM trajectories AS t"


_labels = msgspec.json.Decoder(dict[str, str])


def fields_of(row: Sequence[Any]) -> dict[str, Any]:
    """The fields of the summary of a row, which begins with what it is made of and ends with the labels."""
    return {**dict(zip(STORED, row)), "labels": _labels.decode(row[-1])}


class Values:
    """The values of a statement, numbered as they are used."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self.values: list[Any] = []

    def add(self, value: Any) -> str:
        """The placeholder of a value."""
        self.values.append(value)
        return self.dialect.placeholder.format(len(self.values))

    def among(self, column: str, values: Iterable[Any]) -> str:
        """The condition that a column has one of the values."""
        return self.dialect.among.format(column=column, value=self.add(msgspec.json.encode(list(values)).decode()))

    def every(self, conditions: Iterable[Where]) -> list[str]:
        """The conditions on the row `t`."""
        return [self._of_label(where) if where.label else self.on(f"t.{where.field}", where) for where in conditions]

    def on_cohorts(self, conditions: Iterable[Where]) -> list[str]:
        """The conditions on a row of `cohorts`, where an empty text stands for what is unknown."""
        return [self.on(f"nullif({where.field}, '')", where) for where in conditions]

    def on(self, column: str, where: Where) -> str:
        """The condition on a column."""
        value: Any = where.value
        match where.op:
            case "in":
                return self.among(column, value)
            case "=" | "!=" if value is None and not where.label and not COLUMNS[where.field].optional:
                return "1 = 0" if where.op == "=" else "1 = 1"
            case "=" | "!=" if value is None:
                return f"{column} IS {'' if where.op == '=' else 'NOT '}NULL"
            case "!=":
                return f"({column} IS NULL OR {column} <> {self.add(value)})"
            case "contains":
                return self.dialect.contains.format(column=column, value=self.add(value))
            case "prefix":
                beyond = after_all(str(value))
                until = "" if beyond is None else f" AND {column} < {self.add(beyond)}"
                return f"{column} >= {self.add(value)}{until}"
            case _:
                return f"{column} {where.op} {self.add(value)}"

    def _of_label(self, where: Where) -> str:
        negative = (where.op == "!=") != (where.value is None and where.op in ("=", "!="))
        if where.value is None:
            value = ""
        else:
            positive = Where(where.field, "=", where.value) if where.op == "!=" else where
            value = f" AND {self.on('l.value', positive)}"
        # One value's entries lie together in this index, in the order of writing: half the time of the primary key.
        index = self.dialect.use_index.format("labels_of") if where.op == "=" and value else ""
        name = self.add(where.label)
        no = "NOT " if negative else ""
        return f"{no}EXISTS (SELECT 1 FROM labels AS l{index} WHERE l.trajectory = t.key AND l.name = {name}{value})"


def after_all(prefix: str) -> str | None:
    """The first text after all that begin with `prefix`; None if there is none."""
    for end in range(len(prefix), 0, -1):
        code = ord(prefix[end - 1]) + 1
        if code <= 0x10FFFF:
            return prefix[: end - 1] + chr(0xE000 if 0xD800 <= code <= 0xDFFF else code)
    return None


def all_of(conditions: Sequence[str]) -> str:
    """A WHERE with all the conditions."""
    return " WHERE " + " AND ".join(conditions) if conditions else ""
