"""Problems: what an environment asks, and how many problems become a training and a held-out set.

A source of problems is a finite list, or a function that makes an endless stream of them from a seed. What must not
happen is that a problem of the held-out set is trained on: problems are compared by content, and `split_by_hash` makes
two streams that cannot meet.
"""

from __future__ import annotations

import hashlib
import inspect
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from typing import Any, Literal, TypeAlias, cast, overload

import msgspec
from msgspec import Struct

from aworld.core.checks import StructDoor, typed, unique
from aworld.core.exceptions import ConfigError
from aworld.core.message import Content, Text, content_text

Split: TypeAlias = Literal["train", "test"]
SPLITS: tuple[Split, Split] = ("test", "train")
Key: TypeAlias = Callable[["Problem"], Any]
Generator: TypeAlias = Callable[[int], Iterable["Problem"]]
"""Makes problems from a seed, the same ones each time; endless or not."""
Source: TypeAlias = "Sequence[Problem] | Generator"

PATIENCE = 20_000
"""Problems in a row that may be of no use before a stream is given up."""

SAMPLE = 1000
"""Problems of a stream that are looked at to learn something of all: whether it ends, whether it is disjoint."""


class Problem(Struct, frozen=True, omit_defaults=True, metaclass=StructDoor):
    """One problem. JSON-able."""

    id: str
    """Stable and unique within its environment."""
    input: Content
    """What the agent is told."""
    answer: Any = None
    """What scorers compare with; the agent never sees it."""
    data: dict[str, Any] = {}
    """What the session and the scorers know besides, such as a hidden state."""


def as_problem(fields: Problem | Mapping[str, Any], number: int = 0) -> Problem:
    """A problem from a mapping of its fields; keys that it does not have go into `data`. Raises ConfigError."""
    if isinstance(fields, Problem):
        return fields
    if not isinstance(fields, Mapping) or "input" not in fields:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"Problem {number} needs at least an 'input'; got {fields!r:.200}.")
    extra = {key: value for key, value in fields.items() if key not in ("id", "input", "answer", "data")}
    data = {**fields.get("data", {}), **extra}
    return Problem(str(fields.get("id", number)), fields["input"], fields.get("answer"), data)


def content_key(problem: Problem) -> Any:
    """What makes two problems the same: what is asked, blanks and case aside, and the data behind it.

    The answer does not count: the same question with its answer written in another way is the same problem.
    """
    content = problem.input
    if not isinstance(content, str) and all(isinstance(part, Text) for part in content):
        content = content_text(content)
    if isinstance(content, str):
        content = " ".join(content.casefold().split())
    return content, problem.data


def digest_of(problem: Problem, key: Key = content_key) -> bytes:
    """The digest of what makes two problems the same."""
    return hashlib.blake2b(
        msgspec.json.encode(key(problem), enc_hook=repr, order="deterministic"), digest_size=16
    ).digest()


@typed()
def split_by_hash(generate: Generator, *, test: float = 0.1, key: Key = content_key) -> tuple[Generator, Generator]:
    """A training and a held-out stream of one generator, that share no problem whatever their seeds.

    The digest of a problem's content says on which side it stands; `test` is the share of the held-out side. Give both
    to an environment: `train, test = split_by_hash(generate)`.
    """
    if not 0 < test < 1:
        raise ConfigError(f"split_by_hash(test={test!r}): the held-out share lies between 0 and 1.")
    pair = object()
    return HashSide(generate, key, test, False, pair), HashSide(generate, key, test, True, pair)


@dataclass(frozen=True, slots=True)
class HashSide:
    """One side of a split by hash: a stream that knows by its content whether a problem is one of its own."""

    generate: Generator
    key: Key
    test: float
    held_out: bool
    pair: object

    def __contains__(self, problem: Problem) -> bool:
        number = int.from_bytes(digest_of(problem, self.key)[:8], "big")
        return (number < int(self.test * 2**64)) is self.held_out

    def __call__(self, seed: int) -> Iterator[Problem]:
        """The problems of this side. Raises ConfigError when the generator makes none of them for too long."""
        passed = 0
        for problem in self.generate(seed):
            passed += 1
            if problem in self:
                passed = 0
                yield problem
            elif passed >= PATIENCE:
                which = "held out" if self.held_out else "left to learn from"
                raise ConfigError(
                    f"split_by_hash(test={self.test!r}): none of {PATIENCE} problems in a row is {which}; the "
                    "generator makes too few different ones."
                )


