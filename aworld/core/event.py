"""The events of the log, and the notes about it, schema version 3.

A run is a sequence of immutable events with dense numbers from 0, written by its owner alone. Notes are a second
sequence about the same run, which anybody may write at any time; the store numbers them. Everything else (the answer,
the rows, the stream, the checkpoint, the training sample) is a fold of the two. Field names are stored: a change that
an older reader cannot take raises `SCHEMA_VERSION`, gets a line here and a fixture in the tests.

    1   2026-11   first version
    2   2026-11   a reward may have failed: `value` null, and `error`; `finished` tells whether the surroundings failed
    3   2026-11   notes; labels; definitions by digest (`started.definitions`; stores keep bodies of agents and toolsets
                  once); `started.after`; the kinds `compacted`, `artifact` and `noted`; unknown kinds are read as
                  `Unknown`
"""

from __future__ import annotations

import time
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import Struct

from aworld.core.message import Content, Message, Origin, Tokens, Usage

SCHEMA_VERSION = 3

Status: TypeAlias = Literal[
    "finished", "failed", "timeout", "cancelled", "limit_reached", "usage_unknown", "interrupted", "waiting", "running"
]
"""`interrupted` and `usage_unknown` stand in responses, not in logs: there the run has not ended, and can go on."""


class Entry(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", gc=False):
    """What every event has.

    Events and messages are JSON-able, so none contains itself, and the garbage collector need not look at them
    (`gc=False`): a run holds many for long, and looking cost a twelfth of its CPU.
    """

    seq: int
    """Place in the log, from 0, without gaps."""
    at: float
    """UNIX seconds, by `now`: those of one log never go back."""


class TaskInfo(Struct, frozen=True, omit_defaults=True, gc=False):
    """Who asked for the run."""

    id: str
    name: str | None = None
    session_id: str | None = None
    user_id: str | None = None
    group_id: str | None = None
    labels: dict[str, str] = {}
    """Which one it is among others: `run`, `problem`, `sample`, `attempt`, `split`, … and whatever the caller says."""


class Fork(Struct, frozen=True, gc=False):
    """The point of another trajectory from which this one goes on: its events before `seq` are shared."""

    id: str
    seq: int


class Started(Entry, frozen=True, tag="started", kw_only=True, omit_defaults=True):
    """A run began. In a forked trajectory this event stands where the shared prefix ends."""

    trajectory_id: str
    task: TaskInfo
    agents: dict[str, Any] = {}
    """Definitions of the agents and teams by name, as used; secrets left out. Stores keep each once, by its digest."""
    definitions: dict[str, str] = {}
    """Digests of those definitions, by name."""
    conf: dict[str, Any] = {}
    """The task's limits, those that are not the default."""
    parent: str | None = None
    """Trajectory that caused this one."""
    forked_from: Fork | None = None
    after: bool = False
    """Whether this goes on from the end of the trajectory in `forked_from` as the next turn of a conversation: it
    shares that one's messages; its steps, limits, usage and rewards are its own."""
    environment: str | None = None
    """Name of the environment whose episode this is: its state is not in the log, so it cannot be resumed."""
    deps: str | None = None
    """Where the function that made the dependencies of the run is imported from, `module:name`; with `<...>` in it
    where nobody else can import it, or where a value was given. What they are is never stored."""
    versions: dict[str, str] = {}
    schema: int = 1
    """Version of the schema that the log was written in. Defaults are not stored, so this is not `SCHEMA_VERSION`."""


class ToolsetOffered(Entry, frozen=True, tag="toolset", kw_only=True, omit_defaults=True):
    """The tool schemas that an agent was offered, once for each distinct set."""

    digest: str
    tools: tuple[dict[str, Any], ...] = ()
    """Stores keep them once, by the digest."""


class MessageAdded(Entry, frozen=True, tag="message", kw_only=True, omit_defaults=True):
    """A node of the message graph."""

    id: int
    parent: int | None = None
    agent: str
    activation: int = 0
    message: Message | None = None
    same_as: int | None = None
    """The node that holds the message, where it stands in a second branch: each message is stored once."""
    back_to: int | None = None
    """The whole piece of another branch stands here that begins at this node and ends at `same_as`."""
    aside: bool = False
    """Part of what one call was shown: the conversation does not go on from here."""
    origin: Origin


class Attempt(Struct, frozen=True, omit_defaults=True, gc=False):
    """A failed try of a model call, or of a tool that is tried again."""

    at: float
    error: str
    status: int | None = None
    waited: float = 0.0
    """Seconds waited after it, before the next try."""
    model: str | None = None
    """Which model was asked, such as `openai:gpt-4o`, where several may answer."""


class ModelCalled(Entry, frozen=True, tag="model_call", kw_only=True, omit_defaults=True):
    """One decision of one agent. `model` is None when code decided; `reply` is None when every try failed."""

    step: int
    agent: str
    activation: int = 0
    prompt: int | None = None
    """Message id of the leaf whose path was sent."""
    toolset: str | None = None
    provider: str | None = None
    model: str | None = None
    params: dict[str, Any] = {}
    reply: int | None = None
    error: str | None = None
    finish_reason: str | None = None
    response_id: str | None = None
    usage: Usage | None = None
    tokens: Tokens | None = None
    started: float
    first_token: float | None = None
    ended: float
    attempts: tuple[Attempt, ...] = ()
    """The failed tries."""
    queued: float = 0.0
    """Seconds waited for the provider's limiter."""


class ToolCalled(Entry, frozen=True, tag="tool_call", kw_only=True, omit_defaults=True):
    """A tool is about to run, or to run again with a person's answer. `result` is the message id kept for its answer,
    so that answers stand in the order of the calls whichever ends first."""

    step: int
    activation: int = 0
    call_id: str
    name: str
    arguments: str
    """As received."""
    result: int
    idempotent: bool = False
    """Whether it may run again when the process dies in mid-call."""


class ToolReturned(Entry, frozen=True, tag="tool_result", kw_only=True, omit_defaults=True):
    """A tool call is closed. `result` is the id of the message that the model reads; `error` says what went wrong."""

    step: int
    activation: int = 0
    call_id: str
    name: str
    result: int
    arguments: str | None = None
    """What the tool was called with, where a hook rewrote it."""
    original: tuple[Content, str | None] | None = None
    """What the tool itself answered, and its error, where a hook rewrote that."""
    error: str | None = None
    duration: float | None = None
    """Seconds."""
    usage: Usage | None = None
    """What models used that the tool asked; those calls are not in the log."""
    attempts: tuple[Attempt, ...] = ()
    """The failed tries."""


class AgentStarted(Entry, frozen=True, tag="agent_started", kw_only=True, omit_defaults=True):
    """An agent began its work in a branch of its own. `caller` is the activation that called it, by `call_id`."""

    activation: int
    agent: str
    caller: int | None = None
    call_id: str | None = None
    node: str | None = None
    """Place in the topology."""


class AgentFinished(Entry, frozen=True, tag="agent_finished", kw_only=True, omit_defaults=True):
    """An agent ended its work with an answer, or with an error."""

    activation: int
    agent: str
    answer: Any = None
    error: str | None = None
    handoff: str | None = None
    """The agent to which control passes; `answer` is then what it is told."""


class Rewarded(Entry, frozen=True, tag="reward", kw_only=True, omit_defaults=True):
    """A reward for one step, or for the whole when `step` is None."""

    value: float | None
    """None when it could not be computed: unknown, not zero."""
    name: str = "reward"
    weight: float = 1.0
    step: int | None = None
    source: str | None = None
    detail: Any = None
    error: str | None = None
    """Why there is no value."""


class StateSet(Entry, frozen=True, tag="state", kw_only=True, omit_defaults=True):
    """A key of the task's context was set."""

    key: str
    value: Any = None
    activation: int | None = None


class Asked(Entry, frozen=True, tag="asked", kw_only=True, omit_defaults=True):
    """A person was asked."""

    id: str
    question: str
    step: int | None = None
    activation: int = 0
    call_id: str | None = None


class Answered(Entry, frozen=True, tag="answered", kw_only=True, omit_defaults=True):
    """The person's reply."""

    id: str
    answer: str


class Compacted(Entry, frozen=True, tag="compacted", kw_only=True, omit_defaults=True):
    """What an agent remembers of its conversation was replaced: its branch ended at `before` and goes on at `after`."""

    activation: int = 0
    before: int | None
    after: int
    strategy: str
    tokens_before: int | None = None
    tokens_after: int | None = None


class ArtifactKept(Entry, frozen=True, tag="artifact", kw_only=True, omit_defaults=True):
    """A file that the run made, changed or deleted; the last one of a name counts. Contents are blobs of the store."""

    name: str
    """Its path in `folder`, with `/`."""
    folder: str
    """The folder of which the run works on a copy."""
    digest: str | None = None
    """SHA-256 of the content; None for one that was deleted."""
    before: str | None = None
    """The same of what it was before the run; None for one that was not there."""
    size: int = 0
    """Bytes."""
    executable: bool | None = None
    """Whether it may be executed, where that has changed."""


class Noted(Entry, frozen=True, tag="noted", kw_only=True, omit_defaults=True):
    """Something for which the fold needs no kind of its own: a comment, a verdict, what a hook wants kept."""

    source: str
    """Who says it, such as `runtime`, `evaluation` or a user's name."""
    name: str
    data: Any = None
    step: int | None = None
    activation: int | None = None


class Finished(Entry, frozen=True, tag="finished", kw_only=True, omit_defaults=True):
    """The run ended. Exactly one, always the last of the run; rewards may follow."""

    status: Status
    answer: Any = None
    error: str | None = None
    surroundings: bool = False
    """The run failed for a reason that is not the agent's: its environment died, or no model could be reached. It may
    be run again, and is no sample of what the agent does."""


class Labelled(Entry, frozen=True, tag="label", kw_only=True, omit_defaults=True):
    """Labels were set, or removed where the value is None."""

    labels: dict[str, str | None]
    source: str | None = None


class Commanded(Entry, frozen=True, tag="command", kw_only=True, omit_defaults=True):
    """Somebody wants something of the run: its owner obeys at the next turn, and cancels at once."""

    action: Literal["cancel", "pause", "steer"]
    text: str | None = None
    """What is said to the agent (`steer`), or why."""
    source: str | None = None


class Unknown(Entry, frozen=True, tag="unknown", kw_only=True):
    """An entry of a kind that a newer AWorld writes."""

    name: str
    """The kind."""
    raw: bytes
    """The JSON, as it was stored."""


_OfRun: TypeAlias = (
    Started | ToolsetOffered | MessageAdded | ModelCalled | ToolCalled | ToolReturned | AgentStarted | AgentFinished
    | Rewarded | StateSet | Asked | Answered | Compacted | ArtifactKept | Noted | Finished
)  # fmt: skip
Event: TypeAlias = _OfRun | Unknown

Note: TypeAlias = Rewarded | Answered | Labelled | Commanded | Noted | Unknown
"""An entry about a run by anybody. Its `seq` is its place among the notes, set by the store: -1 before."""

_Known: TypeAlias = _OfRun | Labelled | Commanded


class _Head(Struct):
    kind: str
    seq: int
    at: float


_ahead = time.time() - time.monotonic()


def now() -> float:
    """UNIX seconds as the log has them. They never go back: where the wall clock is set back, they go on as seconds
    pass; where it is set forward, or the machine has slept, they follow."""
    global _ahead
    wall = time.time()
    passed = time.monotonic()  # after it: what interrupts us between the two must not set the log's clock forward
    if wall - passed > _ahead:
        _ahead = wall - passed
    return _ahead + passed


_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_Known)
_list_decoder: msgspec.json.Decoder[list[Any]] = msgspec.json.Decoder(list[_Known])
_KINDS = frozenset(kind.__struct_config__.tag for kind in _Known.__args__)


def encode_event(event: Event | Note) -> bytes:
    """JSON bytes of an entry, as stored."""
    return event.raw if type(event) is Unknown else _encoder.encode(event)


def decode_event(data: bytes) -> Any:
    """The event or note of its JSON bytes. Fields of newer writers are passed over, kinds of theirs come as `Unknown`.

    Raises `msgspec.DecodeError`.
    """
    try:
        return _decoder.decode(data)
    except msgspec.ValidationError:
        head = msgspec.json.decode(data, type=_Head)
        if head.kind in _KINDS:
            raise
        return Unknown(seq=head.seq, at=head.at, name=head.kind, raw=bytes(data))


def decode_events(pieces: list[bytes]) -> list[Any]:
    """Many at once, at half the cost. Raises as `decode_event` does."""
    try:
        return _list_decoder.decode(b"[" + b",".join(pieces) + b"]")
    except msgspec.ValidationError:
        return [decode_event(piece) for piece in pieces]
