"""Where a server listens: what cannot be of `--host` and `--port` is told by name."""

from __future__ import annotations

import errno
import socket
from collections.abc import Generator
from contextlib import contextmanager

from aworld.core.exceptions import ConfigError


@contextmanager
def listening(host: str, port: int) -> Generator[None, None, None]:
    """Around the start of a server. Raises ConfigError, which names the option that has to be another."""
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port {port}: a port is 0 to 65535; 0 takes any that is free.")
    try:
        yield
    except socket.gaierror as error:
        raise ConfigError(f"--host {host}: no address of that name is known ({error.strerror}).") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"--port {port}: something listens there already; --port 0 takes any free one."
            ) from error
        if error.errno == errno.EACCES:
            raise ConfigError(f"--port {port}: only the system may listen there; take one above 1023.") from error
        if error.errno == errno.EADDRNOTAVAIL:
            raise ConfigError(f"--host {host}: that is no address of this machine.") from error
        raise ConfigError(f"--host {host} --port {port}: {error.strerror or error}.") from error
