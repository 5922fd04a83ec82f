"""One turn of one agent: what it is shown, what is asked of its model, the tool calls that it decides on.

The prompt is assembled here: the agent's conversation, or what the agent (`turn.show`) or a hook (`before_model`) shows
in its place for this one call. The call is captured here, where the bytes pass: the messages that are sent are nodes of
the graph before they are sent. Tools run side by side and are answered in order; what goes wrong the model is told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Sequence
from functools import partial, reduce
from typing import Any

import msgspec

from aworld.core import event as ev
from aworld.core.agent.base import BaseAgent
from aworld.core.common import ActionResult, Observation
from aworld.core.context.base import Context
from aworld.core.exceptions import DeniedError, LimitReached, ModelError, TaskError, ToolError
from aworld.core.hooks import HookContext, Hooks, around
from aworld.core.message import Content, Message, ToolCall, Usage
from aworld.core.model import Delta, Model, ModelReply, ModelRequest, OutputSchema, TextDelta
from aworld.core.output import PartialOutput, ReasoningOutput, RetryOutput, TextOutput, ToolNoteOutput
from aworld.core.tool.base import Clock, Question, ToolContext
from aworld.core.tool.toolkit import Offer, describe
from aworld.core.tool.wrappers import decoded
from aworld.core.trajectory import Activation, Trajectory
from aworld.models.call import Outcome
from aworld.runners.functions import refusal_of
from aworld.runners.journal import Journal
from aworld.runners.run import Run


class AgentTurn:
    """What the runtime hands to `BaseAgent.decide`. Satisfies `aworld.core.agent.base.Turn`."""

    __slots__ = (
        "_messages", "_partial", "_prompt", "_shown", "activation", "agent", "called", "index", "offer", "run", "step",
    )  # fmt: skip

    def __init__(self, run: Run, activation: Activation, agent: BaseAgent, offer: Offer, step: int, index: int) -> None:
        self.run = run
        self.activation = activation
        self.agent = agent
        self.offer = offer
        self.step = step
        self.index = index
        """How many decisions this agent has begun before in this run."""
        self.called = False
        self._messages: tuple[Message, ...] | None = None
        self._prompt = activation.leaf
        """The leaf of what this call shows."""
        self._shown: tuple[Message, ...] | None = None
        self._partial: PartialAnswer | None = None

    @property
    def messages(self) -> tuple[Message, ...]:
        """The agent's branch of the conversation."""
        if self._messages is None:
            self._messages = self.run.record.path(self.activation.leaf)
        return self._messages

    @property
    def observation(self) -> Observation:
        """What came in since the agent's last decision."""
        return observe(self.run.record, self.activation)

    @property
    def context(self) -> Context:
        """The state of the task."""
        return self.run.state.context_of(self.activation)

    @property
    def deps(self) -> Any:
        """What was given to the run as `deps=`, or made for it."""
        return self.run.deps

    def show(self, messages: Sequence[Message]) -> None:
        """Show these messages in this call, and in this call alone; the conversation stays as it is.

        What comes from the conversation is not stored again and keeps its origin.
        """
        self._shown = tuple(messages)
        self._prompt = self.run.recorder.prompt(self.activation, self.activation.leaf, self._shown)

    def replace(
        self,
        messages: Sequence[Message],
        strategy: str,
        *,
        tokens_before: int | None = None,
        tokens_after: int | None = None,
    ) -> None:
        """Let the conversation go on from these messages (compaction): what was before stays on record."""
        before = self.activation.leaf
        leaf = self.run.recorder.prompt(self.activation, before, messages, aside=False)
        if leaf is None:
            raise TaskError(f"Agent {self.agent.name!r} replaced its conversation by nothing; keep one message.")
        self.activation.leaf = leaf
        self.run.journal.add(
            ev.Compacted,
            activation=self.activation.id,
            before=before,
            after=leaf,
            strategy=strategy,
            tokens_before=tokens_before,
            tokens_after=tokens_after,
        )
        self._messages, self._shown, self._prompt = None, None, leaf

    async def instruct(self) -> None:
        """Show, in this call alone, what the agent's function of instructions returns before everything else.

        Raises TaskError that names a function which fails or returns no text.
        """
        run = self.run
        text = await run.world.instruct(self.agent, run.context_for(self.activation, self.step), run.conf.tool_timeout)
        if text:
            messages = self._shown if self._shown is not None else self.messages
            self.show((Message("system", text), *messages))

    async def generate(
        self, model: Model, *, output: OutputSchema | None = None, params: dict[str, Any] | None = None
    ) -> Message:
        """Ask the model once; captured, retried, streamed. Raises `ModelError`."""
        if self.called:
            raise TaskError(f"Agent {self.agent.name!r} asked its model twice in one turn; one turn is one call.")
        self.called = True
        messages = self._shown if self._shown is not None else self.messages
        request = ModelRequest(
            messages, self.offer.schemas, params or {}, output, self.index, self.run.record.id, self.agent.name
        )
        if self.run.task.hooks:
            return await self._ask_with_hooks(model, request)
        try:
            outcome = await self._ask(model, request)
        except ModelError as error:
            self._record(model, request, error)
            raise
        return self._record(model, request, outcome)

    async def _ask(self, model: Model, request: ModelRequest) -> Outcome:
        run, share = self.run, self.run.share
        used = None if share is None else await share.reserve()  # that much too where the call is cut off
        try:
            if run.is_read:
                outcome = await run.world.ask(model, request, self._on_delta(request), self._on_retry)
            else:
                outcome = await run.world.ask(model, request)
            used = outcome.reply.usage or Usage()
            return outcome
        except ModelError:
            used = None
            raise
        finally:
            if share is not None:
                share.settle(used, model.provider, self.step)

    async def _ask_with_hooks(self, model: Model, request: ModelRequest) -> Message:
        at = HookContext(self.run.record, self.context, self.agent.name, self.step, self.run.deps)
        outcome: Outcome | None = None
        failed: ModelError | None = None

        async def before(hook: Hooks, asked: ModelRequest) -> ModelRequest | ModelReply | None:
            return await hook.before_model(at, asked)

        async def act(asked: ModelRequest) -> ModelReply:
            nonlocal outcome, failed
            if asked.messages is not request.messages:
                self.show(asked.messages)
            try:
                outcome = await self._ask(model, asked)
            except ModelError as error:
                failed = error
                raise
            return outcome.reply

        async def after(
            hook: Hooks, asked: ModelRequest, reply: ModelReply | None, error: BaseException | None
        ) -> ModelReply | None:
            return await hook.after_model(at, asked, reply, error if isinstance(error, Exception) else None)

        asked, reply, error = await around(self.run.task.hooks, request, before, act, after, ModelReply)
        if failed is not None:
            self._record(model, asked, failed)
        message = None
        if outcome is not None:
            message = self._record(model, asked, outcome, reply)
        if error is not None:
            raise error
        assert message is not None  # there is an outcome or an error
        return message

    def _record(
        self,
        model: Model,
        request: ModelRequest,
        outcome: Outcome | ModelError,
        rewritten: ModelReply | None = None,
    ) -> Any:
        """Write the call and its tool calls; returns the message that is used."""
        toolset = self.offer.digest, self.offer.dicts
        if request.tools is not self.offer.schemas:  # a hook offered others
            toolset = describe(request.tools)
        message = self.run.recorder.call(
            self.activation,
            self.step,
            self._prompt,
            toolset,
            outcome,
            model=model,
            request=request,
            used=None if rewritten is None else rewritten.message,
        )
        if message is not None and message.tool_calls:
            self._open_calls(message.tool_calls)
        return message

    def decided(self, message: Message, started: float) -> Message:
        """Write a decision that code made, without a model."""
        toolset = self.offer.digest, self.offer.dicts
        used = self.run.recorder.call(self.activation, self.step, self._prompt, toolset, message, started=started)
        assert used is not None  # there is a message
        self._open_calls(used.tool_calls)
        return used

    def _open_calls(self, calls: Sequence[ToolCall]) -> None:
        for number, call in enumerate(calls, self.run.record.next_message):
            tool = self.offer.by_name.get(call.name)
            self.run.journal.add(
                ev.ToolCalled,
                step=self.step,
                activation=self.activation.id,
                call_id=call.id,
                name=call.name,
                arguments=call.arguments,
                result=number,
                idempotent=tool is not None and tool.idempotent,
            )

    def _on_delta(self, request: ModelRequest) -> Callable[[Delta], None]:
        """What takes the pieces of the answer; they are many, so all that they share is looked up once."""
        push, id, agent, step = self.run.journal.store.hub.push, self.run.record.id, self.agent.name, self.step

        def on_delta(delta: Delta) -> None:
            kind = TextOutput if type(delta) is TextDelta else ReasoningOutput
            push(id, kind(trajectory_id=id, agent=agent, step=step, text=delta.text))

        if request.output is None:
            return on_delta
        self._partial = PartialAnswer(self, on_delta)
        return self._partial

    def _on_retry(self, error: ModelError, wait: float) -> None:
        if self._partial is not None:
            self._partial.begin()
        output = RetryOutput(
            trajectory_id=self.run.record.id, agent=self.agent.name, step=self.step, error=str(error), wait=wait
        )
        self.run.journal.show(output)


