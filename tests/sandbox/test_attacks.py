"""What code in a sandbox may try. Each attack is refused in a box.

Those that harm nobody are also run without isolation, where each succeeds: so it is the box that refuses them.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from aworld.core.sandbox import SandboxError, SandboxLimits
from aworld.sandbox.local_sandbox import LimitsBy
from aworld.sandbox.profile import MASKED
from tests.sandbox.places import SMALL, gone, local, marked, needs_bubblewrap, new_mark, python

pytestmark = needs_bubblewrap
ROOT = os.geteuid() == 0

SYSCALL = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(*args):
    result = libc.syscall(*args)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
"""


@dataclass
class Host:
    """Things on this machine that a box must not reach."""

    folder: Path
    port: int
    victim: int
    """A process of the same user, with a secret in its environment."""


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    folder = Path(tempfile.mkdtemp(prefix="aworld-host-"))
    folder.chmod(0o777)  # whoever the box is, what keeps it away is not the mode
    (folder / "secret").write_text("host-secret")
    victim = subprocess.Popen(["sleep", "1000"], env={"SECRET": "host-secret"})
    listening = socket.create_server(("127.0.0.1", 0))
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind(f"\0aworld-test-{victim.pid}")
    abstract.listen()

    def greet(server: socket.socket) -> None:
        while True:
            try:
                guest, _ = server.accept()
            except OSError:
                return
            guest.sendall(b"host-secret")
            guest.close()

    for server in (listening, abstract):
        threading.Thread(target=greet, args=(server,), daemon=True).start()
    yield Host(folder, listening.getsockname()[1], victim.pid)
    victim.kill()
    victim.wait()
    for server in (listening, abstract):
        server.shutdown(socket.SHUT_RDWR)
        server.close()
    shutil.rmtree(folder)


PROGRAMS = {
    "file of the host": "print(open('{folder}/secret').read())",
    "file of the host by the root of a process": "print(open('/proc/{victim}/root{folder}/secret').read())",
    "file of the host by a link": "import os; os.symlink('{folder}/secret', 'l'); print(open('l').read())",
    "file of the host written": "print(open('{folder}/written', 'w').write('x') and 'host-secret')",
    "environment of other processes": """
import glob
for path in glob.glob('/proc/[0-9]*/environ'):
    try:
        print('host-secret' if 'host-secret' in open(path).read() else '')  # and no more: this shows up in reports
    except OSError:
        pass
""",
    "other processes": "print(open('/proc/{victim}/cmdline').read().replace('sleep', 'host-secret'))",
    "network": "import socket; print(socket.create_connection(('127.0.0.1', {port}), 2).recv(99))",
    "abstract socket": """
import socket
s = socket.socket(socket.AF_UNIX)
s.connect('\\0aworld-test-{victim}')
print(s.recv(99))
""",
    "ptrace": SYSCALL + """
child = os.fork()
if child == 0:
    os.read(os.pipe()[0], 1)
libc.ptrace.restype = ctypes.c_long
if libc.ptrace(16, child, 0, 0) == 0:  # PTRACE_ATTACH
    print('host-secret')
os.kill(child, 9)
""",
    "memory of another process": SYSCALL + """
secret = ctypes.create_string_buffer(b'host-secret')
got = ctypes.create_string_buffer(11)
class Vec(ctypes.Structure):
    _fields_ = [('base', ctypes.c_void_p), ('len', ctypes.c_size_t)]
there, here = Vec(ctypes.addressof(secret), 11), Vec(ctypes.addressof(got), 11)
if os.fork() == 0:
    libc.process_vm_readv(os.getppid(), ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
    print(got.value, flush=True)
    os._exit(0)
os.wait()
""",
    "keyring": SYSCALL + """
if libc.syscall({add_key}, b'user', b'aworld-test', b'payload', 7, -3) > 0:  # add_key to the session's keyring
    print('host-secret')
""",
    "user namespace": "import subprocess; subprocess.run(['unshare', '-U', 'true'], check=True); print('host-secret')",
    "user namespace by clone": SYSCALL + """
child = call({clone}, 0x10000000 | 17, 0, 0, 0, 0)  # CLONE_NEWUSER | SIGCHLD
if child == 0:
    os._exit(0)
print('host-secret')
""",
    "mount": SYSCALL + """
os.mkdir('m')
if libc.mount(b'none', b'm', b'tmpfs', 0, None) == 0:
    libc.umount(b'm')
    print('host-secret')
""",
    "settings of the kernel": """
for path in ('/proc/sys/kernel/core_pattern', '/proc/sysrq-trigger'):
    try:
        open(path, 'r+b', buffering=0).close()
        print('host-secret')
    except OSError:
        pass
""",
    "socket of the hypervisor": "import socket; socket.socket(socket.AF_VSOCK); print('host-secret')",
    "raw socket": "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW); print('host-secret')",
    "input of a terminal": """
import fcntl, os, pty, termios
pid, fd = pty.fork()
if pid == 0:
    fcntl.ioctl(0, 0x5412, b'x')  # TIOCSTI
    print('host-secret', flush=True)
    os._exit(0)
try:
    while piece := os.read(fd, 999):
        os.write(1, piece)
except OSError:
    pass
""",
    "time of the machine": "import time; time.clock_settime(0, time.time()); print('host-secret')",
    "name of the machine": "import socket; socket.sethostname(socket.gethostname()); print('host-secret')",
    "devices": "import os; os.mknod('d', 0o20666, os.makedev(1, 3)); print('host-secret')",
    "the same user as root": "import os; os.setuid(0); print('host-secret')",
    "kernel tracing": SYSCALL + """
if libc.syscall({bpf}, 99, 0, 0) < 0 and ctypes.get_errno() == 22:  # EINVAL: the call itself is let through
    print('host-secret')
""",
}  # fmt: skip
NUMBERS = {"add_key": (248, 217), "clone": (56, 220), "bpf": (321, 280)}


