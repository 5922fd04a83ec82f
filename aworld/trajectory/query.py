"""Which trajectories are meant, in which order, and from where on.

A query is data: stores of tables make SQL of it, stores in memory ask `select`. The rules are the same. What is not
known matches no comparison and stands last in either direction; `!=` is the opposite of `=`, so it matches the
unknown. A page goes on after a *cursor*, which holds the place of its last row and not its id: that row may be deleted
meanwhile.
"""

from __future__ import annotations

import hashlib
import logging
import math
import operator
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, cast

import msgspec
from msgspec import Meta, Struct, ValidationError, convert, defstruct
from msgspec.structs import fields, replace

from aworld.core.checks import StructDoor, hint, is_text, one_of
from aworld.core.event import Event, Note, Status
from aworld.core.exceptions import ConfigError, StoreError, TaskError
from aworld.trajectory.summary import COLUMNS, Summary

logger = logging.getLogger(__name__)

Op: TypeAlias = Literal["=", "!=", "<", "<=", ">", ">=", "in", "prefix", "contains"]

LABEL = "labels."
"""What a field begins with that is a label, such as `labels.problem`."""

MOST = 10_000
"""Where the counts of facets end: what is shown of more is `10,000+`."""

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
    "prefix": str.startswith, "contains": operator.contains,
}  # fmt: skip

LARGEST = 2**63 - 1
"""The largest whole number that a table holds."""


class Where(Struct, frozen=True, metaclass=StructDoor):
    """A condition on a column of `Summary` or on a label (`labels.problem`).

    The value has the type of the column; with `in` it is a list of such, with `=` and `!=` it may be None, the unknown.
    Raises `ConfigError`.
    """

    field: str
    op: Op
    value: Any

    def __post_init__(self) -> None:
        kind = str if self.label else COLUMNS[one_of("field", self.field, COLUMNS)].type
        if self.op in ("prefix", "contains") and kind is not str:
            raise ConfigError(f"{self.field} {self.op} {self.value!r} | a number has none; use = != < <= > >= or in")
        if self.op == "in":
            if not isinstance(self.value, list | tuple | set | frozenset):
                raise ConfigError(f"{self.field} in {self.value!r} | give a list of values")
            for value in cast("Iterable[Any]", self.value):
                _check_type(self, kind, value)
        elif self.value is not None or self.op not in ("=", "!="):
            _check_type(self, kind, self.value)

    @property
    def label(self) -> str | None:
        """The name of the label that is meant, None where it is a column."""
        return self.field.removeprefix(LABEL) if self.field.startswith(LABEL) else None

    def holds(self, value: Any) -> bool:
        """Whether the condition holds for this value of its field."""
        if self.op == "in":
            return value in self.value
        if self.op in ("=", "!="):
            return (value == self.value) == (self.op == "=")
        return value is not None and _COMPARE[self.op](value, self.value)


def _check_type(where: Where, kind: type, value: Any) -> None:
    if kind is str:
        fits = is_text(value)
    else:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
        fits = fits and not (isinstance(value, int) and abs(value) > LARGEST)
    if not fits:
        what = "text without lone surrogates" if kind is str else f"a number, a whole one at most {LARGEST}"
        raise ConfigError(f"{where.field} {where.op} {value!r:.60} | {where.field} is {what}", setting=where.field)


