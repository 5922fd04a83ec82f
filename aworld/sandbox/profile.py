"""How a local sandbox is started: the arguments of bubblewrap, and the remedy where it cannot isolate.

Inside there are the programs of `/usr`, read-only, the files of `/etc` that programs need to start, and three folders
that can be written, each in memory and limited in size: the work folder, `/tmp` and `/dev/shm`. There is no other
process, no network unless allowed, no capability, and no way to get one.

A runtime that is root starts each sandbox as a user of its own without any right: root is exempt from limits on
processes, and two sandboxes of one user could reach each other.
"""

from __future__ import annotations

import functools
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from aworld.core.sandbox import SandboxError, SandboxLimits
from aworld.sandbox import worker, worker_files, worker_proc
from aworld.sandbox.cgroup import INSIDE, ControlGroup
from aworld.sandbox.seccomp import filter_program

WORK = "/work"
"""The work folder inside."""
SCRATCH_MB = 64
"""Most that `/tmp` and `/dev/shm` hold each; the size that Docker gives /dev/shm."""
FILES_PER_MB = 256
"""How many files there may be: as many as have a page of 4 KB each."""
OLDEST = (0, 8)
"""The bubblewrap that knows --size, --disable-userns and --perms."""

INSTALL = "Install bubblewrap 0.8 or newer (Debian, Ubuntu: apt install bubblewrap; Fedora: dnf install bubblewrap)"
OTHERWISE = 'or use a container ("container:python:3.12-slim"), or accept no protection at all with isolation="none"'

ETC = ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "localtime", "mime.types")
ETC_NETWORK = ("resolv.conf", "hosts", "nsswitch.conf", "ssl", "ca-certificates", "pki", "services")
MASKED = ("keys", "key-users", "timer_list", "sched_debug", "latency_stats", "cmdline", "config.gz", "interrupts",
          "softirqs", "modules", "kallsyms", "iomem", "ioports")  # fmt: skip
"""Files of /proc that tell of the whole machine."""

PASSWD = b"sandbox:x:1000:1000::/work:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"
GROUP = b"sandbox:x:1000:\nnogroup:x:65534:\n"

FIRST_USER, USERS = 0x70000000, 0x0FFF0000
"""User numbers that no range of the field is given (systemd, Users, Groups, UIDs and GIDs: "unused")."""


class Python(NamedTuple):
    """The interpreter that sandboxes run, and the folder it needs besides /usr."""

    path: str
    folder: str | None


def new_user() -> int | None:
    """The user number of a new sandbox when this process is root, else None.

    Drawn from 268 million: with 1,000 sandboxes on a machine a draw hits one in use once in 270,000 times, and then
    two sandboxes count their processes together.
    """
    return FIRST_USER + secrets.randbelow(USERS) if os.geteuid() == 0 else None


def find_python(path: str | None, everyone: bool) -> Python:
    """The interpreter for sandboxes: the given one, the runtime's if it lies in /usr, the system's, or the runtime's.

    `everyone` asks for one that any user may read, because the sandbox is not started as the user of this process.
    """
    runtime = os.path.realpath(f"{sys.base_prefix}/bin/python{sys.version_info.major}.{sys.version_info.minor}")
    system = shutil.which("python3", path="/usr/local/bin:/usr/bin:/bin")
    choices = [path] if path else [runtime if runtime.startswith("/usr/") else None, system, runtime]
    for choice in choices:
        if choice and os.access(choice, os.X_OK):
            program = os.path.realpath(choice)
            if program.startswith("/usr/"):
                return Python(program, None)
            folder = os.path.dirname(os.path.dirname(program))
            if not everyone or _open_to_all(program):
                return Python(program, folder)
    wanted = path or runtime
    reason = "no other user may read it, and a runtime that is root starts sandboxes as another user"
    raise SandboxError(
        f"no Python for sandboxes | {wanted}: {reason if os.path.exists(wanted) else 'not found'}; "
        "install python3 of the system, or name one with python="
    )


def _open_to_all(path: str) -> bool:
    """Whether any user may run the file."""
    place = Path(path)
    return place.stat().st_mode & 0o5 == 0o5 and all(parent.stat().st_mode & 0o1 for parent in place.parents)


@functools.cache
def bubblewrap() -> str:
    """The path of bubblewrap. Raises `SandboxError` with the remedy when it is missing or too old."""
    path = shutil.which("bwrap")
    if path is None:
        raise SandboxError(f"local sandboxes need bubblewrap, which is not installed. {INSTALL}, {OTHERWISE}")
    text = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    version = tuple(map(int, re.findall(r"\d+", text)[:2]))
    if version < OLDEST:
        raise SandboxError(f"{path} is too old ({text.strip()}). {INSTALL}, {OTHERWISE}")
    return path


