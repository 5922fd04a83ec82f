"""The learner: weights, optimiser, and one step of either.

Everything that it does follows from its state, the samples and the number of the step, bit for bit: the order of
samples is drawn from the seed and the step, so there is no state of a random generator to keep.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from itertools import chain, groupby
from typing import Any

import numpy as np

from aworld.models.embedded.checkpoint import Policy
from aworld.training.embedded.adam import Adam
from aworld.training.embedded.gradients import (
    Batch,
    Floats,
    Objective,
    Parameters,
    grpo,
    imitation,
    log_probabilities,
    loss_and_gradients,
)
from aworld.training.samples import Sample
from aworld.training.training_config import TrainingConfig

ROWS = 32
"""Different sequences that go through the network side by side: what they need fits the processor's cache."""
UNBOUNDED = 1e9
NOTABLE = 1e-4
"""Nats of difference from which a token's log-probability is counted in `logprob_beyond`."""


class Learner:
    """A policy that learns. `update` takes one step; `policy` is what has been learnt so far."""

    def __init__(self, policy: Policy, config: TrainingConfig) -> None:
        self.config = config
        self.policy = self.start = policy.with_weights(policy.weights, version_of(policy.weights, 0))
        self.adam = Adam(config.learning_rate, bound=config.max_gradient_norm or UNBOUNDED)

    def update(self, samples: Sequence[Sample], step: int) -> dict[str, float]:
        """Learn from samples that have advantages; returns figures. No samples: nothing changes.

        `logprob_difference` is the largest one between a sampled token's log-probability as recorded and as computed
        here before the first update (later ones mean to change it); `logprob_beyond` counts tokens with more than 1e-4.
        """
        if not samples:
            return {}
        weights, figures = self.policy.weights, Figures()
        draw = random.Random(f"{self.config.seed}/{step}")
        for _ in range(self.config.epochs):
            for part in dealt(samples, self.config.minibatches, draw):
                weights = self._step(weights, part, figures)
        self.policy = self.policy.with_weights(weights, version_of(weights, step))
        return figures.means()

    def _step(self, weights: Parameters, samples: Sequence[Sample], figures: Figures) -> Parameters:
        config = self.config
        objective = grpo(config.clip, config.clip_high) if config.algorithm == "grpo" else imitation()
        tokens = sum(map(_sampled, samples))
        total: Parameters = {}
        loss = 0.0
        for part in side_by_side(samples):
            watched = figures.watched(objective)
            batch = batch_of(part, config.temperature)
            if config.kl:  # as a part of the reward of each token: its gradient is that of the divergence
                away = batch.logprobs - log_probabilities(self.policy.config, self.start.weights, batch)
                batch.advantages -= config.kl * away
                figures.add({"kl_to_start": float(away[batch.mask].sum()) / tokens})
            value, gradients, statistics = loss_and_gradients(
                self.policy.config, weights, batch, watched, tokens=tokens
            )
            loss += value
            figures.add(statistics)
            for name, gradient in gradients.items():
                total[name] = total[name] + gradient if name in total else gradient
        weights, norm = self.adam.step(weights, total)
        figures.stepped(loss, norm)
        return weights

    def state(self) -> tuple[dict[str, Any], Parameters]:
        """What a checkpoint keeps beside the policy: plain values, and arrays by name."""
        state = self.adam.state()
        return {"optimiser_steps": state["steps"]}, state["moments"]

    def restore(self, policy: Policy, state: dict[str, Any], moments: Parameters) -> None:
        """Go on where a checkpoint was."""
        self.policy = policy
        self.adam.restore({"steps": state["optimiser_steps"], "moments": moments})


class Figures:
    """Figures of one training step, gathered over its updates."""

    def __init__(self) -> None:
        self.updates = 0
        self.totals: dict[str, float] = {}
        self.difference = 0.0
        self.beyond = 0

    def watched(self, objective: Objective) -> Objective:
        """The objective; before the first update it also tells how far recorded log-probabilities are off."""
        if self.updates:
            return objective

        def watching(new: Floats, old: Floats, advantages: Floats) -> Any:
            if len(new):
                off = np.abs(new - old)
                self.difference = max(self.difference, float(off.max()))
                self.beyond += int((off > NOTABLE).sum())
            return objective(new, old, advantages)

        return watching

    def add(self, statistics: dict[str, float]) -> None:
        """Figures of one part of an update."""
        for name, value in statistics.items():
            self.totals[name] = self.totals.get(name, 0.0) + value

    def stepped(self, loss: float, norm: float) -> None:
        """An update is done."""
        self.updates += 1
        self.add({"loss": loss, "gradient_norm": norm})

    def means(self) -> dict[str, float]:
        """Means over the updates."""
        names = {"drift": "logprob_change"}  # of tokens whose prompt drifted, the engine tells
        return {
            **{names.get(name, name): value / self.updates for name, value in self.totals.items()},
            "logprob_difference": self.difference,
            "logprob_beyond": self.beyond,
            "updates": float(self.updates),
        }


def dealt(samples: Sequence[Sample], parts: int, draw: random.Random) -> Iterator[Sequence[Sample]]:
    """The samples dealt out into `parts` of nearly equal size, at random; one part is the samples as they are."""
    if parts == 1:
        yield samples
        return
    shuffled = draw.sample(list(samples), len(samples))
    for part in range(parts):
        if dealt_out := shuffled[part::parts]:
            yield dealt_out


def side_by_side(samples: Sequence[Sample]) -> Iterator[Sequence[Sample]]:
    """Parts of at most `ROWS` different sequences, of similar length; equal ones stay together and share a row.

    Most samples of a group are equal to another one, and the more so the surer the policy is.
    """
    ordered = sorted(samples, key=lambda sample: (len(sample.tokens.ids), sample.tokens.ids))
    alike = [list(equal) for _, equal in groupby(ordered, key=lambda sample: sample.tokens.ids)]
    for start in range(0, len(alike), ROWS):
        yield list(chain.from_iterable(alike[start : start + ROWS]))


def batch_of(samples: Sequence[Sample], temperature: float) -> Batch:
    """Samples side by side."""
    return Batch.of(
        [sample.tokens.ids for sample in samples],
        [sample.tokens.mask for sample in samples],
        [sample.tokens.logprobs for sample in samples],
        [sample.advantages for sample in samples],
        temperature=temperature,
    )


def version_of(weights: Parameters, step: int) -> str:
    """The name of some weights in the log: the step after which they stood, and a digest of what they are."""
    digest = hashlib.blake2b(digest_size=4)
    for name in sorted(weights):
        digest.update(np.ascontiguousarray(weights[name]).tobytes())
    return f"{step}-{digest.hexdigest()}"


def _sampled(sample: Sample) -> int:
    return sum(sample.tokens.mask)
