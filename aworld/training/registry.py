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

An installed package makes its engines known by the entry-point group `aworld.train_engines`, name → "module:Class".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Protocol, TypeAlias
from urllib.parse import quote

from aworld.core.checks import nearest
from aworld.core.exceptions import ConfigError
from aworld.environments.environment import Environment
from aworld.training.result import TrainingEvent, TrainingResult
from aworld.training.training_config import TrainingConfig


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
    emit: Callable[[TrainingEvent], None] = lambda _: None
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


class TrainEngine(Protocol):
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


EngineFactory: TypeAlias = Callable[[], TrainEngine]

GROUP = "aworld.train_engines"
"""The group of entry points by which other packages make engines known."""

# The one place that names the adapters. They are imported when they are used, each with the packages that it needs.
_engines: dict[str, EngineFactory | str] = {
    "embedded": "aworld.training.embedded.embedded_engine:EmbeddedEngine",
    "swift": "aworld.training.swift.swift_engine:SwiftEngine",
    "trl": "aworld.training.trl.trl_engine:TRLEngine",
    "verl": "aworld.training.verl.verl_engine:VerlEngine",
}


def register_processor(name: str, factory: EngineFactory | str) -> None:
    """Make `train_engine_name=name` known.

    `factory` makes an engine; as `"package.module:Class"` it is imported when it is used. An earlier engine of that
    name is replaced. Raises ConfigError for what cannot be a factory.
    """
    if not name or not (callable(factory) or (isinstance(factory, str) and factory.count(":") == 1)):  # pyright: ignore[reportUnnecessaryIsInstance]
        takes = "a function that makes an engine, or its address 'package.module:Class'"
        raise ConfigError(f"register_processor({name!r}, ...) takes {takes}; got {factory!r}.")
    _engines[name] = factory


def known_engines() -> list[str]:
    """The names that `train_engine_name` takes."""
    return sorted({*_engines, *(point.name for point in entry_points(group=GROUP))})


def engine_of(name: str) -> TrainEngine:
    """A new engine of this name, imported now. Raises ConfigError that names the nearest, or the missing package."""
    factory = _engines.get(str(name)) or next(iter(entry_points(group=GROUP, name=str(name))), None)
    if factory is None:
        near = nearest(name, known_engines())
        hint = f"did you mean {near!r}?" if near else "add your own with register_processor(name, factory)."
        raise ConfigError(f"train_engine_name={name!r} is not known; {hint} Known are: {', '.join(known_engines())}.")
    if isinstance(factory, str):
        factory = EntryPoint(name, factory, GROUP)
    return (_loaded(factory) if isinstance(factory, EntryPoint) else factory)()


def refuse_settings(engine: str, config: TrainingConfig, takes: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuse what an engine has no word for. `takes` has the values that it does, by the name of the setting.

    Raises ConfigError that names the setting.
    """
    for setting, values in takes.items():
        value = getattr(config, setting)
        if value not in values:
            allowed = " or ".join(map(str, values))
            raise ConfigError(f"{setting}={value!r}: the {engine} engine takes {allowed}.", setting=setting)


def _loaded(point: EntryPoint) -> EngineFactory:
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"train_engine_name={point.name!r}: {error}; install what {point.value} needs.") from error