class PartialAnswer:
    """Takes the pieces of an answer that has a shape, and shows also what it says so far.

    It is read when it has grown by a thirty-second, so that all the reading takes as long as reading the whole about
    thirty times, however small the pieces are.
    """

    __slots__ = ("_due", "_length", "_on_delta", "_pieces", "_turn", "_value")

    def __init__(self, turn: AgentTurn, on_delta: Callable[[Delta], None]) -> None:
        self._turn = turn
        self._on_delta = on_delta
        self.begin()

    def begin(self) -> None:
        """Forget what a try said that broke off."""
        self._pieces: list[str] = []
        self._length = self._due = 0
        self._value: Any = None

    def __call__(self, delta: Delta) -> None:
        """Take one more piece."""
        self._on_delta(delta)
        if type(delta) is not TextDelta:
            return
        self._pieces.append(delta.text)
        self._length += len(delta.text)
        if self._length >= self._due:
            self._due = self._length + self._length // 32
            self._pieces = ["".join(self._pieces)]
            turn, value = self._turn, self._turn.agent.partial_of(self._pieces[0])
            if value is not None and value != self._value:
                self._value, id = value, turn.run.record.id
                output = PartialOutput(trajectory_id=id, agent=turn.agent.name, step=turn.step, value=value)
                turn.run.journal.show(output)


