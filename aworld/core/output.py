"""What a stream yields, in the order in which it happens. All JSON-able but the last, which carries the response."""

from __future__ import annotations

from typing import Any, TypeAlias

from msgspec import Struct

from aworld.core.common import ActionResult
from aworld.core.message import Message, ToolCall, Usage


class Output(Struct, frozen=True, kw_only=True, tag_field="type"):
    """What every output has: the agent that acts and the step, from 0."""

    trajectory_id: str
    agent: str
    step: int


class StepStarted(Output, frozen=True, tag="step_started", kw_only=True):
    """An agent begins a turn."""


class TextOutput(Output, frozen=True, tag="text", kw_only=True, gc=False):
    """A piece of the answer, as the model writes it."""

    text: str


class ReasoningOutput(Output, frozen=True, tag="reasoning", kw_only=True, gc=False):
    """A piece of the model's thinking."""

    text: str


class RetryOutput(Output, frozen=True, tag="retry", kw_only=True):
    """A try of the model call failed and is repeated; text shown since the step began is void."""

    error: str
    wait: float
    """Seconds until the next try."""


class ToolCallOutput(Output, frozen=True, tag="tool_call", kw_only=True):
    """A tool is about to run."""

    call: ToolCall


class ToolNoteOutput(Output, frozen=True, tag="tool_note", kw_only=True):
    """A tool tells of its progress while it runs."""

    call_id: str
    kind: str
    data: Any = None


class ToolResultOutput(Output, frozen=True, tag="tool_result", kw_only=True):
    """A tool has answered."""

    result: ActionResult


class HandoffOutput(Output, frozen=True, tag="handoff", kw_only=True):
    """Control passes from `agent` to `to`."""

    to: str


class MessageOutput(Output, frozen=True, tag="message", kw_only=True):
    """The whole message of an agent."""

    message: Message


class StepFinished(Output, frozen=True, tag="step_finished", kw_only=True):
    """The turn is over and durable."""

    usage: Usage | None = None


class QuestionOutput(Output, frozen=True, tag="question", kw_only=True):
    """A person is asked; the run waits for the answer."""

    id: str
    question: str


class RunFinished(Output, frozen=True, tag="finished", kw_only=True):
    """The end: exactly one, always last. `response` is the `TaskResponse`."""

    response: Any


AnyOutput: TypeAlias = (
    StepStarted
    | TextOutput
    | ReasoningOutput
    | RetryOutput
    | ToolCallOutput
    | ToolNoteOutput
    | ToolResultOutput
    | HandoffOutput
    | MessageOutput
    | StepFinished
    | QuestionOutput
    | RunFinished
)
