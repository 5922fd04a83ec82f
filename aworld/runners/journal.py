"""What writes the log of a run: the journal adds events, the recorder writes messages and model calls with it.

Memory is ahead of the store by what has been added since the last `commit`. Two points of a step wait for the disk:
after a model's reply, before its tools run, so that an action is on record before it has an effect; and the end.

A call has two leaves. The conversation is what an agent remembers; the prompt is what this one call shows, which may
have more or less (retrieved memory, a rewritten message). Both are paths of one graph, and share its nodes with their
origin: what a model said stays what a model said, wherever it is shown, and a log grows linearly whatever is put in.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from numbers import Real
from threading import RLock
from typing import Any, TypeAlias, TypeVar
from weakref import ref

import msgspec

from aworld.core import event as ev
from aworld.core.agent.base import plain
from aworld.core.event import Answered, Commanded, Event, Note, Rewarded, now
from aworld.core.exceptions import ModelError, TaskError
from aworld.core.message import Message, Origin, Tokens, ToolCall
from aworld.core.model import Model, ModelRequest
from aworld.core.output import AnyOutput
from aworld.core.run_environment import Reward
from aworld.core.tool.base import Clock
from aworld.core.trajectory import Activation, Trajectory
from aworld.models.call import CallFailed, Outcome, Tries
from aworld.trajectory.store import Lease, TrajectoryStore

E = TypeVar("E")


class Journal:
    """Writes one trajectory, as long as its run holds the lease."""

    __slots__ = (
        "__weakref__", "_kept", "_least", "_outbox", "_sent", "clocks", "held", "lease", "lock", "record", "store",
        "topics",
    )  # fmt: skip

    def __init__(self, record: Trajectory, store: TrajectoryStore) -> None:
        self.record = record
        self.store = store
        self.topics = store.hub.topics
        """The runs that somebody reads right now, by id."""
        self.lease: Lease | None = None
        self._kept: Lease | None = None
        """The lease after its release: a store that keeps nothing knows the run as long as this is held."""
        self.held = False
        """Whether nothing is handed on until the end is written, because a resume would not come to the same end."""
        self.clocks: dict[tuple[int, str], Clock] = {}
        """Those of tool calls at work, by activation and id: one that is interrupted may not have begun."""
        self.lock = RLock()
        """Held while the log is written: tools in threads set state."""
        self._least = record.events[-1].at if record.events else 0.0
        """When the log was left: by the clock of another machine that may be later than it is here."""
        self._outbox: list[Event] = []
        self._sent: set[tuple[type, float]] = set()
        """Notes that this journal gave: the record has them already when the store tells of them."""

    def add(self, kind: Callable[..., E], **fields: Any) -> E:
        """Append an event of this kind. Its number and time are set here."""
        with self.lock:
            at = now()
            event: Any = kind(seq=len(self.record.events), at=at if at > self._least else self._least, **fields)
            self.record.apply(event)
            self._outbox.append(event)
        return event

    def commit(self, *, wait: bool = True) -> Awaitable[None]:
        """Hand everything added to the store; await the result to know that it is durable. Raises `StoreError`.

        Without `wait` nothing is waited for; it is durable within milliseconds.
        """
        events: list[Event] = []
        if not self.held:
            with self.lock:
                events, self._outbox = self._outbox, events
        return self.store.append(self.record.id, events, wait=wait)

    async def claim(self, alarm: Callable[[], None] | None = None) -> None:
        """Become the one that writes this log; `alarm` rings when something comes into the inbox, or the lease is lost.

        Raises `LeaseError` when a live owner works on the run.
        """
        if self.lease is None:
            seen = self.record.notes[-1].seq if self.record.notes else -1
            self.lease = await self.store.claim(self.record.id, new=not self.record.events, notes_after=seen)
            self.lease.alarm = alarm

    async def catch_up(self) -> None:
        """Take in what others wrote after the record was read and before the run was claimed."""
        for event in await self.store.read(self.record.id, after=self.record.events[-1].seq):
            self.record.apply(event)

    def stay(self) -> None:
        """The run has ended: nobody is held off, and what is said about it is heard as long as its record is held."""
        if self.lease is not None:  # no circle: what nobody holds is gone without the garbage collector
            self.lease.alarm = partial(_hear, ref(self))

    def release(self) -> None:
        """Let others go on with the run."""
        lease, self.lease = self.lease, None
        if lease is not None:
            self._kept, lease.alarm = lease, None
            self.store.release(lease)

    def note(self, note: Note) -> Awaitable[Any]:
        """Give a note about the run. It counts at once; await the result to know that it is durable."""
        note = msgspec.structs.replace(note, seq=len(self.record.notes))  # unless somebody else is faster
        self._sent.add((type(note), note.at))
        self.record.apply_note(note)
        return self.store.note(self.record.id, [note])

    def news(self) -> Iterator[Commanded | Answered]:
        """The notes of others since the last look; those for the runtime itself to act on come out."""
        inbox = self.lease.inbox if self.lease is not None else None
        while inbox:
            note = inbox.popleft()
            if (type(note), note.at) not in self._sent:
                self.record.apply_note(note)
            if isinstance(note, Commanded | Answered):
                yield note

    def show(self, output: AnyOutput) -> None:
        """Tell readers of something that is not in the log."""
        self.store.hub.push(self.record.id, output)


def _hear(journal: ref[Journal]) -> None:
    if (held := journal()) is not None:
        for _ in held.news():
            pass


def give_reward(journal: Journal, value: float, **fields: Any) -> Awaitable[None]:
    """Reward a step, or the whole when `step` is None, by a note; `fields` are those of `Reward`. It counts at once;
    awaited, it is durable.

    Raises TaskError for a value that no sum could use, a step that the trajectory does not have, or a detail that JSON
    cannot hold.
    """
    reward = checked_reward(journal.record, Reward(value=value, **fields))
    return journal.note(Rewarded(seq=-1, at=now(), **reward))


def write_reward(journal: Journal, reward: Reward) -> None:
    """Add a reward to the run's own log, also one without a value. Raises TaskError as `give_reward` does."""
    journal.add(Rewarded, **checked_reward(journal.record, reward))


