"""The policy as a `Model`: conversations in, answers with their exact ids and log-probabilities out."""

from __future__ import annotations

import asyncio
from typing import Any
from weakref import WeakKeyDictionary

from aworld.config.conf import ModelConfig
from aworld.core.exceptions import ModelError
from aworld.core.message import Message, chat_format
from aworld.core.model import ModelRequest
from aworld.models.chat_tokens import OPENING, ChatTokens, Prompt, parse_exact
from aworld.models.embedded.checkpoint import Policy
from aworld.models.embedded.decoding import DecodeRequest, DecodingEngine
from aworld.models.embedded.transformer import Transformer, Weights
from aworld.models.token_model import Completion, GrowingText, Sampling, TokenModel

PACKAGED_NAME = "packaged"
"""The model name of the policy that comes with the package."""

_SYSTEM = "<|im_start|>system"


class PolicyChat(ChatTokens):
    """Requests and replies of a policy whose template writes calls back as they stand: nothing is kept beside them."""

    def message(self, text: str, request: ModelRequest) -> Message:
        """The message that a text spells: rendered again, it is that text."""
        return parse_exact(text, request.turn)

    def shape(self, message: Message) -> dict[str, Any]:
        """The chat-completions shape, with the content as text: what the template reads. Raises `ModelError`."""
        shape = chat_format(message)
        if not isinstance(shape["content"], str):
            if message.content is not None and message.text == "":
                raise ModelError(f"The embedded policy reads text only; a {message.role} message has none.")
            shape["content"] = message.text
        return shape


class EmbeddedModel(TokenModel):
    """A policy that answers inside this process. One instance serves any number of concurrent calls and loops.

    What was sampled is never tokenised again: where a conversation goes on, its prompt begins with the very ids of the
    earlier turn. Answers depend on the request alone, bit for bit, not on what else is in flight.

    Args:
        policy: The language model.
        name: What the log calls it.
        params: Sampling settings for every request: `temperature` (1; 0 is greedy), `top_p` (1), `top_k` (0: all),
            `max_tokens` (256), `seed`, `stop`. A request's own override them; others are passed over.
    """

    provider = "embedded"
    max_tokens = 256
    """Ten times the longest answer that the packaged policy needs."""

    def __init__(self, policy: Policy, name: str = "embedded", params: dict[str, Any] | None = None) -> None:
        ends, context = frozenset([policy.tokenizer.eos_token_id]), policy.config.max_position_embeddings
        super().__init__(PolicyChat(policy.tokenizer), name=name, ends=ends, context=context, params=params)
        self._use(policy)

    @property
    def policy(self) -> Policy:
        """The weights that the next call uses."""
        return self._policy

    def load(self, weights: Weights, version: str) -> None:
        """Swap the weights; calls under way end with the old ones. Raises `ConfigError` for other shapes."""
        self._use(self._policy.with_weights(weights, version))

    async def complete(
        self, prompt: Prompt, sampling: Sampling, request: ModelRequest, text: GrowingText
    ) -> Completion:
        """Continue a prompt, together with what else is asked for in this loop. Raises `ModelError`."""
        if request.output is not None:
            raise ModelError(
                f"Policy {self.name!r} cannot be held to a schema; leave output_type out, or ask another model."
            )
        version, loop = self._policy.version, asyncio.get_running_loop()
        end = self._policy.tokenizer.eos_token_id
        # What the system says is shared by all conversations with the same prompt and tools.
        shared = not prompt.kept and prompt.text.startswith(_SYSTEM) and end in prompt.ids
        draft = await self._engine(loop).complete(
            DecodeRequest(
                prompt.ids,
                sampling,
                done=loop.create_future(),
                head=prompt.ids.index(end) + 1 if shared else 0,
                turn=prompt.kept,
                on_token=text.take if text.watched else None,
            )
        )
        return Completion(tuple(draft.ids), tuple(draft.logprobs), version, draft.cached)

    def _use(self, policy: Policy) -> None:
        self._policy = policy
        self._transformer = Transformer(policy.config, policy.weights)
        # Futures and tasks belong to a loop, so each loop has its engine; new weights begin with empty ones.
        self._engines: WeakKeyDictionary[asyncio.AbstractEventLoop, DecodingEngine] = WeakKeyDictionary()

    def _engine(self, loop: asyncio.AbstractEventLoop) -> DecodingEngine:
        engine = self._engines.get(loop)
        if engine is None:
            opening = self._policy.tokenizer.backend_tokenizer.token_to_id(OPENING)
            engine = self._engines[loop] = DecodingEngine(self._transformer, goes_on=opening)
        return engine


def embedded_model(config: ModelConfig) -> EmbeddedModel:
    """The model of settings: `llm_model_name` is a checkpoint's folder, or `packaged`. Raises `ConfigError`."""
    name = config.llm_model_name or PACKAGED_NAME
    policy = Policy.open(None if name == PACKAGED_NAME else name)
    return EmbeddedModel(policy, name, config.sampling())
