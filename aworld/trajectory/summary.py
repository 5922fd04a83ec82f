"""What a list of runs shows of each: one flat record, kept up to date event by event.

`Tally` is the small fold behind it. It holds less than a `Trajectory` (no messages, no graph), so that a store can
keep one for every running task, write it beside the events in the same transaction, and take it up again from what
it wrote.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Struct

from aworld.core import event as ev
from aworld.core.score import Score

SHORT = 500
"""Characters of an answer or an error that a summary keeps."""


class Summary(Struct, frozen=True, kw_only=True):
    """One run at a glance. Times are UNIX seconds; None means unknown or not yet."""

    id: str
    """Trajectory id."""
    task_id: str
    task_name: str | None = None
    group_id: str | None = None
    session_id: str | None = None
    user_id: str | None = None
    agent: str | None = None
    """The agent that began."""
    status: ev.Status = "running"
    score: float | None = None
    """Sum of weight times value of all rewards; None until one is given, and while one that counts has failed."""
    started_at: float = 0.0
    updated_at: float = 0.0
    """When its last event happened."""
    finished_at: float | None = None
    steps: int = 0
    events: int = 0
    """Events of the whole log, the shared prefix of a fork included."""
    input_tokens: int | None = None
    output_tokens: int | None = None
    answer: str | None = None
    """The answer as text, or as JSON when it is data; at most `SHORT` characters."""
    error: str | None = None
    """At most `SHORT` characters."""
    forked_from: str | None = None
    """The trajectory whose beginning this one shares."""


class Tally(Struct, kw_only=True):
    """A summary in the making: mutable, fed by `apply`."""

    id: str
    task: ev.TaskInfo
    agent: str | None = None
    ended: ev.Status | None = None
    scored: Score = msgspec.field(default_factory=Score)
    started_at: float = 0.0
    updated_at: float = 0.0
    finished_at: float | None = None
    steps: int = 0
    events: int = 0
    input_tokens: int | None = None
    output_tokens: int | None = None
    answer: str | None = None
    error: str | None = None
    forked_from: str | None = None
    asked: list[tuple[str, str | None]] = []
    """Questions without a reply, with the tool calls that they belong to."""
    changed: bool = True
    """Whether anything but the running figures (times, steps, events, tokens) changed since this was last cleared."""

    @classmethod
    def of(cls, id: str, events: Iterable[ev.Event]) -> Tally:
        """The tally of a log."""
        tally = cls(id=id, task=ev.TaskInfo(id=id))
        for event in events:
            tally.apply(event)
        return tally

    @property
    def status(self) -> ev.Status:
        """As `Trajectory.status`."""
        return self.ended or ("waiting" if self.asked else "running")

    def apply(self, event: ev.Event) -> None:
        """Take one more event."""
        self.events += 1
        self.updated_at = event.at
        handler = _HANDLERS.get(type(event))
        if handler is not None:
            handler(self, event)

    def summary(self) -> Summary:
        """The record as it stands."""
        task = self.task
        return Summary(
            id=self.id,
            task_id=task.id,
            task_name=task.name,
            group_id=task.group_id,
            session_id=task.session_id,
            user_id=task.user_id,
            agent=self.agent,
            status=self.status,
            score=self.scored.value,
            started_at=self.started_at,
            updated_at=self.updated_at,
            finished_at=self.finished_at,
            steps=self.steps,
            events=self.events,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            answer=self.answer,
            error=self.error,
            forked_from=self.forked_from,
        )


def _started(tally: Tally, event: ev.Started) -> None:
    tally.task, tally.started_at, tally.changed = event.task, event.at, True
    tally.ended = tally.finished_at = tally.answer = tally.error = None
    tally.agent = tally.agent or next(iter(event.agents), None)
    tally.forked_from = event.forked_from.id if event.forked_from else None


def _agent_started(tally: Tally, event: ev.AgentStarted) -> None:
    if event.activation == 0:
        tally.agent, tally.changed = event.agent, True


def _model_call(tally: Tally, event: ev.ModelCalled) -> None:
    tally.steps = max(tally.steps, event.step + 1)
    usage = event.usage
    if usage is not None:
        if usage.input_tokens is not None:
            tally.input_tokens = (tally.input_tokens or 0) + usage.input_tokens
        if usage.output_tokens is not None:
            tally.output_tokens = (tally.output_tokens or 0) + usage.output_tokens


def _reward(tally: Tally, event: ev.Rewarded) -> None:
    tally.scored.add(event)
    tally.changed = True


def _asked(tally: Tally, event: ev.Asked) -> None:
    tally.asked, tally.changed = [*tally.asked, (event.id, event.call_id)], True


def _tool_result(tally: Tally, event: ev.ToolReturned) -> None:
    if tally.asked:  # a question of a closed call is moot
        left = [question for question in tally.asked if question[1] != event.call_id]
        tally.changed = tally.changed or len(left) < len(tally.asked)
        tally.asked = left


def _answered(tally: Tally, event: ev.Answered) -> None:
    tally.asked, tally.changed = [question for question in tally.asked if question[0] != event.id], True


def _finished(tally: Tally, event: ev.Finished) -> None:
    tally.ended, tally.finished_at, tally.changed = event.status, event.at, True
    tally.answer = None if event.answer is None else shorten(answer_text(event.answer))
    tally.error = None if event.error is None else shorten(event.error)


_HANDLERS: dict[type, Any] = {
    ev.Started: _started,
    ev.AgentStarted: _agent_started,
    ev.ModelCalled: _model_call,
    ev.Rewarded: _reward,
    ev.ToolReturned: _tool_result,
    ev.Asked: _asked,
    ev.Answered: _answered,
    ev.Finished: _finished,
}


def answer_text(answer: Any) -> str:
    """An answer as one text: text as it is, anything else as JSON."""
    return answer if isinstance(answer, str) else msgspec.json.encode(answer).decode()


def shorten(text: str, length: int = SHORT) -> str:
    """`text` cut to `length` characters, the cut shown by an ellipsis."""
    return text if len(text) <= length else text[: length - 1] + "…"
