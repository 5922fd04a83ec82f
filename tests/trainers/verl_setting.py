"""What verl's workers are told to make: see `setting` in `aworld.training.verl.agent_loop`."""

from __future__ import annotations

from aworld.agents.llm_agent import Agent
from aworld.environments import Environment
from tests.trainers.tiny import letters


def setting() -> tuple[Environment, Agent]:
    """The environment and the agent."""
    return letters(8), Agent("speaker", system_prompt="Speak.")
