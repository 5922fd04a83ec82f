"""What a reader of a run is shown: a fold of its events, in their order.

`OutputFold.take` says what an event shows, for a live reader as for one that comes later or sits in another process.
Text and reasoning as they are written, retries, progress of tools, and the news that a step begins are not in the log:
the process that works on the run pushes them to whoever reads at that moment, and a reader must be right without them.
All outputs are JSON-able but the last, which carries the response, and answers in part, which hold Python values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TypeAlias, TypeVar, cast

from msgspec import Struct

from aworld.core import event as ev
from aworld.core.common import ActionResult
from aworld.core.message import Message, ToolCall, Usage


class Output(Struct, frozen=True, kw_only=True, tag_field="type"):
    """What every output has: the agent that acts and the step, from 0."""

    trajectory_id: str
    agent: str
    step: int
    seq: int | None = None
    """Number of the event that shows this, where a reader may go on from; None for what is not in the log."""


class StepStarted(Output, frozen=True, tag="step_started", kw_only=True):
    """An agent begins a turn."""


class TextOutput(Output, frozen=True, tag="text", kw_only=True, gc=False):
    """A piece of the answer, as the model writes it."""

    text: str


class PartialOutput(Output, frozen=True, tag="partial", kw_only=True):
    """The answer of an agent with an `output_type`, as far as it is written: shown when it has changed."""

    value: Any
    """Of a model, a dataclass or a `TypedDict` a dict of the fields that are there, validated; of any other type a
    value of it, such as a list that grows."""


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


GUARDRAIL = "guardrail"
"""The source of verdicts in the log."""


class VerdictOutput(Output, frozen=True, tag="verdict", kw_only=True):
    """A guardrail has judged."""

    guardrail: str
    on: str
    """What it judged: `input`, `answer` or `call`."""
    passed: bool
    reason: str | None = None
    """Why it refused, or how it failed."""
    call_id: str | None = None


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
    StepStarted | TextOutput | PartialOutput | ReasoningOutput | RetryOutput | ToolCallOutput | ToolNoteOutput
    | ToolResultOutput | VerdictOutput | HandoffOutput | MessageOutput | StepFinished | QuestionOutput | RunFinished
)  # fmt: skip


Kind = TypeVar("Kind", bound=Output)


class _Turn:
    """One agent or team at work, as far as its last step is concerned."""

    __slots__ = ("agent", "calls", "hands_over", "open", "step", "usage")

    def __init__(self, agent: str) -> None:
        self.agent = agent
        self.step = 0
        self.usage: Usage | None = None
        self.calls: dict[str, str] = {}
        """The tool calls that are not closed, by id, with their names."""
        self.open = False
        """Whether the step is not over."""
        self.hands_over = False
        """Whether control passes to another agent, which is told before the step is over."""


class OutputFold:
    """The outputs of one trajectory, event by event."""

    def __init__(self, trajectory_id: str) -> None:
        self._id = trajectory_id
        self.own = False
        """Whether what comes is the trajectory's own: a fork and the next turn of a conversation show nothing of what
        they share with another."""
        self._turns: dict[int, _Turn] = {}
        self._messages: dict[int, Message] = {}
        """What agents and tools said last, by activation or, of a tool, by the id of the message."""
        self._begun: set[int] = set()
        """Steps of which somebody told that they begin."""

    def take(self, event: ev.Event) -> list[AnyOutput]:
        """What one more event shows."""
        handler = self._handlers.get(type(event))
        shown = [] if handler is None else handler(self, event)
        return shown if self.own else []

    def pass_on(self, output: Output) -> AnyOutput:
        """Take note of an output that is not of the log, so that nothing is shown twice."""
        if type(output) is StepStarted:
            self._begun.add(output.step)
        return cast("AnyOutput", output)

    def _of(self, activation: int) -> _Turn:
        return self._turns.get(activation) or self._turns.setdefault(activation, _Turn(""))

    def _output(self, kind: Callable[..., Kind], turn: _Turn, event: Any, **fields: Any) -> Kind:
        """What an event shows, of its own step or the last of who acts."""
        step = getattr(event, "step", None)
        step = turn.step if step is None else step
        return kind(trajectory_id=self._id, agent=turn.agent, step=step, seq=event.seq, **fields)

    def _finish(self, turn: _Turn, seq: int) -> list[AnyOutput]:
        if not turn.open or turn.calls or turn.hands_over:
            return []
        turn.open = False
        return [StepFinished(trajectory_id=self._id, agent=turn.agent, step=turn.step, seq=seq, usage=turn.usage)]

    def _started(self, event: ev.Started) -> list[AnyOutput]:
        self.own = event.trajectory_id == self._id
        if event.after:
            self._turns = {}
        return []

    def _agent_started(self, event: ev.AgentStarted) -> list[AnyOutput]:
        self._turns[event.activation] = _Turn(event.agent)
        return []

    def _message(self, event: ev.MessageAdded) -> list[AnyOutput]:
        message = event.message
        if message is not None and not event.aside:
            if message.role == "assistant":
                self._messages[-1 - event.activation] = message
            elif message.role == "tool":
                self._messages[event.id] = message
        return []

    def _model_call(self, event: ev.ModelCalled) -> list[AnyOutput]:
        turn = self._of(event.activation)
        turn.hands_over, turn.calls = False, {}
        shown: list[AnyOutput] = self._finish(turn, event.seq)
        turn.step, turn.usage, turn.open = event.step, event.usage, True
        if event.step not in self._begun:
            shown.append(self._output(StepStarted, turn, event))
        self._begun.discard(event.step)
        message = self._messages.pop(-1 - event.activation, None)
        if event.reply is not None and message is not None:
            shown.append(self._output(MessageOutput, turn, event, message=message))
            turn.calls = {call.id: call.name for call in message.tool_calls}
        return shown + self._finish(turn, event.seq)

    def _tool_call(self, event: ev.ToolCalled) -> list[AnyOutput]:
        turn = self._of(event.activation)
        turn.calls[event.call_id] = event.name
        turn.open = True
        call = ToolCall(event.call_id, event.name, event.arguments)
        return [self._output(ToolCallOutput, turn, event, call=call)]

    def _tool_result(self, event: ev.ToolReturned) -> list[AnyOutput]:
        turn = self._of(event.activation)
        message = self._messages.pop(event.result, None)
        content = (message.content if message is not None else None) or ""
        result = ActionResult(
            event.call_id, event.name, content, event.error, event.duration, event.usage, event.attempts
        )
        turn.calls.pop(event.call_id, None)
        turn.hands_over = turn.hands_over or (event.name.startswith("handoff_to_") and event.error is None)
        return [self._output(ToolResultOutput, turn, event, result=result), *self._finish(turn, event.seq)]

    def _noted(self, event: ev.Noted) -> list[AnyOutput]:
        if event.source != GUARDRAIL:
            return []
        turn, data = self._of(event.activation or 0), event.data
        fields = {name: data.get(name) for name in ("on", "passed", "reason", "call_id")}
        return [self._output(VerdictOutput, turn, event, guardrail=event.name, **fields)]

    def _asked(self, event: ev.Asked) -> list[AnyOutput]:
        turn = self._of(event.activation)
        if event.call_id is not None:
            turn.calls.pop(event.call_id, None)  # the step is over until the answer comes
        question = self._output(QuestionOutput, turn, event, id=event.id, question=event.question)
        return [question, *self._finish(turn, event.seq)]

    def _agent_finished(self, event: ev.AgentFinished) -> list[AnyOutput]:
        turn = self._of(event.activation)
        shown: list[AnyOutput] = []
        if event.handoff is not None:
            shown.append(self._output(HandoffOutput, turn, event, to=event.handoff))
        turn.hands_over, turn.calls = False, {}
        return shown + self._finish(turn, event.seq)

    _handlers: ClassVar[dict[type, Callable[[OutputFold, Any], list[AnyOutput]]]] = {
        ev.Started: _started,
        ev.AgentStarted: _agent_started,
        ev.MessageAdded: _message,
        ev.ModelCalled: _model_call,
        ev.ToolCalled: _tool_call,
        ev.ToolReturned: _tool_result,
        ev.Asked: _asked,
        ev.Noted: _noted,
        ev.AgentFinished: _agent_finished,
    }