class FetchedProblems(Sequence[Problem]):
    """A list that is kept elsewhere, and fetched as far as somebody looks.

    Args:
        size: How many there are.
        fetch: Returns some of them, from a place on.
        pair: The same for both sides of a split, where it is seen to elsewhere that they do not meet.
    """

    def __init__(self, size: int, fetch: Callable[[int], list[Problem]], pair: object = None) -> None:
        self.pair = pair
        self._size, self._fetch = size, fetch
        self._problems: list[Problem] = []

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> list[Problem]: ...
    def __getitem__(self, index: int | slice) -> Problem | list[Problem]:
        if not isinstance(index, slice):
            index = range(self._size)[index]
            return self[index : index + 1][0]
        places = range(self._size)[index]
        end = max(places[0], places[-1]) + 1 if places else 0
        while (first := len(self._problems)) < end:
            page = self._fetch(first)
            if not page:
                raise ConfigError(f"A list of {self._size} problems that is kept elsewhere gave none from {first} on.")
            self._problems[first : first + len(page)] = page  # another thread may have put the same there
        return [self._problems[place] for place in places]


def never_meet(train: Source, test: Source) -> bool:
    """Whether two sources have nothing to compare: one is empty, or they are the sides of one split."""
    if any(not callable(source) and not source for source in (train, test)):
        return True
    pair = getattr(train, "pair", None)
    return pair is not None and pair is getattr(test, "pair", None)


def ends(source: Source) -> bool:
    """Whether a source is known to end: a list, or a function that ends within the first `SAMPLE`."""
    return not callable(source) or sum(1 for _ in islice(source(0), SAMPLE)) < SAMPLE


def taken(source: Source, n: int | None, seed: int | None, where: str, *, fewer: bool = False) -> list[Problem]:
    """`n` problems of a source. A list is given in its order, or shuffled by `seed`; `n` None means all of it.

    Of a stream, `different` ones. Raises ConfigError when there are not enough; with `fewer` what there is will do, but
    a function must make at least one.
    """
    if callable(source):
        if n is None:
            raise ConfigError(f"{where} makes problems without end; say how many with n=...")
        stream: Any = source(seed or 0)
        if not isinstance(stream, Iterable):
            raise ConfigError(f"{where}: a function of a seed makes problems; it returned {stream!r:.60}.")
        problems = list(islice(different(cast("Iterable[Problem]", stream)), n))
    elif seed is None:
        problems = list(source[:n])
    else:
        problems = list(source)
        random.Random(seed).shuffle(problems)
        problems = problems[:n]
    least = min(n or 0, int(callable(source))) if fewer else n or 0
    if len(problems) < least:
        has = "1 problem" if len(problems) == 1 else f"{len(problems)} different problems"
        raise ConfigError(f"{where} has {has}; {n} were asked for.")
    return problems


def different(
    stream: Iterable[Problem | Mapping[str, Any]], key: Key = attrgetter("id"), patience: int = PATIENCE
) -> Iterator[Problem]:
    """The problems of a stream, those left out that come again; ends when `patience` in a row have come before."""
    seen: set[Any] = set()
    again = 0
    for number, fields in enumerate(stream):
        problem = as_problem(fields, number)
        name = key(problem)
        if name not in seen:
            seen.add(name)
            again = 0
            yield problem
        elif (again := again + 1) >= patience:
            return


def as_source(value: Any, where: str) -> Source:
    """A list of problems or a generator of them, from what a caller gave. Raises ConfigError."""
    if callable(value):
        check_takes_one(value, where, "a seed")
        return cast("Generator", value)
    if isinstance(value, FetchedProblems):
        return value
    if isinstance(value, Iterator):  # it may never end, and could be gone through only once
        kind = type(cast("Iterator[Any]", value)).__name__
        raise ConfigError(
            f"{where} takes a list of problems, or a function of a seed that makes them; got the {kind} that such a "
            "function returned. Give the function itself, not called: it is called with a seed when problems are "
            "wanted."
        )
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ConfigError(f"{where} takes a list of problems, or a function of a seed that makes them; got {value!r}.")
    problems = [as_problem(item, number) for number, item in enumerate(cast("Iterable[Any]", value))]
    unique(f"{where} has two problems with the id", (problem.id for problem in problems))
    return problems


def check_takes_one(function: Callable[..., Any], where: str, argument: str) -> None:
    """Raise ConfigError for what cannot be called with one positional argument, as far as that can be told."""
    if not callable(function):
        raise ConfigError(f"{where}: a function of {argument} is wanted; got {function!r:.100}.")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some of those written in C have none
        return
    try:
        signature.bind(None)
    except TypeError as error:
        name = getattr(function, "__qualname__", type(function).__name__)
        raise ConfigError(
            f"{where}: it is called with one argument, {argument}, and {name}{signature} cannot be: {error}."
        ) from None