def program(name: str, host: Host) -> str:
    """The attack with the host's things filled in."""
    text = PROGRAMS[name]
    values: dict[str, object] = {"folder": host.folder, "port": host.port, "victim": host.victim}
    column = 1 if os.uname().machine == "aarch64" else 0
    values |= {name: pair[column] for name, pair in NUMBERS.items()}
    for key, value in values.items():
        text = text.replace(f"{{{key}}}", str(value))
    return text


NEED_ROOT = {"mount", "settings of the kernel", "raw socket", "time of the machine", "name of the machine", "devices",
             "the same user as root", "kernel tracing"}  # fmt: skip
"""Attacks that without a box only root can run."""
MAY_LACK = {"socket of the hypervisor", "input of a terminal", "keyring"}
"""Attacks that a kernel may refuse by itself."""


@pytest.mark.parametrize("name", PROGRAMS)
async def test_it_is_refused(name: str, host: Host) -> None:
    async with local() as box:
        result = await python(box, program(name, host))
        assert b"host-secret" not in result.stdout, name
        assert not result.timed_out
        assert (await box.exec("echo fine")).stdout == b"fine\n"
    assert not (host.folder / "written").exists()


@pytest.mark.parametrize("name", PROGRAMS)
async def test_without_a_box_it_succeeds(name: str, host: Host) -> None:
    if name in NEED_ROOT and not ROOT:
        pytest.skip("only root can do this without a box")
    async with local(isolation="none") as place:
        result = await python(place, program(name, host))
    (host.folder / "written").unlink(missing_ok=True)
    if name in MAY_LACK and b"host-secret" not in result.stdout:
        pytest.skip(f"this kernel refuses it to everyone: {result.stderr[-100:].decode()}")
    assert b"host-secret" in result.stdout, result.stderr


async def test_a_network_is_had_by_asking_for_it(host: Host) -> None:
    async with local(SandboxLimits(network=True)) as box:
        assert b"host-secret" in (await python(box, program("network", host))).stdout


async def test_a_set_user_id_program_gives_nothing(open_folder: Path) -> None:
    if not ROOT:
        pytest.skip("only root can make such a program")
    program = open_folder / "id"
    shutil.copy(shutil.which("id") or "/usr/bin/id", program)
    program.chmod(0o4755)
    command = [program, "-u"]
    without = await asyncio.to_thread(subprocess.check_output, command, user=12345, group=12345)
    assert without == b"0\n"  # outside it makes any user root
    async with local(readonly={"/tools": open_folder}) as box:
        assert (await box.exec("/tools/id -u")).stdout == b"1000\n"
        made = await box.exec(
            "cp /tools/id . && chmod u+s id && ./id -u; grep -E 'NoNewPrivs|CapBnd' /proc/self/status"
        )
        assert made.stdout.split() == [b"1000", b"CapBnd:", b"0" * 16, b"NoNewPrivs:", b"1"]


