"""`AgentTrainer`: the front door of training. It checks what it is given, and lets an engine train."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from aworld.core.agent.flow import Unit, is_unit
from aworld.core.checks import UNCHECKED, typed
from aworld.core.exceptions import ConfigError
from aworld.environments.rubric import Part, Rubric, Scorer
from aworld.runners.blocking import run_blocking
from aworld.runners.local import store_of
from aworld.training import curve
from aworld.training.datasets import Dataset, environments_of
from aworld.training.registry import TrainingJob, engine_of
from aworld.training.result import TrainingEvent, TrainingResult
from aworld.training.run_folder import alone_in, check_folder, mark, run_folder
from aworld.training.training_config import TrainingConfig, training_config

logger = logging.getLogger(__name__)


class AgentTrainer:
    """Trains the policy of an agent on an environment, and measures it on held-out problems before and after.

    Args:
        agent: The agent, or the team, whose policy is trained.
        config: A `TrainingConfig`, a dict of its settings, or the path of a YAML file; None for the defaults.
        reward_func: A function of the episode (`aworld.environments.ScoredEpisode`) that returns a number, or a
            `Rubric`. It takes the place of the environment's rubric, whose parts stay as figures of weight 0; None uses
            that rubric. One that raises, hangs or gives no number is recorded as a failed reward, and its episode is
            not learnt from.
        train_dataset: An `Environment`, a list of problems (dicts with at least `input` will do), or the path of a
            `.jsonl` or `.parquet` file of such.
        test_dataset: The held-out problems, likewise; of an environment its `test` split. None takes those of
            `train_dataset`. Problems that are in both are refused.
        train_engine_name: What trains, by name (`aworld.training.known_engines`); your own by `register_processor`.
        run_path: Folder for everything that the run writes: `policy/` (what `Agent(model=run_path)` takes),
            `checkpoints/`, `episodes.db`, `result.json`, `curve.json`, `curve.svg`, `run.json`, and `run.lock`, which
            is locked meanwhile: one training at a time. A run that was cut off goes on when the folder is given again.
            None makes one under `.aworld/training/`.
        on_event: Told what happens, while it happens (`aworld.training.result.TrainingEvent`).

    Raises:
        ConfigError: An argument cannot work; the message names it and says what to do. Nothing was run or written.
    """

    @typed()
    def __init__(
        self,
        agent: Annotated[Unit, UNCHECKED],
        config: Annotated[TrainingConfig | Mapping[str, Any] | str | Path | None, UNCHECKED] = None,
        reward_func: Annotated[Scorer | Rubric | Part | None, UNCHECKED] = None,
        train_dataset: Annotated[Dataset | None, UNCHECKED] = None,
        test_dataset: Annotated[Dataset | None, UNCHECKED] = None,
        train_engine_name: str = "embedded",
        run_path: Annotated[str | Path | None, UNCHECKED] = None,
        on_event: Callable[[TrainingEvent], None] | None = None,
    ) -> None:
        _check_agent(agent)
        self.engine = engine_of(train_engine_name)
        environment, held_out = environments_of(train_dataset, test_dataset, reward_func)
        self.job = TrainingJob(
            agent=agent,
            environment=environment,
            held_out=held_out,
            config=training_config(config),
            run_path=run_folder(run_path, train_engine_name),
            emit=_watched(on_event),
        )
        self.engine.check(self.job)
        _check_groups(self.job.config)
        check_folder(self.job)

    def train(self) -> TrainingResult:
        """Train, and return how it went. Works inside a running event loop too, by a thread of its own.

        Raises TrainingError when training cannot go on, StoreError when episodes cannot be recorded, and ConfigError
        when somebody else trains in the same folder.
        """
        return run_blocking(self.train_async())

    async def train_async(self) -> TrainingResult:
        """`train` for async code."""
        job = self.job
        _warn(job)
        with alone_in(job.run_path):
            check_folder(job)  # again: another process may have begun there
            mark(job, self.engine.name)
            store = store_of(job.store)  # held, so that everybody who names its address has this one
            try:
                result = await self.engine.train(job)
            finally:  # leaves one file, for whoever looks at the episodes next
                await store.close()
            result.save(job.run_path / "result.json")
            points = msgspec.json.encode(curve.points(result))
            (job.run_path / "curve.json").write_bytes(msgspec.json.format(points, indent=1))
            (job.run_path / "curve.svg").write_text(curve.svg(result, job.environment.name), encoding="utf-8")
            return result


def _check_agent(agent: object) -> None:
    if not is_unit(agent):
        raise ConfigError(f"agent takes the Agent or the team whose policy is trained; got {agent!r:.100}.")
    try:
        agent.check()
    except ConfigError as error:
        raise ConfigError(f"agent={agent.name!r} cannot run: {error}") from None


def _check_groups(config: TrainingConfig) -> None:
    """Refuse groups that cannot teach anything: GRPO compares the episodes of a group with each other."""
    compared = config.advantages != "raw" or "no_variance" in config.filters
    if config.algorithm == "grpo" and config.samples == 1 and config.steps and compared:
        raise ConfigError(
            f"config.samples=1: advantages={config.advantages!r} and the filter no_variance compare the episodes of a "
            "problem, and one alone teaches nothing. Give samples=2 or more, or advantages='raw' with filters=[]."
        )


def _warn(job: TrainingJob) -> None:
    """Say what is measured less than one may think."""
    count = job.config.final_tasks
    if job.held_out is None:
        logger.warning("test_dataset=None | train_dataset has no held-out problems either: nothing is measured")
        return
    test = job.held_out.test
    if not callable(test) and len(test) < count and "final_tasks" in job.config.model_fields_set:
        logger.warning("final_tasks=%d | there are only %d held-out problems; each is used once", count, len(test))


def _watched(on_event: Callable[[TrainingEvent], None] | None) -> Callable[[TrainingEvent], None]:
    """Tells `on_event`, whose failures are its own."""

    def emit(event: TrainingEvent) -> None:
        if on_event is None:
            return
        try:
            on_event(event)
        except Exception:  # who watches must not stop what is watched
            logger.exception("event=%s | on_event raised", type(event).__name__)

    return emit
