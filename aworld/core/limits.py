"""Limits of a run, checked before each model call. Each error names the setting that was reached."""

from __future__ import annotations

from aworld.config.conf import TaskConfig
from aworld.core.agent.base import BaseAgent
from aworld.core.event import ModelCalled
from aworld.core.exceptions import AgentLimit, LimitReached
from aworld.core.trajectory import Activation, Trajectory


def check_limits(conf: TaskConfig, record: Trajectory, step: int) -> None:
    """Refuse one more step of a run. `step` is its number, from 0. Raises `LimitReached`."""
    if conf.max_steps is not None and step >= conf.max_steps:
        raise LimitReached("max_steps", f"max_steps={conf.max_steps} reached; fork the run with a higher one to go on.")
    if conf.max_tokens is not None:
        used = sum(_tokens(call, "max_tokens") for call in record.calls.values())
        if used >= conf.max_tokens:
            raise LimitReached("max_tokens", f"max_tokens={conf.max_tokens} reached: {used} tokens used.")
    if conf.max_cost is not None:
        cost = sum(_cost(call) for call in record.calls.values())
        if cost >= conf.max_cost:
            raise LimitReached("max_cost", f"max_cost={conf.max_cost} reached: {cost:.6f} US dollars spent.")


def check_agent_limits(agent: BaseAgent, activation: Activation) -> None:
    """Refuse one more decision of one agent in one piece of work. Raises `AgentLimit`."""
    if agent.max_steps is not None and activation.steps >= agent.max_steps:
        raise AgentLimit(f"max_steps={agent.max_steps} of agent {agent.name!r} reached.")


def _tokens(call: ModelCalled, limit: str) -> int:
    """Tokens of a call. Unknown is not zero: a limit that cannot be watched ends the run."""
    usage = call.usage
    if call.model is None:
        return 0
    if usage is None or (usage.total_tokens is None and usage.output_tokens is None):
        raise LimitReached(limit, f"{limit} is set, but {call.provider} reported no usage for step {call.step}.")
    return usage.total_tokens or (usage.input_tokens or 0) + (usage.output_tokens or 0)


def _cost(call: ModelCalled) -> float:
    if call.model is None:
        return 0.0
    if call.usage is None or call.usage.cost is None:
        raise LimitReached(
            "max_cost",
            f"max_cost is set, but {call.provider} reported no cost for step {call.step}: set llm_input_price and "
            "llm_output_price (US dollars for a million tokens) in the model's config.",
        )
    return call.usage.cost