async def test_paths_that_lead_out_are_refused() -> None:
    async with local() as box:
        await box.exec("ln -s /etc/passwd link; ln -s / all; ln -s /tmp/new made; echo x > /tmp/t; mkdir real")
        for path in ("../etc/passwd", "/etc/passwd", "link", "all/etc/passwd", "real/../../tmp/t", "/work/../tmp/t"):
            with pytest.raises(SandboxError, match="leads out of the work folder"):
                await box.read(path)
        for path in ("../tmp/new", "/tmp/new", "made", "all/tmp/new"):
            with pytest.raises(SandboxError, match="leads out of the work folder"):
                await box.write(path, b"x")
        for path in ("..", "/", "all", "all/etc"):
            with pytest.raises(SandboxError, match="leads out of the work folder"):
                await box.list(path)
        with pytest.raises(SandboxError, match="leads out of the work folder"):
            await box.upload(Path(__file__), "all/tmp/new")
        with pytest.raises(SandboxError, match="leads out of the work folder"):
            await box.exec("true", cwd="all")
        assert (await box.exec("ls /tmp")).stdout == b"t\n"


async def test_what_is_no_file_is_not_read() -> None:
    async with local() as box:
        await box.exec("mkfifo pipe; truncate -s 15M sparse; ln -s loop loop")
        with pytest.raises(SandboxError, match="not a file"):
            await box.read("pipe")
        with pytest.raises(SandboxError, match="not a file"):
            await box.write("pipe", b"x")
        assert len(await box.read("sparse")) == 15 << 20
        with pytest.raises((SandboxError, OSError)):
            await box.read("loop")


async def test_a_fork_bomb_stops_at_the_limit() -> None:
    bomb = """
import os
count = 0
try:
    while count < 200:
        if os.fork() == 0:
            os.read(os.pipe()[0], 1)
        count += 1
except OSError:
    pass
print(count, flush=True)
"""
    async with local() as box:
        result = await python(box, bomb, timeout=5)
        assert int(result.stdout) == SMALL.processes - 1
        shell = await box.exec(":(){ :|:& };:; echo $(ls /proc | grep -c '^[0-9]')", timeout=1)
        assert int(shell.stdout or b"0") <= SMALL.processes + 1
        # What was left of the second is in the way of a third command, until a time-out ends it.
        await box.exec("sleep 9", timeout=0.1)
        assert (await box.exec("echo fine")).stdout == b"fine\n"
    async with local(SandboxLimits(processes=250)) as box:
        assert int((await python(box, bomb, timeout=5)).stdout) == 200


FILL = "x = bytearray(300 << 20); print('filled')"
FILL_BY_MANY = """
import os, time
for _ in range(4):
    if os.fork() == 0:
        break
x = bytearray(os.urandom(1 << 20)) * 60
print('filled', flush=True)
time.sleep(1.5)
"""
FILL_SHARED = """
import mmap, time
held = []
for _ in range(30):
    held.append(mmap.mmap(-1, 10 << 20))
    held[-1].write(bytes(10 << 20))
    time.sleep(0.02)
time.sleep(1)
print('filled')
"""
FILL_HIDDEN = "import ctypes; ctypes.CDLL(None).prctl(4, 0)\n" + FILL_SHARED
FILL_SOCKETS = """
import socket, time
held = []
for _ in range(400):
    held += socket.socketpair()
    held[-1].setblocking(False)
    try:
        while True:
            held[-1].send(bytes(4096))
    except BlockingIOError:
        pass
    time.sleep(0.002)
time.sleep(1.5)
print('filled')
"""


@pytest.mark.parametrize("program", [FILL, FILL_BY_MANY, FILL_SHARED, FILL_HIDDEN, FILL_SOCKETS])
async def test_memory_is_limited(program: str, way: LimitsBy) -> None:
    async with local(replace(SMALL, memory_mb=64), limits_by=way) as box:
        result = await python(box, program)
        assert b"MemoryError" in result.stderr or result.limit == "memory_mb"
        assert result.exit_code != 0
        assert b"filled" not in result.stdout or program == FILL_BY_MANY
        assert (await box.exec("echo fine")).stdout == b"fine\n"
    async with local(SandboxLimits(memory_mb=1024), limits_by=way) as box:
        assert b"filled" in (await python(box, program)).stdout


