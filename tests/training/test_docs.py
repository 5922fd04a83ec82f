"""The blocks of `docs/learning.md` on training run, in order, as a reader would run them."""

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
TEXT = next(section for section in SECTIONS if section.startswith("Training\n"))
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    said: list[str] = []
    for kind, block in BLOCKS:
        if kind == "python":
            exec(compile(block, str(PAGE), "exec"), names)
            said.append(capsys.readouterr().out.strip())
    learnt, own, derived = said
    shares = re.findall(r"greedy: ([\d.]+)% → ([\d.]+)%, p = [\de.-]+\n", learnt)[0]
    before, after = map(float, shares)
    assert before < 10 < 40 < after
    assert own == "1 8 4"
    assert derived == "192 0 0 192"
    assert names["better"].model.policy.version.startswith("30-")


def test_bash_blocks_run(tmp_path: Path) -> None:
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    for kind, block in BLOCKS:
        if kind == "bash":
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block],
                cwd=tmp_path, env={**os.environ, "PATH": path, "PYTHONPATH": str(PAGE.parents[1])},
                capture_output=True, text=True, timeout=120,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert "McNemar" in done.stdout
            assert "pass@1" in done.stdout