def observe(record: Trajectory, activation: Activation) -> Observation:
    """What an agent will see next: the results of its last turn, or what was said to it."""
    results = tuple(
        result_of(record, activation.returned[call.call_id])
        for call in activation.calls
        if call.call_id in activation.returned
    )
    newest = record.messages[activation.leaf].message if activation.leaf is not None else None
    content = newest.content if newest is not None and newest.role == "user" else None
    return Observation(content or "", results)


def result_of(record: Trajectory, returned: ev.ToolReturned) -> ActionResult:
    """A closed tool call as the agent sees it."""
    content = record.messages[returned.result].message.content
    result = ActionResult(returned.call_id, returned.name, content or "", returned.error, returned.duration)
    return msgspec.structs.replace(result, attempts=returned.attempts) if returned.attempts else result


INTERRUPTED = "interrupted"


async def run_tools(run: Run, activation: Activation, offer: Offer, ours: Container[str] = ()) -> None:
    """Run the open calls of an activation and close each with its result; `ours` are those of the runtime, by id."""
    calls = [call for call in activation.open_calls if call.call_id not in ours]
    if run.record.questions:
        calls = [call for call in calls if not run.unanswered(call)]
    if not calls:
        return
    clocks = [Clock() for _ in calls]
    run.journal.clocks.update(((activation.id, call.call_id), clock) for call, clock in zip(calls, clocks))
    tasks: list[asyncio.Task[None]] = []
    try:
        if len(calls) == 1:
            await _run_call(run, activation, offer, calls[0])
        else:
            tasks += [asyncio.create_task(_run_call(run, activation, offer, call)) for call in calls]
            await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for clock in clocks:  # whatever had not begun by now never will
            clock.end()
        raise


async def _run_call(run: Run, activation: Activation, offer: Offer, called: ev.ToolCalled) -> None:
    if run.answers_to(called):  # on record before it has an effect, as when it was first called
        fields = msgspec.structs.asdict(called)
        del fields["seq"], fields["at"]
        called = run.journal.add(ev.ToolCalled, **fields)
        await run.journal.commit()
    call = ToolCall(called.call_id, called.name, called.arguments)
    rewritten: dict[str, Any] = {}
    try:
        if run.task.hooks:
            result, rewritten = await _with_hooks(run, activation, offer, called, call)
        else:
            result = await _act(run, activation, offer, called, call)
    except Question as question:
        _ask(run, called, question.text)
        await run.journal.commit()  # who can answer sees it, also while other tools are at work
        return
    close_call(run.journal, activation, called, result, **rewritten)
    run.journal.clocks.pop((activation.id, called.call_id), None)
    run.reserved.pop((activation.id, called.call_id), None)  # it is on record now
    if run.is_read:  # readers see it before the model speaks again
        await run.journal.commit()
    else:
        run.journal.commit(wait=False)


