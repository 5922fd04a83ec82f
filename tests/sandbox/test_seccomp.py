"""The filter of system calls, read as the kernel reads it."""

from __future__ import annotations

import errno
import re
import struct
import subprocess
from pathlib import Path

import pytest

from aworld.core.sandbox import SandboxError
from aworld.sandbox.seccomp import ABSENT, ARCHITECTURES, INSPECTED, LAST, NEW_START, OLD_END, REFUSED, filter_program

ALLOW, KILL = 0x7FFF0000, 0x80000000
MACHINES = ("x86_64", "aarch64")


def run(program: bytes, number: int, arguments: tuple[int, ...] = (), architecture: int = 0xC000003E) -> int:
    """What a filter answers to a call: the few instructions of BPF that it uses."""
    data = struct.pack("=IIQ6Q", number, architecture, 0, *(arguments + (0,) * 6)[:6])
    lines = list(struct.iter_unpack("=HBBI", program))
    place = value = 0
    while True:
        code, then, otherwise, operand = lines[place]
        place += 1
        if code == 0x20:
            (value,) = struct.unpack_from("=I", data, operand)
        elif code == 0x06:
            return operand
        else:
            test = {0x15: value == operand, 0x35: value >= operand, 0x45: bool(value & operand)}[code]
            place += then if test else otherwise


def error(number: int) -> int:
    return 0x00050000 | number


@pytest.mark.parametrize("machine", MACHINES)
def test_every_call_of_the_lists_is_refused(machine: str) -> None:
    architecture, column = ARCHITECTURES[machine]
    program = filter_program(machine)
    for calls, answer in ((REFUSED, error(errno.EPERM)), (ABSENT, error(errno.ENOSYS))):
        for name, pair in calls.items():
            if (number := pair[column]) is not None:
                assert run(program, number, (), architecture) == answer, name


@pytest.mark.parametrize("machine", MACHINES)
def test_all_other_calls_are_allowed_that_there_were_when_the_list_was_made(machine: str) -> None:
    architecture, column = ARCHITECTURES[machine]
    program = filter_program(machine)
    listed = {pair[column] for calls in (REFUSED, ABSENT, INSPECTED) for pair in calls.values()}
    known = set(range(OLD_END)) | set(range(NEW_START, LAST + 1))
    for number in known - listed:
        assert run(program, number, (), architecture) == ALLOW, number
    for number in (*set(range(1000)) - known, 0x40000000, 0xFFFFFFFF):
        assert run(program, number, (), architecture) == error(errno.ENOSYS), number


def test_arguments_decide() -> None:
    program = filter_program("x86_64")
    clone, ioctl, socket, pair, personality = 56, 16, 41, 53, 135
    assert run(program, clone, (0x01200011,)) == ALLOW  # fork
    assert run(program, clone, (0x003D0F00,)) == ALLOW  # a thread
    for flag in (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert run(program, clone, (flag | 17,)) == error(errno.EPERM)
    assert run(program, ioctl, (0, 0x5401)) == ALLOW
    for request in (0x5412, 0x541C, 0xFF00000000 | 0x5412):  # the kernel looks at the low half
        assert run(program, ioctl, (0, request)) == error(errno.EPERM)
    for call in (socket, pair):
        for family in range(46):
            allowed = family in (1, 2, 10, 16)
            assert run(program, call, (family,)) == (ALLOW if allowed else error(errno.EAFNOSUPPORT)), family
    assert run(program, personality, (0,)) == ALLOW
    assert run(program, personality, (0x0040000,)) == error(errno.EPERM)  # without random addresses


def test_other_ways_into_the_kernel_are_closed() -> None:
    program = filter_program("x86_64")
    assert run(program, 0x40000000 | 101) == error(errno.ENOSYS)  # ptrace of the x32 ABI
    assert run(program, 26, architecture=0x40000003) == KILL  # ptrace of i386
    assert run(program, 1, architecture=0xC00000B7) == KILL


def test_an_unknown_machine_is_refused() -> None:
    with pytest.raises(SandboxError, match="not of riscv64; use a container"):
        filter_program("riscv64")


HEADERS = (Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), Path("/usr/include/asm-generic/unistd.h"))


@pytest.mark.parametrize("column", [0, 1])
def test_numbers_are_those_of_linux(column: int) -> None:
    header = HEADERS[column]
    if not header.exists():
        pytest.skip(f"{header} is not installed (apt install linux-libc-dev)")
    text = header.read_text()
    if column == 1:  # the generic list is written in terms of macros
        command = ["cc", "-E", "-dM", "-D__BITS_PER_LONG=64", "-D__ARCH_WANT_MEMFD_SECRET", str(header)]
        try:
            text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        except (FileNotFoundError, subprocess.CalledProcessError):
            pytest.skip("no C compiler to read the header with")
    numbers = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\b", text)}
    assert len(numbers) > 200
    for calls in (REFUSED, ABSENT, INSPECTED):
        for name, pair in calls.items():
            if name in numbers and name != "clone3":
                assert numbers[name] == pair[column], name
            else:  # it does not exist there, or is newer than this header
                assert (pair[column] or 424) >= 424, name
