"""What a list of runs shows of each: one flat record, kept up to date event by event.

`Tally` is the small fold behind it. It holds less than a `Trajectory` (no messages, no graph), so that a store can
keep one for every running task, write it beside the events in the same transaction, and take it up again from what
it wrote.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin

import msgspec
from msgspec import Struct

from aworld.core import event as ev
from aworld.core.message import Usage
from aworld.core.trajectory import RUNTIME, Score

SHORT = 500
"""Characters of an answer or an error that a summary keeps."""


class Summary(Struct, kw_only=True):
    """One run at a glance. Times are UNIX seconds; None means unknown or not yet.

    The fields are the columns of a list of runs: a query may ask for each and order by each, and stores make their
    tables of them.
    """

    id: str
    """Trajectory id."""
    task_id: str
    task_name: str | None = None
    group_id: str | None = None
    session_id: str | None = None
    user_id: str | None = None
    agent: str | None = None
    """The agent that began."""
    version: str | None = None
    """Digest of that agent's definition."""
    environment: str | None = None
    """The environment whose episode it is."""
    model: str | None = None
    """The first model that was called."""
    status: ev.Status = "running"
    score: float | None = None
    """Sum of weight times value of all rewards; None until one is given, and while one that counts has failed."""
    started_at: float = 0.0
    updated_at: float = 0.0
    """When its last event or note happened."""
    finished_at: float | None = None
    duration: float | None = None
    """Seconds from the start to the end."""
    steps: int = 0
    events: int = 0
    """Events of the whole log, the shared prefix of a fork included."""
    notes: int = 0
    """Notes about it."""
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost: float | None = None
    """US dollars."""
    answer: str | None = None
    """The answer as text, or as JSON when it is data; at most `SHORT` characters."""
    error: str | None = None
    """At most `SHORT` characters."""
    forked_from: str | None = None
    """The trajectory whose beginning this one shares."""
    labels: dict[str, str] = {}
    """Which one it is among others, such as `run`, `problem` and `sample`."""


class Column(NamedTuple):
    """A field of a summary as a column of a table."""

    name: str
    type: type[str] | type[int] | type[float]
    optional: bool
    """Whether it may be unknown."""


def _column(name: str, type: Any) -> Column:
    kinds = [kind for kind in get_args(type) if kind is not NoneType]
    optional = NoneType in get_args(type)
    plain = kinds[0] if optional else str if get_origin(type) is Literal else type
    return Column(name, plain, optional)


COLUMNS: dict[str, Column] = {
    field.name: _column(field.name, field.type) for field in msgspec.structs.fields(Summary) if field.name != "labels"
}
"""The columns of a list of runs, generated from `Summary`; labels have a table of their own."""


class Tally(Summary, kw_only=True):
    """A summary in the making, fed by `apply` and `apply_note`."""

    key: int = 0
    """The number that its store gave it, in the order of writing."""
    definitions: dict[str, str] = {}
    scored: Score = msgspec.field(default_factory=Score)
    asked: list[tuple[str, str | None]] = []
    """Questions without a reply, with the tool calls that they belong to."""
    paused: bool = False

    @classmethod
    def of(cls, id: str, events: Iterable[ev.Event], notes: Iterable[ev.Note] = ()) -> Tally:
        """The tally of a log and the notes about it."""
        tally = cls(id=id, task_id=id)
        tally.apply(*events)
        for note in notes:
            tally.apply_note(note)
        return tally

    @property
    def ended(self) -> ev.Status | None:
        """The status with which the run has ended; None while it goes on."""
        return None if self.finished_at is None else self.status

    def apply(self, *events: ev.Event) -> None:
        """Take the next events."""
        for event in events:
            handler = _HANDLERS.get(type(event))
            if handler is not None:
                handler(self, event)
        if events:
            self.events += len(events)
            self.updated_at = max(self.updated_at, events[-1].at)

    def apply_note(self, note: ev.Note) -> None:
        """Take one more note."""
        self.notes += 1
        self.updated_at = max(self.updated_at, note.at)
        handler = _NOTES.get(type(note))
        if handler is not None:
            handler(self, note)

    def wait(self, asked: list[tuple[str, str | None]], paused: bool) -> None:
        """Wait for replies to these questions and for the end of a pause, or for nothing."""
        self.asked, self.paused = asked, paused
        if self.finished_at is None:
            self.status = "waiting" if asked or paused else "running"

    def summary(self) -> Summary:
        """The record as it stands."""
        return Summary(**dict(zip(_FIELDS, _values(self))))


