"""The agent that the options of a command name (`--agent`) or describe (`--model`, `--base-url`, `--temperature`)."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from aworld.core.exceptions import ConfigError

if TYPE_CHECKING:  # the command line starts fast: what a command needs is imported when it runs
    from aworld.config.conf import AgentConfig
    from aworld.core.agent.flow import Unit


def ready_agent(args: argparse.Namespace, *describing: str) -> Unit | None:
    """The agent or team of `--agent`; None without it. Raises ConfigError beside an option that describes one."""
    if args.agent is None:
        return None
    for option in describing:
        if getattr(args, option) not in (None, []):
            raise ConfigError(f"--{option.replace('_', '-')} describes an agent, but {args.agent} is one already.")
    from aworld.cmd.swarm import named

    return named(args.agent)


def put_options(args: argparse.Namespace, conf: AgentConfig) -> AgentConfig:
    """Put into `conf` what the options say of the model; returns it."""
    if args.base_url:
        conf.llm_base_url = args.base_url
    if args.temperature is not None:
        conf.llm_temperature = args.temperature
    if args.model:
        provider, colon, model = args.model.partition(":")
        conf.llm_model_name = model if colon else provider
        if colon:
            conf.llm_provider = provider
    return conf
