"""Starts Chromium where it can reach nothing but the gate: in a network of its own, as a user of its own.

Playwright runs this in the place of Chromium. The first argument is a JSON object, `{"chromium", "socket", "home",
"user", "data_bytes"}`, the others are Chromium's. The network has a loopback and nothing else; a socket that listens
there is handed to the runtime, which is outside and accepts what comes. Where no such network can be made the runtime
is told so, and Chromium is started all the same.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import resource
import socket
import struct
import sys

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
PORT = 1080


def unshare(flags: int) -> None:
    """Leave namespaces for new ones. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def private_listener() -> socket.socket:
    """A listening socket in a new network, in which this process is from now on. Raises OSError."""
    user, group = os.geteuid(), os.getegid()
    if user == 0:
        unshare(CLONE_NEWNET)
    else:
        unshare(CLONE_NEWUSER | CLONE_NEWNET)
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    with socket.socket() as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))
    return socket.create_server(("", PORT), backlog=512)


def can_isolate() -> bool:
    """Whether this user may make namespaces, as Chromium's own sandbox does."""
    child = os.fork()
    if child == 0:
        try:
            unshare(CLONE_NEWUSER)
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def main() -> None:
    """Hand over the socket, give up rights, and become Chromium."""
    conf, arguments = json.loads(sys.argv[1]), sys.argv[2:]
    with socket.socket(socket.AF_UNIX) as runtime:
        runtime.connect(conf["socket"])
        try:
            listener = private_listener()
        except OSError as error:
            runtime.send(str(error).encode())
        else:
            socket.send_fds(runtime, [b"listening"], [listener.fileno()])
            listener.close()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (conf["data_bytes"], conf["data_bytes"]))
    if conf["user"] is not None:
        os.setgroups([])
        os.setresgid(conf["user"], conf["user"], conf["user"])
        os.setresuid(conf["user"], conf["user"], conf["user"])
        if not can_isolate():
            arguments.append("--no-sandbox")  # it cannot have its own; it has no right left to lose but this user's
    arguments = [word for word in arguments if not word.startswith("--user-data-dir=")]
    os.chdir(conf["home"])
    try:
        os.execv(conf["chromium"], [conf["chromium"], f"--user-data-dir={conf['home']}/profile", *arguments])
    except OSError as error:
        sys.exit(f"{conf['chromium']} cannot be started by user {os.getuid()}: {error.strerror}")


main()