def remedy(words: str) -> str:
    """What to do about a failure of bubblewrap, from its words."""
    if re.search(r"namespace|uid map|clone|unshare|Operation not permitted|Permission denied", words):
        return (
            "The system does not let it make namespaces. As root: sysctl -w user.max_user_namespaces=15000; where the "
            "setting exists also kernel.unprivileged_userns_clone=1 (Debian) or "
            "kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu); in Docker: --security-opt seccomp=unconfined "
            f"--security-opt apparmor=unconfined --security-opt systempaths=unconfined; {OTHERWISE}"
        )
    return f"See what bubblewrap says, {OTHERWISE}"


def worker_arguments(root: str, boxed: bool, limits: SandboxLimits, group: ControlGroup | None = None) -> list[str]:
    """The arguments of the worker, as its `WorkerSettings` reads them."""
    files = limits.disk_mb * FILES_PER_MB if boxed else 0
    numbers = (limits.cpu_seconds, limits.memory_mb, limits.processes, limits.disk_mb, files)
    sockets = "own" if boxed and not limits.network else "shared"
    return [root, "boxed" if boxed else "open", *map(str, numbers), sockets, INSIDE if group else ""]


def box_command(
    limits: SandboxLimits,
    python: Python,
    readonly: Mapping[str, Path],
    group: ControlGroup | None,
    descriptors: list[int],
) -> list[str]:
    """The command line that starts a box; files that it is to have are appended to `descriptors`, to be passed on."""

    def file(data: bytes) -> str:
        descriptor = os.memfd_create("sandbox", 0)
        descriptors.append(descriptor)
        os.write(descriptor, data)
        os.lseek(descriptor, 0, os.SEEK_SET)
        return str(descriptor)

    return [
        *(bubblewrap(), "--unshare-all", "--unshare-user", "--disable-userns", "--cap-drop", "ALL"),
        *(["--share-net"] if limits.network else []),
        *("--new-session", "--die-with-parent", "--as-pid-1", "--clearenv", "--hostname", "sandbox"),
        *("--uid", "1000", "--gid", "1000", "--seccomp", file(filter_program())),
        *_programs(python),
        *_etc(limits.network),
        *("--ro-bind-data", file(PASSWD), "/etc/passwd", "--ro-bind-data", file(GROUP), "/etc/group"),
        *("--proc", "/proc", *_masks(), "--dev", "/dev"),
        *_folder("/dev/shm", "1777", min(SCRATCH_MB, limits.disk_mb)),
        *_folder("/tmp", "1777", min(SCRATCH_MB, limits.disk_mb)),
        *_folder(WORK, "0700", limits.disk_mb),
        *_readonly(readonly),
        *("--symlink", python.path, "/sandbox/bin/python", "--symlink", python.path, "/sandbox/bin/python3"),
        *_worker(file),
        *(
            word
            for name, path in (group.figures if group else {}).items()
            for word in ("--ro-bind", str(path), f"{INSIDE}/{name}")
        ),
        # Both are file systems in memory without a limit: nothing may be written there.
        *("--remount-ro", "/dev", "--remount-ro", "/", "--chdir", WORK, "--"),
        *(python.path, "-I", "-S", "/sandbox/worker.py", *worker_arguments(WORK, True, limits, group)),
    ]


def _readonly(places: Mapping[str, Path]) -> list[str]:
    return [word for inside, outside in places.items() for word in ("--ro-bind", str(outside), inside)]


def _worker(file: Callable[[bytes], str]) -> list[str]:
    """The program that runs inside."""
    sources = [Path(str(module.__file__)) for module in (worker, worker_files, worker_proc)]
    return [word for path in sources for word in ("--ro-bind-data", file(path.read_bytes()), f"/sandbox/{path.name}")]


def _programs(python: Python) -> list[str]:
    """The programs of the system, and the interpreter."""
    words = ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        place = f"/{name}"
        if os.path.islink(place):
            words += ["--symlink", os.readlink(place), place]
        elif os.path.isdir(place):
            words += ["--ro-bind", place, place]
    return words + (["--ro-bind", python.folder, python.folder] if python.folder else [])


def _etc(network: bool) -> list[str]:
    """The settings of the system that programs need, and with a network those of names and certificates."""
    names = (*ETC, *ETC_NETWORK) if network else ETC
    return [word for name in names for word in ("--ro-bind-try", f"/etc/{name}", f"/etc/{name}")]


def _masks() -> list[str]:
    names = [name for name in MASKED if os.path.exists(f"/proc/{name}")]
    return [word for name in names for word in ("--ro-bind", "/dev/null", f"/proc/{name}")]


def _folder(path: str, mode: str, megabytes: int) -> list[str]:
    """A folder in memory that can be written, of limited size."""
    return ["--perms", mode, "--size", str(megabytes << 20), "--tmpfs", path]
