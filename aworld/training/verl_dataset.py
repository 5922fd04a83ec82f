"""The Parquet dataset that verl reads: `prompt, data_source, reward_model{ground_truth}, extra_info{index, ...}`.

`extra_info.problem` is the problem itself as JSON: the agent loop (`verl_loop`) runs it in its environment. `prompt` is
what verl shows and measures; the agent says for itself how a problem is put to the policy.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from aworld.core.exceptions import ConfigError
from aworld.core.message import content_text
from aworld.environments import Environment, Problem
from aworld.environments.problem import Split

__all__ = ["AGENT_NAME", "problem_of", "write_dataset", "write_problems"]

AGENT_NAME = "aworld"
"""Under this name verl finds the agent loop of `verl_loop`."""

_decoder = msgspec.json.Decoder(Problem)


def write_dataset(
    environment: Environment, path: str | os.PathLike[str], *, split: Split = "train", n: int | None = None,
    seed: int | None = None,
) -> int:  # fmt: skip
    """Write problems of a split as verl's Parquet; returns how many.

    `n` and `seed` as of `Environment.problems`. Needs pyarrow (extra `parquet`). Raises ConfigError without it.
    """
    problems = environment.problems(split, n, seed)
    write_problems(environment, path, problems, split=split)
    return len(problems)


def write_problems(
    environment: Environment, path: str | os.PathLike[str], problems: Sequence[Problem], *, split: Split = "train"
) -> None:
    """Write these problems, a row each, in their order. Raises ConfigError without pyarrow."""
    try:
        pyarrow: Any = importlib.import_module("pyarrow")
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ConfigError("verl's dataset is Parquet: install pyarrow with pip install 'aworld[parquet]'.") from None
    rows = [_row(environment, problem, number, split) for number, problem in enumerate(problems)]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=_schema(pyarrow)), os.fspath(path))


def problem_of(extra_info: Any) -> Problem:
    """The problem in a row's `extra_info`. Raises ConfigError for a dataset that `write_dataset` did not make."""
    try:
        return _decoder.decode(extra_info["problem"])
    except (TypeError, KeyError, msgspec.DecodeError) as error:
        raise ConfigError(
            f"extra_info has no problem ({error!r}); make the dataset with aworld.training.verl_dataset.write_dataset."
        ) from None


def _row(environment: Environment, problem: Problem, number: int, split: str) -> dict[str, Any]:
    prompt = [{"role": "user", "content": content_text(problem.input)}]
    if environment.system_prompt:
        prompt.insert(0, {"role": "system", "content": environment.system_prompt})
    truth = problem.answer if isinstance(problem.answer, str) else msgspec.json.encode(problem.answer).decode()
    return {
        "prompt": prompt,
        "data_source": environment.name,
        "ability": "agent",
        "agent_name": AGENT_NAME,
        "reward_model": {"style": "rule", "ground_truth": truth},
        "extra_info": {
            "index": number, "split": split, "id": problem.id, "problem": msgspec.json.encode(problem).decode(),
        },
    }  # fmt: skip


def _schema(pyarrow: Any) -> Any:
    text, whole = pyarrow.string(), pyarrow.int64()
    return pyarrow.schema([
        ("prompt", pyarrow.list_(pyarrow.struct([("role", text), ("content", text)]))),
        ("data_source", text),
        ("ability", text),
        ("agent_name", text),
        ("reward_model", pyarrow.struct([("style", text), ("ground_truth", text)])),
        ("extra_info", pyarrow.struct([("index", whole), ("split", text), ("id", text), ("problem", text)])),
    ])  # fmt: skip
