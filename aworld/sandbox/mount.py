"""A folder of this machine in sandboxes: each run works on a copy of it, and what it changes is kept with its log.

The folder itself is never written. At the end of each step the files that differ from the copy are put on record
(`ArtifactKept`), their contents and the originals as blobs of the store. So `aworld diff` and `aworld apply` need no
sandbox, and a run that goes on in another process, or a fork from any step, has the files as they were then.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, cast

from aworld.config.errors import ConfigError
from aworld.core.checks import is_text, typed
from aworld.core.context.base import RunScope
from aworld.core.event import ArtifactKept
from aworld.core.sandbox import Sandbox, SandboxError, SandboxLimits
from aworld.sandbox.changes import LEFT_OUT, is_left_out
from aworld.sandbox.kinds import open_sandbox
from aworld.sandbox.pool import PooledSandbox, SandboxPool

if TYPE_CHECKING:  # it can be imported on Linux alone
    from aworld.sandbox.local_sandbox import LocalSandbox

AT_ONCE = 16
"""Files read at the same time: each takes a process of the sandbox."""
MOST = 5_000
"""Changed files of one step that are kept: as many as are read in 10 to 20 seconds."""
HOME = "/tmp"
"""Where programs keep settings and caches: in the work folder they would count as changes."""


@typed()
def local(
    mount: str | Path | None = None,
    write: Literal["copy", "no"] = "copy",
    *,
    limits: SandboxLimits | None = None,
    size: int = 16,
    **options: Any,
) -> SandboxPool:
    """Sandboxes on this machine for `Agent(sandbox=...)`, each run in one of its own, with a folder in it.

        Agent("coder", sandbox=local(mount="./repo"))

    Args:
        mount: The folder; in the sandbox it is the work folder. Of a git repository, what git does not ignore is
            copied, of another folder all; never `.git`, `.env`, caches of tools, and links that lead out.
        write: `copy`: each run changes a copy of its own; see `response.artifacts`, `aworld diff` and `aworld apply`.
            `no`: the folder itself is shown, all of it, and cannot be written.
        limits: Of each sandbox; `disk_mb` has to hold the copy.
        size: How many sandboxes there may be at a time.
        options: Those of `open_sandbox("local", ...)`, such as `env`.

    Raises:
        ConfigError: When there is no such folder, or the sandbox cannot hold a copy of it.
    """
    limits = limits or SandboxLimits()
    if mount is None:
        return SandboxPool(partial(open_sandbox, "local", limits, **options), size=size)
    folder = Path(mount).expanduser().absolute()
    if write == "copy" or not folder.is_dir():
        members(folder, limits)  # what cannot be is told before anything begins
    options["env"] = {"HOME": HOME, **options.get("env", {})}
    if write == "no":
        if os.geteuid() == 0 and not all(place.stat().st_mode & 0o1 for place in (folder, *folder.parents)):
            raise ConfigError(
                f"mount={str(mount)!r} | no other user may read it, and a runtime that is root starts sandboxes as "
                'another user; use write="copy", or chmod o+rx it and the folders above'
            )
        options["readonly"] = {"/work": folder, **options.get("readonly", {})}
        return SandboxPool(partial(open_sandbox, "local", limits, **options), size=size)
    return FolderPool(folder, limits, size, options)


_NOTHING = (None, False, 0, 0)


class FolderPool(SandboxPool):
    """Sandboxes in which runs work on copies of a folder. Made by `local`."""

    def __init__(self, folder: Path, limits: SandboxLimits, size: int, options: dict[str, Any]) -> None:
        super().__init__(partial(open_sandbox, "local", limits, **options), size=size)
        self.folder, self.limits = folder, limits

    def for_run(self, scope: RunScope) -> FolderCopy:
        """The run's sandbox with its copy, which is made when it is first opened."""
        copy = FolderCopy(self, scope)
        scope.sources.append(copy)
        return copy


