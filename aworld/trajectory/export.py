"""Exports of stored trajectories, one in memory at a time.

A file appears only when it is whole: what is written goes to a file beside it, which takes the name at the end.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import msgspec
from msgspec.structs import asdict, replace

from aworld.core.exceptions import ConfigError, StoreError
from aworld.core.extras import import_extra
from aworld.core.rows import rows
from aworld.core.trajectory import Trajectory
from aworld.trajectory.atif import atif
from aworld.trajectory.formats import Format, openai, sharegpt, swift, training_trace
from aworld.trajectory.query import EVERYTHING, Query, log_unreadable
from aworld.trajectory.sequences import TokenSequence, sequences
from aworld.trajectory.store import TrajectoryStore
from aworld.trajectory.summary import Summary

LINES: dict[str, Format] = {
    "rows": rows,
    "openai": openai,
    "sharegpt": sharegpt,
    "swift": swift,
    "atif": atif,
    "openenv": training_trace,
}
"""The formats that are JSON lines."""

FORMATS = (*LINES, "parquet")
"""All that `export` knows."""

ROW_GROUP_TOKENS = 250_000
"""Tokens of one row group of Parquet: some 12 MB in memory while it is gathered, 3 MB as a table."""


def export(
    store: TrajectoryStore,
    format: str,
    output: str | os.PathLike[str],
    query: Query = EVERYTHING,
    *,
    on_unreadable: Callable[[StoreError], None] = log_unreadable,
) -> int:
    """Write the trajectories that match to a file, `-` for standard output, and return the number of samples.

    `rows`, `openai`, `sharegpt`, `swift`, `atif` and `openenv` (its `TrainingTrace`, of trajectories captured with ids
    and log-probabilities) are JSON lines. `parquet` has one token sequence a row, of trajectories that are complete and
    were captured with token ids (needs pyarrow). A log that cannot be read is left out, and `on_unreadable` is told.
    Blocks: from async code, run it in a thread. Raises `ConfigError`
    for an unknown format, `StoreError` when the file cannot be written.
    """
    if format not in FORMATS:
        raise ConfigError(f"format={format!r} is not known; use one of {', '.join(FORMATS)}")
    to_output = os.fspath(output) == "-"
    records = _records(store, query, on_unreadable)
    if format == "parquet":
        if to_output:
            raise ConfigError("format=parquet | Parquet goes to a file, not to standard output; give output a path")
        _import_pyarrow()
    try:
        if to_output:
            return _write_lines(records, LINES[format], sys.stdout.buffer)
        with _whole_file(Path(output)) as file:
            if format == "parquet":
                return _write_parquet(records, file)
            return _write_lines(records, LINES[format], file)
    except BrokenPipeError:  # who reads standard output has seen enough: no failure
        raise
    except OSError as error:
        raise StoreError(
            f"export to {output} | {error}; the disk or the path does not take it, nothing is left"
        ) from error


@contextmanager
def _whole_file(path: Path) -> Generator[BinaryIO, None, None]:
    path = path.resolve()
    if path.exists() and not path.is_file():  # a pipe or a device: nothing to take the name of
        with path.open("wb") as file:
            yield file
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with beside.open("xb", buffering=1 << 20) as file:
            yield file
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


Records: TypeAlias = "Iterator[tuple[Summary, Trajectory]]"


def _records(store: TrajectoryStore, query: Query, on_unreadable: Callable[[StoreError], None]) -> Records:
    """The matching trajectories, with the rewards that others gave, and the labels and the session that the list has.

    Logs from before version 3 know no labels, and had the run of an episode for its session.
    """
    for summary, events in store.scan(query, on_unreadable=on_unreadable):
        record = Trajectory.of(summary.id, events, events.notes)
        record.labels = summary.labels
        if record.task.session_id != summary.session_id:
            record.task = replace(record.task, session_id=summary.session_id)
        yield summary, record


def _write_lines(records: Records, format: Format, file: BinaryIO) -> int:
    encode = msgspec.json.Encoder().encode
    count = 0
    for _, record in records:
        for sample in format(record):
            file.write(encode(sample) + b"\n")
            count += 1
    file.flush()
    return count


def _import_pyarrow() -> Any:
    import_extra("pyarrow.parquet", "format=parquet", "pyarrow>=18")
    return import_extra("pyarrow", "format=parquet", "pyarrow>=18")


def _write_parquet(records: Records, file: BinaryIO) -> int:
    pyarrow: Any = _import_pyarrow()
    schema = _schema(pyarrow)
    count = 0
    with pyarrow.parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        for group in _row_groups(records):
            writer.write_table(pyarrow.Table.from_pylist(group, schema=schema))
            count += len(group)
    return count


def _row_groups(records: Records) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    size = 0
    for summary, record in records:
        derived = sequences(record)
        if not derived.complete:
            continue
        for row in derived.rows:
            group.append(_parquet_row(summary, row, derived.drift))
            size += len(row.ids)
        if size > ROW_GROUP_TOKENS or len(group) > ROW_GROUP_TOKENS // 100:
            yield group
            group, size = [], 0
    if group:
        yield group


def _parquet_row(summary: Summary, row: TokenSequence, drift: int) -> dict[str, Any]:
    facts = {"task_id": summary.task_id, "group_id": summary.group_id, "status": summary.status}
    labels = list(summary.labels.items())
    return {**asdict(row), **facts, "labels": labels, "prompt_length": row.prompt_length, "drift": drift}


def _schema(pyarrow: Any) -> Any:
    text, whole, real = pyarrow.string(), pyarrow.int32(), pyarrow.float64()
    return pyarrow.schema([
        ("trajectory_id", text),
        ("task_id", text),
        ("group_id", text),
        ("labels", pyarrow.map_(text, text)),
        ("agent", text),
        ("activation", whole),
        ("status", text),
        ("ids", pyarrow.list_(whole)),
        ("mask", pyarrow.list_(pyarrow.int8())),
        ("logprobs", pyarrow.list_(real)),
        ("prompt_length", whole),
        ("steps", pyarrow.list_(whole)),
        ("score", real),
        ("step_scores", pyarrow.list_(real)),
        ("policy_versions", pyarrow.list_(text)),
        ("drift", whole),
    ])  # fmt: skip
