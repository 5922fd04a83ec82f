"""Models that never touch the network: for tests, demonstrations, simulated users and rule-based policies.

`ScriptedModel` says what it was given, in order; `FunctionModel` says what a Python function of the request returns.
Both stream as well, and name tool calls by turn and place, so that two runs of the same script are equal.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

import msgspec

from aworld.core.exceptions import AWorldError, ModelError
from aworld.core.message import Message, ToolCall
from aworld.core.model import Delta, ModelReply, ModelRequest, ReasoningDelta, TextDelta
from aworld.models.call import NO_RETRY, Retry

Said: TypeAlias = str | Message | ToolCall | Sequence[ToolCall] | ModelReply | Exception
"""What a double may say: a text, a message, one or several tool calls, a whole reply, or an error to raise."""

_PIECE = 12  # characters of a streamed piece


def call(tool: str, /, **arguments: Any) -> ToolCall:
    """A call of `tool` for a script. Its id is given when it is said: `call_<turn>_<place>`."""
    return ToolCall(id="", name=tool, arguments=msgspec.json.encode(arguments).decode())


class ScriptedModel:
    """Says `replies` in order: number `request.turn` of the list, so that one instance serves any number of runs.

    A turn beyond the list raises `ModelError`; `unused` tells what a run has left over.
    """

    provider = "scripted"

    def __init__(self, replies: Sequence[Said], name: str = "scripted") -> None:
        self.name = name
        self.params: dict[str, Any] = {}
        self.replies = tuple(replies)

    async def generate(self, request: ModelRequest) -> ModelReply:
        """Reply number `request.turn`. Raises `ModelError` when there is none, or the scripted error."""
        if request.turn >= len(self.replies):
            raise ModelError(
                f"The script of model {self.name!r} has {len(self.replies)} replies, but reply number "
                f"{request.turn + 1} was asked for; add one, or let the script end with a text."
            )
        return _reply(self.replies[request.turn], request, self.name)

    async def stream(self, request: ModelRequest, on_delta: Callable[[Delta], None]) -> ModelReply:
        """The same in small pieces."""
        return _in_pieces(await self.generate(request), on_delta)

    def unused(self, turns: int) -> int:
        """How many replies a run of `turns` model calls has left over."""
        return max(0, len(self.replies) - turns)


class FunctionModel:
    """Says what `function` makes of the request, plain or async. A plain one must not block.

    What it raises, other than an `AWorldError`, becomes a `ModelError`. `name` is the function's when not given.
    """

    provider = "function"

    def __init__(
        self,
        function: Callable[[ModelRequest], Said | Awaitable[Said]],
        name: str | None = None,
        *,
        retry: Retry = NO_RETRY,
    ) -> None:
        self.name: str = name or getattr(function, "__name__", "function")
        self.params: dict[str, Any] = {}
        self.function = function
        self.retry = retry

    async def generate(self, request: ModelRequest) -> ModelReply:
        """Ask the function. Raises `ModelError`."""
        try:
            said = self.function(request)
            if inspect.isawaitable(said):
                said = await said
        except AWorldError:
            raise
        except Exception as error:
            raise ModelError(f"{self.name} raised {type(error).__name__}: {error}") from error
        return _reply(said, request, self.name)

    async def stream(self, request: ModelRequest, on_delta: Callable[[Delta], None]) -> ModelReply:
        """The same in small pieces."""
        return _in_pieces(await self.generate(request), on_delta)


def _reply(said: Said, request: ModelRequest, name: str) -> ModelReply:
    match said:
        case str():
            return ModelReply(Message("assistant", said), "stop", model=name)
        case ModelReply():
            return msgspec.structs.replace(said, message=_named(said.message, request))
        case Message():
            message = _named(said, request)
            return ModelReply(message, "tool_calls" if message.tool_calls else "stop", model=name)
        case Exception():
            raise said
        case ToolCall():
            calls: tuple[ToolCall, ...] = (said,)
        case _:
            calls = tuple(said)
    message = _named(Message("assistant", tool_calls=calls), request)
    return ModelReply(message, "tool_calls", model=name)


def _named(message: Message, request: ModelRequest) -> Message:
    """The message with an id for each call that has none."""
    if all(call.id for call in message.tool_calls):
        return message
    calls = tuple(
        call if call.id else ToolCall(f"call_{request.turn}_{place}", call.name, call.arguments)
        for place, call in enumerate(message.tool_calls)
    )
    return msgspec.structs.replace(message, tool_calls=calls)


def _in_pieces(reply: ModelReply, on_delta: Callable[[Delta], None]) -> ModelReply:
    """The reply, after its thinking and its text were handed on in pieces."""
    thought, text = reply.message.reasoning or "", reply.message.text
    for start in range(0, len(thought), _PIECE):
        on_delta(ReasoningDelta(thought[start : start + _PIECE]))
    for start in range(0, len(text), _PIECE):
        on_delta(TextDelta(text[start : start + _PIECE]))
    return reply
