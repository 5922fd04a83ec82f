"""Whether what a store has under the name of a run was done by the same environment, seed and agent.

Ids of episodes tell of environment and seed, but not of the agent: without a look at what the log says of it, the
scores of one agent would be taken for those of another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aworld.core.agent.flow import Unit
from aworld.core.exceptions import ConfigError
from aworld.core.trajectory import Trajectory
from aworld.environments.environment import derived_seed

_MODEL = ("model", "llm_config.llm_provider", "llm_config.llm_model_name")
"""Settings that say where a policy is; it is the same one wherever it was read from, if its version is."""
_REACHED = frozenset(
    f"llm_config.llm_{name}"
    for name in (
        "base_url", "timeout", "stall_timeout", "max_retries", "retry_wait", "retry_wait_max", "max_concurrency",
        "requests_per_minute", "tokens_per_minute", "input_price", "output_price", "capture_tokens",
    )
)  # fmt: skip
"""Settings that say how a model is reached, not what it is asked: they may be others when a run goes on, such as on
another machine."""
_SHOWN = 60
"""Characters of a setting that are shown; of longer ones the difference would hardly be seen."""


def refuse(run: str, record: Trajectory, other: str) -> ConfigError:
    """The error about episodes of another run under this name."""
    return ConfigError(
        f"run={run!r} | the store has episodes of this run {other}, such as {record.id}. Take another name for this "
        "run (--run), or go on with the same."
    )


def check_setting(run: str, record: Trajectory, name: str, seed: int) -> None:
    """Raise ConfigError when the episode is of another environment, or seed, as the first call of a model shows."""
    environment = (record.started.environment if record.started is not None else None) or ""
    if environment != name:
        raise refuse(run, record, f"of environment {environment!r}, and this is {name!r}")
    problem = (record.task.name or "").removeprefix(f"{environment}/")
    sample = record.id.rpartition(".")[2].partition("~")[0]
    asked = next((call for call in record.calls.values() if "seed" in call.params), None)
    own = derived_seed(seed, problem, sample)
    if asked is not None and asked.params["seed"] != derived_seed(own, asked.agent, 0):
        raise refuse(run, record, f"with another seed than {seed}")


def check_agent(run: str, record: Trajectory, units: Mapping[str, Unit]) -> None:
    """Raise ConfigError when the episode was done by other agents than these, or with other settings."""
    if record.started is None:
        return
    if record.agents.keys() != units.keys():
        raise refuse(run, record, f"by another agent: {_names(record.agents)}, and this is {_names(units)}")
    for name, unit in units.items():
        before, now = _flat(record.agents[name]), _flat(unit.settings())
        for setting in {**before, **now}:
            was, is_now = before.get(setting), now.get(setting)
            if was == is_now or setting in _REACHED or (setting in _MODEL and _same_policy(record, unit)):
                continue
            told = f"was {was!r} and is now {is_now!r}"
            if max(len(repr(was)), len(repr(is_now))) > _SHOWN:
                told = "was another"
            raise refuse(run, record, f"by another agent: {setting} of {name!r} {told}")


def _names(agents: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, agents))


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an agent, those of its model one by one."""
    config: Mapping[str, Any] = settings.get("llm_config") or {}
    own = {key: value for key, value in settings.items() if key != "llm_config"}
    return own | {f"llm_config.{key}": value for key, value in config.items()}


def _same_policy(record: Trajectory, unit: Unit) -> bool:
    """Whether the log has samples of the trained policy that the agent asks in this process: its version has a digest
    of the weights. The version "0" says nothing."""
    version = getattr(getattr(getattr(unit, "model", None), "policy", None), "version", None)
    calls = (call for call in record.calls.values() if call.agent == unit.name and call.tokens is not None)
    return version not in (None, "0") and any(call.tokens and call.tokens.policy_version == version for call in calls)