async def test_memory_of_nobody_cannot_be_had() -> None:
    program = SYSCALL + """
import platform
memfd_create, shmget, msgget = (279, 194, 186) if platform.machine() == 'aarch64' else (319, 29, 68)
for number, args in ((memfd_create, (b'x', 0)), (shmget, (0, 4096, 0o1600)), (msgget, (0, 0o1600))):
    try:
        call(number, *args)
        print('had')
    except OSError as error:
        print(error.errno)
"""  # fmt: skip
    async with local() as box:
        assert (await python(box, program)).stdout.split() == [b"38"] * 3  # ENOSYS
    async with local(isolation="none") as place:
        assert (await python(place, program)).stdout.split() == [b"had"] * 3


DISK = """
import os, sys
total = 0
for folder, _, _ in os.walk('/'):
    if folder.startswith(('/proc', '/usr', '/dev/pts')) or not os.access(folder, os.W_OK):
        continue
    number = 0
    try:
        while total < 400 << 20:
            with open(f'{folder}/fill{number}', 'wb', buffering=0) as file:
                for _ in range(10):
                    total += file.write(bytes(1 << 20))
            number += 1
    except OSError as error:
        print(folder, error.strerror)
print(total >> 20)
"""


async def test_disk_is_limited() -> None:
    async with local() as box:
        *full, total = (await python(box, DISK)).stdout.decode().splitlines()
        assert sorted(line.split()[0] for line in full) == ["/dev/shm", "/tmp", "/work"]
        assert all("No space left" in line for line in full)
        assert int(total) <= 3 * SMALL.disk_mb
        with pytest.raises(SandboxError, match="disk_mb=16 is reached"):
            await box.write("more", bytes(1 << 20))
        assert (await box.exec("rm -f fill*; echo fine")).stdout == b"fine\n"
        await box.write("more", bytes(1 << 20))
    async with local(SandboxLimits(disk_mb=600)) as box:
        assert int((await python(box, DISK)).stdout.split()[-1]) >= 400


FILES = "import os\nfor n in range(%d): os.close(os.open(str(n), os.O_CREAT))\nprint('filled')"


async def test_the_number_of_files_is_limited() -> None:
    async with local(SandboxLimits(disk_mb=4)) as box:
        result = await python(box, FILES % 1_000_000)
        assert result.limit == "disk_mb"
        assert (await box.exec("find . -type f -delete; echo fine")).stdout == b"fine\n"
        assert (await python(box, FILES % 900)).stdout == b"filled\n"


async def test_processor_time_is_limited(way: LimitsBy) -> None:
    limits = SandboxLimits(cpu_seconds=0.4, wall_seconds=20)
    async with local(limits, limits_by=way) as box:
        for line in ("while :; do :; done", "while :; do (i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done); done"):
            result = await box.exec(line)
            assert result.limit == "cpu_seconds"
            assert result.exit_code == -9
        # Processes that were left behind share one such amount; each of these forks the next and ends.
        await box.write("born", b"")
        one = "sum(range(200000)); open('born', 'a').write('.')"
        chain = f"import os\nwhile True:\n  {one}\n  if os.fork(): os._exit(0)"
        begun = await box.exec(["setsid", "-f", "python", "-c", chain])
        assert begun.exit_code == 0
        born, before = 0, -1
        async with asyncio.timeout(15):
            while not born or born != before:
                born, before = len(await box.read("born")), born
                await box.exec("sleep 0.3")
        assert born > 3
    async with local(SandboxLimits(cpu_seconds=0.4, wall_seconds=1)) as box:
        assert (await box.exec("sleep 9")).limit == "wall_seconds"  # waiting costs none


async def test_a_detached_child_ends_with_a_time_out() -> None:
    mark, other_mark = new_mark(), new_mark()
    async with local() as box:
        line = f"setsid -f sh -c 'trap \"\" TERM HUP INT; while :; do sleep {mark}; done'; sleep 60"
        running = asyncio.create_task(box.exec(line, timeout=1))
        while not (left := marked(mark)):
            await box.exec("true")
        assert (await running).timed_out
        assert gone(left + marked(mark))
        await box.exec(f"setsid -f sleep {other_mark} > /dev/null 2>&1")
        left = marked(other_mark)
    assert left
    assert gone(left, 0)


