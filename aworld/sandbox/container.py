"""A sandbox in a container of Docker or Podman.

The container has no network unless allowed, no capability, a read-only root and a user without rights; the work folder
and /tmp are in memory, with their size limited. Files are worked on by small shell scripts inside, because an engine
does not see into such folders; the image needs a shell, `cat`, `stat`, `find`, `grep`, `readlink` and `tar`, as most
have. Processor time is limited for each process of a command, not for all of them together.
"""

from __future__ import annotations

import asyncio
import secrets
import shlex
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from aworld.core.sandbox import ExecResult, FileInfo, SandboxError, SandboxLimits, SandboxProcess
from aworld.sandbox import reaper
from aworld.sandbox.base_sandbox import READ_BYTES, RemoteSandbox, check_end, limit_of, new_id
from aworld.sandbox.container_engine import PULL_SECONDS, ContainerEngine, ExecStream, engine_address
from aworld.sandbox.container_program import OBEY_SECONDS, ContainerProgram
from aworld.sandbox.reaper import Record

WORK = "/work"
USER = "1000:1000"
SCRATCH_MB = 64
POLL_SECONDS = 0.05
"""Between two looks at a command that closed its output and goes on."""
IDLE = "while :; do sleep 3600 & wait; done"
"""What process 1 does: it waits, and so takes note of processes that nobody else waits for."""

MISSING, OUTSIDE, FOLDER, OTHER, LOCKED, FULL, SHORT = 44, 45, 46, 47, 48, 49, 50
_PLACE = f"""
cd "$(dirname "$1")" 2>/dev/null || exit {MISSING}
b=$(basename "$1")
if [ -e "$b" ] || [ -L "$b" ]; then f=$(readlink -f "$b") || exit {OUTSIDE}; else f=$(pwd -P)/$b; fi
case "$f/" in {WORK}/*) ;; *) exit {OUTSIDE};; esac
"""
READ = (
    f'{_PLACE}[ -d "$f" ] && exit {FOLDER}; [ -e "$f" ] || exit {MISSING}; [ -f "$f" ] || exit {OTHER}; exec cat "$f"'
)
WRITE = f"""
mkdir -p "$(dirname "$1")" || exit 1{_PLACE}
[ -d "$f" ] && exit {FOLDER}; [ -e "$f" ] && [ ! -f "$f" ] && exit {OTHER}
[ -e "$f" ] && [ ! -w "$f" ] && exit {LOCKED}
p=$(dirname "$f")/$2
: > "$p" || exit 1
cat > "$p" || exit {FULL}
[ "$(stat -c %s "$p")" = "$3" ] || exit {SHORT}
[ ! -e "$f" ] || chmod "$(stat -c %a "$f")" "$p" || exit 1
exec mv -f "$p" "$f"
"""
NO_ROOM = (b"No space left", b"Wrote only", b"File size limit")
"""What tar and the shell say of that."""
LIST = f"{_PLACE}cd \"$f\" || exit {MISSING}; exec find . -mindepth 1 -maxdepth 1 -exec stat -c '%f %s %n' {{}} +"
UNPACK = f'mkdir -p "$1" || exit 1{_PLACE}exec tar -x -f - -C "$f"'
RESTORE = f"""
move() {{
  m=
  if [ -d "$1" ] && [ ! -L "$1" ] && [ ! -w "$1" ]; then m=$(stat -c %a "$1"); chmod u+w "$1"; fi
  mv "$1" "$2" && {{ [ -z "$m" ] || chmod "$m" "$2"; }}
}}
cd {WORK} && mkdir "$2" "$2/new" "$2/old" && tar -x -f - -C "$2/new" || exit 1
for e in * .[!.]* ..?*; do
  [ "$e" = "$2" ] || {{ [ ! -e "$e" ] && [ ! -L "$e" ]; }} || move "./$e" "$2/old/$e" || exit 1
done
cd "$2/new" || exit 1
for e in * .[!.]* ..?*; do {{ [ ! -e "$e" ] && [ ! -L "$e" ]; }} || move "./$e" "{WORK}/$e" || exit 1; done
cd {WORK}; chmod -R u+rwx "$2"; rm -rf "$2"
"""
"""To leave its folder, a folder has to be writable."""
DISCARD = f'{_PLACE}[ -d "$f" ] || f=$(dirname "$f"); chmod -R u+rwx "$f/$2"; rm -rf "$f/$2"'
PACK = f"""
cd {WORK}
for e in * .[!.]* ..?*; do if [ -e "$e" ] || [ -L "$e" ]; then set -- "$@" "./$e"; fi; done
shift
[ $# -gt 0 ] || exec head -c 10240 /dev/zero
exec tar -c -f - "$@"
"""
"""The entries one by one: the folder itself belongs to root, so that nobody inside could restore it. An empty archive
is all zeros."""