class Query(Struct, frozen=True, kw_only=True, omit_defaults=True, metaclass=StructDoor):
    """Which trajectories are meant: every condition that is given must hold.

        Query(labels={"run": "nightly"}, where=(Where("cost", ">", 0.5),), order="-cost", limit=50)

    Raises `ConfigError` for a column that does not exist or a value of a wrong type.
    """

    where: tuple[Where, ...] = ()
    labels: dict[str, str] = {}
    """Labels with their values."""
    ids: tuple[str, ...] | None = None
    prefix: str | None = None
    """Beginning of the id."""
    group: str | None = None
    task: str | None = None
    """Task id."""
    session: str | None = None
    user: str | None = None
    status: tuple[Status, ...] | None = None
    """Any of these."""
    agent: str | None = None
    """Name of the agent that began."""
    version: str | None = None
    """Digest of that agent's definition, or its beginning."""
    environment: str | None = None
    model: str | None = None
    """The first model that was called."""
    min_score: float | None = None
    """At least this; trajectories without a score do not match."""
    max_score: float | None = None
    since: float | None = None
    """Started at this time or later, UNIX seconds."""
    until: float | None = None
    """Started before this time, UNIX seconds."""
    order: str = "newest"
    """A column of `Summary`, with `-` before it the largest first; or `newest`, `oldest` (by start), `best`, `worst`
    (by score). What is unknown comes last; equals are in the order of writing. By `started_at`, `score`, `cost` and
    `duration` a store of any size is ordered at once; by others it is sorted."""
    limit: Annotated[int, Meta(ge=0, le=LARGEST)] | None = None
    offset: Annotated[int, Meta(ge=0, le=LARGEST)] = 0
    after: str | None = None
    """Where the page before ended: its `Page.next`, or the id of its last trajectory. Paging that stays right while new
    runs arrive, and is as quick in the middle as at the beginning."""

    def __post_init__(self) -> None:
        try:
            convert({name: getattr(self, name) for name in self.__struct_fields__}, _shape())
        except ValidationError as error:
            raise ConfigError(f"{self.__class__.__name__}: {error}") from error
        order_of(self)
        _ = self.conditions

    @property
    def conditions(self) -> list[Where]:
        """All that must hold, each as a condition on a column or a label."""
        short = [Where(field, op, value) for name, field, op in _SHORT if (value := getattr(self, name)) is not None]
        labels = [Where(f"{LABEL}{name}", "=", value) for name, value in self.labels.items()]
        return [*short, *labels, *self.where]


_SHORT: tuple[tuple[str, str, Op], ...] = (
    ("ids", "id", "in"), ("prefix", "id", "prefix"), ("group", "group_id", "="), ("task", "task_id", "="),
    ("session", "session_id", "="), ("user", "user_id", "="), ("status", "status", "in"),
    ("agent", "agent", "="), ("version", "version", "prefix"), ("environment", "environment", "="),
    ("model", "model", "="), ("min_score", "score", ">="), ("max_score", "score", "<="), ("since", "started_at", ">="),
    ("until", "started_at", "<"),
)  # fmt: skip


@cache
def _shape() -> type[Struct]:
    """The fields of a query with their types, which a struct does not check when it is made by a call."""
    return defstruct("QueryShape", [(field.name, field.type) for field in fields(Query)], kw_only=True)


class Order(NamedTuple):
    """By which column, and whether the largest comes first."""

    column: str
    descends: bool


_ORDERS = {
    "newest": Order("started_at", True), "oldest": Order("started_at", False), "best": Order("score", True),
    "worst": Order("score", False),
}  # fmt: skip


def order_of(query: Query) -> Order:
    """The order that a query asks for. Raises `ConfigError` if there is no such column."""
    column = query.order.removeprefix("-")
    if query.order in _ORDERS:
        return _ORDERS[query.order]
    if column not in COLUMNS:
        raise ConfigError(f"order={query.order!r} is not known; {hint(column, [*_ORDERS, *COLUMNS])}", setting="order")
    return Order(column, query.order.startswith("-"))


EVERYTHING = Query()
"""The query that every trajectory matches."""


Place: TypeAlias = "tuple[Any, int]"
"""Where a trajectory stands in an order: what is ordered by, and its number."""


class Recorded(list[Event]):
    """The events of a trajectory, and the notes about it."""

    notes: Sequence[Note] = ()


class UnreadableLog(StoreError):
    """The log of one trajectory, or the notes about it, cannot be read; others can."""


def log_unreadable(error: StoreError) -> None:
    """Say in the log that a trajectory was left out."""
    logger.warning("left out: %s", error)


class Page(list[Summary]):
    """The summaries that a query asked for."""

    next: str | None = None
    """The cursor for `Query.after` of the next page; None when this was the last."""


def page_of(query: Query, summaries: Iterable[Summary], last: Place | None) -> Page:
    """A page that ends at the place `last`."""
    page = Page(summaries)
    if last is not None and query.limit is not None and len(page) == query.limit:
        page.next = cursor(query, last)
    return page


_CURSOR = "cursor:"


def cursor(query: Query, place: Place) -> str:
    """The text for `Query.after` with which this query goes on after a place."""
    return _CURSOR + urlsafe_b64encode(msgspec.json.encode([_digest(query), *place])).decode().rstrip("=")