async def _with_hooks(
    run: Run, activation: Activation, offer: Offer, called: ev.ToolCalled, call: ToolCall
) -> tuple[ActionResult, dict[str, Any]]:
    """The result; and the arguments that were used, and what the tool itself answered, where a hook rewrote them."""
    original: ActionResult | None = None
    at = HookContext(run.record, run.context, activation.agent, called.step, run.deps)

    def failed(error: BaseException) -> ActionResult:
        return ActionResult(called.call_id, called.name, "", f"{type(error).__name__}: {error}")

    async def before(hook: Hooks, asked: ToolCall) -> ToolCall | ActionResult | None:
        try:
            return await hook.before_tool(at, asked)
        except DeniedError as denied:
            return ActionResult(called.call_id, called.name, f"Denied: {denied}", str(denied))

    async def act(asked: ToolCall) -> ActionResult:
        nonlocal original
        original = await _act(run, activation, offer, called, asked)
        return original

    async def after(
        hook: Hooks, asked: ToolCall, result: ActionResult | None, error: BaseException | None
    ) -> ActionResult | None:
        return await hook.after_tool(at, asked, result or failed(error or RuntimeError("no result")))

    asked, result, error = await around(run.task.hooks, call, before, act, after, ActionResult)
    if error is not None:
        raise error
    assert result is not None  # there is a result or an error
    rewritten: dict[str, Any] = {}
    if asked.arguments != called.arguments:
        rewritten["arguments"] = asked.arguments
    if original is not None and (original.content, original.error) != (result.content, result.error):
        rewritten["original"] = (original.content, original.error)
    attempts = original.attempts if original is not None else ()
    result = msgspec.structs.replace(result, tool_call_id=called.call_id, name=called.name, attempts=attempts)
    return result, rewritten


class CallAccount:
    """Lets one tool call ask models. Satisfies `aworld.core.tool.base.Account`."""

    def __init__(self, run: Run, called: ev.ToolCalled, spent: list[Usage]) -> None:
        self._run = run
        self._called = called
        self._spent = spent

    async def reserve(self, wanted: Usage) -> Usage:
        """Set aside what is wanted, and no more output than `max_tokens` of the task leaves."""
        share = self._run.share
        if share is not None:
            await share.reserve()
        try:
            return self._reserved(wanted)
        except LimitReached:
            if share is not None:
                share.settle(None)
            raise

    def _reserved(self, wanted: Usage) -> Usage:
        run, conf = self._run, self._run.conf
        run.check_limits(run.record.next_step + run.samples)
        spending = run.spending()
        inputs, outputs = wanted.input_tokens or 0, wanted.output_tokens or 0
        if conf.max_tokens is not None:
            outputs = min(outputs, conf.max_tokens - spending.tokens - inputs)
            if outputs < 1:
                text = f"max_tokens={conf.max_tokens} leaves no room: {spending.tokens} tokens used or set aside."
                raise LimitReached("max_tokens", text)
        # At the price that the tokens of the run had until now.
        cost = spending.cost / spending.tokens * (inputs + outputs) if spending.tokens else 0.0
        if conf.max_cost is not None and spending.cost + cost > conf.max_cost:
            text = f"max_cost={conf.max_cost} leaves no room: {spending.cost:.6f} US dollars spent or set aside."
            raise LimitReached("max_cost", text)
        run.samples += 1
        granted = Usage(inputs, outputs, inputs + outputs, cost=cost)
        self._spent.append(granted)
        run.reserved[self._called.activation, self._called.call_id] = self._spent
        return granted

    def settle(self, granted: Usage, used: Usage | None, source: str, data: dict[str, Any]) -> None:
        """Count what was used, and put it on record."""
        place = next(number for number, usage in enumerate(self._spent) if usage is granted)
        self._spent[place : place + 1] = [] if used is None else [used]
        called = self._called
        if self._run.share is not None:
            self._run.share.settle(used, source, called.step)
        self._run.journal.add(
            ev.Noted, source=source, name="sampling", data=data, step=called.step, activation=called.activation
        )


