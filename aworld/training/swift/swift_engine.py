"""Training by ms-swift, in a process and a Python environment of its own.

Our runtime owns the agent loop: swift samples and updates the policy, and its multi-turn scheduler only ferries model
calls (`swift_plugin.py`, a plugin and no patch). The folder `swift` of the run has all it takes to start the
same by hand: the policy it began with, the dataset, the plugin, and `args.yaml` for `swift rlhf args.yaml`.

ms-swift pins an old TRL and does not declare `msgspec`, hence an environment of its own (`INSTALL`).
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from aworld.agents.llm_agent import Agent
from aworld.core.agent.flow import Unit
from aworld.core.exceptions import ConfigError, TrainingError
from aworld.core.message import Message
from aworld.core.model import ModelRequest
from aworld.core.task import TaskResponse
from aworld.core.trajectory import Trajectory
from aworld.environments import Problem
from aworld.models.chat_tokens import parse, parse_exact
from aworld.training.bridge import Bridge
from aworld.training.outside import OutsideEnd, OutsideRollouts
from aworld.training.registry import TrainingJob
from aworld.training.result import TrainingProgress, TrainingResult
from aworld.training.steps import hopeless
from aworld.training.swift.swift_arguments import (
    PYTHON,
    SwiftOptions,
    check_config,
    rows_of,
    swift_arguments,
    swift_options,
    write_prompts,
)
from aworld.training.trainer_process import TrainerProcess, python_of, version_in
from aworld.training.training_run import TrainingRun, TrainingState

logger = logging.getLogger(__name__)

VERSION = "4.6"
INSTALL = (
    "python3 -m venv ~/swift && ~/swift/bin/pip install torch==2.13.0 && "
    "~/swift/bin/pip install ms-swift==4.6.0 msgspec"
)
"""How the environment is made; `torch` first, so that nothing else chooses its build."""
STEADY = (128, 3e-4)
"""Fewest episodes a step and highest learning rate at which small policies were seen to learn steadily."""


class SwiftEngine:
    """Trains with `swift rlhf --rlhf_type grpo`. Options: `SwiftOptions`."""

    name = "swift"

    def check(self, job: TrainingJob) -> None:
        """Refuse what cannot work, before anything runs. Raises ConfigError."""
        options = swift_options(job.config.options)
        check_config(job.config, options)
        agent: Unit = job.agent
        if not isinstance(agent, Agent):
            raise ConfigError("The swift engine trains the policy of one Agent; a swarm speaks in several voices.")
        if options.model is None and embedded_policy(agent) is None:
            model = f"{agent.model.provider}:{agent.model.name}, whose weights are not here"
            raise ConfigError(f"Agent {agent.name!r} asks {model}. Say options={{'model': folder or name}}.")
        python = python_of(options.python, PYTHON)
        versions = {package: version_in(python, package) for package in ("ms-swift", "msgspec")}
        if not (versions["ms-swift"] or "").startswith(f"{VERSION}.") or versions["msgspec"] is None:
            raise ConfigError(
                f"{python} has {versions}; the plugin is made for ms-swift {VERSION} and msgspec, in an environment "
                f"of its own: {INSTALL}; then say options={{'python': '~/swift/bin/python'}}, or set {PYTHON}."
            )
        episodes = job.config.groups * job.config.samples
        if episodes < STEADY[0] or job.config.learning_rate > STEADY[1]:
            logger.warning(
                "episodes=%d learning_rate=%g | with ms-swift small policies learn steadily from %d episodes a step "
                "and up to a learning rate of %g",
                episodes, job.config.learning_rate, *STEADY,
            )  # fmt: skip

    async def train(self, job: TrainingJob) -> TrainingResult:
        """Train, from the beginning also in a folder that was used before.

        Raises TrainingError with the last lines of swift's log when its process fails.
        """
        run = SwiftRun(job, swift_options(job.config.options))
        await run.begin()
        if job.config.steps:
            await run.train()
            run.collect()
            await run.evaluate_last()
        else:
            run.keep()
        return run.result()


class SwiftRun(TrainingRun[TrainingState]):
    """One training run: its folder, its process, what came of it."""

    def __init__(self, job: TrainingJob, options: SwiftOptions) -> None:
        super().__init__(job, SwiftEngine.name, TrainingState())
        self.options = options
        self.folder = job.run_path / "swift"
        self._embedded = embedded_policy(job.agent) if options.model is None else None
        self._trained: Any = None
        """The embedded policy after training."""
        self._records: list[Trajectory] = []
        """The episodes of this step."""
        self._began_step = time.monotonic()

    async def evaluate(self, problems: Sequence[Problem]) -> None:
        """Evaluate an embedded policy; any other is for whoever serves it."""
        policy = self._trained or self._embedded
        if policy is not None:
            from aworld.models.embedded.embedded_model import EmbeddedModel

            agent = self.job.agent
            await self.measure(agent.with_model(EmbeddedModel(policy, agent.model.name, agent.model.params)), problems)

    async def train(self) -> None:
        """Prepare the folder, run swift, and see it to its end."""
        config = self.job.config
        environment = self.job.environment
        rows = rows_of(environment, config)
        model = self._prepare()
        write_prompts(self.folder / "train.jsonl", rows, environment)
        arguments = swift_arguments(
            config, self.options, model=model, folder=self.folder, embedded=self._embedded is not None
        )
        (self.folder / "args.yaml").write_text(yaml.safe_dump(arguments, sort_keys=False))
        rollouts = OutsideRollouts(
            environment, self.job.agent, rows, parse=self._parse, name=Path(str(model)).name,
            run=f"swift-{secrets.token_hex(3)}", store=self.job.store, on_end=self._on_end,
            params={"temperature": config.temperature, "max_tokens": arguments["max_completion_length"]},
        )  # fmt: skip
        self._rollouts = rollouts
        token = os.environ.get("AWORLD_BRIDGE_TOKEN")  # set by who starts servers of swift beside the trainer
        bridge = Bridge(rollouts, self._on_log, host=self.options.host, port=self.options.port, token=token)
        async with bridge:
            python = python_of(self.options.python, PYTHON)
            variables = {**self._variables(model), **bridge.variables, **self.options.environment}
            command = [python, "-m", "swift.cli.main", "rlhf", "args.yaml"]
            process = await TrainerProcess.start(command, self.folder / "swift.log", variables, self.folder)
            try:
                status = await process.wait()
            finally:
                await process.stop()
        if status:
            raise TrainingError(
                f"swift rlhf ended with status {status} after {self.state.step} of {config.steps} steps. The end "
                f"of {process.log}:\n{process.tail()}"
            )

    def collect(self) -> None:
        """Take over the newest checkpoint as the trained policy. Raises TrainingError when there is none."""
        self.state.step = self.job.config.steps  # swift has ended well, whether or not its last line was heard
        checkpoints = (self.folder / "output").glob("checkpoint-*")  # ms-swift numbers the updates in the name
        newest = max(checkpoints, key=lambda path: int(path.name.split("-")[1]), default=None)
        if newest is None:
            raise TrainingError(f"swift rlhf has ended well, and left no checkpoint in {self.folder / 'output'}.")
        if self._embedded is None:
            kept = shutil.ignore_patterns("optimizer*", "scheduler*", "rng_state*", "trainer_state*", "training_args*")
            shutil.copytree(newest, self.job.policy_path, dirs_exist_ok=True, ignore=kept)
            return
        from safetensors.numpy import load_file  # pyright: ignore[reportUnknownVariableType]

        weights = load_file(newest / "model.safetensors")
        self._trained = self._embedded.with_weights(weights, f"swift-{self.job.config.steps}")
        self._trained.save(self.job.policy_path)

    def keep(self) -> None:
        """Nothing was trained: the policy is the one that it was."""
        if self._embedded is not None:
            self._embedded.save(self.job.policy_path)

    def _prepare(self) -> Path | str:
        """A clean folder with the plugin; returns the policy to begin with."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        shutil.copy(Path(__file__).with_name("swift_plugin.py"), self.folder)
        if self._embedded is not None:
            return self._embedded.save(self.folder / "policy")
        assert self.options.model is not None  # `check` has seen to it
        local = Path(self.options.model).expanduser()
        return local.resolve() if local.exists() else self.options.model

    def _variables(self, model: Path | str) -> dict[str, str]:
        """What the process needs to know besides where we are."""
        variables = {"TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
        if isinstance(model, Path):  # nothing to look up: else start-up waits for a hub that may be out of reach
            variables |= {"USE_HF": "1", "HF_HUB_OFFLINE": "1"}
        if self._embedded is not None:  # a policy this small gets slower with more threads
            variables["OMP_NUM_THREADS"] = "1"
        if self.job.config.shuffle_rewards:
            variables["AWORLD_SHUFFLE_REWARDS"] = "1"
        return variables

    def _parse(self, text: str, request: ModelRequest) -> Message:
        if self._embedded is None:
            return parse(text, bool(request.tools), request.turn)
        return parse_exact(text, request.turn)  # as the embedded model reads itself

    def _on_end(self, end: OutsideEnd, response: TaskResponse) -> None:
        self._records.append(response.record)
        total = self.job.config.groups * self.job.config.samples
        self.job.emit(TrainingProgress("rollouts", self.state.step + 1, min(len(self._records), total), total))

    def _on_log(self, step: int, figures: dict[str, float]) -> None:
        """What swift logs after each update; the last update of a step closes it."""
        if "loss" not in figures:  # the summary at the end
            return
        updates = self.job.config.epochs * self.job.config.minibatches
        if step % updates:
            return
        records, self._records = self._records, []
        began, self._began_step = self._began_step, time.monotonic()
        unknown = sum(record.score is None for record in records)
        report = self.report(
            records,
            samples=len(records) - unknown,
            dropped={"failed_rewards": unknown} if unknown else {},
            statistics=figures,
            seconds=self._began_step - began,
        )
        self._rollouts.step, self._rollouts.version = report.step, f"swift-{report.step}"
        self.add(report)
        if 0 < unknown == len(records):  # the bridge tells swift, which ends with it
            raise TrainingError(f"step={report.step} | {hopeless(unknown, report.reason, self.job)}")


def embedded_policy(agent: Agent[Any, Any]) -> Any:
    """The `Policy` behind an agent that asks an embedded model; None for any other."""
    model = agent.model
    return getattr(model, "policy", None) if model.provider == "embedded" else None
