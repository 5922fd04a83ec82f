"""The process inside a local sandbox that starts what the runtime asks for; a Python of the sandbox runs this source.

In a box it is process 1: nobody inside can stop it, its end is the end of all, and detached processes become its
children. It starts commands under their limits, and watches what the kernel does not limit for a box as a whole: the
processor time of a command with all its processes, the memory of all processes, the number of files. The runtime does
not trust it: isolation is the kernel's, deadlines and the size of output are the runtime's.

One socket joins both, a datagram for each message, texts separated by NUL and preceded by their number. To the worker:

    run ID FOLDER COUNT ARGV.. ENV..    with two descriptors, output and errors, or three, input first
    do ID OPERATION PATH [OPTION]       the same, for an operation on files
    keep ID FOLDER COUNT ARGV.. ENV..   with two descriptors, input and output, for a program that goes on running
    kill ID
    reclaimed                           what it asked for was done

and from it `ready`, then for each command `end ID STATUS LIMIT ERROR`: the status as of `wait`, the limit that ended it
or nothing, and why it could not be started. `begun ID` says that a program which goes on running was started, and
`reclaim` asks that the kernel give up what it only keeps because there was room.

Its work on files is in `worker_files`, what the kernel tells of processes in `worker_proc`. They import no more than
they need, and C modules directly where the Python ones around them cost milliseconds. Any Python from 3.8 runs them.
"""

from __future__ import annotations

import array
import os
import resource
import select
import sys
import time
from _socket import CMSG_LEN, MSG_CMSG_CLOEXEC, SCM_RIGHTS, SOL_SOCKET, socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as signals
else:
    import _signal as signals

if TYPE_CHECKING or __package__:
    from aworld.sandbox.worker_files import file_operation, inside
    from aworld.sandbox.worker_proc import (
        CLOCK,
        MOST_DESCRIPTORS,
        GroupFigures,
        MemoryUse,
        Process,
        last_number,
        processes,
        shared_mappings,
        tree,
        used_files,
        used_pipes,
        used_sockets,
    )
else:  # a program of its own, which finds nothing but what stands beside it
    sys.path.insert(0, os.path.dirname(__file__))
    from worker_files import file_operation, inside
    from worker_proc import (
        CLOCK,
        MOST_DESCRIPTORS,
        GroupFigures,
        MemoryUse,
        Process,
        last_number,
        processes,
        shared_mappings,
        tree,
        used_files,
        used_pipes,
        used_sockets,
    )

    del sys.path[0]

MESSAGE_BYTES = 192 * 1024
"""A datagram has to fit the kernel's default socket buffer of 208 KB."""
TICK = 0.1
"""Seconds between looks at what runs. A look at 64 processes takes 4 ms."""
SOCKET_BYTES, PIPE_BYTES = 212992, 1 << 16
"""What a socket and a pipe count as memory: the buffer that the kernel lets them fill, which belongs to no process."""
ADDRESSES = 16 << 30
"""Bytes of address space that a process may have beyond its memory: some programs reserve much and use little."""
MARGIN = 8 << 20
"""Bytes by which the figures of the group may be wrong."""
RECLAIM_SECONDS = 2.0
"""In which the kernel has to have reclaimed what it can."""
SETTLE = 0.5
"""Seconds in which what was killed has to end; then everything in the box is killed at once."""

PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 4, 36
"""Numbers of include/uapi/linux/prctl.h."""


class WorkerSettings:
    """The limits of the sandbox, from the command line."""

    def __init__(self, words: list[str]) -> None:
        self.root = words[0]
        self.boxed = words[1] == "boxed"
        self.cpu = float(words[2])
        self.memory = int(words[3]) << 20
        self.processes = int(words[4])
        self.disk = int(words[5]) << 20
        self.files = int(words[6])
        """How many files there may be in all folders that can be written; 0 for any number."""
        self.sockets = words[7] == "own"
        """Whether all sockets of the network namespace are the sandbox's."""
        self.group = words[8]
        """The folder with the figures of its control group; empty if it has none."""


class Command:
    """A command that runs."""

    def __init__(self, id: bytes, pid: int, word: bytes) -> None:
        self.id = id
        self.pid = pid
        self.ours = word == b"do"
        """Whether it is our own work on files, which hides itself as the worker does."""
        self.kept = word == b"keep"
        """Whether it goes on running: its processor time has no limit, and what it started ends with it."""
        self.limit = b""


