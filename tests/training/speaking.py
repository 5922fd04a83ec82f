"""A policy double whose every sampled token has an id that was never sampled before.

So a test can say of any token in a training sample who sampled it, in which trajectory, and when.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import TypeAlias

from msgspec.structs import replace

from aworld.core.exceptions import ModelError
from aworld.core.message import Message, Tokens, ToolCall
from aworld.core.model import ModelReply, ModelRequest
from aworld.models import FunctionModel, Retry

Words: TypeAlias = Callable[[ModelRequest], Message]


class Policy:
    """Answers with `words`, and remembers which ids it sampled for which trajectory.

    `fails` says for each try, by its number, whether it fails in a way that is tried again; `drifts` likewise whether
    the prompt is rendered without what was sampled before.
    """

    def __init__(
        self,
        words: Words,
        *,
        fails: Callable[[int], bool] = lambda _: False,
        drifts: Callable[[int], bool] = lambda _: False,
        captured: Callable[[int], bool] = lambda _: True,
    ) -> None:
        self.words, self.fails, self.drifts, self.captured = words, fails, drifts, captured
        self.sampled: dict[str, list[tuple[int, ...]]] = {}
        self.tries = 0
        self._ids = count(1_000)
        self._said: dict[tuple[str | None, tuple[ToolCall, ...]], tuple[int, ...]] = {}

    def model(self, name: str = "policy") -> FunctionModel:
        """A model that speaks with this policy."""
        return FunctionModel(self._reply, name, retry=Retry(tries=5, wait=0.0))

    def _reply(self, request: ModelRequest) -> ModelReply:
        number, self.tries = self.tries, self.tries + 1
        if self.fails(number):
            raise ModelError("busy", status=503, retryable=True)
        said = self.words(request)
        calls = tuple(replace(call, id=f"c{number}.{place}") for place, call in enumerate(said.tool_calls))
        message = replace(said, content=f"{said.text}#{number}", tool_calls=calls)
        if not self.captured(number):
            return ModelReply(message)
        prompt = [id for each in request.messages for id in self._rendered(each)]
        if self.drifts(number):
            prompt = [id for id in prompt if id < 1_000]
        ids = tuple(next(self._ids) for _ in range(1 + number % 3))
        self._said[message.text, message.tool_calls] = ids
        self.sampled.setdefault(request.trajectory_id, []).append(ids)
        return ModelReply(
            message, tokens=Tokens(tuple(prompt), ids, tuple(-id / 1e6 for id in ids), policy_version="v1")
        )

    def _rendered(self, message: Message) -> tuple[int, ...]:
        known = self._said.get((message.text, message.tool_calls))
        return known if known is not None else (*(ord(letter) % 900 for letter in message.text), 999)
