"""One decision of one agent: what it sees, what is asked of its model, and how that is recorded.

The call is captured here, where the bytes pass: the messages that are sent are nodes of the graph before they are
sent, and a hook that rewrites them makes a branch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from aworld.core import event as ev
from aworld.core.agent.base import BaseAgent
from aworld.core.common import ActionResult, Observation
from aworld.core.context.base import Context
from aworld.core.exceptions import ModelError, TaskError
from aworld.core.hooks import HookContext, Hooks
from aworld.core.message import Message, Origin, Tokens, ToolCall
from aworld.core.model import Delta, Model, ModelReply, ModelRequest, OutputSchema, TextDelta, ToolSchema
from aworld.core.output import MessageOutput, ReasoningOutput, RetryOutput, TextOutput
from aworld.core.tool.toolkit import Offer, describe
from aworld.core.trajectory import Activation, Trajectory
from aworld.models.call import CallFailed, Outcome

if TYPE_CHECKING:
    from aworld.runners.episode import Episode


class AgentTurn:
    """What the runtime hands to `BaseAgent.decide`. Satisfies `aworld.core.agent.base.Turn`."""

    __slots__ = ("_messages", "activation", "agent", "called", "episode", "index", "leaf", "offer", "step")

    def __init__(
        self, episode: Episode, activation: Activation, agent: BaseAgent, offer: Offer, step: int, index: int
    ) -> None:
        self.episode = episode
        self.activation = activation
        self.agent = agent
        self.offer = offer
        self.step = step
        self.index = index
        """How many decisions this agent has begun before in this run."""
        self.leaf = activation.leaf
        self.called = False
        self._messages: tuple[Message, ...] | None = None

    @property
    def messages(self) -> tuple[Message, ...]:
        """The agent's branch of the conversation."""
        if self._messages is None:
            self._messages = self.episode.record.path(self.leaf)
        return self._messages

    @property
    def observation(self) -> Observation:
        """What came in since the agent's last decision."""
        return observe(self.episode.record, self.activation)

    @property
    def context(self) -> Context:
        """The state of the task."""
        return self.episode.state.context_of(self.activation)

    async def generate(self, model: Model, *, output: OutputSchema | None = None) -> Message:
        """Ask the model once; captured, retried, streamed. Raises `ModelError`."""
        if self.called:
            raise TaskError(f"Agent {self.agent.name!r} asked its model twice in one turn; one turn is one call.")
        self.called = True
        request = ModelRequest(
            self.messages, self.offer.schemas, {}, output, self.index, self.episode.record.id, self.agent.name
        )
        if self.episode.task.hooks:
            return await self._ask_with_hooks(model, request)
        try:
            outcome = await self._ask(model, request)
        except ModelError as error:
            self._record_failure(model, request, error)
            raise
        return self._record(model, request, outcome)

    async def _ask(self, model: Model, request: ModelRequest) -> Outcome:
        if self.episode.journal.emit is None:
            return await self.episode.world.ask(model, request)
        return await self.episode.world.ask(model, request, self._on_delta(), self._on_retry)

    async def _ask_with_hooks(self, model: Model, request: ModelRequest) -> Message:
        at = HookContext(self.episode.record, self.context, self.agent.name, self.step)
        entered: list[Hooks] = []
        outcome: Outcome | None = None
        reply: ModelReply | None = None
        error: BaseException | None = None
        try:
            for hook in self.episode.task.hooks:
                entered.insert(0, hook)
                request = await hook.before_model(at, request) or request
            self._branch(request.messages)
            outcome = await self._ask(model, request)
            reply = outcome.reply
        except BaseException as raised:  # noqa: BLE001 - raised again when every hook knows of it
            error = raised
        broken = error
        for hook in entered:
            try:
                told = error if isinstance(error, Exception) else None
                reply = await hook.after_model(at, request, reply, told) or reply
            except Exception as raised:  # noqa: BLE001 - the same
                broken = broken or raised
        if isinstance(error, ModelError):
            self._record_failure(model, request, error)
        if outcome is None:
            assert broken is not None  # there is an outcome or an error
            raise broken
        message = self._record(model, request, outcome, reply)
        if broken is not None:
            raise broken
        return message

    def _branch(self, messages: Sequence[Message]) -> None:
        """Make `messages` a path of the graph: what a hook rewrote is a branch from where it differs."""
        record, ids = self.episode.record, self.episode.record.path_ids(self.leaf)
        same = 0
        while same < min(len(ids), len(messages)) and record.messages[ids[same]].message == messages[same]:
            same += 1
        self.leaf = ids[same - 1] if same else None
        for message in messages[same:]:
            self.leaf = self._add_message(message, self.leaf, "agent")

    def _record(
        self, model: Model, request: ModelRequest, outcome: Outcome, rewritten: ModelReply | None = None
    ) -> Message:
        """Write the call and its tool calls; returns the message that is used."""
        reply = outcome.reply
        message = _valid(reply.message)
        prompt = self.leaf
        reply_id = self._add_message(message, prompt, "model")
        if rewritten is not None and rewritten.message is not reply.message:
            message = _valid(rewritten.message)
            self._add_message(message, prompt, "agent")
        self.episode.journal.add(
            ev.ModelCalled,
            step=self.step,
            agent=self.agent.name,
            activation=self.activation.id,
            prompt=prompt,
            toolset=self._toolset(request.tools),
            provider=model.provider,
            model=reply.model or model.name,
            params=_params(model, request),
            reply=reply_id,
            finish_reason=reply.finish_reason,
            response_id=reply.response_id,
            usage=reply.usage,
            tokens=None if reply.tokens is None else _delta(self.episode.record, self.activation, reply.tokens),
            started=outcome.started,
            first_token=reply.first_token,
            ended=outcome.ended,
            attempts=outcome.attempts,
            queued=outcome.queued,
        )
        self._open_calls(message.tool_calls)
        return message

    def decided(self, message: Message, started: float) -> Message:
        """Write a decision that code made, without a model."""
        message = _valid(message)
        prompt = self.leaf
        reply_id = self._add_message(message, prompt, "agent")
        self.episode.journal.add(
            ev.ModelCalled,
            step=self.step,
            agent=self.agent.name,
            activation=self.activation.id,
            prompt=prompt,
            toolset=self._toolset(self.offer.schemas),
            reply=reply_id,
            started=started,
            ended=time.time(),
        )
        self._open_calls(message.tool_calls)
        return message

    def _record_failure(self, model: Model, request: ModelRequest, error: ModelError) -> None:
        """Write a call that no try brought an answer to."""
        now = time.time()
        lost = error.outcome if isinstance(error, CallFailed) else None
        self.episode.journal.add(
            ev.ModelCalled,
            step=self.step,
            agent=self.agent.name,
            activation=self.activation.id,
            prompt=self.leaf,
            toolset=self._toolset(request.tools),
            provider=model.provider,
            model=model.name,
            params=_params(model, request),
            error=str(error),
            started=lost.started if lost else now,
            ended=lost.ended if lost else now,
            attempts=lost.attempts if lost else (),
            queued=lost.queued if lost else 0.0,
        )

    def _add_message(self, message: Message, parent: int | None, origin: Origin) -> int:
        return self.episode.add_message(self.activation, message, parent, origin)

    def _open_calls(self, calls: Sequence[ToolCall]) -> None:
        for number, call in enumerate(calls, self.episode.record.next_message):
            tool = self.offer.by_name.get(call.name)
            self.episode.journal.add(
                ev.ToolCalled,
                step=self.step,
                activation=self.activation.id,
                call_id=call.id,
                name=call.name,
                arguments=call.arguments,
                result=number,
                idempotent=tool is not None and tool.idempotent,
            )

    def _toolset(self, tools: Sequence[ToolSchema]) -> str | None:
        digest, dicts = self.offer.digest, self.offer.dicts
        if tools is not self.offer.schemas:  # a hook offered others
            digest, dicts = describe(tools)
        if digest is not None and digest not in self.episode.record.toolsets:
            self.episode.journal.add(ev.ToolsetOffered, digest=digest, tools=dicts)
        return digest

    def _on_delta(self) -> Callable[[Delta], None]:
        """What takes the pieces of the answer; they are many, so all that they share is looked up once."""
        emit, id, agent, step = self.episode.journal.emit, self.episode.record.id, self.agent.name, self.step
        assert emit is not None  # only given to the model when there is a reader

        def on_delta(delta: Delta) -> None:
            kind = TextOutput if type(delta) is TextDelta else ReasoningOutput
            emit(kind(trajectory_id=id, agent=agent, step=step, text=delta.text))

        return on_delta

    def _on_retry(self, error: ModelError, wait: float) -> None:
        emit = self.episode.journal.emit
        assert emit is not None  # only given to the model when there is a reader
        emit(
            RetryOutput(
                trajectory_id=self.episode.record.id, agent=self.agent.name, step=self.step, error=str(error), wait=wait
            )
        )

    def show(self, message: Message) -> None:
        """Tell readers of the stream what the agent said."""
        emit = self.episode.journal.emit
        if emit is not None:
            emit(
                MessageOutput(
                    trajectory_id=self.episode.record.id, agent=self.agent.name, step=self.step, message=message
                )
            )