async def _act(run: Run, activation: Activation, offer: Offer, called: ev.ToolCalled, call: ToolCall) -> ActionResult:
    spent: list[Usage] = []
    context = ToolContext(
        run.record.id,
        activation.agent,
        called.step,
        called.call_id,
        run.state.context_of(activation),
        run.answers_to(called),
        bool(run.record.answers) and run.always(called),
        partial(_show_note, run, activation, called) if run.is_read else None,
        clock=run.journal.clocks[activation.id, called.call_id],
        spent=spent,
        account=CallAccount(run, called, spent),
        deps=run.deps,
    )
    tool = offer.by_name.get(call.name)
    if tool is not None and tool.guardrails:
        try:
            values = decoded(call.arguments)
            refusal = await refusal_of(run, activation, context, "call", values, tool.guardrails)
        except (TaskError, ToolError) as error:
            refusal = str(error)
        if refusal is not None:
            return ActionResult(call.id, call.name, refusal, refusal)
    result = await run.world.act(offer, call, context, run.conf)
    if context.spent:
        result = msgspec.structs.replace(result, usage=reduce(Usage.__add__, context.spent))
    return result


def _show_note(run: Run, activation: Activation, called: ev.ToolCalled, kind: str, data: Any) -> None:
    """A tool tells readers of its progress."""
    id, agent = run.record.id, activation.agent
    run.journal.show(
        ToolNoteOutput(trajectory_id=id, agent=agent, step=called.step, call_id=called.call_id, kind=kind, data=data)
    )


def close_call(
    journal: Journal, activation: Activation, called: ev.ToolCalled, result: ActionResult, **rewritten: Any
) -> None:
    """Write the answer to a call, in the place that was kept for it; `rewritten` is what hooks did to it."""
    calls = activation.calls
    place = 0 if len(calls) == 1 else next(i for i, call in enumerate(calls) if call.call_id == called.call_id)
    parent = calls[place - 1].result if place else activation.leaf
    _return(journal, activation, called, called.result, parent, result, **rewritten)


def answer_call(
    journal: Journal, activation: Activation, called: ev.ToolCalled, content: Content, error: str | None = None
) -> None:
    """Answer a call that no tool answers."""
    close_call(journal, activation, called, ActionResult(called.call_id, called.name, content, error))


def interrupt_call(journal: Journal, activation: Activation, called: ev.ToolCalled, why: str) -> None:
    """Close a call whose outcome nobody will know."""
    clock = journal.clocks.pop((activation.id, called.call_id), None)
    never = clock is not None and clock.began is None and clock.ended is not None and not clock.before
    effect = "It had not begun, and did not run." if never else "It may or may not have taken effect."
    text = f"The call was interrupted ({why}). {effect}"
    answer_call(journal, activation, called, text, INTERRUPTED)


def replace_results(journal: Journal, activation: Activation, results: dict[str, Content]) -> None:
    """Put other answers in the place of those of the last turn: a branch from the first that differs."""
    record = journal.record
    parent: int | None = None
    for called in activation.calls:
        before = activation.returned.get(called.call_id)
        content = results.get(called.call_id)
        if before is None:
            if content is not None:
                answer_call(journal, activation, called, content)
            continue
        if content is None and parent is None:
            continue
        if parent is None:
            parent = record.messages[before.result].parent
        id = record.next_message
        origin, error = "human", None
        if content is None:  # as it was, behind one that was replaced
            origin, error, content = "tool", before.error, record.messages[before.result].message.content or ""
        result = ActionResult(called.call_id, called.name, content, error, before.duration)
        _return(journal, activation, called, id, parent, result, origin)
        parent = id


def _return(
    journal: Journal,
    activation: Activation,
    called: ev.ToolCalled,
    id: int,
    parent: int | None,
    result: ActionResult,
    origin: Any = "tool",
    **rewritten: Any,
) -> None:
    message = Message(
        "tool", result.content, tool_call_id=result.tool_call_id, name=result.name, is_error=result.error is not None
    )
    journal.add(
        ev.MessageAdded,
        id=id,
        parent=parent,
        agent=activation.agent,
        activation=activation.id,
        message=message,
        origin=origin,
    )
    journal.add(
        ev.ToolReturned,
        step=called.step,
        activation=activation.id,
        call_id=called.call_id,
        name=called.name,
        result=id,
        error=result.error,
        duration=result.duration,
        usage=result.usage,
        attempts=result.attempts,
        **rewritten,
    )


def _ask(run: Run, called: ev.ToolCalled, question: str) -> None:
    """Put a question of a tool to a person; the call stays open until the answer comes."""
    id, number = called.call_id, 0
    while id in run.record.questions:
        number += 1
        id = f"{called.call_id}-{number}"
    run.journal.add(
        ev.Asked, id=id, question=question, step=called.step, activation=called.activation, call_id=called.call_id
    )
