"""The system calls that a sandbox is refused: a filter for the kernel, assembled here.

What is refused: what leads out of the box, what a box has no use for and has had kernel bugs, what holds memory that no
limit sees, and every call that is newer than this list. Kernel filters are classic BPF programs over
`struct seccomp_data` (number, architecture, arguments).

Sources: Documentation/userspace-api/seccomp_filter.rst and include/uapi/linux/{seccomp,filter,audit}.h of Linux. The
numbers are those of arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h; a test compares them.
"""

from __future__ import annotations

import errno
import platform
import struct
from dataclasses import dataclass

from aworld.core.sandbox import SandboxError

REFUSED: dict[str, tuple[int | None, int | None]] = {
    # Other processes, also of the same user.
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "pidfd_getfd": (438, 438), "kcmp": (312, 272),
    # Keyrings have no namespace: keys of the runtime's session would be in reach.
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    # Mounts, namespaces, and files by handle.
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "unshare": (272, 97), "setns": (308, 268), "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265), "fanotify_init": (300, 262),
    # Parts of the kernel with a history of holes.
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "lookup_dcookie": (212, 18),
    "modify_ldt": (154, None), "uselib": (134, None), "vhangup": (153, 58),
    # The machine as a whole.
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "swapon": (167, 224), "swapoff": (168, 225), "reboot": (169, 142), "acct": (163, 89),
    "quotactl": (179, 60), "quotactl_fd": (443, 443), "syslog": (103, 116), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171), "sethostname": (170, 161),
    "setdomainname": (171, 162), "iopl": (172, None), "ioperm": (173, None), "mbind": (237, 235),
    "set_mempolicy": (238, 237), "migrate_pages": (256, 238), "move_pages": (279, 239),
}  # fmt: skip
"""Refused with EPERM. Numbers on x86-64 and on 64-bit ARM; None where there is no such call."""

ABSENT: dict[str, tuple[int | None, int | None]] = {
    "clone3": (435, 435),  # its flags lie in memory, where a filter cannot look; libraries fall back to clone
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "memfd_create": (319, 279),  # memory that is neither of a process nor of a size-limited file system
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "vmsplice": (278, 75),  # whole huge pages stay in a pipe after they are unmapped
    "io_setup": (206, 0),  # takes from a number that the whole machine shares, fs.aio-max-nr
}
"""Answered with ENOSYS, as by an older kernel, so that programs use what they used before."""

INSPECTED: dict[str, tuple[int | None, int | None]] = {
    "clone": (56, 220),
    "ioctl": (16, 29),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "personality": (135, 92),
    "fcntl": (72, 25),
    "setsockopt": (54, 208),
    "prlimit64": (302, 261),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
}
"""Allowed or not by an argument."""

LAST = 462
"""The newest call that was looked at, mseal of Linux 6.10. What came later is answered with ENOSYS."""
OLD_END, NEW_START = 335, 424
"""Between these no architecture of the two had a call."""

ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""By machine: the architecture as the filter sees it, and the column of the numbers."""

NEW_NAMESPACES = 0x7E020080
"""The flags CLONE_NEWTIME, NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET of clone."""

TERMINAL_INPUT = (0x5412, 0x541C)
"""TIOCSTI and TIOCLINUX, by which a program types into its terminal."""

FAMILIES = (1, 2, 10)
"""AF_UNIX, AF_INET and AF_INET6, besides netlink. Not AF_VSOCK, whose peers no network namespace keeps away."""

PERSONALITIES = (0, 0xFFFFFFFF)
"""The usual one, and the question which it is."""

NETLINK, PROTOCOLS = 16, (0, 1, 6, 17, 58)
"""Of netlink only NETLINK_ROUTE, 0; of the others what their families use: 1 is ICMP and what PF_UNIX calls itself,
then TCP, UDP and ICMP for IPv6. Not MPTCP, SCTP and others with a history of holes."""

PIPE_SIZE = 1031
"""F_SETPIPE_SZ: a pipe holds 64 KB, so that pipes can be counted."""

SOL_SOCKET, BUFFERS = 1, (7, 8, 32, 33)
"""SO_SNDBUF, SO_RCVBUF and their forced kin, answered as done without doing it, as the kernel does with wishes above
its maximum: a socket holds what is usual, so that sockets can be counted."""

WORKER = 1
"""The process whose place in the scheduler and limits are nobody's to set: that of the worker."""

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = (
    0,
    4,
    16,
)  # offsets in seccomp_data; arguments take 8 bytes each, the low half first
_KILL, _ERROR, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000


@dataclass(frozen=True, slots=True)
class _Instruction:
    """An instruction whose jumps name labels; an empty one is the next line."""

    code: int
    value: int
    then: str = ""
    otherwise: str = ""
    label: str = ""


