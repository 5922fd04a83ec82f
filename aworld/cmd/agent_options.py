"""The agent that the options of a command name (`--agent`) or describe (`--model`, `--base-url`, `--temperature`)."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from aworld.core.exceptions import ConfigError

if TYPE_CHECKING:  # the command line starts fast: what a command needs is imported when it runs
    from aworld.config.conf import AgentConfig
    from aworld.core.agent.flow import Unit


MODEL = (
    "such as gpt-4o or anthropic:claude-sonnet-4-5, or what answers in this process: embedded, or the folder of a "
    "trained policy"
)
"""Help of `--model`."""


def ready_agent(args: argparse.Namespace, *describing: str) -> Unit | None:
    """The agent or team of `--agent`, an agent asking `--model` if that is given; None without `--agent`. Raises
    ConfigError beside an option that describes an agent."""
    if args.agent is None:
        return None
    for option in describing:
        if getattr(args, option) not in (None, []):
            raise ConfigError(f"--{option.replace('_', '-')} describes an agent, but {args.agent} is one already.")
    from aworld.cmd.swarm import named

    unit = named(args.agent)
    if not args.model:
        return unit
    from aworld.agents.llm_agent import Agent

    if not isinstance(unit, Agent):
        raise ConfigError(f"--model is for an agent that asks a model, and {args.agent} is none: leave it out.")
    return unit.with_model(args.model)


def policy_agent(args: argparse.Namespace, *describing: str, default: str | None = None) -> Unit:
    """The agent or team of `--agent`, or a plain agent that asks `--model` (or `default`). Raises ConfigError."""
    ready = ready_agent(args, *describing)
    if ready is not None:
        return ready
    from aworld.agents.llm_agent import Agent
    from aworld.config.conf import AgentConfig

    args.model = args.model or default
    return Agent("policy", put_options(args, AgentConfig()))


def require(args: argparse.Namespace, least: int, *options: str) -> None:
    """Raises ConfigError for the first of these options that is less than `least`."""
    for option in options:
        value = getattr(args, option)
        if value is not None and value < least:
            name = f"-{option}" if len(option) == 1 else f"--{option}"
            raise ConfigError(f"{name} must be at least {least}; got {value}.")


def put_options(args: argparse.Namespace, conf: AgentConfig) -> AgentConfig:
    """Put into `conf` what the options say of the model; returns it. Raises ConfigError."""
    from aworld.models.providers import in_process, named_model

    if args.model:
        named = named_model(args.model)
        if named.llm_provider not in (None, conf.llm_provider) or in_process(conf.llm_provider or ""):
            conf.llm_provider, conf.llm_base_url = named.llm_provider, None  # an address of another is not its own
        conf.llm_model_name = named.llm_model_name
    if getattr(args, "base_url", None):
        if in_process(conf.llm_config.provider):
            model = args.model or conf.llm_config.provider
            raise ConfigError(f"--base-url says where an API lives, but {model} answers in this process: leave it out.")
        conf.llm_base_url = args.base_url
    if getattr(args, "temperature", None) is not None:
        conf.llm_temperature = args.temperature
    return conf
