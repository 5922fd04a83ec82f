"""The optimiser."""

from __future__ import annotations

from typing import Any

import numpy as np

from aworld.training.embedded.gradients import Parameters


class Adam:
    """Adam (Kingma and Ba 2015) with the gradient's norm bounded. Its state is `steps`, `first` and `second`.

    Args:
        rate: Learning rate; may be changed between steps.
        bound: Longest gradient that is followed; a longer one is shortened to it.
        warm_up: Steps over which the rate rises to its value: Adam's first steps are as long as its later ones, while
            it knows little of the gradient yet. Without it, one of five runs forgot how to spell some of the items.
        decay: Decoupled weight decay (Loshchilov and Hutter 2019) of matrices.
    """

    def __init__(
        self,
        rate: float = 5e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        epsilon: float = 1e-8,
        bound: float = 1.0,
        warm_up: int = 10,
        decay: float = 0.0,
    ) -> None:
        self.rate, self.betas, self.epsilon = rate, betas, epsilon
        self.bound, self.warm_up, self.decay = bound, warm_up, decay
        self.steps = 0
        self.first: Parameters = {}
        self.second: Parameters = {}

    def step(self, weights: Parameters, gradients: Parameters) -> tuple[Parameters, float]:
        """The next weights, the ones given left as they are, and the gradient's norm before it was bounded."""
        norm = float(np.sqrt(sum(float(np.vdot(g, g)) for g in gradients.values())))
        if not np.isfinite(norm):
            raise FloatingPointError(f"The gradient is not finite (step {self.steps + 1}); lower the learning rate.")
        shrink = min(1.0, self.bound / (norm + 1e-12))
        self.steps += 1
        one, two = self.betas
        warmth = min(1.0, self.steps / max(1, self.warm_up))
        rate = self.rate * warmth * (1 - two**self.steps) ** 0.5 / (1 - one**self.steps)
        updated: Parameters = {}
        for name, weight in weights.items():
            gradient = gradients[name] * weight.dtype.type(shrink)
            first = self.first[name] = one * self.first.get(name, 0.0) + (1 - one) * gradient
            second = self.second[name] = two * self.second.get(name, 0.0) + (1 - two) * gradient * gradient
            updated[name] = weight - (rate * first / (np.sqrt(second) + self.epsilon)).astype(weight.dtype)
            if self.decay and weight.ndim > 1:
                updated[name] -= weight * weight.dtype.type(self.rate * warmth * self.decay)
        return updated, norm

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        moments = {f"first.{k}": v for k, v in self.first.items()} | {f"second.{k}": v for k, v in self.second.items()}
        return {"steps": self.steps, "moments": moments}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint was."""
        self.steps = int(state["steps"])
        moments: Parameters = state["moments"]
        self.first = {k.removeprefix("first."): v for k, v in moments.items() if k.startswith("first.")}
        self.second = {k.removeprefix("second."): v for k, v in moments.items() if k.startswith("second.")}
