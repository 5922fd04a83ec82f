"""The policy as a `Model`: conversations in, answers with their exact ids and log-probabilities out."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from aworld.config.conf import ModelConfig
from aworld.core.exceptions import ModelError
from aworld.core.message import Message, Tokens, Usage, chat_format
from aworld.core.model import Delta, ModelReply, ModelRequest, TextDelta, ToolSchema
from aworld.models.embedded.checkpoint import Policy
from aworld.models.embedded.engine import Engine, Request
from aworld.models.embedded.hermes import OPENING, parsed
from aworld.models.embedded.sampling import Sampling
from aworld.models.embedded.tokenizer import END
from aworld.models.embedded.transformer import Transformer, Weights

PACKAGED_NAME = "packaged"
"""The model name of the policy that comes with the package."""

_SYSTEM = "<|im_start|>system"
_TURNS = 8192  # answers whose ids are remembered, so that a conversation is not tokenised again; about 1 KB each


class EmbeddedModel:
    """A policy that answers inside this process. One instance serves any number of concurrent calls and loops.

    What was sampled is never tokenised again: where a conversation goes on, its prompt begins with the very ids of the
    earlier turn. Answers depend on the request alone, bit for bit, not on what else is in flight.

    Args:
        policy: The language model.
        name: What the log calls it.
        params: Sampling settings for every request: `temperature` (1; 0 is greedy), `top_p` (1), `max_tokens` (256),
            `seed`, `stop`. A request's own override them; others are passed over.
    """

    provider = "embedded"

    def __init__(self, policy: Policy, name: str = "embedded", params: dict[str, Any] | None = None) -> None:
        self.name = name
        self.params: dict[str, Any] = dict(params or {})
        self._turns: OrderedDict[tuple[str, str], tuple[int, ...]] = OrderedDict()
        self._calls = itertools.count()
        self._use(policy)

    @property
    def policy(self) -> Policy:
        """The weights that the next call uses."""
        return self._policy

    def load(self, weights: Weights, version: str) -> None:
        """Swap the weights; calls under way end with the old ones. Raises `ConfigError` for other shapes."""
        self._use(self._policy.with_weights(weights, version))

    async def generate(self, request: ModelRequest) -> ModelReply:
        """Answer once. Raises `ModelError`."""
        return await self._answer(request, None)

    async def stream(self, request: ModelRequest, on_delta: Callable[[Delta], None]) -> ModelReply:
        """Answer once, and hand on each piece of text as it comes; tool calls come whole. Raises `ModelError`."""
        return await self._answer(request, on_delta)

    def _use(self, policy: Policy) -> None:
        self._policy = policy
        self._transformer = Transformer(policy.config, policy.weights)
        self._engines: WeakKeyDictionary[asyncio.AbstractEventLoop, Engine] = WeakKeyDictionary()

    async def _answer(self, request: ModelRequest, on_delta: Callable[[Delta], None] | None) -> ModelReply:
        policy = self._policy
        sampling = Sampling.of({**self.params, **request.params} if request.params else self.params)
        text = self._rendered(request)
        prompt, head, turn = self._ids(text, request.trajectory_id)
        limit = policy.config.max_position_embeddings
        if len(prompt) >= limit:
            raise ModelError(
                f"The conversation has {len(prompt)} tokens, and policy {self.name!r} takes {limit} at most."
            )
        loop = asyncio.get_running_loop()
        pieces = _Pieces(policy, sampling.stop, on_delta)
        asked = Request(prompt, sampling, sampling.draws(), loop.create_future(), head, turn)
        asked.on_token = pieces.take if pieces.needed else None
        opening = policy.tokenizer.id_of(OPENING)
        asked.goes_on = (lambda ids: opening in ids) if opening is not None else None
        await self._engine(loop).complete(asked)
        said = pieces.ended(asked.ids)
        message = parsed(said, f"call_{request.turn}" if request.trajectory_id else f"call_{next(self._calls)}")
        self._remember(text + said + END, request.trajectory_id, asked)
        return _reply(self.name, message, asked, policy, pieces.first)

    def _engine(self, loop: asyncio.AbstractEventLoop) -> Engine:
        engine = self._engines.get(loop)
        if engine is None:
            engine = self._engines[loop] = Engine(self._transformer)
        return engine

    def _rendered(self, request: ModelRequest) -> str:
        if request.output is not None:
            raise ModelError(
                f"Policy {self.name!r} cannot be held to a schema; leave output_type out, or ask another model."
            )
        for message in request.messages:
            if message.content is not None and not isinstance(message.content, str) and message.text == "":
                raise ModelError(f"Policy {self.name!r} reads text only; a {message.role} message has none.")
        messages = [_plain(message) for message in request.messages]
        try:
            return self._policy.tokenizer.render(messages, [_tool(tool) for tool in request.tools], ask=True)
        except ValueError as error:
            raise ModelError(f"Policy {self.name!r}: {error}") from error

    def _ids(self, text: str, trajectory: str) -> tuple[tuple[int, ...], int, int]:
        """The ids of a prompt, how many of them others share, and how many an earlier turn has left."""
        encode, end = self._policy.tokenizer.encode, self._policy.tokenizer.end_id
        at = text.rfind(END)
        while at >= 0:
            key = text[: at + len(END)]
            ids = self._turns.get((trajectory, key)) or self._turns.get(("", key))
            if ids is not None:
                return ids + encode(text[at + len(END) :]), 0, len(ids)
            at = text.rfind(END, 0, at)
        ids = encode(text)
        # What the system says is shared by all conversations with the same prompt and tools.
        return ids, ids.index(end) + 1 if text.startswith(_SYSTEM) and end in ids else 0, 0

    def _remember(self, text: str, trajectory: str, asked: Request) -> None:
        """Note the ids of a conversation whose last answer was not cut by `stop`, which would change its text."""
        end = self._policy.tokenizer.end_id
        if asked.ids[-1] != end and asked.finish != "length":
            return
        ids = (*asked.prompt, *asked.ids) if asked.ids[-1] == end else (*asked.prompt, *asked.ids, end)
        for key in {(trajectory, text), ("", text)}:
            self._turns[key] = ids
            self._turns.move_to_end(key)
        while len(self._turns) > _TURNS:
            self._turns.popitem(last=False)


def embedded_model(config: ModelConfig) -> EmbeddedModel:
    """The model of settings: `llm_model_name` is a checkpoint's folder, or `packaged`. Raises `ConfigError`."""
    name = config.llm_model_name or PACKAGED_NAME
    policy = Policy.open(None if name == PACKAGED_NAME else name)
    given = {
        "temperature": config.llm_temperature,
        "top_p": config.llm_top_p,
        "max_tokens": config.llm_max_tokens,
        "seed": config.llm_seed,
        "stop": config.llm_stop,
        **config.params,
    }
    return EmbeddedModel(policy, name, {key: value for key, value in given.items() if value is not None})