_FIELDS = Summary.__struct_fields__
_values = attrgetter(*_FIELDS)


def _started(tally: Tally, event: ev.Started) -> None:
    if event.after:  # the next turn of a conversation shares the messages of the one before, and no figures
        tally.scored, tally.asked, tally.steps, tally.model = Score(), [], 0, None
        tally.input_tokens = tally.output_tokens = tally.cost = tally.agent = tally.version = tally.score = None
    task = event.task
    tally.task_id, tally.task_name, tally.labels = task.id, task.name, task.labels
    tally.group_id, tally.session_id, tally.user_id = task.group_id, task.session_id, task.user_id
    tally.started_at, tally.finished_at, tally.duration, tally.answer, tally.error = event.at, None, None, None, None
    tally.environment, tally.definitions = event.environment, event.definitions
    tally.agent = tally.agent or next(iter(event.agents or event.definitions), None)
    tally.version = event.definitions.get(tally.agent or "", tally.version)
    tally.forked_from = event.forked_from.id if event.forked_from else None
    tally.wait(tally.asked, tally.paused)


def _agent_started(tally: Tally, event: ev.AgentStarted) -> None:
    if event.activation == 0:
        tally.agent = event.agent
        tally.version = tally.definitions.get(event.agent, tally.version)


def _model_call(tally: Tally, event: ev.ModelCalled) -> None:
    tally.steps = max(tally.steps, event.step + 1)
    tally.model = tally.model or event.model
    if event.usage is not None and event.model is not None:
        _spent(tally, event.usage)


def _spent(tally: Tally, usage: Usage) -> None:
    if usage.input_tokens is not None:
        tally.input_tokens = (tally.input_tokens or 0) + usage.input_tokens
    if usage.output_tokens is not None:
        tally.output_tokens = (tally.output_tokens or 0) + usage.output_tokens
    if usage.cost is not None:
        tally.cost = (tally.cost or 0.0) + usage.cost


def _reward(tally: Tally, event: ev.Rewarded) -> None:
    tally.scored.add(event)
    tally.score = tally.scored.value


def _asked(tally: Tally, event: ev.Asked) -> None:
    tally.wait([*tally.asked, (event.id, event.call_id)], tally.paused)


def _tool_result(tally: Tally, event: ev.ToolReturned) -> None:
    if tally.asked:  # a question of a closed call is moot
        tally.wait([question for question in tally.asked if question[1] != event.call_id], tally.paused)
    if event.usage is not None:
        _spent(tally, event.usage)


def _answered(tally: Tally, event: ev.Answered) -> None:
    tally.wait([question for question in tally.asked if question[0] != event.id], tally.paused)


def _labelled(tally: Tally, note: ev.Labelled) -> None:
    labels = {**tally.labels, **note.labels}
    tally.labels = {name: value for name, value in labels.items() if value is not None}


def _finished(tally: Tally, event: ev.Finished) -> None:
    tally.status, tally.finished_at, tally.duration = event.status, event.at, event.at - tally.started_at
    tally.answer = None if event.answer is None else shorten(answer_text(event.answer))
    tally.error = None if event.error is None else shorten(event.error)


def _noted(tally: Tally, event: ev.Noted) -> None:
    if event.source == RUNTIME:
        tally.wait(tally.asked, event.name == "pause")


_NOTES: dict[type, Any] = {ev.Rewarded: _reward, ev.Answered: _answered, ev.Labelled: _labelled}
_HANDLERS: dict[type, Any] = {
    ev.Started: _started,
    ev.AgentStarted: _agent_started,
    ev.ModelCalled: _model_call,
    ev.Rewarded: _reward,
    ev.ToolReturned: _tool_result,
    ev.Asked: _asked,
    ev.Answered: _answered,
    ev.Finished: _finished,
    ev.Noted: _noted,
}


def answer_text(answer: Any) -> str:
    """An answer as one text: text as it is, anything else as JSON."""
    return answer if isinstance(answer, str) else msgspec.json.encode(answer).decode()


def shorten(text: str, length: int = SHORT) -> str:
    """`text` cut to `length` characters, the cut shown by an ellipsis."""
    return text if len(text) <= length else text[: length - 1] + "…"
