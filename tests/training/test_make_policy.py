"""The script that makes the packaged policy, for a few steps."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from aworld.agents.llm_agent import Agent
from aworld.core.exceptions import ConfigError
from aworld.environments import shop, sums
from aworld.environments.problem import Problem
from aworld.models import FunctionModel
from aworld.models.embedded.checkpoint import PACKAGED, Policy
from aworld.models.embedded.embedded_model import EmbeddedModel
from aworld.runner import Runners
from aworld.training.embedded.demonstrations import Demonstrator
from aworld.training.embedded.imitation import imitate, tokenised
from aworld.training.embedded.make_policy import main, make_policy
from aworld.trajectory.formats import openai
from tests.training.small import small_agent, small_policy


def test_the_same_seed_makes_the_same_policy(tmp_path: Path) -> None:
    made = make_policy(1, 2)
    assert main([str(tmp_path), "--steps", "2", "--seed", "1"]) == 0
    saved = Policy.open(tmp_path)
    assert made.tokenizer.data == saved.tokenizer.data
    assert all(np.array_equal(made.weights[name], saved.weights[name]) for name in made.weights)


def test_the_packaged_tokenizer_is_made_by_it() -> None:
    assert make_policy(steps=0).tokenizer.data == Policy.open().tokenizer.data
    assert (PACKAGED / "model.safetensors").stat().st_size <= 2_000_000


def test_the_packaged_policy_has_no_padded_vocabulary() -> None:
    policy = Policy.open()
    ids = set(range(policy.config.vocab_size))
    names = policy.tokenizer.backend_tokenizer
    assert {names.token_to_id(names.id_to_token(id)) for id in ids} == ids


def test_demonstrations_teach_only_what_the_assistant_says() -> None:
    tokenizer = Policy.open().tokenizer
    for shown in islice(Demonstrator(1), 40):
        ids, mask = tokenised(tokenizer, shown)
        text = tokenizer.apply_chat_template(shown.messages, tools=shown.tools, add_generation_prompt=False)
        assert tokenizer.encode(text.rstrip("\n")) == ids
        said = tokenizer.decode([id for id, sampled in zip(ids, mask, strict=True) if sampled])
        assert said.count("<|im_end|>") == sum(message["role"] == "assistant" for message in shown.messages)
        assert "<|im_start|>" not in said


def test_demonstrations_show_no_held_out_problem() -> None:
    held = {problem.input for problem in held_out()}
    shown = {one.messages[0]["content"] for one in islice(Demonstrator(3), 3000)}
    assert not {asked for asked in shown if asked.startswith("What is")} & held


def held_out() -> list[Problem]:
    return sums.sums().problems("test") + shop.shop().problems("test")


async def test_a_policy_is_shown_what_a_script_does(tmp_path: Path) -> None:
    teacher = Agent("teacher", model=FunctionModel(lambda request: "b"))
    records = [(await Runners.run(f"say {number}", agent=teacher)).record for number in range(24)]
    pupil = small_agent()
    before = small_policy().weights
    rows = (row for record in records for row in openai(record))
    losses = imitate(pupil, rows, tmp_path / "start", epochs=20, batch=4, learning_rate=1e-2)
    assert losses[-1] < 0.1 < losses[0]
    shown = Agent("pupil", model=EmbeddedModel(Policy.open(tmp_path / "start"), params={"temperature": 0}))
    assert (await Runners.run("say 99", agent=shown)).answer == "assistant b"  # this template leaves the role to it
    assert small_policy().weights is before


def test_nothing_to_imitate_is_refused(tmp_path: Path) -> None:
    asked = {"role": "user", "content": "hi"}
    for dialogue in ([asked], [asked, {"role": "assistant", "content": "b", "weight": 0}]):
        with pytest.raises(ConfigError, match="0 of 1 have an assistant to learn from"):
            imitate(small_agent(), [{"messages": dialogue}], tmp_path)
    long = [asked, {"role": "assistant", "content": "b" * 2000}]
    with pytest.raises(ConfigError, match="none of more than 1024 tokens"):
        imitate(small_agent(), [{"messages": long}], tmp_path)
