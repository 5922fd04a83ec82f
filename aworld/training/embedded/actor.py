"""The actor: the agent (or team) whose policy is trained, and the one place where new weights reach it."""

from __future__ import annotations

from typing import Any

from aworld.agents.llm_agent import Agent
from aworld.core.agent.flow import Unit, units_of
from aworld.core.checks import one_of
from aworld.core.exceptions import ConfigError
from aworld.models.embedded.checkpoint import Policy
from aworld.models.embedded.embedded_model import EmbeddedModel
from aworld.training.embedded.learner import version_of


class Actor:
    """Who acts in rollouts.

    An agent alone acts with a model of its own, so that nobody else who uses the policy sees it change. Agents of a
    team are given new weights where they stand, and the old ones back by `release`.
    """

    def __init__(self, agent: Unit, chosen: tuple[str, ...] | None = None) -> None:
        speaking = {name: model for name, unit in units_of(agent).items() if (model := _embedded(unit)) is not None}
        if not speaking:
            raise ConfigError(
                f"agent={agent.name!r} | the engine 'embedded' trains the embedded policy, and nobody here asks it; "
                "give the agent model='embedded:<folder>', or take another train_engine_name."
            )
        for name in chosen or ():
            one_of("config.agents, who ask the embedded policy", name, speaking)
        self.names = tuple(chosen or speaking)
        """Agents whose tokens are trained on."""
        models = [speaking[name] for name in self.names]
        self.policy: Policy = models[0].policy
        if len({_what(model.policy) for model in models}) > 1:
            raise ConfigError(
                f"config.agents: {', '.join(self.names)} have different policies; name those of one policy."
            )
        self.agent: Any = agent
        self._swapped = list({id(model): model for model in models}.values())
        if isinstance(agent, Agent) and len(units_of(agent)) == 1:
            copy = EmbeddedModel(self.policy, models[0].name, models[0].params)
            self.agent, self._swapped = agent.with_model(copy), [copy]

    def load(self, policy: Policy) -> None:
        """Act with these weights from the next call on."""
        for model in self._swapped:
            model.load(policy.weights, policy.version)

    def release(self) -> None:
        """Act as before training."""
        self.load(self.policy)


def _what(policy: Policy) -> tuple[str, str, str]:
    """What makes two policies the same one, wherever they were read from."""
    return version_of(policy.weights, 0), policy.tokenizer.data, policy.tokenizer.chat_template


def _embedded(unit: Unit) -> EmbeddedModel | None:
    if not isinstance(unit, Agent):
        return None
    model = unit.model
    return model if isinstance(model, EmbeddedModel) else None
