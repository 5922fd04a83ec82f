"""`aworld env serve` where it cannot listen: one line that names the option."""

from __future__ import annotations

import socket

import pytest

from aworld.cmd.main import main

SERVE = ("env", "serve", "tests.environments.served:vault")


def told(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """What the command says; it does not begin to serve."""
    assert main([*SERVE, *options]) == 2
    return capsys.readouterr().err


def test_a_port_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    for port in ("99999", "-1"):
        said = f"aworld: --port {port}: a port is 0 to 65535; 0 takes any that is free.\n"
        assert told(capsys, "--port", port) == said


def test_a_port_that_another_has(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        said = f"aworld: --port {port}: something listens there already; --port 0 takes any free one.\n"
        assert told(capsys, "--port", port) == said


@pytest.mark.parametrize(
    ("host", "why"), [("nowhere.invalid", "no address of that name is known"), ("192.0.2.1", "no address of this")]
)
def test_a_host_that_is_not_here(host: str, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = told(capsys, "--host", host, "--token", "secret", "--port", "0")
    assert said.startswith(f"aworld: --host {host}")
    assert why in said
    assert len(said.splitlines()) == 1
