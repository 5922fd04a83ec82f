"""What ends child processes when the runtime is gone: killed, crashed, or ended without closing.

A process of its own, a shell of a megabyte, reads the process groups to watch from a pipe. The runtime alone holds the
other end, so the end of the runtime, however it comes, is the end of the pipe, and then the groups are killed. There is
one guard for the whole runtime, and only while there is something to watch.
"""

from __future__ import annotations

import contextlib
import os
import threading

_SCRIPT = """
trap '' HUP INT TERM
live=
while read -r sign id; do
  case $sign in
    +) live="$live $id";;
    -) kept=; for one in $live; do [ "$one" = "$id" ] || kept="$kept $one"; done; live=$kept;;
  esac
done
for one in $live; do kill -9 "-$one"; done 2>/dev/null
"""


class _Guard:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._groups: set[int] = set()
        self._pipe: int | None = None
        self._pid: int | None = None

    def watch(self, group: int) -> None:
        """Kill this process group when the runtime ends. Call it right after the group was made."""
        with self._lock:
            self._groups.add(group)
            if self._pipe is None:
                self._start()
            else:
                self._tell("+", group)

    def release(self, group: int) -> None:
        """The group has ended."""
        with self._lock:
            self._groups.discard(group)
            self._tell("-", group)
            if not self._groups:
                self._stop()

    def _start(self) -> None:
        if os.name != "posix":
            return  # there, children end when their input does
        reading, self._pipe = os.pipe()  # neither end is inherited by other children
        null = os.open(os.devnull, os.O_RDWR)
        try:
            self._pid = os.posix_spawn(
                "/bin/sh", ["sh", "-c", _SCRIPT], {"PATH": os.defpath}, setpgroup=0,  # out of reach of Ctrl-C
                file_actions=[(os.POSIX_SPAWN_DUP2, reading, 0)] + [(os.POSIX_SPAWN_DUP2, null, fd) for fd in (1, 2)],
            )  # fmt: skip
        finally:
            os.close(reading)
            os.close(null)
        for group in self._groups:
            self._tell("+", group)

    def _tell(self, sign: str, group: int) -> None:
        if self._pipe is None:
            return
        try:
            os.write(self._pipe, f"{sign} {group}\n".encode())
        except BrokenPipeError:  # somebody killed the guard: another one takes over
            self._stop()
            self._start()

    def _stop(self) -> None:
        pipe, pid, self._pipe, self._pid = self._pipe, self._pid, None, None
        if pipe is not None:
            os.close(pipe)
        if pid is not None:
            with contextlib.suppress(ChildProcessError):  # the program reaps children of its own accord
                os.waitpid(pid, 0)  # a shell at the end of its input: a millisecond

    def forget(self) -> None:
        """In a forked child: the guard is the parent's."""
        self._lock = threading.Lock()
        self._groups.clear()
        if self._pipe is not None:
            os.close(self._pipe)
        self._pipe = self._pid = None


GUARD = _Guard()
"""The guard of this runtime."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=GUARD.forget)
