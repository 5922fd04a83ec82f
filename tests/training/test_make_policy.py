"""The script that makes the packaged policy, for a few steps."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from aworld.environments import shop, sums
from aworld.environments.problem import Problem
from aworld.models.embedded.checkpoint import PACKAGED, Policy
from aworld.training.embedded.demonstrations import Demonstrator
from aworld.training.embedded.make_policy import main, make_policy, tokenised


@pytest.mark.parametrize("seed", [1])
def test_the_same_seed_makes_the_same_policy(tmp_path: Path, seed: int) -> None:
    first, second = make_policy(seed, 3), make_policy(seed, 3)
    assert first.tokenizer.data == second.tokenizer.data
    assert all(np.array_equal(first.weights[name], second.weights[name]) for name in first.weights)
    assert main([str(tmp_path), "--steps", "3", "--seed", str(seed)]) == 0
    saved = Policy.open(tmp_path)
    assert all(np.array_equal(first.weights[name], saved.weights[name]) for name in first.weights)


def test_the_packaged_tokenizer_is_made_by_it() -> None:
    assert make_policy(steps=0).tokenizer.data == Policy.open().tokenizer.data
    assert (PACKAGED / "model.safetensors").stat().st_size <= 2_000_000


def test_the_packaged_policy_has_no_padded_vocabulary() -> None:
    policy = Policy.open()
    ids = set(range(policy.config.vocab_size))
    assert {policy.tokenizer.id_of(policy.tokenizer.token(id)) for id in ids} == ids


def test_demonstrations_teach_only_what_the_assistant_says() -> None:
    tokenizer = Policy.open().tokenizer
    for shown in islice(Demonstrator(1), 40):
        ids, mask = tokenised(tokenizer, shown)
        text = tokenizer.render(shown.messages, shown.tools, ask=False)
        assert tokenizer.encode(text.rstrip("\n")) == tuple(ids)
        said = tokenizer.decode([id for id, sampled in zip(ids, mask, strict=True) if sampled])
        assert said.count("<|im_end|>") == sum(message["role"] == "assistant" for message in shown.messages)
        assert "<|im_start|>" not in said


def test_demonstrations_show_no_held_out_problem() -> None:
    held = {problem.input for problem in held_out()}
    shown = {one.messages[0]["content"] for one in islice(Demonstrator(3), 3000)}
    assert not {asked for asked in shown if asked.startswith("What is")} & held


def held_out() -> list[Problem]:
    return sums.sums().problems("test") + shop.shop().problems("test")