class FolderCopy(PooledSandbox):
    """The copy that one run works on. A `RunSandbox` and an `ArtifactSource`."""

    def __init__(self, pool: FolderPool, scope: RunScope) -> None:
        super().__init__(pool, scope, None)
        self.lost = False
        """The log has its files."""
        self._scope, self._folder, self._limits = scope, pool.folder, pool.limits
        self._lock = asyncio.Lock()
        self._filled: LocalSandbox | None = None
        self._archive = b""
        """What the sandbox was filled with: it has the originals of files that change later."""
        self._base: dict[str, tuple[str | None, bool, int, int]] = {}
        """What the copy was made of: digest, whether it is executable, and where in the archive it begins and ends, 0
        for what is in the blobs."""
        self._seen: dict[str, bytes] = {}
        """The files of the sandbox as they were last looked at."""
        self._applied: set[str] = set()
        """Files that the log has as changed, and that the folder has by now."""

    async def open(self) -> Sandbox:
        """The sandbox, with the copy in it; another one where it has died, with the files as the log has them."""
        if self._filled is not None and not self._filled.alive:
            self._filled = None
            await self._end()
        sandbox = await super().open()
        async with self._lock:
            if self._filled is not sandbox:
                await self._fill(cast("LocalSandbox", sandbox))
        return sandbox

    async def _fill(self, sandbox: LocalSandbox) -> None:
        here, contents = str(self._folder), dict[str, bytes]()
        past = {name: kept for (folder, name), kept in self._scope.artifacts.items() if folder == here}
        for name, kept in past.items():
            if kept.digest is not None and self._scope.blobs is not None:
                contents[name] = await self._scope.blobs.blob(kept.digest)
        try:
            data = await asyncio.to_thread(self._pack, past, contents)
        except OSError as error:
            raise SandboxError(f"{self._folder} cannot be copied: {error}") from error
        await sandbox.restore(data)
        self._seen = await sandbox.scan(LEFT_OUT)
        self._filled = sandbox

    def _pack(self, past: dict[str, ArtifactKept], contents: dict[str, bytes]) -> bytes:
        """The folder with what the run has changed in it before, as an archive."""
        self._base, self._applied = {}, set()
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, path, facts in members(self._folder, self._limits):
                if stat.S_ISLNK(facts.st_mode):
                    _put(archive, name, facts.st_mtime, link=os.readlink(path))
                    continue
                data, executable = path.read_bytes(), bool(facts.st_mode & 0o111)
                digest, end, kept = hashlib.sha256(data).hexdigest(), 0, past.get(name)
                if kept is None or (kept.digest == digest and kept.executable in (None, executable)):
                    _put(archive, name, facts.st_mtime, data, executable)
                    end = buffer.tell() - -len(data) % tarfile.BLOCKSIZE
                self._base[name] = (digest, executable, end - len(data), end)
            for name, kept in past.items():
                here, executable, _, end = self._base.get(name, _NOTHING)
                if here == kept.digest and (end or here is None):
                    self._applied.add(name)
                    continue
                now = executable if kept.executable is None else kept.executable
                self._base[name] = (kept.before, executable if kept.executable is None else not now, 0, 0)
                if kept.digest is not None:
                    _put(archive, name, kept.at, contents[name], now)
        self._archive = buffer.getvalue()
        return self._archive

    async def artifacts(self) -> list[dict[str, Any]]:
        """See `ArtifactSource`."""
        async with self._lock:
            sandbox = self._filled
            if sandbox is None:
                return []
            listing, seen = await sandbox.scan(LEFT_OUT), self._seen
            names = {name for name in listing.keys() | seen.keys() if listing.get(name) != seen.get(name)}
            names = {name for name in names | self._applied if is_text(name) and not is_left_out(name)}
            names -= await asyncio.to_thread(_ignored, self._folder, names - self._base.keys())
            changed: list[dict[str, Any] | None] = []
            ordered = sorted(names)
            if len(ordered) > MOST:  # hardly work that somebody wants back
                beyond = f"{len(ordered):,} files changed in one step, at most {MOST:,} are kept: let git ignore them"
                changed.append({"name": ordered[0], "error": beyond})
                ordered.clear()
            for first in range(0, len(ordered), AT_ONCE):
                some = ordered[first : first + AT_ONCE]
                changed += await asyncio.gather(*(self._change(sandbox, name, listing) for name in some))
            self._seen, self._applied = listing, set()
            return [fields for fields in changed if fields is not None]

    async def _change(self, sandbox: LocalSandbox, name: str, listing: dict[str, bytes]) -> dict[str, Any] | None:
        """How a file differs from the original; None where the log says so already."""
        before, was_executable, start, end = self._base.get(name, _NOTHING)
        digest, executable, data, facts = None, None, b"", listing.get(name)
        for place in (name, *map(str, PurePosixPath(name).parents)):
            if place in listing and not stat.S_ISREG(int(listing[place].split()[-1])):  # the file was not deleted
                text = (
                    f"{place} is a link, or closed, or no file; such changes are not kept, and the file stays as it was"
                )
                return {"name": name, "error": text} if name in self._base else None
        if facts is not None:
            try:
                data = await sandbox.read(name)
            except (SandboxError, OSError) as error:
                return {"name": name, "error": str(error)}
            digest, executable = hashlib.sha256(data).hexdigest(), bool(int(facts.split()[-1]) & 0o111)
            executable = None if executable == was_executable else executable
        kept = self._scope.artifacts.get((str(self._folder), name))
        same = (kept.digest, kept.executable, kept.before) if kept is not None else (before, None, before)
        if same == (digest, executable, before):
            return None
        blobs = self._scope.blobs
        if blobs is not None and digest is not None:
            await blobs.put_blob(data)
        if blobs is not None and before is not None and (kept is None or kept.before != before):
            await blobs.put_blob(self._archive[start:end])
        return {
            "name": name, "folder": str(self._folder), "digest": digest, "before": before, "size": len(data),
            "executable": executable,
        }  # fmt: skip