def checked_reward(record: Trajectory, reward: Reward) -> dict[str, Any]:
    """The fields of a reward as stored; one that says why it has no value needs none. Raises TaskError."""
    fields = msgspec.structs.asdict(reward)
    for label in ("value", "weight"):
        number: Any = fields[label]
        if number is None and label == "value" and reward.error is not None:
            continue
        if not isinstance(number, Real) or not math.isfinite(number):
            raise TaskError(f"A reward's {label} must be a finite number; got {number!r}.")
        fields[label] = float(number)
    try:
        step = msgspec.convert(fields | {"detail": None}, Reward).step
    except msgspec.ValidationError as error:  # written, it could not be read again
        raise TaskError(f"A reward has a field of a wrong type: {error}.") from error
    if step is not None and step not in record.calls:
        raise TaskError(f"Trajectory {record.id} has no step {step}; it has {len(record.calls)}, from 0.")
    fields["step"] = step
    try:
        fields["detail"] = plain(reward.detail)
        msgspec.json.encode(fields)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise TaskError(f"A reward's fields must be JSON-able: {error}") from error
    return fields


_Wanted: TypeAlias = "list[int | Message]"
"""A path to be: messages of another path, by their place in it, and messages that the log does not have."""


class Recorder:
    """Writes one log's messages and model calls."""

    __slots__ = ("_journal", "_record")

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._record = journal.record

    def add(
        self,
        at: Activation,
        message: Message | None,
        parent: int | None,
        origin: Origin,
        *,
        aside: bool = False,
        same_as: int | None = None,
        back_to: int | None = None,
    ) -> int:
        """Add a message behind another, or let a node (`same_as`) stand there too, or a whole piece back to `back_to`;
        returns its id."""
        id = self._record.next_message
        self._journal.add(
            ev.MessageAdded,
            id=id,
            parent=parent,
            agent=at.agent,
            activation=at.id,
            message=message,
            same_as=same_as,
            back_to=back_to,
            origin=origin,
            aside=aside,
        )
        return id

    def prompt(
        self,
        at: Activation,
        leaf: int | None,
        messages: Sequence[Message],
        *,
        aside: bool = True,
    ) -> int | None:
        """The leaf of a path that is `messages`; only what the log does not have is written.

        Args:
            at: Who is shown this.
            leaf: The branch from which most of it comes. Messages of it are known by identity, or as equals in their
                place.
            messages: From the first to the last.
            aside: Whether one call alone is shown this; else the conversation goes on from there.
        """
        ids = self._record.path_ids(leaf)
        wanted = self._wanted(ids, messages)
        if wanted == list(range(len(ids))):
            return leaf
        # The prompt before this one may have the same things put in: then this one goes on from it.
        before = at.last.prompt if aside and at.last is not None else None
        parent, done = max(
            self._shared(leaf, ids, wanted), self._shared(before, ids, wanted), key=lambda shared: shared[1]
        )
        nodes, links = self._record.messages, self._record.links(leaf)
        begins = {0 if n == 0 else links[n - 1][1]: id for n, (id, _) in enumerate(links)}
        ends = {count - 1: id for id, count in links}
        while done < len(wanted):
            place = wanted[done]
            if isinstance(place, Message):
                parent = self.add(at, place, parent, "agent", aside=aside)
                done += 1
                continue
            first, last, length = self._piece(ids, wanted[done:], begins, ends)
            origin_there, piece = nodes[last].origin, None if first == last else first
            parent = self.add(at, None, parent, origin_there, aside=aside, same_as=last, back_to=piece)
            done += length
        return parent

    def _wanted(self, ids: Sequence[int], messages: Sequence[Message]) -> _Wanted:
        nodes = self._record.messages
        places = {id(nodes[node].message): place for place, node in enumerate(ids)}
        wanted: _Wanted = []
        place = 0
        for message in messages:
            there = places.get(id(message))
            if there is None:  # an equal one in its place, or behind one that was rewritten
                near = range(place, min(place + 2, len(ids)))
                there = next((n for n in near if nodes[ids[n]].message == message), None)
            wanted.append(message if there is None else there)
            place = place if there is None else there + 1
        return wanted

    def _shared(self, leaf: int | None, ids: Sequence[int], wanted: _Wanted) -> tuple[int | None, int]:
        """The last node on the way to `leaf` up to which the path is as wanted, and how many messages that are."""
        if leaf is None:
            return None, 0
        nodes = self._record.messages
        same = 0
        for node, item in zip(self._record.path_ids(leaf), wanted):
            if (nodes[node].message != item) if isinstance(item, Message) else (node != ids[item]):
                break
            same += 1
        fitting = [link for link in self._record.links(leaf) if link[1] <= same]
        return fitting[-1] if fitting else (None, 0)

    def _piece(
        self, ids: Sequence[int], wanted: _Wanted, begins: dict[int, int], ends: dict[int, int]
    ) -> tuple[int, int, int]:
        """The longest piece of the other path with which `wanted` begins: its first and last node, and its length."""
        place = wanted[0]
        assert isinstance(place, int)  # callers come here with messages of the other path only
        run = 1
        while run < len(wanted) and wanted[run] == place + run:
            run += 1
        if place in begins:
            for length in range(run, 0, -1):
                if place + length - 1 in ends:
                    return begins[place], ends[place + length - 1], length
        length = 1  # it begins within a piece: up to where its messages stand in a row
        while length < run and self._record.messages[ids[place + length]].parent == ids[place + length - 1]:
            length += 1
        return ids[place], ids[place + length - 1], length

    def call(
        self,
        at: Activation,
        step: int,
        prompt: int | None,
        toolset: tuple[str | None, tuple[dict[str, Any], ...]],
        outcome: Outcome | ModelError | Message,
        *,
        model: Model | None = None,
        request: ModelRequest | None = None,
        used: Message | None = None,
        started: float = 0.0,
    ) -> Message | None:
        """Write a decision, whatever came of it; returns the message that is used, None where there is none.

        `prompt` is the leaf of what was shown; `toolset` what was offered, and its digest (see `describe`); `outcome`
        what the `model` answered to the `request` as it was sent, why it did not, or what code decided that began to
        at `started` (UNIX seconds). `used` takes the place of the model's message, where a hook has rewritten it.
        """
        message: Message | None = None
        fields: dict[str, Any]
        if isinstance(outcome, Message):
            message = valid(outcome)
            reply = self.add(at, message, at.leaf, "agent")
            fields = {"reply": reply, "started": started, "ended": now()}
        elif isinstance(outcome, Outcome):
            message, fields = self._answered(at, outcome, used)
            model, request = outcome.asked or (model, request)
        else:  # no try brought an answer
            failed_at = now()
            tries = outcome.outcome if isinstance(outcome, CallFailed) else Tries((), 0.0, failed_at, failed_at)
            fields = {"error": str(outcome)} | {name: getattr(tries, name) for name in Tries.__struct_fields__}
        if model is not None and request is not None:
            fields.setdefault("model", model.name)
            fields["provider"], fields["params"] = model.provider, _params(model, request)
        digest, tools = toolset
        if digest is not None and digest not in self._record.toolsets:
            self._journal.add(ev.ToolsetOffered, digest=digest, tools=tools)
        self._journal.add(
            ev.ModelCalled, step=step, agent=at.agent, activation=at.id, prompt=prompt, toolset=digest, **fields
        )
        return message

    def _answered(self, at: Activation, outcome: Outcome, used: Message | None) -> tuple[Message, dict[str, Any]]:
        reply, leaf = outcome.reply, at.leaf
        message = valid(reply.message)
        fields: dict[str, Any] = {
            "reply": self.add(at, message, leaf, "model"),
            "finish_reason": reply.finish_reason,
            "response_id": reply.response_id,
            "usage": reply.usage,
            "tokens": None if reply.tokens is None else _delta(self._record, at, reply.tokens),
            "started": outcome.started,
            "first_token": reply.first_token,
            "ended": outcome.ended,
            "attempts": outcome.attempts,
            "queued": outcome.queued,
        }
        if reply.model:
            fields["model"] = reply.model
        if used is not None and used is not reply.message:
            message = valid(used)
            self.add(at, message, leaf, "agent")
        return message, fields