def filter_program(machine: str | None = None) -> bytes:
    """The filter as an array of `struct sock_filter`, for a machine as `platform.machine()` names it.

    Raises `SandboxError` for a machine whose numbers are not known here.
    """
    machine = machine or platform.machine()
    if machine not in ARCHITECTURES:
        machines = ", ".join(ARCHITECTURES)
        raise SandboxError(f"local sandboxes know the system calls of {machines}, not of {machine}; use a container")
    architecture, column = ARCHITECTURES[machine]
    return _assemble(_lines(architecture, column))


def _lines(architecture: int, column: int) -> list[_Instruction]:
    """The program: which labels a call goes to, then the labels, each with a return."""
    numbers = {name: pair[column] for name, pair in INSPECTED.items()}
    lines = [
        _Instruction(_LOAD, _ARCHITECTURE),
        _Instruction(_EQUAL, architecture, otherwise="kill"),
        _Instruction(_LOAD, _NUMBER),
        _Instruction(_AT_LEAST, LAST + 1, then="absent"),  # and all of the x32 ABI, by which the list could be evaded
        _Instruction(_AT_LEAST, NEW_START, then="listed"),
        _Instruction(_AT_LEAST, OLD_END, then="absent"),
        _Instruction(_LOAD, _NUMBER, label="listed"),
    ]
    for label, calls in (("refused", REFUSED), ("absent", ABSENT)):
        lines += [
            _Instruction(_EQUAL, pair[column] or 0, then=label) for pair in calls.values() if pair[column] is not None
        ]
    lines += [_Instruction(_EQUAL, number or 0, then=_LABELS.get(name, name)) for name, number in numbers.items()]
    lines.append(_Instruction(_RETURN, _ALLOW))
    for test in _TESTS:
        lines += _argument(*test)
    return [
        *lines,
        _Instruction(_RETURN, _ALLOW, label="allow"),
        _Instruction(_RETURN, _ERROR | errno.EPERM, label="refused"),
        _Instruction(_RETURN, _ERROR | errno.ENOSYS, label="absent"),
        _Instruction(_RETURN, _ERROR | errno.EAFNOSUPPORT, label="family"),
        _Instruction(_RETURN, _ERROR | errno.EPROTONOSUPPORT, label="protocol"),
        _Instruction(_RETURN, _ERROR, label="done"),
        _Instruction(_RETURN, _KILL, label="kill"),
    ]


_LABELS = {"socketpair": "socket", "setpriority": "priority", "ioprio_set": "io priority", **dict.fromkeys(
    ("prlimit64", "sched_setparam", "sched_setscheduler", "sched_setaffinity", "sched_setattr"), "of worker"
)}  # fmt: skip
"""Where calls whose arguments are looked at go, if not to a label of their own name."""

_TESTS: tuple[tuple[str, int, int, tuple[int, ...], str, str], ...] = (
    ("clone", 0, _ANY_BIT, (NEW_NAMESPACES,), "refused", "allow"),
    ("ioctl", 1, _EQUAL, TERMINAL_INPUT, "refused", "allow"),
    ("personality", 0, _EQUAL, PERSONALITIES, "allow", "refused"),
    ("fcntl", 1, _EQUAL, (PIPE_SIZE,), "refused", "allow"),
    ("socket", 0, _EQUAL, (NETLINK,), "netlink", "family of socket"),
    ("netlink", 2, _EQUAL, (0,), "allow", "protocol"),
    ("family of socket", 0, _EQUAL, FAMILIES, "protocol of socket", "family"),
    ("protocol of socket", 2, _EQUAL, PROTOCOLS, "allow", "protocol"),
    ("setsockopt", 1, _EQUAL, (SOL_SOCKET,), "socket option", "allow"),
    ("socket option", 2, _EQUAL, BUFFERS, "done", "allow"),
    ("of worker", 0, _EQUAL, (WORKER,), "refused", "allow"),
    ("priority", 0, _EQUAL, (2,), "refused", "priority of"),  # PRIO_USER: all processes of the box
    ("io priority", 0, _EQUAL, (3,), "refused", "priority of"),  # IOPRIO_WHO_USER
    ("priority of", 1, _EQUAL, (WORKER,), "refused", "allow"),
)
"""Tests of arguments: a label, the argument's place, how it is compared and with what, and the labels to
go on at, which stand further below."""


def _argument(
    label: str, position: int, test: int, values: tuple[int, ...], then: str, otherwise: str
) -> list[_Instruction]:
    """Look at the low half of an argument, which is all that the kernel looks at in these."""
    *first, last = values
    return [
        _Instruction(_LOAD, _ARGUMENTS + 8 * position, label=label),
        *(_Instruction(test, value, then=then) for value in first),
        _Instruction(test, last, then=then, otherwise=otherwise),
    ]


def _assemble(lines: list[_Instruction]) -> bytes:
    """Turn labels into distances; a jump reaches 255 lines, which the list is far from."""
    places = {line.label: index for index, line in enumerate(lines) if line.label}

    def distance(index: int, label: str) -> int:
        return places[label] - index - 1 if label else 0

    return b"".join(
        struct.pack("=HBBI", line.code, distance(index, line.then), distance(index, line.otherwise), line.value)
        for index, line in enumerate(lines)
    )
