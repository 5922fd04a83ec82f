"""What a user gives as training and held-out data becomes environments: the only thing that engines know.

A dataset is an `Environment`, a list of problems (or dicts with at least `input`), or a path of a JSON-lines or Parquet
file of such. What is held out is compared with what is learnt from by content, and a duplicate is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias, cast

import msgspec

from aworld.core.exceptions import ConfigError
from aworld.environments.environment import Environment
from aworld.environments.problem import Problem, as_problem
from aworld.environments.rubric import Part, Rubric, as_rubric

__all__ = ["Dataset", "environments_of"]

Dataset: TypeAlias = Environment | Sequence[Problem | dict[str, Any]] | str | Path


def environments_of(train: object, test: object, reward: object) -> tuple[Environment, Environment | None]:
    """The environment to learn from, and the one to evaluate on (None: nothing is held out).

    `reward` takes the place of a rubric. Raises ConfigError that names the argument.
    """
    learnt = _given("train_dataset", train)
    rubric = _rubric(reward)
    if isinstance(learnt, Environment):
        environment = learnt if rubric is None else _like(learnt, rubric=rubric)
        if environment.rubric is None:
            raise ConfigError(
                f"reward_func is missing: environment {learnt.name!r} has no rubric. Give reward_func, a function of "
                "the episode that returns a number, or the environment a rubric."
            )
        if not callable(environment.train) and not environment.train:
            raise ConfigError(f"train_dataset: environment {learnt.name!r} has no training problems (train=...).")
    else:
        if rubric is None:
            raise ConfigError(
                "reward_func is missing: a dataset of problems says nothing about rewards. Give a function of the "
                "episode that returns a number."
            )
        environment = Environment("dataset", train=learnt, rubric=rubric)
    environment, held_out = _with_held_out(environment, test, rubric)
    environment.check_disjoint()
    return environment, held_out


def _with_held_out(
    environment: Environment, test: object, rubric: Rubric | None
) -> tuple[Environment, Environment | None]:
    if test is None:
        has = callable(environment.test) or len(environment.test) > 0
        return environment, environment if has else None
    given = _given("test_dataset", test)
    if not isinstance(given, Environment):
        environment = _like(environment, test=given)
        return environment, environment
    held_out = given if rubric is None else _like(given, rubric=rubric)
    if held_out.rubric is None:
        raise ConfigError(f"test_dataset: environment {given.name!r} has no rubric; give it one, or a reward_func.")
    if not callable(held_out.test) and not held_out.test:
        raise ConfigError(f"test_dataset: environment {given.name!r} has no held-out problems (test=...).")
    return _like(environment, test=held_out.test), held_out


def _like(environment: Environment, **changed: Any) -> Environment:
    """The same environment but for what is changed."""
    settings: dict[str, Any] = {
        "train": environment.train or (),
        "test": environment.test,
        "session": environment.session,
        "tools": environment.tools,
        "rubric": environment.rubric,
        "system_prompt": environment.system_prompt,
        "conf": environment.conf,
        "key": environment.key,
        **changed,
    }
    return Environment(environment.name, **settings)


def _rubric(given: object) -> Rubric | None:
    if given is None or isinstance(given, Rubric | Part):
        return as_rubric(given)
    if not callable(given):
        raise ConfigError(
            f"reward_func takes a function of the episode that returns a number, a Rubric, or None where the "
            f"environment has one; got {given!r:.100}."
        )
    try:
        return as_rubric(cast("Callable[[Any], float]", given))
    except ConfigError as error:
        raise ConfigError(f"reward_func: {error}") from None


def _given(argument: str, given: object) -> Environment | list[Problem]:
    if isinstance(given, Environment):
        return given
    where = argument
    if isinstance(given, str | Path):
        where = f"{argument}={str(given)!r}"
        given = _read(argument, Path(given))
    if not isinstance(given, Iterable) or isinstance(given, Mapping):
        raise ConfigError(
            f"{argument} takes an Environment, a list of problems, or the path of a .jsonl or .parquet file; got "
            f"{given!r:.100}."
        )
    try:
        problems = [as_problem(cast(Any, each), number) for number, each in enumerate(cast("Iterable[object]", given))]
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    if not problems:
        raise ConfigError(f"{where} is empty; give at least one problem.")
    return problems


def _read(argument: str, path: Path) -> list[Any]:
    kinds: dict[str, Callable[[str, Path], list[Any]]] = {".jsonl": _lines, ".ndjson": _lines, ".parquet": _parquet}
    reader = kinds.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(f"{argument}={str(path)!r}: a path ends in .jsonl or .parquet.")
    if not path.is_file():
        raise ConfigError(f"{argument}={str(path)!r}: there is no such file.")
    return reader(argument, path)


def _lines(argument: str, path: Path) -> list[Any]:
    found: list[Any] = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            found.append(msgspec.json.decode(line))
        except msgspec.DecodeError as error:
            raise ConfigError(f"{argument}={str(path)!r}, line {number}: not JSON ({error}).") from None
    return found


def _parquet(argument: str, path: Path) -> list[Any]:
    try:
        parquet: Any = import_module("pyarrow.parquet")
    except ImportError:
        raise ConfigError(f"{argument}={str(path)!r} needs pyarrow; pip install 'aworld[parquet]'.") from None
    try:
        return parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's errors are both
        raise ConfigError(f"{argument}={str(path)!r} cannot be read as Parquet: {error}") from None
