"""The `Model` contract on top of something that continues token ids: the ground of every in-process model.

A subclass says how ids are continued (`complete`); what is here renders requests, reads replies, and reports exact ids
and log-probabilities with the policy's version.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from aworld.core.event import now
from aworld.core.exceptions import ModelError
from aworld.core.message import Tokens, Usage
from aworld.core.model import Delta, ModelReply, ModelRequest, TextDelta
from aworld.models.chat_tokens import OPENING, ChatTokens, Prompt
from aworld.models.prices import FREE

OnDelta: TypeAlias = Callable[[Delta], None] | None


class Sampling(Struct, frozen=True):
    """How tokens are drawn."""

    temperature: float = 1.0
    """0 takes the likeliest token each time."""
    top_p: float = 1.0
    top_k: int = 0
    """Likeliest tokens that are drawn from; 0 for all."""
    max_tokens: int = 512
    seed: int | None = None
    stop: tuple[str, ...] = ()
    """Texts that end an answer; neither they nor what follows is part of it."""


@dataclass(slots=True, eq=False)
class Draft:
    """A prompt and what was written to it so far."""

    prompt: tuple[int, ...]
    sampling: Sampling
    ids: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])
    rng: random.Random = field(init=False)
    """One number a token, the same ones for the same seed."""

    def __post_init__(self) -> None:
        self.rng = random.Random(self.sampling.seed)


class Completion(Struct, frozen=True):
    """What was drawn: ids, the one that ends the turn included, and the log-probability of each."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None = None
    policy_version: str | None = None
    cached_tokens: int | None = None
    """Ids of the prompt that did not have to be read."""


class TokenModel:
    """A model that continues ids. One instance serves any number of concurrent calls."""

    provider = "tokens"
    lacks = frozenset({"logit_bias", "parallel_tool_calls", "prompt_cache", "reasoning_effort", "tool_choice"})
    price = FREE
    max_tokens = Sampling().max_tokens
    """Tokens of an answer when nobody says more."""

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

    async def complete(
        self, prompt: Prompt, sampling: Sampling, request: ModelRequest, text: GrowingText
    ) -> Completion:
        """Continue a rendered request. Who samples in this process tells `text` of the ids so far, token by token, if
        `text.watched`, and ends the answer when told to. Raises `ModelError`."""
        raise NotImplementedError(f"{type(self).__name__} does not say how ids are continued.")

    async def generate(self, request: ModelRequest) -> ModelReply:
        """Answer once. Raises `ModelError`, also for a conversation that is longer than the context."""
        return await self._answer(request, None)

    async def stream(self, request: ModelRequest, on_delta: Callable[[Delta], None]) -> ModelReply:
        """The same; text is handed on as it comes, at the latest in one piece at the end. Tool calls come whole."""
        return await self._answer(request, on_delta)

    async def _answer(self, request: ModelRequest, on_delta: OnDelta) -> ModelReply:
        prompt = self.chat.prompt(request, self.ends)
        sampling = self._sampling(request, len(prompt.ids))
        text = GrowingText(self.chat, self.ends, sampling.stop, on_delta)
        completion = await self.complete(prompt, sampling, request, text)
        ids, whole = completion.ids, bool(completion.ids) and completion.ids[-1] in self.ends
        content, stopped = text.end(ids)
        if not stopped:  # a text that was cut is not the text of these ids
            self.chat.remember(request, prompt, ids, self.ends)
        message = self.chat.message(content, request)
        text.show(message.text)
        finish = ("tool_calls" if message.tool_calls else "stop") if whole or stopped else "length"
        read, drawn = len(prompt.ids), len(ids)
        return ModelReply(
            message,
            finish,
            Usage(read, drawn, read + drawn, cached_tokens=completion.cached_tokens),
            Tokens(
                prompt.ids,
                ids,
                completion.logprobs,
                policy_version=completion.policy_version,
                tokenizer=self.chat.tokenizer_digest,
                chat_template=self.chat.template_digest,
            ),
            model=self.name,
            first_token=text.first,
        )

    def _sampling(self, request: ModelRequest, read: int) -> Sampling:
        """How a prompt of `read` ids is continued; parameters of other providers are passed over."""
        params = {name: value for name, value in {**self.params, **request.params}.items() if value is not None}
        params["max_tokens"] = params.get("max_completion_tokens") or params.get("max_tokens", self.max_tokens)
        if isinstance(params.get("stop"), str):
            params["stop"] = (params["stop"],)
        try:
            sampling = msgspec.convert(params, Sampling, strict=False)
        except msgspec.ValidationError as error:
            raise ModelError(f"A sampling setting does not fit: {error}.") from None
        sampling = replace(sampling, top_k=max(0, sampling.top_k))  # some say -1 for all
        if not (0.0 <= sampling.temperature < float("inf") and 0.0 < sampling.top_p <= 1.0 <= sampling.max_tokens):
            raise ModelError("temperature must be 0 or more, top_p above 0 and at most 1, and max_tokens at least 1.")
        if self.context is None:
            return sampling
        if read >= self.context:
            raise ModelError(f"The conversation has {read} tokens, and {self.name!r} takes {self.context} at most.")
        # Past the last position there is nothing to compute: such an answer ends there, by length.
        return replace(sampling, max_tokens=min(sampling.max_tokens, self.context - read))


class GrowingText:
    """The text of an answer as it grows: what can be shown already, and whether a stop text has come."""

    def __init__(self, chat: ChatTokens, ends: frozenset[int], stop: tuple[str, ...], on_delta: OnDelta) -> None:
        self._chat, self._ends, self._stop, self._on_delta = chat, ends, stop, on_delta
        self.watched = bool(stop) or on_delta is not None
        """Whether anybody wants to know before the end."""
        self.first: float | None = None
        """When the first token came, in UNIX seconds; None when nobody watched."""
        self._shown = 0

    def take(self, ids: Sequence[int]) -> bool:
        """A token came. True when the answer ends here."""
        self.first = self.first or now()
        text = self._chat.text(ids, self._ends)
        if any(stop in text for stop in self._stop):
            return True
        # Held back: a call, which is shown as a call; a character whose bytes have not all come; line ends, which may
        # belong to a call; and as much as may be the beginning of a stop text.
        safe = text.split(OPENING)[0].rstrip("\n\ufffd")
        self.show(safe[: len(safe) - max(map(len, self._stop), default=1) + 1])
        return False

    def end(self, ids: Sequence[int]) -> tuple[str, bool]:
        """The whole text, and whether a stop text has cut it."""
        text = self._chat.text(ids, self._ends)
        cut = min((at for stop in self._stop if (at := text.find(stop)) >= 0), default=None)
        return (text, False) if cut is None else (text[:cut], True)

    def show(self, text: str) -> None:
        """Hand on what of this beginning of the answer is new."""
        if self._on_delta is not None and len(text) > self._shown:
            self._on_delta(TextDelta(text[self._shown :]))
            self._shown = len(text)


def ends_of(tokenizer: Any, generation_config: Any = None) -> frozenset[int]:
    """The ids that end a turn, as tokenizer and generation config say."""
    ids: Any = getattr(generation_config, "eos_token_id", None)
    ends: Sequence[int] = [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
    last = tokenizer.eos_token_id
    return frozenset([*ends, last] if last is not None else ends)
