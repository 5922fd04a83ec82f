"""Loss and gradients in NumPy, by finite differences in double precision; the optimiser; the pass against inference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from aworld.models.embedded.transformer import Cache, PolicyConfig, Transformer
from aworld.training.embedded.adam import Adam
from aworld.training.embedded.gradients import (
    Batch,
    Objective,
    Parameters,
    grpo,
    imitation,
    log_probabilities,
    loss_and_gradients,
)
from aworld.training.embedded.make_policy import initial_weights

CONFIG = PolicyConfig(
    vocab_size=20,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    eos_token_id=1,
)


def weights_of(config: PolicyConfig, kind: Any) -> Parameters:
    draw = np.random.default_rng(0)
    return {
        name: (3 * weight + 0.1 * draw.standard_normal(weight.shape)).astype(kind)
        for name, weight in initial_weights(config).items()
    }


def batch_of(config: PolicyConfig, weights: Parameters, rows: int = 3, span: int = 9) -> Batch:
    draw = np.random.default_rng(1)
    ids = draw.integers(0, config.vocab_size, (rows, span)).tolist()
    mask = [[0, *(draw.random(span - 1) < 0.5).astype(int).tolist()] for _ in range(rows)]
    batch = Batch.of(ids, mask, temperature=0.9)
    batch.advantages = draw.standard_normal(batch.ids.shape)
    batch.logprobs = log_probabilities(config, weights, batch) + 0.3 * draw.standard_normal(batch.ids.shape)
    return batch


@pytest.mark.parametrize("objective", [grpo(), imitation()])
@pytest.mark.parametrize("heads", [1, 2])
def test_gradients_by_finite_differences(objective: Objective, heads: int) -> None:
    """With shared keys and values, and with a pair for each head."""
    config = PolicyConfig(
        vocab_size=20, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=heads, eos_token_id=1,
    )  # fmt: skip
    weights = weights_of(config, np.float64)
    batch = batch_of(config, weights)
    _, gradients, _ = loss_and_gradients(config, weights, batch, objective)
    draw, small = np.random.default_rng(2), 1e-6
    for name, weight in weights.items():
        flat, slopes = weight.reshape(-1), gradients[name].reshape(-1)
        for at in draw.integers(0, weight.size, 4).tolist():
            was = flat[at]
            flat[at] = was + small
            above = loss_and_gradients(config, weights, batch, objective)[0]
            flat[at] = was - small
            below = loss_and_gradients(config, weights, batch, objective)[0]
            flat[at] = was
            assert slopes[at] == pytest.approx((above - below) / (2 * small), rel=1e-4, abs=1e-8), name


def test_parts_of_a_step_add_up() -> None:
    weights = weights_of(CONFIG, np.float64)
    whole = batch_of(CONFIG, weights, rows=4)
    loss, gradients, figures = loss_and_gradients(CONFIG, weights, whole)
    parts = [
        Batch(whole.ids[a:b], whole.mask[a:b], whole.logprobs[a:b], whole.advantages[a:b], whole.temperature)
        for a, b in ((0, 1), (1, 4))
    ]
    found = [loss_and_gradients(CONFIG, weights, part, tokens=whole.tokens) for part in parts]
    assert sum(each[0] for each in found) == pytest.approx(loss)
    for name, gradient in gradients.items():
        assert sum(each[1][name] for each in found) == pytest.approx(gradient, abs=1e-12)
    assert sum(each[2]["entropy"] for each in found) == pytest.approx(figures["entropy"])


def test_equal_sequences_that_differ_in_all_else_add_up() -> None:
    weights = weights_of(CONFIG, np.float64)
    whole = batch_of(CONFIG, weights, rows=5)
    whole.ids[[2, 3]] = whole.ids[0]  # their masks, advantages and recorded log-probabilities stay their own
    whole.logprobs = log_probabilities(CONFIG, weights, whole) + np.where(whole.mask, 0.3 * whole.advantages, 0)
    loss, gradients, figures = loss_and_gradients(CONFIG, weights, whole)
    rows = [slice(number, number + 1) for number in range(5)]
    parts = [Batch(whole.ids[r], whole.mask[r], whole.logprobs[r], whole.advantages[r], 0.9) for r in rows]
    alone = [loss_and_gradients(CONFIG, weights, part, tokens=whole.tokens) for part in parts]
    assert sum(each[0] for each in alone) == pytest.approx(loss)
    assert {name: sum(each[2][name] for each in alone) for name in figures} == pytest.approx(figures)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(sum(each[1][name] for each in alone), gradient, atol=1e-12)


def test_padding_changes_nothing() -> None:
    weights = weights_of(CONFIG, np.float64)
    short, long = [3, 4, 5, 6], [7, 8, 9, 10, 11, 12, 13]
    together = log_probabilities(CONFIG, weights, Batch.of([short, long], [[0, 1, 1, 1], [0, 1, 1, 1, 0, 1, 1]]))
    alone = log_probabilities(CONFIG, weights, Batch.of([short], [[0, 1, 1, 1]]))
    assert together[0, :4] == pytest.approx(alone[0])
    assert not together[0, 4:].any()


def test_the_trainer_and_the_model_agree() -> None:
    """Far into a text, and with attention so sharp that other rounding of its angles would show."""
    config = PolicyConfig(vocab_size=50, eos_token_id=1)
    weights: Parameters = {
        name: weight * np.float32(6.0) if name.endswith(("q_proj.weight", "k_proj.weight")) else weight
        for name, weight in initial_weights(config).items()
    }
    span = 301
    ids = np.random.default_rng(4).integers(0, 50, (4, span))
    batch = Batch.of(ids.tolist(), [[0] + [1] * (span - 1)] * 4)
    transformer = Transformer(config, weights)
    hidden = transformer.forward(ids, np.zeros(4, np.int64), Cache(config, 4, span))
    logits = transformer.logits(hidden.reshape(4 * span, -1)).reshape(4, span, -1).astype(np.float64)
    shares = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = np.take_along_axis(shares[:, :-1], ids[:, 1:, None], -1)[..., 0]
    assert np.abs(log_probabilities(config, weights, batch)[:, 1:] - expected).max() < 5e-6


def test_the_clipped_objective() -> None:
    """Outside the clip range, and only on the side where it would go further, nothing pulls."""
    old = np.zeros(4)
    new = np.log(np.array([1.5, 1.5, 0.5, 0.5]))
    (loss, slope), figures = grpo(0.2)(new, old, np.array([1.0, -1.0, 1.0, -1.0]))
    assert loss == pytest.approx([-1.2, 1.5, -0.5, 0.8])
    assert slope == pytest.approx([0.0, 1.5, -0.5, 0.0])
    assert figures["clipped"].tolist() == [1, 0, 0, 1]
    (loss, slope), _ = grpo(0.2, 0.6)(new, old, np.array([1.0, -1.0, 1.0, -1.0]))
    assert loss == pytest.approx([-1.5, 1.5, -0.5, 0.8])  # the first is within what is allowed upwards
    assert slope == pytest.approx([-1.5, 1.5, -0.5, 0.0])


def test_imitation_is_learnt_and_resumed_exactly() -> None:
    weights: Parameters = dict(initial_weights(CONFIG, 3))
    batch = Batch.of([[1, 5, 6, 7, 8]], [[0, 1, 1, 1, 1]])

    def trained(start: Parameters, optimiser: Adam, steps: int) -> Parameters:
        for _ in range(steps):
            _, gradients, _ = loss_and_gradients(CONFIG, start, batch, imitation())
            start, _ = optimiser.step(start, gradients)
        return start

    whole = trained(weights, Adam(1e-2), 60)
    first = Adam(1e-2)
    half = trained(weights, first, 30)
    second = Adam(1e-2)
    second.restore(first.state())
    resumed = trained(half, second, 30)
    assert all(np.array_equal(whole[name], resumed[name]) for name in whole)
    assert log_probabilities(CONFIG, whole, batch).sum() > -0.5 > log_probabilities(CONFIG, weights, batch).sum()


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    weights: Parameters = dict(initial_weights(CONFIG))
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        Adam().step(weights, {name: weight * np.nan for name, weight in weights.items()})
