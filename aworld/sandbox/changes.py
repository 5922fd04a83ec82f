"""What a run changed in its copy of a folder, out of its log: shown as a unified diff, and brought back.

Bringing back is all or nothing. A file that somebody else changed meanwhile is not overwritten: then nothing is. Who
brings back holds a lock on the folder, so that of two at once the second sees what the first has written.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from difflib import Match, SequenceMatcher
from itertools import accumulate
from pathlib import Path, PurePosixPath

from aworld.core.context.base import Blobs
from aworld.core.event import ArtifactKept
from aworld.core.exceptions import TaskError
from aworld.core.trajectory import Trajectory

LEFT_OUT = (".git", ".hg", ".svn", ".env", ".aworld", "__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache")
"""Names of what is neither copied nor brought back: keys, what is of version control and of ours, caches of tools."""
LONGEST = 1_000_000
"""Bytes of a file that is compared line by line."""
LONG_ENOUGH = 20_000_000
"""Pairs of equal lines that are looked at in a comparison, 2 to 4 seconds; what is left then is shown as replaced."""
PART = ".aworld-part-"
"""Begins the names of files that are there only while changes are brought back."""


@dataclass(frozen=True, slots=True)
class FileChange:
    """A file that a run changed, with what it was and what it is; None where there is none."""

    kept: ArtifactKept
    before: bytes | None
    after: bytes | None

    def diff(self) -> str:
        """The change as git writes it."""
        kept = self.kept
        first, last = _quoted(f"a/{kept.name}"), _quoted(f"b/{kept.name}")
        lines = [f"diff --git {first} {last}"]
        mode = "100755" if kept.executable else "100644"
        if self.before is None:
            lines.append(f"new file mode {mode}")
        elif self.after is None:
            lines.append("deleted file mode 100644")
        elif kept.executable is not None:
            lines += [f"old mode {'100644' if kept.executable else '100755'}", f"new mode {mode}"]
        if self.before != self.after:
            old = "/dev/null" if self.before is None else first
            new = "/dev/null" if self.after is None else last
            lines += compared(self.before or b"", self.after or b"", old, new)
        return "\n".join(lines) + "\n"


def is_left_out(name: str) -> bool:
    """Whether a path leads to or through what is left out."""
    return any(part.lower() in LEFT_OUT for part in name.split("/"))


async def changes_of(record: Trajectory, blobs: Blobs) -> dict[str, list[FileChange]]:
    """What a run changed, by folder, in the order of names. Raises `TaskError` for a content that is not there, or
    another."""
    changes: dict[str, list[FileChange]] = {}
    for (folder, _), kept in sorted(record.artifacts.items()):
        before, after = [None if d is None else await _content(blobs, d) for d in (kept.before, kept.digest)]
        changes.setdefault(folder, []).append(FileChange(kept, before, after))
    return changes


async def _content(blobs: Blobs, digest: str) -> bytes:
    data = await blobs.blob(digest)
    # In the store of a stranger: a difference against another beginning would hide what is written.
    if type(data) is not bytes or hashlib.sha256(data).hexdigest() != digest:
        raise TaskError(f"The content {digest} is not what its digest says: the store is damaged, or was changed.")
    return data


def compared(before: bytes, after: bytes, old: str, new: str) -> list[str]:
    """Two contents as lines of a unified diff; what is no text, or too long, is named alone."""
    try:
        if b"\0" in before + after or max(len(before), len(after)) > LONGEST:
            raise ValueError
        texts = before.decode().split("\n"), after.decode().split("\n")
    except ValueError:
        return [f"Binary files {old} and {new} differ ({len(before):,} and {len(after):,} bytes)"]
    for text in texts:  # as git has it: a last line without its end says so
        if text[-1]:
            text[-1] += "\n\\ No newline at end of file"
        else:
            text.pop()
    matcher, lines = _BoundedMatcher(*texts), [f"--- {old}", f"+++ {new}"]
    for group in matcher.get_grouped_opcodes():
        (_, old_start, _, new_start, _), (_, _, old_end, _, new_end) = group[0], group[-1]
        lines.append(f"@@ -{_range(old_start, old_end)} +{_range(new_start, new_end)} @@")
        for kind, start, end, other_start, other_end in group:
            if kind == "equal":
                lines += [f" {line}" for line in texts[0][start:end]]
            else:
                lines += [f"-{line}" for line in texts[0][start:end]]
                lines += [f"+{line}" for line in texts[1][other_start:other_end]]
    return lines


def _range(start: int, end: int) -> str:
    return f"{start + 1}" if end - start == 1 else f"{start + (end > start)},{end - start}"


class _BoundedMatcher(SequenceMatcher[str]):
    """A matcher that gives up: what it is made of takes hours for some texts of a megabyte, such as one backwards."""

    def __init__(self, before: Sequence[str], after: Sequence[str]) -> None:
        super().__init__(None, before, after)
        self._left, counts = LONG_ENOUGH, Counter(after)
        self._costs = list(accumulate((1 + counts[line] for line in before), initial=0))

    def find_longest_match(self, alo: int = 0, ahi: int | None = None, blo: int = 0, bhi: int | None = None) -> Match:
        """See `SequenceMatcher`; none when too much was looked at."""
        self._left -= self._costs[-1 if ahi is None else ahi] - self._costs[alo]
        return super().find_longest_match(alo, ahi, blo, bhi) if self._left > 0 else Match(alo, blo, 0)


def _quoted(name: str) -> str:
    """A name as git writes it: a line end in it ends no line of a patch."""
    plain = re.sub(r'[\x00-\x1f\x7f"\\]', lambda m: f"\\{ord(m[0]):03o}", name)
    return name if plain == name else f'"{plain}"'


def apply(changes: list[FileChange], folder: Path) -> list[str]:
    """Make a folder as the run left its copy; returns the names of the files that were written or deleted.

    Raises `TaskError`, and touches nothing, where a path leads out, something cannot be written, or a file is not what
    the run began with: the text shows how it differs.
    """
    with _locked(folder):
        try:
            targets = [_target(folder, change.kept.name) for change in changes]
            due = [(change, target) for change, target in zip(changes, targets) if not _is_there(change, target)]
            differing = [text for change, target in due if (text := _conflict(change, target))]
        except OSError as error:
            raise TaskError(f"{folder} cannot be read: {error}; nothing was written.") from error
        if differing:
            listed = "\n".join(differing)
            raise TaskError(
                f"{folder} was changed since the run began, and nothing was written. What differs from what it began "
                f"with:\n{listed}\nSee `aworld diff`; undo these changes, or bring the run's elsewhere with --to."
            )
        for parent in {target.parent for target in targets}:  # of one that was killed
            for part in parent.glob(f"{PART}*"):
                part.unlink()
        _write([change for change, _ in due], folder)
    return [change.kept.name for change, _ in due]


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    """Alone at work in a folder, as far as the system has locks."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _target(folder: Path, name: str) -> Path:
    """The place of a file. Raises `TaskError` for one that is not in the folder, or behind a link."""
    parts = PurePosixPath(name).parts
    inside = parts and not name.startswith("/") and "\0" not in name and str(PurePosixPath(name)) == name
    if not inside or ".." in parts or is_left_out(name):
        raise TaskError(f"{name!r} is no path of a file in {folder} that may be written; nothing was.")
    place = folder
    for part in parts:
        if place.is_symlink() and place != folder:
            break
        if place.exists() and not place.is_dir():
            raise TaskError(f"{place} is a file, and the run has a folder there; nothing was written. Move it away.")
        place /= part
    if place.is_symlink():
        raise TaskError(f"{place} is a link, which is not followed; nothing was written.")
    return place


