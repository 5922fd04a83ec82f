"""Limits of a run, checked before each model call. Each error names the setting that was reached."""

from __future__ import annotations

from aworld.config.conf import TaskConfig
from aworld.core.agent.base import BaseAgent
from aworld.core.exceptions import AgentLimit, LimitReached
from aworld.core.trajectory import Activation, Trajectory


def check_limits(conf: TaskConfig, record: Trajectory, step: int) -> None:
    """Refuse one more step of a run. `step` is its number, from 0. Raises `LimitReached`."""
    if conf.max_steps is not None and step >= conf.max_steps:
        remedy = "fork the run with a higher one to go on"
        raise LimitReached("max_steps", f"max_steps={conf.max_steps} reached; {remedy}.", remedy=remedy)
    if conf.max_tokens is not None:
        if record.spending.uncounted is not None:
            who, number = record.spending.uncounted
            raise LimitReached("max_tokens", f"max_tokens is set, but {who} reported no usage for step {number}.")
        if record.spending.tokens >= conf.max_tokens:
            used = record.spending.tokens
            raise LimitReached("max_tokens", f"max_tokens={conf.max_tokens} reached: {used} tokens used.")
    if conf.max_cost is not None:
        if record.spending.unpriced is not None:
            who, number = record.spending.unpriced
            remedy = "set llm_input_price and llm_output_price (US dollars for a million tokens) for its model"
            text = f"max_cost is set, but {who} reported no cost for step {number}: {remedy}."
            raise LimitReached("max_cost", text, remedy=remedy)
        if record.spending.cost >= conf.max_cost:
            spent = record.spending.cost
            raise LimitReached("max_cost", f"max_cost={conf.max_cost} reached: {spent:.6f} US dollars spent.")


def check_agent_limits(agent: BaseAgent, activation: Activation) -> None:
    """Refuse one more decision of one agent in one piece of work. Raises `AgentLimit`."""
    if agent.max_steps is not None and activation.steps >= agent.max_steps:
        raise AgentLimit(f"max_steps={agent.max_steps} of agent {agent.name!r} reached.")
