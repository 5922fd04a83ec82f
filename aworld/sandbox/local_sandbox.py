"""A sandbox on this machine, isolated by bubblewrap.

A box is made once and lives until `close`: files stay from command to command, and a command costs a fork in the
worker inside (`worker.py`) rather than a new box. Background processes live on after the command that started them;
the time-out of a command ends them too, with it and its descendants.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal, Self, get_args

from aworld.config.errors import ConfigError
from aworld.core.checks import one_of
from aworld.core.sandbox import ExecResult, FileInfo, SandboxError, SandboxLimits, SandboxProcess
from aworld.sandbox import profile, reaper, worker
from aworld.sandbox.base_sandbox import READ_BYTES, BaseSandbox, new_id
from aworld.sandbox.cgroup import ControlGroup, make_group
from aworld.sandbox.channel import Channel, CommandEnd
from aworld.sandbox.worker_files import FILE_ERROR, FULL

logger = logging.getLogger(__name__)

Isolation = Literal["bubblewrap", "none"]
LimitsBy = Literal["cgroup", "counting"]
WAIT = 'read -r go && exec "$@"'
"""What the launcher is started by: until it is in its group, it must not start anything."""

ERROR_BYTES = 1000
NO_GROUP = (
    "no control group can be made here: run as root, or in a part of the tree that is yours, such as that of "
    "`systemd-run --user --scope`; in a container, with /sys/fs/cgroup writable"
)
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"
FILE_ERRORS: dict[str, type[OSError]] = {
    error.__name__: error for error in (FileNotFoundError, IsADirectoryError, NotADirectoryError, FileExistsError)
}
"""Errors of files that are raised as they are; all others are `SandboxError`."""


class LocalSandbox(BaseSandbox):
    """An isolated place on this machine. Made by `open`; belongs to the event loop in which it was opened."""

    shell = shutil.which("bash", path="/usr/bin:/bin") or "/bin/sh"

    def __init__(
        self,
        limits: SandboxLimits,
        root: Path,
        env: Mapping[str, str],
        channel: Channel,
        *,
        id: str,
        group: ControlGroup | None = None,
    ) -> None:
        super().__init__(limits, id)
        self.limits_by = "cgroup" if group else "counting"
        self._group = group
        self._root = root
        self._env = dict(env)
        self._channel = channel

    @classmethod
    async def open(
        cls,
        limits: SandboxLimits | None = None,
        *,
        isolation: Isolation = "bubblewrap",
        limits_by: LimitsBy | None = None,
        python: str | None = None,
        readonly: Mapping[str, Path] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> LocalSandbox:
        """Make a sandbox.

        `isolation="none"` makes a mere folder: commands run with the rights of this process, and only time, output and
        the size of single processes are limited. `limits_by="cgroup"` refuses where no control group can be made,
        "counting" makes none; by default there is one where it can be. `python` is the interpreter inside, by default
        the system's. `readonly` shows files or folders of this machine, by their path inside. `env` is what commands
        find in their environment besides PATH, HOME, LANG and TMPDIR. Raises `SandboxError`, with the remedy, where
        isolation cannot be had.
        """
        if isolation == "none":
            return await UnisolatedSandbox.open(limits, python=python, readonly=readonly, env=env)
        if limits_by is not None:
            one_of("limits_by", limits_by, get_args(LimitsBy))
        limits, id = limits or SandboxLimits(), new_id()
        user = profile.new_user()
        interpreter = profile.find_python(python, everyone=user is not None)
        group = None if limits_by == "counting" else make_group(id, limits, 2 * profile.SCRATCH_MB)
        if group is None and limits_by == "cgroup":
            raise SandboxError(f'limits_by="cgroup" | {NO_GROUP}')
        descriptors: list[int] = []
        try:
            command = profile.box_command(limits, interpreter, readonly or {}, group, descriptors)
            channel = launch(command, user, descriptors, group)
        except BaseException:
            if group is not None:
                await group.remove()
            raise
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        path = f"/sandbox/bin:{os.path.dirname(interpreter.path)}:{SYSTEM_PATH}"
        base = {"PATH": path, "HOME": profile.WORK, "TMPDIR": "/tmp", "LANG": "C.UTF-8"}
        return await cls(limits, Path(profile.WORK), base | dict(env or {}), channel, id=id, group=group)._begin()

    async def _begin(self) -> Self:
        """Wait until commands can be run."""
        try:
            await self._channel.ready()
        except SandboxError as error:
            await self.close()
            raise SandboxError(f"local sandbox cannot be made | {error}. {profile.remedy(str(error))}") from None
        except BaseException:
            await self.close()
            raise
        return self

    @property
    def alive(self) -> bool:
        """Whether it can still be used."""
        return self._channel.alive

    @property
    def pid(self) -> int:
        """The process of this machine that holds the sandbox; the sandbox ends with it."""
        return self._channel.pid

    async def _exec(
        self, argv: list[str], stdin: bytes | None, cwd: str, env: Mapping[str, str], timeout: float
    ) -> ExecResult:
        started = time.monotonic()
        words = self._command("run", argv, cwd, env)
        end = await self._ask(words, stdin=stdin, timeout=timeout, output_bytes=self.limits.output_bytes)
        if end.error:
            raise SandboxError(f"{argv[0]} cannot be started in {cwd}: {end.error}")
        return ExecResult(
            exit_code=end.status,
            stdout=end.stdout,
            stderr=end.stderr,
            duration=time.monotonic() - started,
            timed_out=end.limit == "wall_seconds",
            truncated=end.truncated,
            limit=end.limit,
        )

    async def _open_process(self, argv: list[str], cwd: str, env: Mapping[str, str]) -> SandboxProcess:
        # What no command owns any more ends with it too.
        program, error = await self._channel.keep(_encoded(self._command("keep", argv, cwd, env)))
        if program is None:
            raise SandboxError(error)
        return program

    async def list(self, path: str = ".") -> list[FileInfo]:
        """The entries of a folder, by name. A name that is not UTF-8 is shown with replacement characters."""
        lines = (await self._do("list", path, most=READ_BYTES)).split(b"\0")[:-1]
        entries = [line.partition(b"/") for line in lines]
        return [FileInfo(name.decode(errors="replace"), head[:1] == b"d", int(head[1:])) for head, _, name in entries]

    async def scan(self, left_out: Sequence[str] = ()) -> dict[str, bytes]:
        """All files by their path, links and folders that are closed to it too, without folders of these names: facts
        that differ when a file was written; the last is its mode."""
        lines = (await self._do("scan", ".", "\n".join(left_out), most=READ_BYTES)).split(b"\0")[:-1]
        entries = [line.partition(b"/") for line in lines]
        return {os.fsdecode(name): facts for facts, _, name in entries}

    async def close(self) -> None:
        """Destroy the sandbox: no process and no file is left."""
        await self._channel.close()
        if self._group is not None:
            await self._group.remove()

    def _command(self, word: str, argv: Sequence[str], cwd: str, env: Mapping[str, str]) -> list[str]:
        """A program as the worker is told of it."""
        settings = [f"{name}={value}" for name, value in (self._env | dict(env)).items()]
        return [word, cwd, str(len(argv)), *argv, *settings]

    async def _do(self, operation: str, path: str, *more: str, stdin: bytes | None = None, most: int = 0) -> bytes:
        """An operation on files, by the worker: a link can lead it nowhere but to other places in the box."""
        words = ("do", operation, path, *more)
        end = await self._ask(words, stdin=stdin, timeout=self.limits.wall_seconds, output_bytes=max(most, ERROR_BYTES))
        if end.status == FILE_ERROR:
            kind, _, reason = end.stderr.decode(errors="replace").partition("\0")
            if kind == FULL:
                raise self.full(path)
            raise FILE_ERRORS.get(kind, SandboxError)(f"{path}: {reason[:ERROR_BYTES]}")
        if end.limit == FULL:
            raise self.full(path)
        if end.status != 0:
            raise SandboxError(f"{operation} {path} failed: {end.limit or f'exit code {end.status}'}")
        if end.truncated:
            raise SandboxError(f"{path} has more than {most} bytes")
        return end.stdout

    async def _ask(self, words: Sequence[str], *, stdin: bytes | None, timeout: float, output_bytes: int) -> CommandEnd:
        return await self._channel.run(_encoded(words), stdin=stdin, timeout=timeout, output_bytes=output_bytes)


class UnisolatedSandbox(LocalSandbox):
    """A folder with time and output limits, and no protection: commands have the rights of this process."""

    _warned: ClassVar[bool] = False

    @classmethod
    async def open(  # pyright: ignore[reportIncompatibleMethodOverride] - its isolation is none
        cls,
        limits: SandboxLimits | None = None,
        *,
        python: str | None = None,
        readonly: Mapping[str, Path] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> UnisolatedSandbox:
        """Make one; warns the first time. Raises `ConfigError` for `readonly`, which it cannot keep."""
        if readonly:
            raise ConfigError('readonly= | needs isolation="bubblewrap"; without it upload the files')
        if not UnisolatedSandbox._warned:
            UnisolatedSandbox._warned = True
            logger.warning(
                "isolation=none | commands run with the rights of this process: its files, its network, its user; "
                "disk_mb, processes and network=False are not enforced"
            )
        limits = limits or SandboxLimits()
        id = new_id()
        interpreter = os.path.abspath(python or sys.executable)
        folder = reaper.record(id, "folder")
        root, programs = folder / "work", folder / "bin"
        try:
            root.mkdir()
            programs.mkdir()
            (programs / "python").symlink_to(interpreter)  # as in a box; a system's may have another name
            arguments = profile.worker_arguments(str(root), False, limits)
            channel = launch([interpreter, "-I", "-S", worker.__file__, *arguments], None, [])
        except BaseException:
            await reaper.forget(id)
            raise
        path = f"{os.path.dirname(interpreter)}:{SYSTEM_PATH}:{programs}"
        base = {"PATH": path, "HOME": str(root), "TMPDIR": str(root), "LANG": "C.UTF-8"}
        return await cls(limits, root, base | dict(env or {}), channel, id=id)._begin()

    async def close(self) -> None:
        """End its processes and delete its folder."""
        await super().close()
        await reaper.forget(self.id)


def _encoded(words: Sequence[str]) -> list[bytes]:
    """The words as they are sent."""
    if any("\0" in word for word in words):
        raise SandboxError("a NUL character cannot be part of a command or a path")
    return [word.encode(errors="surrogateescape") for word in words]


def launch(
    command: Sequence[str], user: int | None, descriptors: Sequence[int], group: ControlGroup | None = None
) -> Channel:
    """Start a worker with nothing of this process but these descriptors: as another user, in a group, if given."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = None
    try:
        process = subprocess.Popen(
            ["/bin/sh", "-c", WAIT, "sh", *command] if group else command,
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=descriptors,
            cwd="/",
            env={},
            start_new_session=True,  # Ctrl-C is for the runtime, which ends its sandboxes in its own time
            user=user,
            group=user,
            extra_groups=None if user is None else [],
        )
        if group is not None:
            try:
                group.enter(process.pid)
            except OSError as error:
                raise SandboxError(f'the control group cannot be entered: {error}; say limits_by="counting"') from None
            ours.send(b"\n")
        return Channel(process, ours, user, group.reclaim if group else None)
    except BaseException:
        ours.close()
        if process is not None:
            process.kill()
            process.wait()
        raise
    finally:
        theirs.close()
