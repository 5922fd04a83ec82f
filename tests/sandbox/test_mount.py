"""A folder in a sandbox: a run changes a copy of it, and what it changed is on record, in any process."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from aworld.agents.llm_agent import Agent
from aworld.config import RunConfig
from aworld.core.event import Noted
from aworld.core.exceptions import ConfigError, TaskError
from aworld.core.sandbox import SandboxLimits
from aworld.core.task import TaskResponse
from aworld.core.tool.wrappers import approval_required
from aworld.models.doubles import ScriptedModel, call
from aworld.runner import Runners
from aworld.sandbox import base_sandbox, local, mount
from aworld.sandbox.changes import FileChange, apply, changes_of
from aworld.sandbox.pool import SandboxPool
from aworld.tools.sandboxed import sandbox_tools
from aworld.trajectory import TrajectoryStore, open_store
from tests.sandbox.places import needs_bubblewrap

pytestmark = needs_bubblewrap


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[TrajectoryStore]:
    opened = open_store(f"sqlite:///{tmp_path}/runs.db")
    yield opened
    await opened.close()


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    folder = tmp_path / "repo"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.py").write_text("x = 1\n")
    (folder / "deep/b.txt").write_text("one\ntwo\n")
    (folder / "gone.bin").write_bytes(b"\0\1")
    return folder


def git(folder: Path, *words: str, data: bytes = b"") -> None:
    subprocess.run(["git", *words], input=data, cwd=folder, check=True, capture_output=True, timeout=30)


def shell(line: str) -> Any:
    return call("shell", command=line)


async def run(pool: SandboxPool, *script: Any, store: Any = None, **options: Any) -> TaskResponse:
    """A run of a scripted agent in the sandboxes of a pool."""
    agent = Agent("coder", model=ScriptedModel([*script, "done"]), sandbox=pool)
    async with pool:
        return await asyncio.wait_for(Runners.run("Do it.", agent, run_conf=RunConfig(store=store), **options), 60)


async def changes(response: TaskResponse) -> list[FileChange]:
    [files] = (await changes_of(response.record, response.store)).values()
    return files


def test_the_page_says_what_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    page = (Path(__file__).parents[2] / "docs" / "tools.md").read_text(encoding="utf-8")
    [(block, output)] = re.findall(r"^```python\n(.*?)^```\n\n^```text\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo/calc.py").write_text("def add(a, b):\n    return a - b\n")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "tools.md", "exec"), {"__name__": "page"})
    assert capsys.readouterr().out == output
    assert "a + b" in (tmp_path / "repo/calc.py").read_text()


async def test_a_run_changes_a_copy_and_the_changes_come_back(repo: Path) -> None:
    edit = call("edit_file", path="a.py", old="x = 1", new="x = 2")
    response = await run(
        local(mount=repo), edit, shell("rm gone.bin && printf hi > deep/new && chmod +x deep/new && touch deep/b.txt")
    )
    assert response.success
    assert (repo / "a.py").read_text() == "x = 1\n"  # the folder itself is as it was
    assert [(kept.name, kept.digest is None) for kept in response.artifacts] == [
        ("a.py", False), ("deep/new", False), ("gone.bin", True),
    ]  # fmt: skip
    files = await changes(response)
    assert "".join(change.diff() for change in files) == (
        "diff --git a/a.py b/a.py\n--- a/a.py\n+++ b/a.py\n@@ -1 +1 @@\n-x = 1\n+x = 2\n"
        "diff --git a/deep/new b/deep/new\nnew file mode 100755\n--- /dev/null\n+++ b/deep/new\n@@ -0,0 +1 @@\n+hi\n"
        "\\ No newline at end of file\n"
        "diff --git a/gone.bin b/gone.bin\ndeleted file mode 100644\n"
        "Binary files a/gone.bin and /dev/null differ (2 and 0 bytes)\n"
    )
    assert apply(files, repo) == ["a.py", "deep/new", "gone.bin"]
    assert (repo / "a.py").read_text() == "x = 2\n"
    assert (repo / "deep/new").stat().st_mode & 0o111
    assert sorted(path.name for path in repo.rglob("*")) == ["a.py", "b.txt", "deep", "new"]
    assert apply(files, repo) == []


async def test_the_difference_is_one_that_git_takes(repo: Path, tmp_path: Path) -> None:
    response = await run(local(mount=repo), shell("sed -i s/two/zwei/ deep/b.txt && printf x > y && chmod +x a.py"))
    patch = "".join(change.diff() for change in await changes(response))
    git(repo, "apply", "-", data=patch.encode())
    assert (repo / "deep/b.txt").read_text() == "one\nzwei\n"
    assert apply(await changes(response), repo) == []


async def test_what_came_back_to_what_it_was_is_no_change(repo: Path) -> None:
    response = await run(local(mount=repo), shell("echo > a.py; echo > b"), shell("echo 'x = 1' > a.py; rm b"))
    assert response.artifacts == []


async def test_of_a_git_repository_there_is_what_git_does_not_ignore(repo: Path) -> None:
    (repo / ".gitignore").write_text("*.log\n")
    (repo / "old.log").write_text("")
    (repo / ".env").write_text("KEY=secret")
    git(repo, "init", "-q")
    git(repo, "add", "a.py")
    response = await run(
        local(mount=repo), shell("find . -type f | sort; echo > new.log; echo > new.txt; mkdir .git; echo > .git/x")
    )
    assert response.trajectory[0]["observation"][0]["content"].split("\n")[:4] == [
        "./.gitignore", "./a.py", "./deep/b.txt", "./gone.bin",
    ]  # fmt: skip
    assert [kept.name for kept in response.artifacts] == ["new.txt"]


async def test_a_folder_that_is_gone_when_it_is_copied_is_no_empty_one(repo: Path) -> None:
    pool = local(mount=repo)
    shutil.rmtree(repo)
    response = await run(pool, shell("ls"))
    assert "there is no such folder" in response.trajectory[0]["observation"][0]["error"]


async def test_what_cannot_be_kept_is_on_record(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mount, "MOST", 3)
    monkeypatch.setattr(base_sandbox, "READ_BYTES", 1000)
    response = await run(local(mount=repo), shell("seq 5000 > large; echo > small"), shell("touch 1 2 3 4"))
    assert [kept.name for kept in response.artifacts] == ["small"]
    notes = [event.data for event in response.record.events if isinstance(event, Noted)]
    assert [note["name"] for note in notes] == ["large", "1"]
    assert "more than 1000 bytes" in notes[0]["error"]
    assert "4 files changed in one step, at most 3 are kept: let git ignore them" in notes[1]["error"]


async def test_a_sandbox_that_dies_is_replaced_by_one_with_the_files_of_the_last_step(repo: Path) -> None:
    pool: Any = local(mount=repo)

    def crash() -> None:
        [lease] = pool._leases
        os.kill(lease.result().pid, signal.SIGKILL)

    script = [shell("echo kept > new"), [call("crash"), shell("sleep 30")], shell("cat new"), "done"]
    agent = Agent("coder", model=ScriptedModel(script), sandbox=pool, tools=[crash])
    async with pool:
        response = await asyncio.wait_for(Runners.run("Do it.", agent), 60)
    assert response.success
    assert response.trajectory[1]["observation"][1]["error"]
    assert response.trajectory[2]["observation"][0]["content"] == "kept\n[exit code 0]"
    assert [kept.name for kept in response.artifacts] == ["new"]
    [note] = [event.data for event in response.record.events if isinstance(event, Noted)]
    assert "sandbox" in note["error"]


async def test_one_agent_of_a_module_is_for_many_loops(repo: Path) -> None:
    def again() -> TaskResponse:
        coder = Agent("coder", model=ScriptedModel([shell("cat a.py"), "done"]), sandbox=pool)
        return Runners.sync_run("Look.", coder)

    pool = local(mount=repo)
    responses = [await asyncio.to_thread(again) for _ in range(2)]
    assert [response.trajectory[0]["observation"][0]["content"] for response in responses] == [
        "x = 1\n[exit code 0]"
    ] * 2


async def test_links_that_lead_out_are_left_out(repo: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (repo / "inside").symlink_to("a.py")
    for name, target in (("out", "../secret"), ("passwd", "/etc/passwd"), ("folder", "..")):
        (repo / name).symlink_to(target)
    response = await run(local(mount=repo), shell("ls; cat inside"))
    assert response.trajectory[0]["observation"][0]["content"] == "a.py\ndeep\ngone.bin\ninside\nx = 1\n[exit code 0]"


async def test_a_folder_can_be_shown_alone(open_folder: Path) -> None:
    (open_folder / "a.py").write_text("x = 1\n")
    pool = local(mount=open_folder, write="no")
    response = await run(pool, call("read_file", path="a.py"), call("write_file", path="a.py", content=""))
    read, write = (row["observation"][0] for row in response.trajectory[:2])
    assert "x = 1" in read["content"]
    assert "read-only" in write["error"].lower()
    assert response.artifacts == []


def test_a_mount_that_cannot_be_is_refused_before_anything_begins(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for place, words in (
        (tmp_path / "nowhere", "there is no such folder"), (repo / "a.py", "not a folder"), ("~", "keys"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            local(mount=place)
    with open(repo / "large", "wb") as file:
        file.truncate(2 << 20)
    with pytest.raises(ConfigError, match=r"more than the sandbox may hold, disk_mb=1 .* limits=SandboxLimits"):
        local(mount=repo, limits=SandboxLimits(disk_mb=1))
    options: Any = {"write": "yes"}
    with pytest.raises(ConfigError, match="write"):
        local(mount=repo, **options)


async def test_a_run_that_goes_on_elsewhere_has_its_files(repo: Path, store: TrajectoryStore) -> None:
    """It waits for consent; another process, with a sandbox of its own, goes on where the files stood."""

    def agent(pool: SandboxPool) -> Agent:
        script = [
            call("write_file", path="a.py", content="x = 2\n"),
            shell("cat a.py >> deep/b.txt; rm gone.bin"),
            "done",
        ]
        return Agent("coder", model=ScriptedModel(script), tools=approval_required(sandbox_tools(pool), ["shell"]))

    async with local(mount=repo) as pool:
        waiting = await Runners.run("Do it.", agent(pool), run_conf=RunConfig(store=store))
    assert waiting.status == "waiting"
    assert [kept.name for kept in waiting.artifacts] == ["a.py"]
    second = open_store(store.url)
    async with local(mount=repo) as pool:
        [question] = waiting.record.open_questions()
        response = await Runners.resume(waiting.id, agent(pool), store=second, answers={question.id: "yes"})
    assert response.success
    assert [kept.name for kept in response.artifacts] == ["a.py", "deep/b.txt", "gone.bin"]
    assert {change.kept.name: change.after for change in await changes(response)} == {
        "a.py": b"x = 2\n", "deep/b.txt": b"one\ntwo\nx = 2\n", "gone.bin": None,
    }  # fmt: skip
    async with local(mount=repo) as pool:  # a fork before the command has the files of then
        script = [shell("true"), shell("ls; cat a.py"), "done"]
        coder = Agent("coder", model=ScriptedModel(script), sandbox=pool)
        forked = await Runners.fork(response.id, coder, at=1, store=second, observation="Look.")
    seen = next(row for row in forked.trajectory[::-1] if row["observation"])["observation"][0]["content"]
    assert seen == "a.py\ndeep\ngone.bin\nx = 2\n[exit code 0]"
    await second.close()


async def test_a_cancelled_run_leaves_what_it_had_changed(repo: Path) -> None:
    async with local(mount=repo) as pool:
        agent = Agent("coder", model=ScriptedModel([shell("echo x > new; sleep 50")]), sandbox=pool)
        response = await asyncio.wait_for(Runners.run("Do it.", agent, timeout=2), 30)
    assert response.status == "timeout"
    assert [kept.name for kept in response.artifacts] == ["new"]


async def test_the_next_turn_of_a_conversation_goes_on_with_the_files(repo: Path, store: TrajectoryStore) -> None:
    first = await run(local(mount=repo), shell("echo 'x = 2' > a.py; chmod +x deep/b.txt; touch empty"), store=store)
    second = await run(local(mount=repo), shell("echo 'y = 2' >> a.py; ls -l deep"), store=store, after=first)
    assert (await changes(second))[0].after == b"x = 2\ny = 2\n"
    assert "-rwxr-xr-x" in second.trajectory[0]["observation"][0]["content"]
    assert [kept.name for kept in second.artifacts] == ["a.py", "deep/b.txt", "empty"]
    apply(await changes(first), repo)
    third = await run(local(mount=repo), shell("echo 'z = 2' >> a.py"), store=store, after=first)
    assert apply(await changes(third), repo) == ["a.py"]  # what was brought back meanwhile is no conflict
    assert (repo / "a.py").read_text() == "x = 2\nz = 2\n"


async def test_changes_that_somebody_made_meanwhile_are_not_overwritten(repo: Path) -> None:
    response = await run(local(mount=repo), shell("echo 'x = 2' > a.py; rm gone.bin; echo new > new"))
    files = await changes(response)
    (repo / "a.py").write_text("x = 3\n")
    (repo / "new").write_text("mine\n")
    with pytest.raises(TaskError, match="nothing was written") as refused:
        apply(files, repo)
    assert "-x = 1\n+x = 3" in str(refused.value)
    assert "+mine" in str(refused.value)
    assert ((repo / "a.py").read_text(), (repo / "gone.bin").exists()) == ("x = 3\n", True)


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/evil", "a/../../evil", ".git/hooks/x", "link/evil", "link", "a.py/evil", "", "a" * 300]
)
async def test_no_record_writes_outside_of_the_folder(repo: Path, tmp_path: Path, name: str) -> None:
    """A record may be a stranger's."""
    from msgspec.structs import replace

    response = await run(local(mount=repo), shell("echo new > new"))
    [change] = await changes(response)
    (tmp_path / "elsewhere").mkdir()
    (repo / "link").symlink_to(tmp_path / "elsewhere")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(TaskError, match="nothing was"):
        apply([FileChange(replace(change.kept, name=name), None, b"evil")], repo)
    assert sorted(tmp_path.rglob("*")) == before


