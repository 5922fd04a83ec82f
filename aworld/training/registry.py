"""Training engines by name, and the contract between `AgentTrainer` and an engine.

An engine is given a `TrainingJob` whose parts are checked already: datasets have become environments, the config is
typed, the folder exists. It runs the episodes with `aworld.environments` (or lets its own scheduler drive them),
trains, and returns a `TrainingResult`. `AgentTrainer` writes the result and the learning curve; an engine writes its
policy into `job.policy_path` and, where it records episodes, into `job.store`.

An engine is named by `register_processor` and imported when it is used:

    class MyEngine:
        name = "mine"
        def check(self, job): ...             # refuse with ConfigError what cannot work
        async def train(self, job): ...       # returns a TrainingResult

    register_processor("mine", MyEngine)      # or the address "package.module:MyEngine"
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast
from urllib.parse import quote

from aworld.core.exceptions import ConfigError
from aworld.training.config import TrainingConfig
from aworld.training.result import TrainingEvent, TrainingResult

if TYPE_CHECKING:
    from aworld.environments import Environment

__all__ = ["Engine", "TrainingJob", "engine_of", "known_engines", "register_processor"]


def _unheard(_: TrainingEvent) -> None:
    return None


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """What an engine is given. Everything in it has been checked, except what only the engine can know."""

    agent: Any
    """The agent (or swarm) whose policy is trained. An `Agent` says with `agent.model` what the policy is."""
    environment: Environment
    """Problems to learn from (its `train` split), tools and state of an episode, and the reward (`rubric`, never None).
    A dataset and a reward function that the user gave have become one of these."""
    held_out: Environment | None
    """The environment whose `test` split is evaluated on; often the same object. None: nothing to evaluate on."""
    config: TrainingConfig
    run_path: Path
    """Folder of this run; it exists. Everything that is written goes below it."""
    emit: Callable[[TrainingEvent], None] = _unheard
    """Tells who watches. Never raises."""

    @property
    def policy_path(self) -> Path:
        """Where the trained policy goes, in the layout of Hugging Face."""
        return self.run_path / "policy"

    @property
    def checkpoint_path(self) -> Path:
        """Where an engine keeps what a killed run goes on from."""
        return self.run_path / "checkpoints"

    @property
    def store(self) -> str:
        """Address of the store for the episodes of this run."""
        return f"sqlite:///{quote(str(self.run_path / 'episodes.db'))}"


class Engine(Protocol):
    """What trains. Made anew for each run, so it may keep state."""

    name: str

    def check(self, job: TrainingJob) -> None:
        """Refuse, before anything runs, what cannot work: a missing package, a policy of the wrong kind, an option.

        Raises ConfigError that names the argument and what to do.
        """
        ...

    async def train(self, job: TrainingJob) -> TrainingResult:
        """Train, and return where the policy is and how it did. Goes on from `job.checkpoint_path` where it can."""
        ...


Factory: TypeAlias = Callable[[], Engine]

_engines: dict[str, Factory | str] = {
    "embedded": "aworld.training.engine_embedded:EmbeddedEngine",
    "swift": "aworld.training.swift_engine:SwiftEngine",
    "trl": "aworld.training.trl_engine:TRLEngine",
    "verl": "aworld.training.verl_engine:VerlEngine",
}


def register_processor(name: str, factory: Factory | str) -> None:
    """Make `train_engine_name=name` known.

    `factory` makes an engine; as `"package.module:Class"` it is imported when it is used. An earlier engine of that
    name is replaced. Raises ConfigError for what cannot be a factory.
    """
    if not name or not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"register_processor takes the name of an engine; got {name!r}.")
    if not callable(factory) and (not isinstance(factory, str) or factory.count(":") != 1):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(
            f"Engine {name!r}: the factory is a function that makes an engine, or its address "
            f"'package.module:Class'; got {factory!r}."
        )
    _engines[name] = factory


def known_engines() -> list[str]:
    """The names that `train_engine_name` takes."""
    return sorted(_engines)


def engine_of(name: str) -> Engine:
    """A new engine of this name, imported now. Raises ConfigError that names the nearest, or the missing package."""
    factory = _engines.get(name) if isinstance(name, str) else None  # pyright: ignore[reportUnnecessaryIsInstance]
    if factory is None:
        near = difflib.get_close_matches(str(name).lower(), _engines, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else "add your own with register_processor(name, factory)."
        raise ConfigError(f"train_engine_name={name!r} is not known; {hint} Known are: {', '.join(known_engines())}.")
    if isinstance(factory, str):
        factory = _imported(name, factory)
    return factory()


def _imported(name: str, address: str) -> Factory:
    home, _, attribute = address.partition(":")
    try:
        return cast(Factory, getattr(import_module(home), attribute))
    except ModuleNotFoundError as error:
        if error.name == home:
            raise ConfigError(f"train_engine_name={name!r}: there is no module {home!r} in this version.") from None
        raise ConfigError(
            f"train_engine_name={name!r} needs the package {error.name!r}; install it with "
            f"pip install 'aworld[{name}]', in an environment of its own where docs/learning.md says so."
        ) from error
    except AttributeError:
        raise ConfigError(f"train_engine_name={name!r}: {home!r} has no {attribute!r}.") from None