def members(folder: Path, limits: SandboxLimits) -> list[tuple[str, Path, os.stat_result]]:
    """What a copy of the folder has, by its path in it: plain files, and links that lead nowhere else.

    Raises `ConfigError` where there is no such folder, or more than the sandbox may hold.
    """
    if not folder.is_dir():
        raise ConfigError(f"mount={str(folder)!r} | {'not a folder' if folder.exists() else 'there is no such folder'}")
    if str(folder) in ("/", os.path.expanduser("~")):
        raise ConfigError(f"mount={str(folder)!r} | has more than work in it, keys too; name the folder of a project")
    listed: list[tuple[str, Path, os.stat_result]] = []
    size, home = 0, f"{os.path.realpath(folder)}/"
    for name in _names(folder):
        path = folder / name
        if is_left_out(name) or not os.path.lexists(path):  # git may know files that were deleted
            continue
        facts = path.lstat()
        if stat.S_ISLNK(facts.st_mode):
            if os.path.isabs(os.readlink(path)) or not os.path.realpath(path).startswith(home):
                continue
        elif not stat.S_ISREG(facts.st_mode):
            continue
        listed.append((name, path, facts))
        size += facts.st_size
        if size > limits.disk_mb << 20:
            raise ConfigError(
                f"mount={str(folder)!r} | has more than the sandbox may hold, disk_mb={limits.disk_mb} (after "
                f"{len(listed)} files); mount a smaller folder, or give limits=SandboxLimits(disk_mb=...)"
            )
    return listed


def _names(folder: Path) -> Iterator[str]:
    """The files of a folder by their paths in it: of a git repository those that git does not ignore."""
    listed = _git(folder, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if listed:  # else no repository, or an ignored folder of one
        yield from dict.fromkeys(os.fsdecode(name) for name in listed.split(b"\0")[:-1])
        return
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_left_out(name))
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        for name in sorted(files) + links:
            yield os.path.relpath(os.path.join(place, name), folder)


def _ignored(folder: Path, names: Collection[str]) -> set[str]:
    """Those of some new files that git ignores, or that are of a repository inside, of which there is no copy."""
    places = {name: [folder / parent / ".git" for parent in PurePosixPath(name).parents[:-1]] for name in names}
    others = {name for name in names if any(place.exists() for place in places[name])}  # of repositories inside
    text = b"".join(os.fsencode(name) + b"\0" for name in names if name not in others)
    ignored = _git(folder, "check-ignore", "-z", "--stdin", data=text, strict=False) if text else None
    return {os.fsdecode(name) for name in (ignored or b"").split(b"\0")} | others


def _git(folder: Path, *words: str, data: bytes = b"", strict: bool = True) -> bytes | None:
    """What git says of a folder; None where it is in no repository, and where it fails if not `strict`. Raises
    `ConfigError`."""
    if not any((place / ".git").exists() for place in (folder, *folder.parents)):
        return None
    program = shutil.which("git")
    if program is None:
        raise ConfigError(f"mount={str(folder)!r} | is in a git repository, and git is not installed; install it")
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    # Nothing that the repository's settings name is started.
    command = [program, "-c", "core.fsmonitor=false", "-C", str(folder), *words]
    done = subprocess.run(command, input=data, capture_output=True, check=False, env=env)
    if done.returncode > 1 and strict:
        words_of_git = done.stderr.decode(errors="replace").strip().partition("\n")[0]
        raise ConfigError(f"mount={str(folder)!r} | git {words[0]}: {words_of_git}")
    return done.stdout if done.returncode <= 1 else None


def _put(
    archive: tarfile.TarFile, name: str, time: float, data: bytes = b"", executable: bool = False, link: str = ""
) -> None:
    member = tarfile.TarInfo(name)
    member.mtime, member.size, member.mode = int(time), len(data), 0o755 if executable else 0o644
    if link:
        member.type, member.linkname = tarfile.SYMTYPE, link
    archive.addfile(member, io.BytesIO(data))
