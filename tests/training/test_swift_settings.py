"""What the engine `swift` and the vLLM server refuse, and what they would run: no other environment is needed here."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aworld.agents.llm_agent import Agent
from aworld.core.exceptions import ConfigError, TrainingError
from aworld.core.message import Message
from aworld.environments import Environment, Problem
from aworld.models import ScriptedModel
from aworld.models.embedded.checkpoint import Policy
from aworld.models.embedded.embedded_model import EmbeddedModel
from aworld.training import TrainingConfig, TrainingJob
from aworld.training.outside import OutsidePrompt, OutsideRollouts
from aworld.training.swift.swift_arguments import SwiftOptions, rows_of, swift_arguments, write_prompts
from aworld.training.swift.swift_engine import SwiftEngine
from aworld.training.trainer_process import TrainerProcess, tail
from aworld.training.vllm_server import VllmServer
from aworld.trajectory.memory import MemoryStore

ENVIRONMENT = Environment(
    "sums", train=[Problem(id=str(n), input=f"What is {n} plus 1?") for n in range(8)], system_prompt="Be brief."
)


def refused(tmp_path: Path, agent: Any = None, **settings: Any) -> str:
    agent = agent or Agent("pupil", model=EmbeddedModel(Policy.open()))
    job = TrainingJob(agent, ENVIRONMENT, None, TrainingConfig(**settings), tmp_path)
    with pytest.raises(ConfigError) as caught:
        SwiftEngine().check(job)
    return str(caught.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"algorithm": "sft"}, "algorithm='sft': the swift engine takes grpo"),
        ({"advantages": "raw"}, "takes group_normalised or group_centred"),
        ({"credit": "step_rewards"}, "takes trajectory_reward"),
        ({"target": 0.9}, "evaluated only before and after"),
        ({"samples": 1}, "at least 2"),
        ({"filters": ("no_variance", "truncated")}, "takes no_variance"),
        ({"options": {"pyhton": "x"}}, "Known are python, model,"),
        ({"options": {"micro_batch": 0}}, "at least 1"),
        ({"options": {"micro_batch": 7}}, "divides 192"),
        ({"options": {"python": "/no/such/python"}}, "does not run"),
        ({"options": {"python": sys.executable}}, "pip install ms-swift==4.6.0 msgspec"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(tmp_path: Path, settings: Any, said: str) -> None:
    assert said in refused(tmp_path, **settings)
    assert not list(tmp_path.iterdir())


def test_a_policy_must_be_here(tmp_path: Path) -> None:
    agent = Agent("pupil", model=ScriptedModel([]))
    assert "whose weights are not here" in refused(tmp_path, agent)


def test_settings_in_the_words_of_swift(tmp_path: Path) -> None:
    config = TrainingConfig(steps=10, groups=16, samples=8, epochs=2, minibatches=4, advantages="group_centred")
    options = SwiftOptions(micro_batch=8, arguments={"learning_rate": 1e-6, "bf16": True})
    found = swift_arguments(config, options, model="Qwen/Qwen2.5-0.5B", folder=tmp_path, embedded=False)
    assert found["per_device_train_batch_size"] == 8
    assert found["gradient_accumulation_steps"] == 4  # 4 x 8 episodes of each of 4 minibatches
    assert found["steps_per_generation"] == 16
    assert found["max_steps"] == 10 * 2 * 4
    assert (found["scale_rewards"], found["beta"], found["top_k"], found["top_p"]) == ("none", 0, -1, 1.0)
    assert (found["learning_rate"], found["bf16"]) == (1e-6, True)
    assert "use_cpu" not in found


def test_the_dataset_is_that_of_swift(tmp_path: Path) -> None:
    rows = rows_of(ENVIRONMENT, TrainingConfig(steps=3, groups=2))
    write_prompts(tmp_path / "train.jsonl", rows, ENVIRONMENT)
    written = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert [row["problem_id"] for row in written] == ["0", "1", "2", "3", "4", "5"]
    assert written[1] == {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": rows["1"].input}],
        "problem_id": "1",
    }


def additions(seed: int) -> Iterator[dict[str, Any]]:
    """Without ids: the first problem of every step is called "0"."""
    draw = random.Random(seed)
    while True:
        yield {"input": f"What is {draw.randrange(1000)} plus {draw.randrange(1000)}?"}


async def test_each_row_of_the_dataset_begins_an_episode_of_its_own_problem(tmp_path: Path) -> None:
    environment = Environment("additions", train=additions)  # pyright: ignore[reportArgumentType]
    rows = rows_of(environment, TrainingConfig(steps=3, groups=2))
    assert len({problem.input for problem in rows.values()}) == 6
    write_prompts(tmp_path / "train.jsonl", rows, environment)
    rollouts = OutsideRollouts(
        environment, Agent("pupil", model=ScriptedModel([])), rows,
        parse=lambda text, request: Message("assistant", text), name="policy", run="rows", store=MemoryStore(),
    )  # fmt: skip
    for line in (tmp_path / "train.jsonl").read_text().splitlines():
        row = json.loads(line)
        asked = await rollouts.begin(row["problem_id"], row["problem_id"])
        assert isinstance(asked, OutsidePrompt)
        assert asked.messages == row["messages"]
    await rollouts.close()


async def test_a_process_is_ended_once(tmp_path: Path) -> None:
    process = await TrainerProcess.start(
        [sys.executable, "-c", "import time; time.sleep(600)"], tmp_path / "log", {}, tmp_path
    )
    assert process.running
    await process.stop()
    assert not process.running
    await process.stop()  # twice does no harm
    assert tail(tmp_path / "no such log") == ""


async def test_a_server_that_ends_at_once_shows_its_log(tmp_path: Path) -> None:
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\ncase "$1" in -c) echo 0.32.0;; *) echo no such device; exit 3;; esac\n')
    fake.chmod(0o755)
    policy = Policy.open().save(tmp_path / "policy")
    with pytest.raises(TrainingError, match=r"(?s)ended before it answered.*no such device"):
        async with VllmServer.start(policy, python=str(fake)):
            pass


async def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    policy = Policy.open().save(tmp_path / "policy")
    with pytest.raises(ConfigError, match="vLLM is not installed"):
        async with VllmServer.start(policy, python=sys.executable):
            pass
    with pytest.raises(TrainingError, match="vLLM does not answer /pause"):
        await VllmServer("http://127.0.0.1:9/v1", policy).reload(policy)
