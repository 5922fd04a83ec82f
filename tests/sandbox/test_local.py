"""A sandbox on this machine does what its contract says."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import sys
import time
from pathlib import Path

import pytest

from aworld.config.errors import ConfigError
from aworld.core.sandbox import FileInfo, Sandbox, SandboxError, SandboxLimits
from aworld.sandbox import open_sandbox, profile
from aworld.sandbox.local_sandbox import LocalSandbox
from tests.sandbox.places import SMALL, gone, local, marked, needs_bubblewrap, new_mark, python

pytestmark = needs_bubblewrap


async def test_it_is_a_sandbox() -> None:
    sandbox: Sandbox = await open_sandbox("local", SMALL)
    result = await sandbox.exec("echo hello; echo oops >&2; exit 3")
    assert (result.exit_code, result.stdout, result.stderr) == (3, b"hello\n", b"oops\n")
    assert not result.timed_out
    assert not result.truncated
    assert result.limit is None
    assert 0 < result.duration < 10
    assert sandbox.alive
    await sandbox.close()
    await sandbox.close()
    assert not sandbox.alive
    with pytest.raises(SandboxError, match="closed"):
        await sandbox.exec("true")


async def test_files_stay_from_command_to_command() -> None:
    async with local() as box:
        await box.write("a/b/c.txt", b"one\n")
        await box.exec("echo two >> a/b/c.txt")
        assert await box.read("a/b/c.txt") == b"one\ntwo\n"
        assert await box.read("/work/a/b/c.txt") == b"one\ntwo\n"
        await box.exec("ln -s c.txt a/b/link; mkdir a/b/d")
        assert await box.list("a/b") == [
            FileInfo("c.txt", False, 8),
            FileInfo("d", True, 0),
            FileInfo("link", False, 5),
        ]


async def test_a_command_has_input_folder_and_environment() -> None:
    async with local(env={"COLOUR": "red"}) as box:
        await box.exec(["mkdir", "-p", "deep"])
        result = await box.exec('cat; echo "$COLOUR $SIZE $HOME"; pwd', stdin=b"in,", cwd="deep", env={"SIZE": "9"})
        assert result.stdout == b"in,red 9 /work\n/work/deep\n"
        assert (await box.exec(["printf", "%s|", "a b", "", "$HOME"])).stdout == b"a b||$HOME|"
        assert (await box.exec("cat")).stdout == b""


async def test_much_goes_in_and_out() -> None:
    async with local(SandboxLimits(output_bytes=5_000_000)) as box:
        data = os.urandom(3_000_000)
        assert (await box.exec(["cat"], stdin=data)).stdout == data
        await box.write("blob", data)
        assert await box.read("blob") == data
        unread = await box.exec("head -c 10", stdin=data)
        assert unread.stdout == data[:10]


async def test_commands_run_side_by_side() -> None:
    async with local() as box:
        began = time.monotonic()
        results = await asyncio.gather(*(box.exec(f"sleep 0.5; echo {number}") for number in range(5)))
        assert [int(result.stdout) for result in results] == [0, 1, 2, 3, 4]
        assert time.monotonic() - began < 2


async def test_what_cannot_be_started_is_told() -> None:
    async with local() as box:
        with pytest.raises(SandboxError, match=r"no-such-program cannot be started in .*No such file"):
            await box.exec(["no-such-program"])
        with pytest.raises(SandboxError, match="No such file"):
            await box.exec("true", cwd="no-such-folder")
        with pytest.raises(SandboxError, match="no command"):
            await box.exec([])
        with pytest.raises(SandboxError, match="NUL"):
            await box.exec("echo \0")
        with pytest.raises(SandboxError, match="too long"):
            await box.exec("#" * 300_000)
        assert (await box.exec("echo fine")).stdout == b"fine\n"


async def test_errors_of_files() -> None:
    async with local() as box:
        with pytest.raises(FileNotFoundError, match=r"missing\.txt"):
            await box.read("missing.txt")
        with pytest.raises(IsADirectoryError):
            await box.read(".")
        with pytest.raises(IsADirectoryError):
            await box.write(".", b"")
        with pytest.raises(FileNotFoundError):
            await box.list("missing")
        await box.write("file", b"")
        with pytest.raises((NotADirectoryError, FileExistsError)):
            await box.write("file/below", b"")


async def test_upload_snapshot_restore(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "run.sh").write_text("echo ran\n")
    (tmp_path / "sub" / "run.sh").chmod(0o755)
    (tmp_path / "link").symlink_to("sub/run.sh")
    async with local() as box, local() as other:
        await box.upload(tmp_path, "project")
        assert (await box.exec("project/sub/run.sh; readlink project/link")).stdout == b"ran\nsub/run.sh\n"
        await box.upload(tmp_path / "sub" / "run.sh", "copy.sh")
        assert (await box.exec("./copy.sh")).stdout == b"ran\n"
        with pytest.raises(FileNotFoundError):
            await box.upload(tmp_path / "missing", "x")
        kept = await box.snapshot()
        await other.write("stale", b"")
        await other.restore(kept)
        assert [entry.name for entry in await other.list()] == ["copy.sh", "project"]
        assert (await other.exec("project/link")).stdout == b"ran\n"
        with pytest.raises(SandboxError):
            await other.restore(b"no archive at all, but longer than a block of one would be " * 20)


async def test_what_is_too_large_is_not_uploaded(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(SMALL.disk_mb + 1 << 20))
    async with local() as box:
        with pytest.raises(SandboxError, match="disk_mb"):
            await box.upload(tmp_path, ".")


async def test_folders_of_the_machine_can_be_shown(open_folder: Path) -> None:
    (open_folder / "book").write_text("words")
    async with local(readonly={"/library": open_folder}) as box:
        assert (await box.exec("cat /library/book; echo x > /library/book")).stdout == b"words"
    assert (open_folder / "book").read_text() == "words"


async def test_a_background_process_outlives_its_command_but_not_the_sandbox() -> None:
    mark = new_mark()
    async with local() as box:
        begun = await box.exec(f"(while :; do echo tick; sleep 0.05; done > ticks & echo $! > pid); sleep {mark} &")
        assert begun.exit_code == 0
        assert (await box.exec("kill -0 $(cat pid) && echo alive")).stdout == b"alive\n"
        left = marked(mark)
        assert left
    assert gone(left, 0)


async def test_a_cancelled_command_ends() -> None:
    mark = new_mark()
    async with local() as box:
        task = asyncio.create_task(box.exec(f"sleep {mark} & echo $$ > pid; sleep {mark}"))
        while not any(entry.name == "pid" and entry.size for entry in await box.list()):
            assert not task.done()
        left = marked(mark)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert gone(left)
        assert (await box.exec("echo fine")).stdout == b"fine\n"


async def test_other_commands_survive_a_time_out() -> None:
    async with local() as box:
        longer = asyncio.create_task(box.exec("sleep 1; echo done"))
        late = await box.exec("sleep 60 & sleep 60", timeout=0.3)
        assert late.timed_out
        assert late.limit == "wall_seconds"
        assert (await longer).stdout == b"done\n"


async def test_a_broken_sandbox_tells_all_who_wait() -> None:
    async with local() as box:
        waiting = asyncio.create_task(box.exec("sleep 60"))
        await box.exec("true")
        os.kill(box.pid, 9)
        with pytest.raises(SandboxError, match="its process ended"):
            await waiting
        assert not box.alive
        with pytest.raises(SandboxError, match="gone"):
            await box.exec("true")


async def test_without_room_for_pipes_nothing_is_left_open() -> None:
    async with local() as box:
        await box.exec("true")
        before = os.listdir("/proc/self/fd")
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, before)) + 1, hard))
        taken: list[int] = []
        try:
            with contextlib.suppress(OSError):
                while True:
                    taken.append(os.open("/dev/null", os.O_RDONLY))
            for _ in range(3):
                os.close(taken.pop())  # for one pipe of two or three
            for _ in range(3):
                with pytest.raises(SandboxError, match="Too many open files"):
                    await box.exec("true", stdin=b"x")
                with pytest.raises(SandboxError, match="Too many open files"):
                    await box.open_process(["true"])
        finally:
            for descriptor in taken:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert len(os.listdir("/proc/self/fd")) == len(before)
        assert (await box.exec("echo fine")).stdout == b"fine\n"


async def test_it_leaves_no_descriptor_and_no_process() -> None:
    async with local() as box:
        await box.exec("true")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        async with local() as box:
            await box.exec("sleep 100 & echo x", stdin=b"unread" * 100_000)
            await box.exec("sleep 100", timeout=0.05)
            pid = box.pid
        assert not os.path.exists(f"/proc/{pid}")
    assert len(os.listdir("/proc/self/fd")) == before


async def test_the_interpreter_can_be_chosen() -> None:
    chosen = shutil.which("python3", path="/usr/local/bin:/usr/bin")
    if chosen is None:
        pytest.skip("no Python in /usr")
    async with local(python=chosen) as box:
        assert (await python(box, "import sys; print(sys.prefix)")).exit_code == 0
    with pytest.raises(SandboxError, match="/no/python: not found"):
        await LocalSandbox.open(python="/no/python")


class TestRefusal:
    """Where isolation cannot be had, nothing opens."""

    @pytest.fixture(autouse=True)
    def fresh(self) -> None:
        profile.bubblewrap.cache_clear()

    async def test_without_bubblewrap(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "/nowhere")
        with pytest.raises(SandboxError, match=r"apt install bubblewrap.*isolation=\"none\""):
            await LocalSandbox.open()

    @pytest.mark.parametrize(
        ("version", "said", "told"),
        [
            ("0.6.1", "", r"too old .*apt install bubblewrap"),
            ("0.8.0", "No permissions to create new namespace", r"No permissions.*user\.max_user_namespaces"),
            ("0.8.0", "something else", r"something else.*isolation=\"none\""),
        ],
    )
    async def test_with_one_that_fails(
        self, version: str, said: str, told: str, open_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        program = f'test "$1" = --version && echo bubblewrap {version} && exit; echo "bwrap: {said}" >&2; exit 1'
        (open_folder / "bwrap").write_text(f"#!/bin/sh\n{program}\n")
        (open_folder / "bwrap").chmod(0o755)
        monkeypatch.setenv("PATH", f"{open_folder}:/usr/bin:/bin")
        with pytest.raises(SandboxError, match=told):
            await LocalSandbox.open()

    async def test_on_another_system(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "platform", "darwin")
        with pytest.raises(SandboxError, match="need Linux, not darwin; use a container"):
            await open_sandbox("local")

    async def test_unknown_names(self) -> None:
        for name in ("lokal", "container:", "local:x"):
            with pytest.raises(ConfigError, match="use local, none, container:IMAGE"):
                await open_sandbox(name)