class _Pieces:
    """The text of an answer as it grows: what can be shown already, and whether a stop text has come."""

    def __init__(self, policy: Policy, stop: tuple[str, ...], on_delta: Callable[[Delta], None] | None) -> None:
        self._tokenizer, self._stop, self._on_delta = policy.tokenizer, stop, on_delta
        self.needed = bool(stop) or on_delta is not None
        self.first: float | None = None
        self._shown = 0

    def take(self, request: Request) -> bool:
        """A token came. True when the answer ends here."""
        self.first = self.first or time.time()
        text = self._text(request.ids)
        if any(stop in text for stop in self._stop):
            return True
        if self._on_delta is not None:
            safe = text.split(OPENING)[0].rstrip("\n\ufffd")
            # A stop text that has begun may yet be completed, and a call is shown as a call.
            self._show(safe[: len(safe) - max(map(len, self._stop), default=1) + 1])
        return False

    def ended(self, ids: list[int]) -> str:
        """The whole text."""
        text = self._text(ids)
        cut = min((at for stop in self._stop if (at := text.find(stop)) >= 0), default=len(text))
        text = text[:cut]
        if self._on_delta is not None:
            self._show(parsed(text, "").text)
        return text

    def _text(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids[:-1] if ids[-1] == self._tokenizer.end_id else ids)

    def _show(self, text: str) -> None:
        if self._on_delta is not None and len(text) > self._shown:
            self._on_delta(TextDelta(text[self._shown :]))
            self._shown = len(text)


def _reply(name: str, message: Message, asked: Request, policy: Policy, first: float | None) -> ModelReply:
    read, wrote = len(asked.prompt), len(asked.ids)
    return ModelReply(
        message,
        "tool_calls" if message.tool_calls else asked.finish,
        Usage(read, wrote, read + wrote, cached_tokens=asked.cached),
        Tokens(
            asked.prompt,
            tuple(asked.ids),
            tuple(asked.logprobs),
            policy_version=policy.version,
            tokenizer=policy.tokenizer.digest,
            chat_template=policy.tokenizer.template_digest,
        ),
        model=name,
        first_token=first,
    )


def _plain(message: Message) -> dict[str, Any]:
    """The chat-completions shape, with the content as text: what the template reads."""
    plain = chat_format(message)
    if not isinstance(plain["content"], str):
        plain["content"] = message.text if message.content is not None or message.role != "assistant" else None
    return plain


def _tool(tool: ToolSchema) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}
