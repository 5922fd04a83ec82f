"""Every example of `examples/swarms` runs without a key, and says what it should."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples" / "swarms"

SAID = {
    "chain": [
        "├── optimist  after researcher",
        "finished: Having heard optimist and sceptic: tea is fine, in measure.",
    ],
    "map_reduce": ["reader: found a jar.", "finished: found a jar. / for its beak. / rose, and drank."],
    "team_research": [
        'leader: counter({"input":"Iceland"}) counter({"input":"Malta"}) historian({"input":"both"})',
        "finished: Compared: Iceland has 390000; Malta has 550000; 1944 and 1964",
    ],
    "handoff_helpdesk": [
        'triage: handoff_to_billing({"message":"The customer wants money back."})',
        "finished: Your money is on its way, and a new lid is in the mail.",
    ],
    "solver_verifier": ["The square of 11 is 121.", "solver: 12", "finished: 12"],
    "debate_and_vote": ["judge: It is 3; 2 debaters were heard.", "finished: 3\n", "cleo: 3"],
    "nested": [
        'subgraph n["office (workflow)"]',
        "step 2: next is 'the sea is wide'",
        "state: {'words': 4}, answer: {'words': 4}",
        "finished: {'words': 4}",
    ],
    "newsroom": ["└── short (loop)  after researcher", "finished: Tea wakes you."],
}


def keyless() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith(("LLM_", "OPENAI_"))}


def test_every_example_is_here() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*SAID, "stand_in"}


@pytest.mark.parametrize("name", SAID)
def test_an_example_runs_without_a_key(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", str(EXAMPLES / f"{name}.py")]
    done = subprocess.run(command, env=keyless(), cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for piece in SAID[name]:
        assert piece in done.stdout
    assert list(tmp_path.iterdir()) == []  # nothing is written that nobody asked for
