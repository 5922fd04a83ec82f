"""Problems: what an environment asks, and how many problems become a training and a held-out set.

A source of problems is a finite list, or a function that makes an endless stream of them from a seed. What must not
happen is that a problem of the held-out set is trained on: problems are compared by content, and `split_by_hash` makes
two streams that cannot meet.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, TypeAlias, cast, overload

import msgspec
from msgspec import Struct

from aworld.core.exceptions import ConfigError
from aworld.core.message import Content, Text
from aworld.environments.signatures import check_takes_one

Split: TypeAlias = Literal["train", "test"]
Key: TypeAlias = Callable[["Problem"], Any]
Generator: TypeAlias = Callable[[int], Iterable["Problem"]]
"""Makes problems from a seed, the same ones each time; endless or not."""
Source: TypeAlias = "Sequence[Problem] | Generator"

PATIENCE = 20_000
"""Problems in a row that may be of no use before a stream is given up."""

SAMPLE = 1000
"""Problems of a stream that are looked at to learn something of all: whether it ends, whether it is disjoint."""


class Problem(Struct, frozen=True, omit_defaults=True):
    """One problem. JSON-able."""

    id: str
    """Stable and unique within its environment."""
    input: Content
    """What the agent is told."""
    answer: Any = None
    """What scorers compare with; the agent never sees it."""
    data: dict[str, Any] = {}
    """What the session and the scorers know besides, such as a hidden state."""


def as_problem(given: Problem | Mapping[str, Any], number: int = 0) -> Problem:
    """A problem from a mapping of its fields; keys that it does not have go into `data`. Raises ConfigError."""
    if isinstance(given, Problem):
        return given
    if not isinstance(given, Mapping) or "input" not in given:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"Problem {number} needs at least an 'input'; got {given!r:.200}.")
    known = {key: value for key, value in given.items() if key in ("input", "answer")}
    extra = {key: value for key, value in given.items() if key not in ("id", "input", "answer", "data")}
    return Problem(id=str(given.get("id", number)), data={**given.get("data", {}), **extra}, **known)


def content_key(problem: Problem) -> Any:
    """What makes two problems the same: what is asked, blanks and case aside, and the data behind it.

    The answer does not count: the same question with its answer written in another way is the same problem.
    """
    content = problem.input
    if not isinstance(content, str) and all(isinstance(part, Text) for part in content):
        content = "".join(part.text for part in content if isinstance(part, Text))
    if isinstance(content, str):
        content = " ".join(content.casefold().split())
    return content, problem.data


def digest_of(problem: Problem, key: Key = content_key) -> bytes:
    """The digest of what makes two problems the same."""
    return hashlib.blake2b(
        msgspec.json.encode(key(problem), enc_hook=repr, order="deterministic"), digest_size=16
    ).digest()


def split_by_hash(generate: Generator, *, test: float = 0.1, key: Key = content_key) -> tuple[Generator, Generator]:
    """A training and a held-out stream of one generator, that share no problem whatever their seeds.

    The digest of a problem's content says on which side it stands; `test` is the share of the held-out side. Give both
    to an environment: `train, test = split_by_hash(generate)`.
    """
    if not 0 < test < 1:
        raise ConfigError(f"split_by_hash(test={test!r}): the held-out share lies between 0 and 1.")
    pair = object()
    return _Side(generate, key, test, False, pair), _Side(generate, key, test, True, pair)


@dataclass(frozen=True, slots=True)
class _Side:
    """One side of a split by hash."""

    generate: Generator
    key: Key
    test: float
    held_out: bool
    pair: object

    def __call__(self, seed: int) -> Iterator[Problem]:
        bound, passed = int(self.test * 2**64), 0
        for problem in self.generate(seed):
            passed += 1
            if (int.from_bytes(digest_of(problem, self.key)[:8], "big") < bound) is self.held_out:
                passed = 0
                yield problem
            elif passed >= PATIENCE:
                which = "held out" if self.held_out else "left to learn from"
                raise ConfigError(
                    f"split_by_hash(test={self.test!r}): none of {PATIENCE} problems in a row is {which}; the "
                    "generator makes too few different ones."
                )


class Listed(Sequence[Problem]):
    """A list that is kept elsewhere, and fetched as far as somebody looks.

    Args:
        size: How many there are.
        fetch: Returns some of them, from a place on.
        pair: The same for both sides of a split, where it is seen to elsewhere that they do not meet.
    """

    def __init__(self, size: int, fetch: Callable[[int], list[Problem]], pair: object = None) -> None:
        self.pair = pair
        self._size, self._fetch = size, fetch
        self._known: list[Problem] = []

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
        while (first := len(self._known)) < end:
            found = self._fetch(first)
            if not found:
                raise ConfigError(f"A list of {self._size} problems that is kept elsewhere gave none from {first} on.")
            self._known[first : first + len(found)] = found  # another thread may have put the same there
        return [self._known[place] for place in places]


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

    A stream that comes upon a problem again, by its id, passes over it. Raises ConfigError when there are not enough;
    with `fewer` what there is will do, but a function must make at least one.
    """
    if callable(source):
        if n is None:
            raise ConfigError(f"{where} makes problems without end; say how many with n=...")
        found = _different(source(seed or 0), n, where, fewer)
    elif seed is None:
        found = list(source[:n])
    else:
        found = list(source)
        random.Random(seed).shuffle(found)
        found = found[:n]
    least = min(n or 0, int(callable(source))) if fewer else n or 0
    if n is not None and len(found) < least:
        has = "1 problem" if len(found) == 1 else f"{len(found)} problems"
        raise ConfigError(f"{where} has {has}; {n} were asked for.")
    return found


def _different(stream: Iterable[Problem | Mapping[str, Any]], n: int, where: str, fewer: bool) -> list[Problem]:
    found: dict[str, Problem] = {}
    repeated = 0
    for number, given in enumerate(stream if n else ()):
        problem = as_problem(given, number)
        repeated = repeated + 1 if problem.id in found else 0
        found.setdefault(problem.id, problem)
        if len(found) == n:
            break
        if repeated >= PATIENCE:
            if fewer:
                break
            raise ConfigError(f"{where} makes no more than {len(found)} different problems; {n} were asked for.")
    return list(found.values())


def as_source(given: Any, where: str) -> Source:
    """A list of problems or a generator of them, from what a caller gave. Raises ConfigError."""
    if callable(given):
        check_takes_one(given, where, "a seed")
        return cast("Generator", given)
    if isinstance(given, Listed):
        return given
    if isinstance(given, Iterator):  # it may never end, and could be gone through only once
        kind = type(cast("Iterator[Any]", given)).__name__
        raise ConfigError(
            f"{where} takes a list of problems, or a function of a seed that makes them; got the {kind} that such a "
            "function returned. Give the function itself, not called: it is called with a seed when problems are "
            "wanted."
        )
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ConfigError(f"{where} takes a list of problems, or a function of a seed that makes them; got {given!r}.")
    problems = [as_problem(item, number) for number, item in enumerate(cast("Iterable[Any]", given))]
    seen: dict[str, Problem] = {}
    for problem in problems:
        if seen.setdefault(problem.id, problem) is not problem:
            raise ConfigError(f"{where} has two problems with the id {problem.id!r}; give each its own.")
    return problems