SCRIPTS = {"read": READ, "write": WRITE, "list": LIST, "pack": PACK, "unpack": UNPACK, "restore": RESTORE,
           "discard": DISCARD}  # fmt: skip


class ContainerSandbox(RemoteSandbox):
    """A container. Made by `open`. Exit codes above 128 are those of the engine."""

    work = WORK
    limits_by = "cgroup"

    def __init__(self, limits: SandboxLimits, engine: ContainerEngine, id: str) -> None:
        super().__init__(limits, id)
        self._engine = engine

    @classmethod
    async def open(
        cls,
        image: str,
        limits: SandboxLimits | None = None,
        *,
        engine: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> ContainerSandbox:
        """Make a container of an image, which is pulled if it is missing, and start it.

        `engine` is the address of the engine, by default DOCKER_HOST or the socket of Docker or Podman. Raises
        `SandboxError` if the engine cannot be reached or refuses.
        """
        limits = limits or SandboxLimits()
        api = ContainerEngine(engine_address(engine))
        await api.ask("GET", "/version")  # where nobody answers, nothing is left behind, and nothing is recorded
        sandbox = cls(limits, api, new_id())
        reaper.record(sandbox.id, "container", {"engine": api.address})
        try:
            wanted = _settings(image, limits, sandbox.id, env or {})
            path = f"/containers/create?name={sandbox.id}"
            if "Id" not in (await api.ask("POST", path, wanted, accept=(404,)) or {}):
                await api.ask("POST", f"/images/create?fromImage={quote(_tagged(image))}", seconds=PULL_SECONDS)
                await api.ask("POST", path, wanted)
            await api.ask("POST", f"/containers/{sandbox.id}/start")
        except BaseException:
            await asyncio.shield(sandbox.close())
            raise
        return sandbox

    async def _exec(
        self, argv: list[str], stdin: bytes | None, cwd: str, env: Mapping[str, str], timeout: float
    ) -> ExecResult:
        # It is over when nobody holds its output open any more; after a time-out all that runs in the container is
        # killed. Any exit code may be the command's own. The shell around it is gone when the command runs, so only
        # one that could not start it comes to the trap; the command does not know the mark.
        mark, cpu = secrets.token_hex(8), int(self.limits.cpu_seconds) + 1
        enter = (
            f"trap 'printf {mark} >&2' EXIT; {self._entered(cwd)} "
            f'ulimit -S -t {cpu}; ulimit -H -t {cpu + 1}; exec "$@"'
        )
        result = await self._run(["/bin/sh", "-c", enter, "sh", *argv], stdin, env, timeout, self.limits.output_bytes)
        if result.stderr.endswith(mark.encode()):
            why = result.stderr.decode(errors="replace").removesuffix(mark).strip()
            raise SandboxError(f"{argv[0]} cannot be started in {cwd}: {why}")
        return result

    async def _open_process(self, argv: list[str], cwd: str, env: Mapping[str, str]) -> SandboxProcess:
        self._check_open()
        settings = {"Env": [f"{name}={value}" for name, value in env.items()], "User": USER, "WorkingDir": self.work}
        program = await ContainerProgram.start(
            self._engine, self.id, self._entered(cwd), argv, settings, self._run_script, self.close
        )
        self._keep(program)
        return program

    async def list(self, path: str = ".") -> list[FileInfo]:
        """The entries of a folder, by name. Names with line breaks are not shown whole."""
        text = (await self._do("list", path, most=READ_BYTES)).decode(errors="replace")
        entries: list[FileInfo] = []
        for line in text.splitlines():
            mode, _, rest = line.partition(" ")
            size, _, name = rest.partition(" ./")
            if name and size.isdigit():
                folder = int(mode, 16) & 0o170000 == 0o040000
                entries.append(FileInfo(name, folder, 0 if folder else int(size)))
        return sorted(entries, key=lambda entry: entry.name)

    async def _restore(self, snapshot: bytes) -> None:
        check_end(snapshot)
        await super()._restore(snapshot)

    async def _destroy(self) -> None:
        await _remove(self._engine, self.id)

    @staticmethod
    async def destroy(record: Record) -> None:
        """Remove a container that a dead runtime left behind."""
        await _remove(ContainerEngine(record.detail["engine"]), record.id)

    def _entered(self, cwd: str) -> str:
        """The beginning of a script that works in a folder.

        It is entered inside: an engine would make one that is missing, and follow a link that leads out.
        """
        folder = shlex.quote(self.inside(cwd))
        leads_out = f'echo "leads out of the work folder" >&2; exit {OUTSIDE}'
        return f'cd {folder} || exit 126; case "$(pwd -P)/" in {self.work}/*) ;; *) {leads_out};; esac;'

    async def _run_script(self, argv: list[str]) -> ExecResult:
        return await self._run(argv, None, {}, self.limits.wall_seconds, 1000)

    async def _do(self, operation: str, path: str, *more: str, stdin: bytes | None = None, most: int = 0) -> bytes:
        argv = ["/bin/sh", "-c", SCRIPTS[operation], "sh", self.inside(path), *more]
        result = await self._run(argv, stdin, {}, self.limits.wall_seconds, max(most, 1000))
        if result.exit_code == MISSING:
            raise FileNotFoundError(f"{path}: no such file or folder")
        if result.exit_code == FOLDER:
            raise IsADirectoryError(f"{path}: is a folder")
        if result.exit_code != 0:
            if result.exit_code == FULL or any(words in result.stderr for words in NO_ROOM):
                raise self.full(path)
            reasons = {
                OUTSIDE: "leads out of the work folder", OTHER: "is not a file", LOCKED: "is read-only",
                SHORT: "the data ended early",
            }  # fmt: skip
            errors = result.stderr.decode(errors="replace").strip()[:500] or f"failed with {result.exit_code}"
            raise SandboxError(f"{path}: {reasons.get(result.exit_code, errors)}")
        if result.truncated:
            raise SandboxError(f"{path}: has more than {most} bytes")
        return result.stdout

    async def _run(
        self, argv: list[str], stdin: bytes | None, env: Mapping[str, str], timeout: float, limit: int
    ) -> ExecResult:
        self._check_open()
        started = time.monotonic()
        wanted: dict[str, Any] = {
            "AttachStdin": stdin is not None, "AttachStdout": True, "AttachStderr": True, "Cmd": argv,
            "Env": [f"{name}={value}" for name, value in env.items()], "User": USER, "WorkingDir": WORK,
        }  # fmt: skip
        exec_id = (await self._engine.ask("POST", f"/containers/{self.id}/exec", wanted))["Id"]
        stream = await self._engine.attach(f"/exec/{exec_id}/start", {"Detach": False, "Tty": False})
        kept = _Kept(limit)
        late = False
        try:
            reading = asyncio.create_task(self._read(exec_id, stream, stdin, kept))
            try:
                await asyncio.wait([reading], timeout=timeout)
                late = not reading.done()
            finally:
                if not reading.done():
                    await asyncio.shield(self._kill_all(reading))
            code = await reading
        finally:
            stream.close()
        return ExecResult(
            exit_code=-9 if late else code,
            stdout=bytes(kept.out),
            stderr=bytes(kept.err),
            duration=time.monotonic() - started,
            timed_out=late,
            truncated=kept.truncated,
            limit="wall_seconds" if late else limit_of(code),
        )

    async def _read(self, exec_id: str, stream: ExecStream, stdin: bytes | None, kept: _Kept) -> int:
        """Read the output of a command to its end, and then wait for that of the command, for its exit code."""
        await kept.read(stream, stdin)
        while (state := await self._engine.ask("GET", f"/exec/{exec_id}/json")).get("Running"):  # noqa: ASYNC110 - an engine tells nobody
            await asyncio.sleep(POLL_SECONDS)
        return state["ExitCode"]

    async def _kill_all(self, reading: asyncio.Task[int]) -> None:
        """Kill all but process 1; a container in which something goes on nevertheless is removed."""
        wanted = {"Cmd": ["/bin/sh", "-c", "kill -9 -1"], "User": USER}
        exec_id = (await self._engine.ask("POST", f"/containers/{self.id}/exec", wanted))["Id"]
        await self._engine.ask("POST", f"/exec/{exec_id}/start", {"Detach": True})
        await asyncio.wait([reading], timeout=OBEY_SECONDS)
        if not reading.done():
            reading.cancel()
            await self.close()
            raise SandboxError("a command could not be killed, so its container was removed")


class _Kept:
    """The output of a command, as much as is kept."""

    def __init__(self, limit: int) -> None:
        self.out = bytearray()
        self.err = bytearray()
        self.truncated = False
        self._limit = limit

    async def read(self, stream: ExecStream, stdin: bytes | None) -> None:
        """Feed the input and read until the end."""
        feeding = None if stdin is None else asyncio.create_task(stream.feed(stdin))
        try:
            while (got := await stream.piece()) is not None:
                channel, piece = got
                into = self.err if channel == 2 else self.out
                room = self._limit - len(into)
                into += piece[:room]
                self.truncated = self.truncated or len(piece) > room
        finally:
            if feeding is not None:
                feeding.cancel()


async def _remove(engine: ContainerEngine, id: str) -> None:
    await engine.ask("DELETE", f"/containers/{id}?force=true&v=true", accept=(404,))


def _tagged(image: str) -> str:
    """The name of one image: of a name without a tag, an engine gets all that there are."""
    return image if set(image.rpartition("/")[2]) & {":", "@"} else f"{image}:latest"


def _settings(image: str, limits: SandboxLimits, id: str, env: Mapping[str, str]) -> dict[str, Any]:
    """What the engine is asked to make."""
    memory = limits.memory_mb << 20
    # Processes are limited by PidsLimit; the kernel counts `nproc` for a user over all containers. Without both of
    # these Podman asks for more than it may have.
    ulimits = {"nofile": 1024, "nproc": 32768, "core": 0, "fsize": limits.disk_mb << 20}
    folder = "rw,exec,nosuid,nodev,size={}m,mode=1777"  # Podman cannot give it an owner
    variables = {"HOME": WORK, "TMPDIR": "/tmp", "LANG": "C.UTF-8", **env}
    return {
        "Image": image,
        "Entrypoint": ["/bin/sh", "-c", IDLE],
        "Cmd": [],
        "User": USER,
        "WorkingDir": "/",
        "Env": [f"{name}={value}" for name, value in variables.items()],
        "Labels": {"aworld.sandbox": id},
        "NetworkDisabled": not limits.network,
        "HostConfig": {
            "NetworkMode": "bridge" if limits.network else "none",
            "ReadonlyRootfs": True,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "Memory": memory,
            "MemorySwap": memory,
            "PidsLimit": limits.processes + 2,
            "ShmSize": SCRATCH_MB << 20,
            "Tmpfs": {WORK: folder.format(limits.disk_mb), "/tmp": folder.format(SCRATCH_MB)},
            "Ulimits": [{"Name": name, "Soft": most, "Hard": most} for name, most in ulimits.items()],
        },
    }
