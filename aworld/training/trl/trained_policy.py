"""The policy that a torch trainer trains: where it comes from, what answers the agents meanwhile, how it is written.

The weights live once, in the trainer's module. An agent whose model is the embedded policy goes on asking NumPy, which
is given the newest weights before each step's rollouts (twice as fast as torch for a policy of that size); any other
checkpoint answers by the very module that is trained.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aworld.core.exceptions import ConfigError
from aworld.core.extras import import_extra
from aworld.core.model import Model
from aworld.models.torch_model import TorchModel, open_checkpoint

PACKAGES = ("torch", "transformers>=5.23", "trl==1.16.0", "datasets>=4")
"""What is installed together, PyTorch first; see docs/trainers.md."""


def trl_package(name: str) -> Any:
    """A package of those that TRL needs. Raises ConfigError that says what to install."""
    return import_extra(name, "Training with TRL (see docs/trainers.md)", *PACKAGES)


def on_cpu() -> bool:
    """Whether there is no GPU to train on."""
    return not trl_package("torch").cuda.is_available()


class TrainedPolicy(ABC):
    """A module of `transformers` with its tokenizer, and the `Model` that speaks for it."""

    def __init__(self, folder: Path) -> None:
        torch = trl_package("torch")
        self.module: Any
        self.tokenizer: Any
        self.module, self.tokenizer = open_checkpoint(folder, dtype=torch.float32)

    @property
    @abstractmethod
    def model(self) -> Model:
        """What answers the agents."""

    @abstractmethod
    def refresh(self, version: str) -> None:
        """From now on the agents are answered by the weights as they are; `version` is what the log calls them."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write a checkpoint that `Agent(model=folder)` takes."""


class TorchPolicy(TrainedPolicy):
    """Any causal language model: the module that is trained also answers."""

    def __init__(self, folder: Path, params: Mapping[str, Any]) -> None:
        super().__init__(folder)
        self._model = TorchModel(self.module, self.tokenizer, name=str(folder), params=dict(params), version="0")

    @property
    def model(self) -> Model:
        """The module itself."""
        return self._model

    def refresh(self, version: str) -> None:
        """Only the name is new: the module is the one that is trained."""
        self._model.version = version

    def save(self, folder: Path) -> None:
        """Write it as `transformers` does."""
        self.module.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


class EmbeddedPolicy(TrainedPolicy):
    """The embedded policy: NumPy answers, with the trainer's weights."""

    def __init__(self, model: Any, scratch: Path) -> None:
        from aworld.models.embedded.embedded_model import EmbeddedModel

        self._model = EmbeddedModel(model.policy, name=model.name, params=model.params)
        super().__init__(model.policy.save(scratch))

    @property
    def model(self) -> Model:
        """The NumPy model."""
        return self._model

    def refresh(self, version: str) -> None:
        """Hand the weights over."""
        self._model.load(self._weights(), version)

    def save(self, folder: Path) -> None:
        """Write it as the embedded policy is written: same tokenizer, same template, byte for byte."""
        self._model.policy.with_weights(self._weights(), self._model.policy.version).save(folder)

    def _weights(self) -> dict[str, Any]:
        # `numpy()` shares memory with the module, which goes on changing.
        return {name: weight.detach().float().cpu().numpy().copy() for name, weight in self.module.named_parameters()}


def policy_of(model: Any, scratch: Path) -> TrainedPolicy:
    """The policy behind an agent's model, opened anew for training.

    `scratch` is a folder for the embedded policy's files, which `transformers` reads. Raises ConfigError for a model
    whose weights are not on this machine.
    """
    check_policy(model)
    return (
        EmbeddedPolicy(model, scratch) if model.provider == "embedded" else TorchPolicy(Path(model.name), model.params)
    )


def check_policy(model: Any) -> None:
    """Refuse a model whose weights are not on this machine, without loading anything. Raises ConfigError."""
    if model.provider == "embedded" or (isinstance(model, TorchModel) and Path(model.name, "config.json").exists()):
        return
    raise ConfigError(
        f"The engine trains weights on this machine, and the agent's model is {model.provider}:{model.name}. Give the "
        "agent model='transformers:<folder of a checkpoint>', or a checkpoint of the embedded policy."
    )
