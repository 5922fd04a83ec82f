"""What a user gives as training and held-out data becomes environments: the only thing that engines know.

A dataset is an `Environment`, a list of problems (or dicts with at least `input`), or a path of a JSON-lines or Parquet
file of such. What is held out is compared with what is learnt from by content, and a duplicate is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias, cast

import msgspec

from aworld.core.exceptions import ConfigError
from aworld.core.extras import import_extra
from aworld.environments.environment import Environment
from aworld.environments.problem import Problem, as_problem
from aworld.environments.rubric import Part, Rubric, as_rubric

Dataset: TypeAlias = Environment | Sequence[Problem | dict[str, Any]] | str | Path

_TAKES = "takes an Environment, a list of problems, or the path of a .jsonl or .parquet file"


def environments_of(train: object, test: object, reward: object) -> tuple[Environment, Environment | None]:
    """The environment to learn from, and the one to evaluate on (None: nothing is held out).

    `reward` takes the place of a rubric, whose parts stay as figures. Raises ConfigError that names the argument.
    """
    if train is None:
        raise ConfigError(f"train_dataset is missing: it {_TAKES}.")
    rubric = _rubric(reward)
    environment = _environment("train_dataset", train, rubric)
    if test is None:
        held_out = environment if _has(environment.test) else None
    elif isinstance(test, Environment):
        held_out = _environment("test_dataset", test, rubric)
        environment = _like(environment, test=held_out.test)
    else:
        held_out = environment = _like(environment, test=_problems("test_dataset", test))
    environment.check_disjoint()
    return environment, held_out


def _environment(argument: str, dataset: object, rubric: Rubric | None) -> Environment:
    """The environment of an argument, with a rubric and problems to learn from, or to be measured on."""
    if not isinstance(dataset, Environment):
        environment = Environment("dataset", train=_problems(argument, dataset), rubric=rubric)
    else:
        environment = dataset if rubric is None else _like(dataset, rubric=_beside(rubric, dataset.rubric))
    if environment.rubric is None:
        why = f"{argument}, environment {environment.name!r} has no rubric"
        raise ConfigError(f"reward_func is missing: {why}. Give a function of the episode that returns a number.")
    split, what = ("test", "held-out") if argument == "test_dataset" else ("train", "training")
    if not _has(getattr(environment, split)):
        raise ConfigError(f"{argument}: environment {environment.name!r} has no {what} problems ({split}=...).")
    return environment


def _beside(rubric: Rubric, own: Rubric | None) -> Rubric:
    """A rubric with the parts of the environment's own behind it, at weight 0: so a reward that is gamed is seen."""
    taken = {part.name: part.scorer for part in rubric.parts}
    figures = [
        replace(part, weight=0.0, name=f"{part.name} of the environment" if part.name in taken else part.name)
        for part in (own.parts if own else ())
        if part.scorer not in taken.values()
    ]
    return Rubric(*rubric.parts, *figures) if figures else rubric


def _has(problems: Any) -> bool:
    return callable(problems) or len(problems or ()) > 0


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


def _rubric(reward: Any) -> Rubric | None:
    if reward is not None and not callable(reward) and not isinstance(reward, Rubric | Part):
        raise ConfigError(f"reward_func takes a function of the episode, or a Rubric; got {reward!r:.100}.")
    try:
        return as_rubric(cast("Any", reward))
    except ConfigError as error:
        raise ConfigError(f"reward_func: {error}") from None


def _problems(argument: str, dataset: Any) -> list[Problem]:
    """The problems of a list or a file. Raises ConfigError that names the argument, and the line of a file."""
    in_file = isinstance(dataset, str | Path)
    source = f"{argument}={str(dataset)!r}" if in_file else argument
    if not isinstance(dataset, Iterable | Path) or isinstance(dataset, Mapping):
        raise ConfigError(f"{argument} {_TAKES}; got {dataset!r:.100}.")
    try:
        rows = _rows(Path(dataset)) if in_file else cast("Iterable[Any]", dataset)
        problems = [as_problem(row, number) for number, row in enumerate(rows)]
    except (OSError, ValueError) as error:  # a ConfigError is a ValueError, and so are those of JSON and Parquet
        raise ConfigError(f"{source}: {error}") from None
    if not problems:
        raise ConfigError(f"{source} is empty; give at least one problem.")
    return problems


def _rows(path: Path) -> Iterable[Any]:
    """The rows of a file. Raises OSError and ValueError."""
    if path.suffix.lower() not in (".jsonl", ".ndjson", ".parquet"):
        raise ConfigError("a path ends in .jsonl or .parquet.")
    if not path.is_file():
        raise ConfigError("there is no such file.")
    if path.suffix.lower() != ".parquet":
        return [_row(number, line) for number, line in enumerate(path.read_bytes().splitlines(), 1) if line.strip()]
    parquet: Any = import_extra("pyarrow.parquet", "a dataset in Parquet", "pyarrow>=18")
    try:
        return parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's errors are both
        raise ConfigError(f"it cannot be read as Parquet: {error}") from None


def _row(number: int, line: bytes) -> Any:
    try:
        return msgspec.json.decode(line)
    except msgspec.DecodeError as error:
        raise ConfigError(f"line {number} is not JSON ({error}).") from None