def _params(model: Model, request: ModelRequest) -> dict[str, Any]:
    if not request.params and request.output is None:
        return model.params
    params = {**model.params, **request.params}
    if request.output is not None:
        params["output"] = {"name": request.output.name, "schema": request.output.schema}
    return params


def _delta(record: Trajectory, activation: Activation, tokens: Tokens) -> Tokens:
    """Tokens as stored: the prompt without what the agent's previous call already holds."""
    last = activation.last
    before = record.tokens(last) if last is not None and tokens.level == "tokens" else None
    if last is None or before is None or before.level != "tokens":
        return tokens
    prefix = (before.prompt_ids or ()) + (before.completion_ids or ())
    prompt = tokens.prompt_ids or ()
    if prompt[: len(prefix)] != prefix:
        return tokens
    return Tokens(
        prompt[len(prefix) :], tokens.completion_ids, tokens.logprobs, last.step,
        tokens.policy_version, tokens.tokenizer, tokens.chat_template,
    )  # fmt: skip


def valid(message: Message) -> Message:
    """A message that the log and every provider can take.

    Answers are matched to calls by id, so an id that a model left out or used twice is made unique; and text that is no
    Unicode (half of a surrogate pair) is written out.
    """
    try:
        msgspec.json.encode(message)
    except UnicodeEncodeError:
        message = _written_out(message)
    calls = message.tool_calls
    if not calls or (len(calls) == 1 and calls[0].id):
        return message
    if len({call.id for call in calls}) == len(calls) and all(call.id for call in calls):
        return message
    unique: dict[str, ToolCall] = {}
    for number, call in enumerate(calls):
        id = call.id or "call"
        while id in unique:
            id = f"{id}-{number}"
        unique[id] = ToolCall(id, call.name, call.arguments)
    return msgspec.structs.replace(message, tool_calls=tuple(unique.values()))


def _written_out(message: Message) -> Message:
    def text(value: str) -> str:
        return value.encode("utf-8", "backslashreplace").decode()

    return msgspec.structs.replace(
        message,
        content=text(message.content) if isinstance(message.content, str) else message.content,
        reasoning=None if message.reasoning is None else text(message.reasoning),
        tool_calls=tuple(ToolCall(text(c.id), text(c.name), text(c.arguments)) for c in message.tool_calls),
    )
