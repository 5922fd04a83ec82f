"""Engine `swift`: ms-swift trains for real on a CPU, with our rollouts. Run by `make test-trainers`.

Needs ms-swift in an environment of its own, which `AWORLD_SWIFT_PYTHON` names; docs/trainers.md says how it is made.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from aworld.agents.llm_agent import Agent
from aworld.core.exceptions import TrainingError
from aworld.core.message import Message
from aworld.core.trajectory import Trajectory
from aworld.environments import Environment
from aworld.models.doubles import ScriptedModel, call
from aworld.models.embedded.checkpoint import Policy
from aworld.models.embedded.embedded_model import EmbeddedModel
from aworld.runner import Runners
from aworld.training import TrainingConfig, TrainingJob
from aworld.training.bridge import Bridge
from aworld.training.outside import OutsideRollouts
from aworld.training.result import Stepped, TrainingEvent
from aworld.training.swift.swift_engine import INSTALL, SwiftEngine
from aworld.trajectory import open_store
from aworld.trajectory.formats import swift
from aworld.trajectory.memory import MemoryStore
from aworld.trajectory.sequences import sequences
from aworld.trajectory.store import Query
from tests.trainers.pupil import TURNS, chatter, pupil, unsure

PYTHON = os.environ.get("AWORLD_SWIFT_PYTHON")

pytestmark = pytest.mark.skipif(PYTHON is None, reason=f"AWORLD_SWIFT_PYTHON is not set; {INSTALL}")

PLUGIN = Path(__file__).parents[2] / "aworld" / "training" / "swift" / "swift_plugin.py"
STEPS, GROUPS, SAMPLES = 6, 4, 8


def job(folder: Path, environment: Environment | None = None, emit: Any = None, **settings: Any) -> TrainingJob:
    known: dict[str, Any] = {
        "steps": STEPS,
        "groups": GROUPS,
        "samples": SAMPLES,
        "learning_rate": 1e-3,
        "max_completion_tokens": 16,
    }
    agent = Agent("pupil", model=EmbeddedModel(pupil()))
    config = TrainingConfig(**{**known, **settings})
    environment = environment or chatter()
    return TrainingJob(agent, environment, None, config, folder, *((emit,) if emit else ()))


def shopping() -> Trajectory:
    """A run with a tool call."""

    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    model = ScriptedModel([call("add", a=2, b=3), "It is 5"])
    return Runners.sync_run("What is 2 plus 3?", agent=Agent("pupil", model=model, tools=[add])).record


def running() -> str:
    """The command of every process."""
    return subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout


async def trained(job: TrainingJob) -> Any:
    engine = SwiftEngine()
    engine.check(job)
    return await engine.train(job)


async def test_swift_learns_from_our_rollouts(tmp_path: Path) -> None:
    result = await trained(job(tmp_path))
    assert [report.episodes for report in result.history] == [GROUPS * SAMPLES] * STEPS
    for report in result.history:  # what swift learnt from is what our rubric gave
        assert report.statistics["reward"] == pytest.approx(report.score, abs=1e-4)
        assert report.statistics["num_turns"] == TURNS
    first, last = result.history[0].score, result.history[-1].score
    assert last > first, f"{first} -> {last}"

    policy = Policy.open(result.policy)
    assert policy.version == f"swift-{STEPS}"
    assert any((policy.weights[name] != pupil().weights[name]).any() for name in policy.weights)
    answer = await Runners.run("Tell me about 7.", agent=Agent("pupil", model=str(tmp_path)))
    assert answer.success
    (said,) = sequences(answer.record).rows
    assert said.policy_version == policy.version

    store = open_store(result.store)
    runs = await store.query(Query())
    assert len(runs) == STEPS * GROUPS * SAMPLES
    for run in runs:
        record = await Runners.resume(run.id, Agent("pupil", model=EmbeddedModel(policy)), store=store)
        derived = sequences(record.record)
        assert (len(derived.rows), derived.drift, derived.complete) == (1, 0, True)
        assert len(derived.rows[0].steps) == TURNS
        assert set(derived.rows[0].policy_versions) <= {"0", *(f"swift-{n}" for n in range(1, STEPS))}
    recipe = yaml.safe_load((tmp_path / "swift" / "args.yaml").read_text())
    assert recipe["rlhf_type"] == "grpo"
    rows = [json.loads(line) for line in (tmp_path / "swift" / "train.jsonl").read_text().splitlines()]
    assert [message["role"] for message in rows[0]["messages"]] == ["system", "user"]
    assert [row["problem_id"] for row in rows] == [str(number) for number in range(STEPS * GROUPS)]


async def test_unknown_scores_teach_nothing(tmp_path: Path) -> None:
    result = await trained(job(tmp_path, chatter(unsure), steps=1))
    (report,) = result.history
    assert report.dropped == {"failed_rewards": SAMPLES}
    assert report.samples == (GROUPS - 1) * SAMPLES


async def test_a_failing_trainer_shows_the_end_of_its_log(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"(?s)after 0 of 6 steps.*no_such_argument"):
        await trained(job(tmp_path, options={"arguments": {"no_such_argument": 1}}))
    assert not (tmp_path / "policy").exists()


async def test_cancelling_ends_the_trainer(tmp_path: Path) -> None:
    stepped = asyncio.Event()

    def emit(event: TrainingEvent) -> None:
        if isinstance(event, Stepped):
            stepped.set()

    training = asyncio.create_task(trained(job(tmp_path, emit=emit, steps=1000)))
    await asyncio.wait_for(stepped.wait(), 120)
    assert str(tmp_path) in running()
    training.cancel()
    with pytest.raises(asyncio.CancelledError):
        await training
    assert str(tmp_path) not in running()


def test_the_plugin_encodes_exactly_what_was_read_and_sampled(tmp_path: Path) -> None:
    script = Path(__file__).with_name("swift_checks.py")
    folder = pupil().save(tmp_path / "policy")
    (row,) = swift(shopping())
    assert PYTHON is not None
    done = subprocess.run(
        [PYTHON, str(script), str(PLUGIN), str(folder), json.dumps(row)],
        capture_output=True,
        text=True,
        env={**os.environ, "USE_HF": "1", "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    read, said = found["read"], found["said"]
    whole = [*read[0], *said[0], *read[1], *said[1], *read[2], *said[0]]
    assert found["ids"] == whole
    mask = [*[0] * len(read[0]), 1, 1, 1, 1, *[0] * len(read[1]), 1, 1, *[0] * len(read[2]), 1, 1, 1, 1]
    assert [label for label in found["labels"] if label != -100] == [id for id, one in zip(whole, mask) if one]
    assert [int(label != -100) for label in found["labels"]] == mask
    assert found["asked"] == [*read[0], *said[0], *read[1]]
    assert found["text"] == (
        "<|im_start|>user\nWhat is 37 plus 25?<|im_end|>\n<|im_start|>assistant\nadd<|im_end|>\n"
        "<|im_start|>user\nAnd 0?<|im_end|>\n<|im_start|>assistant\nad<|im_end|>\n"
        "<|im_start|>user\nAnd 1?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "rewrites earlier turns" in found["refused"]
    assert '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call>' in found["learnt"]
    assert found["learnt"].rstrip().endswith("It is 5<|im_end|>")
    assert "<tool_response>\n5\n</tool_response>" in found["exported"]
    assert "<tool_response>" not in found["learnt"]
    assert found["rewards"] == [1.0, 0.5, 0.0, 0.0]


async def test_a_rollout_server_of_swift_is_served_too(tmp_path: Path) -> None:
    """`swift rollout` on vLLM, up to vLLM itself: that needs a GPU."""
    environment = chatter()
    heard: list[Trajectory] = []
    rows = {problem.id: problem for problem in environment.problems("train", 4, seed=1)}
    rollouts = OutsideRollouts(
        environment, Agent("pupil", model=ScriptedModel([])), rows,
        parse=lambda text, request: Message("assistant", text), name="policy", run="server", store=MemoryStore(),
        on_end=lambda ended, response: heard.append(response.record),
    )  # fmt: skip
    script = Path(__file__).with_name("swift_server_check.py")
    assert PYTHON is not None
    async with Bridge(rollouts, lambda step, figures: None) as bridge:
        process = await asyncio.create_subprocess_exec(
            PYTHON, str(script), str(PLUGIN), str(pupil().save(tmp_path / "policy")),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, **bridge.variables, "USE_HF": "1", "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    found = json.loads(output.splitlines()[-1])
    (record,) = heard
    (row,) = sequences(record).rows
    assert found["turns"] == TURNS
    assert found["infos"]["aworld"]["score"] == record.score
    assert [id for turn in found["ids"] for id in turn] == [id for id, one in zip(row.ids, row.mask) if one]
    assert all(one == 1 for turn in found["mask"] for one in turn)
    assert [value for value in row.logprobs if value is not None] == [-0.5] * sum(row.mask)
    assert found["roles"] == ["user", "assistant"] * TURNS