async def test_ignoring_signals_does_not_help() -> None:
    async with local() as box:
        stubborn = "import signal, time\nfor n in range(1, 65):\n  try: signal.signal(n, signal.SIG_IGN)\n  except (OSError, ValueError): pass\nprint('deaf', flush=True)\nwhile True: time.sleep(1)"  # noqa: E501
        result = await python(box, stubborn, timeout=0.5)
        assert result.stdout == b"deaf\n"
        assert result.timed_out
        assert result.exit_code == -9
        assert result.duration < 3


async def test_huge_output_is_cut() -> None:
    async with local() as box:
        result = await box.exec("head -c 50000000 /dev/zero; head -c 50000000 /dev/zero >&2; echo end >&2")
        assert result.truncated
        assert result.exit_code == 0
        assert len(result.stdout) == len(result.stderr) == SMALL.output_bytes
        exact = await box.exec(f"head -c {SMALL.output_bytes} /dev/zero")
        assert len(exact.stdout) == SMALL.output_bytes
        assert not exact.truncated
        flood = asyncio.create_task(box.exec("yes", timeout=1))
        quick = await box.exec("echo in between")
        assert quick.stdout == b"in between\n"
        assert quick.duration < 1
        assert (await flood).timed_out
        await box.exec("yes & echo")  # nobody reads it any more
        assert (await box.exec("echo fine")).stdout == b"fine\n"


async def test_binary_output_comes_as_it_is() -> None:
    every = bytes(range(256)) * 8
    async with local() as box:
        result = await python(box, "import os; os.write(1, bytes(range(256)) * 8); os.write(2, b'\\xff\\0')")
        assert result.stdout == every
        assert result.stderr == b"\xff\0"
        await box.exec(b"touch 'bad\xff'".decode(errors="surrogateescape"))
        assert [entry.name for entry in await box.list()] == ["bad\ufffd"]


async def test_the_worker_cannot_be_harmed() -> None:
    attack = """
import glob, os, signal
for number in set(range(1, 65)) - {32, 33}:
    try: os.kill(1, number)
    except OSError as error: print('kill', error)
for path in ('mem', 'environ', 'maps', 'fd/0', 'root', 'cwd'):
    try:
        if path in ('root', 'cwd'): os.listdir(f'/proc/1/{path}')
        else: open(f'/proc/1/{path}', 'r+b' if path == 'mem' else 'rb')
        print('opened', path)
    except OSError:
        pass
"""
    async with local() as box:
        result = await python(box, attack)
        assert b"opened" not in result.stdout
        assert (await box.exec("echo fine")).stdout == b"fine\n"
        inherited = await python(box, "import os; print(os.listdir('/proc/self/fd'))")
        assert inherited.stdout == b"['0', '1', '2', '3']\n"  # the last is that of the listing


async def test_boxes_do_not_see_each_other() -> None:
    mark = new_mark()
    async with local() as one, local() as other:
        await one.exec(f"echo mine > /tmp/a; echo mine > /dev/shm/a; echo mine > a; sleep {mark} & echo")
        look = f"cat /tmp/a /dev/shm/a a; ps ax -o args | grep -v grep | grep -c 'sleep {mark}'"
        assert (await one.exec(look)).stdout == b"mine\nmine\nmine\n1\n"
        assert (await other.exec(look)).stdout == b"0\n"
        if ROOT:
            users = {os.stat(f"/proc/{box.pid}").st_uid for box in (one, other)}
            assert len(users | {0}) == 3  # root gives each a user of its own


async def test_little_is_seen_of_the_machine() -> None:
    async with local(env={"GIVEN": "1"}) as box:
        env = (await box.exec(["env"])).stdout.decode().splitlines()
        assert {line.split("=")[0] for line in env} == {"PATH", "HOME", "TMPDIR", "LANG", "GIVEN"}
        assert (await box.exec(f"cat /proc/keys {' '.join(f'/proc/{name}' for name in MASKED)}")).stdout == b""
        top = await box.exec("ls / /etc; cat /etc/passwd; hostname")
        words = top.stdout.decode().split()
        assert {"root", "home", "var", "run", "shadow", "sys"}.isdisjoint(words)
        assert "sandbox" in words
        assert len((await box.exec("ls -d /proc/[0-9]*")).stdout.split()) <= 3
        written = await box.exec(
            "touch /x; touch /usr/x; touch /dev/x; touch /etc/x; touch /sandbox/x; rm -rf /usr/bin/env"
        )
        assert written.stderr.count(b"Read-only file system") >= 5
