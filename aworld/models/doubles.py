"""Models that never touch the network: for tests, demonstrations, simulated users and rule-based policies.

`ScriptedModel` says what it was given, in order; `FunctionModel` says what a Python function of the request returns.
Both stream as well, and name tool calls by turn and place, so that two runs of the same script are equal. They cost no
money. What they use is estimated, a token for each 4 characters of the texts, and marked so (`Usage.estimated`); a
whole `ModelReply` is taken as it is, with the usage that it reports, or none.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, TypeAlias

import msgspec

from aworld.core.checks import LIST, typed
from aworld.core.exceptions import AWorldError, ModelError
from aworld.core.message import Message, ToolCall, Usage, content_text
from aworld.core.model import Delta, ModelReply, ModelRequest, ReasoningDelta, TextDelta
from aworld.models.call import NO_RETRY, Retry
from aworld.models.native_tools import NATIVE_TOOLS
from aworld.models.prices import FREE

Said: TypeAlias = str | Message | ToolCall | Sequence[ToolCall] | ModelReply | Exception
"""What a double may say: a text, a message, one or several tool calls, a whole reply, or an error to raise."""

_PIECE = 12  # characters of a streamed piece

CHARACTERS_PER_TOKEN = 4
"""By which tokens are estimated: about that of English text with today's tokenizers."""


def call(tool: str, /, **arguments: Any) -> ToolCall:
    """A call of `tool` for a script. Its id is given when it is said: `call_<turn>_<place>`."""
    return ToolCall(id="", name=tool, arguments=msgspec.json.encode(arguments).decode())


class _Double(ABC):
    """What the doubles share: each whole answer may be had in pieces too."""

    native_tools = NATIVE_TOOLS
    """They stand for any model."""
    price = FREE

    def __init__(self, name: str) -> None:
        self.name = name
        self.params: dict[str, Any] = {}

    @abstractmethod
    async def generate(self, request: ModelRequest) -> ModelReply:
        """Answer once. Raises `ModelError`."""

    async def stream(self, request: ModelRequest, on_delta: Callable[[Delta], None]) -> ModelReply:
        """The same, after its thinking and its text were handed on in small pieces."""
        reply = await self.generate(request)
        for text, kind in ((reply.message.reasoning or "", ReasoningDelta), (reply.message.text, TextDelta)):
            for start in range(0, len(text), _PIECE):
                on_delta(kind(text[start : start + _PIECE]))
        return reply


class ScriptedModel(_Double):
    """Says `replies` in order: number `request.turn` of the list, so that one instance serves any number of runs.

    A turn beyond the list raises `ModelError`; `unused` tells what a run has left over.
    """

    provider = "scripted"

    @typed()
    def __init__(self, replies: Annotated[Sequence[Said], LIST], name: str = "scripted") -> None:
        super().__init__(name)
        self.replies = tuple(replies)

    async def generate(self, request: ModelRequest) -> ModelReply:
        """Reply number `request.turn`. Raises `ModelError` when there is none, or the scripted error."""
        if request.turn >= len(self.replies):
            raise ModelError(
                f"The script of model {self.name!r} has {len(self.replies)} replies, but reply number "
                f"{request.turn + 1} was asked for; add one, or let the script end with a text."
            )
        return _reply(self.replies[request.turn], request, self.name)

    def unused(self, turns: int) -> int:
        """How many replies a run of `turns` model calls has left over."""
        return max(0, len(self.replies) - turns)


class FunctionModel(_Double):
    """Says what `function` makes of the request, plain or async. A plain one must not block.

    What it raises, other than an `AWorldError`, becomes a `ModelError`. `name` is the function's when not given.
    """

    provider = "function"

    @typed()
    def __init__(
        self,
        function: Callable[[ModelRequest], Said | Awaitable[Said]],
        name: str | None = None,
        *,
        retry: Retry = NO_RETRY,
    ) -> None:
        super().__init__(name or getattr(function, "__name__", "function"))
        self.function = function
        self.retry = retry

    async def generate(self, request: ModelRequest) -> ModelReply:
        """Ask the function. Raises `ModelError`."""
        try:
            reply = self.function(request)
            if inspect.isawaitable(reply):
                reply = await reply
        except AWorldError:
            raise
        except Exception as error:
            raise ModelError(f"{self.name} raised {type(error).__name__}: {error}") from error
        return _reply(reply, request, self.name)


def _reply(reply: Said, request: ModelRequest, name: str) -> ModelReply:
    match reply:
        case ModelReply():
            return msgspec.structs.replace(reply, message=_named(reply.message, request))
        case Exception():
            raise reply
        case str():
            message = Message("assistant", reply)
        case Message():
            message = _named(reply, request)
        case ToolCall():
            message = _named(Message("assistant", tool_calls=(reply,)), request)
        case [*calls] if all(isinstance(call, ToolCall) for call in calls):  # pyright: ignore[reportUnnecessaryIsInstance]
            message = _named(Message("assistant", tool_calls=tuple(calls)), request)
        case _:
            raise ModelError(f"{name} says a text, a message, a call or a list of calls; it said {reply!r:.60}.")
    read = written = 0
    for said in (*request.messages, message):  # on the hot path of tests and benchmarks: no call for each message
        read += written
        content = said.content or ""
        written = len(content if type(content) is str else content_text(content))
        for call in said.tool_calls:
            written += len(call.name) + len(call.arguments)
    read, written = -(-read // CHARACTERS_PER_TOKEN), -(-written // CHARACTERS_PER_TOKEN)
    usage = Usage(read, written, read + written, cost=0.0, estimated=True)
    return ModelReply(message, "tool_calls" if message.tool_calls else "stop", usage, model=name)


def _named(message: Message, request: ModelRequest) -> Message:
    """The message with an id for each call that has none."""
    if all(call.id for call in message.tool_calls):
        return message
    calls = tuple(
        call if call.id else ToolCall(f"call_{request.turn}_{place}", call.name, call.arguments)
        for place, call in enumerate(message.tool_calls)
    )
    return msgspec.structs.replace(message, tool_calls=calls)