def _is_there(change: FileChange, target: Path) -> bool:
    """Whether the folder has the file already as the run left it."""
    if change.after is None or not target.is_file():
        return change.after is None and not target.exists()
    wanted = change.kept.executable
    return target.read_bytes() == change.after and wanted in (None, bool(target.stat().st_mode & 0o111))


def _conflict(change: FileChange, target: Path) -> str | None:
    """How a file differs from what the run began with; None where it does not."""
    name = change.kept.name
    if target.exists() and not target.is_file():  # a pipe would be waited for
        return f"{name} is {'a folder' if target.is_dir() else 'no file'}"
    there = target.read_bytes() if target.exists() else None
    if there is None and change.before is not None:
        return f"{name} was deleted"
    if there is None or hashlib.sha256(there).hexdigest() == change.kept.before:
        return None
    return "\n".join(compared(change.before or b"", there, f"{name} (as the run began)", f"{name} (now)"))


def _write(changes: list[FileChange], folder: Path) -> None:
    """Write all files beside their places first, and keep what is there; whatever fails leaves everything as it was. A
    process that is killed in between leaves files of which each is whole: the same again completes it."""
    mark = f"{PART}{secrets.token_hex(8)}"
    staged: list[tuple[Path, Path, Path]] = []
    placed: list[tuple[Path, Path]] = []
    stuck: set[Path] = set()
    try:
        for number, change in enumerate(changes):
            target = folder / change.kept.name
            new, old = (target.with_name(f"{mark}-{number}-{which}") for which in ("new", "old"))
            staged.append((target, new, old))
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                shutil.copy2(target, old)
            if change.after is not None:
                new.write_bytes(change.after)
                mode = (old if old.exists() else new).stat().st_mode & 0o777
                if change.kept.executable is not None:  # by those who may read it
                    mode = mode | (mode & 0o444) >> 2 if change.kept.executable else mode & ~0o111
                new.chmod(mode)
        for change, (target, new, old) in zip(changes, staged):
            placed.append((target, old))
            new.replace(target) if change.after is not None else target.unlink()
    except BaseException as error:
        for target, old in placed:
            try:
                old.replace(target) if old.exists() else target.unlink(missing_ok=True)
            except OSError:  # the others are put back all the same, and what this one was stays beside it
                stuck.add(old)
        if isinstance(error, OSError):
            kept = f"what was there is kept in {', '.join(map(str, stuck))}" if stuck else "everything is as it was"
            raise TaskError(f"{folder} cannot be written: {error}; {kept}.") from error
        raise
    finally:
        for target, new, old in staged:
            new.unlink(missing_ok=True)
            if old not in stuck:
                old.unlink(missing_ok=True)
            for parent in target.parents[: len(Path(os.path.relpath(target, folder)).parts) - 1]:
                with suppress(OSError):  # it has other files
                    parent.rmdir()
