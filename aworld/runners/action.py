"""Tool calls of a turn: run side by side, answered in order, whatever goes wrong told to the model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import reduce
from typing import Any

import msgspec

from aworld.core import event as ev
from aworld.core.agent.flow import HandoffTool, UnitTool
from aworld.core.common import ActionResult
from aworld.core.exceptions import DeniedError
from aworld.core.hooks import HookContext, Hooks, around
from aworld.core.message import Content, Message, ToolCall, Usage
from aworld.core.output import ToolNoteOutput
from aworld.core.tool.base import Question, ToolContext
from aworld.core.tool.toolkit import Offer
from aworld.core.trajectory import Activation
from aworld.runners.journal import Journal
from aworld.runners.run import Run

INTERRUPTED = "interrupted"


async def run_tools(run: Run, activation: Activation, offer: Offer) -> None:
    """Run the open calls of an activation and close each with its result."""
    calls = [c for c in activation.open_calls if not runs_itself(c, offer) and not run.unanswered(c)]
    if not calls:
        return
    if len(calls) == 1:
        await _run_call(run, activation, offer, calls[0])
        return
    tasks = [asyncio.create_task(_run_call(run, activation, offer, call)) for call in calls]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def runs_itself(called: ev.ToolCalled, offer: Offer) -> bool:
    """Whether a call is carried out by the runtime, not by a tool's own code."""
    return isinstance(offer.by_name.get(called.name), UnitTool | HandoffTool)


async def _run_call(run: Run, activation: Activation, offer: Offer, called: ev.ToolCalled) -> None:
    answers = run.answers_to(called)
    if answers:  # on record before it has an effect, as when it was first called
        fields = {name: getattr(called, name) for name in ev.ToolCalled.__struct_fields__ if name not in ("seq", "at")}
        called = run.journal.add(ev.ToolCalled, **fields)
        await run.journal.commit()
    call = ToolCall(called.call_id, called.name, called.arguments)
    used: str | None = None
    try:
        if run.task.hooks:
            result, used = await _with_hooks(run, activation, offer, called, call)
        else:
            result = await _act(run, activation, offer, called, call, answers)
    except Question as question:
        _ask(run, called, question.text)
        await run.journal.commit()  # who can answer sees it, also while other tools are at work
        return
    close_call(run.journal, activation, called, result, used)
    run.journal.hand_over()


async def _with_hooks(
    run: Run, activation: Activation, offer: Offer, called: ev.ToolCalled, call: ToolCall
) -> tuple[ActionResult, str | None]:
    """The result, and the arguments that were used where a hook rewrote them."""
    at = HookContext(run.record, run.context, activation.agent, called.step)

    def failed(error: BaseException) -> ActionResult:
        return ActionResult(called.call_id, called.name, "", f"{type(error).__name__}: {error}")

    async def before(hook: Hooks, asked: ToolCall) -> ToolCall | ActionResult | None:
        try:
            return await hook.before_tool(at, asked)
        except DeniedError as denied:
            return ActionResult(called.call_id, called.name, f"Denied: {denied}", str(denied))

    async def act(asked: ToolCall) -> ActionResult:
        return await _act(run, activation, offer, called, asked, run.answers_to(called))

    async def after(
        hook: Hooks, asked: ToolCall, result: ActionResult | None, error: BaseException | None
    ) -> ActionResult | None:
        return await hook.after_tool(at, asked, result or failed(error or RuntimeError("no result")))

    asked, result, error = await around(run.task.hooks, call, before, act, after, ActionResult)
    if error is not None:
        raise error
    assert result is not None  # there is a result or an error
    used = None if asked.arguments == called.arguments else asked.arguments
    return msgspec.structs.replace(result, tool_call_id=called.call_id, name=called.name), used


async def _act(
    run: Run,
    activation: Activation,
    offer: Offer,
    called: ev.ToolCalled,
    call: ToolCall,
    answers: dict[str, str],
) -> ActionResult:
    context = ToolContext(
        run.record.id,
        activation.agent,
        called.step,
        called.call_id,
        run.state.context_of(activation),
        answers,
        _notifier(run, activation, called) if run.record.id in run.journal.topics else None,
    )
    result = await run.world.act(offer, call, context, run.conf)
    if context.spent:
        result = msgspec.structs.replace(result, usage=reduce(Usage.__add__, context.spent))
    return result


def _notifier(run: Run, activation: Activation, called: ev.ToolCalled) -> Callable[[str, Any], None]:
    def notify(kind: str, data: Any) -> None:
        run.journal.show(
            ToolNoteOutput(
                trajectory_id=run.record.id,
                agent=activation.agent,
                step=called.step,
                call_id=called.call_id,
                kind=kind,
                data=data,
            )
        )

    return notify


def close_call(
    journal: Journal, activation: Activation, called: ev.ToolCalled, result: ActionResult, used: str | None = None
) -> None:
    """Write the answer to a call, in the place that was kept for it."""
    calls = activation.calls
    place = 0 if len(calls) == 1 else next(i for i, call in enumerate(calls) if call.call_id == called.call_id)
    parent = calls[place - 1].result if place else activation.leaf
    _return(journal, activation, called, called.result, parent, result, used)


def interrupt_call(journal: Journal, activation: Activation, called: ev.ToolCalled, why: str) -> None:
    """Close a call whose outcome nobody will know."""
    text = f"The call was interrupted ({why}). It may or may not have taken effect."
    close_call(journal, activation, called, ActionResult(called.call_id, called.name, text, INTERRUPTED))


def replace_results(journal: Journal, activation: Activation, results: dict[str, Content]) -> None:
    """Put other answers in the place of those of the last turn: a branch from the first that differs."""
    record = journal.record
    parent: int | None = None
    for called in activation.calls:
        before = activation.returned.get(called.call_id)
        content = results.get(called.call_id)
        if before is None:
            if content is not None:
                close_call(journal, activation, called, ActionResult(called.call_id, called.name, content))
            continue
        if content is None and parent is None:
            continue
        if parent is None:
            parent = record.messages[before.result].parent
        id = record.next_message
        if content is None:  # as it was, behind one that was replaced
            message = record.messages[before.result].message
            result = ActionResult(called.call_id, called.name, message.content or "", before.error, before.duration)
            _return(journal, activation, called, id, parent, result, origin="tool")
        else:
            result = ActionResult(called.call_id, called.name, content, None, before.duration)
            _return(journal, activation, called, id, parent, result, origin="human")
        parent = id


def _return(
    journal: Journal,
    activation: Activation,
    called: ev.ToolCalled,
    id: int,
    parent: int | None,
    result: ActionResult,
    used: str | None = None,
    origin: Any = "tool",
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
        arguments=used,
        error=result.error,
        duration=result.duration,
        usage=result.usage,
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