async def test_what_fails_in_the_middle_leaves_everything_as_it_was(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    response = await run(local(mount=repo), shell("echo 'x = 2' > a.py; mkdir d; echo > d/new; rm gone.bin; echo > z"))
    files = await changes(response)
    before = {path: path.read_bytes() for path in repo.rglob("*") if path.is_file()}
    place = Path.replace

    def full(self: Path, target: Path) -> Path:
        if target.name == "z":
            raise OSError(28, "No space left on device")
        return place(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(TaskError, match="No space left on device; everything is as it was"):
        apply(files, repo)
    assert {path: path.read_bytes() for path in repo.rglob("*") if path.is_file()} == before
    assert not (repo / "d").exists()


@pytest.mark.parametrize(
    "line",
    ["ln -sf a.py gone.bin", "rm gone.bin; mkfifo gone.bin", "chmod 000 deep", "chmod 444 deep", "chmod 000 .",
     "mv deep /tmp/deep; ln -s /tmp/deep deep"],
)  # fmt: skip
async def test_what_is_only_out_of_sight_was_not_deleted(repo: Path, line: str) -> None:
    response = await run(local(mount=repo), shell(line))
    assert response.artifacts == []
    notes = [event.data["error"] for event in response.record.events if isinstance(event, Noted)]
    assert notes
    assert all("the file stays as it was" in note for note in notes)


async def test_what_belongs_to_a_repository_inside_is_left_out_and_the_rest_is_as_git_says(repo: Path) -> None:
    git(repo, "init", "-q")
    git(repo, "init", "-q", "sub")
    (repo / "sub/f").write_text("F")
    git(repo / "sub", "add", "f")
    git(repo / "sub", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "f")
    (repo / ".gitignore").write_text("*.log\n")
    git(repo, "add", ".")
    response = await run(local(mount=repo), shell("mkdir -p sub; echo > sub/f; echo > sub/g; echo > a.log; echo > new"))
    assert [kept.name for kept in response.artifacts] == ["new"]
