"""The contract of a model: a request in, a reply out, whole or in pieces.

A model is a value without run state: the same instance serves any number of concurrent calls, and `generate` makes
exactly one attempt. Retries, limits, capture and streaming to readers belong to the runtime.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, runtime_checkable

from msgspec import Struct
from msgspec.structs import asdict

from aworld.core.message import Message, Tokens, Usage


class ToolSchema(Struct, frozen=True):
    """A tool as a model sees it. `parameters` is a JSON schema of an object."""

    name: str
    description: str
    parameters: dict[str, Any]


def function_format(tool: ToolSchema | dict[str, Any]) -> dict[str, Any]:
    """A tool, or what the log holds of one, in the shape of the chat-completions API."""
    return {"type": "function", "function": tool if isinstance(tool, dict) else asdict(tool)}


class OutputSchema(Struct, frozen=True):
    """The shape that an answer must have: a name and a JSON schema of an object."""

    name: str
    schema: dict[str, Any]


class ModelRequest(Struct, frozen=True):
    """One question to a model: everything that is sent, and where in the run it is asked."""

    messages: tuple[Message, ...]
    tools: tuple[ToolSchema, ...] = ()
    params: dict[str, Any] = {}
    """Settings of this call in the words of `ModelSettings`, and extras; they override those of the model."""
    output: OutputSchema | None = None
    turn: int = 0
    """How many calls this agent has made before in this run (0 for the first)."""
    trajectory_id: str = ""
    agent: str = ""


class ModelReply(Struct, frozen=True):
    """One answer of a model. Times are UNIX seconds; what the provider did not say is None."""

    message: Message
    finish_reason: str | None = None
    usage: Usage | None = None
    tokens: Tokens | None = None
    model: str | None = None
    """The model's name as the provider reported it."""
    response_id: str | None = None
    first_token: float | None = None


class TextDelta(Struct, frozen=True, tag="text", gc=False):
    """A piece of an answer."""

    text: str


class ReasoningDelta(Struct, frozen=True, tag="reasoning", gc=False):
    """A piece of a model's thinking."""

    text: str


Delta: TypeAlias = TextDelta | ReasoningDelta


@runtime_checkable
class Model(Protocol):
    """What the runtime asks of a model. Implementations live in `aworld.models`."""

    provider: str
    """Name of the provider, such as `openai`; it is written to the log."""
    name: str
    """Name of the model, such as `gpt-4o`."""

    params: dict[str, Any]
    """Settings that go with every request, in the words of `ModelSettings`, without secrets; a request's own `params`
    override them. What is on record are both; the model puts them into the words of its API."""

    async def generate(self, request: ModelRequest) -> ModelReply:
        """Answer once. Raises `ModelError`."""
        ...

    async def stream(self, request: ModelRequest, on_delta: Callable[[Delta], None]) -> ModelReply:
        """Answer once, and hand on each piece as it comes; `on_delta` must not raise. Raises `ModelError`."""
        ...
