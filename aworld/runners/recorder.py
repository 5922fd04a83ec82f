"""The recorder: writes the graph of messages and the calls of models, for the runtime as for foreign agents.

A call has two leaves. The conversation is what an agent remembers; the prompt is what this one call shows, which may
have more or less (retrieved memory, a rewritten message). Both are paths of one graph, and share its nodes with their
origin: what a model said stays what a model said, wherever it is shown, and a log grows linearly whatever is put in.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec

from aworld.core import event as ev
from aworld.core.exceptions import ModelError
from aworld.core.message import Message, Origin, Tokens, ToolCall
from aworld.core.model import Model, ModelRequest
from aworld.core.trajectory import Activation, Trajectory
from aworld.models.call import CallFailed, Outcome, Tries
from aworld.runners.journal import Journal

_Wanted: TypeAlias = "list[int | Message]"
"""A path to be: messages of another path, by their place in it, and messages that the log does not have."""


class Recorder:
    """Writes one log's messages and model calls."""

    __slots__ = ("_journal", "_record")

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._record = journal.record

    def add(self, at: Activation, message: Message, parent: int | None, origin: Origin, *, aside: bool = False) -> int:
        """Add a message behind another; returns its id."""
        id = self._record.next_message
        self._journal.add(
            ev.MessageAdded,
            id=id,
            parent=parent,
            agent=at.agent,
            activation=at.id,
            message=message,
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
        origin: Origin = "agent",
    ) -> int | None:
        """The leaf of a path that is `messages`; only what the log does not have is written.

        Args:
            at: Who is shown this.
            leaf: The branch from which most of it comes. Messages of it are known by identity, or as equals in their
                place.
            messages: From the first to the last.
            aside: Whether one call alone is shown this; else the conversation goes on from there.
            origin: Of messages that are new.
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
        links = self._record.links(leaf)
        begins = {0 if n == 0 else links[n - 1][1]: id for n, (id, _) in enumerate(links)}
        ends = {count - 1: id for id, count in links}
        while done < len(wanted):
            place = wanted[done]
            if isinstance(place, Message):
                parent = self.add(at, place, parent, origin, aside=aside)
                done += 1
                continue
            first, last, length = self._piece(ids, wanted[done:], begins, ends)
            parent = self._again(at, parent, first, last, aside)
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

    def _again(self, at: Activation, parent: int | None, first: int, last: int, aside: bool) -> int:
        """Let a node, or a whole piece from `first` to `last`, stand behind `parent` too."""
        id = self._record.next_message
        self._journal.add(
            ev.MessageAdded,
            id=id,
            parent=parent,
            agent=at.agent,
            activation=at.id,
            same_as=last,
            back_to=None if first == last else first,
            origin=self._record.messages[last].origin,
            aside=aside,
        )
        return id

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

        Args:
            at: Who decided.
            step: Its number.
            prompt: The leaf of what was shown.
            toolset: What was offered, and its digest; see `describe`.
            outcome: What a model answered, why none did, or what code decided.
            model: The model that was asked; None when code decided.
            request: As it was sent.
            used: What takes the place of the model's message, where a hook has rewritten it.
            started: When code began to decide, UNIX seconds.
        """
        message: Message | None = None
        if isinstance(outcome, Message):
            message = valid(outcome)
            fields: dict[str, Any] = {
                "reply": self.add(at, message, at.leaf, "agent"),
                "started": started,
                "ended": time.time(),
            }
        elif isinstance(outcome, Outcome):
            message, fields = self._answered(at, outcome, used)
        else:
            fields = _failed(outcome)
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


def _failed(error: ModelError) -> dict[str, Any]:
    """What is written of a call that no try brought an answer to."""
    now = time.time()
    tries = error.outcome if isinstance(error, CallFailed) else Tries((), 0.0, now, now)
    return {"error": str(error)} | {name: getattr(tries, name) for name in Tries.__struct_fields__}


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
    seen: set[str] = set()
    unique: list[ToolCall] = []
    for number, call in enumerate(calls):
        id = call.id or "call"
        while id in seen:
            id = f"{id}-{number}"
        seen.add(id)
        unique.append(ToolCall(id, call.name, call.arguments))
    return msgspec.structs.replace(message, tool_calls=tuple(unique))


def _written_out(message: Message) -> Message:
    def text(value: str) -> str:
        return value.encode("utf-8", "backslashreplace").decode()

    return msgspec.structs.replace(
        message,
        content=text(message.content) if isinstance(message.content, str) else message.content,
        reasoning=None if message.reasoning is None else text(message.reasoning),
        tool_calls=tuple(ToolCall(text(c.id), text(c.name), text(c.arguments)) for c in message.tool_calls),
    )
