"""The `Model` contract on top of something that continues token ids: the ground that in-process models share.

A subclass says how ids are continued (`complete`); what is here renders requests, reads replies, and reports exact ids
and log-probabilities with the policy's version.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct

from aworld.core.exceptions import ModelError
from aworld.core.message import Tokens, Usage
from aworld.core.model import Delta, ModelReply, ModelRequest, TextDelta
from aworld.models.chat_tokens import ChatTokens


class Sampling(Struct, frozen=True):
    """How tokens are drawn."""

    temperature: float = 1.0
    """0 takes the likeliest token each time."""
    top_p: float = 1.0
    top_k: int = 0
    """Likeliest tokens that are drawn from; 0 for all."""
    max_tokens: int = 512
    seed: int | None = None


class Completion(Struct, frozen=True):
    """What was drawn: ids, the one that ends the turn included, and the log-probability of each."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None = None
    policy_version: str | None = None


class TokenModel(ABC):
    """A model that continues ids. One instance serves any number of concurrent calls."""

    provider = "tokens"

    def __init__(
        self, chat: ChatTokens, *, name: str, ends: frozenset[int], context: int | None = None,
        params: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.chat = chat
        self.name = name
        self.ends = ends
        """Ids that end a turn."""
        self.context = context
        """Most ids of prompt and reply together; None for no limit."""
        self.params: dict[str, Any] = dict(params or {})

    @abstractmethod
    async def complete(self, prompt: tuple[int, ...], sampling: Sampling, request: ModelRequest) -> Completion:
        """Continue `prompt`. Raises `ModelError`."""

    async def generate(self, request: ModelRequest) -> ModelReply:
        """Answer once. Raises `ModelError`, also for a conversation that is longer than the context."""
        prompt = self.chat.prompt(request)
        sampling = self._sampling(request, len(prompt.ids))
        completion = await self.complete(prompt.ids, sampling, request)
        message = self.chat.message(request, prompt, completion.ids, self.ends)
        whole = bool(completion.ids) and completion.ids[-1] in self.ends
        read, drawn = len(prompt.ids), len(completion.ids)
        return ModelReply(
            message,
            ("tool_calls" if message.tool_calls else "stop") if whole else "length",
            usage=Usage(input_tokens=read, output_tokens=drawn, total_tokens=read + drawn),
            tokens=Tokens(
                prompt_ids=prompt.ids,
                completion_ids=completion.ids,
                logprobs=completion.logprobs,
                policy_version=completion.policy_version,
                tokenizer=self.chat.tokenizer_digest,
                chat_template=self.chat.template_digest,
            ),
            model=self.name,
        )

    async def stream(self, request: ModelRequest, on_delta: Callable[[Delta], None]) -> ModelReply:
        """The same; the text is handed on in one piece."""
        reply = await self.generate(request)
        if reply.message.text:
            on_delta(TextDelta(reply.message.text))
        return reply

    def _sampling(self, request: ModelRequest, read: int) -> Sampling:
        params = {**self.params, **request.params}
        limit = params.get("max_completion_tokens") or params.get("max_tokens") or Sampling().max_tokens
        if self.context is not None:
            limit = min(int(limit), self.context - read)
            if limit < 1:
                raise ModelError(f"The conversation has {read} tokens, and {self.name!r} takes {self.context}.")
        try:
            return Sampling(
                temperature=float(_given(params, "temperature", 1.0)),
                top_p=float(_given(params, "top_p", 1.0)),
                top_k=max(0, int(_given(params, "top_k", 0))),
                max_tokens=int(limit),
                seed=params.get("seed"),
            )
        except (TypeError, ValueError) as error:
            raise ModelError(f"A sampling setting is no number: {error}.") from None


def ends_of(tokenizer: Any, generation_config: Any = None) -> frozenset[int]:
    """The ids that end a turn, as tokenizer and generation config say."""
    found: Any = getattr(generation_config, "eos_token_id", None)
    ids: Sequence[int] = [] if found is None else [found] if isinstance(found, int) else list(found)
    own = tokenizer.eos_token_id
    return frozenset([*ids, own] if own is not None else ids)


def _given(params: dict[str, Any], name: str, default: float) -> Any:
    value = params.get(name)
    return default if value is None else value
