"""The examples of adapters run without a key, and the page on adapters and serving says what is so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECTIONS = re.split(r"^## ", (ROOT / "docs" / "learning.md").read_text(encoding="utf-8"), flags=re.MULTILINE)


def section(name: str) -> str:
    return next(text for text in SECTIONS if text.startswith(f"{name}\n"))


@pytest.mark.parametrize(
    ("example", "said"),
    [
        ("frozen_lake.py", r"100 episodes on FrozenLake-v1, got over in ([6-9]\d)%"),
        ("reasoning.py", r"100 questions of reasoning-gym/chain_sum, right in ([2-6]\d)%"),
    ],
)
def test_examples_run(example: str, said: str) -> None:
    path = ROOT / "examples" / "environments" / example
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(said, done.stdout.strip()), done.stdout


def test_the_block_on_adapters_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", section("Adapters"), re.DOTALL | re.MULTILINE)
    exec(compile(block, "learning.md", "exec"), {})
    assert capsys.readouterr().out.strip() == "dict_keys(['seed']) chain_sum"


def test_the_options_of_the_page_are_those_of_the_command() -> None:
    text = section("Serving")
    done = subprocess.run(
        [sys.executable, "-m", "aworld", "env", "serve", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    options = set(re.findall(r"--[a-z-]+", text)) - {"--format"}
    assert options
    assert options <= set(re.findall(r"--[a-z-]+", done.stdout))
