"""The agent loop for verl: our runtime runs the episode, verl's servers answer its model calls.

verl finds it by a YAML file (`actor_rollout_ref.rollout.agent.agent_loop_config_path`):

    - name: aworld
      _target_: aworld.training.verl.agent_loop.RuntimeAgentLoop
      setting: my_package.my_module:setting        # a function that returns (environment, agent)

Each call of the policy goes to verl's server manager as token ids and comes back as token ids, so what verl trains on
is what was read and sampled. Imported only where verl is installed.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from aworld.agents.references import find
from aworld.core.exceptions import ConfigError, ModelError
from aworld.core.extras import import_extra
from aworld.core.model import ModelRequest
from aworld.environments import Environment
from aworld.environments.rollout import Rollout, rollouts
from aworld.models.chat_tokens import ChatTokens, Prompt
from aworld.models.token_model import Completion, GrowingText, Sampling, TokenModel, ends_of
from aworld.training.completions import CompletionRow, row_of
from aworld.training.filters import without_logprobs
from aworld.training.samples import samples_of
from aworld.training.verl.verl_engine import PACKAGE, problem_of

import_extra("verl", "the agent loop", PACKAGE)
_agent_loop: Any = import_module("verl.experimental.agent_loop.agent_loop")

if TYPE_CHECKING:

    class VerlLoop:
        """What is used here of verl's `AgentLoopBase`, which is not installed where types are checked."""

        server_manager: Any
        tokenizer: Any
        rollout_config: Any

        def __init__(self, *arguments: Any, **named: Any) -> None: ...
else:
    VerlLoop = _agent_loop.AgentLoopBase


class VerlModel(TokenModel):
    """The policy behind verl's server manager, for one episode.

    Args:
        server: verl's `LLMServerClient`, or anything with its `generate`.
        sampling: verl's sampling parameters, passed on as they are.
        room: Ids that the whole response may have, what is read after the first prompt included.
        most: Ids that one answer may have.
    """

    provider = "verl"

    def __init__(
        self, server: Any, chat: ChatTokens, sampling: Mapping[str, Any], room: int, most: int | None = None
    ) -> None:
        super().__init__(chat, name="policy", ends=ends_of(chat.tokenizer))
        self._server, self._settings, self._room, self._most = server, dict(sampling), room, most
        self._request = uuid.uuid4().hex  # one a conversation: verl sends it to the server that has its prefix
        self._first: int | None = None

    async def complete(
        self, prompt: Prompt, sampling: Sampling, request: ModelRequest, text: GrowingText
    ) -> Completion:
        """Ask verl's servers. Raises `ModelError` when the response is full."""
        self._first = len(prompt.ids) if self._first is None else self._first
        left = self._room - (len(prompt.ids) - self._first)
        if left < 1:
            raise ModelError(f"The response is full: rollout.response_length={self._room} tokens.")
        left = min(left, self._most or left)
        output: Any = await self._server.generate(
            request_id=self._request,
            prompt_ids=list(prompt.ids),
            sampling_params={**self._settings, "max_tokens": left},
        )
        version = output.extra_fields.get("global_steps")
        return Completion(
            tuple(output.token_ids),
            None if output.log_probs is None else tuple(output.log_probs),
            None if version is None else str(version),
        )


class RuntimeAgentLoop(VerlLoop):
    """verl's `AgentLoopBase`, with the episode left to our runtime.

    Args:
        setting: `"package.module:function"`; the function returns the environment and the agent. Called once a worker.
        retries: How often an episode whose surroundings failed is begun again.
        max_completion_tokens: Most tokens of one answer.
    """

    def __init__(
        self,
        *arguments: Any,
        setting: str,
        retries: int = 2,
        max_completion_tokens: int | None = None,
        **named: Any,
    ) -> None:
        super().__init__(*arguments, **named)
        self.most = max_completion_tokens
        self.environment, self.agent = load_setting(setting)
        self.retries = retries

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> Any:
        """Run the problem of one row of the dataset; returns verl's `AgentLoopOutput`."""
        chat = _chat(self.tokenizer)
        room = int(self.rollout_config.response_length)
        model = VerlModel(self.server_manager, chat, sampling_params, room, self.most)
        episodes = rollouts(
            self.environment, self.agent.with_model(model), [problem_of(kwargs.get("extra_info"))],
            seed=random.getrandbits(31), retries=self.retries,
        )  # fmt: skip
        async for episode in episodes:
            return self._output(episode, room)
        raise ConfigError("The episode gave nothing.")  # pragma: no cover - rollouts yields every episode

    def _output(self, episode: Rollout, room: int) -> Any:
        derived = samples_of(episode.record)
        scored = episode.score is not None and not episode.lost
        row = row_of(derived.samples, episode.score, int(self.tokenizer.eos_token_id))
        self._refuse_long_prompt(row)
        # verl has no unknown reward: such an episode weighs nothing, by a mask without a single 1.
        mask = row.env_mask if scored else [0] * len(row.env_mask)
        captured = bool(derived.samples) and len(without_logprobs(derived.samples)) == len(derived.samples)
        return _agent_loop.AgentLoopOutput(
            prompt_ids=row.prompt_ids,
            response_ids=row.completion_ids[:room],
            response_mask=mask[:room],
            response_logprobs=row.logprobs[:room] if captured else None,
            reward_score=row.score if scored else 0.0,
            num_turns=sum(len(episode.record.path_ids(c.prompt)) for c in list(episode.record.calls.values())[-1:]) + 1,
            metrics=_agent_loop.AgentLoopMetrics(),
            extra_fields={
                "turn_scores": [], "tool_rewards": [],
                "reward_extra_info": {
                    "reward_known": float(scored), "rows_left_out": max(0, len(derived.samples) - 1),
                    "drift": derived.drift,
                },
            },
        )  # fmt: skip

    def _refuse_long_prompt(self, row: CompletionRow) -> None:
        limit = int(self.rollout_config.prompt_length)
        if len(row.prompt_ids) > limit:  # cutting it would train on what the policy never saw
            raise ConfigError(f"A prompt has {len(row.prompt_ids)} tokens; set rollout.prompt_length above {limit}.")


@lru_cache(maxsize=8)
def load_setting(address: str) -> tuple[Environment, Any]:
    """The environment and the agent that `"package.module:function"` returns. Raises ConfigError."""
    try:
        match find(address, "setting")():
            case (Environment() as environment, agent) if hasattr(agent, "with_model"):
                return environment, agent
            case other:
                raise ConfigError(f"it returned {other!r:.200}.")
    except (TypeError, ValueError) as error:
        what = "'package.module:function' of a function that returns (environment, agent)"
        raise ConfigError(f"setting={address!r} must be {what}: {error}") from error


_chats: dict[int, ChatTokens] = {}


def _chat(tokenizer: Any) -> ChatTokens:
    """The codec of a worker's tokenizer: digesting it takes longer than an episode of a small policy."""
    chat = _chats.get(id(tokenizer))
    if chat is None or chat.tokenizer is not tokenizer:
        chat = _chats[id(tokenizer)] = ChatTokens(tokenizer)
    return chat