def place_after(query: Query) -> Place | None:
    """The place that a query's cursor names; None if it has none or goes on after an id.

    Raises `ConfigError` for the cursor of another query, and for what is no cursor.
    """
    if query.after is None or not query.after.startswith(_CURSOR):
        return None
    text = query.after.removeprefix(_CURSOR)
    try:
        raw = urlsafe_b64decode(text + "=" * (-len(text) % 4))
        digest, value, number = msgspec.json.decode(raw, type=tuple[str, Any, int])
    except ValueError as error:
        raise ConfigError(f"after={query.after!r} | no cursor of a page; begin without `after`") from error
    if digest != _digest(query):
        raise ConfigError(
            f"after={query.after!r} | the cursor of another query; keep order and conditions, or begin without `after`"
        )
    return value, number


def _digest(query: Query) -> str:
    same = replace(query, limit=None, offset=0, after=None)
    return hashlib.blake2b(msgspec.json.encode(same, order="deterministic"), digest_size=6).hexdigest()


def value_of(summary: Summary, field: str) -> Any:
    """What a summary has in a column or for a label; None where that is unknown."""
    return summary.labels.get(field[len(LABEL) :]) if field.startswith(LABEL) else getattr(summary, field)


Numbered: TypeAlias = "tuple[int, Summary]"
"""A summary with its number in the order of writing."""


def matching(summaries: Iterable[Numbered], query: Query) -> list[Numbered]:
    """Those of the trajectories that are meant; paging aside."""
    conditions = query.conditions
    return [row for row in summaries if all(where.holds(value_of(row[1], where.field)) for where in conditions)]


def select(every: Sequence[Numbered], query: Query, unknown: Callable[[str], TaskError]) -> Page:
    """The page that a query asks for.

    Raises what `unknown` makes of the id to go on after, if it is not among them; `ConfigError` for a wrong cursor.
    """
    order = order_of(query)
    sign = -1 if order.descends else 1

    def place(row: Numbered) -> Place:
        return value_of(row[1], order.column), row[0]

    def beyond(here: Place, last: Place) -> bool:
        value, number = here
        if (value is None) != (last[0] is None):
            return value is None
        if value == last[0]:
            return sign * number > sign * last[1]
        return (value > last[0]) != order.descends

    chosen = sorted(matching(every, query), key=operator.itemgetter(0), reverse=order.descends)
    valued = [row for row in chosen if place(row)[0] is not None]
    valued.sort(key=lambda row: place(row)[0], reverse=order.descends)  # stable: equals stay in the order of writing
    chosen = valued + [row for row in chosen if place(row)[0] is None]
    if query.after is not None:
        last = place_after(query) or next((place(row) for row in every if row[1].id == query.after), None)
        if last is None:
            raise unknown(query.after)
        chosen = [row for row in chosen if beyond(place(row), last)]
    chosen = chosen[query.offset : None if query.limit is None else query.offset + query.limit]
    return page_of(query, [summary for _, summary in chosen], place(chosen[-1]) if chosen else None)


class Facet(Struct, frozen=True):
    """How many of the trajectories that are meant have a value."""

    value: str
    count: int
    more: bool = False
    """Whether there are more than that: counting ended."""


Facets: TypeAlias = dict[str, list[Facet]]

FACETS = ("status", "agent", "environment", "model", "version")
"""The columns whose values are counted; labels are too (`labels.split`)."""


def check_facets(fields: Sequence[str]) -> None:
    """Raise `ConfigError` for a field whose values are not counted."""
    for field in fields:
        if not field.startswith(LABEL):
            one_of("facet", field, [*FACETS, f"{LABEL}NAME"])


def facets_of(counts: Iterable[tuple[str, int]], more: bool = False) -> list[Facet]:
    """The facets of values with their counts, the most frequent first; `more`: not all was looked at."""
    ordered = sorted(counts, key=lambda pair: (-pair[1], pair[0]))
    return [Facet(value, min(count, MOST), more or count > MOST) for value, count in ordered if count]


def tabulate(summaries: Iterable[Numbered], fields: Sequence[str], query: Query) -> Facets:
    """The values that each of the fields has among the matching summaries. What has none is not counted."""
    check_facets(fields)
    chosen = matching(summaries, query)
    counters = {field: Counter(value_of(summary, field) for _, summary in chosen) for field in fields}
    return {
        field: facets_of((value, count) for value, count in counter.items() if value is not None)
        for field, counter in counters.items()
    }
