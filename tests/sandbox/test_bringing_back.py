"""Changes of a run shown and brought back, when the record or the folder is not what one would wish."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from random import Random
from threading import Thread

import pytest

from aworld.core.event import ArtifactKept
from aworld.core.exceptions import TaskError
from aworld.core.trajectory import Trajectory
from aworld.sandbox.changes import FileChange, apply, changes_of
from aworld.trajectory import open_store

KILLED_IN_THE_MIDDLE = """
import os, signal, sys
from pathlib import Path
from tests.sandbox.test_bringing_back import change
from aworld.sandbox.changes import apply

place = Path.replace
def replace(self, target):
    if target.name == "b":
        os.kill(os.getpid(), signal.SIGKILL)
    return place(self, target)
Path.replace = replace
apply([change("a", b"1", b"2"), change("b", b"1", b"2"), change("d/new", None, b"2")], Path(sys.argv[1]))
"""


def change(name: str, before: bytes | None, after: bytes | None) -> FileChange:
    first, last = (None if data is None else hashlib.sha256(data).hexdigest() for data in (before, after))
    return FileChange(ArtifactKept(seq=1, at=0.0, name=name, folder="/f", digest=last, before=first), before, after)


@pytest.mark.parametrize("name", ["a\n+++ b/harmless", "tab\there", 'quo"te', "back\\slash", "\x1b[2J", "é", "plain"])
def test_a_name_in_a_difference_is_written_as_git_writes_it(tmp_path: Path, name: str) -> None:
    patch = change(name, None, b"text\n").diff()
    assert patch.count("\n") == 6
    assert not any(ord(sign) < 32 for sign in patch.replace("\n", ""))
    done = subprocess.run(["git", "apply", "-"], input=patch.encode(), cwd=tmp_path, capture_output=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == name.split("/")[:1]


async def test_contents_that_are_not_what_the_record_names_are_refused(tmp_path: Path) -> None:
    """A difference against another beginning than that of the folder would hide what is written."""
    store = open_store(f"sqlite:///{tmp_path}/runs.db")
    files = change("a", b"one\n", b"one\nevil\ntwo\n")
    for data in (files.before, files.after):
        await store.put_blob(data or b"")
    record = Trajectory("r")
    record.artifacts["/f", "a"] = files.kept
    assert (await changes_of(record, store))["/f"] == [files]
    with closing(sqlite3.connect(tmp_path / "runs.db")) as connection, connection:
        connection.execute("UPDATE blobs SET data = ? WHERE digest = ?", (b"one\nevil\n", files.kept.before))
    with pytest.raises(TaskError, match="is not what its digest says"):
        await changes_of(record, store)
    await store.close()


def test_the_difference_of_any_two_texts_is_there_in_seconds(tmp_path: Path) -> None:
    numbers = Random(1)
    old = "".join(f"{numbers.randrange(120)}\n" for _ in range(150_000)).encode()
    new = b"\n".join(reversed(old.split(b"\n")))
    (tmp_path / "data").write_bytes(b"head\n" + old)
    began = time.monotonic()
    patch = change("data", b"head\n" + old, b"head\n" + new).diff()
    assert time.monotonic() - began < 10
    done = subprocess.run(["git", "apply", "-"], input=patch.encode(), cwd=tmp_path, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data").read_bytes() == b"head\n" + new


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    refused: list[TaskError] = []

    def bring() -> None:
        try:
            apply([change("pipe", None, b"x")], tmp_path)
        except TaskError as error:
            refused.append(error)

    trying = Thread(target=bring, daemon=True)
    trying.start()
    trying.join(10)
    assert "pipe is no file" in str(refused)


def test_a_process_that_was_killed_in_the_middle_leaves_nothing_behind_when_it_is_said_again(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"1")
    words = [sys.executable, "-c", KILLED_IN_THE_MIDDLE, str(tmp_path)]
    assert subprocess.run(words, cwd=Path(__file__).parents[2], timeout=60).returncode == -9
    assert (tmp_path / "a").read_bytes() == b"2"
    files = [change("a", b"1", b"2"), change("b", b"1", b"2"), change("d/new", None, b"2")]
    assert apply(files, tmp_path) == ["b", "d/new"]
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["a", "b", "d", "d/new"]


def test_two_at_once_do_not_overwrite_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one looks when the first one has written."""
    (tmp_path / "a").write_bytes(b"1")
    place, refused = Path.replace, list[str]()

    def second() -> None:
        try:
            apply([change("a", b"1", b"3")], tmp_path)
        except TaskError as error:
            refused.append(str(error))

    trying = Thread(target=second)

    def replace(self: Path, target: Path) -> Path:
        if not trying.ident:
            trying.start()
            trying.join(0.5)  # it would be done long before
        return place(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    apply([change("a", b"1", b"2")], tmp_path)
    trying.join(10)
    assert (tmp_path / "a").read_bytes() == b"2"
    assert len(refused) == 1


def test_a_rollback_that_fails_too_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        (tmp_path / name).write_bytes(b"1")
    place = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if target.name == "c" or (target.name == "a" and self.name.endswith("old")):
            raise OSError(5, "Input/output error")
        return place(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(TaskError, match=r"Input/output error; what was there is kept in .*aworld-part"):
        apply([change(name, b"1", b"2") for name in "abc"], tmp_path)
    assert (tmp_path / "b").read_bytes() == b"1"
    assert [part.read_bytes() for part in tmp_path.glob(".aworld-part-*-0-*")] == [b"1"]  # of a
