"""The blocks of `docs/learning.md` on environments and rollouts run, in order, as a reader would run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "learning.md"
SECTIONS = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
TEXT = "".join(section for section in SECTIONS if section.startswith(("Environments\n", "Rollouts\n")))
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    said: list[str] = []
    for kind, block in BLOCKS:
        if kind == "python":
            exec(compile(block, str(PAGE), "exec"), names)
            said.append(capsys.readouterr().out.strip())
    _, task, by_hand, explore = said
    assert task.startswith("finished ")
    assert "('correct', 1.0), ('brief', 1.0)" in task
    assert by_hand == "1.1 True False finished"
    assert explore == "80 20 80 True"


def test_bash_blocks_run(tmp_path: Path) -> None:
    (tmp_path / "my_tasks.py").write_text(BLOCKS[0][1])
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    for kind, block in BLOCKS:
        if kind == "bash":
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block],
                cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert "pass@4" in done.stdout
    assert len((tmp_path / "second.jsonl").read_text().splitlines()) == 80