class Worker:
    """Starts, watches and ends commands."""

    def __init__(self, settings: WorkerSettings, channel: socket) -> None:
        self.settings = settings
        self.channel = channel
        self.commands: dict[int, Command] = {}
        self.files = 0
        self.orphans_cpu = 0.0
        """Processor seconds of ended processes that no command waited for."""
        self.group = GroupFigures(settings.group, settings.root) if settings.group else None
        self.reclaim_asked = 0.0
        """When the runtime was asked to have memory reclaimed, because there is too much; 0 if there is not."""
        self.reclaimed = False
        """Whether that was done."""
        self.killed = 0
        """Processes that the kernel ended for want of memory, as far as they were told."""
        self.ended_cpu = 0.0
        """Processor seconds of all that ended and was waited for here."""
        self.lost = 0.0
        """Processor seconds of processes that nobody waited for, and that show up nowhere."""
        self.forgiven = 0.0
        """How much of it was charged already, or is nobody's fault."""
        self.total_cpu = 0.0
        """At the last look: all that shows up."""
        self.number = last_number()
        """At the last look: the newest process number."""
        self.quiet = True
        """Whether no command was started since the last look."""

    def serve(self) -> None:
        """Answer until the runtime closes its end."""
        woken, wake = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(woken, False)
        signals.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signals.signal(signals.SIGCHLD, woke)
        poll = select.poll()
        poll.register(self.channel.fileno(), select.POLLIN)
        poll.register(woken, select.POLLIN)
        self.channel.send(b"ready")
        looked = time.monotonic()
        while True:
            busy = self.reap()
            for descriptor, _ in poll.poll(TICK * 1000 if busy else None):
                if descriptor == woken:
                    os.read(woken, 4096)
                elif not self.hear():
                    return
            if busy and time.monotonic() - looked >= TICK:
                self.look()
                looked = time.monotonic()

    def hear(self) -> bool:
        """Take a message; False when the runtime is gone."""
        ints = array.array("i")
        data, control, _, _ = self.channel.recvmsg(MESSAGE_BYTES, CMSG_LEN(3 * ints.itemsize), MSG_CMSG_CLOEXEC)
        for level, kind, body in control:
            if (level, kind) == (SOL_SOCKET, SCM_RIGHTS):
                ints.frombytes(body[: len(body) - len(body) % ints.itemsize])
        if not data:
            return False
        if data == b"reclaimed":
            self.reclaimed = True
            return True
        word, id, *rest = data.split(b"\0")
        if word == b"kill":
            for command in self.commands.values():
                if command.id == id:
                    self.kill(command, b"")
                    break
            return True
        try:
            self.start(word, id, rest, list(ints))
        except OSError as error:
            self.tell(id, 0, b"", (error.strerror or str(error)).encode())
        finally:
            for descriptor in ints:
                os.close(descriptor)
        return True

    def tell(self, id: bytes, status: int, limit: bytes, error: bytes) -> None:
        """Say that a command ended."""
        self.channel.send(b"\0".join((b"end", id, b"%d" % status, limit, error)))

    def start(self, word: bytes, id: bytes, rest: list[bytes], descriptors: list[int]) -> None:
        """Fork, and learn whether the program could be started."""
        errors, report = os.pipe()
        self.quiet = False
        pid = os.fork()
        if pid == 0:
            try:
                self.become(word, rest, descriptors)
            except BaseException as error:  # noqa: BLE001 - whatever it is, the copy of the worker must not go on
                text = error.strerror if isinstance(error, OSError) and error.strerror else repr(error)
                os.write(report, text.encode(errors="replace")[:1000])
            finally:
                os._exit(127)
        os.close(report)
        with open(errors, "rb") as file:
            failure = b"" if word == b"do" else file.read()
        if failure:
            os.waitpid(pid, 0)
            self.tell(id, 0, b"", failure)
        else:
            self.commands[pid] = Command(id, pid, word)
            if word == b"keep":
                self.channel.send(b"begun\0" + id)

    def become(self, word: bytes, rest: list[bytes], descriptors: list[int]) -> None:
        """In the child: take its place, its limits and its descriptors, then be the program."""
        os.setsid()
        for number in (signals.SIGINT, signals.SIGPIPE, signals.SIGXFSZ, signals.SIGCHLD):
            signals.signal(number, signals.SIG_DFL)
        nothing = os.open("/dev/null", os.O_RDWR)
        source = [*descriptors, nothing] if word == b"keep" else [nothing, *descriptors][-3:]
        for target, descriptor in enumerate(source):
            os.dup2(descriptor, target)
        self.limit(time_too=word != b"keep")
        if word == b"do":
            self.channel.close()
            file_operation(self.settings.root, self.settings.boxed, *rest)
            os._exit(0)
        os.chdir(inside(self.settings.root, os.fsdecode(rest[0])))
        cut = 2 + int(rest[1])
        argv, env = rest[2:cut], dict(pair.split(b"=", 1) for pair in rest[cut:])
        os.execvpe(argv[0], argv, env)

    def limit(self, time_too: bool) -> None:
        """What the kernel limits, for a process each, but for the number of processes, which counts them all."""
        settings = self.settings
        limits = [
            (resource.RLIMIT_DATA, settings.memory),
            (resource.RLIMIT_FSIZE, settings.disk),
            (resource.RLIMIT_NOFILE, MOST_DESCRIPTORS),
            (resource.RLIMIT_CORE, 0),
        ]
        if time_too:
            limits.append((resource.RLIMIT_CPU, int(settings.cpu) + 1))
        if not self.group:
            limits.append((resource.RLIMIT_AS, settings.memory + ADDRESSES))
        if settings.boxed:  # elsewhere the processes of the user's other programs would count
            limits.append((resource.RLIMIT_NPROC, settings.processes + 1))
        for name, most in limits:
            _, hard = resource.getrlimit(name)
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(name, (most, most))

    def reap(self) -> bool:
        """Take note of what ended; True while something runs."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                self.orphans_cpu = 0.0
                self.forgiven = self.lost
                return False
            if pid == 0:
                return True
            self.ended_cpu += usage.ru_utime + usage.ru_stime
            command = self.commands.pop(pid, None)
            if command is not None:
                if self.group and status == signals.SIGKILL and not command.limit:
                    killed, self.killed = self.killed, self.group.killed()
                    command.limit = b"memory_mb" if self.killed > killed else b""
                if command.kept:
                    self.end(list(self.commands))
                self.tell(command.id, status, command.limit, b"")
            else:
                self.orphans_cpu += usage.ru_utime + usage.ru_stime

    def look(self) -> None:
        """End what is over a limit."""
        running = processes()
        trees = {command.pid: tree(running, command.pid) for command in self.commands.values()}
        for pid, pids in trees.items():
            command = self.commands[pid]
            if not command.kept and sum(running[member].cpu for member in pids) > self.settings.cpu:
                self.kill(command, b"cpu_seconds")
        kept = {pid for pids in trees.values() for pid in pids}
        orphans = [pid for pid in running if pid not in kept]
        if sum(running[pid].cpu for pid in orphans) + self.orphans_cpu > self.settings.cpu:
            self.end(list(trees))
            self.orphans_cpu = 0.0
        if self.hidden_cpu(running) > self.settings.cpu:
            self.end_all(b"cpu_seconds")
            self.forgiven = self.lost
        self.look_at_memory(running, {**trees, 0: orphans})
        if self.settings.files:
            count = used_files(("/tmp", "/dev/shm", self.settings.root))
            if count > max(self.settings.files, self.files):  # grown: one that deletes files may go on
                self.end_all(b"disk_mb")
            self.files = count

    def hidden_cpu(self, running: dict[int, Process]) -> float:
        """Processor seconds of processes that ended without anybody waiting for them: SIGCHLD was ignored."""
        total = self.seen_cpu(running)
        if self.group:
            lost = self.group.cpu() - time.process_time() - total
            if lost > self.lost:  # one that ended in the middle of the look seems lost
                lost = self.group.cpu() - time.process_time() - self.seen_cpu(processes())
            self.lost = max(self.lost, lost)
        else:
            if total < self.total_cpu:
                total = max(total, self.seen_cpu(processes()))
            self.lost += max(0.0, self.total_cpu - total)
            if self.settings.boxed:  # else the numbers are those of the whole machine
                number = last_number()
                if self.quiet and not self.commands:  # all that begins is of what was left behind: a tick for each
                    self.lost += max(0, number - self.number) / CLOCK
                self.number, self.quiet = number, True
            self.total_cpu = total
        if any(command.kept for command in self.commands.values()):
            self.forgiven = self.lost  # it may be theirs, and their time has no limit
        return self.lost - self.forgiven

    def seen_cpu(self, running: dict[int, Process]) -> float:
        """Processor seconds of what runs, and of what ended and was waited for.

        What runs is told in whole ticks, in four parts; for the group's figures these are rounded up.
        """
        rounding = 4 / CLOCK if self.group else 0
        return self.ended_cpu + sum(process.cpu + rounding for process in running.values())

    def look_at_memory(self, running: dict[int, Process], trees: dict[int, list[int]]) -> None:
        """End what holds too much. Exact figures cost more, and are only asked for if the others are too high."""
        most = self.settings.memory
        full = self.group is not None and self.is_full(self.group)
        sizes = {pid: MemoryUse(pid, exact=False) for pid in running}
        total = sum(size.own + size.shared for size in sizes.values())
        if not self.group:
            total += sum(size.mapped for size in sizes.values()) + self.buffers(running, exact=False)
        if total <= most and not full:
            return
        sizes = {pid: MemoryUse(pid, exact=True) for pid in running}
        own, shared = (sum(getattr(size, part) for size in sizes.values()) for part in ("own", "shared"))
        if own + shared > most:
            self.end_largest(trees, sizes)
            return
        if not self.group:
            mapped = shared_mappings(running) + sum(size.mapped for size in sizes.values() if not size.exact)
            full = own + max(shared, mapped) + self.buffers(running, exact=True) > most
        if full:
            self.end_all(b"memory_mb")

    def is_full(self, group: GroupFigures) -> bool:
        """Whether the box holds too much, also after the kernel was made to give up names of files and the like."""
        if group.memory() <= self.settings.memory + MARGIN:
            self.reclaim_asked, self.reclaimed = 0.0, False
        elif not self.reclaim_asked:
            self.reclaim_asked = time.monotonic()
            self.channel.send(b"reclaim")
        elif self.reclaimed or time.monotonic() - self.reclaim_asked > RECLAIM_SECONDS:
            self.reclaim_asked, self.reclaimed = 0.0, False
            return True
        return False

    def buffers(self, running: dict[int, Process], exact: bool) -> int:
        """Bytes that sockets and pipes may hold, which belong to no process."""
        ours = {command.pid for command in self.commands.values() if command.ours}
        total = PIPE_BYTES * used_pipes(running.keys() - ours, exact)
        if self.settings.sockets:
            count, held = used_sockets()
            total += SOCKET_BYTES * count + held
        return total

    def end_largest(self, trees: dict[int, list[int]], sizes: dict[int, MemoryUse]) -> None:
        """End the command, or the processes without one, that has most memory."""
        largest = max(trees, key=lambda root: sum(sizes[pid].own + sizes[pid].shared for pid in trees[root]))
        if largest in self.commands:
            self.kill(self.commands[largest], b"memory_mb")
        else:
            self.end(list(self.commands))

    def end_all(self, limit: bytes) -> None:
        """End every process."""
        for command in self.commands.values():
            command.limit = command.limit or limit
        self.end([])

    def kill(self, command: Command, limit: bytes) -> None:
        """End a command, its descendants, and all that belongs to no command any more."""
        command.limit = command.limit or limit
        self.end([pid for pid in self.commands if pid != command.pid])

    def end(self, roots: list[int]) -> None:
        """Kill all processes but these and their descendants, until none is left."""
        deadline = time.monotonic() + (SETTLE if roots or not self.settings.boxed else 0)
        while time.monotonic() < deadline:
            running = processes()
            kept = {pid for root in roots for pid in tree(running, root)}
            victims = [pid for pid, process in running.items() if pid not in kept and not process.zombie]
            if not victims:
                return
            for pid in victims:
                send_kill(pid)
            time.sleep(0.001)  # the kernel takes a moment
        if self.settings.boxed:
            send_kill(-1)  # every process but this, in one call that nothing outruns
            deadline = time.monotonic() + SETTLE
            while time.monotonic() < deadline and any(not process.zombie for process in processes().values()):
                time.sleep(0.001)  # they have been told; who waits for us is told when they have gone


def send_kill(pid: int) -> None:
    """Kill a process, or all with -1; one that ended meanwhile is fine."""
    try:  # noqa: SIM105
        os.kill(pid, signals.SIGKILL)
    except ProcessLookupError:
        pass


def woke(number: int, frame: object) -> None:
    """The signal that a child ended has done its work by waking the poll."""


def protect(boxed: bool) -> None:
    """Hide this process from those it starts; outside a box, have their orphans, which in a box process 1 has."""
    import ctypes

    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # if the machine runs out of memory, a sandbox is the first to go
    signals.signal(signals.SIGINT, signals.SIG_IGN)  # anyone in the box could send it
    libc = ctypes.CDLL(None, use_errno=True)
    option, value = (PR_SET_DUMPABLE, 0) if boxed else (PR_SET_CHILD_SUBREAPER, 1)
    if libc.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl {option} failed")


def main() -> None:
    """Serve on the socket that is standard input."""
    settings = WorkerSettings(sys.argv[1:])
    channel = socket(fileno=os.dup(0))
    nothing = os.open("/dev/null", os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    protect(settings.boxed)
    worker = Worker(settings, channel)
    try:
        worker.serve()
    except (BrokenPipeError, ConnectionResetError):
        pass  # the runtime is gone
    finally:
        worker.end_all(b"")
        while not settings.boxed and worker.reap():
            time.sleep(0.001)  # killed ones end at once; what is left unreaped would stay as a zombie


if __name__ == "__main__":
    main()
