"""A sandbox in a container. Needs an engine, and an image with a shell named in AWORLD_TEST_IMAGE."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from aworld.config.errors import ConfigError
from aworld.core.sandbox import FileInfo, Sandbox, SandboxError, SandboxLimits
from aworld.sandbox import open_sandbox
from aworld.sandbox.container import ContainerSandbox
from aworld.sandbox.container_engine import ContainerEngine, engine_address
from aworld.sandbox.reaper import Record
from tests.sandbox.engine_server import serving, stub_engine
from tests.sandbox.places import IMAGE, SMALL, keeps_variables


@pytest.fixture
def engine() -> str:
    if IMAGE is None:
        pytest.skip("AWORLD_TEST_IMAGE names no image to test with")
    try:
        return engine_address(None)
    except SandboxError as error:
        pytest.skip(str(error))


@pytest.fixture
async def box(engine: str) -> AsyncGenerator[Sandbox]:
    opened = await open_sandbox(f"container:{IMAGE}", SMALL, env={"COLOUR": "red"})
    yield opened
    await opened.close()


@pytest.fixture
async def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncGenerator[Sandbox]:
    """A sandbox whose commands run in a folder of this machine."""
    work = (tmp_path / "work").resolve()
    work.mkdir()
    monkeypatch.setattr(ContainerSandbox, "work", str(work))
    async with stub_engine(work) as address, await ContainerSandbox.open("any", SMALL, engine=address) as opened:
        yield opened


async def test_a_command_that_ends_with_127_has_run(stand_in: Sandbox) -> None:
    for command in ("nosuch", "nosuch >&2; exit 127", "exit 126", ["sh", "-c", "nosuch"], ["sh", "-c", "exit 45"]):
        result = await stand_in.exec(command)
        assert result.exit_code == (126 if command == "exit 126" else 45 if "exit 45" in command else 127)
    result = await stand_in.exec("nosuch; echo $?; nosuch")
    assert (result.exit_code, result.stdout) == (127, b"127\n")


async def test_what_cannot_be_started_is_told(stand_in: Sandbox, tmp_path: Path) -> None:
    await stand_in.exec(f"ln -s {tmp_path} out; touch plain")
    for command, cwd, why in (
        (["nosuch", "-x"], ".", "nosuch cannot be started in .: .*not found"),
        (["./plain"], ".", "plain cannot be started in .: .*[Pp]ermission denied"),
        (["true"], "missing", "true cannot be started in missing: .*missing"),
        ("exit 127", "missing", "cannot be started in missing: .*missing"),
        ("exit 127", "out", "cannot be started in out: leads out of the work folder"),
    ):
        with pytest.raises(SandboxError, match=why) as told:
            await stand_in.exec(command, cwd=cwd)
        assert "aworld" not in str(told.value), "our own mark is not for people"


async def test_a_command_that_closes_its_output_is_waited_for(stand_in: Sandbox) -> None:
    result = await stand_in.exec("echo begun; exec >&- 2>&-; sleep 0.3; exit 3")
    assert (result.exit_code, result.stdout) == (3, b"begun\n")
    late = await stand_in.exec("exec >&- 2>&-; sleep 60", timeout=0.3)
    assert (late.exit_code, late.limit) == (-9, "wall_seconds")


async def test_commands(box: Sandbox) -> None:
    result = await box.exec("echo hello; echo oops >&2; cat; exit 3", stdin=b"in")
    assert (result.exit_code, result.stdout, result.stderr) == (3, b"hello\nin", b"oops\n")
    made = await box.exec("mkdir -p deep; echo $COLOUR $SIZE $HOME", env={"SIZE": "9"})
    assert made.stdout == b"red 9 /work\n"
    assert (await box.exec(["pwd"], cwd="deep")).stdout == b"/work/deep\n"
    assert (await box.exec(["printf", "%s|", "a b", "", "$HOME"])).stdout == b"a b||$HOME|"
    with pytest.raises(SandboxError, match="cannot be started"):
        await box.exec(["no-such-program"])
    with pytest.raises(SandboxError, match="cannot be started"):
        await box.exec("true", cwd="no-such-folder")


async def test_files(box: Sandbox, tmp_path: Path) -> None:
    data = os.urandom(300_000)
    await box.write("a/b.bin", data)
    assert await box.read("a/b.bin") == data
    assert await box.list() == [FileInfo("a", True, 0)]
    assert await box.list("a") == [FileInfo("b.bin", False, len(data))]
    with pytest.raises(FileNotFoundError):
        await box.read("missing")
    with pytest.raises(IsADirectoryError):
        await box.read("a")
    (tmp_path / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (tmp_path / "run.sh").chmod(0o755)
    await box.upload(tmp_path, "tools")
    await box.upload(tmp_path / "run.sh", "copy.sh")
    assert (await box.exec("tools/run.sh; ./copy.sh")).stdout == b"ran\nran\n"
    kept = await box.snapshot()
    await box.exec("rm -rf tools; touch .stale")
    await box.restore(kept)
    assert [entry.name for entry in await box.list()] == ["a", "copy.sh", "tools"]


async def test_paths_that_lead_out(box: Sandbox) -> None:
    await box.exec("ln -s /etc/hostname link; ln -s / all; mkfifo pipe")
    for path in ("../etc/hostname", "/etc/hostname", "link", "all/etc/hostname"):
        with pytest.raises(SandboxError, match="leads out"):
            await box.read(path)
    for path in ("../tmp/new", "all/tmp/new"):
        with pytest.raises(SandboxError, match="leads out"):
            await box.write(path, b"x")
    with pytest.raises(SandboxError, match="leads out"):
        await box.list("all")
    with pytest.raises(SandboxError, match="not a file"):
        await box.read("pipe")


async def test_limits(box: Sandbox) -> None:
    rights = await box.exec(
        "id -u; grep -E 'CapEff|CapBnd|NoNewPrivs' /proc/self/status; touch /x /etc/x; ls /sys/class/net"
    )
    assert rights.stdout.split() == [b"1000", b"CapEff:", b"0" * 16, b"CapBnd:", b"0" * 16, b"NoNewPrivs:", b"1", b"lo"]
    assert rights.stderr.count(b"Read-only file system") == 2
    full = await box.exec("head -c 40000000 /dev/zero > a; head -c 9000000 /dev/zero > b; du -sm . | cut -f1")
    assert int(full.stdout) <= SMALL.disk_mb
    flood = await box.exec("head -c 30000000 /dev/zero")
    assert flood.truncated
    assert len(flood.stdout) == SMALL.output_bytes
    busy = await box.exec("ulimit -t 100; while :; do :; done", timeout=60)
    assert busy.limit == "cpu_seconds"
    greedy = await box.exec(["python3", "-c", "kept = bytearray(b'x' * (400 << 20)); print('had it')"])
    assert (greedy.exit_code != 0, greedy.stdout) == (True, b"")
    bomb = await box.exec("i=0; while [ $i -lt 60 ]; do sleep 2 & i=$((i+1)); done; echo all", timeout=3)
    assert b"all" not in bomb.stdout
    async with asyncio.timeout(10):
        while (await box.exec("echo fine")).stdout != b"fine\n":  # until there is room again
            pass


async def test_time_outs(box: Sandbox) -> None:
    late = await box.exec("trap '' TERM; setsid sleep 100 & echo begun; sleep 100", timeout=0.5)
    assert (late.timed_out, late.limit, late.exit_code, late.stdout) == (True, "wall_seconds", -9, b"begun\n")
    assert b"sleep 100" not in (await box.exec("ps | grep -v grep")).stdout
    task = asyncio.create_task(box.exec("echo > begun; sleep 100"))
    while not any(entry.name == "begun" for entry in await box.list()):
        assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert b"sleep 100" not in (await box.exec("ps | grep -v grep")).stdout


async def test_python_keeps_its_variables(engine: str) -> None:
    await keeps_variables(f"container:{IMAGE}")


async def test_it_is_gone_when_closed_or_reaped(engine: str, tmp_path: Path) -> None:
    opened = await open_sandbox(f"container:{IMAGE}", SMALL)
    assert list(tmp_path.glob(f"*/*/{opened.id}/record.json"))
    await opened.close()
    await opened.close()
    assert not opened.alive
    with pytest.raises(SandboxError, match="closed"):
        await opened.exec("true")
    with pytest.raises(SandboxError, match="404"):
        await ContainerEngine(engine).ask("GET", f"/containers/{opened.id}/json")
    assert not list(tmp_path.glob("*/*"))
    left = await open_sandbox(f"container:{IMAGE}", SMALL)
    found = Record(left.id, "container", 1, 0.0, {"engine": engine})
    await ContainerSandbox.destroy(found)
    await ContainerSandbox.destroy(found)
    with pytest.raises(SandboxError, match="404"):
        await left.exec("true")
    await left.close()


async def test_an_image_that_cannot_be_had(engine: str) -> None:
    with pytest.raises(SandboxError, match="no-such-image"):
        await open_sandbox("container:localhost/no-such-image:1", SandboxLimits())


async def test_without_an_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(SandboxError, match=r"none\.sock cannot be reached"):
        await open_sandbox("container:x")
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("DOCKER_HOST", "ssh://somewhere")
    with pytest.raises(ConfigError, match="unix:// or tcp://"):
        await open_sandbox("container:x")
    monkeypatch.delenv("DOCKER_HOST")
    monkeypatch.setattr("aworld.sandbox.container_engine.SOCKETS", (str(tmp_path / "none"),))
    with pytest.raises(SandboxError, match="start Docker, or Podman"):
        await open_sandbox("container:x")


@pytest.mark.parametrize(
    "said",
    [
        "hello\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}",
        "HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n{}",
        "HTTP/1.1 500 Oh\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
        "HTTP/1.1 500 Oh\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
async def test_an_engine_that_talks_nonsense_or_dies_while_it_talks(said: str, tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said.encode())

    async with serving(tmp_path, answer) as address:
        with pytest.raises(SandboxError, match="not HTTP"):
            await ContainerEngine(address).ask("GET", "/info")


async def test_an_engine_that_is_silent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("aworld.sandbox.container_engine.ANSWER_SECONDS", 0.1)

    async def answer(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with serving(tmp_path, answer) as address:
        engine = ContainerEngine(address)
        for asking in (engine.ask("GET", "/x"), engine.attach("/x", {})):
            with pytest.raises(SandboxError, match=r"did not answer .* in 0\.1 s"):
                await asking


async def test_an_image_may_take_longer_than_an_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("aworld.sandbox.container_engine.ANSWER_SECONDS", 0.3)
    here = False

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal here
        asked = await reader.readuntil(b"\r\n\r\n")
        status = b"404 Missing" if b"/containers/create" in asked and not here else b"200 OK"
        writer.write(b"HTTP/1.1 %b\r\nContent-Length: 11\r\n\r\n" % status)
        if b"/images/create?fromImage=local%3A5000/large%3Alatest " in asked:
            await asyncio.sleep(0.6)
            here = True
        writer.write(b'{"Id": "x"}' if here else b"{         }")

    async with serving(tmp_path, answer) as address:
        box = await ContainerSandbox.open("local:5000/large", SMALL, engine=address)
        await box.close()