def observe(record: Trajectory, activation: Activation) -> Observation:
    """What an agent will see next: the results of its last turn, or what was said to it."""
    results = tuple(
        result_of(record, activation.returned[call.call_id])
        for call in activation.calls
        if call.call_id in activation.returned
    )
    newest = record.messages[activation.leaf].message if activation.leaf is not None else None
    said = newest.content if newest is not None and newest.role == "user" else None
    return Observation(said or "", results)


def result_of(record: Trajectory, returned: ev.ToolReturned) -> ActionResult:
    """A closed tool call as the agent sees it."""
    content = record.messages[returned.result].message.content
    return ActionResult(returned.call_id, returned.name, content or "", returned.error, returned.duration)


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
    known = (before.prompt_ids or ()) + (before.completion_ids or ())
    prompt = tokens.prompt_ids or ()
    if prompt[: len(known)] != known:
        return tokens
    return Tokens(
        prompt[len(known) :], tokens.completion_ids, tokens.logprobs, last.step,
        tokens.policy_version, tokens.tokenizer, tokens.chat_template,
    )  # fmt: skip


def _valid(message: Message) -> Message:
    """A message that the log and every provider can take.

    Answers are matched to calls by id, so an id that a model left out or used twice is made unique; and text that is no
    Unicode (half of a surrogate pair) is written out.
    """
    try:
        msgspec.json.encode(message)
    except UnicodeEncodeError:
        message = _written_out(message)
    calls = message.tool_calls
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
